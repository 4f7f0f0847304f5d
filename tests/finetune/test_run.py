"""Fine-tuning end to end on phantoms: every recipe runs, LoRA merges exactly, results are evaluated and reload."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.__main__ import main
from finetune.adapters import add_lora, merge_lora
from finetune.augment import Augment
from finetune.compare import Contender, compare
from finetune.config import AugmentConfig, FinetuneConfig, LoraConfig
from finetune.evaluate import bootstrap, evaluate_to_folder
from finetune.run import finetune
from finetune.samples import crop_sample, read_labelled
from foundation.config import parse_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.preprocess import prepare_study
from foundation.reading.collection import read_manifest, read_mask, read_study
from foundation.reading.nifti import write_labels
from heads import _kinds
from heads.base import StudySample, load_task
from heads.detection import Head as Detection

ENCODER = EncoderConfig(width=64, depth=2)


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Encoder(ENCODER).save(tmp_path / "encoder", card="# test\n", provenance={})
    return tmp_path / "encoder"


def config_of(
    manifest: Path, folder: Path, encoder: Path | None, kind: str = "segmentation", **changes: object
) -> FinetuneConfig:
    head = {
        "segmentation": {
            "structures": [{"value": 1, "name": "core", "paired": False}],
            "channels": [8, 8, 8],
            "bottleneck": 16,
        },
        "classification": {"target": "large", "classes": ["small", "large"]},
    }[kind]
    values = {
        "name": f"test-{kind}",
        "folder": str(folder),
        "encoder": None if encoder is None else str(encoder),
        "head": {"kind": kind, **head},
        "data": {"manifest": str(manifest), "spacing_mm": [4.0, 4.0, 4.0], "crop_voxels": [24, 24, 24]},
        "training": {"steps": 3, "batch_size": 2, "warmup_steps": 1, "ema_decay": 0.9},
    }
    return parse_config(FinetuneConfig, values | changes)


def test_what_is_fitted_after_training_is_told_the_truth_where_it_lies(
    make_collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kinds of lesions, at a spacing that is not the files': the rule is that of the label maps on their own voxels."""
    monkeypatch.setattr(_kinds, "VOTES", 10_000)  # all voxels, so that nothing is drawn
    manifest = make_collection(6)
    collection = read_manifest(manifest)
    for row in collection.rows:
        study = read_study(row, collection.root)
        labels = read_mask(row, study, collection.root)
        write_labels(collection.root / str(row.mask), labels * (24 + 2 * int(row.targets["large"])), study.reference)
    kinds = [{"value": value, "name": f"kind {value}", "paired": False} for value in (24, 26)]
    lesion = {"value": 1, "also": [24, 26], "name": "lesion", "paired": False}
    head = {"kind": "detection", "structures": [lesion], "kinds": kinds, "channels": [4, 4, 4], "bottleneck": 8}
    data = {"manifest": str(manifest), "spacing_mm": [5.0, 5.0, 5.0]}
    config = config_of(manifest, tmp_path / "run", None, head=head, data=data, recipe="scratch")
    fitted = finetune(config)
    assert isinstance(fitted.model.head, Detection) and fitted.model.head.called is not None
    again = Detection(ENCODER, fitted.model.head.config)
    studies = read_labelled(collection, collection.split("train"), again, (5.0, 5.0, 5.0), label="read")
    again.look_back([(one.prepared, one.labels) for one in studies], fitted.model.output_of)
    assert again.called is not None and again.called.weight.abs().sum() > 0
    assert torch.allclose(again.called.weight, fitted.model.head.called.weight, atol=1e-3)


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_every_recipe_against_each_other(make_collection, encoder_folder: Path, tmp_path: Path, kind: str) -> None:
    config = config_of(make_collection(7), tmp_path / "x", encoder_folder, kind)
    recipes = ["lora", "frozen", "full", "scratch", *(["dynunet"] if kind == "segmentation" else [])]
    contenders = [Contender(recipe, {"recipe": recipe}) for recipe in recipes]
    comparison = compare(config, contenders, tmp_path / "table", seeds=(0, 1), note="phantoms")
    assert [score.title for score in comparison.scores] == recipes
    assert comparison.num_cases == 2 and comparison.num_labels == 5
    for name in ("comparison.md", "comparison.json", "comparison.png"):
        assert (tmp_path / "table" / name).stat().st_size > 0
    for recipe in recipes:
        folder = tmp_path / "table" / f"{recipe}-seed0"
        assert (folder / "metrics.json").exists() and (folder / "loss.png").exists()
        if recipe != "dynunet":
            load_task(folder / "model")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "table").glob("*/metrics.json")}
    compare(config, contenders, tmp_path / "table", seeds=(0, 1))
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what is finished is not repeated"


def test_seeds_share_what_draws_nothing(make_collection, encoder_folder: Path, tmp_path: Path) -> None:
    config = config_of(make_collection(7), tmp_path / "x", encoder_folder)
    row = [Contender("atlas", {"recipe": "atlas"})]
    shared = compare(config, row, tmp_path / "all", seeds=(0, 1))
    assert [folder.name for folder in (tmp_path / "all").glob("atlas-*")] == ["atlas-seed0"]
    assert shared.scores == compare(config, row, tmp_path / "all", seeds=(0,)).scores
    few = config.model_copy(update={"data": config.data.model_copy(update={"num_labels": 3})})
    compare(few, row, tmp_path / "few", seeds=(0, 1))
    assert len(list((tmp_path / "few").glob("atlas-*"))) == 2, "which rows are taken is drawn"


def test_the_same_figures_of_each_group_of_cases(make_collection, encoder_folder: Path, tmp_path: Path) -> None:
    config = config_of(make_collection(12), tmp_path / "x", encoder_folder, recipe="frozen")
    ask = {"seeds": (0,), "note": "phantoms", "by": "large"}
    (score,) = compare(config, [Contender("frozen", {"recipe": "frozen"})], tmp_path / "table", **ask).scores
    cases = json.loads((tmp_path / "table" / "frozen-seed0" / "metrics.json").read_text())["cases"]
    assert len(cases) == 4
    for group, subjects in {"0": ("sub-02", "sub-08"), "1": ("sub-05", "sub-11")}.items():
        expected = np.mean([cases[name]["dice"] for name in subjects])
        assert score.by_group[group]["dice"].mean == pytest.approx(expected)
    with pytest.raises(InputError, match="has a group"):
        compare(config, [Contender("frozen", {"recipe": "frozen"})], tmp_path / "table", seeds=(0,), by="vendor")


def test_what_each_recipe_trains(encoder_folder: Path, make_collection, tmp_path: Path) -> None:
    from finetune.adapters import apply_recipe
    from finetune.run import make_model

    trained = {}
    for recipe in ("scratch", "frozen", "lora", "full"):
        config = config_of(make_collection(3), tmp_path, encoder_folder, recipe=recipe)
        model = make_model(config)
        apply_recipe(model, config)
        trained[recipe] = {name for name, p in model.encoder.named_parameters() if p.requires_grad}
        assert all(p.requires_grad for p in model.head.parameters())
        assert model.learning_rate_scale("encoder.norm.weight") == (1 if recipe == "scratch" else config.encoder_rate)
        assert model.learning_rate_scale("head.air") == 1
    assert trained["frozen"] == set()
    assert trained["full"] == {name for name, _ in Encoder(ENCODER).named_parameters()}
    assert trained["scratch"] == {name for name, _ in Encoder(EncoderConfig.of_size("tiny")).named_parameters()}
    assert any("lora_A" in name for name in trained["lora"])
    assert not any(name.endswith("q_proj.base_layer.weight") for name in trained["lora"])


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_adapters_are_late_unless_everything_is_adapted(
    encoder_folder: Path, make_collection, tmp_path: Path, kind: str
) -> None:
    """What is not the task's own is the backbone's: whatever learns lies in the last block, here the last of two."""
    from finetune.adapters import apply_recipe
    from finetune.run import make_model

    def learns(**lora: object) -> set[str]:
        config = config_of(make_collection(3), tmp_path, encoder_folder, kind, lora=lora)
        model = make_model(config)
        apply_recipe(model, config)
        return {name for name, p in model.encoder.named_parameters() if p.requires_grad}

    late, whole = learns(), learns(whole=True)
    assert late and all(name.startswith(("blocks.1.", "norm.")) for name in late)
    assert any(name.startswith("blocks.0.attn.q_proj.lora_A") for name in whole)
    assert {name for name in learns(blocks=2) if "lora_" in name} == {name for name in whole if "lora_" in name}
    if kind == "segmentation":
        assert {"norm.weight", "blocks.1.norm2.bias"} <= late, "norms learn where there are adapters"
        assert {"embed.patch.weight", "blocks.0.norm1.weight", "norm.weight"} <= whole
    else:
        assert all(name.startswith("blocks.1.mlp.") and ".lora_" in name for name in late)
        assert all(".lora_" in name for name in whole)


@torch.no_grad()
def test_merging_an_adapter_changes_nothing(make_collection) -> None:
    collection = read_manifest(make_collection(1))
    bag = StudySample.of(prepare_study(read_study(collection.rows[0], collection.root), (4.0, 4.0, 4.0))).tokens()
    torch.manual_seed(0)
    encoder = Encoder(ENCODER).eval()
    names = set(encoder.state_dict())
    add_lora(encoder, LoraConfig(rank=4, blocks=1))
    adapted = [name for name, _ in encoder.named_parameters() if "lora_" in name]
    assert adapted and all(name.startswith("blocks.1.") for name in adapted), "only the last block was asked for"
    plain = encoder(bag).tokens
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
    changed = encoder(bag).tokens
    assert not torch.allclose(plain, changed, atol=1e-3)
    merge_lora(encoder)
    assert torch.allclose(encoder(bag).tokens, changed, atol=1e-5)
    assert set(encoder.state_dict()) == names


def test_the_command_line_and_evaluating_its_model(
    make_collection, encoder_folder: Path, tmp_path: Path, capsys
) -> None:
    from foundation.config import save_config

    manifest = make_collection(6)
    save_config(config_of(manifest, tmp_path / "run", encoder_folder), tmp_path / "task.yaml")
    assert main([str(tmp_path / "task.yaml"), "data.num_labels=2"]) == 0
    assert "dice" in capsys.readouterr().out
    first = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert first["num_labels"] == 2
    evaluate_to_folder("segmentation", manifest, tmp_path / "again", tmp_path / "run" / "model", "test")
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["cases"] == first["cases"], "the saved model, its adapter merged, scores as the trained one"
    assert set(again["figures"]["dice"]) == {"mean", "low", "high"}
    with pytest.raises(InputError, match="does the task"):
        evaluate_to_folder("clasification", manifest, tmp_path / "no", tmp_path / "run" / "model", "test")
    with pytest.raises(InputError, match="the split has studies"):
        evaluate_to_folder("segmentation", manifest, tmp_path / "no", tmp_path / "run" / "model", "validation")
    assert not (tmp_path / "no").exists()
    assert main([str(tmp_path / "task.yaml"), "data.num_labels=50"]) == 2
    assert "as many labelled studies" in capsys.readouterr().err


@pytest.fixture
def sample(make_collection) -> StudySample:
    collection = read_manifest(make_collection(1))
    study = read_study(collection.rows[0], collection.root)
    prepared = prepare_study(study, (4.0, 4.0, 4.0))
    labels = prepared.labels_to_grid(read_mask(collection.rows[0], study, collection.root))
    return StudySample.of(prepared, labels, {})


def test_a_task_can_start_from_another_one(make_collection, encoder_folder: Path, tmp_path: Path) -> None:
    """Stem and decoder are taken over and learn gently; the last layer, whose classes differ, is new."""
    from finetune.run import finetune, make_model

    first = finetune(config_of(make_collection(4), tmp_path / "first", encoder_folder))
    assert first.model_folder is not None
    head = {
        "kind": "segmentation",
        "structures": [{"value": 1, "name": "core", "paired": False}, {"value": 2, "name": "rim", "paired": False}],
        "channels": [8, 8, 8],
        "bottleneck": 16,
    }
    config = config_of(make_collection(4), tmp_path / "second", first.model_folder, head=head)
    model = make_model(config)
    before, after = first.model.state_dict(), model.state_dict()
    assert torch.equal(before["head.look.first.weight"], after["head.look.first.weight"])
    assert torch.equal(before["encoder.embed.patch.weight"], after["encoder.embed.patch.weight"])
    assert {name for name in after if name.startswith("head.")} - model.warm == {
        "head.classify.weight",
        "head.classify.bias",
    }
    model.encoder_rate = 0.3
    assert model.learning_rate_scale("head.look.first.weight") == 0.3
    assert model.learning_rate_scale("head.classify.weight") == 1.0


@pytest.mark.parametrize(
    ("recipe", "kind", "whole"),
    [
        ("lora", "segmentation", False),
        ("lora", "segmentation", True),
        ("lora", "classification", False),
        ("frozen", "classification", False),
    ],
)
def test_an_adapter_is_written_beside_the_whole_model_and_says_the_same(
    make_collection, encoder_folder: Path, tmp_path: Path, recipe: str, kind: str, whole: bool
) -> None:
    from finetune.run import finetune
    from foundation.checkpoint import read_about
    from heads.adapters.folder import Backbone, load_model

    config = config_of(make_collection(4), tmp_path / "run", encoder_folder, kind, recipe=recipe, lora={"whole": whole})
    config = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 0.1})})
    fitted = finetune(config)
    loaded = load_model(tmp_path / "run" / "adapter")
    assert loaded.backbone == Backbone.of(encoder_folder)
    collection = read_manifest(config.data.manifest)
    prepared = prepare_study(read_study(collection.rows[0], collection.root), config.data.spacing_mm)
    assert torch.allclose(loaded.model.output_of(prepared), fitted.model.output_of(prepared), atol=1e-4)
    fresh = Encoder.load(encoder_folder).state_dict()
    changed = {
        name for name, tensor in loaded.model.encoder.state_dict().items() if not torch.equal(tensor, fresh[name])
    }
    assert bool(changed) == (recipe == "lora")
    about = read_about(tmp_path / "run" / "adapter")["provenance"]
    assert about["data"] == collection.fingerprint()
    assert fitted.evaluation is not None and about["metrics"].keys() == fitted.evaluation.figures.keys()


def test_where_an_adapter_may_start_from(make_collection, encoder_folder: Path, tmp_path: Path) -> None:
    """An adapter of an adapter would have no folder of whole weights below it; everything else may start there."""
    from finetune.run import finetune, make_model

    finetune(config_of(make_collection(4), tmp_path / "first", encoder_folder))
    adapter = tmp_path / "first" / "adapter"
    with pytest.raises(InputError, match="larmor adapter DIR --merge"):
        make_model(config_of(make_collection(4), tmp_path / "second", adapter))
    start = make_model(config_of(make_collection(4), tmp_path / "second", adapter, recipe="full"))
    whole, _, _ = load_task(tmp_path / "first" / "model")
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(start.state_dict()[name], tensor, atol=1e-6), name


def test_a_run_does_not_continue_from_another_start(make_collection, encoder_folder: Path, tmp_path: Path) -> None:
    from finetune.run import finetune

    config = config_of(make_collection(4), tmp_path / "run", encoder_folder)
    finetune(config)
    torch.manual_seed(1)
    Encoder(ENCODER).save(encoder_folder, card="# pretrained again\n", provenance={})
    longer = config.model_copy(update={"training": config.training.model_copy(update={"steps": 4})})
    with pytest.raises(InputError, match="start"):
        finetune(longer)


def test_boxes_much_smaller_than_the_studies_are_pointed_out(make_collection, tmp_path: Path) -> None:
    from finetune.run import _boxes_are_small
    from finetune.samples import LabelledStudy

    collection = read_manifest(make_collection(1))
    study = prepare_study(read_study(collection.rows[0], collection.root), (4.0, 4.0, 4.0))
    studies = [LabelledStudy(collection.rows[0], study, None)]
    config = config_of(collection.path, tmp_path, None, recipe="scratch")

    def note(crop: tuple[int, int, int] | None) -> str | None:
        data = config.data.model_copy(update={"crop_voxels": crop})
        return _boxes_are_small(config.model_copy(update={"data": data}), studies)

    assert note(None) is None and note(study.grid.shape) is None
    assert "data.crop_voxels=null" in (note((8, 8, 8)) or "")


def test_augmentation_is_a_function_of_its_seed(sample: StudySample) -> None:
    augment = Augment(AugmentConfig(probability=1.0), (4.0, 4.0, 4.0))
    first = augment(sample, 7)
    augment(sample, 8)
    again = augment(sample, 7)
    assert torch.equal(first.voxels, again.voxels) and torch.equal(first.labels, again.labels)  # type: ignore[arg-type]
    assert not torch.equal(first.voxels, augment(sample, 8).voxels)


def test_artefacts_become_the_truth_of_the_reference_series(sample: StudySample) -> None:
    """What spoils the first series is named; the other series' artefacts and what was spoilt already change no truth."""
    augment = Augment(
        AugmentConfig(probability=0, artefact=0.5, worst_artefact=3, drop_series=0, noise=0), (4.0, 4.0, 4.0)
    )
    plain = Augment(AugmentConfig(probability=0, drop_series=0, noise=0), (4.0, 4.0, 4.0))
    kinds = set()
    for seed in range(12):
        changed, still = augment(sample, seed), plain(sample, seed)
        assert changed.targets is not None
        kind, severity = changed.targets["artefact"], changed.targets["artefact_severity"]
        is_spoilt = not torch.allclose(changed.voxels[0], still.voxels[0], atol=1e-3)
        assert is_spoilt == (kind != "none") == (severity in (1, 2, 3))
        kinds.add(kind)
    assert len(kinds) > 3 and "none" in kinds
    known = replace(sample, targets={"artefact": "ghosting", "artefact_severity": 2})
    for seed in range(6):
        assert augment(known, seed).targets == known.targets


def test_augmentation_moves_image_body_and_labels_together(sample: StudySample) -> None:
    """The core is dark on T1w: wherever its label goes, the image must be dark there."""
    still = AugmentConfig(
        probability=1.0, rotate_degrees=25, noise=0, bias_field=0, gamma=0.01, smooth_mm=0.01, drop_series=0
    )
    for seed in range(5):
        changed = Augment(still, (4.0, 4.0, 4.0))(sample, seed)
        assert changed.labels is not None
        core = changed.labels > 0
        assert core.sum() > 20
        around = changed.body[0] & ~core
        assert changed.voxels[0][core].mean() < changed.voxels[0][around].mean() - 0.5
        assert (changed.body[0] & core).sum() > 0.98 * core.sum()


def test_mirroring_swaps_sides_of_image_body_and_labels(sample: StudySample) -> None:
    quiet = AugmentConfig(mirror=True, probability=0.0, drop_series=0.0)
    changed = [Augment(quiet, (4.0, 4.0, 4.0))(sample, seed) for seed in range(12)]
    assert sample.labels is not None
    mirrored = [torch.equal(one.labels, sample.labels.flip(0)) for one in changed if one.labels is not None]
    assert 0 < sum(mirrored) < 12
    for one, is_mirrored in zip(changed, mirrored, strict=True):
        expected = sample.body.flip(1) if is_mirrored else sample.body
        assert torch.equal(one.body, expected)
        image = sample.voxels.flip(1) if is_mirrored else sample.voxels
        correlation = torch.corrcoef(torch.stack([one.voxels[0].flatten(), image[0].flatten()]))
        assert correlation[0, 1] > 0.999


def test_series_are_dropped_but_never_all(sample: StudySample) -> None:
    augment = Augment(AugmentConfig(drop_series=0.9), (4.0, 4.0, 4.0))
    numbers = {len(augment(sample, seed).contrasts) for seed in range(30)}
    assert numbers == {1, 2}


def test_contrasts_are_forgotten_at_random(sample: StudySample) -> None:
    augment = Augment(AugmentConfig(drop_series=0, forget_contrast=0.5), (4.0, 4.0, 4.0))
    seen = [augment(sample, seed).contrasts for seed in range(40)]
    assert {first for first, _ in seen} == {"unknown", sample.contrasts[0]}
    assert {second for _, second in seen} == {"unknown", sample.contrasts[1]}


def test_a_crop_keeps_its_place_in_the_patient(sample: StudySample) -> None:
    crop = crop_sample(sample, (12, 10, 8), seed=3)
    assert crop.grid.shape == (12, 10, 8) == tuple(crop.voxels.shape[1:])
    where = np.linalg.inv(sample.grid.affine) @ crop.grid.affine @ np.array([0, 0, 0, 1])
    x, y, z = np.round(where[:3]).astype(int)
    assert torch.equal(crop.voxels, sample.voxels[:, x : x + 12, y : y + 10, z : z + 8])


def test_the_bootstrap_covers_a_known_mean() -> None:
    """Of 200 samples of 40 from a known distribution, about 95 % of the intervals hold its mean."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        cases = [{"x": value} for value in rng.normal(3.0, 1.0, 40)]
        interval = bootstrap(cases, lambda drawn: {"x": float(np.mean([case["x"] for case in drawn]))}, seed=seed)["x"]
        hits += interval.low <= 3.0 <= interval.high
    assert 180 <= hits <= 199
