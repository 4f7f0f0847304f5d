"""The ledger: what was measured is not measured again, unless it was measured of something else."""

from pathlib import Path

import pytest

from finetune.trust.ledger import Figures, Ledger


def never() -> Figures:
    raise AssertionError("this was measured before")


def test_a_stopped_evaluation_continues(tmp_path: Path) -> None:
    path, settings = tmp_path / "trust" / "part.jsonl", {"weights": "abc", "temperatures": (1.5,), "seed": 0}
    first = Ledger(path, settings)
    assert first.get("a", lambda: {"dice": 0.5, "none": None}) == {"dice": 0.5, "none": None}
    first.get("b", lambda: {"dice": 0.25})
    with path.open("a") as file:
        file.write('{"key": "c", "fig')  # killed while it wrote
    again = Ledger(path, settings)
    assert again.get("a", never) == {"dice": 0.5, "none": None} and again.get("b", never) == {"dice": 0.25}
    assert again.get("c", lambda: {"dice": 1.0}) == {"dice": 1.0}
    assert Ledger(path, settings).get("c", never) == {"dice": 1.0}


def test_other_weights_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    Ledger(path, {"weights": "abc"}).get("a", lambda: {"dice": 0.5})
    with pytest.raises(AssertionError, match="before"):
        Ledger(path, {"weights": "def"}).get("a", never)
    for content in ("not a ledger\n", ""):
        path.write_text(content)
        assert Ledger(path, {"weights": "abc"}).get("a", lambda: {"dice": 0.75}) == {"dice": 0.75}
