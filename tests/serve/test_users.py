"""Who may use the page: passwords, tokens, guesses and sessions."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from foundation.errors import InputError
from serve.__main__ import main
from serve.doors import Allowance, Belongings, Sessions
from serve.users import FIRST_WAIT_S, FREE_TRIES, LONGEST_WAIT_S, Guard, Users

PASSWORD = "correct horse"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_password_and_a_token_are_checked_and_kept_nowhere(tmp_path: Path):
    users = Users(tmp_path / "users.json")
    token = users.add("anna", PASSWORD)
    again = Users(users.path)
    assert again.check("anna", PASSWORD) and again.of_token(token) == "anna"
    assert not again.check("anna", PASSWORD + "x") and not again.check("bert", PASSWORD) and again.of_token("x") is None
    content = users.path.read_text()
    assert PASSWORD not in content and token not in content and users.path.stat().st_mode & 0o077 == 0
    users.remove("anna")
    assert not again.check("anna", PASSWORD) and again.of_token(token) is None and again.names() == []


@pytest.mark.parametrize(
    ("name", "password"), [("Anna", PASSWORD), ("../x", PASSWORD), ("", PASSWORD), ("anna", "short")]
)
def test_what_is_no_name_or_password_is_refused(tmp_path: Path, name: str, password: str):
    with pytest.raises(InputError):
        Users(tmp_path / "users.json").add(name, password)


def test_a_damaged_file_lets_nobody_in(tmp_path: Path):
    (tmp_path / "users.json").write_text('{"anna": {"salt": 3}}')
    with pytest.raises(InputError, match="whole"):
        Users(tmp_path / "users.json").check("anna", PASSWORD)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    file = str(tmp_path / "users.json")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    assert main(["users", "add", "anna", "--file", file]) == 0
    token = capsys.readouterr().out.split()[-1]
    assert Users(tmp_path / "users.json").of_token(token) == "anna"
    assert main(["users", "list", "--file", file]) == 0 and capsys.readouterr().out == "anna\n"
    assert main(["users", "remove", "bert", "--file", file]) == 2
    assert main(["users", "remove", "anna", "--file", file]) == 0 and json.loads(Path(file).read_text()) == {}


def test_guesses_cost_more_and_more_time():
    clock = Clock()
    guard = Guard(clock)
    for _ in range(FREE_TRIES - 1):
        assert guard.wrong("anna", "1.2.3.4") == 0
    waits = []
    for _ in range(10):
        waits.append(guard.wrong("anna", "1.2.3.4"))
        assert guard.wait_s("anna", "5.6.7.8") == guard.wait_s("bert", "1.2.3.4") == waits[-1]
        clock.now += waits[-1]
    assert waits[:3] == [FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S] and waits[-1] == LONGEST_WAIT_S
    assert guard.wait_s("bert", "5.6.7.8") == 0
    guard.right("anna", "1.2.3.4")
    assert guard.wrong("anna", "1.2.3.4") == 0


def test_sessions_end_by_themselves():
    clock = Clock()
    sessions = Sessions(idle_s=10.0, longest_s=25.0, clock=clock)
    one, two = sessions.begin("anna"), sessions.begin("bert")
    for clock.now in (9.0, 18.0, 24.0):
        assert sessions.user(one) == "anna"
    assert sessions.user(two) is None and sessions.user("x") is None and sessions.user(None) is None
    clock.now = 26.0
    assert sessions.user(one) is None
    three = sessions.begin("anna")
    sessions.end(three)
    assert sessions.user(three) is None


def test_files_and_pages_belong_to_somebody(tmp_path: Path):
    has = Belongings(tmp_path)
    file = tmp_path / "a.nii"
    file.touch()
    has.give("anna", str(file))
    assert has.has("anna", str(file)) and not has.has("bert", str(file))
    assert has.has("anna", str(tmp_path / "x" / ".." / "a.nii")) and has.is_ours(str(tmp_path / "x/../a.nii"))
    assert not has.is_ours("/etc/passwd") and has.is_ours(f"{tmp_path}/%61.nii")
    assert has.page_of("anna", "p") and has.page_of("anna", "p") and not has.page_of("bert", "p")
    file.unlink()
    has.forget_missing()
    assert not has.has("anna", str(file))


def test_bytes_are_allowed_by_the_hour():
    clock = Clock()
    allowance = Allowance(100, clock)
    assert allowance.take("anna", 60) and allowance.take("anna", 40) and not allowance.take("anna", 1)
    assert allowance.take("bert", 100)
    clock.now = 3601.0
    assert allowance.take("anna", 100)
