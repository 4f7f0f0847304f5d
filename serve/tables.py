"""A reading as tables: measurements.csv for spreadsheets, lesions.csv where lesions were counted, the masks as a BIDS derivative.

bids/dataset_description.json
bids/sub-patient1/anat/sub-patient1_desc-structures_dseg.nii.gz    and .tsv: which value is which structure, in which colour
bids/sub-patient1/anat/sub-patient1_desc-structures_morph.tsv      volumes
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.figures import COLOURS
from foundation.findings import Reading, Structure
from foundation.reading.nifti import write_labels

if TYPE_CHECKING:
    from serve.pipeline import Mask, StudyReading

MEASUREMENTS = ("id", "finding", "anatomy", "side", "presence", "probability", "calibrated", "measurement", "value", "unit",
                "method", "source")  # fmt: skip
LESIONS = ("finding", "side", "source", "number", "volume_ml", "right_mm", "anterior_mm", "superior_mm")


def write_measurements(reading: Reading, path: Path) -> None:
    """A row per measurement, and one for a finding that has none."""
    rows = []
    for finding in reading.findings:
        known = (finding.id, finding.name, finding.anatomy, finding.side, finding.presence)
        probability = ("", "") if finding.probability is None else (finding.probability, finding.is_calibrated)
        for one in finding.measurements or (None,):
            measured = ("", "", "", "") if one is None else (one.name, one.value, one.unit, one.method)
            rows.append((*known, *probability, *measured, finding.source))
    _write(path, MEASUREMENTS, rows)


def write_lesions(reading: Reading, path: Path) -> None:
    """A row per piece of what was counted; nothing is written where nothing was."""
    rows = [
        (finding.name, finding.side, finding.source, piece.number, round(piece.volume_ml, 4),
         *(round(n, 1) for n in piece.centroid_mm))
        for finding in reading.findings
        for piece in finding.pieces
    ]  # fmt: skip
    if rows:
        _write(path, LESIONS, rows)


def write_bids(result: StudyReading, folder: Path) -> None:
    """The masks as a BIDS derivative in `folder`."""
    subject = f"sub-{_label(result.study.subject)}"
    session = f"ses-{_label(result.study.session)}" if result.study.session else ""
    place = folder.joinpath(*filter(None, (subject, session, "anat")))
    place.mkdir(parents=True)
    description = {
        "Name": "Larmor reading, not verified",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": result.reading.software}],
    }
    (folder / "dataset_description.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    for path, mask in result.masks.items():
        model = path.removeprefix("masks/").removesuffix(".nii.gz")
        stem = "_".join(filter(None, (subject, session, f"desc-{_label(model)}")))
        write_labels(place / f"{stem}_dseg.nii.gz", mask.labels, result.study.reference)
        _write(place / f"{stem}_dseg.tsv", ("index", "name", "color"), _lookup(mask.structures), "\t")
        _write(place / f"{stem}_morph.tsv", ("index", "name", "volume_ml"), _volumes(result, mask), "\t")


def _lookup(structures: Sequence[Structure]) -> list[tuple[object, ...]]:
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(structures))]
    return [(one.value, one.name, colour) for one, colour in zip(structures, colours, strict=True)]


def _volumes(result: StudyReading, mask: Mask) -> list[tuple[object, ...]]:
    voxel_ml = result.study.reference.voxel_volume_ml
    return [
        (one.value, one.name, round(float((mask.labels == one.value).sum()) * voxel_ml, 4)) for one in mask.structures
    ]


def _label(text: str) -> str:
    """BIDS labels are letters and digits."""
    return re.sub(r"[^A-Za-z0-9]+", "", text.removeprefix("sub-").removeprefix("ses-")) or "unnamed"


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(header)
        table.writerows([_inert(cell) for cell in row] for row in rows)


def _inert(cell: object) -> object:
    """Text that a spreadsheet will not take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
