"""A watched folder: what a PACS puts there is read once, what is broken set aside. With Debian's orthanc, where it is installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from foundation.errors import InputError
from heads.adapters.shared import FeatureCache
from serve.cases import CaseStore
from serve.intake import Dropped, read_case
from serve.jobs import Job, Jobs
from serve.pipeline import load_models
from serve.watch import FAILED, TAKEN, Watcher
from tests.foundation.reading.dicom_making import oblique, write_series
from tests.serve.making import head_file, tiny_model

ORTHANC = shutil.which("Orthanc")
pytestmark = pytest.mark.timeout(600)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def room(tmp_path: Path) -> Iterator[tuple[CaseStore, Callable[[Dropped, Path], Job], list[Job]]]:
    """A store, the line before it, and every job that went through."""
    store, jobs, cache = CaseStore(tmp_path / "data"), Jobs(), FeatureCache()
    models = load_models([tiny_model(tmp_path / "all")])
    submitted: list[Job] = []

    def submit(dropped: Dropped, folder: Path) -> Job:
        def work(tell: Callable[[float, str], None]) -> str:
            return read_case(store, models, cache, "anna", dropped, tell)

        job = jobs.submit("anna", work, lambda: shutil.rmtree(folder))
        submitted.append(job)
        return job

    yield store, submit, submitted
    jobs.close()


def settled(folder: Path, jobs: list[Job]) -> None:
    assert all(job.wait(300.0) for job in jobs)
    end = time.monotonic() + 10
    while any((folder / TAKEN).iterdir()) and time.monotonic() < end:
        time.sleep(0.02)


def test_a_study_is_taken_once_when_it_is_quiet(room, tmp_path: Path):
    store, submit, jobs = room
    folder, clock = tmp_path / "in", Clock()
    folder.mkdir()
    watcher = Watcher(folder, submit, quiet_s=30.0, clock=clock)
    write_series(folder / "a" / "deep", shape=(24, 24, 24), affine=oblique(0.0, (6.0, 6.0, 6.0)))
    (folder / "b").mkdir()
    (folder / "b" / "x.dcm").write_bytes(b"no DICOM")
    head_file(folder / "sub-1_T1w.nii.gz")
    assert watcher.look() == 0
    clock.now = 20.0
    assert watcher.look() == 0
    (folder / "a" / "late").write_bytes(b"one more")
    clock.now = 31.0
    assert watcher.look() == 2  # not the one that something came of
    clock.now = 62.0
    assert watcher.look() == 1 and watcher.look() == 0
    settled(folder, jobs)
    assert sorted(job.state for job in jobs) == ["done", "done", "failed"] and len(store.worklist("anna")) == 2
    assert sorted(path.name for path in folder.iterdir()) == [FAILED, TAKEN] and not any((folder / TAKEN).iterdir())
    (failed,) = (folder / FAILED).iterdir()
    assert (failed / "b" / "x.dcm").read_bytes() == b"no DICOM" and "Found: " in (failed / "why.txt").read_text()
    assert Watcher(folder, submit, clock=clock).look() == 0


def test_what_was_being_read_is_read_after_a_restart(room, tmp_path: Path):
    _, submit, _ = room
    folder = tmp_path / "in"
    (folder / TAKEN / "x" / "study").mkdir(parents=True)
    Watcher(folder, submit)
    assert (folder / "x-study").is_dir() and not any((folder / TAKEN).iterdir())
    with pytest.raises(InputError, match="folder is there"):
        Watcher(tmp_path / "none", submit)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[httpx.Client]:
    """Debian's orthanc on this machine alone, empty."""
    if ORTHANC is None:
        pytest.skip("orthanc is not installed: apt-get install --no-install-recommends orthanc")
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    settings = {"Name": "test", "StorageDirectory": str(tmp_path / "orthanc"), "IndexDirectory": str(tmp_path / "orthanc"),
                "HttpPort": ports[0], "DicomPort": ports[1], "RemoteAccessAllowed": False, "Plugins": []}  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    command = [ORTHANC, str(tmp_path / "orthanc.json")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=60, trust_env=False) as client:
                end = time.monotonic() + 120
                while True:
                    try:
                        client.get("/system").raise_for_status()
                        break
                    except httpx.HTTPError:
                        assert process.poll() is None and time.monotonic() < end
                        time.sleep(0.2)
                yield client
        finally:
            process.terminate()
            process.wait(30)


def test_orthanc_hands_a_study_over_and_takes_seg_and_sr_back(room, orthanc: httpx.Client, tmp_path: Path):
    store, submit, jobs = room
    made = write_series(tmp_path / "made", shape=(24, 24, 24), affine=oblique(0.0, (6.0, 6.0, 6.0)))
    for file in made.files:
        assert orthanc.post("/instances", content=file.read_bytes()).json()["Status"] == "Success"
    (study,) = orthanc.get("/studies").json()
    folder, clock = tmp_path / "in", Clock()
    folder.mkdir()
    (folder / f"{study}.zip").write_bytes(orthanc.get(f"/studies/{study}/archive").content)
    watcher = Watcher(folder, submit, quiet_s=1.0, clock=clock)
    watcher.look()
    clock.now = 2.0
    assert watcher.look() == 1
    settled(folder, jobs)
    (line,) = store.worklist("anna")
    store.sign("anna", line.id, "final")
    out = store.outputs("anna", line.id)
    for name in ("seg-all", "measurements"):
        answer = orthanc.post("/instances", content=(out / "dicom" / f"{name}.dcm").read_bytes())
        assert answer.status_code == 200 and answer.json()["ParentStudy"] == study, answer.text
    series = [orthanc.get(f"/series/{one}").json() for one in orthanc.get(f"/studies/{study}").json()["Series"]]
    assert sorted(one["MainDicomTags"]["Modality"] for one in series) == ["MR", "SEG", "SR"]
    assert orthanc.get(f"/studies/{study}").json()["PatientMainDicomTags"]["PatientID"] == "P-1"
