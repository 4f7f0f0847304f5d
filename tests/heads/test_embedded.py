"""What comes with Larmor is whole, small, says what it is worth, and reads a study."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples.embedded import LARGEST_BYTES
from foundation.cohort.patient import CohortConfig, make_anatomy, make_patient
from foundation.cohort.raw import simulate_raw
from foundation.findings import Reading
from heads.base import EMBEDDED, default_models
from heads.reconstruction.command import reconstruct_command
from heads.reconstruction.network import default_network
from heads.report.writing import default_writers, load_writers
from serve.pipeline import load_models, read_study

FOLDERS = sorted(file.parent for file in EMBEDDED.glob("*/config.json"))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who names no models."""
    monkeypatch.delenv("LARMOR_MODELS")


def test_it_is_small_and_every_folder_is_a_model() -> None:
    assert FOLDERS and {folder.parent for folder in FOLDERS} == {EMBEDDED}
    assert sorted(one for one in EMBEDDED.iterdir() if one.is_dir()) == FOLDERS
    assert sum(file.stat().st_size for file in EMBEDDED.rglob("*") if file.is_file()) <= LARGEST_BYTES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_says_what_it_was_fitted_on_and_nothing_of_a_machine(folder: Path) -> None:
    card = (folder / "card.md").read_text()
    for said in ("synthetic patients", "Apache-2.0", "not a medical device"):
        assert said in card
    paths = [text for text in _texts(json.loads((folder / "config.json").read_text())) if text.startswith("/")]
    assert paths == []


def test_a_synthetic_study_is_read_without_naming_a_model(embedded: None) -> None:
    names = {folder.name for folder in default_models()}
    assert {"brain-structures", "lesion"} <= names and not names & {one.name for one in default_writers()}
    patient = make_patient(CohortConfig(contrasts=("T1w", "FLAIR"), spacing_mm=4.0, missing_series=0.0), 3)
    writers, reasons = load_writers([])
    assert writers and reasons == []
    result = read_study(patient.study, load_models([]), writers=writers)
    assert isinstance(result.reading, Reading)
    assert {one.source for one in result.reading.findings} == names
    white = [one.measured("volume") for one in result.reading.findings if one.name == "cerebral white matter"]
    truth = patient.truth["volumes_ml"]["cerebral white matter"]
    assert sum(one or 0.0 for one in white) == pytest.approx(truth, rel=0.4)
    assert {one.writer for one in result.draft.sentences} & {writer.name for writer in writers}


def test_an_accelerated_scan_is_reconstructed_without_naming_a_model(embedded: None, tmp_path: Path) -> None:
    assert default_network() == EMBEDDED / "reconstruction"
    rng = np.random.default_rng(0)
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 7)
    raw = simulate_raw(anatomy, tissues, "T2w", rng, num_slices=2, num_coils=8, noise=0.02)
    np.savez(tmp_path / "scan.npz", kspace=raw.kspace.numpy())
    reconstruct_command(tmp_path / "scan.npz", tmp_path / "out", methods=["cg-sense", "learned"], acceleration=4)
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]
    assert scores["learned"]["psnr"] > scores["cg-sense"]["psnr"] + 1
    assert (tmp_path / "out" / "learned-doubt.nii.gz").is_file()


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []
