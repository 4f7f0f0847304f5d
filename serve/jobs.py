"""One worker for whoever wants a study read: the page, the REST route and the watched folder wait in the same line.

    job = jobs.submit("anna", work)         work(tell) does it and returns the case's id; tell(0.3, "Looking at the images")
    job.wait(1.0)                           then: job.state, job.share, job.step, job.ahead, job.case_id, job.error

Models take every core there is, so two at a time would only be slower. Turns go round the users, so that nobody waits behind
another one's hundred studies, and who has too many waiting is told to wait.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

from foundation.errors import InputError, place_of

JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
MAX_WAITING = 64
MAX_PER_USER = 8
KEPT_S = 3600.0  # that a job's end can be asked for


@runtime_checkable
class Tell(Protocol):
    """Hears the share that is done, what comes now, and the report as far as it is written."""

    def __call__(self, share: float, step: str, draft: str = "", /) -> None: ...


Work = Callable[[Tell], str]


class Cancelled(Exception):
    """Nobody wants the result any more."""


class Busy(InputError):
    """Too many are waiting."""


class Job:
    """One study in the line, or done. `error` says in the user's words why it failed, and of a fault of ours only its kind."""

    def __init__(self, jobs: Jobs, user: str, work: Work, after: Callable[[], None]):
        self.id = secrets.token_hex(16)
        self.user, self.state, self.share, self.step, self.draft = user, "waiting", 0.0, "Waiting", ""
        self.state: JobState
        self.case_id: str | None = None
        self.error: InputError | None = None
        self.kind, self.where = "", ""  # of a failure: 'input' or a fault's type, and the function that it arose in
        self.ended = 0.0
        self._jobs, self._work, self._after = jobs, work, after
        self._is_unwanted = False
        self._end = threading.Event()

    @property
    def ahead(self) -> int:
        """How many studies come before this one."""
        return self._jobs.ahead(self)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, within this time."""
        return self._end.wait(timeout_s)

    def cancel(self) -> None:
        """A job that waits ends at once, one that runs when it next tells how far it is."""
        self._jobs.cancel(self)

    def _tell(self, share: float, step: str, draft: str = "", /) -> None:
        if self._is_unwanted:
            raise Cancelled
        self.share, self.step, self.draft = share, step, draft

    def _run(self) -> None:
        try:
            self.case_id = self._work(self._tell)
            self._finish("done")
        except Cancelled:
            self._finish("cancelled")
        except InputError as error:
            self.error, self.kind, self.where = error, "input", place_of(error)
            self._finish("failed")
        except Exception as error:  # whatever it was, others wait; its message may name a patient
            remedy = "This is a fault of ours or of the machine; the administrator's log says where."
            self.error = InputError("a study can be read", got=type(error).__name__, remedy=remedy)
            self.kind, self.where = type(error).__name__, place_of(error)
            self._finish("failed")
            _log_fault(error)

    def _finish(self, state: JobState) -> None:
        self._work, self.draft = _gone, ""  # both may hold something of a study
        self._after()
        self.ended = time.monotonic()
        try:
            self._jobs.on_end(self, state)
        except Exception as error:  # a full disk: whoever waits for this job is told all the same
            _log_fault(error)
        self.state = state
        self._end.set()


class Jobs:
    """The line and its worker, which is a thread of this process."""

    def __init__(self, max_waiting: int = MAX_WAITING, max_per_user: int = MAX_PER_USER):
        self.max_waiting, self.max_per_user = max_waiting, max_per_user
        self.on_end: Callable[[Job, JobState], None] = _unnoted  # told how every job ends, before who waits for it is
        self._jobs: dict[str, Job] = {}
        self._line: list[Job] = []
        self._served: dict[str, int] = {}
        self._turn = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._worker = threading.Thread(target=self._work, name="reader", daemon=True)
        self._worker.start()

    def submit(self, user: str, work: Work, after: Callable[[], None] | None = None) -> Job:
        """Put work into the line; `after` is called when it has ended, in whatever way, and may not fail."""
        with self._changed:
            own = sum(one.user == user for one in self._line)
            if own >= self.max_per_user or len(self._line) >= self.max_waiting:
                got = f"{own} of yours, {len(self._line)} in all"
                raise Busy(
                    f"at most {self.max_per_user} of a user's studies wait, and {self.max_waiting} in all",
                    got=got,
                    remedy="Wait until some are done.",
                )
            old = time.monotonic() - KEPT_S
            self._jobs = {id: one for id, one in self._jobs.items() if not one.ended or one.ended > old}
            job = Job(self, user, work, after or _nothing)
            self._jobs[job.id] = job
            self._line.append(job)
            self._changed.notify()
        return job

    def find(self, user: str, job_id: str) -> Job:
        """The user's own job; another's does not exist."""
        job = self._jobs.get(job_id)
        if job is None or job.user != user:
            remedy = "Its end is known for an hour; the case, if there is one, is in your worklist."
            raise InputError("the job is there and yours", got="no such job", remedy=remedy)
        return job

    def ahead(self, job: Job) -> int:
        with self._changed:
            order = self._order()
            running = any(one.state == "running" for one in self._jobs.values())
            return order.index(job) + running if job in order else 0

    def cancel(self, job: Job) -> None:
        with self._changed:
            job._is_unwanted = True
            if job in self._line:
                self._line.remove(job)
                job._finish("cancelled")

    def close(self) -> None:
        """End the worker; who still waits is cancelled."""
        with self._changed:
            self._is_closed = True
            for job in self._line:
                job._finish("cancelled")
            self._line.clear()
            for job in self._jobs.values():
                job._is_unwanted = True
            self._changed.notify()
        self._worker.join(30)

    def _order(self) -> list[Job]:
        """Everybody's first, by who was served longest ago, then everybody's second, and so on."""
        rank: dict[str, int] = {}
        ranks = []
        for job in self._line:
            rank[job.user] = rank.get(job.user, -1) + 1
            ranks.append((rank[job.user], self._served.get(job.user, 0)))
        return [job for _, job in sorted(zip(ranks, self._line, strict=True), key=lambda one: one[0])]

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._line and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                job = self._order()[0]
                self._line.remove(job)
                self._turn += 1
                self._served[job.user] = self._turn
                job.state = "running"
            job._run()


def _gone(tell: Tell) -> str:
    raise AssertionError("a job runs once")


def _nothing() -> None:
    pass


def _unnoted(job: Job, state: JobState) -> None:
    pass


def _log_fault(error: BaseException) -> None:
    """Where a fault of ours happened. Its message is not shown: it may quote a file, and files name patients."""
    import logging
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    logging.getLogger("larmor").error("%s in %s, line %s", type(error).__name__, frame.filename, frame.lineno)
