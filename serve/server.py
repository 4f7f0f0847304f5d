"""The server of `larmor serve`: logs people in, keeps their files apart, has one worker read, and forgets everything in time.

    larmor serve --model runs/demo/models/structures                          one user, by a link with a secret in it
    larmor serve --data /srv/larmor --users users.json --keep-days 7 --host 0.0.0.0 --behind-proxy

Made to run beside patient data: it opens no connection to anywhere, all that it writes lies in one folder that only its own user
may enter, and what it logs names no patient and no file. `serve/doors.py` stands before every request, `docs/it.md` says what is
stored where and for how long.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import sha256 as digest_of
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it looks once

import fastapi
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from foundation.errors import InputError
from foundation.reading.nifti import BIDS_CONTRASTS
from foundation.study import checked_contrast
from heads.adapters.folder import LoadedModel
from heads.adapters.shared import FeatureCache
from heads.reconstruction.network import default_network
from heads.report.writing import Writer, load_writers
from serve.cases import DAY_S, CaseStore
from serve.doors import GRADIO, Allowance, Belongings, Door, Sessions
from serve.intake import Dropped, read_case
from serve.jobs import Busy, Job, Jobs, JobState, Tell
from serve.pipeline import load_models
from serve.repairs import Repairs
from serve.users import Guard, Users
from serve.watch import Watcher

LOCAL = "local"  # the user where there is no file of users
UPLOAD_S = 3600.0  # that an upload is kept which no job took
SWEEP_S = 60.0
MAX_REQUEST_MIB = 4096
MOST_FILES = 5_000  # in one request
SUFFIXES = (".nii.gz", ".nii", ".zip", ".dcm", ".ndjson", ".json.gz", ".ndjson.gz", ".json")
STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Settings:
    """What `larmor serve` was told."""

    data: Path
    users: Path | None = None
    keep_s: float = 7 * DAY_S
    max_request: int = MAX_REQUEST_MIB * 2**20
    most_bytes_an_hour: int = 4 * MAX_REQUEST_MIB * 2**20
    behind_proxy: bool = False
    root_path: str = ""
    token: str | None = None  # of the one user where there is no file
    repair: Path | None = None  # a model of heads/reconstruction


class Server:
    """Everything behind the address: the application is `app`."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[LoadedModel],
        writers: Sequence[Writer] = (),
        jobs: Jobs | None = None,
    ):
        self.settings, self.models, self.writers = settings, models, writers
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.data.chmod(0o700)
        self.uploads = (settings.data / "uploads").resolve()
        shutil.rmtree(self.uploads, ignore_errors=True)  # nobody waits for them any more
        self.uploads.mkdir(mode=0o700)
        os.environ["GRADIO_TEMP_DIR"] = str(self.uploads)
        tempfile.tempdir = str(self.uploads)  # of every temporary file of this process, whoever makes it
        self.store = CaseStore(settings.data, settings.keep_s)
        mender = settings.repair or default_network()
        self.repairs = None if mender is None else Repairs(mender)
        self.jobs = jobs or Jobs()
        self.jobs.on_end = self._note_end
        self.cache = FeatureCache()
        self.users = None if settings.users is None else Users(settings.users)
        self.token = settings.token or secrets.token_urlsafe(32)
        self.sessions, self.guard = Sessions(), Guard()
        self.belongings = Belongings(settings.data.resolve())
        self.watcher: Watcher | None = None
        self._held: set[Path] = set()  # what a job in the line needs
        self._end = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_on, name="sweeper", daemon=True)
        self.app = self._application()
        self._sweeper.start()

    def close(self) -> None:
        """End what runs; uploads go, cases stay for their time."""
        self._end.set()
        if self.watcher is not None:
            self.watcher.close()
        self.jobs.close()
        self._sweeper.join(5)
        shutil.rmtree(self.uploads, ignore_errors=True)

    # -------------------------------------------------------------------------------------------- who

    def is_user(self, name: str) -> bool:
        return name == LOCAL if self.users is None else name in self.users.names()

    def of_bearer(self, token: str) -> str | None:
        if self.users is not None:
            return self.users.of_token(token)
        return LOCAL if hmac.compare_digest(token.encode(), self.token.encode()) else None

    def log_in(self, name: str, password: str, address: str) -> str | float:
        """The new session, or how many seconds to wait before the next guess (0: now)."""
        assert self.users is not None
        name = name.strip().lower()
        known = name if self.is_user(name) else "unknown"
        keys = (f"name {name[:64]}", f"address {address}")
        if wait := self.guard.wait_s(*keys):
            self.store.audit.append(known, "login.locked", detail={"wait_s": round(wait)})
            return wait
        if not self.users.check(name, password):
            wait = self.guard.wrong(*keys)
            self.store.audit.append(known, "login.failed", detail={"wait_s": round(wait)})
            return wait
        self.guard.right(*keys)
        self.store.audit.append(name, "login.succeeded")
        return self.sessions.begin(name)

    # -------------------------------------------------------------------------------------------- reading

    def submit(self, user: str, dropped: Dropped, folder: Path) -> Job:
        """Let the worker read what lies in a folder of the uploads, which goes when that has ended in whatever way."""

        def read(tell: Tell) -> str:
            return read_case(self.store, self.models, self.cache, user, dropped, tell, self.writers)

        def after() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            self._held.discard(folder)

        self._held.add(folder)
        try:
            return self.jobs.submit(user, read, after)
        except BaseException:
            after()
            raise

    def _note_end(self, job: Job, state: JobState) -> None:
        """Into the audit with what came to nothing: who, when, what kind and where, and no word of any message. What became a
        case has its own row."""
        if state == "failed":
            detail = {"job": job.id, "kind": job.kind, "where": job.where[-80:]}
            self.store.audit.append(job.user, "reading.failed", detail=detail)
        elif state == "cancelled":
            self.store.audit.append(job.user, "reading.cancelled", detail={"job": job.id})

    def watch(self, folder: Path, user: str, quiet_s: float) -> None:
        """Take the studies that somebody puts into a folder as this user's."""
        if not self.is_user(user):
            remedy = "Add them with larmor users, or name one who is there."
            raise InputError("the watched folder's cases belong to a user", got=repr(user), remedy=remedy)
        self.watcher = Watcher(folder, lambda dropped, place: self.submit(user, dropped, place), quiet_s=quiet_s)
        self.watcher.start()

    def sweep(self, now: float | None = None) -> None:
        """Delete cases whose time is over, and uploads that nothing became of."""
        now = time.time() if now is None else now
        self.store.expire(now)
        if self.repairs is not None:
            self.repairs.forget(self.store.has)
        with suppress(FileNotFoundError):
            for path in self.uploads.iterdir():
                with suppress(FileNotFoundError):
                    if path not in self._held and now - path.stat().st_mtime > UPLOAD_S:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.belongings.forget_missing()

    def _sweep_on(self) -> None:
        while not self._end.wait(SWEEP_S):
            try:
                self.sweep()
            except Exception as error:  # the next sweep tries again
                _log_briefly("sweep", error)

    # -------------------------------------------------------------------------------------------- the application

    def _application(self) -> Door:
        import gradio as gr

        from serve.app import PRIVATE, build_app

        app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self._routes(app)
        page = build_app(self.models, self.store, self.jobs, self.writers, self.repairs)
        options = {name: PRIVATE[name] for name in MOUNTED if name in PRIVATE}
        kwargs = {"openapi_url": None, "docs_url": None, "redoc_url": None}
        app = gr.mount_gradio_app(
            app,
            page,
            path="/",
            auth_dependency=lambda request: request.scope.get("state", {}).get("user"),
            app_kwargs=kwargs,
            show_error=False,
            max_file_size=self.settings.max_request,
            blocked_paths=[str(self.settings.data / name) for name in ("cases", "cases.sqlite", "audit.sqlite")],
            root_path=self.settings.root_path or None,
            **options,
        )
        self._page = page
        return Door(
            app,
            sessions=self.sessions,
            bearer=self.of_bearer,
            is_user=self.is_user,
            belongings=self.belongings,
            allowance=Allowance(self.settings.most_bytes_an_hour),
            max_request=self.settings.max_request,
            static=(STATIC.resolve(),),
            is_https=self.settings.behind_proxy,
            root_path=self.settings.root_path,
        )

    def _routes(self, app: fastapi.FastAPI) -> None:
        root = self.settings.root_path

        @app.exception_handler(InputError)
        def _(request: fastapi.Request, error: InputError) -> JSONResponse:
            gone = "no such" in str(error.got) or "none of that name" in str(error.got)
            status = 429 if isinstance(error, Busy) else 404 if gone else 422
            words = {"rule": error.rule, "got": str(error.got), "remedy": error.remedy}
            headers = {"retry-after": "30"} if status == 429 else None
            return JSONResponse({"error": words}, status, headers=headers)

        @app.get("/login")
        def login_page() -> HTMLResponse:
            if self.users is None:
                return HTMLResponse(_login_html("Open the link that the server printed when it started.", None))
            return HTMLResponse(_login_html("", f"{root}/login"))

        @app.post("/login")
        def login(request: fastapi.Request, name: str = fastapi.Form(""), password: str = fastapi.Form("")) -> Response:
            if self.users is None:
                return HTMLResponse(_login_html("Open the link that the server printed when it started.", None), 403)
            address = request.client.host if request.client else ""
            answer = self.log_in(name[:100], password[:1000], address)
            if isinstance(answer, str):
                return self._entered(answer)
            if answer:
                words = f"Too many wrong guesses. Wait {answer:.0f} seconds."
                page = _login_html(words, f"{root}/login")
                return HTMLResponse(page, 429, headers={"retry-after": f"{answer:.0f}"})
            return HTMLResponse(_login_html("The name or the password is wrong.", f"{root}/login"), 401)

        @app.get("/logout")
        def logout_page() -> HTMLResponse:
            return HTMLResponse(_page_html("Log out", f'<form method="post" action="{escape(root)}/logout">'
                                           '<button type="submit">Log out</button></form>'))  # fmt: skip

        @app.post("/logout")
        def logout(request: fastapi.Request) -> Response:
            self.sessions.end(request.cookies.get(self.app.cookie))
            self.store.audit.append(_user(request), "logout")
            response = RedirectResponse(f"{root}/login", 303)
            response.delete_cookie(self.app.cookie)
            return response

        @app.get("/enter")
        def enter(token: str = "") -> Response:
            """Whoever comes by the printed link gets a session and an address without the secret."""
            if self.users is not None or not hmac.compare_digest(token.encode(), self.token.encode()):
                return RedirectResponse(f"{root}/login", 303)
            return self._entered(self.sessions.begin(LOCAL))

        @app.get("/cases/{case_id}/files/{path:path}")
        def case_file(case_id: str, path: str, request: fastapi.Request) -> FileResponse:
            file = self.store.file(_user(request), case_id, path)
            if file.suffix in (".gz", ".dcm", ".zip", ".csv", ".png"):
                kind = "image/png" if file.suffix == ".png" else "application/octet-stream"
                return FileResponse(file, media_type=kind, filename=file.name, content_disposition_type="attachment")
            return FileResponse(file, filename=file.name, content_disposition_type="attachment")

        @app.post(f"{GRADIO}/upload")
        async def page_upload(request: fastapi.Request) -> list[str]:
            """The page's uploads, under names of ours: theirs may say who a patient is."""
            async with request.form(max_files=MOST_FILES, max_fields=10) as form:
                files = [one for _, one in form.multi_items() if not isinstance(one, str)]
                user, paths = _user(request), []
                names = neutral_names([one.filename or "" for one in files])
                for one, name in zip(files, names, strict=True):
                    folder = self.uploads / secrets.token_hex(16)
                    folder.mkdir(mode=0o700)
                    await _store(one, folder / name)
                    self.belongings.give(user, str(folder / name))
                    paths.append(str(folder / name))
            self._page.upload_file_set.update(paths)
            return paths

        @app.get(f"{GRADIO}/upload_progress")
        def page_upload_progress() -> Response:
            """Gradio's own counts bytes in a route that is not used here: it is told that there is no more to come."""
            return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")

        # ---------------------------------------------------------------------------------- for programs

        @app.post("/api/studies", status_code=202)
        async def post_study(request: fastapi.Request) -> JSONResponse:
            user = _user(request)
            place = self.uploads / secrets.token_hex(16)
            (place / "study").mkdir(parents=True, mode=0o700)
            try:
                async with request.form(max_files=MOST_FILES, max_fields=20) as form:
                    files = [one for one in form.getlist("files") if not isinstance(one, str)]
                    if not files:
                        remedy = "Send NIfTI files, DICOM files or one zip as 'files'."
                        raise InputError("a study has files", got="none", remedy=remedy)
                    names = neutral_names([one.filename or "" for one in files])
                    for one, name in zip(files, names, strict=True):
                        await _store(one, place / "study" / name)
                    record = form.get("record")
                    if record is not None and not isinstance(record, str):
                        (record_name,) = neutral_names([record.filename or "record.json"])
                        await _store(record, place / record_name)
                        record = place / record_name
                    else:
                        record = None
                    said = {key: str(form.get(key) or "") for key in ("at", "contrast", "subject", "visit", "series")}
                if said["visit"] and not said["visit"].isdigit():
                    raise InputError("a visit is a number", got="other text", remedy="1 is the earliest.")
                dropped = Dropped(
                    files=tuple(sorted((place / "study").iterdir())),
                    contrast=checked_contrast(said["contrast"] or "unknown"),
                    subject=said["subject"].strip()[:64],
                    record=record,
                    begun=said["at"] or None,
                    choose=tuple(said["series"].split()),
                    visit=int(said["visit"]) if said["visit"] else None,
                )
                job = self.submit(user, dropped, place)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
            return JSONResponse(_job_json(job), 202, headers={"location": f"{root}/api/jobs/{job.id}"})

        @app.get("/api/jobs/{job_id}")
        def job_state(job_id: str, request: fastapi.Request) -> dict[str, Any]:
            return _job_json(self.jobs.find(_user(request), job_id))

        @app.delete("/api/jobs/{job_id}")
        def cancel_job(job_id: str, request: fastapi.Request) -> dict[str, Any]:
            job = self.jobs.find(_user(request), job_id)
            job.cancel()
            return _job_json(job)

        @app.get("/api/studies")
        def worklist(request: fastapi.Request) -> list[dict[str, Any]]:
            return [
                {"id": one.id, "subject": one.subject, "state": one.state, "finding": one.finding,
                 "urgency": one.urgency, "read_at": one.read_at.isoformat(), "goes_at": one.goes_at.isoformat()}
                for one in self.store.worklist(_user(request))
            ]  # fmt: skip

        @app.get("/api/studies/{case_id}")
        def reading(case_id: str, request: fastapi.Request) -> Response:
            case = self.store.case(_user(request), case_id)
            content = case.reading.model_copy(update={"findings": case.kept}).model_dump_json()
            return Response(content, media_type="application/json", headers={"x-larmor-state": case.state})

        @app.get("/api/studies/{case_id}/outputs.zip")
        def outputs(case_id: str, request: fastapi.Request) -> FileResponse:
            folder = self.store.outputs(_user(request), case_id)
            return FileResponse(folder.parent / "outputs.zip", media_type="application/zip", filename="outputs.zip")

        @app.delete("/api/studies/{case_id}", status_code=204)
        def delete(case_id: str, request: fastapi.Request) -> Response:
            self.store.delete(_user(request), case_id)
            return Response(status_code=204)

    def _entered(self, session: str) -> Response:
        response = RedirectResponse(f"{self.settings.root_path}/", 303)
        response.set_cookie(
            self.app.cookie,
            session,
            httponly=True,
            samesite="strict",
            secure=self.settings.behind_proxy,
            path="/",
        )
        return response


MOUNTED = (
    "theme",
    "css",
    "head",
    "js",
    "run_history",
    "enable_monitoring",
    "ssr_mode",
    "mcp_server",
    "pwa",
    "footer_links",
)


def neutral_names(names: Sequence[str]) -> list[str]:
    """Names of ours for uploaded files. What a reader needs of theirs stays: the kind of file, a contrast, and, as hashes, which
    subject and session, so that two subjects are still told apart."""
    found = []
    for number, name in enumerate(names, start=1):
        name = name.replace("\\", "/").rpartition("/")[2]
        ending = next((one for one in SUFFIXES if name.lower().endswith(one)), "")
        parts = name[: len(name) - len(ending)].split("_")
        ending = ending or ".dcm"  # DICOM files often have none; whether it is one is seen from its content
        kept = [f"{kind}-{_short_hash(value)}" for part in parts for kind, dash, value in [part.partition("-")]
                if dash and kind in ("sub", "ses")]  # fmt: skip
        kept.append(f"series-{number:0{len(str(len(names)))}d}")
        if parts[-1] in BIDS_CONTRASTS and ending.startswith(".nii"):
            kept.append(parts[-1])
        found.append("_".join(kept) + ending)
    return found


def _short_hash(value: str) -> str:
    return hmac.digest(b"larmor", value.encode("utf-8", "surrogatepass"), digest_of).hex()[:8]


def _user(request: fastapi.Request) -> str:
    user = request.scope["state"]["user"]
    assert isinstance(user, str)
    return user


async def _store(upload: Any, path: Path) -> None:
    with path.open("wb") as file:
        while chunk := await upload.read(2**20):
            file.write(chunk)


def _job_json(job: Job) -> dict[str, Any]:
    error = (
        None if job.error is None else {"rule": job.error.rule, "got": str(job.error.got), "remedy": job.error.remedy}
    )
    return {"job": job.id, "state": job.state, "share": job.share, "step": job.step, "ahead": job.ahead,
            "study": job.case_id, "error": error}  # fmt: skip


def _login_html(words: str, action: str | None) -> str:
    form = (
        ""
        if action is None
        else f"""<form method="post" action="{escape(action)}">
<label>Name <input name="name" autocomplete="username" required autofocus maxlength="32"></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required maxlength="1000"></label>
<button type="submit">Log in</button></form>"""
    )
    said = f'<p role="alert">{escape(words)}</p>' if words else ""
    return _page_html("Log in", said + form)


def _page_html(title: str, body: str) -> str:
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Larmor: {escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark; }} body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 22rem;
margin: 15vh auto; padding: 0 1rem; }} label {{ display: block; margin: .8rem 0; }}
input {{ display: block; width: 100%; box-sizing: border-box; padding: .5rem; font: inherit; }}
button {{ padding: .5rem 1.2rem; font: inherit; }} [role=alert] {{ border-left: 3px solid #e69f00; padding-left: .6rem; }}
</style></head><body><h1>Larmor</h1>{body}</body></html>"""


# ------------------------------------------------------------------------------------------------ logging


class _Brief(logging.Formatter):
    """Of an exception its kind and its place: its message may quote a file, and files name patients."""

    def formatException(self, ei: Any) -> str:
        return _brief(ei[1])

    def formatStack(self, stack_info: str) -> str:
        return ""


def _brief(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error else []
    place = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def _log_briefly(what: str, error: BaseException) -> None:
    logging.getLogger("larmor").error("%s: %s", what, _brief(error))


def log_without_names() -> None:
    """Let nothing that this process logs or prints of an exception quote what was uploaded."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Brief("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # Gradio and the standard library print tracebacks of faults with this, messages and all.
    traceback.print_exc = lambda *args, **kwargs: print(_brief(sys.exc_info()[1]), file=sys.stderr)


# ------------------------------------------------------------------------------------------------ the command


def serve_command(
    models: Sequence[Path],
    host: str,
    port: int,
    backbones: Sequence[Path] = (),
    writers: Sequence[Path] = (),
    data: Path | None = None,
    users: Path | None = None,
    keep_days: float = 7.0,
    max_upload: int = MAX_REQUEST_MIB,
    behind_proxy: bool = False,
    root_path: str = "",
    watch: Path | None = None,
    watch_user: str | None = None,
    quiet_s: float = 30.0,
    repair: Path | None = None,
) -> None:
    """The `larmor serve` command: the page until it is interrupted. Without --data nothing is left after that."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        got = f"{host}:{port}, {error.strerror}"
        raise InputError("the address is free", got=got, remedy="Name another with --port or --host.") from None
    if users is not None and not Users(users).names():
        remedy = f"Add one: larmor users add NAME --file {users}"
        raise InputError("the file of users names somebody", got="nobody", remedy=remedy, file=users)
    if not 0 < keep_days <= 3650:
        raise InputError("cases are kept for some days", got=keep_days, remedy="Give --keep-days from 0.01 to 3650.")
    loaded = load_models(models, backbones)
    scribes, reasons = load_writers(writers, backbones)
    for reason in reasons:
        print(reason)
    with ExitStack() as stack:
        if data is None:  # readable by this user only, and gone when the server stops
            data = Path(stack.enter_context(TemporaryDirectory(prefix="larmor-", ignore_cleanup_errors=True)))
        settings = Settings(
            data=data.resolve(),
            users=users,
            keep_s=keep_days * DAY_S,
            max_request=max_upload * 2**20,
            most_bytes_an_hour=4 * max_upload * 2**20,
            behind_proxy=behind_proxy,
            root_path=root_path.rstrip("/"),
            repair=repair,
        )
        server = Server(settings, loaded, scribes)
        try:
            if watch is not None:
                server.watch(watch, watch_user or LOCAL, quiet_s)
            _run(server, host, port)
        finally:
            server.close()


def _run(server: Server, host: str, port: int) -> None:
    import uvicorn

    log_without_names()
    config = uvicorn.Config(
        server.app,
        host=host,
        port=port,
        log_config=None,  # uvicorn's own would show messages of exceptions
        log_level="warning",
        access_log=False,  # paths name cases
        proxy_headers=server.settings.behind_proxy,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    said = uvicorn.Server(config)
    threading.Thread(target=_tell_when_up, args=(said, server, host, port), daemon=True).start()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # uvicorn stops, then raises the signal again: so we clean up
    with suppress(KeyboardInterrupt):
        said.run()


def _tell_when_up(said: Any, server: Server, host: str, port: int) -> None:
    while not said.started:
        time.sleep(0.05)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host
    secret = f"/enter?token={server.token}" if server.users is None else ""
    print(f"Larmor is at http://{shown}:{port}{server.settings.root_path}{secret}", flush=True)
    if server.users is None:
        print(
            "Whoever has this link can use the page; --users FILE gives everybody a password of their own.", flush=True
        )
    if host not in ("127.0.0.1", "localhost", "::1") and not server.settings.behind_proxy:
        print(
            "This address can be reached from elsewhere without encryption: put a proxy with TLS before it.", flush=True
        )
