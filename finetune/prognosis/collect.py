"""The patients of a prognosis from a collection: outcomes from the rows' targets, records from their files, and images through a
frozen encoder, once.

What is kept of a study is how bright it is inside (plain counts), the encoder's registers, and mean, spread and largest value
of every feature over its tokens. Models that outline structures (`measured_by`) add the volumes that they find. Patients that
any of these models learnt from are left out.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from ehr.features import age_years
from ehr.index import Admitted
from finetune.config import FinetuneConfig
from finetune.prognosis.patients import Patients
from finetune.samples import progress_over, record_of
from foundation.checkpoint import read_about
from foundation.encoder import Encoder
from foundation.errors import InputError
from foundation.files import write_aside
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.progress import progress
from foundation.reading.collection import Collection, Row, read_manifest, read_study
from foundation.study import Contrast
from heads._study import number_of
from heads.adapters.folder import LoadedModel, encoder_of, load_model
from heads.base import StudyBatch, StudySample
from heads.prognosis import Head
from heads.segmentation import LabelMapHead

DEPTH_MM = 24.0  # inside the skull, mostly
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
FAR = (-3.0, -2.0, -1.0, 1.0, 1.5, 2.0, 3.0, 4.0)  # interquartile ranges from the median


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
    if folders:
        image = np.concatenate([image, _image_columns(config, collection, rows, measured_by)], axis=1)
    elif not measured:
        remedy = "Set encoder=FOLDER, or name --measured-by or --measured."
        raise InputError("something is seen of the images", got="no model", remedy=remedy)
    if measured:
        notes.append(f"Of the images, as measured in the manifest: {', '.join(measured)}.")
    return Patients(
        tuple(row.name for row in rows),
        seen,
        np.array([_person(row, record) for row, record in zip(rows, records, strict=True)]),
        image,
        records=tuple(records),
        oracle=_oracle(collection.root, rows),
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


def _oracle(root: Path, rows: Sequence[Row]) -> Mapping[str, np.ndarray] | None:
    """A cohort's true log hazards; None unless every patient has them."""
    found: dict[str, list[float]] = {"image": [], "record": []}
    for row in rows:
        path = (root / row.series[0].path).parent / "truth.json"
        parts = json.loads(path.read_text()).get("outcome", {}).get("log_hazard_parts") if path.is_file() else None
        if not parts:
            return None
        for name, values in found.items():
            values.append(float(parts[name]))
    return {name: np.array(values) for name, values in found.items()}


# ------------------------------------------------------------------------------------------------ images


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


def _image_columns(
    config: FinetuneConfig, collection: Collection, rows: Sequence[Row], measured_by: Sequence[Path]
) -> np.ndarray:
    """Kept in the folder, under what they were made from."""
    spacing = config.data.spacing_mm
    weights = [
        read_about(folder)["provenance"].get("weights_sha256") for folder in (config.encoder, *measured_by) if folder
    ]
    made_from = json.dumps([weights, collection.fingerprint(), spacing, [row.name for row in rows]])
    kept = config.folder / f"images-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.npy"
    if kept.is_file():
        return np.load(kept)
    encoder = None if config.encoder is None else encoder_of(config.encoder).eval()
    contrasts: list[Contrast] = sorted({series.contrast for row in rows for series in row.series})
    models = [load_model(folder) for folder in measured_by]
    found = []
    with progress(total=len(rows), label="look", unit="study") as bar:
        for row in rows:
            study = read_study(row, collection.root)
            prepared = prepare_study(study, spacing)
            columns = [brightness(prepared, contrasts)]
            columns += [] if encoder is None else [pooled_features(encoder, prepared)]
            columns += [measured_volumes(one, prepared) for one in models]
            found.append(np.concatenate(columns))
            bar.update()
    with write_aside(kept) as aside:
        np.save(aside, np.stack(found))
    return np.stack(found)


def brightness(prepared: PreparedStudy, contrasts: Sequence[Contrast]) -> np.ndarray:
    """Of each contrast, deeper than `DEPTH_MM`: quantiles, and ln(1 + ml) of what is far brighter or darker than most.

    Plain counts, which need no model: how much is bright on FLAIR is most of what there is to know of some diseases.
    """
    voxel_ml = float(np.prod(prepared.grid.spacing_mm)) / 1000
    found = np.full((len(contrasts), len(QUANTILES) + len(FAR)), np.nan)
    for place, contrast in enumerate(contrasts):
        if contrast in prepared.contrasts:
            index = prepared.contrasts.index(contrast)
            depth_mm = distance_transform_edt(prepared.body[index], sampling=prepared.grid.spacing_mm)
            values = prepared.voxels[index][np.asarray(depth_mm) > DEPTH_MM]
            if len(values):
                quantiles = np.quantile(values, QUANTILES)
                low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
                far = [np.sum(np.sign(k) * (values - middle) > abs(k) * (high - low)) * voxel_ml for k in FAR]
                found[place] = [*quantiles, *np.log1p(far)]
    return found.ravel()


@torch.inference_mode()
def pooled_features(encoder: Encoder, prepared: PreparedStudy) -> np.ndarray:
    """Registers, then mean, standard deviation and maximum over all tokens."""
    features = encoder(StudyBatch.of([StudySample.of(prepared)], dense=False).tokens)
    tokens = features.tokens[0].float()
    parts = [features.registers[0].flatten(), tokens.mean(dim=0), tokens.std(dim=0), tokens.max(dim=0).values]
    return torch.cat([part.float() for part in parts]).numpy()


@torch.inference_mode()
def measured_volumes(loaded: LoadedModel, prepared: PreparedStudy) -> np.ndarray:
    """ln(1 + ml) of each structure that the model outlines, counted by probability: a voxel that is half sure is half a voxel."""
    head = loaded.model.head
    if not isinstance(head, LabelMapHead):
        remedy = "Name the folder of a model that outlines structures."
        raise InputError(
            "--measured-by outlines structures", got=loaded.config.head.kind, remedy=remedy, file=loaded.folder
        )
    output = loaded.model.output_of(prepared)
    x, y, z = prepared.grid.shape
    probable = output[0, :, :x, :y, :z].softmax(dim=0)[1:]
    voxel_ml = float(np.prod(prepared.grid.spacing_mm)) / 1000
    return np.log1p(probable.flatten(1).sum(dim=1).numpy() * voxel_ml)
