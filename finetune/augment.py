"""How a training study is changed each time it is seen: space, artefacts, brightness; the first and last with MONAI's transforms.

Space is mirrored only where a task says that it may be: left and right mean something. A changed volume keeps its grid, as if
the patient had turned.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data.meta_obj import set_track_meta
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandHistogramShift,
)
from monai.transforms.spatial.dictionary import RandAffined

from finetune.config import AugmentConfig
from foundation.physics.artefacts import ARTEFACTS, draw_artefact
from foundation.physics.kspace import smooth_phase
from foundation.training import fold, seeded
from heads.base import StudySample, Target

set_track_meta(False)  # our samples carry their own geometry


class Augment:
    """Draws come from the seed of the call alone, so a sample does not depend on what was drawn before it."""

    def __init__(self, config: AugmentConfig, spacing_mm: tuple[float, float, float]):
        self.config = config
        angle = np.deg2rad(config.rotate_degrees)
        probability = config.probability
        self._space = RandAffined(
            keys=("voxels", "body", "labels"),
            prob=probability,
            rotate_range=(angle,) * 3,
            scale_range=(config.scale,) * 3,
            shear_range=(config.shear,) * 6,
            mode=("bilinear", "nearest", "nearest"),
            padding_mode=("border", "zeros", "zeros"),
            allow_missing_keys=True,
        )
        sigma = tuple((0.0, config.smooth_mm / mm) for mm in spacing_mm)
        self._brightness = Compose(
            [
                RandBiasField(prob=probability, coeff_range=(-config.bias_field, config.bias_field)),
                RandHistogramShift(num_control_points=(4, 7), prob=config.curve),
                RandAdjustContrast(prob=probability, gamma=(1 - config.gamma, 1 + config.gamma)),
                RandGaussianSmooth(*sigma, prob=probability / 2),
            ]
        )
        self._noise = RandGaussianNoise(prob=probability, std=config.noise)

    def __call__(self, sample: StudySample, seed: int) -> StudySample:
        sample = self._forget_contrasts(self._drop_series(sample, seed), seed)
        if self.config.mirror and torch.rand((), generator=seeded(seed, 7)) < 0.5:
            sample = _mirrored(sample)
        data: dict[Hashable, Any] = {"voxels": sample.voxels, "body": sample.body.float()}
        if sample.labels is not None:
            data["labels"] = sample.labels[None].float()
        self._space.set_random_state(seed=fold(seed, 1) % 2**32)
        data = self._space(data)
        body = torch.as_tensor(data["body"]) > 0.5
        if not body.any():
            return sample
        volumes, targets = self._spoil(torch.as_tensor(data["voxels"]), sample, seed)
        voxels = torch.stack(
            [
                self._change_brightness(volume, inside, fold(seed, 2, i))
                for i, (volume, inside) in enumerate(zip(volumes, body, strict=True))
            ]
        )
        labels = None if sample.labels is None else torch.as_tensor(data["labels"])[0].round().long()
        return replace(sample, voxels=voxels, body=body, labels=labels, targets=targets)

    def _spoil(
        self, volumes: torch.Tensor, sample: StudySample, seed: int
    ) -> tuple[torch.Tensor, dict[str, Target] | None]:
        """Artefacts of physics in some series, and the sample's targets with what was done to the reference."""
        if not self.config.artefact:
            return volumes, sample.targets
        truth = {"artefact": "none", "artefact_severity": 0} | (sample.targets or {})
        spoilt = []
        for series, volume in enumerate(volumes):
            rng = np.random.default_rng(fold(seed, 9, series))
            if rng.random() >= self.config.artefact or (series == 0 and truth["artefact"] != "none"):
                spoilt.append(volume)  # one artefact at a time: a second would make the first one's truth wrong
                continue
            artefact = draw_artefact(
                str(rng.choice(list(ARTEFACTS))), int(rng.integers(1, self.config.worst_artefact + 1)), rng
            )
            signal = (volume - volume.min()) * smooth_phase(volume.shape, 0.6, rng)
            spoilt.append(artefact.apply(signal, sample.grid.spacing_mm).abs() + volume.min())
            if series == 0:
                truth |= {"artefact": artefact.kind, "artefact_severity": artefact.severity}
        return torch.stack(spoilt), truth

    def _change_brightness(self, volume: torch.Tensor, body: torch.Tensor, seed: int) -> torch.Tensor:
        """Bias, gamma and blur act on intensities from 0, as a scanner's do; then normalise again, and add noise."""
        self._brightness.set_random_state(seed=seed % 2**32)
        self._noise.set_random_state(seed=fold(seed, 3) % 2**32)
        changed = torch.as_tensor(self._brightness((volume - volume.min())[None])[0])
        inside = changed[body]
        if inside.numel() > 1:
            changed = (changed - inside.mean()) / inside.std().clamp(min=1e-6)
        return torch.as_tensor(self._noise(changed[None])[0])

    def _drop_series(self, sample: StudySample, seed: int) -> StudySample:
        """Leave series out at random, but never all: a clinic's studies are incomplete."""
        num_series = len(sample.contrasts)
        if num_series == 1:
            return sample
        generator = seeded(seed, 4)
        keep = torch.rand(num_series, generator=generator) >= self.config.drop_series
        keep[torch.randint(num_series, (), generator=generator)] = True
        keep &= sample.body.flatten(1).any(dim=1)
        if not keep.any():
            return sample
        chosen = keep.nonzero().squeeze(1).tolist()
        return replace(
            sample,
            voxels=sample.voxels[keep],
            body=sample.body[keep],
            contrasts=tuple(sample.contrasts[i] for i in chosen),
            acquisitions=tuple(sample.acquisitions[i] for i in chosen),
        )

    def _forget_contrasts(self, sample: StudySample, seed: int) -> StudySample:
        """Call contrasts unknown at random: many a file does not say what it is, and must be read too."""
        forgotten = torch.rand(len(sample.contrasts), generator=seeded(seed, 8)) < self.config.forget_contrast
        pairs = zip(sample.contrasts, forgotten.tolist(), strict=True)
        return replace(sample, contrasts=tuple("unknown" if forget else contrast for contrast, forget in pairs))


def _mirrored(sample: StudySample) -> StudySample:
    """Right and left exchanged: the grid's first axis is the one closest to the patient's right."""
    labels = None if sample.labels is None else sample.labels.flip(0)
    return replace(sample, voxels=sample.voxels.flip(1), body=sample.body.flip(1), labels=labels)
