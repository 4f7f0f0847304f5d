"""What several tests share: small volumes, NIfTI files with any header, and the real data where there is some."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from foundation.study import Series

REAL_DATA = Path(os.environ.get("LARMOR_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True, scope="session")
def no_default_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests say which models they mean: those that come with Larmor would be asked everywhere, and take their time."""
    os.environ["LARMOR_MODELS"] = str(tmp_path_factory.mktemp("no-models"))


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data, which is no part of the repository: without it the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real data is not beside the repository; set LARMOR_REAL_DATA to its folder")
    return REAL_DATA


def grid(
    orientation: str = "RAS", spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0), oblique_deg: float = 0.0
) -> np.ndarray:
    """An affine, exact in float32, with array axes along `orientation`, turned by `oblique_deg` about an odd axis."""
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(orientation)), (1, 1, 1))[:3, :3]
    turn = nib.quaternions.angle_axis2mat(np.deg2rad(oblique_deg), [1.0, 2.0, -0.5])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.linalg.inv(axes) @ np.diag(spacing_mm)
    affine[:3, 3] = (-90.5, -126.25, -72.125)
    return affine.astype(np.float32).astype(np.float64)


@pytest.fixture
def make_series() -> Callable[..., Series]:
    """`make_series(shape, seed=0, orientation=..., spacing_mm=..., oblique_deg=..., **fields of Series)`."""

    def make(
        shape: tuple[int, int, int] = (6, 5, 4), seed: int = 0, orientation: str = "RAS", **options: Any
    ) -> Series:
        affine = grid(orientation, options.pop("spacing_mm", (1.0, 1.0, 1.0)), options.pop("oblique_deg", 0.0))
        voxels = np.random.default_rng(seed).gamma(2.0, 100.0, shape).astype(np.float32)
        return Series(voxels=voxels, affine=affine, **options)

    return make


def nifti_bytes(
    array: np.ndarray | None = None, affine: np.ndarray | None = None, version: int = 1, **fields: Any
) -> bytes:
    """A NIfTI file put together by hand, so that `fields` can put anything into its header; uncompressed."""
    array = np.arange(120, dtype=np.int16).reshape(6, 5, 4) if array is None else array
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_qform(grid() if affine is None else affine, 1)
    header.set_sform(grid() if affine is None else affine, 1)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header.set_data_offset(header.single_vox_offset)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + array.tobytes(order="F")


@pytest.fixture
def nifti_file(tmp_path: Path) -> Callable[..., Path]:
    """`nifti_file(name, array, affine, version, **header fields)`: such a file, gzipped if `name` says so."""

    def write(name: str = "volume.nii", *args: Any, **fields: Any) -> Path:
        content = nifti_bytes(*args, **fields)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
        return path

    return write


@pytest.fixture
def make_collection(tmp_path: Path) -> Callable[..., Path]:
    """`make_collection(num_subjects)`: heads-like balls of two contrasts with a labelled core, some missing a series.

    The core's size decides `targets.large`; every third subject is for testing. Returns the manifest's path.
    """
    from foundation.reading.collection import Row, SeriesEntry, write_manifest
    from foundation.reading.nifti import write_labels, write_volume

    def make(num_subjects: int = 6, *, num_series: int = 2) -> Path:
        rows = []
        for subject in range(num_subjects):
            rng = np.random.default_rng(subject)
            large = subject % 2
            index = np.stack(np.meshgrid(*[np.arange(26)] * 3, indexing="ij"), axis=-1)
            radius = np.linalg.norm(index - 12.5 - rng.uniform(-1, 1, 3), axis=-1)
            labels = (radius < 3 + 3 * large).astype(np.int16)
            affine = grid(("RAS", "LAS", "PSR")[subject % 3], (4.0, 4.0, 4.0))
            entries = []
            for contrast, core in (("T1w", 30.0), ("T2w", 200.0))[:num_series]:
                if num_series == 2 and contrast == "T2w" and subject % 4 == 3:
                    continue
                voxels = np.select([labels > 0, radius < 11], [core, 100.0], 0.0) + 5 * rng.random(radius.shape)
                name = f"sub-{subject:02d}_{contrast}.nii.gz"
                series = Series(voxels.astype(np.float32), affine, name=name)
                write_volume(tmp_path / name, series.voxels, series)
                entries.append(SeriesEntry(path=name, contrast=contrast))  # type: ignore[arg-type]
            write_labels(tmp_path / f"sub-{subject:02d}_core.nii.gz", labels, series)
            rows.append(
                Row(
                    subject=f"sub-{subject:02d}",
                    series=tuple(entries),
                    mask=f"sub-{subject:02d}_core.nii.gz",
                    targets={"large": large, "size_ml": float(labels.sum()) * 0.064},
                    split="test" if subject % 3 == 2 else "train",
                )
            )
        write_manifest(tmp_path / "manifest.jsonl", rows)
        return tmp_path / "manifest.jsonl"

    return make
