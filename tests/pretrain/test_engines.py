"""Every engine on two real processes over gloo: the same losses, and a run that moves from one to the next."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from accelerate.commands.config.config_args import load_config_from_file

from foundation.config import parse_config
from foundation.errors import InputError
from foundation.training import read_records
from pretrain.__main__ import pretrain
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[2]
ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
RELAY = ("zero2", "ddp", "zero3", "zero1", "fsdp2")  # each continues what the one before left, one process at both ends
SMALL = {
    "splits": None,
    # At most 12 tokens are used and every box has more, so that a step is the same over any number of processes.
    "crop": {"voxels": 24, "spacing_mm": [4.0, 4.2], "anisotropic": 0.0, "max_tokens": 12, "max_targets": 6},
    "training": {
        "steps": 20,
        "batch_size": 4,
        "warmup_steps": 2,
        "precision": "fp32",
        "ema_decay": 0.9,
        "checkpoint_every": 100,
        "log_every": 1,
        "hang_timeout_s": 60,
    },
}


def environment() -> dict[str, str]:
    ours = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return os.environ | ours | {"PYTHONPATH": str(ROOT)}


def launch(config: str, *command: str, processes: int = 2, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    options = ["--config_file", str(ROOT / "configs/accelerate" / f"{config}.yaml"), "--num_processes", str(processes)]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "0", *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def pretraining(manifest: Path, folder: Path, **training: Any) -> dict[str, Any]:
    return SMALL | {"manifest": str(manifest), "folder": str(folder), "training": SMALL["training"] | training}


def everything(manifest: Path, folder: Path, **training: Any) -> dict[str, Any]:
    """All objectives over one encoder that they share, and a probe on the way."""
    cohort = {"subjects": 2, "spacing_mm": 4.0, "contrasts": ["T1w"]}
    truth = {"kind": "free_truth", "cohort": cohort, "voxels": 24, "spacing_mm": [4.0, 5.0], "channels": [4, 6, 8]}
    terms = [{"kind": "masked_autoencoding"}, {"kind": "agreement"}, truth]
    probe = {"manifest": str(manifest), "spacing_mm": [4.0] * 3, "structures": [1], "split": "train", "every": 2}
    steps = {"steps": 3, "checkpoint_every": 3}
    run = pretraining(manifest, folder, **steps, **training)
    return run | {"objective": {"kind": "mixture", "terms": terms}, "probe": probe}


def regression(folder: Path, runs: str, event: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    settings = {"steps": 12, "batch_size": 4, "warmup_steps": 1, "precision": "fp32", "log_every": 1}
    return {"engine": runs, "folder": str(folder), "event": event or {}, "training": settings | training}


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(folder / "metrics.jsonl")]


@pytest.mark.timeout(500)
def test_engines_agree_and_a_run_moves_between_them(make_collection, tmp_path: Path) -> None:
    manifest, many = make_collection(4), make_collection(6)
    jobs = [
        {"engine": name, "pretrain": pretraining(manifest, tmp_path / name, engine=name, processes=2)}
        for name in ENGINES
    ]
    jobs += [
        {"engine": name, "pretrain": pretraining(manifest, tmp_path / "relay"), "stop_after": 3 * (leg + 2)}
        for leg, name in enumerate(RELAY)
    ]
    jobs += [regression(tmp_path / f"nan-{name}", name, {"what": "nan", "step": 5, "rank": 1}) for name in ENGINES]
    jobs += [regression(tmp_path / f"parts-{name}", name, accumulate=2) for name in ENGINES]
    jobs += [{"engine": name, "pretrain": everything(many, tmp_path / f"all-{name}")} for name in ENGINES]
    jobs += [regression(tmp_path / "signal", "ddp", {"what": "signal", "step": 5, "rank": 1}, steps=500)]
    jobs += [regression(tmp_path / "other", "ddp", engine="zero2")]
    jobs += [regression(tmp_path / "hang", "ddp", {"what": "hang", "step": 3, "rank": 1}, hang_timeout_s=2)]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    alone = parse_config(PretrainConfig, pretraining(manifest, tmp_path / "relay"))
    stop_after(3, tmp_path / "relay/metrics.jsonl")
    with pytest.raises(SystemExit):
        pretrain(alone)
    ran = launch("ddp", str(ROOT / "tests/pretrain/engine_job.py"), str(tmp_path / "jobs.json"))
    said = ran.stdout + ran.stderr

    # Equal losses, weights and moments, under every engine.
    reference = losses(tmp_path / "ddp")
    assert len(reference) == 20, said[-6000:]
    for name in ENGINES:
        assert f"{name} on 2 x cpu, fp32" in said
        own = losses(tmp_path / name)
        assert own[0] == pytest.approx(reference[0], abs=1e-6), name
        assert own == pytest.approx(reference, abs=1e-4), name
        for file in ("weights", "moments", "average"):
            assert largest_difference(tmp_path / "ddp", tmp_path / name, file, 20) < 1e-4, (name, file)

    # One process to ZeRO-2 to DDP to ZeRO-3 to ZeRO-1 to FSDP2, on two, to one: one run.
    assert len(losses(tmp_path / "relay")) < 20
    pretrain(alone)
    assert losses(tmp_path / "relay") == pytest.approx(reference, abs=1e-4), said[-6000:]

    # A gradient that is not finite on one process is skipped by all, and the run is the same under every engine.
    for name in ENGINES:
        rows = read_records(tmp_path / f"nan-{name}" / "metrics.jsonl")
        assert [row["step"] for row in rows if "skipped" in row] == [5], (name, said[-6000:])
        assert [row["loss"] for row in rows[5:]] == pytest.approx(losses(tmp_path / "nan-ddp")[5:], abs=1e-5), name
        assert losses(tmp_path / f"parts-{name}") == pytest.approx(losses(tmp_path / "parts-ddp"), abs=1e-5), name

    # Objectives that share an encoder, a comparison over processes, convolutions, a probe: the same under every engine.
    reference = read_records(tmp_path / "all-ddp" / "metrics.jsonl")
    assert [record["step"] for record in reference if "probe/dice" in record] == [2, 3], said[-6000:]
    for name in ENGINES:
        rows = read_records(tmp_path / f"all-{name}" / "metrics.jsonl")
        for key in ("loss", "agreement/loss", "free_truth/labels"):
            assert [row[key] for row in rows] == pytest.approx([row[key] for row in reference], abs=1e-4), (name, key)
        for row, theirs in zip(rows[1:], reference[1:], strict=True):
            assert row["probe/rank_tokens"] == pytest.approx(theirs["probe/rank_tokens"], rel=0.01), name
        assert (tmp_path / f"all-{name}" / "dense" / "model.safetensors").exists()

    # One process got the signal; both stopped, at the same step, with a checkpoint.
    assert said.count("leaves signal with 130") == 2
    assert [path.name for path in (tmp_path / "signal" / "checkpoints").iterdir()] == ["step_00000005"]

    # What runs is not what the config says.
    assert said.count("refuses other: what runs is what the config asked for (got ddp on 2") == 2
    assert not (tmp_path / "other").exists()

    # The process that hangs is named, and the launch ends.
    assert ran.returncode != 0
    assert "processes keep pace with each other" in said


def stop_after(step: int, metrics: Path) -> None:
    spec = importlib.util.spec_from_file_location("engine_job", Path(__file__).with_name("engine_job.py"))
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = job
    spec.loader.exec_module(job)
    job.stop_after(step, metrics)


@pytest.mark.parametrize("name", ["cpu", "one_gpu", *ENGINES])
def test_every_launch_file_is_what_its_name_says(name: str) -> None:
    """Read by the launcher's own reader, which ignores what it does not know."""
    path = ROOT / "configs/accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    kind = {"cpu": "NO", "one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
    assert config.distributed_type == kind
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
    assert path.read_text().startswith("#"), "it says when to use it"


def test_an_engine_or_number_of_processes_that_is_not_there_is_refused_before_anything_is_written(
    make_collection, tmp_path: Path
) -> None:
    for wanted in ({"engine": "ddp"}, {"processes": 8}):
        config = parse_config(PretrainConfig, pretraining(make_collection(4), tmp_path / "run", **wanted))
        with pytest.raises(InputError, match=r"what runs is what the config asked for \(got single on 1"):
            pretrain(config)
        assert not (tmp_path / "run").exists()


def largest_difference(left: Path, right: Path, file: str, step: int) -> float:
    place = f"checkpoints/step_{step:08d}/{file}.safetensors"
    ours, theirs = safetensors.torch.load_file(left / place), safetensors.torch.load_file(right / place)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
