"""What the page knows of one case: where each finding is, what the viewer shows, and the planes for browsers without WebGL2.

view = CaseView.of(store, "anna", case_id)
view.places["lesions.plaque.right"]      {"at_mm": [...], "mask": "masks/lesions.nii.gz"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from foundation.figures import three_planes
from foundation.findings import Evidence, Finding
from foundation.preprocess import Grid, sample_at
from foundation.study import Series
from heads._relevance import BANDS
from serve.cases import Case, CaseStore
from serve.pipeline import Mask, StudyReading
from serve.viewer import Scene, labels_of, scene

Place = Mapping[str, Any]  # at_mm, mask: what `larmor:go` and `serve.viewer.gone` take


@dataclass(frozen=True)
class CaseView:
    """A case as it stands, and its volumes. `whys` are where relevance maps are, for findings that have one."""

    case: Case
    result: StudyReading
    _overlays: dict[tuple[int, str], np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, store: CaseStore, user: str, case_id: str) -> CaseView:
        return cls(store.case(user, case_id), store.result(user, case_id))

    @cached_property
    def places(self) -> dict[str, Place]:
        return {one.id: place for one in self.case.reading.findings if (place := self._place(one))}

    @cached_property
    def pieces(self) -> dict[str, list[Place]]:
        """Where the pieces of findings that have several are, the largest first."""
        series = self.result.study.reference
        return {
            one.id: [
                {**self.places[one.id], "at_mm": _listed(series.to_patient_mm(np.array(piece.slice_index)))}
                for piece in one.pieces
            ]
            for one in self.case.reading.findings
            if one.pieces and one.id in self.places
        }

    @cached_property
    def whys(self) -> dict[str, Place]:
        return {id: {"mask": _why(id)} for id in self.case.relevance}

    def next_open(self, finding_id: str) -> Place | None:
        """Where the finding after this one is that nobody has decided on, from the top again after the last."""
        ids = [one.id for one in self.case.reading.findings]
        after = ids.index(finding_id) + 1
        waiting = (id for id in ids[after:] + ids[:after] if self.case.decisions.get(id, "open") == "open")
        return next((self.places[id] for id in waiting if id in self.places), None)

    def _place(self, finding: Finding) -> Place | None:
        """Where the three planes all show the finding: those on which it is largest, because a centroid can lie outside a curved
        finding or between two lesions. Without evidence that is somewhere, None."""
        evidence = finding.evidence
        at_mm = None if evidence is None else self._at_mm(evidence)
        if evidence is None or at_mm is None:
            return None
        return {"at_mm": at_mm} | ({"mask": evidence.mask} if evidence.mask in self.case.masks else {})

    def _at_mm(self, evidence: Evidence) -> list[float] | None:
        if evidence.slice_index is None:
            return None if evidence.centroid_mm is None else list(evidence.centroid_mm)
        series = next(one for one in self.result.study.series if one.name == evidence.series)
        return _listed(series.to_patient_mm(np.asarray(evidence.slice_index)))

    def start_mm(self) -> list[float]:
        """The first abnormality that is somewhere, otherwise the first finding, otherwise the middle of the images."""
        findings = sorted(self.case.reading.findings, key=lambda one: not one.is_abnormal)
        places = (self.places[one.id]["at_mm"] for one in findings if one.id in self.places)
        return next(places, _listed(_corners_mm(self.result.study.reference).mean(axis=0)))

    def scene(self, address: str) -> Scene:
        """For the viewer; `address` is where the server has the files of cases."""
        case, at = self.case, f"{address}/{self.case.id}/files"
        series = [
            {"name": one.name, "contrast": one.contrast, "url": f"{at}/{file}"}
            for one, file in zip(case.reading.series, case.displays, strict=True)
        ]
        masks: list[dict[str, Any]] = [
            {"name": name, "title": _title(name), "url": f"{at}/{one.display}", "labels": labels_of(one.structures),
             "drawn_on": one.display}
            for name, one in case.masks.items()
        ]  # fmt: skip
        bands = labels_of([band for _, band in BANDS])
        names = {one.id: one.name for one in case.reading.findings}
        masks += [
            {"name": _why(id), "title": f"why “{names[id]}”", "url": f"{at}/{file}", "labels": bands}
            for id, file in case.relevance.items()
            if id in names
        ]
        # A mask that was redrawn is another picture under the same name.
        key = ".".join([case.id, *(Path(one.display).name for one in case.masks.values())])
        return scene(key, series, masks, self.start_mm()) | {"case": case.id, "locked": case.is_locked}

    # -------------------------------------------------------------------------------- planes without WebGL2

    def planes(self, series: int, mask: str | None, at_mm: Sequence[float]) -> np.ndarray:
        """Three planes through a point of the patient, under a mask if one is named."""
        shown = self.result.study.series[series]
        if mask is None:
            return three_planes(shown, at_mm=at_mm)
        return three_planes(shown, self._overlay(series, mask), at_mm, self._mask(mask).structures)

    def _mask(self, name: str) -> Mask:
        if name in self.result.masks:
            return self.result.masks[name]
        return Mask(self.result.rests_on[name.removeprefix("why:")], tuple(band for _, band in BANDS))

    def _overlay(self, series: int, mask: str) -> np.ndarray:
        """The mask on the voxels of any series: series of one study share the patient's coordinates, not a grid."""
        if (series, mask) not in self._overlays:
            study, labels = self.result.study, self._mask(mask).labels
            if series > 0:
                labels = sample_at(labels, study.reference.affine, Grid.of(study.series[series]), nearest=True)
            self._overlays[series, mask] = labels
        return self._overlays[series, mask]

    def bounds_mm(self) -> tuple[list[float], list[float]]:
        """The corners of the box around every series."""
        corners = np.concatenate([_corners_mm(series) for series in self.result.study.series])
        return np.floor(corners.min(axis=0)).tolist(), np.ceil(corners.max(axis=0)).tolist()

    def step_mm(self) -> float:
        """How far to move so that some series shows its next plane."""
        return max(0.1, round(min(float(series.spacing_mm.min()) for series in self.result.study.series), 1))


def _title(mask: str) -> str:
    return Path(mask).name.removesuffix(".nii.gz")


def _why(finding_id: str) -> str:
    """What the viewer calls the map of what a finding rests on."""
    return f"why:{finding_id}"


def _corners_mm(series: Series) -> np.ndarray:
    ends = [(0, length - 1) for length in series.shape]
    return series.to_patient_mm(np.array(list(product(*ends))))


def _listed(at_mm: np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in at_mm]
