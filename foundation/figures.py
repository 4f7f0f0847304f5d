"""Pictures of volumes and of runs. Without pyplot, whose hidden current figure two threads of a server would share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage

from foundation.errors import InputError, did_you_mean
from foundation.files import write_aside
from foundation.findings import Structure
from foundation.preprocess import find_body
from foundation.study import Series

# Okabe and Ito's colours, which the colour-blind can tell apart, without black; label 1 is orange in every picture.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# Of the values after twice seven, where lesions are: far from the others and bright, because darker ones vanished on the images.
VIVID = (
    "#55FF00", "#FF00FF", "#D9006C", "#00FFFF", "#634CD9", "#90FF59", "#00FF55",
    "#FF5959", "#C859FF", "#00D900", "#AA00FF", "#AAFF00", "#00FFAA", "#00AAFF",
)  # fmt: skip
OVERLAY = 0.5  # how much of the colour covers the image
PANEL_PIXELS = 360  # height of the tallest of the three panels
GAP_PIXELS = 6
LEGEND_ROW_PIXELS = 24
LEGEND_COLUMNS = 4
MOST_LEGEND_ENTRIES = 8
DPI = 100

Letters = tuple[str, str, str, str]  # the directions at the left, right, top and bottom of a plane


def three_planes(
    series: Series,
    labels: Integer[np.ndarray, "x y z"] | None = None,
    at_mm: Sequence[float] | np.ndarray | None = None,
    structures: Sequence[Structure] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Axial, coronal and sagittal as radiologists hang them: the patient's right on the viewer's left.

    `labels` lies on the grid of `series`. Without `at_mm` (patient RAS+) the planes are those that cut most of the
    labels, because the centroid of a pair lies between the two; without labels, those through the centre of the body.
    Nothing is resampled but for display: an oblique volume is shown along its own axes, named by the closest direction.
    """
    assert labels is None or labels.shape == series.shape, (labels.shape, series.shape)
    to_ras = io_orientation(series.affine)
    affine = series.affine @ inv_ornt_aff(to_ras, series.shape)
    voxels = apply_orientation(series.voxels, to_ras)  # a view: 256^3 voxels are not copied
    labels = None if labels is None else apply_orientation(labels, to_ras)
    if at_mm is not None:
        point = apply_affine(np.linalg.inv(affine), at_mm)
    elif labels is not None and labels.any():
        point = [np.argmax(np.count_nonzero(labels, axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    else:
        point = _body_centre(series.with_voxels(voxels, affine))
    point = np.clip(np.rint(point).astype(int), 0, np.asarray(voxels.shape) - 1)

    window = _window(voxels)
    extent_mm = voxel_sizes(affine) * voxels.shape
    mm_per_pixel = max(extent_mm[1:]) / PANEL_PIXELS
    right, left = ("R", "L") if series.side_is_known else ("?", "?")
    views: tuple[tuple[int, Letters], ...] = (
        (2, (right, left, "A", "P")),
        (1, (right, left, "S", "I")),
        (0, ("A", "P", "S", "I")),
    )
    panels = []
    for across, letters in views:
        size = [max(1, round(extent / mm_per_pixel)) for extent in np.delete(extent_mm, across)]
        plane = voxels.take(point[across], axis=across)
        marked = None if labels is None else labels.take(point[across], axis=across)
        panels.append(_panel(plane, marked, size, window, letters))
    names = {structure.value: structure.name for structure in structures or ()}
    values = sorted(set().union(*(panel.values for panel in panels)))
    return _composed(panels, {value: names.get(value, f"label {value}") for value in values})


def colour_of(value: int) -> str:
    """The colour of a label value, the same in every picture: after seven values lighter, then other ones; then all again."""
    place = (value - 1) % (2 * len(COLOURS) + len(VIVID))
    if place >= 2 * len(COLOURS):
        return VIVID[place - 2 * len(COLOURS)].lower()
    turn, place = divmod(place, len(COLOURS))
    return to_hex(np.asarray(to_rgb(COLOURS[place])) * (1 - 0.5 * turn) + 0.5 * turn)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class _Panel:
    """One plane as the viewer sees it: `rgb` `(rows, columns, 3)` in 0..1, its letters, the labels in it."""

    rgb: np.ndarray
    letters: Letters
    values: set[int]


def _panel(
    plane: Float[np.ndarray, "right up"],
    labels: Integer[np.ndarray, "right up"] | None,
    size: Sequence[int],
    window: tuple[float, float],
    letters: Letters,
) -> _Panel:
    """A plane whose axes run to the patient's right (or front) and up, on `size` pixels, labels over it."""
    low, high = window
    grey = np.clip((_resized(plane, size, order=1) - low) / (high - low), 0, 1)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    values: set[int] = set()
    if labels is not None:
        marked = _resized(labels, size, order=0)
        values = {int(value) for value in np.unique(marked[marked > 0])}
        for value in values:
            rgb[marked == value] *= 1 - OVERLAY
            rgb[marked == value] += OVERLAY * np.asarray(to_rgb(colour_of(value)))
    # Up is the first row, and the patient's right (or front) the first column.
    return _Panel(rgb[::-1, ::-1].transpose(1, 0, 2), letters, values)


def _resized(plane: np.ndarray, size: Sequence[int], *, order: int) -> np.ndarray:
    """`plane` on `size` pixels that cover the same extent: its outer edges are aligned, not its outermost centres."""
    factor = np.asarray(plane.shape) / size
    matrix = np.diag([*factor, 1.0])
    matrix[:2, 2] = (factor - 1) / 2
    return ndimage.affine_transform(plane, matrix, output_shape=tuple(size), order=order, mode="nearest")


def _body_centre(series: Series) -> np.ndarray:
    """Voxel index of the middle of the body, found on every few voxels because that is fast and enough."""
    step = np.maximum(1, (4.0 / series.spacing_mm).astype(int))
    thinned = np.ascontiguousarray(series.voxels[:: step[0], :: step[1], :: step[2]])
    try:
        body = find_body(series.with_voxels(thinned, series.affine @ np.diag([*step, 1.0])))
    except InputError:  # an empty picture is still a picture
        body = np.zeros(1, dtype=bool)
    return np.asarray(ndimage.center_of_mass(body)) * step if body.any() else (np.asarray(series.shape) - 1) / 2


def _window(voxels: np.ndarray) -> tuple[float, float]:
    """Intensities shown as black and white; the brightest half percent, vessels and eyes, does not darken the rest."""
    step = max(1, round((voxels.size / 500_000) ** (1 / 3)))
    low, high = np.percentile(voxels[::step, ::step, ::step], [1, 99.5])
    return float(low), float(high if high > low else low + 1)


def _composed(panels: Sequence[_Panel], names: Mapping[int, str]) -> np.ndarray:
    """Panels side by side on black, vertically centred, direction letters on top, a legend of the labels below."""
    entries = list(names.items())[:MOST_LEGEND_ENTRIES]
    num_more = len(names) - len(entries)
    panel_height = max(panel.rgb.shape[0] for panel in panels)
    width = sum(panel.rgb.shape[1] for panel in panels) + GAP_PIXELS * (len(panels) - 1)
    height = panel_height + LEGEND_ROW_PIXELS * -(-len(entries) // LEGEND_COLUMNS)
    canvas = np.zeros((height, width, 3))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def write(
        text: str, x: int | float, y: int | float, ha: str = "center", va: str = "center", size: int = 11
    ) -> None:
        # Without parse_math=False two dollar signs in a structure's name would be a formula.
        figure.text(
            x / width, 1 - y / height, text, ha=ha, va=va, size=size, color="white", parse_math=False,
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip

    x = 0
    for panel in panels:
        rows, columns = panel.rgb.shape[:2]
        y = (panel_height - rows) // 2
        canvas[y : y + rows, x : x + columns] = panel.rgb
        first, last, top, bottom = panel.letters
        write(first, x + 4, y + rows / 2, ha="left")
        write(last, x + columns - 4, y + rows / 2, ha="right")
        write(top, x + columns / 2, y + 3, va="top")
        write(bottom, x + columns / 2, y + rows - 3, va="bottom")
        x += columns + GAP_PIXELS
    for number, (value, name) in enumerate(entries):
        row, column = divmod(number, LEGEND_COLUMNS)
        x, y = 8 + column * width // LEGEND_COLUMNS, panel_height + row * LEGEND_ROW_PIXELS + 6
        canvas[y : y + 12, x : x + 12] = to_rgb(colour_of(value))
        more = f" and {num_more} more" if num_more and number == len(entries) - 1 else ""
        write(name + more, x + 18, y + 6, ha="left", size=9)
    figure.figimage(canvas, 0, 0, origin="upper")
    agg = FigureCanvasAgg(figure)
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


# ------------------------------------------------------------------------------------------------ files


def png_bytes(picture: UInt8[np.ndarray, "height width 3"] | Figure) -> bytes:
    """The picture as a PNG file's content."""
    buffer = BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=DPI * 1.5)
    else:
        matplotlib.image.imsave(buffer, picture, format="png")
    return buffer.getvalue()


def save_png(path: Path, picture: UInt8[np.ndarray, "height width 3"] | Figure) -> None:
    """Write the picture; what was at `path` stays whole until the new one is."""
    with write_aside(path) as aside:
        aside.write_bytes(png_bytes(picture))


# ------------------------------------------------------------------------------------------------ runs


def plot_curves(path: Path, records: Sequence[Mapping[str, object]], keys: Sequence[str]) -> None:
    """One panel per key over `step`: raw values faint, a running mean over a twentieth of them in front.

    A record lacks a key where it was not measured, as validation is not at every step.
    """
    figure = Figure(figsize=(7, 2.4 * len(keys)), layout="constrained")
    panels = figure.subplots(len(keys), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, key) in enumerate(zip(panels, keys, strict=True)):
        points = np.array(
            [(record["step"], record[key]) for record in records if record.get(key) is not None], dtype=float
        )
        if not len(points):
            known = {name for record in records for name in record} - {"step"}
            raise InputError("a curve is one of the records' keys", got=repr(key), remedy=did_you_mean(key, known))
        steps, values = points.T
        colour = COLOURS[4 + number % 2]
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, _running_mean(values, max(1, len(values) // 20)), color=colour, linewidth=1.8)
        axes.set_ylabel(key)
        _plain(axes)
    panels[-1].set_xlabel("step")
    save_png(path, figure)


def _running_mean(values: Float[np.ndarray, " n"], width: int) -> Float[np.ndarray, " n"]:
    """Centred; near the ends over the values there are, so that the curve neither shortens nor bends to zero."""
    width += 1 - width % 2
    window = np.ones(min(width, 2 * ((len(values) - 1) // 2) + 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def plot_reconstruction(path: Path, rows: Sequence[tuple[str, Shaped[np.ndarray, "height width"]]]) -> None:
    """Planes side by side, first row on top, all in the grey window of the first; NaN (masked) is blue."""
    first = rows[0][1][np.isfinite(rows[0][1])]
    low, high = np.percentile(first, [1, 99.5]) if first.size else (0.0, 1.0)
    height, width = rows[0][1].shape
    figure = Figure(figsize=(3 * len(rows), 3 * height / width + 0.4), layout="constrained")
    greys = colormaps["gray"].with_extremes(bad="#2b3a55")
    for axes, (title, plane) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        axes.imshow(np.ma.masked_invalid(plane), cmap=greys, vmin=low, vmax=high if high > low else low + 1)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    save_png(path, figure)


def plot_errors(
    path: Path,
    reference: Float[np.ndarray, "height width"] | None,
    images: Mapping[str, Float[np.ndarray, "height width"]],
    *,
    gain: float = 5.0,
) -> None:
    """Images side by side in one grey window; where there is a reference, it comes first and their errors stand below.

    Errors are magnitudes on a scale of their own that ends at the window's width over `gain`.
    """
    planes = ({} if reference is None else {"reference": reference}) | dict(images)
    first = next(iter(planes.values()))
    low, high = 0.0, max(float(np.percentile(first, 99.5)), np.finfo(np.float32).tiny)
    height, width = first.shape
    num_rows = 1 if reference is None else 2
    figure = Figure(figsize=(3 * len(planes), num_rows * (3 * height / width + 0.3)), layout="constrained")
    plots = figure.subplots(num_rows, len(planes), squeeze=False)
    for column, (title, plane) in enumerate(planes.items()):
        plots[0, column].imshow(plane, cmap="gray", vmin=low, vmax=high)
        plots[0, column].set_title(title, fontsize=10)
        if reference is not None and column:
            plots[1, column].imshow(np.abs(plane - reference), cmap="magma", vmin=0, vmax=high / gain)
            plots[1, column].set_title(f"error x {gain:g}", fontsize=10)
    for axes in plots.flat:
        axes.set_axis_off()
    save_png(path, figure)


def axial_plane(volume: Shaped[np.ndarray, "x y z"], place: int) -> Shaped[np.ndarray, "up right"]:
    """One slice of a volume on RAS axes as radiologists look at it: anterior up, the patient's right on the left."""
    return np.rot90(volume[::-1, :, place])


def plot_labels(
    path: Path,
    image: Float[np.ndarray, "height width"],
    labels: Mapping[str, Shaped[np.ndarray, "height width"]],
    *,
    num_classes: int,
) -> None:
    """A plane, and beside it the classes that several label maps give it, 0 being none; the same colours in all."""
    height, width = image.shape
    figure = Figure(figsize=(3 * (1 + len(labels)), 3 * height / width + 0.4), layout="constrained")
    plots = figure.subplots(1, 1 + len(labels), squeeze=False)[0]
    plots[0].imshow(image, cmap="gray", vmin=float(np.percentile(image, 1)), vmax=float(np.percentile(image, 99.5)))
    for axes, (title, plane) in zip(plots[1:], labels.items(), strict=True):
        axes.imshow(image, cmap="gray")
        colours = np.ma.masked_equal(plane, 0)
        axes.imshow(colours, cmap="turbo", vmin=0, vmax=num_classes - 1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
    for axes in plots:
        axes.set_axis_off()
    save_png(path, figure)


@dataclass(frozen=True)
class ScoreRow:
    """One method's score: mean, the ends of its 95 % interval, and every case's own."""

    method: str
    mean: float
    low: float
    high: float
    cases: tuple[float, ...] = ()


def plot_dice_table(path: Path, rows: Sequence[ScoreRow], *, score: str = "Dice") -> None:
    """One line per method, the first on top: every case a faint dot, the mean a full one, its 95 % interval a bar."""
    figure = Figure(figsize=(7, 0.8 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = COLOURS[4]
        spread = 0.24 * np.sin(2.4 * np.arange(len(row.cases)))  # the golden angle: apart, and the same in every run
        axes.scatter(row.cases, place + spread, s=12, color=colour, alpha=0.25, linewidths=0)
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.scatter([row.mean], [place], s=46, color=colour, edgecolors="white", zorder=3)
        axes.text(1.01, place, f"{row.mean:.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{score} (dots: cases; bar: 95 % interval of the mean)")
    _plain(axes)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    save_png(path, figure)


@dataclass(frozen=True)
class Band:
    """One line of a figure: at each x a mean and its interval, `(x, mean, low, high)`."""

    name: str
    points: tuple[tuple[float, float, float, float], ...]


def plot_bands(path: Path, bands: Sequence[Band], *, x: str, y: str) -> None:
    """Means over x, which is logarithmic, with their 95 % intervals as bands; each line named where it ends."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for place, band in enumerate(bands):
        at, mean, low, high = np.array(sorted(band.points)).T
        colour = f"C{place}"
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(at, mean, color=colour, marker="o", markersize=4, linewidth=1.6, label=band.name)
    ticks = sorted({point[0] for band in bands for point in band.points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(f"{y} (band: 95 % interval of the mean)")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axes)
    save_png(path, figure)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
