"""The new head that docs/researchers.md writes is one file and one config, and works as it stands there."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import heads
from finetune.config import FinetuneConfig
from finetune.run import finetune
from foundation.config import parse_config
from heads import head_kinds
from heads.base import load_task

PAGE = Path(__file__).parents[2] / "docs" / "researchers.md"


def block(language: str, first: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL) if first in text]
    assert len(found) == 1, (language, first)
    return found[0]


def test_one_file_and_one_config_are_a_head(make_collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "counting.py").write_text(block("python", "heads/counting.py"))
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path / "new")])
    assert "counting" in head_kinds()
    values = yaml.safe_load(block("yaml", "configs/finetune/plaques.yaml"))
    values["head"]["target"] = "large"
    values["data"] = {"manifest": str(make_collection(4)), "spacing_mm": [6.0, 6.0, 6.0]}
    values |= {"recipe": "scratch", "folder": str(tmp_path / "run")}
    values["training"] = {"steps": 30, "batch_size": 2, "warmup_steps": 2, "learning_rate": 3e-3, "precision": "fp32"}
    fitted = finetune(parse_config(FinetuneConfig, values))
    assert fitted.evaluation is not None and fitted.evaluation.figures["count error"].mean < 1
    assert fitted.training.records[-1]["loss"] < fitted.training.records[0]["loss"]
    assert fitted.model_folder is not None
    model, config, _ = load_task(fitted.model_folder)
    assert config.head.kind == "counting" and isinstance(model.head, torch.nn.Module)
