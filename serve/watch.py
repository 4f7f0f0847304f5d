"""A folder that a PACS puts studies into: each is read once, when nothing has come of it for a while.

    larmor serve --data DIR --watch /srv/incoming --watch-user anna

Every folder, zip or file at the top of the watched folder is a study. What was read becomes a case of the user's and the study
leaves the watched folder, for `.taken` while it is read and then for good; what cannot be read is set aside in `.failed`, with
`why.txt` beside it, and is not tried again. Names of files are neither logged nor kept: the case has its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from foundation.errors import InputError
from foundation.reading.nifti import is_nifti_name
from serve.intake import Dropped
from serve.jobs import Job

TAKEN, FAILED = ".taken", ".failed"
LOOK_S = 5.0
Seen = tuple[int, int, float]  # files, bytes, latest change


class Watcher:
    """Takes studies out of a folder; `submit(dropped, folder)` puts one into the line, and deletes the folder when it is done."""

    def __init__(
        self,
        folder: Path,
        submit: Callable[[Dropped, Path], Job],
        *,
        quiet_s: float = 30.0,
        look_s: float = LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not folder.is_dir():
            raise InputError("the watched folder is there", got="no folder", remedy="Make it first.", file=folder)
        self.folder, self._submit, self.quiet_s, self.look_s, self._clock = folder, submit, quiet_s, look_s, clock
        self._seen: dict[str, tuple[Seen, float]] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        for place in (TAKEN, FAILED):
            (folder / place).mkdir(mode=0o700, exist_ok=True)
        for left in (folder / TAKEN).iterdir():  # what was being read when the server ended is read again
            for one in list(left.iterdir()):
                os.replace(one, folder / f"{left.name}-{one.name}")
            left.rmdir()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._look_on, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)

    def look(self) -> int:
        """Take what is ready; how many studies that were."""
        now, taken = self._clock(), 0
        there = {path.name: path for path in self.folder.iterdir() if not path.name.startswith(".")}
        self._seen = {name: one for name, one in self._seen.items() if name in there}
        for name, path in sorted(there.items()):
            state = _state(path)
            before = self._seen.get(name)
            if before is None or before[0] != state:
                self._seen[name] = state, now
            elif state[0] and now - before[1] >= self.quiet_s:
                taken += self._take(path)
        return taken

    def _take(self, path: Path) -> bool:
        """Put one study into the line; a full line is asked again later."""
        place = self.folder / TAKEN / secrets.token_hex(8)
        place.mkdir(mode=0o700)
        inside = place / path.name
        os.replace(path, inside)  # from here on nobody takes it twice
        copy = place.with_suffix(".copy")
        try:
            shutil.copytree(place, copy)  # the line deletes what it read, and a study that fails is kept
            study = copy / path.name
            is_images = study.is_dir() and any(is_nifti_name(one) for one in study.iterdir())
            files = tuple(sorted(study.iterdir())) if is_images else (study,)
            job = self._submit(Dropped(files=files), copy)
        except InputError as error:
            shutil.rmtree(copy, ignore_errors=True)
            if type(error).__name__ == "Busy":
                os.replace(inside, path)
                place.rmdir()
                return False
            self._set_aside(place, error)
            return False
        threading.Thread(target=self._follow, args=(job, place), daemon=True).start()
        return True

    def _follow(self, job: Job, place: Path) -> None:
        job.wait()
        if job.state == "failed" and job.error is not None:
            self._set_aside(place, job.error)
        elif job.state == "done":
            shutil.rmtree(place, ignore_errors=True)
        # A cancelled one stays in `.taken`: the server ended, and the next one reads it.

    def _set_aside(self, place: Path, error: InputError) -> None:
        target = self.folder / FAILED / place.name
        os.replace(place, target)
        (target / "why.txt").write_text(
            f"Needed: {error.rule}.\nFound: {error.got}.\n{error.remedy}\n", encoding="utf-8"
        )

    def _look_on(self) -> None:
        while not self._end.wait(self.look_s):
            try:
                self.look()
            except OSError:  # a share that is away for a while
                continue


def _state(path: Path) -> Seen:
    """What tells whether more is coming."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    try:
        stats = [one.stat() for one in files]
    except FileNotFoundError:  # it is being moved
        return (0, 0, 0.0)
    return (len(stats), sum(one.st_size for one in stats), max((one.st_mtime for one in stats), default=0.0))
