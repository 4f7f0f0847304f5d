"""What a child process may do and what reaches the parent: answers and broken rules, never a crash, a hang or a header's text."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import InputError
from foundation.reading.sandbox import Limits, run_limited

HERE = "tests.foundation.reading.test_sandbox"


def answer(value: Any) -> Any:
    Path("wrote").write_text("here")
    print("QXPRINTED")
    return {"value": value, "cwd": os.getcwd(), "home": os.environ["HOME"], "secret": os.environ.get("LARMOR_SECRET")}


def break_a_rule() -> None:
    raise InputError("a rule", got=3, remedy="Mend it.")


def fail(how: str) -> None:
    if how == "raise":
        raise RuntimeError("QXNAME of a patient")
    if how == "exit":
        os._exit(3)
    if how == "abort":
        os.abort()
    if how == "memory":
        bytearray(2**40)
    if how == "deep":
        fail(how)
    if how == "fork and hang":
        os.fork()
        time.sleep(600)


def test_an_answer_comes_back_and_nothing_of_the_parents_environment_goes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("LARMOR_SECRET", "x")
    found = run_limited(f"{HERE}:answer", {"value": [1, "ä", None]}, folder=tmp_path)
    assert found == {"value": [1, "ä", None], "cwd": str(tmp_path), "home": str(tmp_path), "secret": None}
    assert (tmp_path / "wrote").read_text() == "here"
    said = capfd.readouterr()
    assert "QXPRINTED" not in said.out + said.err


def test_a_broken_rule_is_the_same_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run_limited(f"{HERE}:break_a_rule", {}, folder=tmp_path)
    assert str(caught.value) == "a rule (got 3). Mend it."


@pytest.mark.parametrize("how", ["raise", "exit", "abort", "memory", "deep"])
def test_every_failure_is_an_input_error_that_quotes_nothing(tmp_path: Path, how: str, capfd: Any) -> None:
    with pytest.raises(InputError, match="parsed within limits") as caught:
        run_limited(f"{HERE}:fail", {"how": how}, folder=tmp_path)
    said = capfd.readouterr()
    assert "QXNAME" not in str(caught.value) + said.out + said.err


def test_a_hang_ends_with_everything_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match="no end"):
        run_limited(f"{HERE}:fail", {"how": "fork and hang"}, folder=tmp_path, limits=Limits(seconds=5.0))
    assert time.monotonic() - started < 100, "it did not wait for the sleep"
