"""A series with less of what is wrong with it, beside the series as it was measured: to look at, and for nothing else.

    repairs = Repairs(Path("runs/reconstruction/model"))
    key = RepairKey("anna", case_id, 0, "noise")                    the first series of the case
    repairs.make(key, series, tell)
    repairs.look(key, strength=0.7).pictures["after"]

A network changed these images, and they may show what is not there: nothing here is measured, enters a finding, or goes out with a
case. The last few are kept in memory and no file holds them, so that nothing is left of a case that was deleted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.orientations import io_orientation

from foundation.errors import InputError, did_you_mean
from foundation.study import Series
from heads.reconstruction.before_after import GAIN, BeforeAfter
from heads.reconstruction.network import Unrolled
from heads.reconstruction.repair import CAUTION, NOISE, repair_before_after
from heads.reconstruction.scan import FAULTS

KNOWN = (NOISE, *FAULTS)
MOST = 2  # five volumes of a head at 1 mm are 200 MB
KEPT_S = 3600.0
CAVEATS = (CAUTION, "Nobody measured what it shows, and no finding, mask or output of the case comes from it.")
LAYERS = {
    "after": "the image as repaired",
    "change": f"what was changed, {GAIN:g} times as bright",
    "doubt": f"how wrong the model may be, {GAIN:g} times as bright",
}  # what `Look.pictures` has besides `before`


class RepairKey(NamedTuple):
    user: str
    case: str
    series: int
    fault: str


@dataclass(frozen=True)
class Look:
    """Slice `number` of a repaired series, counted from 1. `ratio` is its width over its height in millimetres."""

    pictures: Mapping[str, np.ndarray]
    ratio: float
    number: int
    num_slices: int


class Repairs:
    """The repair model of a server, and what it made last."""

    def __init__(self, model: Path):
        self.network = Unrolled.load(model)
        self._made: OrderedDict[RepairKey, tuple[float, BeforeAfter]] = OrderedDict()
        self._lock = threading.Lock()

    def make(self, key: RepairKey, series: Series, tell: Callable[[float], None]) -> None:
        """Minutes for a head at 1 mm; `tell` hears which share is done, and may raise to end it."""
        if key.fault not in KNOWN:
            remedy = did_you_mean(key.fault, KNOWN)
            raise InputError("what is wrong is one of the known faults", got=repr(key.fault), remedy=remedy)
        if self.has(key):
            return
        made = repair_before_after(series, self.network, key.fault, tell)
        with self._lock:
            self._made[key] = time.monotonic(), made
            while len(self._made) > MOST:
                self._made.popitem(last=False)

    def has(self, key: RepairKey) -> bool:
        with self._lock:
            return key in self._made

    def look(self, key: RepairKey, strength: float, number: int | None = None) -> Look:
        """The slice of that number, or the middle one, for whoever was found to own the case."""
        with self._lock:
            if (found := self._made.get(key)) is None:
                remedy = "Press the button again: only the last few are kept."
                raise InputError("the image was repaired a short while ago", got="no such image", remedy=remedy)
            self._made.move_to_end(key)
        made = found[1]
        num_slices = made.before.shape[2]
        number = min(max(number or (num_slices + 1) // 2, 1), num_slices)
        pictures = made.pictures(strength, (number - 0.5) / num_slices)
        height, width = pictures["before"].shape
        width_mm, height_mm = _pixel_mm(made.before)
        return Look(pictures, width * width_mm / (height * height_mm), number, num_slices)

    def forget(self, is_kept: Callable[[str, str], bool]) -> None:
        """Drop what was made long ago, and what is of cases that are gone; `is_kept` is asked for user and case."""
        with self._lock:
            old = time.monotonic() - KEPT_S
            for key, (made_at, _) in list(self._made.items()):
                if made_at < old or not is_kept(key.user, key.case):
                    del self._made[key]


def _pixel_mm(series: Series) -> tuple[float, float]:
    """Width and height of a pixel as `foundation.reconstruction.command.plane` hangs slices."""
    if not series.side_is_known:
        height, width, _ = series.spacing_mm
    else:
        axes = io_orientation(series.affine)[:, 0].astype(int)  # of each stored axis, which of the patient's it follows
        (_, width), (_, height) = sorted(zip(axes[:2].tolist(), series.spacing_mm[:2].tolist()))
    return float(width), float(height)
