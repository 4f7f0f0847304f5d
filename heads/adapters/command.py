"""The `larmor adapter` command: is an adapter folder whole, what is in it, and a whole model folder of it if one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from foundation.checkpoint import read_about
from foundation.encoder import Encoder
from foundation.errors import InputError
from foundation.lora import Adapter, MixedEncoder, adapted
from foundation.preprocess import Grid
from foundation.study import Acquisition
from foundation.tokens import PATCH, tokenise
from foundation.training import seeded
from heads.adapters.folder import HASH_SHOWN, Backbones, LoadedModel, load_model
from heads.base import save_task

TOLERANCE = 1e-4  # of features of order one: merged in fp32 against not merged


def adapter_command(adapter: Path, backbones: Sequence[Path] = (), merge: Path | None = None) -> None:
    """Load it strictly on its backbone, compare merged with not merged, say what it holds; `merge` is the folder to write."""
    shelf = Backbones(backbones)
    loaded = load_model(adapter, shelf)
    if loaded.adapter is None or loaded.backbone is None:
        raise InputError("this is an adapter folder", got="a whole model", remedy="Use it as it is.", file=adapter)
    backbone = shelf.encoder(loaded.backbone, adapter)
    difference = merging_error(backbone, loaded.adapter)
    if not difference <= TOLERANCE:
        raise InputError(
            f"an adapter changes features alike, merged or not, to {TOLERANCE:g}",
            got=f"{difference:.2g}",
            remedy="Its weights are damaged or did not converge: fit the task again.",
            file=adapter,
        )
    print(describe(loaded, backbone))
    print(f"merged and not merged agree to {difference:.1g}")
    if merge is not None:
        about = read_about(adapter)["provenance"]
        origin = {"adapter_sha256": loaded.weights_sha256, "backbone_sha256": loaded.backbone.weights_sha256}
        card = (adapter / "card.md").read_text()
        save_task(merge, loaded.model, loaded.config, card=card, provenance={**about, **origin})
        print(f"wrote {merge}")


@torch.no_grad()
def merging_error(backbone: Encoder, adapter: Adapter) -> float:
    """The largest difference between the features of a random bag through the merged encoder and beside the adapter."""
    shape = (4 * PATCH, 3 * PATCH, 3 * PATCH)
    voxels = torch.randn(shape, generator=seeded(0))
    bag = tokenise(
        voxels, torch.ones(shape, dtype=torch.bool), Grid(shape, torch.eye(4).numpy()), "T1w", Acquisition(), 0
    )
    merged = adapted(backbone, adapter)(bag).tokens
    learned = adapted(backbone, replace(adapter, low_rank={}))
    beside = MixedEncoder(learned, [replace(adapter, learned={})]).eval()(bag, torch.tensor([0])).tokens
    return float((merged - beside).abs().max())


def describe(loaded: LoadedModel, backbone: Encoder) -> str:
    """What it is for, what it is on, how much of the pass it shares, how large it is."""
    assert loaded.adapter is not None and loaded.backbone is not None
    first, depth = loaded.adapter.first_block(len(backbone.blocks)), len(backbone.blocks)
    own = _number(tensor for low in loaded.adapter.low_rank.values() for tensor in low)
    own += _number(loaded.adapter.learned.values())
    head = _number(loaded.model.head.parameters())
    size = (loaded.folder / "model.safetensors").stat().st_size
    return "\n".join(
        [
            f"{loaded.config.name}, a {loaded.config.head.kind} head",
            f"on the backbone {loaded.backbone.weights_sha256[:HASH_SHOWN]}, fitted in {loaded.backbone.path}",
            f"{first} of {depth} blocks shared with other adapters of it; {len(loaded.adapter.low_rank)} linear maps adapted, "
            f"{len(loaded.adapter.learned)} parameters learnt whole",
            f"{own / 1e6:.2f} M weights of its own and {head / 1e6:.2f} M of its head, "
            f"beside {_number(backbone.parameters()) / 1e6:.2f} M; {size / 1e6:.1f} MB",
        ]
    )


def _number(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
