"""Damage DICOM studies and zips in every way and read them: one family of errors, no crash, no hang, no more memory than allowed.

    python -m benchmarks.mutate_dicom DATA --cases 10000 --zips 1000

DATA is a folder with DICOM files; small ones are taken. Each case is one damaged file beside the whole ones of a small series, read
by the code that the child process runs. The parser works in batches in one child with the limits of the sandbox, so that a crash, a
hang or a bite of memory ends the batch and is counted; within it every exception but `InputError` is counted by its type.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import time
import zipfile
from collections import Counter
from contextlib import chdir
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng

from foundation.errors import InputError
from foundation.progress import progress
from foundation.reading.dicom.child import convert_study, survey
from foundation.reading.sandbox import Limits, run_limited

BATCH = 50
HANG_S = 5.0
CONVERTED = 20  # one case in so many goes all the way to a volume
LARGEST_BYTES = 200_000


def damage(content: bytes, rng: Generator) -> bytes:
    """One or a few faults: bits, lengths, tags, cuts, repeats, nesting, or a preamble that is a program."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(9))
        at = (
            int(rng.integers(128, max(129, min(len(data), 4000))))
            if rng.random() < 0.8
            else int(rng.integers(len(data)))
        )
        at = min(at, max(0, len(data) - 8))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 2, 2**32 - 1])))
        elif kind == 2:
            data[at : at + 2] = rng.bytes(2)
        elif kind == 3:
            del data[int(rng.integers(len(data) // 2, len(data))) :]
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 5:
            data[at:at] = data[at : at + int(rng.integers(1, 64))]
        elif kind == 6:
            depth = int(rng.integers(1, 400))
            data[at:at] = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * depth
        elif kind == 7:
            data[:4] = (b"MZ\x90\0", b"\x7fELF", b"#!/b", b"II*\0")[int(rng.integers(4))]
        else:
            text = rng.choice([b"nan\0", b"inf\0", b"-1e9", b"1e40", b"'--\0", b"\\\\\\\\"])
            data[at : at + 4] = bytes(text).ljust(4, b"\0")[:4]
        if len(data) < 16:
            break
    return bytes(data)


def damaged_zip(contents: list[bytes], rng: Generator) -> bytes:
    """A zip of these files with a fault: in its bytes, its names, or what its sizes say."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(contents):
            name = ("../../../tmp/evil", "/etc/evil", "C:\\evil", f"{number}", "a" * 300, "x\0y")[int(rng.integers(6))]
            archive.writestr(f"{number}{name}", content)
        if rng.random() < 0.3:
            archive.writestr("bomb", bytes(70 * 2**20))
        if rng.random() < 0.2:
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
    data = bytearray(file.getvalue())
    for _ in range(int(rng.integers(0, 4))):
        at = int(rng.integers(len(data)))
        if rng.random() < 0.2:
            del data[at:]
            break
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data) or b"PK\x03\x04"


def read_batch(folder: str, seed: int, count: int, kind: str) -> dict[str, Any]:
    """What became of `count` damaged inputs, made of the files in `folder`; runs in the child."""
    whole = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for case in range(count):
        rng = default_rng([seed, case])
        with TemporaryDirectory(dir=".") as place, chdir(place):
            if kind == "zip":
                Path("study.zip").write_bytes(damaged_zip(whole, rng))
            else:
                Path("study.zip").mkdir()
                hurt = int(rng.integers(len(whole)))
                for number, content in enumerate(whole):
                    (Path("study.zip") / str(number)).write_bytes(damage(content, rng) if number == hurt else content)
            started = time.monotonic()
            try:
                (convert_study if case % CONVERTED == 0 else survey)(str(Path("study.zip").absolute()))
                outcomes["read"] += 1
            except InputError:
                outcomes["refused"] += 1
            except MemoryError:
                outcomes["refused"] += 1  # the sandbox says so in its own words
            except Exception as error:
                outcomes[f"{type(error).__name__}"] += 1
            slowest = max(slowest, time.monotonic() - started)
    return {"outcomes": dict(outcomes), "slowest_s": slowest, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    """Of this program alone: what `getrusage` says begins with the size of the process that this one was forked from."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run(sources: Path, cases: int, kind: str, seed: int = 0) -> dict[str, Any]:
    """Counts over all batches; a batch that the sandbox ended is counted as 'crash or hang'."""
    total: Counter[str] = Counter()
    slowest = peak = 0.0
    limits = Limits(seconds=BATCH * HANG_S, memory_bytes=2 * 2**30)
    with progress(total=cases, label=kind, unit="case") as bar:
        for first in range(0, cases, BATCH):
            count = min(BATCH, cases - first)
            job = {"folder": str(sources), "seed": seed + first, "count": count, "kind": kind}
            with TemporaryDirectory() as private:
                try:
                    answer = run_limited("benchmarks.mutate_dicom:read_batch", job, folder=Path(private), limits=limits)
                except InputError:
                    total["crash or hang"] += count
                else:
                    total.update(answer["outcomes"])
                    slowest, peak = max(slowest, answer["slowest_s"]), max(peak, answer["peak_mib"])
            bar.update(count)
    return {"kind": kind, "cases": cases, **total, "slowest_s": round(slowest, 2), "peak_mib": round(peak)}


def small_series(data: Path, into: Path, planes: int = 5) -> None:
    """A few neighbouring planes of the first small classic series below a folder."""
    import pydicom

    found: dict[str, list[tuple[float, Path]]] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file() and path.stat().st_size < LARGEST_BYTES):
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                continue
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "ImagePositionPatient" in header:
            where = float(
                np.cross(header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:])
                @ header.ImagePositionPatient
            )
            found.setdefault(header.SeriesInstanceUID, []).append((where, path))
    series = next((one for one in found.values() if len({round(where, 2) for where, _ in one}) >= planes), None)
    if series is None:
        raise InputError("DATA holds a small DICOM series", got="none", remedy=f"Give one of {planes} planes or more.")
    for number, (_, path) in enumerate(list(dict(sorted(series)).items())[:planes]):
        (into / str(number)).write_bytes(path.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--zips", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bad = 0
    with TemporaryDirectory() as folder:
        small_series(options.data, Path(folder))
        for kind, cases in (("file", options.cases), ("zip", options.zips)):
            result = run(Path(folder), cases, kind, options.seed)
            print(json.dumps(result), flush=True)
            bad += result["cases"] - result.get("read", 0) - result.get("refused", 0)
    return int(bad > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
