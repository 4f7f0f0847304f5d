"""Two real processes over gloo: the run is one run, and it resumes as one."""

import os
import subprocess
import sys
from pathlib import Path

from foundation.encoder import Encoder
from foundation.training import read_records


def test_two_processes_train_one_model_and_resume_it(make_collection, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"manifest: {make_collection(4)}\nfolder: {tmp_path / 'run'}\nsplits: null\n"
        "crop: {voxels: 24, spacing_mm: [4.0, 4.5]}\n"
        "training: {batch_size: 4, warmup_steps: 1, precision: fp32, log_every: 1}\n"
    )
    for steps in (2, 3):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pretrain"]
        finished = subprocess.run(
            [sys.executable, *launch, str(config), f"training.steps={steps}"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr[-2000:]
        assert "multi cpu on 2 x cpu" in finished.stdout
        assert finished.stdout.count("wrote ") == 4, "one process speaks"
    assert "steps 2 to 3" in finished.stdout
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    Encoder.load(tmp_path / "run" / "model")
