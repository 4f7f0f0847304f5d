"""The command as people type it, with the launch files as they are: two processes under one engine, then under another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.encoder import Encoder
from foundation.training import read_records

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_two_processes_train_one_model_and_another_engine_continues_it(make_collection, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"manifest: {make_collection(4)}\nfolder: {tmp_path / 'run'}\nsplits: null\n"
        "crop: {voxels: 24, spacing_mm: [4.0, 4.5]}\n"
        "training: {batch_size: 4, warmup_steps: 1, log_every: 1, processes: 2, trackers: [tensorboard]}\n"
    )
    for engine, steps in (("zero2", 2), ("fsdp2", 3)):
        launch = [
            "--config_file",
            f"configs/accelerate/{engine}.yaml",
            "--num_processes",
            "2",
            "--main_process_port",
            "0",
        ]
        command = ["-m", "pretrain", str(config), f"training.steps={steps}", f"training.engine={engine}"]
        finished = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *launch, *command],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=190,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert f"{engine} on 2 x cpu" in finished.stdout
        assert finished.stdout.count("wrote ") == 4, "one process speaks"
    assert "steps 2 to 3" in finished.stdout
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    assert list((tmp_path / "run").rglob("events.out.tfevents*")), "curves for a tracker"
    Encoder.load(tmp_path / "run" / "model")
