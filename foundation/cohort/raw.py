"""Raw data of a synthetic head: what eight coils would have measured, in fastMRI's layout.

    raw = simulate_raw(anatomy, tissues, "T2w", generator)
    write_raw(Path("T2w.h5"), raw)

Simulated without the inverse crime (Shimron et al. 2022): the head is finer than the k-space that is kept, every slice has a
phase of its own, the coils' maps are not handed out, and noise is added before anything is masked. The target is the
noise-free combination of the coils on the acquired grid.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nibabel.affines import apply_affine, from_matvec
from numpy.random import Generator
from torch import Tensor

from foundation.cohort.acquisition import draw_protocol, head_image, nulled, typical_signal
from foundation.cohort.anatomy import Anatomy
from foundation.cohort.materials import BRAIN, shows
from foundation.files import write_aside
from foundation.physics.kspace import (
    add_noise,
    coil_maps,
    crop,
    draw_mask,
    root_sum_of_squares,
    smooth_phase,
    to_image,
    to_kspace,
)
from foundation.physics.relaxometry import TissueTable
from foundation.raw import RawData

FINER = 1.25  # pixels of the acquisition over voxels of the head
SPOT_RADII_MM, SPOT_CONTRAST = (2.0, 7.0), (0.15, 0.6)


def simulate_raw(
    anatomy: Anatomy,
    tissues: TissueTable,
    contrast: str,
    generator: Generator,
    *,
    num_slices: int | None = 6,
    num_coils: int = 8,
    acceleration: float = 4.0,
    mask: str = "equispaced",
    noise: float = 0.02,
    anywhere: bool = False,
    spots: int = 0,
    finer: float = FINER,
) -> RawData:
    """Axial slices, evenly spaced, complete and noisy; `planned` says which columns an accelerated scan would have kept.

    They begin at the same place of every head, or `anywhere`, so that a head shows other slices each time. None is the
    whole head, every other slice.

    `noise` is the standard deviation of each channel's real and imaginary part over the mean signal of the head. Up to
    `spots` in each slice are brighter or darker than the head has them: small things that are nowhere else. A pixel is
    `finer` times as wide as a voxel of the head, more than once.
    """
    protocol = draw_protocol(contrast, anatomy.subject, float(anatomy.spacing_mm[0]), generator)
    protocol = replace(protocol, artefact=None, voxel_mm=tuple(anatomy.spacing_mm.tolist()), tilt_deg=(0.0, 0.0, 0.0))
    protocol = nulled(protocol, tissues)
    signal = head_image(anatomy, protocol, tissues, generator)
    if num_slices is None:
        step, chosen = 2, list(range(0, signal.shape[2], 2))
    else:
        brain = np.argwhere(shows(anatomy.labels, BRAIN))[:, 2]
        low, high = np.quantile(brain, [0.2, 0.8])
        step = max(1, round((high - low) / max(1, num_slices - 1)))
        first = round(low) + (int(generator.integers(-step // 2, step // 2 + 1)) if anywhere else 0)
        chosen = list(range(first, min(signal.shape[2], first + num_slices * step), step))
    height, width = (2 * int(n / finer / 2) for n in signal.shape[:2])
    sigma = noise * typical_signal(signal)
    middle = (signal.shape[2] - 1) / 2
    coil_seed = int(generator.integers(2**31))
    kspace, target = [], []
    for place in chosen:
        off_mm = (0.0, 0.0, float((place - middle) * anatomy.spacing_mm[2]))
        # The same coils for every slice: their own generator, begun anew.
        coils = np.random.default_rng(coil_seed)
        maps = coil_maps((*signal.shape[:2], 1), anatomy.spacing_mm, num_coils, coils, centre_mm=off_mm)[..., 0]
        shown = signal[:, :, place]
        if spots:
            shown = shown * spotted(shown, float(anatomy.spacing_mm[0]), int(generator.integers(spots + 1)), generator)
        image = shown * smooth_phase(signal.shape[:2], 0.6, generator)
        measured = crop(to_kspace(maps * image), (height, width))
        target.append(root_sum_of_squares(to_image(measured)))
        kspace.append(add_noise(measured, sigma, generator))
    sampled = draw_mask(mask, (width,), acceleration, 0.08, generator)
    facts = protocol.facts() | {
        "slices": chosen,
        "coils": num_coils,
        "mask": mask,
        "acceleration": acceleration,
        "sigma": sigma,
        "voxel_mm": [finer * spacing for spacing in anatomy.spacing_mm.tolist()[:2]],
    }
    voxels = anatomy.affine[:3, :3] * (signal.shape[0] / height, signal.shape[1] / width, step)
    origin = apply_affine(
        anatomy.affine, (signal.shape[0] // 2, signal.shape[1] // 2, chosen[0])
    )  # cropping keeps the middle
    return RawData(
        torch.stack(kspace),
        torch.ones(1, 1, 1, 1, dtype=torch.bool),
        planned=sampled.reshape(1, 1, 1, -1),
        target=torch.stack(target),
        noise=2 * sigma**2 * torch.eye(num_coils, dtype=torch.complex64),
        affine=from_matvec(voxels, origin - voxels @ (height // 2, width // 2, 0)),
        side_is_known=True,
        facts=facts,
    )


def spotted(image: Float[Tensor, "x y"], spacing_mm: float, num: int, generator: Generator) -> Float[Tensor, "x y"]:
    """A factor for an image: one, but for `num` ellipses of soft edge where it is bright, of up to three fifths either way."""
    factor = np.ones(image.shape, np.float32)
    x, y = np.indices(image.shape)
    for row, column in generator.choice(np.argwhere(image.numpy() > 0.1 * float(image.max())), num):
        angle, radii_mm = generator.uniform(0, np.pi), generator.uniform(*SPOT_RADII_MM, 2)
        across, along = x - row, y - column
        turned = np.stack(
            [np.cos(angle) * across + np.sin(angle) * along, np.cos(angle) * along - np.sin(angle) * across]
        )
        from_edge_mm = (1 - np.hypot(*(spacing_mm * turned / radii_mm[:, None, None]))) * radii_mm.min()
        soft = np.clip(from_edge_mm / spacing_mm + 0.5, 0, 1)
        factor *= 1 + np.float32(generator.uniform(*SPOT_CONTRAST) * generator.choice((-1, 1))) * soft.astype(
            np.float32
        )
    return torch.from_numpy(factor)


def write_raw(path: Path, raw: RawData, *, subject: str) -> None:
    """fastMRI's HDF5 layout: `kspace`, `mask`, `reconstruction_rss`, and attributes; `sigma` and `affine` are ours."""
    import h5py

    assert raw.planned is not None and raw.target is not None and raw.sigma is not None and raw.affine is not None
    with write_aside(path) as aside, h5py.File(aside, "w", track_order=False) as file:
        for name, values in (
            ("kspace", raw.kspace.to(torch.complex64).numpy()),
            ("mask", raw.planned.flatten().numpy()),
            ("reconstruction_rss", raw.target.float().numpy()),
        ):
            file.create_dataset(name, data=values, track_times=False)
        file.attrs["max"] = float(raw.target.max())
        file.attrs["norm"] = float(raw.target.norm())
        file.attrs["acquisition"] = f"SYNTHETIC_{raw.facts['contrast']}"
        file.attrs["patient_id"] = subject
        file.attrs["sigma"] = raw.sigma
        file.attrs["affine"] = raw.affine
