"""Who may use the page: names with scrypt hashes of their passwords in a file, and how often somebody may guess.

    larmor users add anna --file users.json          asks for the password (or reads stdin); prints a token for REST

The file holds no password and no token, only what they can be compared with. It is read again when it changes, so that a name
that was removed is out at once. Who guesses wrong five times waits, twice as long after each further guess, by name and by address.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import json
import re
import secrets
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foundation.errors import InputError
from foundation.files import write_aside

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
SCRYPT: dict[str, int] = {"n": 2**14, "r": 8, "p": 1}  # 16 MiB and some 50 ms for every guess
LEAST_PASSWORD = 10
FREE_TRIES = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 30.0, 3600.0
MOST_REMEMBERED = 10_000


class Users:
    """The file at `path`, which need not exist yet."""

    def __init__(self, path: Path):
        self.path = path
        self._read_at: tuple[int, int] | None = None
        self._users: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return sorted(self._current())

    def check(self, name: str, password: str) -> bool:
        """Whether this is the password; it takes as long for a name that does not exist."""
        entry = self._current().get(name)
        salt = b64decode(entry["salt"]) if entry else bytes(16)
        digest = _scrypt(password, salt)
        return hmac.compare_digest(digest, b64decode(entry["hash"]) if entry else bytes(len(digest))) and bool(entry)

    def of_token(self, token: str) -> str | None:
        """Whose token this is."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for name, entry in self._current().items():
            if hmac.compare_digest(digest, entry["token_sha256"]):
                found = name
        return found

    def add(self, name: str, password: str) -> str:
        """A new user, or a new password and token for a known one; returns the token, which is kept nowhere."""
        if not NAME.fullmatch(name):
            raise InputError("a user's name is 1 to 32 of a-z, 0-9, '.', '_' and '-'", got=repr(name)[:80],
                             remedy="Choose another.")  # fmt: skip
        if len(password) < LEAST_PASSWORD:
            raise InputError(f"a password has at least {LEAST_PASSWORD} characters", got=len(password),
                             remedy="Choose a longer one.")  # fmt: skip
        salt, token = secrets.token_bytes(16), secrets.token_urlsafe(32)
        entry = {
            "salt": b64encode(salt).decode(),
            "hash": b64encode(_scrypt(password, salt)).decode(),
            "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
        }
        self._write({**self._current(), name: entry})
        return token

    def remove(self, name: str) -> None:
        users = self._current()
        if name not in users:
            raise InputError(
                "the user is in the file", got=repr(name), remedy=f"There are: {', '.join(sorted(users))}."
            )
        self._write({one: entry for one, entry in users.items() if one != name})

    def _current(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            try:
                stat = self.path.stat()
            except FileNotFoundError:
                return {}
            if self._read_at != (stat.st_mtime_ns, stat.st_ino):
                try:
                    self._users = json.loads(self.path.read_bytes())
                    for entry in self._users.values():
                        _ = (b64decode(entry["salt"]), b64decode(entry["hash"]), entry["token_sha256"])
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    remedy = "Make it with larmor users add."
                    raise InputError("the users' file is whole", got=type(error).__name__, remedy=remedy,
                                     file=self.path) from None  # fmt: skip
                self._read_at = (stat.st_mtime_ns, stat.st_ino)
            return self._users

    def _write(self, users: dict[str, dict[str, Any]]) -> None:
        with write_aside(self.path) as aside:
            aside.touch(mode=0o600)
            aside.write_text(json.dumps(users, indent=1, sort_keys=True) + "\n")


@dataclass
class _Tries:
    wrong: int
    until: float
    last: float


class Guard:
    """How often a name or an address may guess."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._tries: dict[str, _Tries] = {}
        self._lock = threading.Lock()

    def wait_s(self, *keys: str) -> float:
        """How long until one of these may guess again."""
        with self._lock:
            now = self._clock()
            return max([0.0, *(self._tries[key].until - now for key in keys if key in self._tries)])

    def wrong(self, *keys: str) -> float:
        """Count a wrong guess; how long to wait now."""
        with self._lock:
            now = self._clock()
            for key in keys:
                tries = self._tries.setdefault(key, _Tries(0, 0.0, now))
                tries.wrong, tries.last = tries.wrong + 1, now
                if tries.wrong >= FREE_TRIES:
                    wait = min(FIRST_WAIT_S * 2.0 ** (tries.wrong - FREE_TRIES), LONGEST_WAIT_S)
                    tries.until = now + wait
            if len(self._tries) > MOST_REMEMBERED:  # the oldest are forgotten, unless they wait
                old = sorted((one.until > now, one.last, key) for key, one in self._tries.items())
                for _, _, key in old[: MOST_REMEMBERED // 10]:
                    del self._tries[key]
        return self.wait_s(*keys)

    def right(self, *keys: str) -> None:
        with self._lock:
            for key in keys:
                self._tries.pop(key, None)


def users_command(what: Literal["add", "remove", "list"], file: Path, name: str | None = None) -> None:
    """The `larmor users` command."""
    users = Users(file)
    if what == "list":
        print("\n".join(users.names()) or "There is nobody in the file.")
        return
    if name is None:
        raise InputError(f"users {what} names a user", got="no name", remedy=f"larmor users {what} NAME --file {file}")
    if what == "remove":
        users.remove(name)
        print(f"{name} may not use the page any more.")
        return
    token = users.add(name, _password())
    print(f"{name} may use the page. The token for the REST route, which is shown only now:\n{token}")


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise InputError("both passwords are the same", got="two", remedy="Try again.")
    return password


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, dklen=32, **SCRYPT)
