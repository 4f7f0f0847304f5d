"""Damage files of every kind in every way and read them: one family of errors, no crash, no hang, no more memory than allowed.

    python -m benchmarks.mutate_files                                  30,000 NIfTI, 10,000 DICOM, 5,000 each of zips, HDF5, models
    python -m benchmarks.mutate_files --share 0.1                      a tenth of each
    python -m benchmarks.mutate_files --nifti 100 --others 0 --dicom-from DIR --progress runs/mutate.jsonl
    python -m benchmarks.mutate_files --only hdf5:4711                 one case again, with its traceback

A case is made from the kind, the seed and its number alone. Batches of cases are read by a child process under the limits of
the sandbox (`foundation/reading/sandbox.py`), so that a crash, a hang or a bite of memory ends a child and not the count; the
next child goes on after it. What took long is read again by itself, up to three times. Every exception but `InputError` is
counted by its type and place. `--progress` keeps what is done, and what is kept is not done again.

kind     what is read, and by what
nifti    a volume, NIfTI-1 or -2, plain or compressed, some with a sidecar: `read_nifti`
dicom    a small series of which one file is damaged: the survey, and one case in twenty to a volume
zip      the zip of such a series, with bombs, links and paths that climb: the same
hdf5     raw k-space of fastMRI and ISMRMRD: `read_raw`
array    .npy, .npz and BART's pair: `read_raw`
model    folders with config.json and safetensors of an encoder, a task and an adapter: `load_model`, `Encoder.load`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.random import Generator, default_rng

from benchmarks import _damage
from foundation.errors import InputError
from foundation.progress import progress
from foundation.reading.sandbox import Limits, run_limited

HANG_S = 5.0
END_S = (
    30  # after which a child is ended: a case that takes longer than `HANG_S` beside others is timed once more alone
)
START_S = 120.0  # for a child to begin, on a busy machine
GIB = 2**30
TRIES = 3  # of a case that took long: what hangs does so every time
CONVERTED = 20  # one DICOM case in so many goes all the way to a volume
MOST_SHOWN = 20
Line = dict[str, Any]  # of a case: what became of it, the seconds, the memory of the child so far


@dataclass(frozen=True)
class Kind:
    """How many cases are asked for, how many a child reads, what it may use, and whole files to damage."""

    cases: int
    batch: int
    memory: int
    sources: Callable[[Path], None]


KINDS = {
    "nifti": Kind(30_000, 1_000, GIB, _damage.nifti_sources),
    "dicom": Kind(10_000, 100, 2 * GIB, _damage.dicom_sources),
    "zip": Kind(5_000, 100, 2 * GIB, _damage.dicom_sources),
    "hdf5": Kind(5_000, 500, 4 * GIB, _damage.hdf5_sources),
    "array": Kind(5_000, 500, 4 * GIB, _damage.array_sources),
    "model": Kind(5_000, 1_000, 6 * GIB, _damage.model_sources),
}  # address space, of which torch alone takes three GiB; what was touched of it is in the table


@dataclass
class Tally:
    """What became of the cases of a kind."""

    read: int = 0
    refused: int = 0
    other: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    slowest_case: int = -1
    peak_mib: float = 0.0

    @property
    def cases(self) -> int:
        return self.read + self.refused + self.other.total()

    @property
    def holds(self) -> bool:
        return not self.other and self.slowest_s <= HANG_S

    def add(self, case: int, line: Line) -> None:
        became = line["became"]
        self.read += became == "read"
        self.refused += became == "refused"
        if became not in ("read", "refused"):
            self.other[became] += 1
            self.examples.setdefault(became, case)
        if line["s"] > self.slowest_s:
            self.slowest_s, self.slowest_case = line["s"], case
        self.peak_mib = max(self.peak_mib, line["mib"])


# ------------------------------------------------------------------------------------------------ in the child


def read_cases(kind: str, sources: str, seed: int, first: int, count: int, loud: bool = False) -> int:
    """What becomes of `count` cases from number `first`, a line each in `done.jsonl` where it runs, which is the child's folder."""
    whole = {path.name: path.read_bytes() for path in sorted(Path(sources).iterdir())}
    for module in NEEDED.get(kind, ()):
        import_module(module)  # what is imported when it is first needed is no time of a case
    with open("done.jsonl", "a", buffering=1) as done:
        for case in range(first, first + count):
            rng = default_rng([seed, list(KINDS).index(kind), case])
            with TemporaryDirectory(dir=".") as place, chdir(place):
                work = PREPARE[kind](whole, rng, case)
                signal.alarm(END_S)  # nobody catches it: it ends this child, whatever library it is lost in
                started = time.monotonic()
                became = _outcome(kind, work, loud)
                took_s = time.monotonic() - started
                signal.alarm(0)
            done.write(json.dumps({"became": became, "s": round(took_s, 3), "mib": _peak_mib()}) + "\n")
    return count


def _outcome(kind: str, work: Callable[[], object], loud: bool) -> str:
    try:
        work()
    except InputError as error:
        if loud:
            print(error, file=sys.stderr)
        return "refused"
    except Exception as error:
        if loud:
            traceback.print_exc()
        if kind in ("dicom", "zip") and isinstance(error, MemoryError):
            return "refused"  # these are never read but in the sandbox, which says so in its own words
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
    return "read"


def _nifti(whole: dict[str, bytes], rng: Generator, case: int) -> Callable[[], object]:
    from foundation.reading.nifti import read_nifti

    files = _written(_damage.damage_nifti(whole, rng))
    return partial(read_nifti, next(path for path in files if ".nii" in path.name))


def _dicom(whole: dict[str, bytes], rng: Generator, case: int) -> Callable[[], object]:
    from foundation.reading.dicom.child import convert_study, survey

    hurt = str(rng.choice(sorted(whole)))
    Path("study").mkdir()
    for name, content in whole.items():
        (Path("study") / name).write_bytes(_damage.damage_dicom(content, rng) if name == hurt else content)
    return partial(convert_study if case % CONVERTED == 0 else survey, str(Path("study").absolute()))


def _zip(whole: dict[str, bytes], rng: Generator, case: int) -> Callable[[], object]:
    from foundation.reading.dicom.child import convert_study, survey

    Path("study.zip").write_bytes(_damage.damaged_zip(list(whole.values()), rng))
    return partial(convert_study if case % CONVERTED == 0 else survey, str(Path("study.zip").absolute()))


def _raw(whole: dict[str, bytes], rng: Generator, case: int) -> Callable[[], object]:
    from foundation.reading.raw import read_raw

    files = _written(_damage.damage_one(whole, rng))
    return partial(read_raw, files[0])


def _model(whole: dict[str, bytes], rng: Generator, case: int) -> Callable[[], object]:
    from foundation.encoder import Encoder
    from heads.adapters.folder import load_model

    target, files = _damage.damage_model(whole, rng)
    for name, content in files.items():
        folder, _, file = name.partition("--")
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / file).write_bytes(content)
    return partial(Encoder.load if target == "encoder" else load_model, Path(target).absolute())


NEEDED = {"dicom": ("highdicom",), "zip": ("highdicom",), "model": ("heads.segmentation", "heads.classification")}
PREPARE = {"nifti": _nifti, "dicom": _dicom, "zip": _zip, "hdf5": _raw, "array": _raw, "model": _model}


def _written(files: dict[str, bytes]) -> list[Path]:
    for name, content in files.items():
        Path(name).write_bytes(content)
    return [Path(name).absolute() for name in sorted(files)]


def _peak_mib() -> float:
    """Of this program alone: what `getrusage` says begins with the size of the process that this one was forked from."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# ------------------------------------------------------------------------------------------------ around it


def run(kind: str, sources: Path, cases: int, seed: int = 0, kept: Path | None = None) -> Tally:
    """All cases of a kind, in batches; `kept` holds a line for each batch that is done."""
    tally, done, size = Tally(), _kept(kept, kind, seed), KINDS[kind].batch
    with progress(total=cases, label=kind, unit="case") as bar:
        for first in range(0, cases, size):
            count = min(size, cases - first)
            lines = done.get((first, count))
            if lines is None:
                lines = _batch(kind, sources, seed, first, count)
                if kept is not None:
                    about = {"kind": kind, "seed": seed, "first": first, "count": count}
                    with kept.open("a") as file:
                        file.write(json.dumps({**about, "cases": lines}) + "\n")
            for case, line in enumerate(lines, start=first):
                tally.add(case, line)
            bar.update(count)
    return tally


def _batch(kind: str, sources: Path, seed: int, first: int, count: int) -> list[Line]:
    lines: list[Line] = []
    while len(lines) < count:
        before = len(lines)
        found, why = _ask(kind, sources, seed, first + before, count - before)
        lines += found
        if why is not None:  # the child ended with this case, and another one goes on after it
            lines.append({"became": why, "s": 0.0, "mib": 0.0})
            if not found and before and lines[before - 1]["became"] == why:
                raise InputError("a child reads cases", got=f"{why}, twice", remedy="Run one case with --only.")
    for place, line in enumerate(lines):
        for _ in range(TRIES if line["s"] > HANG_S else 0):  # a neighbour may have had the machine: again, by itself
            found, why = _ask(kind, sources, seed, first + place, 1)
            lines[place] = min([line, *found], key=lambda one: one["s"]) if why is None else line
            if lines[place]["s"] <= HANG_S:
                break
    return lines


def _ask(kind: str, sources: Path, seed: int, first: int, count: int) -> tuple[list[Line], str | None]:
    """What a child said of its cases, and how it ended if it did not come to its end."""
    job = {"kind": kind, "sources": str(sources), "seed": seed, "first": first, "count": count}
    limits = Limits(seconds=START_S + count * END_S, memory_bytes=KINDS[kind].memory)
    with TemporaryDirectory() as private:
        why = None
        try:
            run_limited("benchmarks.mutate_files:read_cases", job, folder=Path(private), limits=limits)
        except InputError as error:
            why = str(error.got)
        done = Path(private) / "done.jsonl"
        text = done.read_text().splitlines() if done.is_file() else []
        return [json.loads(line) for line in text], why


def _kept(kept: Path | None, kind: str, seed: int) -> dict[tuple[int, int], list[Line]]:
    if kept is None or not kept.is_file():
        return {}
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    return {(one["first"], one["count"]): one["cases"] for one in lines if one["kind"] == kind and one["seed"] == seed}


def table(tallies: dict[str, Tally]) -> str:
    rows = [("kind", "files", "refused", "read", "other", "slowest (s)", "most memory (MiB)")]
    rows += [
        (kind, f"{one.cases:,}", f"{one.refused:,}", f"{one.read:,}", f"{one.other.total():,}", f"{one.slowest_s:.2f}",
         f"{one.peak_mib:.0f}")
        for kind, one in tallies.items()
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(arguments: Sequence[str]) -> int:
    """0 when every case was read or refused in our own words, and none took longer than it may."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.mutate_files", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, kind in KINDS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"(default: {kind.cases:,})")
    parser.add_argument("--others", type=int, metavar="N", help="of every kind that is not named")
    parser.add_argument("--share", type=float, default=1.0, metavar="F", help="of the numbers above (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--dicom-from", type=Path, metavar="DIR", help="DICOM files to damage (default: made ones)")
    parser.add_argument("--progress", type=Path, metavar="FILE", help="keep and find what is done, a line a batch")
    parser.add_argument("--only", metavar="KIND:CASE", help="this one, here, with what it says")
    options = vars(parser.parse_args(arguments))
    case = 0
    if options["only"]:
        kind, _, number = options["only"].partition(":")
        numbers, case = {kind: 1}, int(number)
    else:
        wanted = {name: options[name] if options[name] is not None else options["others"] for name in KINDS}
        numbers = {
            name: round(options["share"] * (KINDS[name].cases if n is None else n)) for name, n in wanted.items()
        }
    tallies: dict[str, Tally] = {}
    for kind, cases in numbers.items():
        if not cases:
            continue
        with TemporaryDirectory() as folder:
            sources = Path(folder)
            if kind in ("dicom", "zip"):
                _damage.dicom_sources(sources, options["dicom_from"])
            else:
                KINDS[kind].sources(sources)
            if options["only"]:
                with TemporaryDirectory() as place, chdir(place):
                    read_cases(kind, folder, options["seed"], case, 1, loud=True)
                    said = Path("done.jsonl").read_text()
                print(said, end="")
                return int(json.loads(said)["became"] not in ("read", "refused"))
            tallies[kind] = run(kind, sources, cases, options["seed"], options["progress"])
        print(f"{kind}: done", flush=True)
    print(table(tallies))
    for kind, one in tallies.items():
        for what, number in one.other.most_common(MOST_SHOWN):
            print(f"{kind}: {what}, {number} times, as in case {one.examples[what]}")
        if one.slowest_s > HANG_S:
            print(f"{kind}: case {one.slowest_case} took {one.slowest_s:.1f} s")
    return int(not all(one.holds for one in tallies.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
