"""What the cohort looks like, to be looked at critically.

    python -m foundation.cohort.gallery gallery.png [--spacing 1] [--anatomy DIR]

Rows of diseases by columns of contrasts, one slice through the most of the lesion; below, every artefact at three severities.
Windows are set from brain voxels, as a reader would set them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.cohort.acquisition import Protocol, Scan, acquire, draw_protocol
from foundation.cohort.anatomy import IMAGE, PROTOCOL, Anatomy, Subject
from foundation.cohort.disease import anatomy_with_disease
from foundation.cohort.label_maps import LabelMaps
from foundation.cohort.materials import BRAIN, LESIONS, shows
from foundation.cohort.templates import AnatomySource, BundledTemplate
from foundation.figures import axial_plane, save_png
from foundation.physics.artefacts import ARTEFACTS, draw_artefact
from foundation.physics.relaxometry import sample_tissues
from foundation.progress import progress

COLUMNS = ("T1w", "T1w-contrast", "T2w", "FLAIR", "DWI", "ADC", "T2star", "random")
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("normal", ()),
    ("glioma", ("glioma",)),
    ("multiple sclerosis", ("multiple_sclerosis",)),
    ("white matter disease", ("white_matter_disease",)),
    ("infarct", ("infarct",)),
    ("haemorrhage", ("haemorrhage",)),
    ("atrophy", ("atrophy",)),
)
SHOWN_SEVERITIES = (1, 3, 5)


def gallery(path: Path, *, spacing_mm: float = 2.0, seed: int = 3, source: AnatomySource | None = None) -> None:
    """Draw the figure; every image is a scan like any other of the cohort, but straight, of even voxels and without flaw."""
    source = source or BundledTemplate()
    heads = {title: _head(seed, row, diagnoses, source, spacing_mm) for row, (title, diagnoses) in enumerate(ROWS)}
    width, num_rows = len(COLUMNS), len(ROWS) + 1 + (len(ARTEFACTS) * len(SHOWN_SEVERITIES) - 1) // len(COLUMNS)
    figure = Figure(figsize=(1.25 * width, 1.6 * num_rows), facecolor="black", layout="tight")
    axes = np.asarray(figure.subplots(num_rows, width))
    for one in axes.flat:
        one.axis("off")
    with progress(total=len(ROWS), label="gallery", unit="head") as bar:
        for row, (title, anatomy) in enumerate(heads.items()):
            for column, contrast in enumerate(COLUMNS):
                scan = _scan(anatomy, contrast, column)
                _show(axes[row, column], scan, anatomy, f"{title}\n{contrast}" if column == 0 else contrast)
            bar.update()
    cells = iter(axes[len(ROWS) :].flat)
    for kind in ARTEFACTS:
        for severity in SHOWN_SEVERITIES:
            artefact = draw_artefact(kind, severity, np.random.default_rng(severity))
            anatomy = heads["normal"]
            _show(next(cells), _scan(anatomy, "T2w", 2, artefact=artefact), anatomy, f"{kind} {severity}")
    save_png(path, figure)


def _head(seed: int, row: int, diagnoses: tuple[str, ...], source: AnatomySource, spacing_mm: float) -> Anatomy:
    subject = replace(Subject.draw(seed, row), diagnoses=diagnoses, orientation="RAS", is_oblique=True, field_t=3.0)
    return anatomy_with_disease(subject, source, spacing_mm)


def _scan(anatomy: Anatomy, contrast: str, number: int, **changes: object) -> Scan:
    subject, spacing = anatomy.subject, float(anatomy.spacing_mm[0])
    drawn: Protocol = draw_protocol(contrast, subject, spacing, subject.generator(PROTOCOL, number))
    plain = replace(drawn, voxel_mm=(spacing,) * 3, tilt_deg=(0.0, 0.0, 0.0), artefact=None)
    tissues = sample_tissues(subject.field_t, subject.generator(PROTOCOL))
    return acquire(anatomy, replace(plain, **changes), tissues, subject.generator(IMAGE, number))


def _show(axes: Axes, scan: Scan, anatomy: Anatomy, title: str) -> None:
    """The axial slice with most lesion, or through the ventricles; the patient's right is on the viewer's left."""
    lesion = shows(scan.labels, LESIONS)
    wanted = lesion if lesion.any() else shows(scan.labels, ["lateral ventricle"])
    place = int(np.argmax(np.count_nonzero(wanted, axis=(0, 1))))
    low, high = np.percentile(scan.series.voxels[shows(scan.labels, BRAIN)], [0.5, 99.7])
    axes.imshow(axial_plane(scan.series.voxels, place), cmap="gray", vmin=min(0.0, float(low)), vmax=1.1 * float(high))
    axes.set_title(title, color="white", fontsize=6)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--spacing", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--anatomy", type=Path)
    chosen = parser.parse_args(arguments)
    source = None if chosen.anatomy is None else LabelMaps(chosen.anatomy)
    gallery(chosen.path, spacing_mm=chosen.spacing, seed=chosen.seed, source=source)
    print(f"wrote {chosen.path}")


if __name__ == "__main__":
    main()
