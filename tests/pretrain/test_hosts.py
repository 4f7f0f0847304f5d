"""Several hosts: the SLURM script under a SLURM of our own, and two network namespaces that train one model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from foundation.training import read_records

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "configs/slurm/pretrain.sbatch"
ADDRESSES = ("10.213.0.1", "10.213.0.2")
SPACES = tuple(f"larmor{os.getpid()}-{host}" for host in range(2))

# What SLURM would do: `scontrol show hostnames` lists the hosts, `srun` starts the task once on each with its SLURM_NODEID.
SCONTROL = (
    '#!/usr/bin/env bash\n[ "$1 $2" = "show hostnames" ] && printf "node-a\\nnode-b\\n" || echo "$@" >> "$ASKED"\n'
)
SRUN = '#!/usr/bin/env bash\nshift\nfor SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" & done\nwait\n'
PYTHON = '#!/usr/bin/env bash\necho "$SLURM_NODEID: $*" >> "$STARTED"\n'


def test_the_slurm_script_starts_one_launcher_on_every_host(tmp_path: Path) -> None:
    for name, content in {"scontrol": SCONTROL, "srun": SRUN, "python": PYTHON}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    slurm = {
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_ID": "41",
        "SLURM_GPUS_ON_NODE": "4",
    }
    ours = {"LARMOR_PYTHON": str(tmp_path / "python"), "LARMOR_ENGINE": "zero2", "STARTED": str(tmp_path / "started")}
    subprocess.run(
        ["bash", str(SCRIPT), "configs/pretrain/large.yaml", "training.steps=10", "folder=a b"],
        env=os.environ | slurm | ours | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
        timeout=30,
    )
    started = sorted((tmp_path / "started").read_text().splitlines())
    for host, line in enumerate(started):
        assert line == (
            f"{host}: -m accelerate.commands.launch --config_file configs/accelerate/zero2.yaml --num_machines 2 "
            f"--num_processes 8 --machine_rank {host} --main_process_ip node-a --main_process_port 20041 "
            "-m pretrain configs/pretrain/large.yaml training.steps=10 folder=a b"
        )
    assert len(started) == 2


@pytest.fixture
def two_hosts() -> Iterator[None]:
    """Two network namespaces joined by a cable: as far as sockets can tell, two machines."""

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for space in SPACES:
            ip("netns", "add", space)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need root and ip: {error}")
    try:
        ip("link", "add", "cable0", "netns", SPACES[0], "type", "veth", "peer", "name", "cable0", "netns", SPACES[1])
        for space, address in zip(SPACES, ADDRESSES, strict=True):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "cable0")
            ip("-n", space, "link", "set", "cable0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine joins no namespaces: {error.stderr.decode()}")
    finally:
        for space in SPACES:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


@pytest.mark.timeout(400)
def test_two_hosts_train_one_model(two_hosts: None, make_collection, tmp_path: Path) -> None:
    """`accelerate launch` on each, over gloo, each with a folder of its own: only the first host's disk is written."""
    settings = {
        "manifest": str(make_collection(4)),
        "splits": None,
        "crop": {"voxels": 24, "spacing_mm": [4.0, 4.2], "anisotropic": 0.0, "max_tokens": 12, "max_targets": 6},
        "training": {
            "steps": 4,
            "batch_size": 4,
            "warmup_steps": 1,
            "precision": "fp32",
            "log_every": 1,
            "processes": 2,
        },
    }
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "GLOO_SOCKET_IFNAME": "cable0",
    }
    launches = []
    for rank, space in enumerate(SPACES):
        folder = tmp_path / f"host-{rank}"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"folder": str(folder / "run")}))
        meeting = ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29511", "--machine_rank", str(rank)]
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/ddp.yaml"]
        command += [
            "--num_machines",
            "2",
            "--num_processes",
            "2",
            *meeting,
            "-m",
            "pretrain",
            str(folder / "config.yaml"),
        ]
        launches.append(
            subprocess.Popen(
                ["ip", "netns", "exec", space, *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [launch.communicate(timeout=350)[0] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], "\n".join(said)[-6000:]
    assert "ddp on 2 x cpu" in said[0]
    assert not (tmp_path / "host-1" / "run").exists()

    from foundation.config import parse_config
    from pretrain.__main__ import pretrain
    from pretrain.config import PretrainConfig

    alone = settings | {"folder": str(tmp_path / "alone")}
    alone["training"] = settings["training"] | {"processes": 1}
    pretrain(parse_config(PretrainConfig, alone))
    ours, theirs = (
        [record["loss"] for record in read_records(folder / "metrics.jsonl")]
        for folder in (tmp_path / "alone", tmp_path / "host-0" / "run")
    )
    assert theirs == pytest.approx(ours, abs=1e-4)
    assert theirs[0] == pytest.approx(ours[0], abs=1e-6)
