"""Which tokens an answer about a whole study rests on, and whether that can be believed.

    explanations = explain(model, studies)          what the tests below measured, for each answer; kept in the task folder
    where_it_rests(model, prepared, index)          a label map of `BANDS`, to be shown only if that passes

The relevance of a token is its embedding times the answer's gradient with respect to it, summed over channels: what the answer
would lose, to first order, without the token (gradient x input, Shrikumar et al. 2016). A map is shown only for a model that passes
two tests, because many maps look plausible and say nothing:

- randomisation (Adebayo et al. 2018): with random weights the map must be another one;
- deletion (Petsiuk et al. 2018): without its most relevant tokens the answer must fall faster than without random ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int16
from scipy.stats import rankdata
from torch import Tensor, nn

from foundation.encoder import Encoder
from foundation.findings import Structure
from foundation.preprocess import PreparedStudy
from foundation.tokens import PATCH, Tokens, from_patches
from foundation.training import seeded
from heads.base import Explanation, StudyBatch, StudySample, TaskModel

MOST_STUDIES = 4  # that the tests look at, a hundred times each
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of the tokens that are deleted
RANDOM_ORDERS = 4
# What is shown: the most relevant tokens, then more of them, by their share of all.
BANDS = (
    (0.05, Structure(value=1, name="what the answer rests on most (5 % of the image)", paired=False)),
    (0.20, Structure(value=2, name="what it also rests on (the next 15 %)", paired=False)),
)


def relevance(model: TaskModel, prepared: PreparedStudy, output: int) -> Float[Tensor, " tokens"]:
    """Of each token of the study for one of the head's outputs; positive where the token speaks for it."""
    batch = StudyBatch.of([StudySample.of(prepared)], dense=model.head.sees_voxels)
    return _relevance(model.eval(), batch, output)


def relevance_map(model: TaskModel, prepared: PreparedStudy, output: int) -> Float[np.ndarray, "x y z"]:
    """The same on the study's grid, summed over series."""
    batch = StudyBatch.of([StudySample.of(prepared)], dense=model.head.sees_voxels)
    values = _relevance(model.eval(), batch, output)
    shape = np.array(prepared.grid.shape)
    i, j, k = (int(n) for n in -(-shape // PATCH))
    x, y, z = batch.tokens.cell[0].unbind(dim=-1)
    cells = torch.zeros(i * j * k).index_add((0), (x * j + y) * k + z, values)
    filled = cells[:, None].expand(-1, PATCH**3)
    return from_patches(filled, (i, j, k))[: shape[0], : shape[1], : shape[2]].numpy()


def where_it_rests(model: TaskModel, prepared: PreparedStudy, output: int) -> Int16[np.ndarray, "i j k"]:
    """The `BANDS` of the map on the reference series' own voxels; 0 elsewhere, and where a token speaks against the answer."""
    values = relevance_map(model, prepared, output)
    seen = prepared.body.any(axis=0)
    bands = np.zeros(values.shape, np.float32)
    for share, band in reversed(BANDS):
        least = np.quantile(values[seen], 1 - share) if seen.any() else np.inf
        bands[seen & (values >= least) & (values > 0)] = band.value
    scores = torch.stack([torch.from_numpy((bands == value).astype(np.float32)) for value in range(1 + len(BANDS))])
    return prepared.labels_from_grid(scores).astype(np.int16)


def explain(model: TaskModel, studies: Sequence[PreparedStudy], *, seed: int = 0) -> dict[str, Explanation]:
    """Both tests for each of the head's answers; empty where it has none, or where no encoder of ours sees tokens."""
    if not isinstance(model.encoder, Encoder) or not studies:
        return {}
    return {
        name: check_relevance(model, studies[:MOST_STUDIES], index, seed=seed)
        for name, index in model.head.answers.items()
    }


def check_relevance(model: TaskModel, studies: Sequence[PreparedStudy], output: int, *, seed: int = 0) -> Explanation:
    """Both tests on these studies; seconds each."""
    model = model.eval()
    random = _with_random_weights(model, seed)
    likeness, fall, random_fall = [], [], []
    for number, prepared in enumerate(studies):
        batch = StudyBatch.of([StudySample.of(prepared)], dense=model.head.sees_voxels)
        ours = _relevance(model, batch, output)
        theirs = _relevance(random, batch, output)
        correlation = float(np.corrcoef(rankdata(ours.numpy()), rankdata(theirs.numpy()))[0, 1])
        likeness.append(0.0 if np.isnan(correlation) else correlation)
        fall.append(_fall(model, batch, ours.argsort(descending=True), output))
        orders = [torch.randperm(len(ours), generator=seeded(seed, number, one)) for one in range(RANDOM_ORDERS)]
        random_fall.append(np.mean([_fall(model, batch, order, output) for order in orders]))
    return Explanation(
        likeness=float(np.mean(likeness)),
        fall=float(np.mean(fall)),
        random_fall=float(np.mean(random_fall)),
        num_studies=len(studies),
    )


def _relevance(model: TaskModel, batch: StudyBatch, output: int) -> Float[Tensor, " tokens"]:
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, embedded: Tensor) -> Tensor:
        # A leaf, so that the gradient is found whether or not the weights before it learn.
        kept.append(embedded.detach().requires_grad_())
        return kept[0]

    hook = encoder.embed.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            answer = _answer(model.output(batch), output)
            (gradient,) = torch.autograd.grad(answer, kept[0])
    finally:
        hook.remove()
    return (gradient * kept[0].detach()).sum(dim=-1)[0].float()


def _answer(output: Tensor, index: int) -> Tensor:
    """One number of a batch of one."""
    return output[0] if output.ndim == 1 else output[0, index]


@torch.inference_mode()
def _fall(model: TaskModel, batch: StudyBatch, order: Tensor, output: int) -> float:
    """How much the answer falls, on average over `SHARES`, without the first tokens of `order`."""
    whole = float(_answer(model.output(batch), output))
    falls = []
    for share in SHARES:
        kept = order[round(share * len(order)) :].sort().values
        without: Tokens = batch.tokens.take(kept[None])
        falls.append(whole - float(_answer(model.output(replace(batch, tokens=without)), output)))
    return float(np.mean(falls))


def _with_random_weights(model: TaskModel, seed: int) -> TaskModel:
    """The same network, each weight matrix's entries in random order: the scale stays, what was learnt goes."""
    random = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(random.parameters()):
            order = torch.randperm(parameter.numel(), generator=seeded(seed, 99, number))
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return random.eval()
