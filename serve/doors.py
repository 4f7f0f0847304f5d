"""What stands before every request: who asks, whether he may, how much, and what the answer may do in a browser.

Gradio lets whoever is logged in fetch every file of its cache, and name any of them in what he sends (measured: B read A's upload
with 200). So here a user has the files that he uploaded or that the server told him of, and no others; a page's session belongs to
whom it answered first; and of Gradio's routes only those are open that the page needs.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GRADIO = "/gradio_api"
FORMS = ("/login", "/logout")
OPEN = ("/login", "/enter")  # what nobody needs to be logged in for
PAGE = re.compile(
    r"/|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.*|"
    rf"{GRADIO}/(upload|upload_progress|queue/join|queue/data|cancel|reset/?|startup-events|component_server/?|app_id/?|theme\.css|"
    r"heartbeat/[A-Za-z0-9]+|file=.*)"
)
OURS = re.compile(r"/(login|logout|enter)|/(cases|api)/.*")
BODY_BYTES = 4 * 2**20  # of what is no upload; a drawn mask comes as one
UPLOADS = (f"{GRADIO}/upload", "/api/studies")
WINDOW_S = 3600.0
MOST_SESSIONS = 10_000

SCRIPTS = "script-src 'self' 'nonce-{nonce}' 'unsafe-eval' blob:"  # gradio makes functions of the page's templates
POLICY = "; ".join(
    [
        "default-src 'self'",
        SCRIPTS,
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' blob:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-src 'none'",
        "frame-ancestors 'none'",
    ]
)
STRICT = "; ".join(
    [
        "default-src 'none'",
        "img-src 'self' data:",
        "style-src 'unsafe-inline'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), usb=(), payment=()",
    "x-robots-tag": "noindex, nofollow",
}


class Refused(Exception):
    """An answer in place of the one that was asked for."""

    def __init__(self, status: int, words: str, headers: dict[str, str] | None = None):
        super().__init__(words)
        self.status, self.words, self.headers = status, words, headers or {}


@dataclass
class _Session:
    user: str
    began: float
    seen: float


class Sessions:
    """Who is logged in. Known only to this process: after a restart everybody logs in again."""

    def __init__(
        self, idle_s: float = 3600.0, longest_s: float = 10 * 3600.0, clock: Callable[[], float] = time.monotonic
    ):
        self.idle_s, self.longest_s, self._clock = idle_s, longest_s, clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, user: str) -> str:
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[token] = _Session(user, self._clock(), self._clock())
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return token

    def user(self, token: str | None) -> str | None:
        with self._lock:
            session = self._sessions.get(token or "")
            now = self._clock()
            if session is None:
                return None
            if now - session.seen > self.idle_s or now - session.began > self.longest_s:
                del self._sessions[token or ""]
                return None
            session.seen = now
            return session.user

    def end(self, token: str | None) -> None:
        with self._lock:
            self._sessions.pop(token or "", None)


@dataclass
class Belongings:
    """Which user has which file, and which session of the page; forgotten with the files."""

    folder: Path
    _files: dict[str, set[str]] = field(default_factory=dict)
    _pages: OrderedDict[str, str] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def give(self, user: str, path: str) -> None:
        with self._lock:
            self._files.setdefault(_real(path), set()).add(user)

    def has(self, user: str, path: str) -> bool:
        with self._lock:
            return user in self._files.get(_real(path), ())

    def is_ours(self, path: str) -> bool:
        """Whether it lies in the server's own folder."""
        return Path(_real(path)).is_relative_to(self.folder)

    def page_of(self, user: str, session: str) -> bool:
        """Whether this session of the page is the user's; one that nobody has becomes his."""
        with self._lock:
            owner = self._pages.setdefault(session, user)
            while len(self._pages) > MOST_SESSIONS:
                self._pages.popitem(last=False)
            return owner == user

    def forget_missing(self) -> None:
        with self._lock:
            self._files = {path: users for path, users in self._files.items() if os.path.exists(path)}


class Allowance:
    """How many bytes a user may send within an hour."""

    def __init__(self, most_bytes: int, clock: Callable[[], float] = time.monotonic):
        self.most_bytes, self._clock = most_bytes, clock
        self._sent: dict[str, list[tuple[float, int]]] = {}
        self._lock = threading.Lock()

    def take(self, user: str, number: int) -> bool:
        with self._lock:
            now = self._clock()
            own = [(at, one) for at, one in self._sent.get(user, []) if now - at < WINDOW_S]
            if sum(one for _, one in own) + number > self.most_bytes:
                self._sent[user] = own
                return False
            if own and now - own[-1][0] < 10:  # one entry for what comes within seconds
                own[-1] = (own[-1][0], own[-1][1] + number)
            else:
                own.append((now, number))
            self._sent[user] = own
            return True


@dataclass
class _Flow:
    """One request on its way: whether its answer has begun, and whether it has come to be refused."""

    refusal: Refused | None = None
    is_started: bool = False


class Door:
    """The ASGI application in front of all others."""

    def __init__(
        self,
        app: App,
        *,
        sessions: Sessions,
        bearer: Callable[[str], str | None],
        is_user: Callable[[str], bool],
        belongings: Belongings,
        allowance: Allowance,
        max_request: int,
        static: tuple[Path, ...],
        is_https: bool,
        root_path: str = "",
    ):
        self.app, self.sessions, self.bearer, self.is_user = app, sessions, bearer, is_user
        self.belongings, self.allowance, self.max_request = belongings, allowance, max_request
        self.static, self.is_https, self.root_path = static, is_https, root_path
        self.cookie = "__Host-larmor" if is_https else "larmor"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._http(scope, receive, send)
            except Refused as refusal:
                await self._refuse(scope, send, refusal)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if not (PAGE.fullmatch(path) or OURS.fullmatch(path)):
            raise Refused(404, "Not found.")
        headers = _headers(scope)
        user = self._user(path, headers)
        if user is None and path not in OPEN:
            if method == "GET" and path in ("/", "/logout") and "text/html" in headers.get("accept", ""):
                raise Refused(303, "Log in.", {"location": f"{self.root_path}/login"})
            raise Refused(401, "Not logged in.")
        if method not in ("GET", "HEAD", "OPTIONS") and not path.startswith("/api/"):
            _check_origin(scope, headers)
        scope.setdefault("state", {})["user"] = user
        is_upload = path in UPLOADS and method == "POST"
        most = self.max_request if is_upload else BODY_BYTES
        if int(headers.get("content-length") or 0) > most:
            raise Refused(413, f"A request has at most {most >> 20} MiB.")
        if path.startswith(GRADIO) and user is not None:
            self._check_page(user, path, scope)
            if path in (f"{GRADIO}/queue/join", f"{GRADIO}/cancel") or path.rstrip("/") in (
                f"{GRADIO}/reset", f"{GRADIO}/component_server"):  # fmt: skip
                body = await _body(receive, most)
                self._check_body(user, body, headers)
                receive = _replayed(body, receive)
        if path == "/" or path.startswith(GRADIO):  # what we have to read or change comes as it is
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        flow = _Flow()
        try:
            counted = self._counted(receive, most, user if is_upload else None, flow)
            await self.app(scope, counted, self._dressed(scope, send, user, flow))
        except Exception:
            if flow.refusal is None:
                raise
        if flow.refusal is not None:
            if flow.is_started:
                raise flow.refusal  # too late for words: the connection breaks
            await self._refuse(scope, send, flow.refusal)

    def _user(self, path: str, headers: dict[str, str]) -> str | None:
        if path.startswith("/api/"):  # never by cookie: nothing that a browser sends by itself
            kind, _, token = headers.get("authorization", "").partition(" ")
            return self.bearer(token.strip()) if kind.lower() == "bearer" and token else None
        user = self.sessions.user(self.session_of(headers.get("cookie", "")))
        return user if user is not None and self.is_user(user) else None

    def session_of(self, cookie: str) -> str | None:
        try:
            morsel = SimpleCookie(cookie).get(self.cookie)
        except CookieError:
            return None
        return None if morsel is None else morsel.value

    # -------------------------------------------------------------------------------------------- gradio's routes

    def _check_page(self, user: str, path: str, scope: Scope) -> None:
        if path.startswith(f"{GRADIO}/file="):
            wanted = path.removeprefix(f"{GRADIO}/file=")
            real = Path(_real(wanted))
            if any(real.is_relative_to(one) for one in self.static) or self.belongings.has(user, wanted):
                return
            raise Refused(403, "Not yours.")
        query = parse_qs(scope.get("query_string", b"").decode("latin1"))
        sessions = [*query.get("session_hash", []), *re.findall(rf"{GRADIO}/heartbeat/(\w+)", path)]
        if not all(self.belongings.page_of(user, one) for one in sessions):
            raise Refused(403, "Not yours.")

    def _check_body(self, user: str, body: bytes, headers: dict[str, str]) -> None:
        """Whose session and whose files an event speaks of."""
        if "json" not in headers.get("content-type", ""):
            raise Refused(415, "Events are JSON.")
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "Events are JSON.") from None
        session = event.get("session_hash") if isinstance(event, dict) else None
        if isinstance(session, str) and not self.belongings.page_of(user, session):
            raise Refused(403, "Not yours.")
        for key, text in _strings(event):
            if key in ("path", "url") and re.match(r"\w+:|//", text) and not text.startswith("data:"):
                if key == "path":
                    raise Refused(403, "No files from elsewhere.")
                continue
            if len(text) < 4096 and ("/" in text or key == "path"):
                named = text.partition(f"{GRADIO}/file=")[2] or text
                if self.belongings.is_ours(named) and not self.belongings.has(user, named):
                    raise Refused(403, "Not yours.")

    # -------------------------------------------------------------------------------------------- both ways

    def _counted(self, receive: Receive, most: int, uploader: str | None, flow: _Flow) -> Receive:
        """The body, until it is larger than it may be; whatever the application then answers, the refusal is what is sent."""
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                total += size
                if total > most:
                    flow.refusal = Refused(413, f"A request has at most {most >> 20} MiB.")
                elif uploader is not None and not self.allowance.take(uploader, size):
                    words = f"A user sends at most {self.allowance.most_bytes >> 20} MiB within an hour."
                    flow.refusal = Refused(429, words, {"retry-after": "600"})
                if flow.refusal is not None:
                    raise flow.refusal
            return message

        return counted

    def _dressed(self, scope: Scope, send: Send, user: str | None, flow: _Flow) -> Send:
        """Headers on every answer, the nonce on the page's scripts, and note of which files a user is told of."""
        path = scope["path"]
        nonce = secrets.token_urlsafe(16)
        is_page, tells = path == "/", path == f"{GRADIO}/queue/data"
        start: Message | None = None
        content = bytearray()

        async def dressed(message: Message) -> None:
            nonlocal start
            if flow.refusal is not None and not flow.is_started:
                return
            if message["type"] == "http.response.start":
                flow.is_started = True
                message["headers"] = self._with_headers(path, message["headers"], nonce)
                if is_page and any(n == b"content-type" and v.startswith(b"text/html") for n, v in message["headers"]):
                    start = message
                    return
            elif message["type"] == "http.response.body":
                if start is not None:
                    content.extend(message.get("body", b""))
                    if message.get("more_body"):
                        return
                    body = re.sub(rb"<script(?=[\s>])", f'<script nonce="{nonce}"'.encode(), bytes(content))
                    start["headers"] = [(n, v) for n, v in start["headers"] if n != b"content-length"]
                    start["headers"].append((b"content-length", str(len(body)).encode()))
                    await send(start)
                    start = None
                    message = {"type": "http.response.body", "body": body}
                elif tells and user is not None:
                    content.extend(message.get("body", b""))
                    while b"\n\n" in content:
                        line, _, rest = bytes(content).partition(b"\n\n")
                        self._note(user, line)
                        content[:] = rest
            await send(message)

        return dressed

    def _note(self, user: str, line: bytes) -> None:
        try:
            told = json.loads(line.removeprefix(b"data:"))
        except (ValueError, RecursionError):
            return
        for key, text in _strings(told):
            if key == "path" and self.belongings.is_ours(text):
                self.belongings.give(user, text)

    def _with_headers(self, path: str, headers: Any, nonce: str) -> list[tuple[bytes, bytes]]:
        ours = dict(HEADERS)
        is_gradio = PAGE.fullmatch(path) is not None
        ours["content-security-policy"] = POLICY.format(nonce=nonce) if is_gradio else STRICT
        if path in FORMS:  # else browsers hide where a form came from even from us
            ours["referrer-policy"] = "same-origin"
        if self.is_https:
            ours["strict-transport-security"] = "max-age=31536000"
        if not path.startswith(("/assets/", "/static/")):
            ours["cache-control"] = "no-store"
        dropped = {*ours, "server", "x-powered-by", "access-control-allow-origin", "access-control-allow-credentials"}
        kept = [(name, value) for name, value in headers if name.decode("latin1").lower() not in dropped]
        return [*kept, *((name.encode(), value.encode()) for name, value in ours.items())]

    async def _refuse(self, scope: Scope, send: Send, refusal: Refused) -> None:
        body = json.dumps({"error": refusal.words}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        if refusal.status == 413:
            headers.append((b"connection", b"close"))
        headers = self._with_headers("/api/", headers, "")
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}


def _check_origin(scope: Scope, headers: dict[str, str]) -> None:
    """What a browser sends for another site's page is refused; the cookie's SameSite says the same to newer ones."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:  # where it is said, Origin may be null, because our pages send no referrer
        if site not in ("same-origin", "none"):
            raise Refused(403, "From another site.")
    elif origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
        raise Refused(403, "From another site.")


async def _body(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "Broken off.")
        body.extend(message.get("body", b""))
        if len(body) > most:
            raise Refused(413, f"A request has at most {most >> 20} MiB.")
        if not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what else comes."""
    done = False

    async def replayed() -> Message:
        nonlocal done
        if done:
            return await receive()
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a JSON value with the key that it stands under; keys are texts too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield "", name
            yield from _strings(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one, key)


def _real(path: str) -> str:
    return os.path.realpath(unquote(path) if not os.path.exists(path) else path)
