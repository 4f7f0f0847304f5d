"""Masked autoencoding of a bag of tokens (He et al. 2022, "Masked autoencoders are scalable vision learners").

Only visible tokens are embedded and encoded. A narrow decoder looks at them and at the targets, which it knows by place,
contrast and voxel size alone, and predicts the targets' voxels, standardised within each patch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from foundation.encoder import Encoder
from foundation.figures import axial_plane, plot_reconstruction
from foundation.masked import MaskedDecoder
from foundation.meters import Work, transformer_flops
from foundation.tokens import PATCH, PATCH_VOXELS, Tokens, from_patches
from foundation.training import Draw, Samples, seeded
from pretrain.config import CropConfig
from pretrain.damage import use_study
from pretrain.masking import MaskedBatch, mask_bags
from pretrain.objectives import ObjectiveConfig, base
from pretrain.samples import Sample, Studies, box_with_body

SHOWN = 0.3  # of the tokens, in the picture
FLAT_VARIANCE = 1e-3  # of a volume whose variance is 1: below it a patch is flat, and standardising would amplify noise


class Config(ObjectiveConfig):
    """`noise` is the most that is added to what is seen, in standard deviations of the volume; how much is drawn for each box."""

    kind: Literal["masked_autoencoding"] = "masked_autoencoding"
    decoder_width: int = 192
    decoder_depth: int = 2
    noise: Annotated[float, Field(ge=0)] = 0.0


class Objective(base.Objective):
    """`forward` is encode, decode, compare."""

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        self.noise = config.noise
        self.decoder = MaskedDecoder(encoder.config, config.decoder_width, config.decoder_depth)

    def forward(self, batch: MaskedBatch) -> dict[str, Tensor]:
        predicted = self.reconstruct(self._corrupted(batch.visible), batch.targets).float()
        if batch.removed is None:
            return {"loss": nn.functional.mse_loss(predicted, standardised(batch.targets.patches))}
        kept = ~batch.removed
        error = (predicted - standardised(batch.targets.patches, kept)).square()
        return {"loss": (error * kept).sum() / kept.sum().clamp(min=1)}

    def _corrupted(self, visible: Tokens) -> Tokens:
        """To predict clean voxels from noisy ones asks for more than to continue them (Vincent et al. 2010)."""
        if not (self.training and self.noise > 0):
            return visible
        patches = visible.patches
        level = self.noise * torch.rand(len(patches), 1, 1, device=patches.device)
        return replace(visible, patches=patches + level * torch.randn_like(patches))

    def reconstruct(self, visible: Tokens, targets: Tokens) -> Float[Tensor, "batch targets voxels"]:
        """The targets' standardised voxels; what `targets.patches` holds is not looked at."""
        return self.decoder(self.encoder(visible), visible, targets)

    def make_samples(self, studies: Studies, crop: CropConfig) -> Samples:
        return MaskedStudies(studies, crop)

    @torch.no_grad()
    def save_pictures(self, folder: Path, sample: Sample) -> list[Path]:
        """One box of the first series: as it is, what was seen of it, and what the model made of the rest.

        The model predicts standardised patches; the true mean and spread of each patch are put back for the eye.
        """
        bag = sample.bag.take((sample.bag.series[0] == sample.bag.series[0, 0]).nonzero().T)
        order = torch.randperm(len(bag), generator=seeded(sample.seed))
        num_visible = max(1, round(SHOWN * len(bag)))
        visible, targets = bag.take(order[None, :num_visible]), bag.take(order[None, num_visible:])
        variance, mean = torch.var_mean(targets.patches, dim=-1, keepdim=True, correction=0)
        made = self.reconstruct(visible, targets).float() * (variance + FLAT_VARIANCE).sqrt() + mean
        x, y, z = (int(n) + 1 for n in bag.cell[0].amax(dim=0))
        empty = torch.full((x * y * z, PATCH_VOXELS), float("nan"))

        def plane(*parts: tuple[Tokens, Tensor]) -> np.ndarray:
            """The middle plane of what these tokens are said to show."""
            cells = empty.clone()
            for tokens, patches in parts:
                cells[np.ravel_multi_index(tuple(tokens.cell[0].T.numpy()), (x, y, z))] = patches[0]
            return axial_plane(from_patches(cells, (x, y, z)).numpy(), z * PATCH // 2)

        path, seen = folder / "reconstruction.png", (visible, visible.patches)
        panels = {"measured": plane((bag, bag.patches)), "visible": plane(seen)}
        plot_reconstruction(path, [*panels.items(), ("reconstructed", plane(seen, (targets, made)))])
        return [path]

    def work(self, batch: MaskedBatch) -> Work:
        studies, seen, wanted = len(batch.visible.is_real), len(batch.visible), len(batch.targets)
        return Work(studies * (seen + wanted), studies * self.operations(seen, wanted))

    def operations(self, visible: int, targets: int) -> float:
        """Of one sample, forward and backward, which costs twice as much: `visible` tokens are encoded and, narrow, decoded
        beside the `targets`."""
        config, width = self.encoder.config, self.decoder.narrow.out_features
        seen = config.num_registers + visible
        decode = transformer_flops(seen + targets, width, len(self.decoder.blocks), config.mlp_ratio)
        ends = 2 * seen * config.width * width + 2 * targets * width * (width + PATCH_VOXELS)
        return 3 * (self.encoder.flops(visible) + decode + ends)


class MaskedStudies:
    """The dataset: samples are boxes as tokens, batches are visible and target tokens."""

    def __init__(self, studies: Studies, crop: CropConfig):
        self.studies, self.crop = studies, crop

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, draw: Draw) -> Sample:
        return use_study(self.studies, draw, lambda study: box_with_body(study, draw.seed, self.crop))

    def collate(self, samples: list[Sample]) -> MaskedBatch:
        crop = self.crop
        return mask_bags(
            [sample.bag for sample in samples],
            [seeded(sample.seed) for sample in samples],
            max_tokens=crop.max_tokens,
            visible_fraction=crop.visible_fraction,
            max_targets=crop.max_targets,
            hide_series=crop.hide_series,
            removed=[sample.removed for sample in samples],
        )


def standardised(
    patches: Float[Tensor, "batch tokens voxels"], kept: Bool[Tensor, "batch tokens voxels"] | None = None
) -> Float[Tensor, "batch tokens voxels"]:
    """Each patch with mean 0 and variance 1, so that the loss asks for structure and not for brightness.

    Of the `kept` voxels alone where some are left out: the hole of a removed face would set the mean of what is beside it.
    """
    patches = patches.float()
    if kept is None:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    else:
        number = kept.sum(dim=-1, keepdim=True).clamp(min=1)
        mean = (patches * kept).sum(dim=-1, keepdim=True) / number
        variance = ((patches - mean).square() * kept).sum(dim=-1, keepdim=True) / number
    return (patches - mean) / (variance + FLAT_VARIANCE).sqrt()
