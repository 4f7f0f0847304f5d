"""Reading crops from a store: against whole .nii.gz files, and against one compressed float32 file per volume (.b2nd and .pkl).

Volumes are ellipsoids of smooth tissue with texture and the noise of a scan, integers as scanners store them, in air that is not
empty; they compress about as real heads do. Every file is in the page cache, so that what is compared is work and not disks.
Everybody reads with one thread, as the workers of a loader do, and delivers normalised float32; we add the body mask.

    LARMOR_BENCH_MANIFEST=collection/manifest.jsonl python -m benchmarks store     the same of the first volumes of a collection
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks._measure import Row, compare, compare_sizes
from foundation.preprocess import Intensity, find_body, to_closest_ras
from foundation.reading.collection import Collection, SeriesEntry, read_manifest, write_manifest
from foundation.reading.collection import Row as ManifestRow
from foundation.reading.nifti import read_nifti
from foundation.store.index import StoreConfig
from foundation.store.reader import Store
from foundation.store.sources import ManifestSources
from foundation.store.writer import write_store

SHAPE = (176, 208, 176)
EDGE = 96
NUM_VOLUMES = 6
NUM_SMALL, SMALL_EDGE, SMALL_CROP = 200, 32, 16

# Blocks for the L1 cache, chunks of at most 6 MiB and 1.5 patches, level 8: the rule of those who store one file per volume.
THEIR_BLOCKS, THEIR_CHUNKS = (16, 16, 32), (96, 112, 128)
THEIR_CODEC: dict[str, Any] = {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1}
THEIR_OPENING: dict[str, Any] = {"mode": "r", "mmap_mode": "r", "dparams": {"nthreads": 1}}


def rows() -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        given = os.environ.get("LARMOR_BENCH_MANIFEST")
        collection = _given(Path(given)) if given else _collection(Path(folder), SHAPE, NUM_VOLUMES)
        yield from _crops(collection, Path(folder))
    with TemporaryDirectory() as folder:
        yield from _small(_collection(Path(folder), (SMALL_EDGE,) * 3, NUM_SMALL), Path(folder))


def _crops(collection: Collection, folder: Path) -> Iterator[Row]:
    store = _stored(collection, folder)
    arrays = _theirs(collection, folder)
    series = [store.series(number) for number in range(len(store))]
    places = np.random.default_rng(0)
    # A corner in the stored volume, so that everybody reads the same voxels; crops as large as the smallest volume allows.
    firsts = [places.integers(0, np.maximum(np.asarray(one.row.shape) - EDGE, 0) + 1) for one in series]
    sizes = [np.minimum(one.row.shape, EDGE) for one in series]
    sources = [collection.root / one.row.source for one in series]

    def in_source(number: int) -> tuple[slice, ...]:
        start = firsts[number] + series[number].row.crop_first
        return tuple(slice(a, a + n) for a, n in zip(start.tolist(), sizes[number].tolist()))

    def ours(number: int) -> np.ndarray:
        one = store.series(number)  # the row is looked up in the index each time, as in training
        return one.read_box(firsts[number].tolist(), (firsts[number] + sizes[number]).tolist()).values

    def from_nifti(number: int) -> np.ndarray:
        image = nib.as_closest_canonical(nib.Nifti1Image.from_filename(sources[number]))
        return series[number].row.intensity.apply(np.asarray(image.dataobj[in_source(number)], np.float32))

    def from_file(number: int) -> np.ndarray:
        return _read_theirs(arrays[number], in_source(number))

    for number in range(len(series)):
        limit = 1e-5 + 1.01 * series[number].row.max_error / series[number].row.std
        for other in (from_nifti, from_file):
            assert np.abs(ours(number) - other(number)).max() < limit, "everybody reads the same voxels"
    facts = {"volumes": len(series), "edge": EDGE, "bytes_per_voxel": _bytes_per_voxel(store)}
    yield compare(
        "crop of 96 voxels: store, nibabel .nii.gz",
        ours=_in_turn(ours, len(series)),
        theirs=_in_turn(from_nifti, len(series)),
        target=5.0,
        **facts,
    )
    yield compare(
        "crop of 96 voxels: store, float32 .b2nd",
        ours=_in_turn(ours, len(series)),
        theirs=_in_turn(from_file, len(series)),
        target=1.2,
        **facts,
    )
    mine = sum(path.stat().st_size for path in store.folder.glob("[si]*-0-of-1-*"))
    files = [path for array in arrays for path in (array, array.with_suffix(".pkl"))]
    yield compare_sizes(
        "bytes on disk: store, float32 .b2nd",
        ours=mine,
        theirs=sum(path.stat().st_size for path in files),
        target=1 / 0.65,
    )


def _small(collection: Collection, folder: Path) -> Iterator[Row]:
    """Where opening costs more than reading: one small piece of each of many volumes.

    Without a target: with every file in the page cache of a local disk an open costs little. What a store spares is two opens per
    volume on a file system that is neither.
    """
    store, arrays = _stored(collection, folder), _theirs(collection, folder)

    def ours() -> None:
        for number in range(len(store)):
            series = store.series(number)
            series.read_box((0, 0, 0), [min(SMALL_CROP, n) for n in series.row.shape])

    def theirs() -> None:
        for array in arrays:
            _read_theirs(array, (slice(0, SMALL_CROP),) * 3)

    files = len(list(store.folder.glob("shard-*")))
    name = f"{NUM_SMALL} small volumes, each opened: store, .b2nd"
    yield compare(name, ours=ours, theirs=theirs, our_files=files, their_files=2 * len(arrays))


def _in_turn(read, number: int):
    turn = count()
    return lambda: read(next(turn) % number)


def _read_theirs(array: Path, box: tuple[slice, ...]) -> np.ndarray:
    with array.with_suffix(".pkl").open("rb") as file:
        pickle.load(file)
    return blosc2.open(str(array), **THEIR_OPENING)[box]  # pyright: ignore[reportReturnType,reportArgumentType,reportCallIssue]


def _theirs(collection: Collection, folder: Path) -> list[Path]:
    """One normalised float32 file per volume, and its properties beside it."""
    paths = []
    for row in collection.rows:
        for entry in row.series:
            series = to_closest_ras(read_nifti(collection.root / entry.path))
            body = find_body(series)
            intensity = Intensity.of(series.voxels, body)
            path = folder / f"theirs-{len(paths):05d}.b2nd"
            limits = [min(a, b) for a, b in zip(THEIR_CHUNKS, series.shape)]
            blosc2.asarray(
                intensity.apply(series.voxels),  # pyright: ignore[reportArgumentType]
                chunks=limits,
                blocks=[min(a, b) for a, b in zip(THEIR_BLOCKS, limits)],
                urlpath=str(path),
                cparams=THEIR_CODEC,
            )
            path.with_suffix(".pkl").write_bytes(pickle.dumps({"affine": series.affine, "spacing": series.spacing_mm}))
            paths.append(path)
    return paths


def _stored(collection: Collection, folder: Path) -> Store:
    write_store(folder / "store", ManifestSources(collection), StoreConfig(), processes=1)
    return Store.open(folder / "store")


def _bytes_per_voxel(store: Store) -> float:
    rows = [store.row(number) for number in range(len(store))]
    return sum(row.num_bytes for row in rows) / sum(int(np.prod(row.shape)) for row in rows)


def _given(manifest: Path) -> Collection:
    """The first volumes of a collection, by the order of their subjects' names, in which a store keeps them."""
    collection = read_manifest(manifest)
    chosen = sorted(collection.rows, key=lambda row: (row.subject, row.session))[:NUM_VOLUMES]
    return Collection(collection.path, tuple(chosen), collection.manifest_sha256)


def _collection(folder: Path, shape: tuple[int, ...], number: int) -> Collection:
    rows = []
    for index in range(number):
        name = f"sub-{index:05d}_T1w.nii.gz"
        nib.Nifti1Image(_head(np.random.default_rng(index), shape), np.eye(4)).to_filename(folder / name)
        rows.append(ManifestRow(subject=f"sub-{index:05d}", series=(SeriesEntry(path=name),)))
    write_manifest(folder / "manifest.jsonl", rows)
    return read_manifest(folder / "manifest.jsonl")


def _head(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """int16: smooth tissue with texture inside an ellipsoid, Rician noise everywhere."""
    index = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = np.linalg.norm(index / np.reshape([0.85, 0.88, 0.9], (3, 1, 1, 1)), axis=0) < 1
    layers = [
        height * np.asarray(ndimage.zoom(rng.standard_normal(coarse), np.asarray(shape) / coarse, order=1))
        for step, height in ((16, 120.0), (6, 60.0), (2, 15.0))  # from lobes to folds to texture
        for coarse in [[-(-n // step) + 1 for n in shape]]
    ]
    tissue = np.stack(layers).sum(axis=0)
    signal = np.where(inside, np.maximum(tissue + 350, 20), 0.0)
    noise = 6.0 * rng.standard_normal((2, *shape))
    return np.hypot(signal + noise[0], noise[1]).round().astype(np.int16)
