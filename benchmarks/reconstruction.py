"""CG-SENSE of one slice, 320 x 320, 16 coils, 30 iterations: ours against sigpy's, from samples to image, same result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.random import default_rng

from benchmarks._measure import Row, compare
from foundation.physics.kspace import SenseOperator, coil_maps, draw_mask, expand_mask, smooth_phase
from foundation.reconstruction.methods import solve_sense

EDGE, COILS, ITERATIONS = 320, 16, 30
LEAST_RATIO = 1.3


def rows() -> Iterator[Row]:
    from sigpy.mri.app import SenseRecon

    rng = default_rng(0)
    maps = coil_maps((EDGE, EDGE, 1), (0.7, 0.7, 1.0), COILS, rng)[..., 0].contiguous()
    image = torch.from_numpy(rng.random((EDGE, EDGE), np.float32)) * smooth_phase((EDGE, EDGE), 0.5, rng)
    for kind, words in (("equispaced", "lines left out"), ("poisson", "points left out")):
        shape = (EDGE,) if kind == "equispaced" else (EDGE, EDGE)
        drawn = draw_mask(kind, shape, 4, 24, rng)
        mask = expand_mask(drawn, (0, 1)[-drawn.ndim :], 2)
        kspace = SenseOperator(maps, mask).acquire(image, 0.01, rng)
        weights = mask.expand(EDGE, EDGE).to(torch.complex64).numpy()

        def ours(kspace: torch.Tensor = kspace, mask: torch.Tensor = mask) -> torch.Tensor:
            return solve_sense(SenseOperator(maps, mask), kspace, ITERATIONS)

        def theirs(kspace: torch.Tensor = kspace, weights: np.ndarray = weights) -> np.ndarray:
            solver = SenseRecon(kspace.numpy(), maps.numpy(), weights=weights, max_iter=ITERATIONS, show_pbar=False)
            return np.asarray(solver.run())

        wanted = torch.from_numpy(theirs())
        assert float((ours() - wanted).norm() / wanted.norm()) < 1e-3
        yield compare(f"CG-SENSE, {words}, theirs sigpy", ours=ours, theirs=theirs, target=LEAST_RATIO)
