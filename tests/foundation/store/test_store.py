"""From a collection to a store and back: the same content however it was written, and nothing bad in it."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foundation.config import parse_config
from foundation.errors import InputError
from foundation.preprocess import Intensity, find_body, to_closest_ras
from foundation.reading.collection import Row, SeriesEntry, read_manifest, read_study, write_manifest
from foundation.reading.nifti import write_labels, write_volume
from foundation.store import chunks
from foundation.store.index import Share, StoreConfig
from foundation.store.reader import Store, StoredSeries, verify
from foundation.store.sources import ManifestSources
from foundation.store.writer import write_store
from foundation.study import Series

SMALL = StoreConfig(shard_bytes=100_000)  # three series of 26 voxels cubed


@pytest.fixture
def manifest(make_collection) -> Path:
    return make_collection(8)


def store_of(manifest: Path, folder: Path, config: StoreConfig = SMALL, **options) -> Store:
    write_store(folder, ManifestSources(read_manifest(manifest)), config, **{"processes": 1, **options})
    return Store.open(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def held(store: Store) -> list[tuple]:
    """What a store holds, whatever files it is in."""
    rows = [store.row(number) for number in range(len(store))]
    return [(row.key, row.sha256, row.source, row.intensity, row.affine) for row in rows]


def spoil(path: Path, place: int = -40) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(content)


@pytest.fixture
def head(tmp_path: Path) -> Callable[[], tuple[Path, Series]]:
    """A ball of int16 in much air, with a hole for a face: the manifest and the series as it was written."""

    def make() -> tuple[Path, Series]:
        index = np.indices((70, 60, 50)) - np.reshape([40, 30, 20], (3, 1, 1, 1))
        ball = np.linalg.norm(index, axis=0) < 18
        voxels = np.where(ball, 700 + 40 * np.random.default_rng(0).standard_normal(ball.shape), 3.0).round()
        affine = np.diag([-1.5, 1.0, 2.0, 1.0])
        affine[:3, 3] = (30.0, -20.0, 10.0)
        series = Series(voxels.astype(np.float32), affine, name="face_T1w")
        write_volume(tmp_path / "face_T1w.nii.gz", series.voxels.astype(np.int16), series)
        removed = (index[1] > 10).astype(np.int16)
        write_labels(tmp_path / "removed.nii.gz", removed, series)
        entry = SeriesEntry(path="face_T1w.nii.gz", removed="removed.nii.gz")
        (tmp_path / "face_T1w.json").write_text('{"EchoTime": 0.003, "Manufacturer": "Acme"}')
        write_manifest(tmp_path / "face.jsonl", [Row(subject="face", session="a", series=(entry,), split="pretrain")])
        return tmp_path / "face.jsonl", series

    return make


# -------------------------------------------------------------------------------- What is in it


def test_what_is_read_is_what_preprocessing_gives(manifest: Path, tmp_path: Path) -> None:
    store = store_of(manifest, tmp_path / "store")
    rows = {row.subject: row for row in read_manifest(manifest).rows}
    assert len(store.studies) == 8 and len(store) == sum(len(row.series) for row in rows.values())
    for number in range(len(store)):
        series = store.series(number)
        row = series.row
        ras = to_closest_ras(read_study(rows[row.subject], manifest.parent).series[row.number])
        body = find_body(ras)
        intensity = Intensity.of(ras.voxels, body)
        box = tuple(slice(a, a + n) for a, n in zip(row.crop_first, row.shape))
        got = series.read_box((0, 0, 0), row.extent)
        assert np.abs(got.values - intensity.apply(ras.voxels)[box]).max() <= row.max_error / intensity.std + 1e-6
        assert row.max_error < intensity.std / 1000
        assert np.array_equal(got.body, body[box]) and got.body.sum() == body.sum() == row.body_voxels
        assert got.removed is None
        place = np.asarray(row.crop_first)
        assert np.allclose(series.grid.affine[:3, 3], ras.to_patient_mm(place))
        assert np.allclose(series.grid.affine[:3, :3], ras.affine[:3, :3])
        assert (series.contrast, row.split) == (ras.contrast, rows[row.subject].split)
    assert len({store.row(number).source_orientation for number in range(len(store))}) == 3


def test_a_head_is_cropped_and_keeps_values_place_and_face_mask(head, tmp_path: Path) -> None:
    manifest, source = head()
    store = store_of(manifest, tmp_path / "store")
    series = store.series(0)
    row = series.row
    assert row.max_error == 0.0 and row.scale == 1.0
    assert np.prod(row.shape) < 0.6 * source.voxels.size, "air around the body is not stored"
    assert row.key == ("face", "a", 0) and row.contrast == "T1w"
    assert (series.acquisition.echo_time_ms, series.acquisition.vendor) == (3.0, "Acme")
    stored, _ = series.read_stored((0, 0, 0), row.extent)
    box = series.read_box((0, 0, 0), row.extent)
    assert row.has_removed and box.removed is not None
    # The file's own axes run to the patient's left: the same place in the patient holds the same value and the same mask.
    for voxel in np.argwhere(box.body)[::997]:
        own = np.rint(np.linalg.inv(source.affine) @ [*series.grid.affine[:3] @ [*voxel, 1], 1])[:3].astype(int)
        assert stored[tuple(voxel)] == source.voxels[tuple(own)]
        assert box.removed[tuple(voxel)] == (own[1] - 30 > 10)


def test_a_box_is_a_piece_of_the_whole_and_few_chunks_are_read(head, tmp_path: Path, monkeypatch) -> None:
    store = store_of(head()[0], tmp_path / "store", StoreConfig(chunk_voxels=8))
    series = store.series(0)
    whole = series.read_box((0, 0, 0), series.row.extent)
    seen: list[int] = []
    decompress = chunks.decompress
    monkeypatch.setattr(chunks, "decompress", lambda part: seen.append(len(part)) or decompress(part))
    first, last = (9, 3, 5), (15, 8, 14)
    piece = series.read_box(first, last)
    box = tuple(slice(a, b) for a, b in zip(first, last))
    for got, all_of_it in zip(piece, whole):
        assert np.array_equal(got, all_of_it[box])
    assert 2 <= len(seen) <= 4, (
        "voxels of the two chunks that the box touches, and flags where they are not all the same"
    )


def test_voxels_are_drawn_from_the_body_evenly_and_without_reading_it_all(head, tmp_path: Path, monkeypatch) -> None:
    store = store_of(head()[0], tmp_path / "store", StoreConfig(chunk_voxels=16))
    series = store.series(0)
    body = series.read_box((0, 0, 0), series.row.extent).body
    num_chunks = int(np.prod([-(-n // 16) for n in series.row.shape]))
    seen: list[int] = []
    decompress = chunks.decompress
    monkeypatch.setattr(chunks, "decompress", lambda part: seen.append(len(part)) or decompress(part))
    rng = np.random.default_rng(0)
    drawn = np.stack([series.draw_voxel(rng) for _ in range(400)])
    assert body[tuple(drawn.T)].all()
    assert len(seen) / 400 < 3 < num_chunks
    expected = np.argwhere(body)
    assert np.abs(drawn.mean(axis=0) - expected.mean(axis=0)).max() < 4 * expected.std(axis=0).max() / 20
    monkeypatch.setattr("foundation.store.reader.TRIES", 0)  # a body so thin that drawing never meets it
    assert all(body[tuple(series.draw_voxel(rng))] for _ in range(5))


# -------------------------------------------------------------------------------- The same content


def test_processes_shards_and_machines_do_not_change_the_content(manifest: Path, tmp_path: Path) -> None:
    one = store_of(manifest, tmp_path / "one")
    assert len(list((tmp_path / "one").glob("shard-*"))) > 3
    two = store_of(manifest, tmp_path / "two", processes=2)
    assert contents(one.folder) == contents(two.folder), "byte for byte"
    collection = ManifestSources(read_manifest(manifest))
    for index, missing in ((2, "2 of 3 unfinished: 0/3, 1/3"), (0, "1 of 3 unfinished: 1/3"), (1, None)):
        for _ in range(2):  # a second time there is nothing to do
            write_store(tmp_path / "three", collection, SMALL, share=Share(index, 3), processes=1)
        if missing:
            with pytest.raises(InputError, match=missing):
                Store.open(tmp_path / "three")
    three = Store.open(tmp_path / "three")
    assert held(three) == held(one)
    subjects = [
        {three.row(n).subject for n in range(len(three)) if three.row(n).shard.startswith(f"shard-{index}-of-3")}
        for index in range(3)
    ]
    assert sum(map(len, subjects)) == 8, "no subject is on two machines"


WRITE = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("here", sys.argv[1])
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
here.store_of(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_killed_it_continues_to_the_same_bytes_and_redoes_one_shard(make_collection, tmp_path: Path) -> None:
    manifest = make_collection(24)
    whole, folder = store_of(manifest, tmp_path / "whole"), tmp_path / "killed"
    run = subprocess.Popen([sys.executable, "-c", WRITE, __file__, str(manifest), str(folder)], stderr=subprocess.PIPE)
    second = folder / f".aside-{run.pid}-shard-0-of-1-00001.bin"
    deadline = time.monotonic() + 200  # a busy machine may take long to start a process
    while not second.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    run.send_signal(signal.SIGKILL)
    _, printed = run.communicate()
    assert run.returncode == -signal.SIGKILL, printed.decode()[-2000:]
    with pytest.raises(InputError, match="every share"):
        Store.open(folder)
    parts = list(folder.glob("index-*"))
    assert parts and len(parts) < len(list(whole.folder.glob("index-*")))
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("[si]*-0-of-1-*")}
    store_of(manifest, folder)
    assert contents(folder) == contents(whole.folder)
    kept = [name for name, time_ns in before.items() if (folder / name).stat().st_mtime_ns == time_ns]
    assert len(kept) == 2 * len(parts), "what had its part of the index was not written again"


def test_nothing_half_written_is_ever_read(manifest: Path, tmp_path: Path) -> None:
    """A shard without its part of the index is the rest of a killed run; so is everything aside."""
    whole, folder = store_of(manifest, tmp_path / "whole"), tmp_path / "cut"
    shutil.copytree(whole.folder, folder)
    (folder / "index-0-of-1-00002.parquet").unlink()
    spoil(folder / "shard-0-of-1-00002.bin")
    (folder / ".aside-1-shard-0-of-1-00002.bin").write_bytes(b"half")
    (folder / ".aside-1-index-0-of-1-00002.parquet").write_bytes(b"half")
    with pytest.raises(InputError, match="every share"):
        Store.open(folder)
    store_of(manifest, folder)
    assert contents(folder) == contents(whole.folder)


# -------------------------------------------------------------------------------- What is bad


def test_bad_files_are_named_left_out_and_remembered(manifest: Path, tmp_path: Path) -> None:
    spoil(manifest.parent / "sub-01_T1w.nii.gz")
    (manifest.parent / "sub-04_T2w.nii.gz").write_bytes(b"no volume")
    store = store_of(manifest, tmp_path / "store")
    listed = [json.loads(line) for line in (store.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["file"] for entry in listed] == ["sub-01_T1w.nii.gz", "sub-04_T2w.nii.gz"]
    assert "undamaged" in listed[0]["reason"] and "NIfTI" in listed[1]["reason"]
    sources = {store.row(number).source for number in range(len(store))}
    assert not sources & {"sub-01_T1w.nii.gz", "sub-04_T2w.nii.gz"} and "sub-01_T2w.nii.gz" in sources
    (store.folder / "quarantine.jsonl").unlink()  # a resume that finds everything done, or half of it, remembers
    for path in store.folder.glob("*-00004.*"):
        path.unlink()
    written = write_store(store.folder, ManifestSources(read_manifest(manifest)), SMALL, processes=1)
    assert [one.file for one in written.bad] == ["sub-01_T1w.nii.gz", "sub-04_T2w.nii.gz"]
    assert held(Store.open(store.folder)) == held(store)


def test_a_store_without_the_bad_files_is_that_of_a_collection_that_never_had_them(
    manifest: Path, tmp_path: Path
) -> None:
    rows = [row for row in read_manifest(manifest).rows if row.subject != "sub-03"]
    write_manifest(manifest.parent / "fewer.jsonl", rows)
    fewer = store_of(manifest.parent / "fewer.jsonl", tmp_path / "fewer")
    spoil(manifest.parent / "sub-03_T1w.nii.gz")
    assert held(store_of(manifest, tmp_path / "store")) == held(fewer)


def test_too_many_bad_files_end_it_and_a_higher_budget_continues(manifest: Path, tmp_path: Path) -> None:
    for name in ("sub-01_T1w", "sub-02_T1w", "sub-05_T1w", "sub-06_T1w"):
        spoil(manifest.parent / f"{name}.nii.gz")
    with pytest.raises(InputError, match="at most 3 of") as error:
        store_of(manifest, tmp_path / "store")
    assert "sub-06_T1w.nii.gz" in str(error.value)
    assert (tmp_path / "store" / "quarantine.jsonl").read_text().count("\n") == 4
    assert len(store_of(manifest, tmp_path / "store", budget=0.5)) == 10
    with pytest.raises(InputError, match="at most 0 of"):
        store_of(manifest, tmp_path / "none", budget=0.0)


def test_only_bad_files_make_no_store(make_collection, tmp_path: Path) -> None:
    manifest = make_collection(2, num_series=1)
    for path in manifest.parent.glob("*_T1w.nii.gz"):
        spoil(path)
    with pytest.raises(InputError, match="at least one series"):
        store_of(manifest, tmp_path / "store")


def test_another_collection_or_setting_is_refused(manifest: Path, tmp_path: Path) -> None:
    store_of(manifest, tmp_path / "store")
    with pytest.raises(InputError, match="level it began with"):
        store_of(manifest, tmp_path / "store", StoreConfig(shard_bytes=100_000, level=1))
    with pytest.raises(InputError, match="machines it began with"):
        store_of(manifest, tmp_path / "store", share=Share(0, 2))
    write_manifest(manifest.parent / "other.jsonl", read_manifest(manifest).rows[:3])
    with pytest.raises(InputError, match="collection it began with"):
        store_of(manifest.parent / "other.jsonl", tmp_path / "store")
    with pytest.raises(InputError, match="new folder"):
        store_of(manifest, manifest.parent)


@pytest.mark.parametrize(
    ("values", "match"),
    [({"chunk_voxels": 4}, "chunk_voxels"), ({"level": 0}, "level"), ({"shard_byte": 1}, "Did you mean 'shard_bytes'")],
)
def test_settings_that_cannot_be_are_refused(values: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        parse_config(StoreConfig, values)


@pytest.mark.parametrize("text", ["2", "2/2", "-1/3", "a/b", "0/0", ""])
def test_a_share_is_one_of_its_machines(text: str) -> None:
    with pytest.raises(InputError, match="i/n"):
        Share.parse(text)
    assert Share.parse("1/4") == Share(1, 4)


# -------------------------------------------------------------------------------- Damaged afterwards


def test_a_damaged_byte_is_named_verified_and_left_out(manifest: Path, tmp_path: Path) -> None:
    store = store_of(manifest, tmp_path / "store")
    before = held(store)
    row = store.row(2)
    assert verify(store.folder, 1) == (len(store), [])
    spoil(store.folder / row.shard, row.position + row.num_bytes // 2)
    broken = StoredSeries(row, Store.open(store.folder).shards)
    with pytest.raises(InputError, match="those that were written") as error:
        broken.read_box((0, 0, 0), row.extent)
    assert row.shard in str(error.value) and row.source in str(error.value)
    number, bad = verify(store.folder, 1)
    assert (number, [one.file for one in bad]) == (len(before), ["sub-01#0"])
    assert held(Store.open(store.folder)) == before[:2] + before[3:]
    assert Store.open(store.folder).damaged == tuple(bad)
    spoil(store.folder / row.shard, row.position + row.num_bytes // 2)  # mended
    assert verify(store.folder, 1) == (len(before), [])
    assert held(Store.open(store.folder)) == before


def test_cut_missing_and_foreign_files_are_one_input_error(manifest: Path, tmp_path: Path) -> None:
    store = store_of(manifest, tmp_path / "store")
    last = store.row(max(range(len(store)), key=lambda n: (store.row(n).shard, store.row(n).position)))
    shard = store.folder / last.shard
    content = shard.read_bytes()
    for broken in (content[:-1], b"", None):
        shard.unlink() if broken is None else shard.write_bytes(broken)
        with pytest.raises(InputError, match="those that were written"):
            StoredSeries(last, Store.open(store.folder).shards).read_box((0, 0, 0), last.extent)
    part = store.folder / "index-0-of-1-00000.parquet"
    for broken in (b"PAR1", part.read_bytes()[:-9], b""):
        part.write_bytes(broken)
        with pytest.raises(InputError, match="whole Parquet file"):
            Store.open(store.folder)
    for broken in ("", "[]", '{"format": 99}', '{"format": 1, "collection": 3}'):
        (store.folder / "store.json").write_text(broken)
        with pytest.raises(InputError):
            Store.open(store.folder)
    with pytest.raises(InputError, match="a store is a folder"):
        Store.open(tmp_path / "absent")


def test_a_store_travels_to_other_processes(manifest: Path, tmp_path: Path) -> None:
    series = store_of(manifest, tmp_path / "store").series(0)
    first, last = (0, 0, 0), series.row.extent
    values = series.read_box(first, last).values  # its shard is mapped now
    assert np.array_equal(pickle.loads(pickle.dumps(series)).read_box(first, last).values, values)


def test_more_shards_than_may_be_open(manifest: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("foundation.store.reader.MOST_MAPPED", 1)
    store = store_of(manifest, tmp_path / "store")
    for number in (0, len(store) - 1, 0, 1, len(store) - 1):
        series = store.series(number)
        assert series.read_box((0, 0, 0), series.row.extent).body.any()
