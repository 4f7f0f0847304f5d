"""One slice, 320 x 320, 16 coils, sensitivities known, from samples to image: CG-SENSE of 30 iterations, ours against sigpy's with
the same result, and beside it the unrolled network, whose time does not depend on what its weights are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.random import default_rng

from benchmarks._measure import Row, alone, compare
from foundation.physics.kspace import SenseOperator, coil_maps, draw_mask, expand_mask, smooth_phase
from foundation.reconstruction.methods import solve_sense
from heads.base import EMBEDDED
from heads.reconstruction.network import Unrolled
from heads.reconstruction.scan import CONTEXT_SIZE, Scan

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
        batch = (one[None] for one in (kspace, mask, maps, maps))
        scan = Scan(*batch, context=torch.zeros(CONTEXT_SIZE), scale=1.0)
        network = Unrolled.load(EMBEDDED / "reconstruction")

        @torch.inference_mode()
        def unrolled(network: Unrolled = network, scan: Scan = scan) -> object:
            return network.reconstruct(scan).image

        yield alone(f"unrolled network, {words}", unrolled)
