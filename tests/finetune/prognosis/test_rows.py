"""The rows on patients whose law is known: each finds what it may see and nothing else, and no outcome leaks into what is said
of its own patient."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.prognosis import fit as fitting
from finetune.prognosis.command import table
from finetune.prognosis.fit import Columns, parts_of
from finetune.prognosis.patients import Patients
from finetune.prognosis.rows import ROWS, Row, run_trial
from foundation.survival import FollowUp
from foundation.training import fold
from heads.prognosis import Config
from serve.__main__ import main

CONFIG = Config(horizons_days=(100.0, 200.0, 5000.0), num_bins=6)


def patients(num: int = 240, seed: int = 0) -> Patients:
    """Half of the log hazard is in the record's column 2, half in the image's column 0; age and sex say little."""
    rng = np.random.default_rng(seed)
    person = np.column_stack([rng.normal(60, 10, num), rng.integers(0, 2, num)]).astype(float)
    record, image = rng.normal(size=(num, 1)), rng.normal(size=(num, 3))
    score = 1.1 * record[:, 0] + 1.1 * image[:, 0]
    event, lost = rng.exponential(250 * np.exp(-score)), rng.uniform(50, 700, num)
    seen = FollowUp.of(np.minimum(event, lost), event <= lost)
    kinds = ("image",) * 3
    return Patients(tuple(map(str, range(num))), seen, person, image, kinds, columns=np.hstack([person, record]))


@pytest.fixture(autouse=True, scope="module")
def quicker():
    """Fewer parts and epochs: annotations are checked at every call here, and the patients' law is simple."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "PARTS", 3)
        patch.setattr(fitting, "EPOCHS", 12)
        yield


@pytest.fixture(scope="module")
def trial():
    wanted = [row for row in ROWS if not row.is_deep]
    deep = [row for row in ROWS if row.title in ("both, deep", "both, deep, read without the record")]
    return run_trial(patients(), CONFIG, rows=[*wanted, *deep], folds=2, seed=1)


def test_each_row_finds_what_it_may_see(trial) -> None:
    c = {row.title: row.figures["concordance"] for row in trial.rows}
    assert c["Kaplan-Meier only"].mean == 0.5
    assert c["both, linear"].low > max(c["record only, linear"].mean, c["image only, linear"].mean)
    assert c["both, deep"].mean > max(c["record only, linear"].mean, c["image only, linear"].mean)
    assert c["record only, linear"].low > c["age and sex"].mean
    assert abs(c["both, linear, records shuffled"].mean - c["image only, linear"].mean) < 0.03
    assert abs(c["both, deep, read without the record"].mean - c["image only, linear"].mean) < 0.06
    # One permutation of a few hundred patients is off by chance, which an interval over patients does not know.
    assert abs(c["both, linear, labels permuted"].mean - 0.5) < 0.12
    assert trial.differences["both, linear - record only, linear"].low > 0


def test_probabilities_are_right_and_better_than_kaplan_meier(trial) -> None:
    best = next(row for row in trial.rows if row.title == "both, linear")
    assert best.figures["Brier skill"].low > 0.1 and best.d_calibration_p > 0.01
    null = trial.rows[0]
    assert null.figures["Brier skill"].mean == 0 and null.figures["AUC at 100 d"].mean == 0.5
    assert "AUC at 5000 d" not in null.figures and trial.horizons_days == (100.0, 200.0)


def test_no_patient_is_predicted_from_its_own_outcome() -> None:
    """With the outcomes of one fold set to anything, what is said of that fold is the same to the last bit."""
    some = patients(60)
    rows = [Row("image, linear", "image"), Row("both, deep", "both", is_deep=True)]
    first = run_trial(some, CONFIG, rows=[ROWS[0], *rows], folds=2, seed=4)
    parts = parts_of(some.seen.is_observed, 2, np.random.default_rng(fold(4, 91, 0)))
    time = some.seen.time.copy()
    # Times are exchanged among patients of one fold and one kind, so that the folds and the horizon stay as they are.
    for observed in (True, False):
        here = np.flatnonzero((parts == 0) & (some.seen.is_observed == observed))
        time[here] = time[here[::-1]]
    changed = Patients(
        some.names, FollowUp.of(time, some.seen.is_observed), some.person, some.image, some.image_kinds, some.columns
    )
    again = run_trial(changed, CONFIG, rows=[ROWS[0], *rows], folds=2, seed=4)
    for row in rows:
        assert np.array_equal(first.said[row.title].survival[parts == 0], again.said[row.title].survival[parts == 0])
        assert not np.array_equal(first.said[row.title].survival, again.said[row.title].survival)


def test_columns_take_their_scale_from_training_rows_alone() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.normal(5, 2, 60), rng.lognormal(0, 1.5, 60), np.ones(60), rng.normal(size=60)])
    values[:20, 3] = np.nan
    scale = Columns.of(values)
    numbers = scale(values)
    assert (
        scale.kept.tolist() == [0, 1, 3]
        and scale.is_log.tolist() == [False, True, False]
        and scale.gaps.tolist() == [3]
    )
    assert scale.kinds(["a", "b", "c", "d"]) == ["a", "b", "d", "no d"]
    assert numbers.shape == (60, 4) and numbers[:, 0].mean() == pytest.approx(0, abs=1e-9)
    assert (numbers[:20, 2] == 0).all() and set(numbers[:, 3]) == {-0.5, 0.5}
    other = values.copy()
    other[0] = 1e9
    assert np.abs(scale(other)).max() <= 4 and np.array_equal(scale(other)[1:], numbers[1:])


def test_the_command_writes_table_figures_and_numbers(tmp_path: Path, capsys) -> None:
    some = patients(150, seed=3)
    assert some.columns is not None
    lines = ["id,days,dead,age,sex,lab,i0,i1,i2"]
    for row in range(150):
        sex = "male" if some.person[row, 1] else "female"
        numbers = [some.seen.time[row], int(some.seen.is_observed[row]), some.person[row, 0], sex, some.columns[row, 2]]
        lines.append(",".join(map(str, [row, *numbers, *some.image[row]])))
    (tmp_path / "table.csv").write_text("\n".join(lines))
    (tmp_path / "config.yaml").write_text(
        f"""
name: small
folder: {tmp_path / "out"}
head: {{kind: prognosis, horizons_days: [100, 200, 9000], num_bins: 6}}
table:
  {{files: [{tmp_path / "table.csv"}], id: id, time: days, observed: dead, age: age, sex: sex, record: [lab], image: ["i[0-9]"]}}
"""
    )
    rows = "both, linear;image only, linear"
    assert main(["prognosis", str(tmp_path / "config.yaml"), "--folds", "2", "--rows", rows]) == 0
    out = capsys.readouterr().out
    assert "| both, linear | 0." in out and "150 patients" in out
    content = json.loads((tmp_path / "out" / "prognosis.json").read_text())
    assert [row["title"] for row in content["rows"]] == ["Kaplan-Meier only", "image only, linear", "both, linear"]
    for picture in ("tertiles.png", "calibration.png", "individuals.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 5000
    assert main(["prognosis", str(tmp_path / "config.yaml"), "--rows", "both linear"]) == 2
    assert "row" in capsys.readouterr().err


def test_competing_risks_have_figures_of_their_own_and_kept_cells_are_not_fitted_again(
    tmp_path: Path, monkeypatch
) -> None:
    """The record moves the first cause and the image the second."""
    rng = np.random.default_rng(8)
    num = 300
    person = np.column_stack([rng.normal(60, 10, num), rng.integers(0, 2, num)]).astype(float)
    record, image = rng.normal(size=(num, 1)), rng.normal(size=(num, 2))
    event = rng.exponential(400 * np.exp(-1.3 * np.column_stack([record[:, 0], image[:, 0]])))
    lost = rng.uniform(50, 700, num)
    time, which = np.minimum(event.min(axis=1), lost), event.argmin(axis=1)
    seen = FollowUp.of(time, time < lost, cause=which)
    kinds, names = ("image",) * 2, tuple(map(str, range(num)))
    some = Patients(names, seen, person, image, kinds, columns=np.hstack([person, record]))
    config = CONFIG.model_copy(update={"causes": ("first", "second"), "horizons_days": (100.0, 200.0)})
    wanted = [
        ROWS[0],
        *(row for row in ROWS if row.title in ("record only, linear", "image only, linear", "both, deep")),
    ]
    trial = run_trial(some, config, rows=wanted, folds=2, seed=1, kept=tmp_path)
    figures = {row.title: row.figures for row in trial.rows}
    only = {title: [one[f"concordance of {cause}"] for cause in config.causes] for title, one in figures.items()}
    assert [one.mean for one in only["Kaplan-Meier only"]] == [0.5, 0.5]
    # Each says something of the other cause too: who has the one first never has the other.
    assert only["record only, linear"][0].low > 0.6 and only["image only, linear"][1].low > 0.6
    assert only["record only, linear"][0].mean > only["image only, linear"][0].mean + 0.05
    assert only["image only, linear"][1].mean > only["record only, linear"][1].mean + 0.05
    assert min(one.low for one in only["both, deep"]) > 0.6
    assert figures["record only, linear"]["Brier skill of first"].low > 0
    assert figures["Kaplan-Meier only"]["Brier skill of second"].mean == 0
    said = trial.said["both, deep"]
    assert said.incidence.sum(axis=0) + said.survival == pytest.approx(np.ones_like(said.survival))
    text = table(trial, "two")
    assert "| concordance of second |" in text and "| Aalen-Johansen only |" in text

    monkeypatch.setattr("finetune.prognosis.rows.fit", None)
    again = run_trial(some, config, rows=wanted, folds=2, seed=1, kept=tmp_path)
    assert table(again, "two") == text
    with pytest.raises(TypeError):  # another seed is another cut: those cells are not there, and fitting was taken away
        run_trial(some, config, rows=wanted, folds=2, seed=2, kept=tmp_path)
