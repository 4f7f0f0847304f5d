"""The doors by themselves, before an application that answers everything: what no running server needs to be started for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.doors import GRADIO, Allowance, Belongings, Door, Sessions


class Asked:
    """A door with anna logged in, and what came through it."""

    def __init__(self, folder: Path, **options: Any):
        self.sessions, self.through = Sessions(), []
        self.token = self.sessions.begin("anna")
        given: dict[str, Any] = {"is_https": False, "root_path": "", "max_request": 100, "static": (), **options}
        self.door = Door(
            self.app,
            sessions=self.sessions,
            bearer=lambda token: "anna" if token == "t" else None,
            is_user=lambda name: name == "anna",
            belongings=Belongings(folder),
            allowance=Allowance(150),
            **given,
        )

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body = bytearray()
        while (message := await receive()).get("body") or message.get("more_body"):
            body += message["body"]
            if not message.get("more_body"):
                break
        self.through.append((scope["path"], scope["state"]["user"], bytes(body)))
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"server", b"x")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"<script>1</script><script src=x>", "more_body": False})

    def __call__(
        self, path: str, method: str = "GET", body: tuple[bytes, ...] = (b"",), **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        sent: list[Any] = []
        parts: Iterator[bytes] = iter(body)
        left = len(body)

        async def receive() -> Any:
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": next(parts), "more_body": left > 0}

        async def send(message: Any) -> None:
            sent.append(message)

        named = {"cookie": f"{self.door.cookie}={self.token}", "host": "h", **headers}
        scope = {"type": "http", "path": path, "method": method, "query_string": b"",
                 "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in named.items()]}  # fmt: skip
        asyncio.run(self.door(scope, receive, send))
        assert [one["type"] for one in sent] == ["http.response.start", "http.response.body"]
        return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, sent[1]["body"]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def test_only_the_page_gets_nonces_and_nobody_the_servers_name(asked: Asked):
    status, headers, body = asked("/")
    nonce = headers["content-security-policy"].partition("'nonce-")[2].partition("'")[0]
    assert (status, body) == (200, f'<script nonce="{nonce}">1</script><script nonce="{nonce}" src=x>'.encode())
    assert int(headers["content-length"]) == len(body) and "server" not in headers
    assert b"nonce" not in asked("/config")[2]


def test_what_grows_too_large_on_its_way_is_refused(asked: Asked):
    upload = f"{GRADIO}/upload"
    assert asked(upload, "POST", (b"x" * 60, b"x" * 30))[0] == 200
    assert asked(upload, "POST", (b"x" * 60, b"x" * 60))[0] == 413
    assert asked(upload, "POST", content_length="101")[0] == 413
    assert asked(upload, "POST", (b"x" * 60,))[0] == 429  # of 150 in an hour 90 and 60 came before
    assert [body for _, _, body in asked.through] == [b"x" * 90]


def test_a_path_before_the_page_and_tls_change_the_cookie_and_the_way_to_log_in(tmp_path: Path):
    asked = Asked(tmp_path, is_https=True, root_path="/larmor")
    assert asked.door.cookie == "__Host-larmor" and "strict-transport-security" in asked("/")[1]
    status, headers, _ = asked("/", cookie="x=y", accept="text/html")
    assert (status, headers["location"]) == (303, "/larmor/login")
    for cookie in ("", ";;;", "__Host-larmor=", f"larmor={asked.token}", "\x01=\x02"):
        assert asked("/config", cookie=cookie)[0] == 401


def test_events_may_not_reach_elsewhere(asked: Asked, tmp_path: Path):
    join = f"{GRADIO}/queue/join"
    (tmp_path / "mine").touch()
    asked.door.belongings.give("anna", str(tmp_path / "mine"))
    (tmp_path / "link").symlink_to(tmp_path / "other")

    def send(text: str) -> int:
        return asked(join, "POST", (text.encode(),), content_type="application/json")[0]

    assert send(f'{{"data": [{{"path": "{tmp_path}/mine"}}]}}') == 200
    for path in (
        f"{tmp_path}/other",
        f"{tmp_path}/link",
        f"{tmp_path}/./mine/../other",
        "http://x/y",
        "file:///etc/passwd",
    ):
        assert send(f'{{"data": [[{{"path": "{path}"}}]]}}') == 403, path
    assert send(f'{{"data": ["{tmp_path}/cases.sqlite"]}}') == 403
    assert send(f'{{"{tmp_path}/other": 1}}') == 403
    assert send("{") == send("[" * 100_000) == 400
    assert asked(join, "POST", (b"{}",), content_type="text/plain")[0] == 415
