"""One pass for all tasks: what several models have in common is computed once.

    for index, output in outputs_of(models, prepared): ...

Encoders made from adapters of one backbone share its modules (`foundation/lora.py`), and they share a pass for as long as the
modules are the same objects: the embedding, then attention and MLP of block after block. Models without anything in common run
one by one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ehr.features import RecordSequence
from foundation.encoder import Encoder, Features, OnTheWay
from foundation.preprocess import PreparedStudy
from foundation.tokens import TENSOR_FIELDS, Tokens
from heads._record import RecordBatch
from heads.base import StudyBatch, StudySample, TaskModel


@torch.inference_mode()
def outputs_of(
    models: Sequence[TaskModel],
    prepared: PreparedStudy,
    cache: FeatureCache | None = None,
    records: Sequence[RecordSequence | None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Each model's output for one whole study with the model's index, as `output_of` gives it, in the order that shares most.

    They come one at a time, because those of dense heads are large. `records` are the patient's, in each model's own codes.
    """
    if not models:
        return
    device = next(models[0].parameters()).device
    dense = any(model.head.sees_voxels for model in models)
    batch = StudyBatch.of([StudySample.of(prepared)], dense=dense).to(device)
    records = records or [None] * len(models)
    batches = [batch if one is None else replace(batch, record=RecordBatch.of([one]).to(device)) for one in records]
    sharing = [index for index, model in enumerate(models) if model.head.looks_once]
    for place, features in features_of([models[index].encoder for index in sharing], batch.tokens, cache):
        model = models[sharing[place]].eval()
        yield sharing[place], model.head(features, batches[sharing[place]]).float().cpu()
    for index, model in enumerate(models):
        if not model.head.looks_once:
            yield index, model.eval().output(batches[index]).float().cpu()


def features_of(
    encoders: Sequence[nn.Module], tokens: Tokens, cache: FeatureCache | None = None
) -> Iterator[tuple[int, Features]]:
    """The features of a batch of bags by each encoder, with its index. Encoders that begin alike go together until they part."""
    ours = {index: one.eval() for index, one in enumerate(encoders) if isinstance(one, Encoder)}
    walk = _Walk(ours, tokens, cache)
    for group in walk.parted(list(ours), 0):
        yield from walk.onwards(group, 0, ours[group[0]].begin(tokens))
    for index in sorted(set(range(len(encoders))) - ours.keys()):  # a baseline's
        yield index, encoders[index].eval()(tokens)


class FeatureCache:
    """What the studies looked at last had become where passes part and where they end: a head run again costs only itself.

    An entry is found by what the bag holds and which modules it went through, so another study or another model cannot be
    mistaken for it; only weights that change in place could be. What was used longest ago goes when `max_bytes` are full.
    """

    def __init__(self, max_bytes: int = 2**29):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, tuple[_Step, ...]], Tensor] = OrderedDict()
        self._lock = Lock()  # the page reads several studies at a time

    def find(self, bag: str, steps: tuple[_Step, ...]) -> Tensor | None:
        with self._lock:
            if (bag, steps) in self._entries:
                self._entries.move_to_end((bag, steps))
            return self._entries.get((bag, steps))

    def keep(self, bag: str, steps: tuple[_Step, ...], x: Tensor) -> None:
        with self._lock:
            self._entries[bag, steps] = x
            while sum(entry.nbytes for entry in self._entries.values()) > self.max_bytes:
                self._entries.popitem(last=False)


class _Step:
    """One residual step of a pass. Two are the same if the same objects do them."""

    def __init__(self, run: Callable[[OnTheWay], Tensor] | None, *parts: object):
        self.run, self.parts = run, parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Step) and list(map(id, self.parts)) == list(map(id, other.parts))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.parts)))


def _steps(encoder: Encoder) -> tuple[_Step, ...]:
    """An encoder's pass: the embedding, then the two steps of each block as timm's `EvaBlock` takes them in use."""
    steps = [_Step(None, encoder.embed, encoder.registers)]
    for block in encoder.blocks:
        steps.append(_Step(_attention(block), block.norm1, block.attn, block.gamma_1))
        steps.append(_Step(_mlp(block), block.norm2, block.mlp, block.gamma_2))
    return tuple(steps)


def _attention(block: Any) -> Callable[[OnTheWay], Tensor]:
    return lambda way: way.x + block.gamma_1 * block.attn(block.norm1(way.x), rope=way.rotation, attn_mask=way.mask)


def _mlp(block: Any) -> Callable[[OnTheWay], Tensor]:
    return lambda way: way.x + block.gamma_2 * block.mlp(block.norm2(way.x))


class _Walk:
    """The passes of several encoders over one batch, as a tree: its root is the embedding, its leaves are features."""

    def __init__(self, encoders: dict[int, Encoder], tokens: Tokens, cache: FeatureCache | None):
        self.encoders, self.cache = encoders, cache
        self.steps = {index: _steps(encoder) for index, encoder in encoders.items()}
        self.bag = "" if cache is None else _content(tokens)

    def parted(self, group: Sequence[int], step: int) -> list[list[int]]:
        """The group in parts whose `step` is the same."""
        parts: dict[_Step, list[int]] = {}
        for index in group:
            parts.setdefault(self.steps[index][step], []).append(index)
        return list(parts.values())

    def onwards(self, group: list[int], step: int, way: OnTheWay) -> Iterator[tuple[int, Features]]:
        """Features by a group of encoders that are the same up to and including `step`; `way` is before it."""
        steps = self.steps[group[0]]
        end = step + 1
        while end < len(steps) and len(self.parted(group, end)) == 1:
            end += 1
        way = way._replace(x=self._run(steps[:end], step, way))
        if end < len(steps):
            for part in self.parted(group, end):
                yield from self.onwards(part, end, way)
        else:
            for index in group:
                yield index, self.encoders[index].finish(way.x)

    def _run(self, steps: tuple[_Step, ...], begun: int, way: OnTheWay) -> Tensor:
        """What the last of these steps gives, if `way` is what was before step `begun`."""
        if self.cache is not None:
            for end in range(len(steps), begun, -1):
                if (x := self.cache.find(self.bag, steps[:end])) is not None:
                    way, begun = way._replace(x=x), end
                    break
        for step in steps[begun:]:
            if step.run is not None:
                way = way._replace(x=step.run(way))
        if self.cache is not None and begun < len(steps):
            self.cache.keep(self.bag, steps, way.x)
        return way.x


def _content(tokens: Tokens) -> str:
    """A hash of everything that an encoder sees of a batch."""
    digest = hashlib.blake2b(digest_size=16)
    for name in TENSOR_FIELDS:
        tensor = getattr(tokens, name)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy())
    return digest.hexdigest()
