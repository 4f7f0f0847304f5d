"""A cohort on disk: the same bytes however it was made, its own reader's collection, and no folder but its own touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from foundation.cohort.materials import STRUCTURES
from foundation.cohort.patient import CohortConfig
from foundation.cohort.writing import _check_folder, split_of, write_cohort
from foundation.config import parse_config, save_config
from foundation.errors import InputError
from foundation.reading.collection import Collection, read_manifest, read_mask, read_study
from serve.__main__ import main

SETTINGS = {"spacing_mm": 4.0, "contrasts": ("T1w", "FLAIR", "ADC"), "missing_series": 0.3, "maps": True}
CONFIG = parse_config(CohortConfig, SETTINGS)
NUM_SUBJECTS = 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Collection:
    return read_manifest(write_cohort(tmp_path_factory.mktemp("cohort") / "cohort", CONFIG, NUM_SUBJECTS, processes=1))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_subjects(found: dict[str, bytes], num_subjects: int) -> dict[str, bytes]:
    names = tuple(f"sub-{index:05d}/" for index in range(num_subjects))
    return {path: content for path, content in found.items() if path.startswith(names)}


# -------------------------------------------------------------------------------- The same bytes


def test_two_processes_write_the_bytes_that_one_writes(cohort, tmp_path):
    write_cohort(tmp_path / "two", CONFIG, 2, processes=2)
    found = of_subjects(contents(tmp_path / "two"), 2)
    assert len(found) > 10 and found == of_subjects(contents(cohort.root), 2)


def test_an_interrupted_cohort_continues_to_the_same_bytes(cohort, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(cohort.root, folder)
    shutil.rmtree(folder / "sub-00003")
    (folder / "sub-00005" / "row.json").unlink()  # as if it had been a folder of something else
    (folder / "manifest.jsonl").unlink()
    untouched = (folder / "sub-00001" / "labels.nii.gz").stat().st_mtime_ns
    write_cohort(folder, CONFIG, NUM_SUBJECTS, processes=1)
    assert contents(folder) == contents(cohort.root)
    assert (folder / "sub-00001" / "labels.nii.gz").stat().st_mtime_ns == untouched


def test_a_whole_cohort_is_left_as_it_is(cohort):
    """What is true of it as a whole takes longest, and is not worked out again by every command that needs the cohort."""
    before = (cohort.root / "truth.json").stat().st_mtime_ns
    assert write_cohort(cohort.root, CONFIG, NUM_SUBJECTS, processes=1) == cohort.path
    assert (cohort.root / "truth.json").stat().st_mtime_ns == before


def test_a_larger_cohort_begins_with_the_smaller_one(cohort, tmp_path):
    """Here the smaller one of the larger one's folder: what is there is left, the manifest says less."""
    folder = tmp_path / "less"
    shutil.copytree(cohort.root, folder)
    fewer = read_manifest(write_cohort(folder, CONFIG, 3, processes=1))
    assert fewer.rows == cohort.rows[:3]
    assert json.loads((folder / "truth.json").read_text())["subjects"] == 3


# -------------------------------------------------------------------------------- What is in it


def test_every_row_reads_back_with_its_mask_and_its_volumes(cohort):
    for row in cohort.rows:
        study = read_study(row, cohort.root)
        mask = read_mask(row, study, cohort.root)
        assert mask.shape == study.reference.shape and study.reference.side_is_known
        ml = float(np.prod(study.reference.spacing_mm)) / 1000
        for name, value in STRUCTURES.items():
            counted = np.count_nonzero(mask == value) * ml
            assert row.targets[f"{name.replace(' ', '_')}_ml"] == pytest.approx(counted, abs=2e-3), (row.subject, name)
        assert 1 <= len(study.series) <= 3
        assert [series.contrast for series in study.series] == [
            name for name in SETTINGS["contrasts"] if name in {series.contrast for series in study.series}
        ]
    assert len({len(row.series) for row in cohort.rows}) > 1  # some are missing
    assert len({read_study(row, cohort.root).reference.orientation for row in cohort.rows}) > 1


def test_sidecars_give_the_acquisition_back(cohort):
    for row in cohort.rows:
        truth = json.loads((cohort.root / row.subject / "truth.json").read_text())
        for series, made in zip(read_study(row, cohort.root).series, truth["series"], strict=True):
            known, sequence = series.acquisition, made["sequence"]
            assert known.echo_time_ms == pytest.approx(sequence["te_ms"])
            assert known.repetition_time_ms == pytest.approx(sequence["tr_ms"])
            assert known.inversion_time_ms == (pytest.approx(sequence["ti_ms"]) if "ti_ms" in sequence else None)
            assert known.field_strength_t == truth["subject"]["field_t"] == row.targets["field_strength_t"]
            assert known.vendor == truth["subject"]["vendor"]


def test_a_cohort_has_every_split_and_both_classes(cohort):
    assert [len(cohort.split(name)) for name in ("pretrain", "train", "test")] == [5, 2, 1]  # of 4, 2 and 2
    assert {row.targets["enlarged_ventricles"] for row in cohort.rows} == {0, 1}
    assert {row.targets["any_lesion"] for row in cohort.rows} == {0, 1}


def test_splits_have_their_shares_however_many_subjects_there_are():
    shares = {"pretrain": 0.6, "train": 0.3, "validation": 0.0, "test": 0.1}
    for num in (20, 100, 1000):
        drawn = [split_of(index, shares) for index in range(num)]
        for name, share in shares.items():
            assert abs(drawn.count(name) - num * share) <= 2, (num, name)


def test_the_summary_is_json_and_bounds_every_model(cohort):
    def never(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    truth = json.loads((cohort.root / "truth.json").read_text(), parse_constant=never)
    assert truth["subjects"] == NUM_SUBJECTS and truth["series"] == sum(len(row.series) for row in cohort.rows)
    assert set(truth["oracle_concordance"]) == {"image", "record", "image and record", "everything"}
    assert all(0 <= value <= 1 for value in truth["oracle_concordance"].values())
    assert (
        truth["normal"] + len([row for row in cohort.rows if any(row.targets[name] for name in truth["diagnoses"])])
        == 8
    )
    mean = np.mean([row.targets["thalamus_ml"] for row in cohort.rows])
    assert truth["mean_volumes_ml"]["thalamus"] == pytest.approx(mean, abs=0.01)


def test_maps_are_what_the_simulator_put_in_on_the_heads_own_grid(cohort):
    for row in cohort.rows[:3]:
        truth = json.loads((cohort.root / row.subject / "truth.json").read_text())
        grids = set()
        for name, key, factor in (("T1", "t1_ms", 1), ("T2", "t2_ms", 1), ("ADC", "adc_1e-3_mm2_s", 1000)):
            image = Nifti1Image.from_filename(cohort.root / row.subject / f"map-{name}.nii.gz")
            values = np.unique(np.asarray(image.dataobj))
            known = np.array([0.0, *(factor * tissue[key] for tissue in truth["tissues"].values())])
            assert len(values) > 12 and abs(values[:, None] - known).min(axis=1).max() < 1e-3 * known.max()
            grids.add((image.shape, str(image.affine)))
        ((shape, _),) = grids
        assert shape == (46, 58, 48)


# -------------------------------------------------------------------------------- What is refused


@pytest.mark.parametrize(
    ("changed", "num", "processes"),
    [({}, 0, 1), ({}, 2, 0), ({}, 2, -1), ({"anatomy": "/nowhere"}, 2, 1)],
)
def test_a_wrong_request_is_an_input_error_and_leaves_nothing_behind(tmp_path, changed, num, processes):
    with pytest.raises(InputError):
        write_cohort(tmp_path / "cohort", parse_config(CohortConfig, SETTINGS | changed), num, processes=processes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"spacing_mm": 2.0}, {"contrasts": ("T1w",)}, {"maps": False}], ids=str
)
def test_a_cohort_is_not_continued_with_other_settings(cohort, changed):
    before = contents(cohort.root)
    (name,) = changed
    with pytest.raises(InputError, match=f"continues with the {name}"):
        write_cohort(cohort.root, parse_config(CohortConfig, SETTINGS | changed), 9, processes=1)
    assert contents(cohort.root) == before


def test_an_anatomy_is_the_folder_and_not_its_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cohort"
    folder.mkdir()
    save_config(CONFIG.model_copy(update={"anatomy": Path("maps")}), folder / "cohort.yaml")
    _check_folder(folder, CONFIG.model_copy(update={"anatomy": tmp_path / "maps"}))
    with pytest.raises(InputError, match="continues with the anatomy"):
        _check_folder(folder, CONFIG.model_copy(update={"anatomy": tmp_path / "others"}))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_cohort_is_left_alone(tmp_path, kind):
    place = tmp_path / "mine"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
    else:
        place.write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="new folder"):
        write_cohort(place, CONFIG, 1, processes=1)
    assert contents(tmp_path) == before


# -------------------------------------------------------------------------------- The command


def test_the_command_writes_a_cohort_and_says_where(tmp_path, capsys):
    out = tmp_path / "out"
    options = [
        "--subjects",
        "1",
        "--spacing",
        "4",
        "--contrasts",
        "T2w",
        "DWI",
        "--appearance",
        "random",
        "--processes",
        "1",
    ]
    assert main(["cohort", str(out), *options, "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert (
        str(out / "manifest.jsonl") in said
        and "1 patients, " in said
        and "{" not in said
        and "without a disease" in said
    )
    assert "wrote" in said.splitlines()[-1], "the last line says where"
    (row,) = read_manifest(out / "manifest.jsonl").rows
    assert {series.contrast for series in read_study(row, out).series} == {"unknown"}
    assert len({entry.path for entry in row.series}) == len(row.series)
    assert row.ehr is not None and row.study_uid is not None and row.study_uid in (out / row.ehr).read_text()


@pytest.mark.parametrize(
    "wrong", [["--spacing", "3"], ["--contrasts", "T1"], ["--processes", "0"], ["--subjects", "0"]]
)
def test_a_wrong_command_says_what_is_wrong_and_writes_nothing(tmp_path, capsys, wrong):
    assert main(["cohort", str(tmp_path / "out"), *wrong]) == 2
    assert capsys.readouterr().err.startswith("larmor: ")
    assert not list(tmp_path.iterdir())
