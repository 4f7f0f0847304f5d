"""A study in, a reading out: seconds, of the models that come with Larmor on a synthetic patient of four series.

    python -m benchmarks study          reading the files, every model, the report, all outputs; then one model again

The 1 mm patient takes a minute to make.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks._measure import Row, alone
from foundation.cohort.patient import CohortConfig
from foundation.cohort.writing import write_cohort
from foundation.reading.collection import read_manifest, read_study
from heads.adapters.shared import FeatureCache
from heads.base import default_models
from serve import pipeline

CONTRASTS = ("T1w", "T2w", "FLAIR", "DWI")
LONGEST_S = {1.0: 60.0, 2.0: 20.0}  # by spacing in mm
AGAIN_S = 2.0


def rows() -> Iterator[Row]:
    models = pipeline.load_models([])
    with TemporaryDirectory() as parent:
        for spacing_mm, longest_s in LONGEST_S.items():
            folder = Path(parent) / f"{spacing_mm:g}-mm"
            config = CohortConfig(spacing_mm=spacing_mm, contrasts=CONTRASTS, missing_series=0.0, splits={"test": 1.0})
            manifest = write_cohort(folder, config, 1)
            (row,) = read_manifest(manifest).rows
            read = partial(pipeline.read_to_folder, Path(f"{manifest}#{row.subject}"), folder / "out", default_models())
            yield alone(f"four series at {spacing_mm:g} mm, files to outputs", read, target=longest_s)
            study, cache = read_study(row, folder), FeatureCache()
            pipeline.read_study(study, models, cache)
            for model in models:
                again = partial(pipeline.read_study, study, [model], cache)
                yield alone(f"{model.config.name} again at {spacing_mm:g} mm, features kept", again, target=AGAIN_S)
