"""The patients of a prognosis from a collection: outcomes from the rows' targets, records from their files, and what is seen of
their images (`finetune/prognosis/looks.py`). Patients that a model that looks learnt from are left out.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehr.features import age_years
from ehr.index import Admitted
from finetune.config import FinetuneConfig
from finetune.prognosis.looks import look, looks_of
from finetune.prognosis.patients import Patients
from finetune.samples import progress_over, record_of
from foundation.checkpoint import read_about
from foundation.cohort.outcome import Exposure, Laboratory, image_features, record_features
from foundation.errors import InputError
from foundation.reading.collection import Collection, Row, read_manifest
from heads._study import number_of
from heads.prognosis import Head


def from_collection(
    config: FinetuneConfig, head: Head, *, measured_by: Sequence[Path] = (), measured: Sequence[str] = ()
) -> Patients:
    """Every row with an outcome, whatever its split, but those that the models learnt from.

    `measured` names targets of the manifest, with * for any text, that somebody measured in the images: they are seen of the
    images too, and are all that is seen where no model is named.
    """
    collection = read_manifest(config.data.manifest)
    folders = [*([] if config.encoder is None else [config.encoder]), *measured_by]
    learnt = {subject for folder in folders for subject in _learnt_from(folder, collection)}
    rows = [row for row in collection.rows if row.subject not in learnt]
    seen, known = head.follow_up([dict(row.targets) for row in rows])
    rows = [rows[index] for index in known]
    if not rows:
        remedy = "Name them in head.time and head.observed."
        raise InputError(
            "patients have outcomes", got="none that no model learnt from", remedy=remedy, file=collection.path
        )
    notes = [f"{len(collection.rows)} studies, {len(rows)} with an outcome that no model here had learnt from."]
    records = [record_of(row, collection.root) for row in progress_over(rows, "records")]
    without = sum(one is None for one in records)
    if without:
        notes.append(f"{without} of them without a record.")
    image = _targets(rows, measured, head, collection.path)
    kinds = ("measured",) * image.shape[1]
    if folders:
        seen_of, seen_kinds = look(looks_of(config, rows, measured_by), rows, collection.root, config.folder / "looks")
        image, kinds = np.concatenate([image, seen_of], axis=1), (*kinds, *seen_kinds)
    elif not measured:
        remedy = "Set encoder=FOLDER, or name --measured-by or --measured."
        raise InputError("something is seen of the images", got="no model", remedy=remedy)
    if measured:
        notes.append(f"Of the images, as measured in the manifest: {', '.join(measured)}.")
    oracle, law = _oracle(collection.root, rows) or (None, None)
    return Patients(
        tuple(row.name for row in rows),
        seen,
        np.array([_person(row, record) for row, record in zip(rows, records, strict=True)]),
        image,
        kinds,
        records=tuple(records),
        oracle=oracle,
        law=law,
        notes=tuple(notes),
    )


def _learnt_from(folder: Path, collection: Collection) -> Sequence[str]:
    """The subjects of this very collection that a model was fitted on; names alone would mean others in another one."""
    provenance = read_about(folder)["provenance"]
    return provenance.get("trained_on", ()) if provenance.get("data") == collection.fingerprint() else ()


def _person(row: Row, record: Admitted | None) -> list[float]:
    """Age and whether male, as the record has them, or the manifest."""
    if record is not None and (age := age_years(record)) is not None and record.record.sex in ("male", "female"):
        return [age, float(record.record.sex == "male")]
    age, sex = row.targets.get("age_years"), row.targets.get("sex")
    return [
        float(age) if isinstance(age, int | float) else float("nan"),
        float(sex == "male") if sex in ("male", "female") else float("nan"),
    ]


def _oracle(root: Path, rows: Sequence[Row]) -> tuple[Mapping[str, np.ndarray], np.ndarray] | None:
    """A cohort's true log hazards, and the columns that these are weighted sums of; None unless every patient has them."""
    found: dict[str, list[float]] = {"image": [], "record": []}
    columns = []
    for row in rows:
        path = (root / row.series[0].path).parent / "truth.json"
        truth = json.loads(path.read_text()) if path.is_file() else {}
        parts = truth.get("outcome", {}).get("log_hazard_parts")
        if not parts:
            return None
        for name, values in found.items():
            values.append(float(parts[name]))
        exposure = _exposure(dict(row.targets))
        laboratory = [Laboratory(**one) for one in truth["laboratory"]]
        columns.append(
            [*image_features(exposure).values(), *record_features(exposure, laboratory, truth["history"]).values()]
        )
    return {name: np.array(values) for name, values in found.items()}, np.array(columns)


def _exposure(targets: Mapping[str, Any]) -> Exposure:
    """What the law was given of a synthetic patient, from the cohort's targets."""
    return Exposure(
        age_years=targets["age_years"],
        sex=targets["sex"],
        diagnoses=(),
        enhancing_ml=targets["enhancing_tumour_ml"],
        necrosis_ml=targets["necrosis_ml"],
        oedema_ml=targets["oedema_ml"],
        midline_shift_mm=targets["midline_shift_mm"],
        infarct_ml=targets["acute_infarct_ml"],
        haemorrhage_ml=targets["haemorrhage_ml"],
        white_matter_lesion_ml=targets["white_matter_hyperintensity_ml"] + targets["plaque_ml"],
        num_plaques=targets["num_plaques"],
        hippocampus_ml=targets["hippocampus_ml"],
        brain_fraction=min(1.0, targets["brain_ml"] / max(targets["intracranial_ml"], 1e-6)),
    )


# ------------------------------------------------------------------------------------------------ measurements


def _targets(rows: Sequence[Row], patterns: Sequence[str], head: Head, path: Path) -> np.ndarray:
    """Numbers of the manifest, NaN where a row has none; never the outcome itself."""
    config = head.config
    outcome = {config.time, config.observed, config.entry, config.after}
    known = sorted({name for row in rows for name in row.targets} - outcome)
    names = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if patterns and not names:
        got, remedy = ", ".join(patterns), f"There are {', '.join(known)}."
        raise InputError("measurements are targets of the manifest", got=got, remedy=remedy, file=path)
    return np.array([[number_of(dict(row.targets), name) for name in names] for row in rows], float).reshape(
        len(rows), -1
    )
