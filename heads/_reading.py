"""What models find in a study, before anybody words or shows it.

    found = find(models, study)
    found.findings, found.said["lesions"].labels

Models that look at the same series on the same grid are asked together, and what their encoders share runs once. A model that was
not made for such a study is not asked: its findings say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ehr.features import RecordSequence
from foundation.findings import Finding, each_once, if_seen
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.stopwatch import Stopwatch
from foundation.study import Contrast, Study
from heads.adapters.folder import LoadedModel
from heads.adapters.shared import FeatureCache, outputs_of
from heads.base import HeadReading


@dataclass(frozen=True)
class Found:
    """`study` is what was measured of it. `said` and `prepared`, by model, are empty where the images show nothing (`is_blank`);
    `remarks` are what a reader must know before believing the findings. `seconds` are of each step; what models share is
    counted with the first of them."""

    study: Study
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]
    said: dict[str, HeadReading] = field(default_factory=dict)
    prepared: dict[str, PreparedStudy] = field(default_factory=dict)
    is_blank: bool = False
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


def find(
    models: Sequence[LoadedModel],
    study: Study,
    cache: FeatureCache | None = None,
    record_for: Callable[[LoadedModel], RecordSequence | None] | None = None,
) -> Found:
    """Let every model look at the study. What no acquired contrast can show is not assessed, whatever a model says of it."""
    watch = Stopwatch()
    unseen = [
        f"{series.name} was predicted by a model, not measured: it was not read."
        for series in study.series
        if series.predicted
    ]
    study = study.measured
    if why := _blank(study):
        refused = tuple(f for one in models for f in one.model.head.refuse(source=one.config.name, why=why))
        return Found(study, refused, (f"Non-diagnostic: {why}.",), is_blank=True)
    said: dict[str, HeadReading] = {}
    looked: dict[str, PreparedStudy] = {}
    views: dict[tuple[object, ...], tuple[PreparedStudy, list[LoadedModel]]] = {}
    for loaded in models:
        name = loaded.config.name
        seen = loaded.config.scope.known_part(study)
        unseen += [
            f"{name} did not look at {one.name} ({one.contrast})."
            for one in study.series
            if all(one is not other for other in seen.series)
        ]
        view = (loaded.config.spacing_mm, *map(id, seen.series))
        if view not in views:
            views[view] = prepare_study(seen, loaded.config.spacing_mm), []
        prepared, asked = views[view]
        objection = loaded.config.scope.objection(prepared)
        if objection:
            said[name] = HeadReading(loaded.model.head.refuse(source=name, why=objection))
        else:
            asked.append(loaded)
    watch.lap("preparing the images")
    for prepared, asked in views.values():
        records = [None if record_for is None else record_for(loaded) for loaded in asked]
        for index, output in outputs_of([loaded.model for loaded in asked], prepared, cache, records):
            head, name = asked[index].model.head, asked[index].config.name
            said[name] = head.read(output, prepared, source=name, mask_path=mask_path(name) if head.draws else None)
            looked[name] = prepared
            watch.lap(f"model {name}")
    acquired: set[Contrast] = {series.contrast for series in study.series}
    findings = each_once(if_seen(finding, acquired) for one in models for finding in said[one.config.name].findings)
    remarks = tuple(remark for one in models for remark in said[one.config.name].remarks)
    return Found(study, findings, (*unseen, *remarks), said, looked, seconds=watch.seconds)


def mask_path(name: str) -> str:
    """Where a reading's folder keeps a model's label map."""
    return f"masks/{name}.nii.gz"


AIR_IN_CT = -900.0  # Hounsfield units; no MRI has such values in a tenth of its voxels


def _blank(study: Study) -> str | None:
    """Why nothing of an MRI can be seen in the reference series, None where something may be."""
    voxels = study.reference.voxels
    if not np.isfinite(voxels).any() or float(np.ptp(voxels[np.isfinite(voxels)])) == 0:
        return "the images are blank, the study is non-diagnostic"
    if (voxels < AIR_IN_CT).mean() > 0.1:
        return "the voxels look like Hounsfield units, so this is a CT and no MRI"
    return None
