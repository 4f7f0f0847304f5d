"""The grid: every recipe that can do the task, each cell once, a table that says what the cells say."""

import json
from pathlib import Path

import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.fewshot import fewshot_command
from foundation.config import parse_config, save_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError

HEADS = {
    "segmentation": {
        "structures": [{"value": 1, "name": "core", "paired": False}],
        "channels": [4, 4, 4],
        "bottleneck": 8,
    },
    "regression": {"target": "size_ml", "name": "core volume", "unit": "ml"},
}
ROWS = {
    "segmentation": ["from scratch", "all weights", "LoRA recipe", "frozen encoder", "DynUNet from scratch", "atlas"],
    "regression": ["from scratch", "all weights", "LoRA recipe", "frozen encoder", "DenseNet from scratch"],
}
LAST = {
    "segmentation": ["intensity threshold"],
    "regression": ["linear, frozen features", "linear, measured volumes", "majority or mean"],
}


@pytest.fixture
def config(make_collection, tmp_path: Path):
    torch.manual_seed(0)
    Encoder(EncoderConfig(width=64, depth=1)).save(tmp_path / "encoder", card="# test\n", provenance={})

    def write(kind: str, encoder: Path | None = tmp_path / "encoder") -> Path:
        values = {
            "name": "test",
            "folder": str(tmp_path / kind),
            "encoder": None if encoder is None else str(encoder),
            "head": {"kind": kind, **HEADS[kind]},
            "data": {"manifest": str(make_collection(7)), "spacing_mm": [6.0, 6.0, 6.0]},
            "training": {"steps": 2, "batch_size": 1, "warmup_steps": 1, "ema_decay": None, "precision": "fp32"},
        }
        save_config(parse_config(FinetuneConfig, values), tmp_path / f"{kind}.yaml")
        return tmp_path / f"{kind}.yaml"

    return write


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_the_whole_grid_runs_and_is_not_repeated(config, kind: str, tmp_path: Path, capsys) -> None:
    path = config(kind)
    ask = {"overrides": [], "labels": "2,all", "seeds": 1, "rows": None}
    fewshot_command(path, **ask)
    folder = tmp_path / kind
    content = json.loads((folder / "fewshot.json").read_text())
    titles = [score["title"] for score in content["2"]["scores"]]
    assert titles == ROWS[kind] + LAST[kind]
    assert content["2"]["num_labels"] == 2 and content["all"]["num_labels"] == 5
    text = (folder / "fewshot.md").read_text()
    for name in ("2", "all"):
        for score in content[name]["scores"]:
            mean = score["figures"][content[name]["main_figure"]]["mean"]
            (row,) = [line for line in text.splitlines() if line.startswith(f"| {score['title']} |")]
            assert f"{mean:.3f}" in row
    for command in [line for line in text.splitlines() if "accelerate launch" in line]:
        assert Path(command.split("finetune ")[1].split(" folder=")[0]).is_file()
    assert (folder / "fewshot.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in folder.glob("labels-*/*/metrics.json")}
    assert len(before) == 2 * len(titles)
    fewshot_command(path, **ask)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert text in (folder / "fewshot.md").read_text()


def test_a_cell_is_known_by_its_start_and_not_by_where_that_lies(config, tmp_path: Path) -> None:
    ask = {"overrides": [], "labels": "2", "seeds": 1, "rows": "scratch,frozen"}
    fewshot_command(config("regression"), **ask)
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "regression").glob("labels-2/*/metrics.json")}
    (tmp_path / "encoder").rename(tmp_path / "elsewhere")
    fewshot_command(config("regression", tmp_path / "elsewhere"), **ask)
    assert cells == {path: path.stat().st_mtime_ns for path in cells}
    torch.manual_seed(1)
    Encoder(EncoderConfig(width=64, depth=1)).save(tmp_path / "elsewhere", card="# other weights\n", provenance={})
    with pytest.raises(InputError, match="start"):
        fewshot_command(config("regression", tmp_path / "elsewhere"), **ask)


def test_without_an_encoder_only_what_needs_none_is_fitted(config, tmp_path: Path) -> None:
    fewshot_command(config("regression", None), overrides=["training.steps=1"], labels="3", seeds=1, rows=None)
    content = json.loads((tmp_path / "regression" / "fewshot.json").read_text())
    assert [one["title"] for one in content["3"]["scores"]] == [
        "from scratch",
        "DenseNet from scratch",
        "linear, measured volumes",
        "majority or mean",
    ]


def test_what_is_asked_for_wrongly_is_an_input_error(config) -> None:
    path = config("regression")
    ask = {"overrides": [], "labels": "3", "seeds": 1, "rows": None}
    for wrong, match in (
        ({"labels": "few"}, "numbers, or 'all'"),
        ({"labels": "0"}, "numbers, or 'all'"),
        ({"seeds": 0}, "seed"),
        ({"rows": "scrach"}, "Did you mean 'scratch'"),
        ({"labels": "50", "rows": "majority"}, "as many labelled studies"),
    ):
        with pytest.raises(InputError, match=match):
            fewshot_command(path, **(ask | wrong))
