"""The client asks again where the server had just closed the line, and never sends a study twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve.client import Client


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("serve.client.POLL_S", 0.0)
    return []


def client_of(answers: Iterator[httpx.Response | Exception], asked: list[str]) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        one = next(answers)
        if isinstance(one, Exception):
            raise one
        return one

    client = Client("http://here", "token")
    client._http = httpx.Client(base_url="http://here", transport=httpx.MockTransport(answer))
    return client


def test_a_closed_line_costs_no_answer(asked: list[str]) -> None:
    closed = httpx.RemoteProtocolError("Server disconnected without sending a response.")
    with client_of(iter([closed, closed, httpx.Response(200, json={"state": "done"})]), asked) as client:
        assert client.state("j") == {"state": "done"}
    assert asked == ["GET /api/jobs/j"] * 3
    with client_of(iter([closed] * 3), asked) as client, pytest.raises(httpx.RemoteProtocolError):
        client.worklist()


def test_a_study_is_sent_once(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"x")
    closed = httpx.RemoteProtocolError("Server disconnected without sending a response.")
    with client_of(iter([closed]), asked) as client, pytest.raises(httpx.RemoteProtocolError):
        client.submit([tmp_path / "a.nii"])
    assert asked == ["POST /api/studies"], "whether it arrived cannot be known"
