"""The loop's promises: order as a pure function, stop and resume equals uninterrupted, and a stored learning curve."""

import json
import os
import signal
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foundation.errors import InputError
from foundation.training import Draw, SampleOrder, TrainingConfig, fold, read_records, seeded, train

CONFIG = TrainingConfig(
    steps=20,
    batch_size=4,
    warmup_steps=4,
    learning_rate=1e-2,
    ema_decay=0.9,
    precision="fp32",
    checkpoint_every=5,
    log_every=1,
    skip_budget=0,
)


@dataclass(frozen=True)
class Batch:
    x: Tensor
    y: Tensor

    def to(self, device: Any) -> "Batch":
        return Batch(self.x.to(device), self.y.to(device))


class Line:
    """Noisy points of a fixed plane; the noise of a sample comes from its draw."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        x = torch.randn(3, generator=seeded(draw.index))
        noise = 0.1 * torch.randn((), generator=seeded(draw.seed))
        return x, x @ torch.tensor([1.0, -2.0, 0.5]) + noise

    def collate(self, samples: list[Any]) -> Batch:
        x, y = zip(*samples, strict=True)
        return Batch(torch.stack(x), torch.stack(y))


class Regression(nn.Module):
    """Dropout, so that the random state of a step matters."""

    def __init__(self, fail_at: int | None = None, stop_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
        self.calls, self.fail_at, self.stop_at = 0, fail_at, stop_at

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = nn.functional.mse_loss(self.net(batch.x).squeeze(-1), batch.y)
        return {"loss": loss * float("nan") if self.calls == self.fail_at else loss}

    def learning_rate_scale(self, name: str) -> float:
        return 1.0


def run(folder: Path, **options: Any) -> Regression:
    model = Regression(**options)
    train(model, Line(), CONFIG, folder, label="test", on_start=lambda text: None)
    return model


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(folder / "metrics.jsonl")]


def test_stopping_and_resuming_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """Weights (averaged ones), the order of samples, dropout, schedule and records are the same to the last bit."""
    whole = run(tmp_path / "whole")
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "parts", stop_at=8)
    assert stopped.value.code == 130
    assert len(losses(tmp_path / "parts")) == 8
    resumed = run(tmp_path / "parts")
    assert resumed.calls == CONFIG.steps - 8
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for ours, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_crash_continues_from_the_last_checkpoint_and_drops_later_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stays finite"):
        run(tmp_path, fail_at=13)
    assert len(losses(tmp_path)) == 12
    resumed = run(tmp_path)
    assert resumed.calls == CONFIG.steps - 10, "the checkpoint of step 10 is the last good one"
    steps = [record["step"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, CONFIG.steps + 1))


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = run(tmp_path)
    newest = sorted((tmp_path / "checkpoints").glob("step_*"))[-1]
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    again, said = Regression(), []
    train(again, Line(), CONFIG, tmp_path, label="test", on_start=said.append)
    assert again.calls == 5
    assert "step_00000020 is damaged (weights.safetensors is not what was written)" in said[0]
    for ours, theirs in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_record_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert read_records(path) == [{"step": 1, "loss": 2.0}]


def test_the_order_does_not_depend_on_the_number_of_processes() -> None:
    def batches(world_size: int) -> list[set[Draw]]:
        orders = [SampleOrder(10, CONFIG, start=0, rank=rank, world_size=world_size) for rank in range(world_size)]
        return [set(chain.from_iterable(slices)) for slices in zip(*orders, strict=True)]

    assert batches(1) == batches(2) == batches(4)


def test_an_epoch_passes_over_every_sample_once_and_the_next_in_another_order() -> None:
    order = SampleOrder(10, CONFIG, start=0, rank=0, world_size=1)
    epochs = [[order.draw(position).index for position in range(start, start + 10)] for start in (0, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert len({order.draw(position).seed for position in range(20)}) == 20


def test_starting_later_gives_the_same_steps() -> None:
    whole = list(SampleOrder(10, CONFIG, start=0, rank=0, world_size=1))
    assert list(SampleOrder(10, CONFIG, start=7, rank=0, world_size=1)) == whole[7:]


def test_a_batch_that_does_not_divide_is_an_input_error() -> None:
    with pytest.raises(InputError, match="multiple of 3"):
        SampleOrder(10, CONFIG, start=0, rank=0, world_size=3)


def test_seeds_mix() -> None:
    assert fold(0, 1) == fold(0, 1)
    assert len({fold(a, b) for a in range(30) for b in range(30)}) == 900
    assert all(0 <= fold(a, -a) < 2**63 for a in range(100))


def test_the_learning_curve_is_the_stored_one(tmp_path: Path) -> None:
    """Changes only in a commit that explains why: anything in the loop that alters training shows here."""
    run(tmp_path)
    stored = json.loads((Path(__file__).parent / "learning_curve.json").read_text())
    assert losses(tmp_path) == pytest.approx(stored, rel=1e-4)


def test_other_settings_do_not_continue_a_run_but_more_steps_do(tmp_path: Path) -> None:
    run(tmp_path)
    for changes in ({"learning_rate": 3e-2}, {"seed": 1}):
        with pytest.raises(InputError, match=f"training.{next(iter(changes))}"):
            train(Regression(), Line(), CONFIG.model_copy(update=changes), tmp_path, label="test")
    longer = Regression()
    train(longer, Line(), CONFIG.model_copy(update={"steps": 24}), tmp_path, label="test")
    assert longer.calls == 4


def test_a_checkpoint_of_a_network_with_other_buffers_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    other = Regression()
    other.register_buffer("further", torch.zeros(2))
    with pytest.raises(InputError, match="weights"):
        train(other, Line(), CONFIG, tmp_path, label="test")


def test_a_record_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, stop_at=8)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    run(tmp_path)
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == list(range(1, CONFIG.steps + 1))
