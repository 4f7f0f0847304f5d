"""The server as an IT person starts it, and what somebody tries who should not be there."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from ehr.synthesis import make_bundle
from foundation.errors import InputError
from foundation.reading.dicom.deidentify import IDENTITY, UIDS
from serve.audit import Audit
from serve.client import Client
from serve.doors import GRADIO
from serve.server import neutral_names
from serve.users import FREE_TRIES, Users
from tests.ehr.making import patient_truth
from tests.planting import plant_dicom, plant_fhir
from tests.serve.making import head_file, tiny_model

PASSWORDS = {"anna": "correct horse 1", "bert": "correct horse 2", "carl": "correct horse 3", "dora": "correct horse 4"}
MIB = 2**20
MOST_MIB = 8  # of a request, and four times that an hour
PLANTED = "QXDOEJANE"


@dataclass(frozen=True)
class Running:
    address: str
    data: Path
    log: Path
    tokens: dict[str, str]
    browsers: list[httpx.Client] = field(default_factory=list)

    def browser(self, name: str | None = None) -> httpx.Client:
        """A browser that is logged in, if a name is given."""
        browser = httpx.Client(base_url=self.address, timeout=120, trust_env=False)
        self.browsers.append(browser)  # they are closed together in the end
        if name is not None:
            response = browser.post("/login", data={"name": name, "password": PASSWORDS[name]})
            assert response.status_code == 303, response.text
        return browser

    def client(self, name: str) -> Client:
        return Client(self.address, self.tokens[name])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    model, users = tiny_model(folder / "all"), Users(folder / "users.json")
    tokens = {name: users.add(name, password) for name, password in PASSWORDS.items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "serve", "serve", "--model", str(model), "--port", str(port), "--data",
               str(folder / "data"), "--users", str(users.path), "--max-upload", str(MOST_MIB)]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
        try:
            end = time.monotonic() + 300
            while "Larmor is at" not in log.read_text():
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.2)
            running = Running(f"http://127.0.0.1:{port}", folder / "data", log, tokens)
            yield running
            for browser in running.browsers:
                browser.close()
            process.terminate()
            assert process.wait(60) == 0
            assert not (folder / "data" / "uploads").exists() and not any((folder / "tmp").iterdir())
            assert Audit(folder / "data" / "audit.sqlite").verify() > 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head_file(tmp_path_factory.mktemp("head") / f"sub-{PLANTED}_T1w.nii.gz")


pytestmark = pytest.mark.timeout(600)


# ------------------------------------------------------------------------------------------------ who


def test_nobody_gets_anything(server: Running):
    browser = server.browser()
    for path in ("/", "/config", "/theme.css", "/assets/index.js", "/monitoring", "/docs", "/openapi.json", "/redoc",
                 f"{GRADIO}/info", f"{GRADIO}/openapi.json", f"{GRADIO}/startup-events", f"{GRADIO}/app_id",
                 f"{GRADIO}/user", f"{GRADIO}/file=/etc/passwd", f"{GRADIO}/queue/data?session_hash=x", "/cases/x/files/y",
                 "/api/studies", "/api/jobs/x", "/logout", "/?token=x", f"{GRADIO}/proxy=http://x/"):  # fmt: skip
        assert browser.get(path).status_code in (401, 404), path
    assert browser.get("/enter?token=x").headers["location"] == "/login"
    for path in (f"{GRADIO}/upload", f"{GRADIO}/queue/join", "/api/studies", f"{GRADIO}/component_server", "/logout"):
        assert browser.post(path, files={"files": b"x"}).status_code == 401, path
    page = browser.get("/", headers={"accept": "text/html"})
    assert page.status_code == 303 and page.headers["location"] == "/login"
    form = browser.get("/login")
    assert form.status_code == 200 and "<script" not in form.text
    assert browser.get("/api/studies", headers={"authorization": "Bearer x"}).status_code == 401
    with Client(server.address, "x") as client, pytest.raises(InputError, match="401"):
        client.worklist()


def test_the_page_comes_with_its_guards(server: Running):
    browser = server.browser("anna")
    (cookie,) = browser.cookies.jar
    assert cookie.has_nonstandard_attr("HttpOnly") and cookie.get_nonstandard_attr("SameSite").lower() == "strict"
    page = browser.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    (nonce,) = re.findall(r"'nonce-([^']+)'", policy)
    scripts = re.findall(r"<script[^>]*>", page.text)
    assert scripts and all(f'nonce="{nonce}"' in one for one in scripts)
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert nonce not in browser.get("/").headers["content-security-policy"]
    for answer in (page, browser.get("/login"), browser.get("/api/x"), browser.get("/nothing")):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (
            answer.headers["referrer-policy"] in ("no-referrer", "same-origin")
            and answer.headers["cache-control"] == "no-store"
        )
        assert "server" not in answer.headers
    for path in ("/docs", "/openapi.json", "/monitoring", f"{GRADIO}/info", f"{GRADIO}/openapi.json", f"{GRADIO}/runs"):
        assert browser.get(path).status_code == 404, path
    assert browser.post("/logout").status_code == 303
    assert browser.get("/config").status_code == 401


def test_another_sites_page_can_do_nothing(server: Running):
    browser = server.browser("anna")
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        for path in ("/logout", "/login", f"{GRADIO}/upload"):
            assert browser.post(path, headers=headers, data={"name": "anna", "password": "x"}).status_code == 403
    chromium = {"origin": "null", "sec-fetch-site": "same-origin"}  # what it says of a form on a page without referrers
    assert (
        browser.post("/login", headers=chromium, data={"name": "anna", "password": PASSWORDS["anna"]}).status_code
        == 303
    )
    assert browser.get("/config").status_code == 200
    assert browser.get("/api/studies").status_code == 401  # the cookie counts for nothing there


# ------------------------------------------------------------------------------------------------ whose


def test_nobody_gets_anothers_upload(server: Running, head: Path):
    anna, bert = server.browser("anna"), server.browser("bert")
    (path,) = anna.post(f"{GRADIO}/upload", files={"files": (head.name, head.read_bytes())}).json()
    assert PLANTED not in path and path.endswith("_T1w.nii.gz") and Path(path).read_bytes() == head.read_bytes()
    assert anna.get(f"{GRADIO}/file={path}").content == head.read_bytes()
    for spelt in (path, path.replace("/uploads/", "/uploads/./"), path.replace("/uploads", "/cases/../uploads"),
                  path.replace("uploads", "%75ploads")):  # fmt: skip
        assert bert.get(f"{GRADIO}/file={spelt}").status_code in (403, 404), spelt
        assert server.browser().get(f"{GRADIO}/file={spelt}").status_code == 401
    for named in (path, f"/x/..{path}", f"{server.address}{GRADIO}/file={path}"):
        event = {
            "data": [[{"path": named, "meta": {"_type": "gradio.FileData"}}]],
            "fn_index": 0,
            "session_hash": "bertspage",
        }
        assert bert.post(f"{GRADIO}/queue/join", json=event).status_code == 403, named
    plain = {"content-type": "text/plain"}
    assert bert.post(f"{GRADIO}/queue/join", content=json.dumps(event), headers=plain).status_code == 415
    for path in ("cases.sqlite", "audit.sqlite", "cases"):
        assert anna.get(f"{GRADIO}/file={server.data / path}").status_code == 403
    assert anna.get(f"{GRADIO}/file=/etc/passwd").status_code == 403
    assert anna.get(f"{GRADIO}/file=http://127.0.0.1/").status_code == 403


def test_a_pages_session_has_one_user(server: Running):
    anna, bert = server.browser("anna"), server.browser("bert")
    event = {"data": [], "fn_index": 9999, "session_hash": "annaspage"}
    assert anna.post(f"{GRADIO}/queue/join", json=event).status_code != 403
    assert bert.post(f"{GRADIO}/queue/join", json=event).status_code == 403
    assert bert.get(f"{GRADIO}/queue/data", params={"session_hash": "annaspage"}).status_code == 403
    assert bert.get(f"{GRADIO}/heartbeat/annaspage").status_code == 403


def test_a_study_is_read_for_its_sender_alone(server: Running, head: Path, tmp_path: Path):
    told: list[dict] = []
    with server.client("anna") as anna, server.client("bert") as bert:
        job = anna.submit([head], subject="case-1")
        with pytest.raises(InputError, match="no such job"):
            bert.state(job)
        study = anna.wait(job, told.append)
        assert all(0 <= one["share"] <= 1 for one in told)
        assert {one["name"] for one in anna.reading(study)["findings"]} == {"tumour"}
        assert next(one for one in anna.worklist() if one["id"] == study)["subject"] == "case-1"
        anna.download(study, tmp_path / "out.zip")
        with ZipFile(tmp_path / "out.zip") as packed:
            assert {"reading.json", "report.pdf", "fhir/report-R5.json", "masks/all.nii.gz"} <= set(packed.namelist())
        for ask in (bert.reading, bert.delete, lambda one: bert.download(one, tmp_path / "stolen.zip")):
            with pytest.raises(InputError, match="no such case"):
                ask(study)
        assert not (tmp_path / "stolen.zip").exists() and bert.worklist() == []
        display = f"/cases/{study}/files/display/series-1.nii.gz"
        assert server.browser("anna").get(display).status_code == 200
        assert server.browser("bert").get(display).status_code == 404
        anna.delete(study)
        with pytest.raises(InputError, match="no such case"):
            anna.reading(study)
        with pytest.raises(InputError, match="files"):
            anna.submit([])


def test_what_is_cancelled_is_in_the_audit(server: Running, head: Path):
    with server.client("bert") as bert:
        jobs = [bert.submit([head]) for _ in range(3)]
        for job in jobs:
            bert.cancel(job)
        for job in jobs[1:]:
            with pytest.raises(InputError, match="cancelled"):
                bert.wait(job)
    rows = [one for one in Audit(server.data / "audit.sqlite").entries() if one.action == "reading.cancelled"]
    assert {one.detail["job"] for one in rows} >= set(jobs[1:]) and {one.user for one in rows} == {"bert"}


def test_a_hundred_requests_at_once_are_neither_lost_nor_mixed(server: Running, head: Path):
    """Sixteen studies of four users, and whatever they ask for meanwhile."""
    names = list(PASSWORDS)
    sent: dict[str, set[str]] = {name: set() for name in names}

    def one(number: int) -> None:
        name = names[number % 4]
        with server.client(name) as client:
            if number < 16:
                study = client.read([head], subject=f"{name}-{number}")
                assert client.reading(study)["subject"] == f"{name}-{number}"
                sent[name].add(study)
            else:
                assert all(one["subject"].startswith((f"{name}-", "case-")) for one in client.worklist())

    with ThreadPoolExecutor(100) as threads:
        list(threads.map(one, range(100)))
    for name in names:
        with server.client(name) as client:
            assert sent[name] <= {one["id"] for one in client.worklist()} and len(sent[name]) == 4


# ------------------------------------------------------------------------------------------------ nothing of a patient


def test_planted_identifiers_are_nowhere_but_in_the_case(server: Running, head: Path, tmp_path: Path):
    """A mark in every field of the headers and of the record that can hold words, in names of files, and in what is broken."""
    planted = plant_dicom(tmp_path / "in")
    bundle, _ = make_bundle(patient_truth(0))
    grown, told = plant_fhir(bundle)
    record = tmp_path / f"{told.mark('the name of a record')}.json"
    record.write_text(json.dumps(grown))
    broken = tmp_path / f"{PLANTED}.nii.gz"
    broken.write_bytes(head.read_bytes()[:-100])
    half = tmp_path / f"{PLANTED}.dcm"
    half.write_bytes(planted.files[0].read_bytes()[:2000])
    undated = tmp_path / f"{PLANTED}.json"
    undated.write_text(json.dumps(grown).replace("ImagingStudy", "Imaging"))
    answers = []
    with server.client("anna") as client:
        studies = [client.read(list(planted.files)), client.read([head], record=record, at="2020-05-01T10:00:00Z")]
        for files, said in (([broken], {}), ([half], {}), ([head], {"record": undated})):
            with pytest.raises(InputError) as caught:
                client.read(files, **said)
            answers.append(str(caught.value))
        answers += [json.dumps(client.reading(study)) for study in studies[:1]]
        answers += [json.dumps(client.worklist()), server.browser("anna").get("/").text]
        client.download(studies[0], tmp_path / "outputs.zip")
    browser = server.browser("anna")
    answers.append(browser.post(f"{GRADIO}/upload", files={"files": (planted.files[0].name, half.read_bytes())}).text)
    audit = Audit(server.data / "audit.sqlite")
    kinds = [(one.user, one.detail["kind"], one.detail["where"]) for one in audit.entries()
             if one.action == "reading.failed"]  # fmt: skip
    assert [(user, kind) for user, kind, _ in kinds[-3:]] == [("anna", "input")] * 3
    assert [where.rpartition(".")[0] for _, _, where in kinds[-3:]] == [
        "foundation.reading.nifti", "foundation.reading.dicom.child", "ehr.index"]  # fmt: skip
    logs = [server.log.read_text(), json.dumps([vars(one) for one in audit.entries()])]
    names = [str(path.relative_to(server.data)) for path in server.data.rglob("*")]
    for marks in (planted, told):
        assert marks.found_in(*logs, *answers, *names, server.data / "audit.sqlite") == set()
    assert not any(PLANTED in text for text in (*logs, *answers))

    # In the store: what SEG and SR repeat, in the case's own folder; in the database, which diagnosis a sentence is about.
    places = [path for path in (server.data / "cases").rglob("*") if path.is_file()]
    headers = [path for path in places if path.parent.name == "headers"]
    objects = [path for path in places if path.suffix in (".dcm", ".zip") and path not in headers]
    assert headers and planted.found_in(*headers) <= {*IDENTITY, *UIDS, "a day", "a time"}
    archived = {*IDENTITY, "StudyInstanceUID", "SeriesInstanceUID", "a day", "a time"}
    assert objects and planted.found_in(*objects, tmp_path / "outputs.zip") <= archived
    others = [one for one in places if one not in headers and one not in objects and one.parent.name != "fhir"]
    assert planted.found_in(*others, server.data / "cases.sqlite") == set()
    of_record = told.found_in(*places, server.data / "cases.sqlite") - {"a day", "a time"}  # which are the header's
    assert all(one.endswith(".id") for one in of_record), of_record
    assert not any(PLANTED in str(path.relative_to(server.data)) for path in server.data.rglob("*"))
    assert audit.verify() == len(audit.entries())


def test_names_of_ours_keep_what_a_reader_needs():
    names = [
        "sub-Jane_ses-1_T1w.nii.gz",
        "C:\\x\\sub-Jane_ses-2_FLAIR.nii",
        "../../etc/Doe Jane.zip",
        "IM0001",
        "a_T1w.txt",
        "",
    ]
    found = neutral_names(names)
    assert [re.sub("-[0-9a-f]{8}", "-#", one) for one in found] == [
        "sub-#_ses-#_series-1_T1w.nii.gz", "sub-#_ses-#_series-2_FLAIR.nii", "series-3.zip", "series-4.dcm", "series-5.dcm",
        "series-6.dcm",
    ]  # fmt: skip
    assert found[0][:12] == found[1][:12] and found[0][13:25] != found[1][13:25]


# ------------------------------------------------------------------------------------------------ how much; these come last


def test_a_request_and_a_user_have_their_limits(server: Running):
    browser = server.browser("dora")
    assert browser.post(f"{GRADIO}/upload", files={"files": bytes(MOST_MIB * MIB + 1)}).status_code == 413
    assert browser.post("/login", content=bytes(5 * MIB)).status_code == 413
    token = {"authorization": f"Bearer {server.tokens['dora']}"}

    def endless() -> Iterator[bytes]:
        for _ in range(MOST_MIB + 2):
            yield bytes(MIB)

    try:
        answer = browser.post(
            "/api/studies", content=endless(), headers=token | {"content-type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code in (400, 413)
    except httpx.HTTPError:  # the server does not wait for the rest
        pass
    many = [browser.post(f"{GRADIO}/upload", files={"files": bytes(7 * MIB)}).status_code for _ in range(6)]
    assert many[0] == 200 and many[-1] == 429
    assert server.browser("bert").post(f"{GRADIO}/upload", files={"files": b"x"}).status_code == 200


def test_who_guesses_waits(server: Running):
    browser = server.browser()
    guess = {"name": "carl", "password": "wrong"}
    answers = [browser.post("/login", data=guess) for _ in range(FREE_TRIES + 2)]
    assert [one.status_code for one in answers] == [401] * (FREE_TRIES - 1) + [429] * 3
    right = browser.post("/login", data={"name": "carl", "password": PASSWORDS["carl"]})
    assert right.status_code == 429 and int(right.headers["retry-after"]) > 5 and not browser.cookies
    assert (
        browser.post("/login", data={"name": "anna", "password": PASSWORDS["anna"]}).status_code == 429
    )  # same address
    with server.client("carl") as carl:
        carl.worklist()
    failed = [one.user for one in Audit(server.data / "audit.sqlite").entries() if one.action == "login.failed"]
    assert failed == ["carl"] * FREE_TRIES
