"""Model folders load exactly or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from foundation.checkpoint import read_about, shrink_model_folder
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.files import sha256

CONFIG = EncoderConfig(width=64, depth=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Encoder(CONFIG).save(tmp_path / "model", card="# a card\n", provenance={"data": "made for a test"})
    return tmp_path / "model"


def test_what_is_saved_is_what_loads(folder: Path) -> None:
    torch.manual_seed(0)
    original, loaded = Encoder(CONFIG), Encoder.load(folder)
    assert loaded.config == CONFIG
    for (name, ours), theirs in zip(original.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert sorted(path.name for path in folder.iterdir()) == ["card.md", "config.json", "model.safetensors"]


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("norm.weight"), "missing norm.weight"),
        (lambda weights: weights.update(stranger=torch.zeros(1)), "extra stranger"),
        (lambda weights: weights.update({"norm.weight": torch.zeros(3)}), r"norm.weight \(3,\) instead of \(64,\)"),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_an_input_error(folder: Path, change, said: str) -> None:
    change_weights(folder, change)
    with pytest.raises(InputError, match=said) as caught:
        Encoder.load(folder)
    assert str(folder) in str(caught.value.file)


def test_weights_that_are_not_those_it_was_saved_with_are_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["norm.weight"].add_(1))
    with pytest.raises(InputError, match="hash"):
        Encoder.load(folder)


@pytest.mark.parametrize("what", ["config.json", "model.safetensors", "everything"])
def test_a_folder_that_is_not_whole_is_an_input_error(folder: Path, what: str) -> None:
    if what == "everything":
        shutil.rmtree(folder)
    else:
        (folder / what).unlink()
    with pytest.raises(InputError):
        Encoder.load(folder)


def test_truncated_weights_and_a_mangled_config_are_input_errors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="readable weights"):
        Encoder.load(folder)
    config = folder / "config.json"
    about = json.loads(config.read_text())
    about["config"]["widht"] = about["config"].pop("width")
    config.write_text(json.dumps(about))
    with pytest.raises(InputError):
        Encoder.load(folder)
    config.write_text("{")
    with pytest.raises(InputError, match="JSON"):
        Encoder.load(folder)


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    from heads.base import load_task

    with pytest.raises(InputError, match="kind 'task'"):
        load_task(folder)


def test_saving_again_replaces_the_folder_whole(folder: Path) -> None:
    before = sha256(folder / "model.safetensors")
    torch.manual_seed(1)
    Encoder(CONFIG).save(folder, card="# another\n", provenance={})
    assert sha256(folder / "model.safetensors") != before
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "nothing aside is left"


def test_a_shrunk_folder_is_half_as_large_and_loads_as_rounded(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    shrink_model_folder(folder, out, config=read_about(folder)["config"], card="# small\n")
    sizes = [(one / "model.safetensors").stat().st_size for one in (folder, out)]
    assert sizes[1] < 0.6 * sizes[0] and (out / "card.md").read_text() == "# small\n"
    for (name, whole), small in zip(Encoder.load(folder).state_dict().items(), Encoder.load(out).state_dict().values()):
        assert small.dtype == torch.float32
        assert torch.equal(small, whole.bfloat16().float() if whole.dim() > 1 else whole), name
    assert read_about(out)["provenance"]["data"] == "made for a test"
