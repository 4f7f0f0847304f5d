"""Configs: what a typo gets, and that every YAML file in the repository resolves."""

from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from finetune.prognosis.patients import TableTrialConfig
from foundation.config import load_config, save_config
from foundation.errors import InputError
from pretrain.config import PretrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "prognosis": TableTrialConfig}
FILES = [(kind, path) for kind in KINDS for path in sorted((CONFIGS / kind).glob("*.yaml"))]


def test_there_are_configs_of_each_kind() -> None:
    assert {kind for kind, _ in FILES} == set(KINDS)


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda value: value if isinstance(value, str) else value.stem)
def test_every_config_resolves_and_survives_saving(kind: str, path: Path, tmp_path: Path) -> None:
    config = load_config(KINDS[kind], path)
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(KINDS[kind], tmp_path / "resolved.yaml") == config


def test_an_override_wins_over_the_file_and_reads_numbers() -> None:
    config = load_config(
        PretrainConfig, CONFIGS / "pretrain" / "tiny.yaml", ["training.learning_rate=1e-4", "splits=null"]
    )
    assert config.training.learning_rate == 1e-4
    assert config.splits is None


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("training.lerning_rate=1", "Did you mean 'learning_rate'?"),
        ("trainig.steps=1", "Did you mean 'training'?"),
        ("crop.voxel=32", "Did you mean 'voxels'?"),
        ("objective.kind=masked_autoencodin", "Did you mean 'masked_autoencoding'?"),
        ("objective={kind: masked_autoencoding, decoder_widht: 3}", "Did you mean 'decoder_width'?"),
        ("training.steps=many", "training.steps"),
        ("training", "key=value"),
        ("size.width=3", "Set 'size'"),
    ],
)
def test_a_misspelt_key_or_value_is_named_with_its_remedy(override: str, suggestion: str) -> None:
    path = CONFIGS / "pretrain" / "tiny.yaml"
    with pytest.raises(InputError) as caught:
        load_config(PretrainConfig, path, [override])
    assert suggestion in str(caught.value)


def test_a_misspelt_head_key_inside_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(
        "name: x\nhead: {kind: classification, target: t, classes: [a, b], droput: 0.1}\ndata: {manifest: m.jsonl}\n"
    )
    with pytest.raises(InputError, match="Did you mean 'dropout'") as caught:
        load_config(FinetuneConfig, path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "\xff"])
def test_a_file_that_is_no_config_is_an_input_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=str(path)):
        load_config(PretrainConfig, path)
    with pytest.raises(InputError, match="can be read"):
        load_config(PretrainConfig, tmp_path / "missing.yaml")


def test_an_input_error_survives_a_process_boundary() -> None:
    import pickle

    error = InputError("a rule", got=3, remedy="Do so.", file="a.nii")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, InputError) and str(again) == str(error)
