"""Before and after at any strength: computed once, then a matter of milliseconds, as a slider needs.

    shown = scan_before_after(read_raw(path), network, Undersampling(4))      or  repair_before_after(series, network, "ghost")
    shown.pictures(0.7)["after"]                                             (height, width), 0 to 255

What the network learns at strength s is (1 - s) of the noisy image and s of the clean one, so that the images at 0 and 1 hold
all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, UInt8

from foundation.errors import InputError
from foundation.raw import RawData
from foundation.reconstruction.command import Undersampling, compare, plane
from foundation.study import Series
from heads.reconstruction.command import LearnedMethod
from heads.reconstruction.network import Unrolled

Volume = Float[np.ndarray, "x y z"]
BEFORE = "cg-sense"
GAIN = 5.0  # of errors and doubt over images, as in `foundation.figures.plot_errors`


@dataclass(frozen=True)
class BeforeAfter:
    """Volumes of one grid. `weakest` and `strongest` are the image at strength 0 and 1, `doubts` how wrong each may be.

    `reference` is what it should be, known only where samples of a complete scan were left out.
    """

    before: Series
    weakest: Volume
    strongest: Volume
    doubts: tuple[Volume, Volume]
    reference: Volume | None = None

    def at(self, strength: float) -> Series:
        return self.before.with_voxels(_between(self.weakest, self.strongest, strength))

    def pictures(self, strength: float, place: float = 0.5) -> Mapping[str, UInt8[np.ndarray, "height width"]]:
        """Of the slice at `place` of the way through: `before`, `after`, `doubt`, and `error` where there is a reference, `change`
        where there is none. Both images are in one window; what differs and the doubt are `GAIN` times as bright."""
        planes = self._planes(place)
        after = _between(planes["weakest"], planes["strongest"], strength)
        doubt = _between(planes["doubt_0"], planes["doubt_1"], strength)
        before, reference = planes["before"], planes.get("reference")
        differs = {"change": np.abs(after - before)} if reference is None else {"error": np.abs(after - reference)}
        grey = {"before": before, "after": after} | {
            name: GAIN * one for name, one in (differs | {"doubt": doubt}).items()
        }
        return {name: (np.clip(one / self.brightest, 0, 1) * 255).astype(np.uint8) for name, one in grey.items()}

    @cached_property
    def brightest(self) -> float:
        return max(float(np.percentile(self.before.voxels, 99.5)), float(np.finfo(np.float32).tiny))

    def _planes(self, place: float) -> dict[str, Float[np.ndarray, "height width"]]:
        volumes = {
            "before": self.before.voxels,
            "weakest": self.weakest,
            "strongest": self.strongest,
            "doubt_0": self.doubts[0],
            "doubt_1": self.doubts[1],
        } | ({} if self.reference is None else {"reference": self.reference})
        if not 0 <= place <= 1:
            raise InputError("a slice is named by a share of the way", got=place, remedy="0 is the first, 1 the last.")
        return {name: plane(self.before.with_voxels(one), place) for name, one in volumes.items()}


def scan_before_after(raw: RawData, network: Unrolled, undersampling: Undersampling | None = None) -> BeforeAfter:
    """Raw data by SENSE and by the network; of a complete scan, samples are left out first if asked for."""
    undersampling = undersampling or Undersampling()
    methods = {name: LearnedMethod(network, denoise) for name, denoise in (("weakest", 0.0), ("strongest", 1.0))}
    result = compare(raw, (BEFORE,), undersampling, methods)
    voxels = {name: result.used.series(image).voxels for name, image in result.images.items()}
    weakest, strongest = (result.used.series(result.used.shown(one.maps["doubt"])).voxels for one in methods.values())
    reference = None if result.reference is None or not undersampling else result.used.series(result.reference).voxels
    before = result.used.series(result.images[BEFORE], BEFORE)
    return BeforeAfter(before, voxels["weakest"], voxels["strongest"], (weakest, strongest), reference)


def _between(weakest: np.ndarray, strongest: np.ndarray, strength: float) -> np.ndarray:
    if not 0 <= strength <= 1:
        remedy = "0 leaves the noise or the fault, 1 does all that the model would."
        raise InputError("the strength lies between 0 and 1", got=strength, remedy=remedy)
    return weakest + np.float32(strength) * (strongest - weakest)
