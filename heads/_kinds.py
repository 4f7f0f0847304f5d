"""Which kind of lesion an outlined one is, told by how it looks on every series and by its shape: no network, but a linear rule.

A network that outlines eight kinds at once did not learn the rare ones from eighty patients (docs/diary.md); one that outlines
whatever is a lesion did. What it outlined falls into pieces, and the voxels of a piece vote: multinomial logistic regression on the
intensities around each voxel, the piece's means and spreads on each contrast, its size, shape and place, and how many lesions
there are. Parts that come in one lesion, as a tumour's necrosis, enhancing rim and oedema, vote together against kinds that come
alone, and then voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Integer
from scipy import ndimage
from torch import Tensor, nn

from foundation.lesions import pieces_of
from foundation.preprocess import PreparedStudy
from foundation.study import CONTRASTS

SEEN = tuple(contrast for contrast in CONTRASTS if contrast != "unknown")
OF_VOXEL, OF_PIECE = 2, 4  # the voxel and its neighbourhood; the piece's mean, spread, and 10th and 90th percentile
PER_CONTRAST = OF_VOXEL + OF_PIECE + 2  # and the squares of neighbourhood and mean
OF_SHAPE, OF_STUDY = 5, 2  # size, compactness, place; how many lesions there are, and how much of the head they take
NUM_FEATURES = len(SEEN) * PER_CONTRAST + OF_SHAPE + OF_STUDY
VOTES = 80  # voxels that learn, of each kind in each piece, so that one large tumour does not outvote all plaques
STRENGTH = 0.01  # inverse of the ridge, of standardised features


class Kinds(nn.Module):
    """`values` are the kinds in label maps; those in `together` come in one lesion. Nothing is known until it has learnt."""

    def __init__(self, values: Sequence[int], together: Sequence[int]):
        super().__init__()
        self.values, self.together = np.array(values, dtype=np.int16), np.isin(values, together)
        self.weight: Tensor
        self.bias: Tensor
        self.mean: Tensor
        self.spread: Tensor
        for name, shape in {
            "weight": (len(values), NUM_FEATURES),
            "bias": (len(values),),
            "mean": (NUM_FEATURES,),
            "spread": (NUM_FEATURES,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

    def learn(
        self,
        studies: Sequence[tuple[PreparedStudy, Integer[np.ndarray, "i j k"], Bool[np.ndarray, "x y z"]]],
        *,
        seed: int = 0,
    ) -> None:
        """From true label maps on the reference series' own voxels, and from what the network outlined, on the grid: its pieces are
        larger than true lesions and look different, and they are what will have to be told. Every kind weighs the same, however
        rare; what was outlined and is no lesion is of no kind."""
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(seed)
        rows, kinds = [], []
        for prepared, truth, outlined in studies:
            labels = prepared.labels_to_grid(np.where(np.isin(truth, self.values), truth, 0))
            for where, features in chain(_pieces(labels > 0, prepared), _pieces(outlined, prepared)):
                own = labels[where]
                for kind in np.unique(own[own > 0]):
                    places = rng.permutation(np.flatnonzero(own == kind))[:VOTES]
                    rows.append(features[places])
                    kinds += [int(kind)] * len(places)
        table = np.concatenate(rows)
        known = np.ma.masked_invalid(table)
        spread = known.std(axis=0).filled(0.0)
        self._fill("mean", known.mean(axis=0).filled(0.0))
        self._fill("spread", np.where(spread > 1e-6, spread, np.inf))
        rule = LogisticRegression(C=STRENGTH, max_iter=2000, class_weight="balanced").fit(self._standard(table), kinds)
        there = np.searchsorted(self.values, rule.classes_)
        weight, bias = np.zeros(self.weight.shape), np.full(len(self.values), -1e4)  # what was never seen is never said
        if len(there) == 2:  # scikit-learn keeps one row for two classes
            weight[there[1]], bias[there] = rule.coef_[0], [0.0, rule.intercept_[0]]
        else:
            weight[there], bias[there] = rule.coef_, rule.intercept_
        self._fill("weight", weight)
        self._fill("bias", bias)

    def name(self, mask: Bool[np.ndarray, "x y z"], prepared: PreparedStudy) -> Int16[np.ndarray, "x y z"]:
        """The kind at every voxel of the mask, and around it that of the nearest voxel; 0 where there is no lesion at all."""
        named = np.zeros(mask.shape, dtype=np.int16)
        if not mask.any():
            return named
        for where, features in _pieces(mask, prepared):
            scores = self._standard(features) @ self.weight.numpy().T.astype(float) + self.bias.numpy()
            said = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
            alone = np.where(self.together, -np.inf, said.mean(axis=0))
            as_parts = np.logaddexp.reduce(said[:, self.together], axis=1).mean() if self.together.any() else -np.inf
            if as_parts >= alone.max():
                named[where] = self.values[np.where(self.together, said, -np.inf).argmax(axis=1)]
            else:
                named[where] = self.values[int(alone.argmax())]
        nearest = ndimage.distance_transform_edt(named == 0, return_distances=False, return_indices=True)
        return named[tuple(nearest)]  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _standard(self, table: np.ndarray) -> np.ndarray:
        """Standardised; what was not seen, as a contrast that is missing, is the mean."""
        return np.nan_to_num((table - self.mean.numpy()) / self.spread.numpy())

    def _fill(self, name: str, values: np.ndarray) -> None:
        self.get_buffer(name).copy_(torch.from_numpy(np.asarray(values)))


def _pieces(
    mask: Bool[np.ndarray, "x y z"], prepared: PreparedStudy
) -> Iterator[tuple[tuple[np.ndarray, ...], Float[np.ndarray, "voxels features"]]]:
    """Where each connected piece is, and the features of its voxels; not a number where a contrast was not acquired."""
    near = [ndimage.gaussian_filter(voxels, 1.0) for voxels in prepared.voxels]
    index_of = {name: [i for i, one in enumerate(prepared.contrasts) if one == name] for name in SEEN}
    numbers = pieces_of(mask, prepared.grid.affine).numbers
    body = np.argwhere(prepared.body[0])
    low, high = body.min(axis=0), body.max(axis=0)
    of_study = [np.log(max(1, numbers.max())), np.log(max(1, (numbers > 0).sum()) / len(body))]
    voxel_ml = abs(float(np.linalg.det(prepared.grid.affine[:3, :3]))) / 1000
    for piece, box in enumerate(ndimage.find_objects(numbers), start=1):
        inside = np.nonzero(numbers[box] == piece)
        where = tuple(axis + one.start for axis, one in zip(inside, box, strict=True))
        number = len(where[0])
        columns = []
        for name in SEEN:
            if not index_of[name]:
                columns.append(np.full((number, PER_CONTRAST), np.nan))
                continue
            own = np.mean([prepared.voxels[i][where] for i in index_of[name]], axis=0)
            around = np.mean([near[i][where] for i in index_of[name]], axis=0)
            mean = own.mean()
            of_piece = [mean, own.std(), *np.percentile(own, [10, 90]), mean**2]
            columns.append(np.column_stack([own, around, around**2, *(np.full(number, one) for one in of_piece)]))
        centre = (np.array([axis.mean() for axis in where]) - low) / np.maximum(high - low, 1)
        boxed = np.prod([one.stop - one.start for one in box])
        shape = [np.log(number * voxel_ml), np.log(boxed / number), abs(centre[0] - 0.5), centre[1], centre[2]]
        columns.append(np.tile([*shape, *of_study], (number, 1)))
        yield where, np.concatenate(columns, axis=1)
