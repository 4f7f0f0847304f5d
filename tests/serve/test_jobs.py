"""The line: nothing is lost or mixed, turns go round, and what is unwanted stops."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from foundation.errors import InputError
from serve.jobs import Busy, Job, Jobs, Tell


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs(max_waiting=6, max_per_user=4)
    yield jobs
    jobs.close()
    assert not jobs._worker.is_alive()


class Gate:
    """Work that tells when it began and goes on when it is let."""

    def __init__(self) -> None:
        self.began, self.may_go = threading.Event(), threading.Event()

    def __call__(self, tell: Tell) -> str:
        self.began.set()
        while not self.may_go.wait(0.01):
            tell(0.5, "Half")
        tell(0.9, "Nearly")
        return "case"


def test_turns_go_round_the_users(jobs: Jobs):
    gate, order = Gate(), []
    first = jobs.submit("anna", gate)
    assert gate.began.wait(5.0)

    def submit(name: str) -> Job:
        return jobs.submit(name.rstrip("0123456789"), lambda tell: order.append(name) or name)

    waiting = [submit(name) for name in ("anna1", "anna2", "anna3", "bert1", "bert2")]
    assert [one.ahead for one in waiting] == [2, 4, 5, 1, 3] and first.ahead == 0
    gate.may_go.set()
    assert all(one.wait(5.0) for one in [first, *waiting])
    assert order == ["bert1", "anna1", "bert2", "anna2", "anna3"]
    assert [one.case_id for one in waiting] == ["anna1", "anna2", "anna3", "bert1", "bert2"]
    assert jobs.find("anna", waiting[0].id) is waiting[0]
    with pytest.raises(InputError, match="no such job"):
        jobs.find("bert", waiting[0].id)


def test_too_many_are_told_to_wait(jobs: Jobs):
    gate = Gate()
    jobs.submit("anna", gate)
    assert gate.began.wait(5.0)
    for _ in range(4):
        jobs.submit("anna", gate)
    with pytest.raises(Busy):
        jobs.submit("anna", gate)
    for _ in range(2):
        jobs.submit("bert", gate)
    with pytest.raises(Busy):
        jobs.submit("carl", gate)
    gate.may_go.set()


def test_a_growing_report_is_seen_while_it_is_written_and_forgotten_at_the_end(jobs: Jobs):
    told, may_end = threading.Event(), threading.Event()

    def work(tell: Tell) -> str:
        tell(0.6, "Writing", "a mass")
        told.set()
        assert may_end.wait(5.0)
        return "case"

    job = jobs.submit("anna", work)
    assert told.wait(5.0) and (job.step, job.draft) == ("Writing", "a mass")
    may_end.set()
    assert job.wait(5.0) and job.draft == ""


def test_what_is_unwanted_stops(jobs: Jobs):
    gate = Gate()
    running, waiting = jobs.submit("anna", gate), jobs.submit("anna", gate)
    assert gate.began.wait(5.0)
    waiting.cancel()
    assert waiting.state == "cancelled" and running.state == "running"
    running.cancel()
    assert running.wait(5.0) and running.state == "cancelled" and running.case_id is None


def test_what_fails_is_told_and_the_next_goes_on(jobs: Jobs, caplog: pytest.LogCaptureFixture):
    def bad(tell: Tell) -> str:
        raise InputError("a rule", got="this", remedy="That.")

    def worse(tell: Tell) -> str:
        raise RuntimeError("Doe^Jane")

    told: list[tuple[str, str, str, str]] = []
    jobs.on_end = lambda job, state: told.append((job.user, state, job.kind, job.where))
    with caplog.at_level(logging.ERROR):
        ended = [jobs.submit("anna", work) for work in (bad, worse, lambda tell: "case")]
        assert all(one.wait(5.0) for one in ended)
    assert [one.state for one in ended] == ["failed", "failed", "done"]
    assert "a rule" in str(ended[0].error) and "Jane" not in str(ended[1].error)
    assert "RuntimeError in" in caplog.text and "Jane" not in caplog.text
    here = __name__
    assert told == [("anna", "failed", "input", f"{here}.bad"), ("anna", "failed", "RuntimeError", f"{here}.worse"),
                    ("anna", "done", "", "")]  # fmt: skip


def test_who_waits_is_told_even_when_the_end_cannot_be_noted(jobs: Jobs):
    def full(job: Job, state: str) -> None:
        raise OSError("no space left")

    jobs.on_end = full
    assert all(one.wait(5.0) and one.state == "done" for one in [jobs.submit("anna", lambda tell: "x") for _ in "ab"])
