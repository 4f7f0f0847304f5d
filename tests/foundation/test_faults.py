"""Bad steps, lost workers and kills: what a run does about them, on this process alone. Several processes: tests/pretrain."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.kill import Points
from foundation.errors import InputError
from foundation.faults import NORMS_NEEDED, BadSteps, Trouble
from foundation.training import Draw, TrainingConfig, read_records, seeded, train

CONFIG = TrainingConfig(steps=12, batch_size=2, warmup_steps=1, precision="fp32", log_every=1, hang_timeout_s=1.5)


class Cloud:
    """Random points; `happens` is called with each draw, in the worker if there is one."""

    def __init__(self, happens=lambda draw: None):
        self.happens = happens

    def __len__(self) -> int:
        return 24

    def __getitem__(self, draw: Draw) -> Tensor:
        self.happens(draw)
        return torch.randn(4, generator=seeded(draw.index))

    def collate(self, samples: list[Tensor]) -> Points:
        return Points(torch.stack(samples))


class Regression(nn.Module):
    def __init__(self, factors: dict[int, float] | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.factors, self.calls = nn.Linear(4, 1), factors or {}, 0
        self.seen: list[Tensor] = []

    def forward(self, batch: Points) -> dict[str, Tensor]:
        self.calls += 1
        self.seen.append(self.net.weight.detach().clone())
        loss = (self.net(batch.x) - batch.x.sum(dim=1, keepdim=True)).square().mean()
        return {"loss": loss * self.factors.get(self.calls, 1.0)}

    def learning_rate_scale(self, name: str) -> float:
        return 1.0


def test_a_bad_step_touches_no_weight_is_recorded_and_does_not_stop_the_run(tmp_path: Path) -> None:
    model, said = Regression({4: float("nan"), 9: float("inf")}), []
    train(model, Cloud(), CONFIG, tmp_path, label="test", on_start=said.append)
    for step in (4, 9):
        assert torch.equal(model.seen[step - 1], model.seen[step]), "the weights before and after are the same"
        assert not torch.equal(model.seen[step], model.seen[step + 1])
    rows = read_records(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["skipped"]) for row in rows if "skipped" in row] == [(4, "loss"), (9, "loss")]
    assert [row["step"] for row in rows] == list(range(1, 13)), "and each says its learning rate"
    assert all("learning_rate" in row for row in rows)
    assert sum("skipped" in line for line in said) == 2
    state = json.loads((tmp_path / "checkpoints/step_00000012/state.json").read_text())
    assert [row["step"] for row in state["ledger"]] == [4, 9]
    assert set(state["counts"].values()) == {10.0}, "AdamW has stepped ten times"


def test_the_budget_counts_over_restarts(tmp_path: Path) -> None:
    budget = CONFIG.model_copy(update={"skip_budget": 2, "steps": 8})
    train(Regression({4: float("nan"), 5: float("nan")}), Cloud(), budget, tmp_path, label="test", on_start=len)
    longer = budget.model_copy(update={"steps": 12})
    with pytest.raises(InputError, match=r"nan at step 9, after the skipped steps 4, 5") as caught:
        train(Regression({1: float("nan")}), Cloud(), longer, tmp_path, label="test", on_start=len)
    assert "skip_budget" in caught.value.remedy


def test_a_spike_is_judged_by_what_is_usual() -> None:
    steps = BadSteps(budget=5, spike_factor=10.0, ledger=[], norms=[])
    for _ in range(NORMS_NEEDED - 1):
        assert steps.judge(1.0, 1e6) == Trouble.NONE, "too little is known yet"
        steps.accept(1.0)
    steps.accept(1.0)
    assert steps.judge(1.0, 9.9) == Trouble.NONE
    assert steps.judge(1.0, 10.1) == Trouble.SPIKE
    assert steps.judge(1.0, float("inf")) == Trouble.GRADIENT
    assert steps.judge(float("nan"), 1.0) == Trouble.LOSS
    assert BadSteps(budget=5, spike_factor=None, ledger=[], norms=steps.norms).judge(1.0, 1e9) == Trouble.NONE


def test_steps_that_have_something_to_learn_from_are_no_spikes_among_steps_that_have_not() -> None:
    """As with lesions, which most studies of a collection may lack: their gradients were 300 times the median."""
    steps = BadSteps(budget=5, spike_factor=20.0, ledger=[], norms=[])
    for number in range(200):
        norm = 3.0 if number % 5 == 0 else 0.01
        assert steps.judge(1.0, norm) == Trouble.NONE
        steps.accept(norm)
    assert steps.judge(1.0, 61.0) == Trouble.SPIKE


def train_with_workers(cloud: Cloud, folder: Path) -> None:
    config = CONFIG.model_copy(update={"num_workers": 2})
    train(Regression(), cloud, config, folder, label="test", on_start=len)


def test_a_killed_worker_is_one_clear_error(tmp_path: Path) -> None:
    def dies(draw: Draw) -> None:
        if draw.index == 11:
            os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(InputError, match=r"loader workers stay alive.*samples"):
        train_with_workers(Cloud(dies), tmp_path)
    assert time.monotonic() - began < CONFIG.hang_timeout_s + 10


def test_a_worker_that_hangs_is_named_with_its_samples(tmp_path: Path) -> None:
    def hangs(draw: Draw) -> None:
        if draw.index == 11:
            time.sleep(3600)

    began = time.monotonic()
    with pytest.raises(InputError, match=r"nothing from worker [01] in 1.5 s, for step \d+ \(samples .*11"):
        train_with_workers(Cloud(hangs), tmp_path)
    assert time.monotonic() - began < CONFIG.hang_timeout_s + 10


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_wrong_with_a_sample_reaches_the_user_as_it_was_raised(tmp_path: Path, num_workers: int) -> None:
    def refuses(draw: Draw) -> None:
        if draw.index == 11:
            raise InputError("a file is whole", got="half of it", remedy="Copy it again.", file="a.nii.gz")

    config = CONFIG.model_copy(update={"num_workers": num_workers})
    with pytest.raises(InputError, match=r"a\.nii\.gz: a file is whole"):
        train(Regression(), Cloud(refuses), config, tmp_path, label="test", on_start=len)


@pytest.mark.timeout(600)
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_been() -> None:
    """Ten kills; `python -m benchmarks.kill --times 100` is the long form."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill", "--times", "10"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "killed 10 times" in ran.stdout
