"""What a task adds to an encoder: low-rank maps beside some of its linear maps, and a few tensors learnt whole.

    encoder = adapted(backbone, adapter)         # merged into copies; what the adapter leaves alone is the backbone's own
    mixed = MixedEncoder(backbone, adapters)     # not merged: row i of a batch goes through adapters[rows[i]]

LoRA (Hu et al. 2022): y = W x + alpha / rank * B A x. Training puts A and B there through peft (`finetune/adapters.py`);
using them needs none of it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foundation.encoder import Encoder, Features
from foundation.errors import InputError
from foundation.tokens import Tokens


class LowRank(NamedTuple):
    """The two matrices beside one linear map."""

    a: Float[Tensor, "rank num_in"]
    b: Float[Tensor, "num_out rank"]


@dataclass(frozen=True)
class Adapter:
    """`low_rank` by the name of the linear map in the encoder, `learned` by that of the parameter; both may be empty."""

    rank: int
    alpha: int
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    learned: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def changed(self) -> set[str]:
        """The names of the encoder's parameters that are other ones once this is merged."""
        return {f"{name}.weight" for name in self.low_rank} | set(self.learned)

    def first_block(self, depth: int) -> int:
        """The first block in which anything changes; `depth` if it is none of them. Below it a pass is the backbone's."""
        if any(name.startswith("embed.") for name in self.changed()):
            return 0
        return min((int(name.split(".")[1]) for name in self.changed() if name.startswith("blocks.")), default=depth)

    def difference(self, name: str) -> Float[Tensor, "num_out num_in"]:
        """What is added to the weight of the linear map `name`."""
        return self.scale * self.low_rank[name].b @ self.low_rank[name].a


@torch.no_grad()
def adapted(backbone: Encoder, adapter: Adapter) -> Encoder:
    """The encoder that the task was fitted as. It shares with `backbone` every module in which nothing changes."""
    encoder = copy_but_share(backbone, adapter.changed())
    for name in adapter.low_rank:
        encoder.get_parameter(f"{name}.weight").add_(adapter.difference(name))
    for name, tensor in adapter.learned.items():
        encoder.get_parameter(name).copy_(tensor)
    return encoder


@torch.no_grad()
def unmerge(encoder: Encoder, adapter: Adapter, backbone: Encoder) -> None:
    """Take a merged adapter out again, in place, to within rounding; `backbone` gives back what had been learnt whole."""
    for name in adapter.low_rank:
        encoder.get_parameter(f"{name}.weight").sub_(adapter.difference(name))
    for name in adapter.learned:
        encoder.get_parameter(name).copy_(backbone.get_parameter(name))


def copy_but_share(encoder: Encoder, own: Collection[str]) -> Encoder:
    """A copy whose parameters are its own where they are named, and otherwise the very same objects, whole modules where it can."""
    parts = [*encoder.named_modules(), *encoder.named_parameters(), *encoder.named_buffers()]
    shared = {
        id(part): part for name, part in parts if name and not any(f"{mine}.".startswith(f"{name}.") for mine in own)
    }
    return copy.deepcopy(encoder, shared)


class MixedEncoder(nn.Module):
    """One backbone with several adapters beside it, none merged: each row of a batch goes through the one it names.

    It holds the low-rank maps of all adapters stacked, so a batch costs two small batched products per adapted map,
    whatever the adapters in it. The blocks below the first adapted one are the backbone's own.
    """

    def __init__(self, backbone: Encoder, adapters: Sequence[Adapter]):
        super().__init__()
        self.rows = _Rows()
        names = sorted(set().union(*(adapter.low_rank for adapter in adapters)))
        norms = sorted({name.rpartition(".")[0] for adapter in adapters for name in adapter.learned})
        for name in norms:
            if not isinstance(backbone.get_submodule(name), nn.LayerNorm):
                remedy = "Load such an adapter alone; it then has an encoder of its own."
                raise InputError("adapters of one batch learn no more whole than norms", got=name, remedy=remedy)
        self.encoder = copy_but_share(backbone, {f"{name}.weight" for name in (*names, *norms)})
        for name in names:
            linear = backbone.get_submodule(name)
            assert isinstance(linear, nn.Linear), name
            self._put(name, _MixedLinear(linear, name, adapters, self.rows))
        for name in norms:
            norm = backbone.get_submodule(name)
            assert isinstance(norm, nn.LayerNorm)
            self._put(name, _MixedNorm(norm, name, adapters, self.rows))
        self.first = min(adapter.first_block(backbone.config.depth) for adapter in adapters)

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.encoder.get_submodule(parent), leaf, module)

    def forward(self, tokens: Tokens, rows: Int[Tensor, " rows"]) -> Features:
        """`rows` are indices into the adapters. One bag with several rows is the same study for several tasks."""
        way = self.encoder.begin(tokens)
        self.rows.index = rows
        for number, block in enumerate(self.encoder.blocks):
            if number == self.first:
                way = way._replace(x=_one_per_row(way.x, rows))
            way = way._replace(x=block(way.x, rope=way.rotation, attn_mask=way.mask))
        return self.encoder.finish(_one_per_row(way.x, rows))


def _one_per_row(x: Tensor, rows: Tensor) -> Tensor:
    return x if len(x) == len(rows) else x.expand(len(rows), -1, -1)


class _Rows:
    """Which adapter each row of the batch in hand goes through; all maps of a mixed encoder look at the same."""

    index: Tensor


class _MixedLinear(nn.Module):
    """A linear map and the low-rank maps of several adapters beside it, zeros where an adapter has none. Ranks may differ."""

    a: Float[Tensor, "adapters num_in rank"]
    b: Float[Tensor, "adapters rank num_out"]

    def __init__(self, base: nn.Linear, name: str, adapters: Sequence[Adapter], rows: _Rows):
        super().__init__()
        self.base, self._rows = base, rows
        rank = max(len(adapter.low_rank[name].a) for adapter in adapters if name in adapter.low_rank)
        a = base.weight.new_zeros(len(adapters), base.in_features, rank)
        b = base.weight.new_zeros(len(adapters), rank, base.out_features)
        for number, adapter in enumerate(adapters):
            if name in adapter.low_rank:
                low = adapter.low_rank[name]
                a[number, :, : len(low.a)] = low.a.T
                b[number, : len(low.a)] = adapter.scale * low.b.T
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def forward(self, x: Float[Tensor, "rows sequence num_in"]) -> Float[Tensor, "rows sequence num_out"]:
        index, y = self._rows.index, self.base(x)
        low = torch.bmm(x, self.a[index])
        # Into y itself: a new result of its size would cost as much memory traffic as the low-rank maps cost arithmetic.
        return y.baddbmm_(low.to(y.dtype), self.b[index].to(y.dtype))


class _MixedNorm(nn.Module):
    """A layer norm whose scale and shift are those of each row's adapter."""

    weight: Float[Tensor, "adapters 1 width"]
    bias: Float[Tensor, "adapters 1 width"]

    def __init__(self, base: nn.LayerNorm, name: str, adapters: Sequence[Adapter], rows: _Rows):
        super().__init__()
        self.shape, self.eps, self._rows = base.normalized_shape, base.eps, rows
        for what in ("weight", "bias"):
            own = [adapter.learned.get(f"{name}.{what}", base.get_parameter(what)) for adapter in adapters]
            self.register_buffer(what, torch.stack([one.detach() for one in own])[:, None])

    def forward(self, x: Float[Tensor, "rows sequence width"]) -> Float[Tensor, "rows sequence width"]:
        index = self._rows.index
        normal = nn.functional.layer_norm(x, self.shape, eps=self.eps)
        return torch.addcmul(self.bias[index], normal, self.weight[index])
