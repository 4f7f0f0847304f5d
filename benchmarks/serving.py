"""Several tasks on one study: one pass for all of them, several adapters in one batch, a whole head without a sliding window.

Inputs are random, everything is fp32 and in memory. Reading, resampling and finding the body are on neither side.

    python -m benchmarks serving
    python -m benchmarks.serving MANIFEST MODEL [WINDOW] [STUDIES]     mean Dice of a fitted model in one pass and by windows
"""

from __future__ import annotations

import copy
import multiprocessing
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peft
import psutil
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from benchmarks._measure import Row, compare, compare_sizes
from finetune.adapters import ATTENTION, MLP, first_block
from finetune.config import LoraConfig
from finetune.samples import read_labelled
from foundation.encoder import Encoder, EncoderConfig
from foundation.lora import Adapter, LowRank, MixedEncoder, adapted
from foundation.preprocess import Grid
from foundation.reading.collection import read_manifest
from foundation.study import Acquisition
from foundation.tokens import Tokens
from foundation.training import seeded
from heads import parse_head
from heads.adapters.folder import load_model
from heads.adapters.shared import FeatureCache, features_of
from heads.base import StudyBatch, StudySample, TaskModel
from heads.segmentation import LabelMapHead

ENCODER = EncoderConfig.of_size("small")
SHAPE = (64, 64, 48)  # 384 tokens
RANK = 16
NUM_TASKS = 6
NUM_MIXED = 4


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield from _six_heads()
        yield from _mixed_batches()
        yield _whole_head()
    yield from _whole_head_memory()


# ------------------------------------------------------------------------------------------------ one pass for all tasks


def _six_heads() -> Iterator[Row]:
    """Classification heads as the recipe fits them: adapters on the MLP of the last block, attentive pooling of all tokens."""
    backbone = Encoder(ENCODER).eval()
    places = [f"blocks.{ENCODER.depth - 1}.{name}" for name in MLP]
    batch = StudyBatch.of([_sample(SHAPE)], dense=False)
    together, apart = [], []
    for task in range(NUM_TASKS):
        head = parse_head({"kind": "classification", "target": "t", "classes": ["no", "yes"]})
        model = TaskModel.build(adapted(backbone, _adapter(backbone, places, task)), head).eval()
        together.append(model)
        apart.append(copy.deepcopy(model))  # as whole task folders load: nothing is the same object

    def one_pass(cache: FeatureCache | None = None) -> list[Tensor]:
        outputs = features_of([model.encoder for model in together], batch.tokens, cache)
        return [together[index].head(features, batch) for index, features in sorted(outputs)]

    def full_passes() -> list[Tensor]:
        return [model.output(batch) for model in apart]

    _assert_equal(one_pass(), full_passes())
    facts = {"heads": "classification, adapters on the MLP of the last block", "tokens": len(batch.tokens)}
    yield compare("six heads, one pass against six", ours=one_pass, theirs=full_passes, target=2.5, **facts)
    yield compare(
        "six heads in one pass against one head", ours=one_pass, theirs=lambda: apart[0].output(batch), target=1 / 1.4
    )
    cache = FeatureCache()
    one_pass(cache)
    again = lambda: next(features_of([together[0].encoder], batch.tokens, cache))  # noqa: E731
    yield compare(
        "a head on cached features against a pass",
        ours=lambda: together[0].head(again()[1], batch),
        theirs=lambda: apart[0].output(batch),
        target=8.0,
    )


# ------------------------------------------------------------------------------------------------ mixed batches


def _mixed_batches() -> Iterator[Row]:
    """Four studies, each with another adapter, on attention and MLP: in every block, and late as dense heads have them."""
    backbone = Encoder(ENCODER).eval()
    batch = Tokens.collate([_sample(SHAPE, seed).tokens() for seed in range(NUM_MIXED)])
    rows, names = torch.arange(NUM_MIXED), [f"a{number}" for number in range(NUM_MIXED)]
    late = first_block(ENCODER.depth, LoraConfig(), dense=True)
    for where, first in (("every block", 0), ("the last third", late)):
        places = [f"blocks.{block}.{name}" for block in range(first, ENCODER.depth) for name in (*ATTENTION, *MLP)]
        adapters = [_adapter(backbone, places, number) for number in range(NUM_MIXED)]
        mixed, theirs = MixedEncoder(backbone, adapters).eval(), peft_model(backbone, adapters)
        ours, others = partial(mixed, batch, rows), partial(theirs, batch, adapter_names=names)
        _assert_equal(ours(), others())
        yield compare(
            f"four adapters in a batch, {where}", ours=ours, theirs=others, target=1.2, rank=RANK, tokens=len(batch)
        )
        # What would be left if adapters cost nothing: no way of adding them can be faster than this against peft's.
        yield compare(f"no adapter at all, theirs in {where}", ours=partial(backbone, batch), theirs=others)


def peft_model(backbone: Encoder, adapters: Sequence[Adapter]) -> nn.Module:
    """The same adapters in peft's way, as a0, a1, ...; it takes `adapter_names`, one a row. All adapt the same maps."""
    maps = sorted(adapters[0].low_rank)
    model: Any = None
    for number, adapter in enumerate(adapters):
        config = peft.LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=maps, bias="none")
        if model is None:
            model = peft.get_peft_model(copy.deepcopy(backbone), config, adapter_name="a0")  # pyright: ignore[reportArgumentType]
        else:
            model.add_adapter(f"a{number}", config)
        with torch.no_grad():
            for name in maps:
                layer = model.base_model.model.get_submodule(name)
                layer.lora_A[f"a{number}"].weight.copy_(adapter.low_rank[name].a)
                layer.lora_B[f"a{number}"].weight.copy_(adapter.low_rank[name].b)
    return model.eval()


# ------------------------------------------------------------------------------------------------ a whole head

HEAD = (96, 112, 96)  # 190 x 224 x 190 mm at 2 mm
WINDOW = (64, 64, 64)
STRUCTURES = [{"value": value, "name": f"structure {value}", "paired": False} for value in range(1, 11)]


def sliding_window(
    model: TaskModel, sample: StudySample, window: Sequence[int], *, overlap: float = 0.5, batch: int = 1
) -> Tensor:
    """What the model says of a study of one series when MONAI shows it windows: `(1, classes, x, y, z)` scores."""

    def predict(windows: Tensor) -> Tensor:
        x, y, z = windows.shape[2:]
        grid = Grid((x, y, z), sample.grid.affine)  # moving a bag changes nothing
        seen = [StudySample(one[:1], one[1:] > 0.5, grid, sample.contrasts, sample.acquisitions) for one in windows]
        return torch.cat(
            [model.output(StudyBatch.of([one], dense=True)) if one.body.any() else _air(model, one) for one in seen]
        )

    volume = torch.cat([sample.voxels, sample.body.float()])[None]
    scores = sliding_window_inference(volume, window, batch, predict, overlap=overlap, mode="gaussian")
    assert isinstance(scores, Tensor)
    return scores


def whole_pass(model: TaskModel, sample: StudySample) -> Tensor:
    return model.output(StudyBatch.of([sample], dense=True))


def _air(model: TaskModel, sample: StudySample) -> Tensor:
    """Scores of a window without a patient in it: background."""
    assert isinstance(model.head, LabelMapHead)
    scores = torch.zeros(1, 1 + len(model.head.config.structures), *sample.grid.shape)
    scores[:, 0] = 1.0
    return scores


def _segmenter() -> TaskModel:
    torch.manual_seed(0)
    head = parse_head({"kind": "segmentation", "structures": STRUCTURES})
    return TaskModel.build(Encoder(EncoderConfig.of_size("tiny")), head).eval()


def _whole_head() -> Row:
    model, sample = _segmenter(), _sample(HEAD, head=True)
    ours, theirs = partial(whole_pass, model, sample), partial(sliding_window, model, sample, WINDOW)
    return compare(
        "a whole head in one pass, theirs windows",
        ours=ours,
        theirs=theirs,
        target=2.5,
        shape=HEAD,
        window=WINDOW,
        overlap=0.5,
    )


def _whole_head_memory() -> Iterator[Row]:
    """Bytes at the worst moment, beyond the model and the study; each side in a process of its own. A segmentation head works a few
    planes at a time where nothing is learnt (heads/_planes.py): an ordinary network does not."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        sides = [("pass", True), ("windows", False), ("pass", False), ("windows", True)]
        ours, ordinary, in_one_piece, windows = pool.starmap(_peak_of, sides, chunksize=1)
    name = "a whole head's peak memory, theirs "
    yield compare_sizes(f"{name}windows of an ordinary network", ours=ours, theirs=ordinary, target=2.0)
    yield compare_sizes(f"{name}one pass of it", ours=ours, theirs=in_one_piece)
    yield compare_sizes(f"{name}windows of ours", ours=ours, theirs=windows)


@torch.inference_mode()
def _peak_of(side: str, by_planes: bool) -> int:
    torch.set_num_threads(1)
    model, sample = _segmenter(), _sample(HEAD, head=True)
    before = psutil.Process().memory_info().rss
    with nullcontext() if by_planes else mock.patch("torch.is_grad_enabled", return_value=True):
        whole_pass(model, sample) if side == "pass" else sliding_window(model, sample, WINDOW)
    high = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert high is not None
    return 1024 * int(high[1]) - before


@torch.inference_mode()
def compare_dice(manifest: Path, model: Path, window: int = 48, number: int = 10) -> None:
    """On real studies, the same weights on both sides: print mean Dice in one pass, by windows, and their difference."""
    loaded = load_model(model)
    collection = read_manifest(manifest)
    rows = collection.split("test")[:number]
    scores = []
    for study in read_labelled(collection, rows, loaded.model.head, loaded.config.spacing_mm, label="read"):
        sample = StudySample.of(study.prepared)
        outputs = whole_pass(loaded.model, sample), sliding_window(loaded.model, sample, (window,) * 3)
        pair = [loaded.model.head.score_case(one, study.prepared, study.labels, {})["dice"] for one in outputs]
        scores.append(pair)
        print(f"{study.row.subject:30s} {pair[0]:.4f} {pair[1]:.4f}", flush=True)
    ours, theirs = np.mean(scores, axis=0)
    print(f"{len(scores)} studies: one pass {ours:.4f}, windows of {window} {theirs:.4f}, {ours - theirs:+.4f}")


# ------------------------------------------------------------------------------------------------ what both sides see


def _sample(shape: tuple[int, int, int], seed: int = 0, *, head: bool = False) -> StudySample:
    """Noise, all of it body; or a head, which is an ellipsoid in air."""
    voxels = torch.randn(1, *shape, generator=seeded(seed))
    body = torch.ones(1, *shape, dtype=torch.bool)
    if head:
        axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
        body[0] = sum(axis.square() for axis in axes) < 0.9
    return StudySample(voxels, body, Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0])), ("T1w",), (Acquisition(),))


def _adapter(backbone: Encoder, places: Sequence[str], seed: int) -> Adapter:
    generator = seeded(seed)
    low_rank = {}
    for name in places:
        weight = backbone.get_parameter(f"{name}.weight")
        a = torch.randn(RANK, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
        low_rank[name] = LowRank(a, 0.05 * torch.randn(weight.shape[0], RANK, generator=generator))
    return Adapter(RANK, 2 * RANK, low_rank)


def _assert_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-5), float((mine - other).abs().max())


if __name__ == "__main__":
    compare_dice(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
