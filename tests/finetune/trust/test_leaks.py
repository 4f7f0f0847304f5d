"""A copy of what was learnt from is found under any name, in any file; what could not be looked at is said."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from finetune.trust.leaks import LeakReport, find_leaks, find_near, image_hash
from foundation.errors import InputError
from foundation.reading.collection import Collection, Row, SeriesEntry, read_manifest, write_manifest
from foundation.reading.nifti import read_nifti
from foundation.store.index import StoreConfig
from foundation.store.sources import ManifestSources
from foundation.store.writer import write_store


@pytest.fixture
def learnt(make_collection) -> Collection:
    """Five subjects; the first two and the fourth and fifth in split train, the third in test."""
    return read_manifest(make_collection(5, num_series=1))


@pytest.fixture
def evaluated(learnt: Collection, tmp_path: Path) -> Collection:
    """The test subject, and under another name one who was learnt from: axes turned, another format."""
    folder = tmp_path / "evaluated"
    folder.mkdir()
    test = learnt.split("test")[0]
    shutil.copy(learnt.root / test.series[0].path, folder / "new.nii.gz")
    series = read_nifti(learnt.root / learnt.split("train")[0].series[0].path)
    turned = nib.orientations.apply_orientation(series.voxels, np.array([[2, -1], [0, 1], [1, 1]]))
    affine = series.affine @ nib.orientations.inv_ornt_aff(np.array([[2, -1], [0, 1], [1, 1]]), series.shape)
    nib.loadsave.save(nib.Nifti1Image(turned, affine), folder / "copy.nii")
    names = {"somebody": "new.nii.gz", "nobody": "copy.nii"}
    rows = [
        Row(subject=name, series=(SeriesEntry(path=path, contrast="T1w"),), split="test")
        for name, path in names.items()
    ]
    write_manifest(folder / "manifest.jsonl", rows)
    return read_manifest(folder / "manifest.jsonl")


def provenance(learnt: Collection, **more: object) -> dict:
    trained = [row.subject for row in learnt.split("train")]
    return {"manifest": str(learnt.path), "trained_on": trained, "config": {"encoder": None}, **more}


def look(evaluated: Collection, known: dict, pretrained_on: list[Path] | None, folder: Path = Path()) -> LeakReport:
    return find_leaks(evaluated.rows, evaluated.root, known, folder, pretrained_on)


def test_a_name_is_enough(learnt: Collection) -> None:
    known = provenance(learnt, calibrated_on=["sub-02"])
    training, calibrating = look(learnt, known, None).checks
    assert training.overlap == ("sub-00", "sub-01", "sub-03", "sub-04") and training.num == 4
    assert calibrating.overlap == ("sub-02",)
    with pytest.raises(InputError, match="sub-00"):
        look(learnt, known, None).refuse(learnt.path)
    test = find_leaks(learnt.split("test"), learnt.root, provenance(learnt), Path(), None)
    test.refuse(learnt.path)
    assert test.lines() == ["checked against 4 training subjects by name, none in both"]
    assert "does not name" in find_leaks(learnt.rows, learnt.root, {}, Path(), None).unchecked[0]


def test_a_copy_is_found_by_what_it_shows(learnt: Collection, evaluated: Collection) -> None:
    report = look(evaluated, provenance(learnt), [])
    by_name, by_content = report.checks
    assert not by_name.overlap and by_content.overlap == ("nobody",) and by_content.num == 4
    with pytest.raises(InputError, match="--allow-overlap"):
        report.refuse(evaluated.path)


@pytest.mark.parametrize("splits", [None, ("train",), ("test",)])
def test_a_copy_is_found_in_a_store(learnt: Collection, evaluated: Collection, tmp_path: Path, splits) -> None:
    """The chain: a task whose encoder was pretrained from a store, of which only some splits were used."""
    write_store(tmp_path / "store", ManifestSources(learnt), StoreConfig(chunk_voxels=16), processes=1)
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    pretraining = {"config": {"store": str(tmp_path / "store"), "splits": splits}}
    about = {"format": 1, "kind": "encoder", "config": {}, "provenance": pretraining}
    (encoder / "config.json").write_text(json.dumps(about))
    known = {"manifest": "gone.jsonl", "trained_on": ["x"], "config": {"encoder": str(encoder)}}
    report = look(evaluated, known, [])
    (check,) = [one for one in report.checks if one.by == "content"]
    assert check.num == {None: 5, ("train",): 4, ("test",): 1}[splits]
    assert check.overlap == {None: ("nobody", "somebody"), ("train",): ("nobody",), ("test",): ("somebody",)}[splits]
    assert report.unchecked == ("training series: gone.jsonl is not here (name it with --pretrained-on)",)


def test_what_the_user_names_is_looked_at(learnt: Collection, evaluated: Collection) -> None:
    known = {"trained_on": [], "config": {"encoder": "an/encoder/that/is/gone"}}
    report = look(evaluated, known, [learnt.path])
    assert report.checks[-1].overlap == ("nobody", "somebody") and report.checks[-1].num == 5
    assert "an/encoder/that/is/gone" in report.unchecked[0]


def test_paths_are_found_from_where_the_model_lies(tmp_path: Path) -> None:
    (tmp_path / "runs" / "task" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "data.jsonl").touch()
    found = find_near(Path("runs/data.jsonl"), tmp_path / "runs" / "task" / "model")
    assert found is not None and found.samefile(tmp_path / "runs" / "data.jsonl")
    assert find_near(Path("runs/other.jsonl"), tmp_path / "runs" / "task" / "model") is None


def test_the_hash_is_of_the_image_and_not_of_the_file(learnt: Collection, evaluated: Collection) -> None:
    first, second = (learnt.root / row.series[0].path for row in learnt.rows[:2])
    assert image_hash(first) == image_hash(evaluated.root / "copy.nii") != image_hash(second)
