"""What a learned reconstruction is worth beside the classical methods: python -m examples.measure_reconstruction MODEL OUT

    python -m examples.measure_reconstruction runs/reconstruction/model runs/measured --also plain=runs/plain/model --data DATA

On heads that were not trained on, of the family trained on and of the one held apart (other fields, times, lesion shapes,
slice thickness), 8 coils, against the noise-free image:

    table      R = 4 and 8, equispaced lines and Poisson disc, every method, intervals over heads, a slice each
    lesions    lesions put into the measurement: missed ones, and invented ones, at R = 4
    doubt      whether errors are as large as the network expects
    tasks      what else it was trained for: partial Fourier, noise, a small matrix, thick slices, ghosts, motion
    real       real k-space of --data, with pictures

Each head's figures are appended to OUT/rows.jsonl, so that a stopped run continues; the tables are made of all rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from foundation.training import fold
from heads.reconstruction.command import LEARNED, LearnedMethod
from heads.reconstruction.network import Unrolled
from heads.reconstruction.tasks import TASKS, draw_task

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=MODEL", help="other models, as further rows")
    parser.add_argument("--heads", type=int, default=20, help="of each family (default: %(default)s)")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), help="(default: both)")
    parser.add_argument("--parts", nargs="*", default=["table", "lesions", "tasks", "real"])
    parser.add_argument("--spacing", type=float, default=2.0, help="of the heads, mm (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="with the kspace_* folders; without it nothing real is measured")
    chosen = parser.parse_args()
    models = {LEARNED: chosen.model} | {name: Path(path) for name, path in (one.split("=", 1) for one in chosen.also)}
    learnt = {name: LearnedMethod(Unrolled.load(path)) for name, path in models.items()}
    methods: dict[str, Solve] = {name: partial(reconstruct, method=name) for name in CLASSICAL} | learnt
    either = methods | {"learned, hard": replace(learnt[LEARNED], hard=True, maps={})}
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = chosen.out / "rows.jsonl"
    measure: dict[str, Callable[[RawData, int], Iterable[Row]]] = {
        "table": lambda raw, seed: table_rows(raw, seed, methods, learnt[LEARNED]),
        "lesions": lambda raw, seed: lesion_rows(raw, seed, either),
        "tasks": lambda raw, seed: task_rows(raw, seed, learnt[LEARNED].network),
    }
    done = {(row["family"], row["head"], row["part"]) for row in read_rows(rows)}
    parts = [part for part in chosen.parts if part in measure]
    for number in progress_over(range(chosen.heads)):
        for family in chosen.families:
            left = [part for part in parts if (family, number, part) not in done]
            if not left:
                continue
            raw = held_out_scan(number, family, chosen.spacing)
            for part in left:
                found = list(measure[part](raw, number))
                with rows.open("a") as file:
                    for row in found:
                        file.write(json.dumps({"family": family, "head": number, "part": part, **row}) + "\n")
    print("\n\n".join(tables(read_rows(rows))))
    if chosen.data is not None and "real" in chosen.parts:
        print(real(chosen.data, chosen.out, either))


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


def table_rows(raw: RawData, seed: int, methods: Mapping[str, Solve], learnt: LearnedMethod) -> Iterator[Row]:
    assert raw.target is not None
    truth = raw.target.numpy()
    for mask, acceleration in CONDITIONS:
        kept = raw.keep(undersampling(raw, mask, acceleration, seed).draw(raw))
        for name, solve in methods.items():
            image = solve(kept).numpy()
            yield {"mask": mask, "R": acceleration, "method": name, **errors(truth, image)}
            if solve is learnt:
                yield {"mask": mask, "R": acceleration, "method": "doubt", **doubted(truth, image, learnt)}


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


def lesion_rows(raw: RawData, seed: int, methods: Mapping[str, Solve]) -> Iterator[Row]:
    """A lesion in the slice, and the same head without it, at R = 4.

    Missed: less than half of the contrast at its place. Invented: a blob of half the contrast or more, 5 mm or more
    across, in the image of the head without it, where the truth has none. As many lesions are dark as bright.
    """
    assert raw.target is not None and raw.affine is not None
    rng = default_rng(fold(seed, 7))
    spacing_mm = float(np.linalg.norm(raw.affine[:3, 0]))
    everything = calibration_box(torch.ones(raw.shape, dtype=torch.bool))
    maps = torch.stack([espirit_maps(one, everything) for one in raw.kspace])
    image = combine(to_image(raw.kspace), maps, axis=1)
    inside = brain(raw.target.numpy(), spacing_mm)
    places = [lesion(rng, one, spacing_mm) for one in inside]
    signs = torch.tensor([1.0 if rng.random() < 0.5 else -1.0 for _ in places])[:, None, None]
    discs = torch.from_numpy(np.stack([disc for _, disc in places])).float()
    local = torch.stack([one[disc > 0.5].mean() for one, disc in zip(raw.target, discs)])[:, None, None]
    change = signs * CONTRAST * local * discs
    with_it = replace(
        raw,
        kspace=raw.kspace
        + to_kspace(maps * (change * torch.polar(torch.ones_like(image.real), image.angle()))[:, None]),
    )
    mask = undersampling(raw, "equispaced", 4, seed).draw(raw)
    for name, solve in methods.items():
        there, absent = solve(with_it.keep(mask)), solve(raw.keep(mask))
        core = discs > 0.5
        shown = torch.stack([((a - t)[c].mean() / w[c].mean()) for a, t, c, w in zip(there, raw.target, core, change)])
        followed = torch.stack([((a - b)[c].mean() / w[c].mean()) for a, b, c, w in zip(there, absent, core, change)])
        blobs = sum(
            invented((one - t).numpy(), float(NOTICED * CONTRAST * level), where, spacing_mm)
            for one, t, level, where in zip(absent, raw.target, local.flatten(), inside)
        )
        yield {
            "method": name,
            "lesions": len(places),
            "missed": int((shown < NOTICED).sum()),
            "invented": blobs,
            "followed": followed.tolist(),
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
    error: Float[np.ndarray, "rows columns"],
    threshold: float,
    inside: Bool[np.ndarray, "rows columns"],
    spacing_mm: float,
) -> int:
    """Blobs of error of one sign, at least 5 mm across: eroded by that they leave something."""
    width = max(2, round(DIAMETERS_MM[0] / spacing_mm))
    found = 0
    for sign in (1, -1):
        there = (sign * error > threshold) & inside
        blobs = ndimage.binary_opening(there, np.ones((width, width)))
        found += int(ndimage.label(blobs)[1])  # pyright: ignore[reportIndexIssue]
    return found


# ------------------------------------------------------------------------------------------------ other tasks


BESIDE = {"partial Fourier": ("zero-filled", "homodyne", "pocs")}


def task_rows(raw: RawData, seed: int, network: Unrolled) -> Iterator[Row]:
    """Before and after, against the whole's noise-free image; and at half and no strength of denoising for noise."""
    for number, task in enumerate(TASKS):
        spoilt = draw_task(raw, task, default_rng(fold(seed, 11, number)))
        assert raw.target is not None
        methods: dict[str, Solve] = {
            name: partial(reconstruct, method=name) for name in BESIDE.get(task, ("zero-filled-sense",))
        }
        for strength in (0.0, 0.5, 1.0) if task == "noise" else (1.0,):
            words = LEARNED if strength == 1 else f"{LEARNED}, strength {strength:g}"
            methods[words] = LearnedMethod(network, strength, fault=spoilt.fault)
        for name, solve in methods.items():
            try:
                image = solve(spoilt.raw)
            except ValueError:  # homodyne and POCS do not take every scan
                continue
            yield {"task": task, "method": name, **errors(raw.target.numpy(), image.numpy())}


# ------------------------------------------------------------------------------------------------ real data


def real(data: Path, out: Path, methods: Mapping[str, Solve]) -> str:
    """Complete real scans, undersampled: OUT/REAL/... has the images, and the errors as a picture."""
    lines = ["| scan | method | NMSE | PSNR | SSIM |", "|---|---|---|---|---|"]
    learnt = {name: solve for name, solve in methods.items() if name not in CLASSICAL}
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
        for part, make in (
            ("table", method_table),
            ("table", doubt_table),
            ("lesions", lesion_table),
            ("tasks", task_table),
        ):
            mine = [row for row in rows if row["family"] == family and row["part"] == part]
            if mine:
                texts.append("\n".join(make(mine, f"{family} family, {len({row['head'] for row in mine})} heads")))
    return texts


def method_table(rows: Sequence[Row], title: str) -> list[str]:
    lines = [f"| {title} | NMSE | PSNR | SSIM | PSNR over l1-wavelet |", "|---|---|---|---|---|"]
    for words, here in group(rows, condition).items():
        by = group(here, "method")
        base = {row["head"]: row["psnr"] for row in by.get("l1-wavelet", [])}
        by.pop("doubt", None)
        for method, found in by.items():
            gained = said([row["psnr"] - base[row["head"]] for row in found], 2)
            lines.append(f"| {method}, {words} | {figures(found)} | {gained} |")
    return lines


def doubt_table(rows: Sequence[Row], title: str) -> list[str]:
    names = ("below", "below_90", "rank_correlation", "mean_ratio")
    lines = [
        f"| {title} | errors below doubt | below 2.3 times it | rank correlation | mean doubt over mean error |",
        "|---|---|---|---|---|",
    ]
    for words, here in group([row for row in rows if row["method"] == "doubt"], condition).items():
        lines.append(f"| {words} | {' | '.join(said([row[name] for row in here], 2) for name in names)} |")
    return lines


def lesion_table(rows: Sequence[Row], title: str) -> list[str]:
    lines = [f"| {title}, R = 4 | lesions | missed | invented | of one that is added, shown |", "|---|---|---|---|---|"]
    for method, found in group(rows, "method").items():
        counts = [str(sum(row[name] for row in found)) for name in ("lesions", "missed", "invented")]
        followed = said([share for row in found for share in row["followed"]], 2)
        lines.append(f"| {method} | {' | '.join(counts)} | {followed} |")
    return lines


def task_table(rows: Sequence[Row], title: str) -> list[str]:
    lines = [f"| {title} | NMSE | PSNR | SSIM |", "|---|---|---|---|"]
    for task, found in group(rows, "task").items():
        for method, some in group(found, "method").items():
            lines.append(f"| {task}: {method} | {figures(some)} |")
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
