"""What the loop adds to a step: the stall of a checkpoint, bytes between processes, the wait for data."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks._measure import PAIRS, WARM_UPS, Quartiles, Row
from foundation.cohort.stream import StreamConfig
from foundation.encoder import Encoder, EncoderConfig
from foundation.engines import Engine, make_accelerator
from foundation.runstate import BackgroundWriter, publish_checkpoint
from foundation.scaling import traffic_of
from foundation.training import Draw, TrainingConfig, read_records, train
from pretrain.config import CropConfig
from pretrain.masking import MaskedBatch
from pretrain.objectives.masked_autoencoding import Config, MaskedStudies, Objective
from pretrain.samples import DrawnStudies, SeriesInMemory

PROCESSES = 2
CROP = CropConfig(voxels=48, spacing_mm=(3.0, 4.0), max_tokens=160, max_targets=64)


def rows() -> Iterator[Row]:
    yield _checkpoint_stall()
    yield _bytes_between_processes()
    yield _busy()


def _objective(size: str = "small") -> Objective:
    torch.manual_seed(0)
    return Objective(Encoder(EncoderConfig.of_size(size)), Config())  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------ checkpoints


def _checkpoint_stall() -> Row:
    """How long training stands still for a save that a thread finishes, against one that it waits for."""
    objective = _objective()
    engine = _engine(objective)
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()  # AdamW makes its moments at its first step
    with TemporaryDirectory() as folder:
        writer = BackgroundWriter(Path(folder))
        ours, theirs = [], []
        for step in range(WARM_UPS + PAIRS):
            began = time.perf_counter()
            state = engine.snapshot(2 * step)
            assert state is not None
            writer.save(state)
            ours.append(time.perf_counter() - began)
            writer.join()
            began = time.perf_counter()
            state = engine.snapshot(2 * step + 1)
            assert state is not None
            publish_checkpoint(Path(folder), state.step, state.write)
            theirs.append(time.perf_counter() - began)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors")) // 2
    pairs = list(zip(ours, theirs))[WARM_UPS:]
    return Row(
        "a checkpoint in the background, stall",
        Quartiles.of([pair[0] for pair in pairs]),
        Quartiles.of([pair[1] for pair in pairs]),
        Quartiles.of([slow / fast for fast, slow in pairs]),
        5.0,
        {"bytes": size},
    )


def _engine(objective: nn.Module) -> Engine:
    return Engine(
        make_accelerator(),
        "single",
        objective,
        groups=lambda module: [{"params": list(module.parameters())}],
        bf16=False,
        clip_norm=1.0,
        per_process=1,
        accumulate=1,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-4, fused=True),
    )


# ------------------------------------------------------------------------------------------------ bytes


def _bytes_between_processes() -> Row:
    """Gradients that DDP hands over in a step of two real processes, as ring traffic, against the formula of docs/scaling.md.

    A model of volume. It says nothing of speed: two processes of one CPU share everything.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        multiprocessing.spawn(_count_bytes, args=(port, folder), nprocs=PROCESSES)  # pyright: ignore[reportPrivateImportUsage]
        counted = json.loads((Path(folder) / "0.json").read_text())
    objective = _objective("tiny")
    trained = sum(parameter.numel() for parameter in objective.parameters())
    formula = traffic_of("ddp", PROCESSES, trained=trained)
    sent = [2 * (PROCESSES - 1) / PROCESSES * handed for handed in counted["bytes"]]
    near = Quartiles.of([min(one / formula, formula / one) for one in sent])
    facts = {"formula_bytes": formula, "counted_bytes": sent[0]}
    return Row(
        "bytes between two processes, near the formula", Quartiles.of(counted["seconds"]), None, near, 0.97, facts
    )


def _count_bytes(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    model = DistributedDataParallel(_objective("tiny"), gradient_as_bucket_view=True)
    handed = [0]

    def counting(state, bucket):  # DDP reads annotations and does not know postponed ones
        handed[0] += bucket.buffer().nbytes
        work = distributed.all_reduce(bucket.buffer().div_(PROCESSES), async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])

    model.register_comm_hook(None, counting)
    batch, numbers, seconds = _batch(rank), [], []
    for _ in range(5):
        handed[0], began = 0, time.perf_counter()
        model(batch)["loss"].backward()
        seconds.append(time.perf_counter() - began)
        numbers.append(handed[0])
    if rank == 0:
        (Path(folder) / "0.json").write_text(json.dumps({"bytes": numbers, "seconds": seconds}))
    distributed.destroy_process_group()


def _batch(seed: int) -> MaskedBatch:
    studies = MaskedStudies(_Heads(2), CROP)
    return studies.collate([studies[Draw(index, seed)] for index in range(2)])


class _Heads(DrawnStudies):
    """A few synthetic heads, prepared once and kept: what is left of a sample is its box, at a spacing drawn anew."""

    def __init__(self, number: int):
        super().__init__(StreamConfig(subjects=number, spacing_mm=4.0, contrasts=("T1w",)))
        self.heads = [super(_Heads, self).ready(index, 0) for index in range(number)]

    def ready(self, index: int, seed: int) -> tuple[SeriesInMemory, ...]:
        return self.heads[index]


# ------------------------------------------------------------------------------------------------ data


def _busy() -> Row:
    """The share of a pretraining step that does not wait for its batch, with one worker beside it."""
    config = TrainingConfig(steps=60, batch_size=8, warmup_steps=2, num_workers=1, log_every=5, checkpoint_every=1000)
    with TemporaryDirectory() as folder:
        train(
            _objective("small"),
            MaskedStudies(_Heads(4), CROP),
            config,
            Path(folder),
            label="busy",
            on_start=lambda text: None,
        )
        records = read_records(Path(folder) / "metrics.jsonl")[2:]  # the first wait is for the worker to start
    busy = [1 - record["waiting_for_data"] for record in records]
    seconds = [config.batch_size / record["samples_per_s"] for record in records]
    return Row("pretraining, not waiting for data", Quartiles.of(seconds), None, Quartiles.of(busy), 0.9, {})
