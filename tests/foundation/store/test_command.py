"""`larmor prepare`, from the command line to what it prints; and Hugging Face data sets, made here and read from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundation.errors import InputError
from foundation.reading.collection import read_manifest
from foundation.store.index import StoreConfig
from foundation.store.reader import Store
from foundation.store.sources import HuggingFaceSources, ManifestSources
from foundation.store.writer import write_store
from serve.__main__ import main

datasets = pytest.importorskip("datasets")


@pytest.fixture
def volumes(make_collection) -> list[Path]:
    """Four volumes of three subjects, named as in BIDS."""
    folder = make_collection(3).parent
    return [folder / f"sub-0{name}.nii.gz" for name in ("0_T1w", "0_T2w", "1_T1w", "2_T2w")]


def rows_of(store: Store) -> list:
    return [store.row(number) for number in range(len(store))]


# -------------------------------------------------------------------------------- The command


def test_a_manifest_becomes_a_store_a_picture_and_a_few_lines(make_collection, tmp_path: Path, capsys) -> None:
    manifest, store = make_collection(4), tmp_path / "store"
    small = ["--processes", "1", "--shard-mib", "0.1", "--chunk", "16", "--level", "1", "--margin", "8"]
    (manifest.parent / "sub-03_T1w.nii.gz").write_bytes(b"no volume")
    assert main(["prepare", str(manifest), str(store), *small]) == 0
    printed = capsys.readouterr().out
    assert "6 of 7 series" in printed and "sub-03_T1w.nii.gz" in printed
    assert "6 series of 3 studies" in printed and f"wrote {store}" in printed
    assert (store / "store.png").stat().st_size > 10_000
    opened = Store.open(store).settings
    assert (opened.chunk_voxels, opened.level, opened.margin_mm, opened.shard_bytes) == (16, 1, 8.0, 104857)
    assert main(["prepare", str(manifest), str(store), *small]) == 0, "again: nothing to do"
    assert "sub-03_T1w.nii.gz" in capsys.readouterr().out, "and nothing forgotten"
    assert main(["prepare", "--verify", str(store), "--processes", "1"]) == 0
    assert "6 series are as they were written" in capsys.readouterr().out
    shard = store / "shard-0-of-1-00000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["prepare", "--verify", str(store), "--processes", "1"]) == 1
    assert "1 of 6 series are damaged" in capsys.readouterr().out


def test_machines_say_what_is_missing(make_collection, tmp_path: Path, capsys) -> None:
    manifest, store = make_collection(6, num_series=1), tmp_path / "store"
    assert main(["prepare", str(manifest), str(store), "--shard", "1/2", "--processes", "1"]) == 0
    assert "share 0/2 of it is still to be written" in capsys.readouterr().out
    assert main(["prepare", str(manifest), str(store), "--shard", "0/2", "--processes", "1"]) == 0
    assert "6 series of 6 studies" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{manifest}"], "a manifest and a store are named"),
        (["{tmp}/absent", "{tmp}/store"], "the manifest exists"),
        (["{manifest}", "{tmp}/store", "--column", "nifti"], "belong to --hf"),
        (["--hf", "{tmp}", "{tmp}/store"], "column of NIfTI files is named"),
        (["--hf", "{tmp}", "--column", "nifti", "a", "b"], "one store is named"),
        (["--hf", "{tmp}/absent", "--column", "nifti", "{tmp}/store"], "can be loaded"),
        (["--verify", "{tmp}"], "a store is a folder"),
        (["{manifest}", "{tmp}/store", "--shard", "2/2"], "i/n"),
        (["{manifest}", "{tmp}/store", "--budget", "2"], "0 to 1"),
        (["{manifest}", "{tmp}/store", "--processes", "0"], "done by processes"),
        (["{manifest}", "{tmp}/store", "--chunk", "1"], "chunk_voxels"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], complaint: str, make_collection, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    manifest = make_collection(1)
    filled = [argument.format(manifest=manifest, tmp=tmp_path) for argument in arguments]
    assert main(["prepare", *filled]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert complaint in printed[-1] and printed[-1].startswith("larmor: ")


# -------------------------------------------------------------------------------- Hugging Face data sets


def saved(folder: Path, columns: dict[str, list]) -> str:
    datasets.Dataset.from_dict(columns).cast_column("nifti", datasets.Nifti()).save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_data_set_becomes_the_store_that_its_files_would(
    inside: bool, streaming: bool, volumes, tmp_path: Path
) -> None:
    """As paths and as bytes, whole and streamed: the same voxels as from a manifest."""
    value = [{"path": path.name, "bytes": path.read_bytes()} for path in volumes] if inside else list(map(str, volumes))
    name = saved(tmp_path / "data", {"nifti": value, "age": [1, 2, 3, 4]})
    sources = HuggingFaceSources(name, "nifti", streaming=streaming)
    write_store(tmp_path / "store", sources, StoreConfig(), processes=1)
    store = Store.open(tmp_path / "store")
    manifest = volumes[0].parent / "manifest.jsonl"
    write_store(tmp_path / "other", ManifestSources(read_manifest(manifest)), StoreConfig(), processes=1)
    expected = {Path(row.source).name: row for row in rows_of(Store.open(tmp_path / "other"))}
    assert [row.key for row in rows_of(store)] == [
        ("sub-00", "", 0),
        ("sub-00", "", 1),
        ("sub-01", "", 0),
        ("sub-02", "", 0),
    ]
    for row in rows_of(store):
        theirs = expected[Path(row.source).name]
        assert (row.sha256, row.contrast, row.affine) == (theirs.sha256, theirs.contrast, theirs.affine)
        assert row.split is None


def test_columns_name_subject_session_and_contrast(volumes, tmp_path: Path) -> None:
    columns = {
        "nifti": [{"path": None, "bytes": path.read_bytes()} for path in volumes],
        "subject": ["b", "a", "a", "a"],
        "session": ["1", "1", "2", "2"],
        "contrast": ["FLAIR", None, "PD", "T2w"],
    }
    write_store(
        tmp_path / "store", HuggingFaceSources(saved(tmp_path / "data", columns), "nifti"), StoreConfig(), processes=1
    )
    store = Store.open(tmp_path / "store")
    assert [row.key for row in rows_of(store)] == [("a", "1", 0), ("a", "2", 0), ("a", "2", 1), ("b", "1", 0)]
    assert [row.contrast for row in rows_of(store)] == ["unknown", "PD", "T2w", "FLAIR"]
    assert [len(study) for study in store.studies] == [1, 2, 1]


def test_bad_volumes_and_bad_contrasts_of_a_data_set_are_left_out(volumes, tmp_path: Path) -> None:
    broken = bytearray(volumes[1].read_bytes())
    broken[len(broken) // 2] ^= 4  # datasets' own decoding would not notice
    columns = {
        "nifti": [
            {"path": "one.nii.gz", "bytes": volumes[0].read_bytes()},
            {"path": "two.nii.gz", "bytes": bytes(broken)},
            None,
            {"path": "four.nii.gz", "bytes": volumes[3].read_bytes()},
        ],
        "contrast": ["T1w", "T2w", "T1w", "T1"],
    }
    name = saved(tmp_path / "data", columns)
    written = write_store(tmp_path / "store", HuggingFaceSources(name, "nifti"), StoreConfig(), processes=1)
    assert [one.file for one in written.bad] == ["two.nii.gz", "row 2", "four.nii.gz"]
    assert "undamaged" in written.bad[0].reason and "holds a volume" in written.bad[1].reason
    assert [row.subject for row in rows_of(Store.open(tmp_path / "store"))] == ["one"]


def test_a_folder_of_files_streams_without_a_copy(volumes, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in volumes:
        (folder / path.name).write_bytes(path.read_bytes())
    sources = HuggingFaceSources(str(folder), "nifti", streaming=True)
    write_store(tmp_path / "store", sources, StoreConfig(), processes=1)
    store = Store.open(tmp_path / "store")
    assert [row.subject for row in rows_of(store)] == ["sub-00", "sub-00", "sub-01", "sub-02"]
    assert np.isfinite(store.series(0).read_box((0, 0, 0), store.row(0).extent).values).all()


def test_addresses_are_fetched_when_they_are_needed(volumes, tmp_path: Path) -> None:
    """Parquet that holds no more than where volumes are: what cannot be fetched is left out."""
    addresses = [f"file://{volumes[0]}", "file:///absent/two.nii.gz", str(volumes[2])]
    column = pa.array([{"bytes": None, "path": address} for address in addresses], datasets.Nifti().pa_type)
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"nifti": column}), tmp_path / "data" / "train.parquet")
    sources = HuggingFaceSources(str(tmp_path / "data"), "nifti", streaming=True)
    written = write_store(tmp_path / "store", sources, StoreConfig(), processes=1)
    assert [one.file for one in written.bad] == [addresses[1]] and "can be fetched" in written.bad[0].reason
    assert [row.subject for row in rows_of(Store.open(tmp_path / "store"))] == ["sub-00", "sub-01"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"column": "nifty"}, "Did you mean 'nifti'"),
        ({"column": "age"}, "Unsupported cast"),
        ({"column": "nifti", "split": "test"}, "the split"),
    ],
)
def test_a_wrong_column_or_split_is_named(options: dict, match: str, volumes, tmp_path: Path) -> None:
    columns = {"nifti": list(map(str, volumes)), "age": [1, 2, 3, 4]}
    data = datasets.Dataset.from_dict(columns).cast_column("nifti", datasets.Nifti())
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "data")
    with pytest.raises(InputError, match=match):
        write_store(
            tmp_path / "store", HuggingFaceSources(str(tmp_path / "data"), **options), StoreConfig(), processes=1
        )
