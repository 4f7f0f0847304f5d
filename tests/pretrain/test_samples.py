"""Boxes from files and from a store are the same boxes; what was removed with the face reaches the loss; damage is survived."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation.config import parse_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.preprocess import Box
from foundation.reading.collection import Row, SeriesEntry, read_manifest, write_manifest
from foundation.reading.nifti import read_nifti, write_labels
from foundation.store.index import StoreConfig
from foundation.store.reader import Store, verify
from foundation.store.sources import ManifestSources
from foundation.store.writer import write_store
from foundation.training import Draw, read_records
from pretrain.__main__ import main, pretrain
from pretrain.config import CropConfig, PretrainConfig
from pretrain.damage import Damage, Mended, use_study
from pretrain.masking import MaskedBatch
from pretrain.objectives import objective_module, parse_objective
from pretrain.objectives.masked_autoencoding import FLAT_VARIANCE, MaskedStudies
from pretrain.samples import (
    FiledStudies,
    Ready,
    Sample,
    SeriesInMemory,
    StoredStudies,
    Studies,
    box_tokens,
)

CROP = CropConfig(voxels=24, spacing_mm=(4.0, 4.5), max_tokens=64, max_targets=16)


def filed(manifest: Path) -> FiledStudies:
    collection = read_manifest(manifest)
    return FiledStudies(collection, collection.rows)


def prepared(manifest: Path, folder: Path, margin_mm: float = 1000.0) -> Store:
    """With so much margin nothing is cropped, and a series has the same grid as in its file."""
    write_store(folder, ManifestSources(read_manifest(manifest)), StoreConfig(margin_mm=margin_mm), processes=1)
    return Store.open(folder)


def spoil(path: Path, place: int = -40) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(content)


def with_removed(manifest: Path) -> Path:
    """The same collection, where the front half of every first series was removed with the face."""
    rows, root = [], manifest.parent
    for row in read_manifest(manifest).rows:
        series = read_nifti(root / row.series[0].path)
        index = np.stack(np.meshgrid(*map(np.arange, series.shape), indexing="ij"), axis=-1)
        in_front = series.to_patient_mm(index)[..., 1] > series.to_patient_mm((np.asarray(series.shape) - 1) / 2)[1]
        name = f"{row.subject}_removed.nii.gz"
        write_labels(root / name, in_front.astype(np.int16), series)
        first = row.series[0].model_copy(update={"removed": name})
        rows.append(row.model_copy(update={"series": (first, *row.series[1:])}))
    write_manifest(root / "removed.jsonl", rows)
    return root / "removed.jsonl"


# -------------------------------------------------------------------------------- One interface


def test_files_and_a_store_say_the_same_of_a_series(make_collection, tmp_path: Path) -> None:
    manifest = with_removed(make_collection(4))
    from_files, from_store = filed(manifest), StoredStudies(prepared(manifest, tmp_path / "store"))
    assert isinstance(from_files, Studies) and isinstance(from_store, Studies)
    assert [from_files.name(n) for n in range(4)] == [from_store.name(n) for n in range(4)]
    for index in range(4):
        ours, theirs = from_store.ready(index, 0), from_files.ready(index, 0)
        assert len(ours) == len(theirs)
        for stored, read in zip(ours, theirs, strict=True):
            assert isinstance(stored, Ready) and isinstance(read, Ready)
            assert np.allclose(stored.grid.affine, read.grid.affine) and stored.grid.shape == read.grid.shape
            assert (stored.contrast, stored.acquisition) == (read.contrast, read.acquisition)
            one, other = (series.read_box((3, 2, 1), (20, 21, 22)) for series in (stored, read))
            assert np.abs(one.values - other.values).max() < 1e-4
            assert np.array_equal(one.body, other.body)
            assert (one.removed is None) == (other.removed is None)
            assert one.removed is None or (np.array_equal(one.removed, other.removed) and one.removed.any())
            for series in (stored, read):
                voxel = series.draw_voxel(np.random.default_rng(index))
                assert series.read_box(voxel.tolist(), (voxel + 1).tolist()).body.all()


def test_the_same_place_gives_the_same_tokens(make_collection, tmp_path: Path, monkeypatch) -> None:
    """Files draw a place from a list of the body's voxels and a store by trying; from one place on all else is the same."""
    manifest = with_removed(make_collection(3))
    from_files, from_store = filed(manifest), StoredStudies(prepared(manifest, tmp_path / "store"))
    for kind in (SeriesInMemory, type(from_store.ready(0, 0)[0])):
        monkeypatch.setattr(kind, "draw_voxel", lambda self, rng: rng.integers(8, 18, size=3))
    for index in range(3):
        for seed in range(5):
            read, hidden = box_tokens(from_files.ready(index, 0), np.random.default_rng(seed), CROP)
            stored, left_out = box_tokens(from_store.ready(index, 0), np.random.default_rng(seed), CROP)
            assert torch.equal(read.cell, stored.cell) and torch.allclose(read.centre_mm, stored.centre_mm, atol=1e-3)
            assert (read.patches - stored.patches).abs().max() < 1e-4
            assert hidden is not None and left_out is not None and torch.equal(hidden, left_out)


def test_a_stores_splits_are_the_manifests(make_collection, tmp_path: Path) -> None:
    store = prepared(make_collection(6), tmp_path / "store")
    assert len(StoredStudies(store)) == 6
    test = StoredStudies(store, ["test"])
    assert [test.name(n) for n in range(len(test))] == ["sub-02", "sub-05"]
    assert test.fingerprint() != StoredStudies(store).fingerprint()
    again = prepared(make_collection(6), tmp_path / "again", margin_mm=1000.0)
    assert StoredStudies(again).fingerprint() == StoredStudies(store).fingerprint()


# -------------------------------------------------------------------------------- Removed with the face


class Halves:
    """A series whose voxels say where they are, and whose upper half was removed."""

    def __init__(self, like: Ready):
        self.grid, self.contrast, self.acquisition = like.grid, like.contrast, like.acquisition

    def draw_voxel(self, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(self.grid.shape) // 2

    def read_box(self, first, last) -> Box:
        index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(first, last)), indexing="ij"))
        return Box(index[2].astype(np.float32), np.ones(index.shape[1:], bool), index[2] >= 13)


def test_removed_voxels_stay_with_their_tokens(make_collection) -> None:
    series = Halves(filed(make_collection(1)).ready(0, 0)[0])
    crop = CropConfig(voxels=24, spacing_mm=(4.0, 4.0), anisotropic=0.0, max_tokens=64, max_targets=16)
    bag, removed = box_tokens([series], np.random.default_rng(0), crop)
    assert removed is not None and 0 < removed.sum() < removed.numel()
    # At the series' own spacing every voxel still holds its own height: above 13 is removed, below is not.
    heights = bag.patches[0]
    assert torch.equal(removed, heights > 12.0)
    studies = MaskedStudies(filed(make_collection(1)), crop)
    batch = studies.collate([Sample(bag, seed, removed) for seed in range(3)])
    assert batch.removed is not None and torch.equal(batch.removed, batch.targets.patches > 12.0)
    assert torch.equal(batch.to("cpu").removed, batch.removed)
    assert studies.collate([Sample(bag, 0)]).removed is None


def test_the_loss_leaves_removed_voxels_out(make_collection) -> None:
    """Whatever they hold, the loss is the same; and it equals a naive one over the voxels that are left."""
    manifest = with_removed(make_collection(4))
    studies = MaskedStudies(filed(manifest), CROP)
    batch = studies.collate([studies[Draw(index, index)] for index in range(4)])
    assert batch.removed is not None and 0 < batch.removed.sum() < batch.removed.numel()
    torch.manual_seed(0)
    objective = objective_module("masked_autoencoding").Objective(
        Encoder(EncoderConfig(width=64, depth=2)), parse_objective({"kind": "masked_autoencoding"})
    )
    objective.eval()
    with torch.no_grad():
        before = objective(batch)["loss"].item()
        predicted = objective.reconstruct(batch.visible, batch.targets)
        total, number = 0.0, 0
        for guess, patch, hole in zip(
            predicted.flatten(0, 1).double(), batch.targets.patches.flatten(0, 1).double(), batch.removed.flatten(0, 1)
        ):
            kept = patch[~hole]
            if len(kept):
                wanted = (kept - kept.mean()) / (kept.var(correction=0) + FLAT_VARIANCE).sqrt()
                total += float((guess[~hole] - wanted).square().sum())
                number += len(kept)
        assert before == pytest.approx(total / number, rel=1e-4)
        batch.targets.patches[batch.removed] += 100.0
        assert objective(batch)["loss"].item() == pytest.approx(before, rel=1e-5)
        whole = objective(MaskedBatch(batch.visible, batch.targets))["loss"].item()
        assert abs(whole - before) > 1e-3, "left in, they would count"
        everything = MaskedBatch(batch.visible, batch.targets, torch.ones_like(batch.removed))
        assert objective(everything)["loss"].item() == 0.0


# -------------------------------------------------------------------------------- Damage


SETTINGS = {
    "splits": None,
    "crop": CROP.model_dump(),
    "training": {"steps": 4, "batch_size": 3, "warmup_steps": 1, "log_every": 1, "precision": "fp32"},
}


def losses(folder: Path, **source: object) -> list[tuple[float, float]]:
    pretrain(parse_config(PretrainConfig, {**SETTINGS, "folder": str(folder), **source}))
    return [(record["loss"], record["gradient_norm"]) for record in read_records(folder / "metrics.jsonl")]


def test_damaged_files_change_nothing_about_the_rest(make_collection, tmp_path: Path, capsys) -> None:
    """The run ends, lists what was damaged, and its losses are those of a collection that never had it, to the last bit.

    Once damaged before the store was made, once in the store itself and found by its verification.
    """
    manifest = make_collection(7)
    rows = [row for row in read_manifest(manifest).rows if row.subject not in ("sub-02", "sub-05")]
    write_manifest(manifest.parent / "good.jsonl", rows)
    prepared(manifest.parent / "good.jsonl", tmp_path / "good", margin_mm=4.0)
    expected = losses(tmp_path / "run-good", store=str(tmp_path / "good"))
    assert len(expected) == 4

    whole = prepared(manifest, tmp_path / "whole", margin_mm=4.0)
    for subject in ("sub-02", "sub-05"):
        for row in (whole.row(n) for n in range(len(whole))):
            if row.subject == subject:
                spoil(whole.folder / row.shard, row.position + row.num_bytes - 9)
        for path in manifest.parent.glob(f"{subject}_T*.nii.gz"):
            spoil(path)
    write_store(tmp_path / "bad", ManifestSources(read_manifest(manifest)), StoreConfig(), budget=0.5, processes=1)
    assert losses(tmp_path / "run-bad", store=str(tmp_path / "bad")) == expected
    verify(whole.folder, 1)
    capsys.readouterr()
    assert losses(tmp_path / "run-damaged", store=str(whole.folder)) == expected
    printed = capsys.readouterr().out
    assert "4 bad files were left out" in printed and "sub-02#0" in printed and "sub-05#1" in printed


@pytest.mark.parametrize("source", ["manifest", "store"])
def test_damage_met_on_the_way_is_replaced_listed_and_repeatable(
    source: str, make_collection, tmp_path: Path, capsys
) -> None:
    manifest = make_collection(6)
    given = {"manifest": str(manifest)}
    if source == "store":
        store = prepared(manifest, tmp_path / "store", margin_mm=4.0)
        row = store.row(0)
        spoil(store.folder / row.shard, row.position + row.num_bytes - 9)
        given = {"store": str(store.folder)}
    else:
        spoil(manifest.parent / "sub-00_T1w.nii.gz")
    first = losses(tmp_path / "one", **given)
    assert "1 bad file was left out:\n  sub-00" in capsys.readouterr().out
    assert losses(tmp_path / "two", **given) == first
    with pytest.raises(InputError, match="at most 0 of 6"):
        losses(tmp_path / "three", bad_files=0.0, **given)


class Numbered(Halves):
    """A series that is nothing but its study's number."""

    grid = contrast = acquisition = None  # type: ignore[assignment]

    def __init__(self, number: int):
        self.number = number


class Numbers:
    """Studies that are nothing but their numbers; those `missing` cannot be read."""

    def __init__(self, number: int, missing: Collection[int]):
        self.number, self.missing = number, missing

    def __len__(self) -> int:
        return self.number

    def ready(self, index: int, seed: int) -> tuple[Any, ...]:
        if index in self.missing:
            raise InputError("a file is whole", got="half", remedy="Copy it.", file=f"{index}.nii")
        return (Numbered(index),)

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return "numbers"


def test_the_substitute_depends_on_the_draw_alone(tmp_path: Path) -> None:
    draws = [Draw(index % 8, seed) for index, seed in enumerate(range(100, 160))]
    runs = []
    for name, order in (("a", draws), ("b", draws[::-1])):
        damage = Damage(tmp_path / name, 0.01)
        mended = Mended(Numbers(8, (2, 3, 5)), damage)
        runs.append({draw: use_study(mended, draw, lambda study: study[0].number) for draw in order})
        assert sorted(one.file for one in damage.found()) == ["2", "3", "5"]
        assert (tmp_path / name).read_text().count("\n") == 3
    assert runs[0] == runs[1]
    assert all(index == draw.index or draw.index in (2, 3, 5) for draw, index in runs[0].items())
    assert len({index for draw, index in runs[0].items() if draw.index in (2, 3, 5)}) > 2, "not one neighbour for all"


@pytest.mark.parametrize(("number", "words"), [(2, "whole"), (50, "at most 3 of 50")])
def test_when_nothing_can_be_read_the_run_ends(tmp_path: Path, number: int, words: str) -> None:
    for path in (tmp_path / "list", None):
        with pytest.raises(InputError, match=words):
            use_study(Mended(Numbers(number, range(number)), Damage(path, 0.01)), Draw(0, 1), lambda study: study)


def test_what_fails_in_the_middle_of_a_study_counts_against_that_study(tmp_path: Path) -> None:
    """Every term of a mixture reads in its own way; the name that is noted is the one that it read."""

    def halfway(study: Sequence[Any]) -> int:
        if study[0].number == 3:
            raise InputError("a chunk is whole", got="half", remedy="Copy it.")
        return study[0].number

    damage = Damage(None, 0.5)
    mended = Mended(Numbers(8, ()), damage)
    assert {use_study(mended, Draw(index, index), halfway) for index in range(8)} <= {0, 1, 2, 4, 5, 6, 7}
    assert [one.file for one in damage.found()] == ["3"]


def test_a_study_that_shows_next_to_nothing_is_replaced_and_not_a_crash(make_collection) -> None:
    """A field of view of two patches at this spacing: there is nothing to hide in it."""
    crop = CropConfig(voxels=24, spacing_mm=(40.0, 40.0), anisotropic=0.0)
    with pytest.raises(InputError, match="at least 4 patches"):
        MaskedStudies(filed(make_collection(1)), crop)[Draw(0, 1)]


@pytest.mark.parametrize("wrong", [{"spacing_mm": [3.0, 1.0]}, {"visible_fraction": 2.0}, {"max_tokens": 1}])
def test_a_crop_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        parse_config(CropConfig, wrong)


def test_a_store_without_studies_of_the_split_is_one_line(make_collection, tmp_path: Path, capsys) -> None:
    store = prepared(make_collection(2), tmp_path / "store")
    config = tmp_path / "config.yaml"
    config.write_text(f"store: {store.folder}\nfolder: {tmp_path / 'run'}\n")
    assert main([str(config)]) == 2
    assert "splits=null" in capsys.readouterr().err
    assert main([str(config), f"store={tmp_path}"]) == 2
    assert "a store is a folder" in capsys.readouterr().err


def test_removed_masks_on_another_grid_are_refused(make_collection) -> None:
    manifest = make_collection(1)
    series = read_nifti(manifest.parent / "sub-00_T1w.nii.gz")
    smaller = series.with_voxels(series.voxels[:-1])
    write_labels(manifest.parent / "removed.nii.gz", np.ones(smaller.shape, np.int16), smaller)
    entry = SeriesEntry(path="sub-00_T1w.nii.gz", removed="removed.nii.gz")
    write_manifest(manifest, [Row(subject="sub-00", series=(entry,))])
    with pytest.raises(InputError, match="shape of its series"):
        filed(manifest).ready(0, 0)
