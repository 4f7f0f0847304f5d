"""One network from the series that there are to everything that they say something about, slice by slice.

    outputs = Translator(config)(views)        T1, T2, ADC, and every contrast, on the grid of `prepare_study`

Any of the known contrasts may be missing; what is there, and with which times it was acquired where that is known, the network is
told (FiLM). Intensities are those of `prepare_study`, without unit; maps are logarithms of a typical value's multiples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from foundation.checkpoint import load_model_folder, save_model_folder
from foundation.config import Config
from foundation.preprocess import PreparedStudy
from foundation.study import ACQUISITION_SIZE, Acquisition
from heads._unet import NORM_GROUPS, UNet

KIND = "synthesis"
CONTRASTS = ("T1w", "T2w", "FLAIR", "PD", "DWI")
MAPS = {"T1": 1000.0, "T2": 100.0, "ADC": 1000.0}  # typical: ms, ms, 1e-6 mm^2/s
CONTEXT_SIZE = len(CONTRASTS) * (1 + ACQUISITION_SIZE)
MAP_WEIGHT = 1.0


class TranslatorConfig(Config):
    """`spacing_mm` of the grid on which studies are read."""

    channels: Annotated[int, Field(ge=NORM_GROUPS, multiple_of=NORM_GROUPS)] = 24
    spacing_mm: float = 2.0


@dataclass(frozen=True)
class View:
    """Axial slices of one study. `images` are 0 where `present` says that a contrast is missing.

    In training `targets` holds every contrast and `maps` the truth, NaN where there is none (air; a contrast that the study has
    not). `body` is where something is to be said.
    """

    images: Float[Tensor, "slices contrasts rows columns"]
    body: Bool[Tensor, "slices rows columns"]
    present: Bool[Tensor, "contrasts"]
    acquisition: Float[Tensor, "contrasts numbers"]
    targets: Float[Tensor, "slices contrasts rows columns"] | None = None
    maps: Float[Tensor, "slices maps rows columns"] | None = None

    @classmethod
    def of(cls, prepared: PreparedStudy) -> View:
        """The first series of each contrast; slices run up the patient, since the grid's axes are closest to RAS."""
        images = torch.zeros(prepared.grid.shape[2], len(CONTRASTS), *prepared.grid.shape[:2])
        present = torch.zeros(len(CONTRASTS), dtype=torch.bool)
        acquisition = torch.zeros(len(CONTRASTS), ACQUISITION_SIZE)
        body = torch.zeros(prepared.grid.shape, dtype=torch.bool)
        for voxels, inside, series in zip(prepared.voxels, prepared.body, prepared.study.series):
            number = CONTRASTS.index(series.contrast) if series.contrast in CONTRASTS else None
            if number is None or present[number]:
                continue
            images[:, number] = torch.from_numpy(voxels).permute(2, 0, 1)
            present[number] = True
            acquisition[number] = acquisition_vector(series.acquisition)
            body |= torch.from_numpy(inside)
        return cls(images, body.permute(2, 0, 1), present, acquisition)

    def keeping(self, kept: Bool[Tensor, "contrasts"]) -> View:
        """The study as if the other contrasts had not been acquired; what is to be said stays."""
        images = self.images * kept[:, None, None]
        return View(images, self.body, self.present & kept, self.acquisition * kept[:, None], self.targets, self.maps)

    def some(self, slices: Tensor) -> View:
        targets, maps = (None if one is None else one[slices] for one in (self.targets, self.maps))
        return View(self.images[slices], self.body[slices], self.present, self.acquisition, targets, maps)

    @property
    def context(self) -> Float[Tensor, "numbers"]:
        return torch.cat([self.present.float(), self.acquisition.flatten()])


def acquisition_vector(acquisition: Acquisition) -> Float[Tensor, "numbers"]:
    return torch.from_numpy(acquisition.as_vector())


@dataclass(frozen=True)
class Views:
    views: tuple[View, ...]

    def to(self, device: torch.device | str) -> Views:
        return Views(tuple(_moved(view, device) for view in self.views))


def _moved(view: View, device: torch.device | str) -> View:
    return View(**{name: None if one is None else one.to(device) for name, one in vars(view).items()})  # pyright: ignore[reportArgumentType]


class Translator(nn.Module):
    """`forward` gives the loss, as the training loop asks; `outputs` what it makes of a view."""

    def __init__(self, config: TranslatorConfig):
        super().__init__()
        self.config = config
        num_in = 2 * len(CONTRASTS) + 1
        self.net = UNet(num_in, len(MAPS) + len(CONTRASTS), CONTEXT_SIZE, channels=config.channels)

    def outputs(self, view: View) -> Float[Tensor, "slices outputs rows columns"]:
        """Maps as log(value / typical), then every contrast."""
        there = view.present.float()[None, :, None, None].expand(len(view.images), -1, *view.images.shape[-2:])
        return self.net(torch.cat([view.images, there, view.body[:, None].float()], dim=1), view.context)

    def forward(self, batch: Views) -> dict[str, Tensor]:
        """Mean absolute errors inside the body: of the logarithms of the maps, and of the contrasts that were kept back."""
        maps, contrasts = [], []
        for view in batch.views:
            assert view.targets is not None and view.maps is not None
            found = self.outputs(view)
            maps.append(_error(found[:, : len(MAPS)], view.maps, view.body))
            absent = torch.where(view.present[:, None, None], torch.nan, view.targets)
            contrasts.append(_error(found[:, len(MAPS) :], absent, view.body))
        losses = {"maps": torch.stack(maps).mean(), "contrasts": torch.stack(contrasts).mean()}
        return {"loss": MAP_WEIGHT * losses["maps"] + losses["contrasts"], **losses}

    def learning_rate_scale(self, name: str) -> float:
        return 1.0

    def save(self, folder: Path, *, card: str, provenance: dict[str, Any]) -> None:
        save_model_folder(
            folder, kind=KIND, config=self.config, state=self.state_dict(), card=card, provenance=provenance
        )

    @classmethod
    def load(cls, folder: Path) -> Translator:
        loaded = load_model_folder(folder, kind=KIND, config=TranslatorConfig)
        network = cls(loaded.config)
        loaded.fill(network)
        return network.eval()


def _error(
    found: Float[Tensor, "slices n rows columns"],
    wanted: Float[Tensor, "slices n rows columns"],
    body: Bool[Tensor, "slices rows columns"],
) -> Tensor:
    known = wanted.isfinite() & body[:, None]
    return ((found - wanted.nan_to_num()).abs() * known).sum() / known.sum().clamp(min=1)


def collate(views: Sequence[View]) -> Views:
    return Views(tuple(views))
