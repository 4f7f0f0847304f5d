"""What was not measured: learned from the simulator, marked for ever, and never found anything in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from foundation.cohort.patient import make_anatomy
from foundation.cohort.stream import StreamConfig
from foundation.errors import InputError
from foundation.preprocess import prepare_study
from foundation.reading.collection import study_from_path
from foundation.reading.nifti import read_nifti, write_sidecar, write_volume
from foundation.study import Study
from foundation.training import Draw, TrainingConfig
from heads.synthesis.command import CAVEAT, estimate, map_command, synthesise_command
from heads.synthesis.network import CONTRASTS, MAPS, Translator, TranslatorConfig, View, Views
from heads.synthesis.training import CohortViews, TrainSynthesisConfig, train_synthesis, whole_view

COHORT = StreamConfig(subjects=1, spacing_mm=4.0, contrasts=CONTRASTS, missing_series=0.0)
SMALL = TranslatorConfig(channels=8, spacing_mm=4.0)


@pytest.fixture(scope="module")
def view() -> View:
    return whole_view(*make_anatomy(COHORT, 0), COHORT, 1, 4.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainSynthesisConfig(
        network=SMALL,
        training=TrainingConfig(steps=30, batch_size=1, learning_rate=5e-3, warmup_steps=2, precision="fp32"),
        cohort=COHORT,
        variants=1,
    )
    folder = tmp_path_factory.mktemp("run")
    _, result = train_synthesis(config, folder, on_start=lambda text: None)
    assert result.records[-1]["step"] == 30
    return folder / "model"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with T1w, T2w and DWI of a head."""
    from foundation.cohort.patient import scan_again

    folder = tmp_path / "study"
    folder.mkdir()
    for scan in scan_again(*make_anatomy(COHORT, 0), COHORT, 2):
        suffix = {"DWI": "dwi"}.get(scan.series.name, scan.series.name)
        if suffix in ("T1w", "T2w", "dwi"):
            write_volume(folder / f"sub-1_{suffix}.nii.gz", scan.series.voxels, scan.series)
            write_sidecar(folder / f"sub-1_{suffix}.json", scan.series.acquisition)
    return folder


def test_truth_is_the_simulators_on_the_grid_of_the_images(view: View) -> None:
    assert view.maps is not None and view.targets is not None
    t1 = 1000 * view.maps[:, 0].exp()
    known = t1.isfinite()
    assert float(t1[known].min()) > 100 and float(t1[known].max()) < 6000
    # Fluid is dark in T1w and bright in T2w: the maps lie where the images lie.
    fluid = known & (t1 > 3000) & view.body
    for name, brighter in (("T1w", False), ("T2w", True)):
        image = view.targets[:, CONTRASTS.index(name)]
        assert bool(image[fluid].mean() > image[known & view.body].mean()) == brighter


def test_what_is_kept_back_does_not_reach_the_network(view: View) -> None:
    torch.manual_seed(0)
    network = Translator(SMALL).eval()
    kept = torch.tensor([True, False, True, False, False])
    one = view.some(torch.arange(5, 7)).keeping(kept)
    other = replace(one, targets=None, maps=None)
    spoilt = view.images.clone()
    spoilt[:, ~kept] += 5
    again = replace(view, images=spoilt).some(torch.arange(5, 7)).keeping(kept)
    with torch.no_grad():
        assert torch.equal(network.outputs(one), network.outputs(other))
        assert torch.equal(network.outputs(one), network.outputs(again))
        assert not torch.equal(network.outputs(one), network.outputs(view.some(torch.arange(5, 7))))


def test_every_weight_gets_a_gradient_and_only_what_is_missing_counts(view: View) -> None:
    network = Translator(SMALL)
    kept = view.some(torch.arange(5, 9)).keeping(torch.tensor([True, True, True, False, True]))
    losses = network(Views((kept,)))
    losses["loss"].backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert kept.targets is not None
    others = kept.targets.clone()
    others[:, :3] += 9  # of the contrasts that are there nothing is asked
    assert torch.equal(network(Views((replace(kept, targets=others),)))["contrasts"], losses["contrasts"])


def test_samples_are_functions_of_their_draw() -> None:
    samples = CohortViews(TrainSynthesisConfig(network=SMALL, cohort=COHORT, variants=2))
    one, same, other = (samples[Draw(0, seed)] for seed in (4, 4, 5))
    assert torch.equal(one.images, same.images) and torch.equal(one.present, same.present)
    assert not torch.equal(one.images, other.images)
    assert bool(one.present.any()) and not bool(one.present.all())


def test_maps_are_marked_and_come_with_the_caveat(trained: Path, study: Path, tmp_path: Path, capsys) -> None:
    map_command(study, tmp_path / "out", model=trained)
    assert CAVEAT in capsys.readouterr().out
    reference = study_from_path(study).reference
    for name in MAPS:
        found = read_nifti(tmp_path / "out" / f"{name}.nii.gz")
        assert found.predicted and found.shape == reference.shape
        np.testing.assert_allclose(found.affine, reference.affine, atol=1e-4)
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["Predicted"] is True
    t1 = read_nifti(tmp_path / "out" / "T1.nii.gz").voxels
    assert 200 < np.median(t1[t1 > 0]) < 5000


def test_adc_needs_diffusion(trained: Path, study: Path, tmp_path: Path, capsys) -> None:
    for file in study.glob("*dwi*"):
        file.unlink()
    map_command(study, tmp_path / "out", model=trained)
    assert not (tmp_path / "out" / "ADC.nii.gz").exists()
    assert "no diffusion-weighted series" in capsys.readouterr().out


def test_a_predicted_series_is_marked_in_its_header_whatever_becomes_of_its_sidecar(
    trained: Path, study: Path, tmp_path: Path
) -> None:
    synthesise_command(study, tmp_path / "out", model=trained, contrast="FLAIR")
    path = tmp_path / "out" / "desc-predicted_FLAIR.nii.gz"
    assert b"not measured" in nib.load(path).header["descrip"].tobytes()  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    path.with_name("desc-predicted_FLAIR.json").unlink()
    renamed = path.rename(study / "sub-1_FLAIR.nii.gz")
    series = read_nifti(renamed)
    assert series.contrast == "FLAIR" and series.predicted
    whole = study_from_path(study)
    assert [one.contrast for one in whole.measured.series] == ["T1w", "T2w", "DWI"]
    with pytest.raises(InputError, match="was measured"):
        prepare_study(whole, (4.0, 4.0, 4.0))
    with pytest.raises(InputError, match="a series that was measured"):
        _ = Study("1", (series,)).measured
    assert "FLAIR" not in estimate(Translator.load(trained), whole).sources


def test_a_contrast_that_was_measured_is_not_predicted(trained: Path, study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the study has no T2w"):
        synthesise_command(study, tmp_path / "out", model=trained, contrast="T2w")
    with pytest.raises(InputError, match="a known one"):
        synthesise_command(study, tmp_path / "out", model=trained, contrast="T2")
