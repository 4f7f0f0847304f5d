"""A cohort on disk: `larmor cohort OUT --subjects 200 --seed 0 --spacing 2.0`.

    OUT/cohort.yaml                    what it was made with; the same command continues where it was stopped
    OUT/manifest.jsonl                 the collection, for every other command; written last
    OUT/truth.json                     over all subjects: volumes, events, what no model can beat (concordance, Dice)
    OUT/sub-00007/T1w.nii.gz, T1w.json a series and its BIDS sidecar, and so on for the other contrasts
    OUT/sub-00007/labels.nii.gz        structures and lesions on the first series' grid (`materials.STRUCTURES`)
    OUT/sub-00007/map-T1.nii.gz, ...   with --maps: T1, T2, ADC; with --raw: raw-T1w.h5, multi-coil k-space
    OUT/sub-00007/truth.json           everything that is known of the patient because we made it

Subjects are independent, so that the bytes do not depend on the number of processes, nor on what was written before.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from foundation.cohort.acquisition import quantitative_maps
from foundation.cohort.anatomy import IMAGE, subject_name
from foundation.cohort.oracle import oracle_dice
from foundation.cohort.outcome import oracle_concordance
from foundation.cohort.patient import CohortConfig, make_patient
from foundation.cohort.raw import simulate_raw, write_raw
from foundation.config import check_continues, load_config, parse_config, save_config
from foundation.errors import InputError
from foundation.files import write_aside, write_folder_aside
from foundation.parallel import in_order, one_thread
from foundation.progress import progress
from foundation.reading.collection import Row, SeriesEntry, Split, read_manifest, write_manifest
from foundation.reading.nifti import write_labels, write_sidecar, write_volume
from foundation.study import Series

ORACLE_SUBJECTS = 4  # heads that are made twice for the Dice between grids


def write_cohort(folder: Path, config: CohortConfig, num_subjects: int, *, processes: int | None = None) -> Path:
    """Write a cohort, or what is missing of it; return the manifest's path. `processes` None uses every core."""
    if num_subjects < 1:
        raise InputError("a cohort has subjects", got=num_subjects, remedy="Ask for one at least.")
    if processes is not None and processes < 1:
        raise InputError("patients are made by processes", got=processes, remedy="Ask for one at least.")
    source = config.source().describe()  # a wrong anatomy folder is found before anything is written
    _check_folder(folder, config)
    missing = [index for index in range(num_subjects) if not (folder / subject_name(index) / "row.json").is_file()]
    processes = min(processes or os.cpu_count() or 1, max(1, len(missing)))
    save_config(config, folder / "cohort.yaml")
    write = partial(write_patient, folder, config)
    with progress(total=num_subjects, initial=num_subjects - len(missing), label="patients", unit="patient") as bar:
        for _ in in_order(write, missing, processes):
            bar.update()
    return _publish(folder, config, num_subjects, source)


def cohort_command(
    out: Path,
    *,
    subjects: int,
    processes: int | None,
    **settings: Any,
) -> None:
    """The `larmor cohort` command."""
    config = parse_config(CohortConfig, {name: value for name, value in settings.items() if value is not None})
    manifest = write_cohort(out, config, subjects, processes=processes)
    for line in _described(json.loads((out / "truth.json").read_text())):
        print(line)
    print(f"wrote {subjects} synthetic patients: {manifest}")
    print(f"wrote what is true of them all: {out / 'truth.json'}")


def _described(truth: dict[str, Any]) -> Iterator[str]:
    """What a cohort is, in a few lines; all of it is in truth.json."""
    yield f"{truth['subjects']} patients, {truth['series']} series, of {truth['anatomy']}. {truth['note']}"
    counts = {"without a disease": truth["normal"], **truth["diagnoses"]}
    width = max(map(len, counts))
    for name, number in counts.items():
        yield f"  {name.replace('_', ' '):{width}}  {number:5d}"


def write_patient(folder: Path, config: CohortConfig, index: int) -> None:
    """One subject's folder, whole or not at all."""
    patient = make_patient(config, index)
    name = patient.anatomy.subject.name
    with write_folder_aside(folder / name) as aside:
        stems = _stems([scan.series for scan in patient.scans])
        for stem, scan in zip(stems, patient.scans, strict=True):
            write_volume(aside / f"{stem}.nii.gz", scan.series.voxels, scan.series)
            write_sidecar(aside / f"{stem}.json", scan.series.acquisition)
        write_labels(aside / "labels.nii.gz", patient.labels, patient.scans[0].series)
        if config.maps:
            grid = Series(patient.anatomy.share.numpy(), patient.anatomy.affine)
            for map_name, values in quantitative_maps(patient.anatomy, patient.tissues).items():
                write_volume(aside / f"map-{map_name}.nii.gz", values, grid)
        if config.raw:
            subject, contrast = patient.anatomy.subject, config.contrasts[0]
            raw = simulate_raw(patient.anatomy, patient.tissues, contrast, subject.generator(IMAGE, 97))
            write_raw(aside / f"raw-{contrast}.h5", raw, subject=name)
            patient.truth["raw"] = raw.facts
        (aside / "truth.json").write_text(json.dumps(patient.truth, indent=1) + "\n")
        row = Row(
            subject=name,
            series=tuple(
                SeriesEntry(path=f"{name}/{stem}.nii.gz", contrast=scan.series.contrast)
                for stem, scan in zip(stems, patient.scans, strict=True)
            ),
            mask=f"{name}/labels.nii.gz",
            targets=patient.targets,
            split=cast(Split, split_of(index, config.splits)),
        )
        (aside / "row.json").write_text(row.model_dump_json() + "\n")


def _stems(series: Sequence[Series]) -> list[str]:
    """File names without suffix. Series of one name are numbered: a study in random contrast has several."""
    names = [one.name for one in series]
    return [
        name if names.count(name) == 1 else f"{name}-{1 + names[:place].count(name)}"
        for place, name in enumerate(names)
    ]


def split_of(index: int, splits: dict[str, float]) -> str:
    """By the index alone: multiples of the golden ratio, modulo 1, fill all shares evenly however many there are."""
    edges = np.cumsum(list(splits.values()))[:-1]
    return list(splits)[int(np.searchsorted(edges, index * (math.sqrt(5) - 1) / 2 % 1, side="right"))]


def _check_folder(folder: Path, config: CohortConfig) -> None:
    """A cohort continues in its own folder, with its own settings, or begins in a new one."""
    settings = folder / "cohort.yaml"
    if settings.is_file():
        earlier, now = (
            dict(one) | {"anatomy": one.anatomy and one.anatomy.resolve()}  # one folder has many spellings
            for one in (load_config(CohortConfig, settings), config)
        )
        check_continues("cohort", earlier, now, folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        remedy = "Name another folder."
        raise InputError(
            "a cohort is written into a new folder", got="one with other files", remedy=remedy, file=folder
        )
    folder.mkdir(parents=True, exist_ok=True)


def _publish(folder: Path, config: CohortConfig, num_subjects: int, source: str) -> Path:
    """The manifest over all subjects, and what is true of the cohort as a whole, which takes a minute and is not done twice."""
    rows = [Row.model_validate_json((folder / subject_name(i) / "row.json").read_text()) for i in range(num_subjects)]
    manifest = folder / "manifest.jsonl"
    if manifest.is_file() and read_manifest(manifest).rows == tuple(rows):
        return manifest
    truths = [json.loads((folder / subject_name(i) / "truth.json").read_text()) for i in range(num_subjects)]
    summary = _summary(source, rows, truths)
    with one_thread():
        summary["oracle_dice"] = oracle_dice(config, range(min(ORACLE_SUBJECTS, num_subjects)))
    with write_aside(folder / "truth.json") as aside:
        aside.write_text(json.dumps(summary, indent=1) + "\n")
    write_manifest(manifest, rows)
    return manifest


def _summary(source: str, rows: list[Row], truths: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, mean volumes, and the concordance that no model can beat on average."""
    diagnoses = [name for truth in truths for name in truth["subject"]["diagnoses"]]
    times = np.array([row.targets["time_days"] for row in rows], float)
    observed = np.array([row.targets["is_observed"] for row in rows], bool)
    parts = {
        name: np.array([truth["outcome"]["log_hazard_parts"][name] for truth in truths])
        for name in ("image", "record", "unexplained")
    }
    hazards = {
        "image": parts["image"],
        "record": parts["record"],
        "image and record": parts["image"] + parts["record"],
        "everything": sum(parts.values()),
    }
    oracle = {}
    if observed.any() and len(rows) > 1:
        try:
            oracle = {
                name: round(oracle_concordance(np.asarray(value, float), times, observed), 4)
                for name, value in hazards.items()
            }
        except InputError:  # a handful of patients may hold no comparable pair
            oracle = {}
    return {
        "note": "Synthetic patients: a test bed, no evidence about people.",
        "anatomy": source,
        "subjects": len(rows),
        "series": sum(len(row.series) for row in rows),
        "diagnoses": {name: diagnoses.count(name) for name in sorted(set(diagnoses))},
        "normal": sum(not truth["subject"]["diagnoses"] for truth in truths),
        "mean_volumes_ml": {
            name: round(float(np.mean([truth["volumes_ml"][name] for truth in truths])), 2)
            for name in truths[0]["volumes_ml"]
        },
        "events_observed": round(float(observed.mean()), 4),
        "oracle_concordance": oracle,
    }
