"""The server from a program: send a study, wait, take the outputs away.

    client = Client("https://reading.example.org", token)          the token that larmor users add printed
    study = client.read([Path("t1.nii.gz")], record=Path("bundle.json"))
    client.download(study, Path("out.zip"))
    client.delete(study)

It needs httpx, which comes with the page, and nothing else of Larmor.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from foundation.errors import InputError
from foundation.files import write_aside

POLL_S = 0.5
KEPT_OPEN_S = 2.0  # uvicorn closes a line that was idle for 5 s: a request that it crosses would be lost


class Client:
    """One user's way in; `verify` is httpx's, for a certificate of your own.

    A full line is waited for; whatever else the server complains of is an `InputError`.
    """

    def __init__(self, address: str, token: str, *, timeout_s: float = 600.0, verify: bool | ssl.SSLContext = True):
        self._http = httpx.Client(
            base_url=address.rstrip("/"),
            headers={"authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout_s),
            verify=verify,
            limits=httpx.Limits(keepalive_expiry=KEPT_OPEN_S),
            trust_env=False,  # no proxy that somebody set for the web
        )
        self.timeout_s = timeout_s

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(self, files: Sequence[Path], *, record: Path | None = None, **said: str) -> str:
        """Send a study; the job's id. `said` may hold subject, contrast, at, visit and series, as for `larmor read`."""
        end = time.monotonic() + self.timeout_s
        while True:
            with ExitStack() as stack:
                sent: list[tuple[str, Any]] = [
                    ("files", (file.name, stack.enter_context(file.open("rb")))) for file in files
                ]
                if record is not None:
                    sent.append(("record", (record.name, stack.enter_context(record.open("rb")))))
                response = self._http.post("/api/studies", data=said, files=sent)
            if response.status_code != 429 or time.monotonic() > end:
                return _checked(response).json()["job"]
            time.sleep(POLL_S)

    def state(self, job: str) -> dict[str, Any]:
        """How far a job is: state, share, step, ahead, study, error."""
        return self._get(f"/api/jobs/{job}")

    def cancel(self, job: str) -> None:
        _checked(self._http.delete(f"/api/jobs/{job}"))

    def wait(self, job: str, tell: Callable[[dict[str, Any]], None] | None = None) -> str:
        """The study's id, when it has been read."""
        end = time.monotonic() + self.timeout_s
        while (state := self.state(job))["state"] in ("waiting", "running"):
            if tell is not None:
                tell(state)
            if time.monotonic() > end:
                got = f"{state['state']} after {self.timeout_s:.0f} s"
                raise InputError("a study is read in time", got=got, remedy="Ask for the job again, or cancel it.")
            time.sleep(POLL_S)
        if state["state"] != "done":
            error = state["error"] or {"rule": "a study is read", "got": state["state"], "remedy": "Send it again."}
            raise InputError(error["rule"], got=error["got"], remedy=error["remedy"])
        return state["study"]

    def read(self, files: Sequence[Path], *, record: Path | None = None, **said: str) -> str:
        return self.wait(self.submit(files, record=record, **said))

    def worklist(self) -> list[dict[str, Any]]:
        return self._get("/api/studies")

    def reading(self, study: str) -> dict[str, Any]:
        """reading.json of a study, without what was rejected."""
        return self._get(f"/api/studies/{study}")

    def download(self, study: str, to: Path) -> None:
        """Everything that a reading writes, as the study stands now, as a zip."""
        with self._http.stream("GET", f"/api/studies/{study}/outputs.zip") as response, write_aside(to) as aside:
            if response.status_code != 200:
                response.read()
            _checked(response)
            with aside.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)

    def _get(self, path: str) -> Any:
        """Asked again where the server had just closed the line: asking changes nothing."""
        for last in (False, False, True):
            try:
                return _checked(self._http.get(path)).json()
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectError):
                if last:
                    raise
                time.sleep(POLL_S)
        raise AssertionError("the last answer was returned or raised")

    def delete(self, study: str) -> None:
        _checked(self._http.delete(f"/api/studies/{study}"))


def _checked(response: httpx.Response) -> httpx.Response:
    """The response, or the server's complaint as it was raised there."""
    if response.is_success:
        return response
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = response.text[:200]
    if isinstance(error, dict):
        raise InputError(error["rule"], got=error["got"], remedy=error["remedy"])
    remedy = {401: "Check the token.", 413: "Send less.", 429: "Send it later."}.get(response.status_code, "Check it.")
    raise InputError("the server takes the request", got=f"{response.status_code}: {error}", remedy=remedy)
