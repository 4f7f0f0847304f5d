"""Adapter folders: what is saved is what loads, on the right backbone and no other, or an error says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from foundation.checkpoint import read_about
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.preprocess import PreparedStudy
from heads.adapters.command import adapter_command
from heads.adapters.folder import Backbone, Backbones, load_model
from heads.base import default_models, load_task, save_task

LATE = ("blocks.2.mlp.fc1_g", "blocks.2.mlp.fc1_x", "blocks.2.mlp.fc2")
NORMS = ("blocks.2.norm1.weight", "norm.bias")
WHOLE = ("embed.patch.weight", "embed.patch.bias", *NORMS)


@pytest.mark.parametrize("head", ["size", "core"])
@pytest.mark.parametrize(("maps", "learned"), [(LATE, ()), (LATE, NORMS), (("blocks.0.attn.k_proj",), WHOLE), ((), ())])
def test_what_is_saved_is_what_loads(make_adapter: Callable, study: PreparedStudy, head: str, maps, learned) -> None:
    """With low-rank maps, parameters learnt whole, both or nothing of the encoder's."""
    made = make_adapter(head=head, maps=maps, learned=learned)
    loaded = load_model(made.folder)
    assert torch.equal(loaded.model.output_of(study), made.model.output_of(study))
    assert loaded.config.name == "size" and loaded.backbone is not None
    assert sorted(path.name for path in made.folder.iterdir()) == ["card.md", "config.json", "model.safetensors"]


def test_a_folder_holds_only_what_is_the_tasks_own(make_adapter: Callable, backbone: Path) -> None:
    folder = make_adapter(learned=NORMS).folder
    names = safetensors.torch.load_file(folder / "model.safetensors").keys()
    own = {name for name in names if name.startswith("encoder.")}
    assert own == {f"encoder.{name}.lora_{which}" for name in LATE for which in "ab"} | {f"encoder.{n}" for n in NORMS}
    about = read_about(folder)
    assert about["config"]["backbone"]["weights_sha256"] == read_about(backbone)["provenance"]["weights_sha256"]
    assert about["provenance"]["data"] == "a fingerprint"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("encoder.blocks.2.mlp.fc2.lora_a"), "missing encoder.blocks.2.mlp.fc2.lora_a"),
        (lambda w: w.pop("head.norm.bias"), "missing head.norm.bias"),
        (lambda w: w.update(stranger=torch.zeros(1)), "extra stranger"),
        (lambda w: w.update({"encoder.norm.bias": torch.zeros(3)}), r"encoder.norm.bias \(3,\) instead of \(64,\)"),
        (
            lambda w: w.update({"encoder.blocks.2.mlp.fc2.lora_a": torch.zeros(2, 64)}),
            r"fc2.lora_a \(2, 64\) instead of \(4, 192\)",
        ),
        (lambda w: w["encoder.norm.bias"].add_(1), "have the hash they were saved with"),
    ],
)
def test_a_missing_extra_misshapen_or_changed_tensor_is_named(make_adapter: Callable, change, said: str) -> None:
    folder = make_adapter(learned=NORMS).folder
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=said) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    about = json.loads((folder / "config.json").read_text())
    change(about)
    (folder / "config.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["adapted"].append("blocks.9.mlp.fc2"), "blocks.9.mlp.fc2"),
        (lambda config: config["learned"].append("nonsense"), "nonsense"),
        (lambda config: config["task"]["encoder"].update(depth=4), "sizes of its backbone"),
        (lambda config: config.update(rnak=config.pop("rank")), "rnak|rank"),
    ],
)
def test_a_config_that_does_not_fit_is_an_input_error(make_adapter: Callable, change, said: str) -> None:
    folder = make_adapter().folder
    edit(folder, lambda about: change(about["config"]))
    with pytest.raises(InputError, match=said):
        load_model(folder)


def test_another_backbone_is_refused_and_both_hashes_are_named(make_adapter: Callable, tmp_path: Path) -> None:
    folder = make_adapter().folder
    torch.manual_seed(1)
    other = tmp_path / "other"
    Encoder(EncoderConfig(width=64, depth=3)).save(other, card="# other\n", provenance={})
    with pytest.raises(InputError, match="fitted on") as caught:
        load_model(folder, Backbones([other]))
    needed = read_about(folder)["config"]["backbone"]["weights_sha256"]
    assert needed[:12] in str(caught.value) and Backbone.of(other).weights_sha256[:12] in str(caught.value)
    assert "--backbone" in str(caught.value)


def test_a_backbone_is_found_wherever_it_was_moved(
    make_adapter: Callable, backbone: Path, study: PreparedStudy, tmp_path: Path, monkeypatch
) -> None:
    made = make_adapter()
    expected = made.model.output_of(study)
    beside = backbone.rename(backbone.with_name("renamed"))
    assert torch.equal(load_model(made.folder).model.output_of(study), expected)
    away = beside.rename(tmp_path / "away")
    with pytest.raises(InputError, match="no model folder"):
        load_model(made.folder)
    assert torch.equal(load_model(made.folder, Backbones([away])).model.output_of(study), expected)
    monkeypatch.setenv("LARMOR_MODELS", str(tmp_path))
    assert torch.equal(load_model(made.folder).model.output_of(study), expected)


def test_a_backbone_that_was_replaced_or_damaged_is_not_taken(make_adapter: Callable, backbone: Path) -> None:
    folder = make_adapter().folder
    weights = backbone / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match="hash"):
        load_model(folder)
    torch.manual_seed(1)
    Encoder(EncoderConfig(width=64, depth=3)).save(backbone, card="# trained again\n", provenance={})
    with pytest.raises(InputError, match="fitted on"):
        load_model(folder)


def test_a_whole_task_can_be_the_backbone(make_adapter: Callable, tmp_path: Path, study: PreparedStudy) -> None:
    """Only its encoder is used; a file of its own hash is still what identifies it."""
    made = make_adapter()
    first = load_model(made.folder)
    save_task(tmp_path / "whole", first.model, first.config, card="# whole\n", provenance={})
    edit(
        made.folder,
        lambda about: about["config"].update(backbone=Backbone.of(tmp_path / "whole").model_dump(mode="json")),
    )
    again = load_model(made.folder)
    assert again.model.encoder.embed is not first.model.encoder.embed
    assert not torch.allclose(again.model.output_of(study), first.model.output_of(study)), "adapted twice"


def test_models_of_one_backbone_share_its_modules(make_adapter: Callable) -> None:
    folders = [make_adapter("one", seed=1).folder, make_adapter("two", "core", ("blocks.1.mlp.fc2",), NORMS).folder]
    shelf = Backbones()
    one, two = (load_model(folder, shelf).model.encoder for folder in folders)
    assert one.embed is two.embed and one.blocks[0] is two.blocks[0]
    assert one.blocks[2].attn is two.blocks[2].attn and one.blocks[2].mlp is not two.blocks[2].mlp


def test_without_a_name_models_and_adapters_are_read_and_backbones_are_not(
    make_adapter: Callable, tmp_path: Path, monkeypatch
) -> None:
    make_adapter("one")
    make_adapter("two")
    monkeypatch.setenv("LARMOR_MODELS", str(tmp_path / "models"))
    assert [folder.name for folder in default_models()] == ["one", "two"]


@pytest.mark.parametrize("learned", [NORMS, WHOLE])
def test_the_command_checks_says_and_merges(
    make_adapter: Callable, study: PreparedStudy, tmp_path: Path, capsys, learned
) -> None:
    made = make_adapter(learned=learned)
    adapter_command(made.folder, merge=tmp_path / "merged")
    printed = capsys.readouterr().out
    assert "size, a classification head" in printed and "merged and not merged agree" in printed
    assert f"{0 if learned == WHOLE else 2} of 3 blocks shared" in printed
    model, config, _ = load_task(tmp_path / "merged")
    assert config.name == "size"
    assert torch.allclose(model.output_of(study), made.model.output_of(study), atol=1e-5)
    assert (tmp_path / "merged" / "card.md").read_text() == "# size\n"
    assert (
        read_about(tmp_path / "merged")["provenance"]["backbone_sha256"]
        in Backbone.of(tmp_path / "models" / "backbone").weights_sha256
    )
    with pytest.raises(InputError, match="adapter folder"):
        adapter_command(tmp_path / "merged")


def test_the_command_refuses_weights_that_are_not_numbers(make_adapter: Callable) -> None:
    folder = make_adapter().folder
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["encoder.blocks.2.mlp.fc2.lora_a"].fill_(float("nan"))
    safetensors.torch.save_file(weights, file)
    from foundation.files import sha256

    edit(folder, lambda about: about["provenance"].update(weights_sha256=sha256(file)))
    with pytest.raises(InputError, match="merged or not"):
        adapter_command(folder)
    shutil.rmtree(folder)
