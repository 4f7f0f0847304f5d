"""What a store holds, in a few lines and one picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.figures import COLOURS, save_png
from foundation.store.reader import Store

SHOWN = 24  # slices in the picture
COLUMNS = 8
BINS = 30


def summarise(store: Store) -> str:
    shapes = _lists(store, "shape", 3)
    voxels = int(shapes.prod(axis=1).sum())
    num_bytes = int(_numbers(store, "num_bytes").sum())
    spread = _numbers(store, "std")
    error = _numbers(store, "max_error") / spread
    lossless = int((error == 0).sum())
    others = (
        f"; in the others the largest error is {error.max():.2g} standard deviations" if lossless < len(store) else ""
    )
    lines = [
        f"{len(store)} series of {len(store.studies)} studies, {num_bytes / 2**20:.1f} MiB, "
        f"{num_bytes / voxels:.2f} bytes per voxel",
        f"{lossless} series keep every value{others}",
    ]
    if clipped := int(_numbers(store, "num_clipped").sum()):
        lines.append(f"{clipped} voxels were clipped: spikes more than 64 standard deviations from the mean")
    masked = sum(store.table["has_removed"].to_pylist())
    lines.append(f"{masked} series have a mask of what was removed with the face; in the others nothing was looked for")
    return "\n".join(lines)


def plot_store(store: Store, path: Path) -> None:
    """Contrasts, spacings and sizes of all series, and the middle axial slice of some of them, evenly chosen."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=[1, 2.2])
    contrasts, spacings, sizes = rows[0].subgridspec(1, 3).subplots(squeeze=False)[0]
    _plot_contrasts(contrasts, store)
    spacing = _lists(store, "spacing_mm", 3)
    _plot_axes(spacings, spacing, "spacing, mm")
    _plot_axes(sizes, _lists(store, "shape", 3) * spacing, "size of the stored box, mm")
    chosen = np.unique(np.linspace(0, len(store) - 1, min(SHOWN, len(store))).round().astype(int))
    mosaic = rows[1].subgridspec(-(-len(chosen) // COLUMNS), COLUMNS).subplots(squeeze=False).ravel()
    for axes in mosaic:
        axes.set_axis_off()
    for axes, number in zip(mosaic, chosen):
        series = store.series(int(number))
        x, y, z = series.row.extent
        plane = series.read_box((0, 0, z // 2), (x, y, z // 2 + 1)).values[:, :, 0]
        low, high = np.percentile(plane, [1, 99.5])
        dx, dy, _ = series.row.spacing_mm
        # Anterior up, the patient's right on the viewer's left.
        axes.imshow(plane[::-1, ::-1].T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=dy / dx)
        axes.set_title(f"{series.row.subject}\n{series.contrast}"[:40], fontsize=7, parse_math=False)
    save_png(path, figure)


def _plot_contrasts(axes: Axes, store: Store) -> None:
    counted = Counter(store.table["contrast"].to_pylist()).most_common()
    axes.barh([name for name, _ in counted], [number for _, number in counted], color=COLOURS[4])
    axes.invert_yaxis()
    axes.set_xlabel("series")
    axes.spines[["top", "right"]].set_visible(False)


def _plot_axes(axes: Axes, values: np.ndarray, label: str) -> None:
    """One outline per axis of the patient, over common bins; `values` `(series, 3)`."""
    low, high = float(values.min()), float(values.max())
    bins = np.linspace(low, high if high > low else low + 1, BINS).tolist()
    for axis, name in enumerate(("right", "anterior", "superior")):
        axes.hist(
            values[:, axis], bins=bins, histtype="step", color=COLOURS[(4, 0, 2)[axis]], linewidth=1.5, label=name
        )
    axes.set_xlabel(label)
    axes.set_ylabel("series")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _numbers(store: Store, name: str) -> np.ndarray:
    return store.table[name].to_numpy()


def _lists(store: Store, name: str, length: int) -> np.ndarray:
    """A column of lists of equal length, `(series, length)`."""
    return store.table[name].combine_chunks().flatten().to_numpy().reshape(-1, length)
