"""`larmor reconstruct` end to end: files in, images in their place, errors against the right reference, one seed one result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from foundation.cohort.patient import CohortConfig, make_anatomy
from foundation.cohort.raw import simulate_raw, write_raw
from foundation.errors import InputError
from foundation.physics.kspace import root_sum_of_squares, to_image
from foundation.raw import RawData
from foundation.reading.nifti import read_nifti
from foundation.reading.raw import of_volume, read_raw
from foundation.reconstruction.command import STORED, Undersampling, compare, reconstruct_command
from foundation.reconstruction.metrics import errors


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slices of a synthetic head, complete, as the cohort writes them."""
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    raw = simulate_raw(anatomy, tissues, "T2w", np.random.default_rng(0), num_slices=3, noise=0.005)
    path = tmp_path_factory.mktemp("scan") / "raw.h5"
    write_raw(path, raw, subject="sub-00000")
    return path


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_an_accelerated_scan_is_reconstructed_in_place(scan: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "out"
    reconstruct_command(scan, out, methods=["zero-filled", "cg-sense"], acceleration=3.0, calibration=8, seed=4)
    assert {file.name for file in out.iterdir()} == {
        "zero-filled.nii.gz", "cg-sense.nii.gz", "metrics.json", "errors.png",
    }  # fmt: skip
    raw, said = read_raw(scan), figures(out)
    assert raw.affine is not None and raw.target is not None
    for name, row in said["methods"].items():
        series = read_nifti(out / f"{name}.nii.gz")
        assert series.side_is_known and series.shape == (*raw.target.shape[1:], 3)
        np.testing.assert_allclose(series.affine, raw.affine, atol=1e-3)
        image = series.voxels.transpose(2, 0, 1)
        for figure, value in errors(raw.target.numpy(), image).items():
            assert row[figure] == pytest.approx(value, rel=1e-4)
    assert said["methods"]["cg-sense"]["nmse"] < 0.5 * said["methods"]["zero-filled"]["nmse"]
    assert said["sampled"] == pytest.approx(1 / 3, abs=0.02)
    assert (said["geometry"], said["reference"]) == ("known", "the image that the file holds")
    assert "cg-sense" in capsys.readouterr().out


def test_the_same_seed_is_the_same_scan(scan: Path) -> None:
    raw = read_raw(scan)
    one, same, other = (Undersampling(4.0, "random", 6, seed=seed).draw(raw) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_complete_data_zero_filled_are_their_own_reference(scan: Path, tmp_path: Path) -> None:
    kspace = read_raw(scan).kspace.numpy()
    np.save(tmp_path / "k.npy", kspace)
    reconstruct_command(tmp_path / "k.npy", tmp_path / "out", methods=["zero-filled"])
    said = figures(tmp_path / "out")
    assert said["methods"]["zero-filled"]["nmse"] == 0 and said["methods"]["zero-filled"]["psnr"] is None
    assert said["reference"] == "root sum of squares of all samples" and "not known" in said["geometry"]
    image = nib.load(tmp_path / "out" / "zero-filled.nii.gz")
    expected = root_sum_of_squares(to_image(torch.from_numpy(kspace)), axis=1).permute(1, 2, 0)
    np.testing.assert_allclose(image.get_fdata(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))  # pyright: ignore
    assert int(image.header["sform_code"]) == 0  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_there_is_reconstructed_and_nobody_says_how_well(scan: Path, tmp_path: Path) -> None:
    raw = read_raw(scan)
    assert raw.planned is not None
    np.save(tmp_path / "k.npy", raw.keep(raw.planned).kspace.numpy())
    reconstruct_command(tmp_path / "k.npy", tmp_path / "out", methods=["cg-sense"])
    said = figures(tmp_path / "out")
    assert said["reference"] is None and set(said["methods"]["cg-sense"]) == {"seconds"}
    assert said["sampled"] == pytest.approx(0.25, abs=0.06)


def test_the_stored_mask_and_partial_fourier(scan: Path) -> None:
    raw = read_raw(scan)
    assert raw.planned is not None
    assert torch.equal(Undersampling(mask=STORED).draw(raw), raw.planned)
    half = Undersampling(partial_fourier=0.75).draw(raw)
    assert half.flatten().tolist() == [k < round(0.75 * raw.shape[1]) for k in range(raw.shape[1])]
    both = Undersampling(acceleration=2, partial_fourier=0.75).draw(raw)
    assert torch.equal(both, half & Undersampling(acceleration=2).draw(raw))


def test_a_volume_may_be_left_out_in_two_axes(scan: Path) -> None:
    planes = of_volume(read_raw(scan).kspace)
    mask = Undersampling(acceleration=4).draw(planes)
    assert mask.shape == (1, 1, *planes.shape)
    assert float(mask.float().mean()) == pytest.approx(0.25, abs=0.01)
    words = compare(planes, ["zero-filled"], Undersampling(acceleration=4)).words(planes)
    assert "no scanner" not in words


def test_points_left_out_of_slices_are_remarked_on(scan: Path) -> None:
    raw = read_raw(scan)
    words = compare(raw, ["zero-filled"], Undersampling(acceleration=4, mask="poisson")).words(raw)
    assert "no scanner" in words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"methods": ["cg-sens"]}, "cg-sense"),
        ({"mask": "randon", "acceleration": 4.0}, "random"),
        ({"mask": "random"}, "--acceleration"),
        ({"acceleration": 0.5}, "at least 1"),
        ({"acceleration": 4.0, "calibration": 100}, "calibration"),
        ({"partial_fourier": 0.3}, "0.625"),
        ({"acceleration": 4.0, "methods": ["pocs"]}, "--partial-fourier"),
    ],
)
def test_what_cannot_be_done_says_why(scan: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        reconstruct_command(scan, tmp_path / "out", **options)
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_complete_scans_are_accelerated(scan: Path) -> None:
    raw = read_raw(scan)
    part = raw.keep(torch.arange(raw.shape[1])[None, None, None] % 2 == 0)
    with pytest.raises(InputError, match="complete"):
        Undersampling(acceleration=4.0).draw(part)
    plain = RawData(raw.kspace, raw.mask)
    with pytest.raises(InputError, match="stored mask"):
        Undersampling(mask=STORED).draw(plain)


def test_a_real_accelerated_brain(shared_data: Path, tmp_path: Path) -> None:
    """A sharper image than zero filling's; how right it is, nobody can say."""
    scan = shared_data / "kspace_sigpy_brain8ch" / "cartesian_ksp.npy"
    reconstruct_command(scan, tmp_path, methods=["zero-filled", "cg-sense"])
    plain, solved = (read_nifti(tmp_path / f"{name}.nii.gz").voxels[..., 0] for name in ("zero-filled", "cg-sense"))
    assert figures(tmp_path)["reference"] is None

    def sharpness(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image, axis=1)).mean() / image.mean())

    assert sharpness(solved) > sharpness(plain)
    assert np.corrcoef(plain.ravel(), solved.ravel())[0, 1] > 0.9
