"""What an evaluation writes down."""

import json
from pathlib import Path

from finetune.evaluate import Evaluation, Interval, save_evaluation


def test_a_figure_of_all_cases_together_is_saved_beside_those_of_each(tmp_path: Path) -> None:
    figures = {"dice": Interval(0.5, 0.4, 0.6), "dice where there is plaque": Interval(0.3, 0.2, 0.4)}
    written = save_evaluation(Evaluation({"one": {"dice": 0.4}, "two": {"dice": 0.6}}, figures), tmp_path, about={})
    assert sorted(path.name for path in written) == ["dice.png", "metrics.json"]
    assert json.loads((tmp_path / "metrics.json").read_text())["figures"]["dice where there is plaque"]["mean"] == 0.3
