"""The three tasks on a handful of patients: rows and bounds for both families, from the files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import cohort_tasks
from finetune.compare import head_of
from finetune.samples import read_labelled
from foundation.reading.collection import read_manifest

FEW = {"usual": 7, "shifted": 3}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Two families at 4 mm, of two contrasts."""
    patch = pytest.MonkeyPatch()
    patch.setattr(cohort_tasks, "NUM_SUBJECTS", FEW)
    patch.setattr(cohort_tasks, "CONTRASTS", ("T1w", "FLAIR"))
    patch.setattr(cohort_tasks, "SPACING_MM", 4.0)
    yield cohort_tasks.write_families(tmp_path_factory.mktemp("families"))
    patch.undo()


def test_both_families_are_in_one_collection_and_only_one_is_learnt_from(manifest: Path) -> None:
    collection = read_manifest(manifest)
    families = [row.targets["family"] for row in collection.rows]
    assert {name: families.count(name) for name in FEW} == FEW
    assert len({row.subject for row in collection.rows}) == len(collection.rows)
    assert {row.targets["family"] for row in collection.split("train")} == {"usual"}
    assert {row.targets["family"] for row in collection.split("test")} == set(FEW)


@pytest.mark.parametrize("name", sorted(cohort_tasks.TASKS))
def test_a_task_is_measured_with_its_bound(name: str, manifest: Path, tmp_path: Path, monkeypatch) -> None:
    task = cohort_tasks.TASKS[name]
    cheap = tuple(one for one in task.rows if one in ("majority", "threshold"))
    monkeypatch.setitem(cohort_tasks.TASKS, name, cohort_tasks.Task(cheap, *list(vars(task).values())[1:]))
    text = cohort_tasks.measure(name, manifest, tmp_path / name, [0], [])
    header = next(line for line in text.splitlines() if line.startswith("| fitted how"))
    for figure in task.figures:
        for family in FEW:
            assert f" {figure}, {family} " in header
    assert "no evidence about people" in text and task.bound_words in text
    bounds = task.bound and task.bound(_config(name, manifest), read_manifest(manifest))
    if name == "lesion":  # a head against itself: better than a threshold can be, and not perfect
        assert 0.2 < bounds["usual"]["dice where there is lesion"].mean < 1
    if name == "diagnoses":
        assert bounds["usual"]["auroc"].mean > 0.5


def test_real_patients_are_tests_of_their_own_family(manifest: Path, tmp_path: Path, shared_data: Path) -> None:
    extended = cohort_tasks.with_plaques(manifest, shared_data / "ms_lesions_ljubljana")
    people = [row for row in read_manifest(extended).rows if row.targets["family"] == cohort_tasks.REAL]
    assert len(people) == 1 and people[0].split == "test"
    assert [one.contrast for one in people[0].series] == ["T1w", "FLAIR", "T2w", "T1w-contrast"]
    (reading,) = read_labelled(
        read_manifest(extended), people, head_of(_config("lesion", extended)), (4.0,) * 3, label="r"
    )
    assert 1_000 < (reading.labels > 0).sum() < 100_000  # cubic millimetres


def _config(name: str, manifest: Path):
    from finetune.config import FinetuneConfig
    from foundation.config import load_config

    return load_config(
        FinetuneConfig,
        cohort_tasks.CONFIGS / "finetune" / f"{name}.yaml",
        [f"data.manifest={manifest}", "encoder=null"],
    )
