"""What a learned reconstruction is worth beside the classical methods: python -m examples.measure_reconstruction OUT

    python -m examples.measure_reconstruction runs/measured --model runs/compare/model \\
        --also seeing=runs/compare/seeing unconditioned=runs/compare/untold U-Net=runs/compare/unet --data DATA

On heads that were not trained on, of the family trained on and of the one held apart (other fields, times, lesion shapes,
slice thickness), 8 coils, against the noise-free image:

    table        R = 4 and 8, equispaced lines and Poisson disc, every method, intervals over heads, a slice each
    lesions      lesions put into the measurement: missed ones, and invented ones, at R = 4
    complete     the same with all samples: what the test finds where nothing was left out
    doubt        whether errors are as large as the network expects
    tasks        what else it was trained for: partial Fourier, noise, a small matrix, thick slices, ghosts, motion
    structures   whether a segmentation model (--segmenter) finds in whole heads what it finds in the noise-free image
    real         real k-space of --data, with pictures

Each method's figures of each head are appended to OUT/rows.jsonl, so that a stopped run continues and further models can be
added; the tables are made of all rows. Without --model it measures the classical methods.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.random import default_rng
from scipy import ndimage
from scipy.stats import spearmanr

from examples.reconstruction import complete_scans
from foundation.cohort.patient import CohortConfig, make_anatomy
from foundation.cohort.raw import simulate_raw
from foundation.physics.kspace import combine, to_image, to_kspace
from foundation.physics.sensitivities import calibration_box, espirit_maps
from foundation.progress import progress
from foundation.raw import RawData
from foundation.reconstruction.command import Solve, Undersampling, compare, write_result
from foundation.reconstruction.methods import reconstruct
from foundation.reconstruction.metrics import errors
from foundation.study import Study
from foundation.training import fold
from heads.adapters.folder import LoadedModel, load_model
from heads.base import EMBEDDED
from heads.reconstruction.command import LEARNED, LearnedMethod
from heads.reconstruction.network import Unrolled
from heads.reconstruction.tasks import TASKS, draw_task
from serve.pipeline import read_study

Row = dict[str, Any]
CLASSICAL = ("zero-filled", "cg-sense", "l1-wavelet")
CONTRASTS = ("T1w", "T2w", "FLAIR")
FIRST_HEAD = 1000  # of the cohort; training has the first ones
NOISE, COILS = 0.02, 8
CONDITIONS = (("equispaced", 4), ("equispaced", 8), ("poisson", 4), ("poisson", 8))
FAMILIES = ("usual", "shifted")
RESAMPLES = 2000

# Lesions: discs, 5 to 12 mm across, that differ by so much from what is around them.
DIAMETERS_MM, CONTRAST = (5.0, 12.0), 0.4
NOTICED = 0.5  # of the contrast: less of it is missed, more of it where nothing is is invented
RING_MM = (7.5, 12.5)  # radii of what a spot is compared with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="of the method that is called learned")
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=MODEL", help="other models, as further rows")
    parser.add_argument("--heads", type=int, default=20, help="of each family (default: %(default)s)")
    parser.add_argument("--whole-heads", type=int, default=5, help="of them, for 'structures' (default: %(default)s)")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), help="(default: both)")
    parser.add_argument("--parts", nargs="*", default=["table", "lesions", "complete", "tasks", "structures", "real"])
    parser.add_argument("--spacing", type=float, default=2.0, help="of the heads, mm (default: %(default)s)")
    parser.add_argument("--segmenter", type=Path, default=EMBEDDED / "brain-structures", help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, help="with the kspace_* folders; without it nothing real is measured")
    chosen = parser.parse_args()
    models = {} if chosen.model is None else {LEARNED: chosen.model}
    models |= {name: Path(path) for name, path in (one.split("=", 1) for one in chosen.also)}
    learnt = {name: LearnedMethod(Unrolled.load(path)) for name, path in models.items()}
    classical: dict[str, Solve] = {name: partial(reconstruct, method=name) for name in CLASSICAL}
    every = classical | learnt
    if LEARNED in learnt:
        every[f"{LEARNED}, hard"] = replace(learnt[LEARNED], hard=True, maps={})
    methods = {
        "table": {name: every[name] for name in (*classical, *learnt)},
        "lesions": every,
        "complete": {"cg-sense, all samples": every["cg-sense"]},
        "tasks": {name: method for name, method in learnt.items() if name == LEARNED},
        "structures": {name: every[name] for name in every if name != "l1-wavelet"},  # a minute a head
    }
    segmenter = load_model(chosen.segmenter)
    measure: dict[str, Callable[[Held, Any], Iterable[Row]]] = {
        "table": table_rows,
        "lesions": lesion_rows,
        "complete": partial(lesion_rows, complete=True),
        "tasks": task_rows,
        "structures": lambda held, method: structure_rows(held, method, segmenter),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = chosen.out / "rows.jsonl"
    done = {(row["family"], row["head"], row["part"], row["method"]) for row in read_rows(rows)}
    parts = [part for part in chosen.parts if part in methods]
    for number in progress_over(range(chosen.heads)):
        for family in chosen.families:
            held = Held(number, family, chosen.spacing)
            for part in parts:
                if part == "structures" and number >= chosen.whole_heads:
                    continue
                for name, method in methods[part].items():
                    if (family, number, part, name) in done:
                        continue
                    about = {"family": family, "head": number, "part": part, "method": name}
                    found = [json.dumps(about | row) + "\n" for row in measure[part](held, method)]
                    with rows.open("a") as file:
                        file.writelines(found)
    print("\n\n".join(tables(read_rows(rows))))
    if chosen.data is not None and "real" in chosen.parts:
        print(real(chosen.data, chosen.out, {name: every[name] for name in every if name not in CLASSICAL}))


@dataclass(frozen=True)
class Held:
    """A head that no training has seen, and what is made of it once for all methods."""

    number: int
    family: str
    spacing_mm: float

    @cached_property
    def raw(self) -> RawData:
        return held_out_scan(self.number, self.family, self.spacing_mm)

    @cached_property
    def whole(self) -> RawData:
        return whole_head(self)

    @cached_property
    def accelerated(self) -> dict[tuple[str, int], RawData]:
        return {
            (mask, acceleration): self.raw.keep(undersampling(self.raw, mask, acceleration, self.number).draw(self.raw))
            for mask, acceleration in CONDITIONS
        }

    @cached_property
    def lesions(self) -> Lesions:
        return Lesions.put_into(self.raw, self.number)


def held_out_scan(number: int, family: str, spacing_mm: float) -> RawData:
    """A complete scan of the middle slice of a head that no training has seen; contrasts by turns."""
    config = CohortConfig(spacing_mm=spacing_mm, family=family)  # pyright: ignore[reportArgumentType]
    anatomy, tissues = make_anatomy(config, FIRST_HEAD + number)
    contrast, rng = CONTRASTS[number % len(CONTRASTS)], default_rng(fold(number, FAMILIES.index(family)))
    raw = simulate_raw(anatomy, tissues, contrast, rng, num_slices=3, num_coils=COILS, noise=NOISE)
    return replace(raw.slices(slice(1, 2)), affine=raw.affine)


def undersampling(raw: RawData, mask: str, acceleration: int, seed: int) -> Undersampling:
    """fastMRI's share of calibration lines, but six at least; for a Poisson disc a square of as many samples."""
    lines = 0.32 / acceleration * raw.shape[1]
    if mask == "poisson":
        lines = np.sqrt(0.32 / acceleration * min(raw.shape) ** 2)
    return Undersampling(acceleration, mask, max(6, round(lines)), None, seed)


# ------------------------------------------------------------------------------------------------ the table


def table_rows(held: Held, solve: Solve) -> Iterator[Row]:
    truth = target_of(held.raw).numpy()
    for (mask, acceleration), kept in held.accelerated.items():
        image = solve(kept).numpy()
        row: Row = {"mask": mask, "R": acceleration, **errors(truth, image)}
        if isinstance(solve, LearnedMethod):
            row["doubt"] = doubted(truth, image, solve)
        yield row


def target_of(raw: RawData) -> Float[torch.Tensor, "slices rows columns"]:
    assert raw.target is not None
    return raw.target


def doubted(truth: np.ndarray, image: np.ndarray, learnt: LearnedMethod) -> dict[str, float]:
    """Over the head: how often the error is below the one expected, and below what 90 % should be below of a Laplace
    distribution of that mean; and the rank correlation of the two over patches of 8 x 8 pixels."""
    error, doubt = np.abs(image - truth), learnt.maps["doubt"].numpy()
    inside = truth > 0.05 * truth.max()
    patches = [_patch_means(one) for one in (error, doubt, inside.astype(float))]
    head = patches[2] > 0.5
    return {
        "below": float((error < doubt)[inside].mean()),
        "below_90": float((error < np.log(10) * doubt)[inside].mean()),
        "rank_correlation": float(np.asarray(spearmanr(patches[0][head], patches[1][head]))[0]),
        "mean_ratio": float(doubt[inside].mean() / error[inside].mean()),
    }


def _patch_means(values: Float[np.ndarray, "slices rows columns"], edge: int = 8) -> np.ndarray:
    slices, rows, columns = (n - n % edge if axis else n for axis, n in enumerate(values.shape))
    cut = values[:, :rows, :columns].reshape(slices, rows // edge, edge, columns // edge, edge)
    return cut.mean(axis=(2, 4))


# ------------------------------------------------------------------------------------------------ lesions


@dataclass(frozen=True)
class Lesions:
    """A complete scan with a lesion in each slice, and the same scan without it. As many lesions are dark as bright."""

    there: RawData
    absent: RawData
    mask: Bool[torch.Tensor, "1 1 #rows #columns"]  # R = 4
    target: Float[torch.Tensor, "slices rows columns"]
    change: Float[torch.Tensor, "slices rows columns"]
    inside: Bool[np.ndarray, "slices rows columns"]
    spacing_mm: float

    @classmethod
    def put_into(cls, raw: RawData, seed: int) -> Lesions:
        assert raw.affine is not None
        target, rng = target_of(raw), default_rng(fold(seed, 7))
        spacing_mm = float(np.linalg.norm(raw.affine[:3, 0]))
        everything = calibration_box(torch.ones(raw.shape, dtype=torch.bool))
        maps = torch.stack([espirit_maps(one, everything) for one in raw.kspace])
        image = combine(to_image(raw.kspace), maps, axis=1)
        inside = brain(target.numpy(), spacing_mm)
        places = [lesion(rng, one, spacing_mm) for one in inside]
        signs = torch.tensor([1.0 if rng.random() < 0.5 else -1.0 for _ in places])[:, None, None]
        discs = torch.from_numpy(np.stack([disc for _, disc in places])).float()
        local = torch.stack([one[disc > 0.5].mean() for one, disc in zip(target, discs)])[:, None, None]
        change = signs * CONTRAST * local * discs
        phase = torch.polar(torch.ones_like(image.real), image.angle())
        with_it = replace(raw, kspace=raw.kspace + to_kspace(maps * (change * phase)[:, None]))
        mask = undersampling(raw, "equispaced", 4, seed).draw(raw)
        return cls(with_it, raw, mask, target, change, inside, spacing_mm)


def lesion_rows(held: Held, solve: Solve, *, complete: bool = False) -> Iterator[Row]:
    """Missed: less than half of the contrast at its place. Invented: what stands out as such a lesion would, in the image of
    the head without it, where the truth has nothing that stands out half as much."""
    lesions = held.lesions
    scans = (lesions.there, lesions.absent)
    there, absent = (solve(scan if complete else scan.keep(lesions.mask)) for scan in scans)
    target, change = lesions.target, lesions.change
    shown, followed = [], []
    for a, b, t, w in zip(there, absent, target, change):
        core = w.abs() > 0.5 * w.abs().max()
        shown.append(float((a - t)[core].mean() / w[core].mean()))
        followed.append(float((a - b)[core].mean() / w[core].mean()))
    blobs = [
        invented(one.numpy(), t.numpy(), where, lesions.spacing_mm)
        for one, t, where in zip(absent, target, lesions.inside)
    ]
    yield {
        "lesions": len(shown),
        "missed": sum(share < NOTICED for share in shown),
        "invented": sum(blobs),
        "followed": followed,
    }


def brain(
    target: Float[np.ndarray, "slices rows columns"], spacing_mm: float
) -> Bool[np.ndarray, "slices rows columns"]:
    """The head without its rim of 15 mm, which is scalp, skull and the water below."""
    head = np.stack([np.asarray(ndimage.binary_fill_holes(one)) for one in target > 0.08 * target.max()])
    depth = np.stack([np.asarray(ndimage.distance_transform_edt(one)) for one in head])
    return depth * spacing_mm > 15


def lesion(
    rng: np.random.Generator, inside: Bool[np.ndarray, "rows columns"], spacing_mm: float
) -> tuple[tuple[int, int], Float[np.ndarray, "rows columns"]]:
    """Where it lies, and a disc of soft edge: one where its middle is."""
    row, column = rng.choice(np.argwhere(inside))
    radius_mm = rng.uniform(*DIAMETERS_MM) / 2
    rows, columns = np.indices(inside.shape)
    distance_mm = spacing_mm * np.hypot(rows - row, columns - column)
    return (int(row), int(column)), np.clip((radius_mm - distance_mm) / spacing_mm + 0.5, 0, 1)


def invented(
    image: Float[np.ndarray, "rows columns"],
    truth: Float[np.ndarray, "rows columns"],
    inside: Bool[np.ndarray, "rows columns"],
    spacing_mm: float,
) -> int:
    """Places that stand out by half a lesion's contrast or more where the truth, at most a pixel away, does not by half of that."""
    least, found = NOTICED * CONTRAST * np.median(truth[inside]), 0
    for sign in (1, -1):
        seen, known = (sign * standing_out(one, spacing_mm) for one in (image, truth))
        known = ndimage.maximum_filter(known, 3)
        found += int(ndimage.label((seen > least) & (known < least / 2) & inside)[1])  # pyright: ignore[reportIndexIssue]
    return found


def standing_out(image: Float[np.ndarray, "rows columns"], spacing_mm: float) -> Float[np.ndarray, "rows columns"]:
    """The mean over a disc of 5 mm less that of a ring around it: its contrast at the middle of a disc of 5 to 15 mm."""
    reach = int(RING_MM[1] / spacing_mm) + 1
    distance_mm = spacing_mm * np.hypot(*np.indices((2 * reach + 1,) * 2) - reach)
    disc = (distance_mm <= DIAMETERS_MM[0] / 2 + 1e-6).astype(float)
    ring = ((distance_mm >= RING_MM[0]) & (distance_mm <= RING_MM[1])).astype(float)
    return ndimage.correlate(image, disc / disc.sum() - ring / ring.sum(), mode="nearest")


# ------------------------------------------------------------------------------------------------ structures


def whole_head(held: Held) -> RawData:
    """A T1w scan of a head from top to bottom, in slices of about the pixels' width."""
    config = CohortConfig(spacing_mm=held.spacing_mm, family=held.family)  # pyright: ignore[reportArgumentType]
    anatomy, tissues = make_anatomy(config, FIRST_HEAD + held.number)
    rng = default_rng(fold(held.number, 13))
    return simulate_raw(anatomy, tissues, "T1w", rng, num_slices=None, num_coils=COILS, noise=NOISE)


def structure_rows(held: Held, solve: Solve, segmenter: LoadedModel) -> Iterator[Row]:
    """Dice of what a frozen model finds in the reconstruction with what it finds in the noise-free image, R = 4."""
    raw = held.whole
    kept = raw.keep(undersampling(raw, "equispaced", 4, held.number).draw(raw))
    found, wanted = (outlined(raw, image, segmenter) for image in (solve(kept), target_of(raw)))
    values = [value for value in np.unique(wanted) if value]
    dice = [
        2 * float(((found == one) & (wanted == one)).sum() / ((found == one).sum() + (wanted == one).sum()))
        for one in values
    ]
    yield {"dice": float(np.mean(dice)), "least": min(dice), "structures": len(values)}


def outlined(raw: RawData, image: Float[torch.Tensor, "slices rows columns"], segmenter: LoadedModel) -> np.ndarray:
    series = replace(raw.series(image, "T1w"), contrast="T1w")
    said = read_study(Study("held", (series,)), [segmenter])
    (mask,) = said.masks.values()
    return mask.labels


# ------------------------------------------------------------------------------------------------ other tasks


BESIDE = {"partial Fourier": ("zero-filled", "homodyne", "pocs")}


def task_rows(held: Held, method: LearnedMethod) -> Iterator[Row]:
    """Before and after, against the whole's noise-free image; and at half and no strength of denoising for noise."""
    for number, task in enumerate(TASKS):
        spoilt = draw_task(held.raw, task, default_rng(fold(held.number, 11, number)))
        ways: dict[str, Solve] = {
            name: partial(reconstruct, method=name) for name in BESIDE.get(task, ("zero-filled-sense",))
        }
        for strength in (0.0, 0.5, 1.0) if task == "noise" else (1.0,):
            words = LEARNED if strength == 1 else f"{LEARNED}, strength {strength:g}"
            ways[words] = LearnedMethod(method.network, strength, fault=spoilt.fault)
        for way, solve in ways.items():
            try:
                image = solve(spoilt.raw)
            except ValueError:  # homodyne and POCS do not take every scan
                continue
            yield {"task": task, "way": way, **errors(target_of(held.raw).numpy(), image.numpy())}


# ------------------------------------------------------------------------------------------------ real data


def real(data: Path, out: Path, learnt: Mapping[str, Solve]) -> str:
    """Complete real scans, undersampled: OUT/REAL/... has the images, and the errors as a picture."""
    lines = ["| scan | method | NMSE | PSNR | SSIM |", "|---|---|---|---|---|"]
    for name, read in complete_scans(data).items():
        if name.startswith("synthetic"):
            continue
        raw = read()
        raw = raw.slices(slice(len(raw.kspace) // 2 - 4, len(raw.kspace) // 2 + 4)) if len(raw.kspace) > 8 else raw
        for acceleration in (4, 8):
            result = compare(raw, CLASSICAL, undersampling(raw, "equispaced", acceleration, 0), learnt)
            folder = out / "real" / f"{name}, R = {acceleration}".replace(",", "")
            write_result(folder, raw, result, about={"scan": name})
            lines += [
                f"| {name}, R = {acceleration} | {method} | {one['nmse']:.4f} | {one['psnr']:.2f} | {one['ssim']:.3f} |"
                for method, one in result.scores().items()
            ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ printing


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def progress_over(numbers: Sequence[int]) -> Iterator[int]:
    with progress(total=len(numbers), label="heads", unit="head") as bar:
        for number in numbers:
            yield number
            bar.update()


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean, and the middle 95 % of the means of resampled heads."""
    numbers = np.asarray(values)
    drawn = default_rng(0).integers(len(numbers), size=(RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[drawn].mean(axis=1), [0.025, 0.975])
    return float(numbers.mean()), float(low), float(high)


def said(values: Sequence[float], digits: int) -> str:
    mean, low, high = interval(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def tables(rows: Sequence[Row]) -> list[str]:
    """Markdown, of whatever was measured of each family."""
    texts = []
    for family in FAMILIES:
        for parts, make in (
            (("table",), method_table),
            (("table",), doubt_table),
            (("lesions", "complete"), lesion_table),
            (("tasks",), task_table),
            (("structures",), structure_table),
        ):
            mine = [row for row in rows if row["family"] == family and row["part"] in parts]
            if make is doubt_table:
                mine = [row for row in mine if "doubt" in row and row["method"] == LEARNED]
            if mine:
                texts.append("\n".join(make(mine, f"{family} family, {len({row['head'] for row in mine})} heads")))
    return texts


def method_table(rows: Sequence[Row], title: str) -> list[str]:
    lines = [f"| {title} | NMSE | PSNR | SSIM | PSNR over l1-wavelet |", "|---|---|---|---|---|"]
    for words, here in group(rows, condition).items():
        by = group(here, "method")
        base = {row["head"]: row["psnr"] for row in by.get("l1-wavelet", [])}
        for method, found in by.items():
            gained = said([row["psnr"] - base[row["head"]] for row in found if row["head"] in base], 2)
            lines.append(f"| {method}, {words} | {figures(found)} | {gained} |")
    return lines


def doubt_table(rows: Sequence[Row], title: str) -> list[str]:
    names = ("below", "below_90", "rank_correlation", "mean_ratio")
    lines = [
        f"| {title} | errors below doubt | below 2.3 times it | rank correlation | mean doubt over mean error |",
        "|---|---|---|---|---|",
    ]
    for words, here in group(rows, condition).items():
        lines.append(f"| {words} | {' | '.join(said([row['doubt'][name] for row in here], 2) for name in names)} |")
    return lines


def lesion_table(rows: Sequence[Row], title: str) -> list[str]:
    lines = [f"| {title}, R = 4 | lesions | missed | invented | of one that is added, shown |", "|---|---|---|---|---|"]
    for method, found in group(rows, "method").items():
        counts = [str(sum(row[name] for row in found)) for name in ("lesions", "missed", "invented")]
        followed = said([share for row in found for share in row["followed"]], 2)
        lines.append(f"| {method} | {' | '.join(counts)} | {followed} |")
    return lines


def structure_table(rows: Sequence[Row], title: str) -> list[str]:
    lines = [f"| {title}, R = 4 | mean Dice | of the worst structure |", "|---|---|---|"]
    for method, found in group(rows, "method").items():
        lines.append(
            f"| {method} | {' | '.join(said([row[name] for row in found], 3) for name in ('dice', 'least'))} |"
        )
    return lines


def task_table(rows: Sequence[Row], title: str) -> list[str]:
    lines = [f"| {title} | NMSE | PSNR | SSIM |", "|---|---|---|---|"]
    for task, found in group(rows, "task").items():
        for way, some in group(found, "way").items():
            lines.append(f"| {task}: {way} | {figures(some)} |")
    return lines


def condition(row: Row) -> str:
    return f"{row['mask']}, R = {row['R']}"


def figures(rows: Sequence[Row]) -> str:
    return " | ".join(said([row[name] for row in rows], digits) for name, digits in FIGURES.items())


FIGURES = {"nmse": 4, "psnr": 2, "ssim": 3}


def group(rows: Iterable[Row], key: str | Callable[[Row], str]) -> dict[str, list[Row]]:
    """In the order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key] if isinstance(key, str) else key(row), []).append(row)
    return found


if __name__ == "__main__":
    main()
