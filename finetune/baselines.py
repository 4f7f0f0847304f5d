"""What a head has to beat, in the same harness: the same rows, the same test studies, the same scores.

Networks from random weights, trained by the same loop: for dense heads MONAI's DynUNet, the network of nnU-Net (Isensee et al.
2021); for heads that answer for a whole study MONAI's DenseNet-121 (Huang et al. 2017).

Without a gradient: `majority`, what the training rows say on average; `linear`, logistic or ridge regression on the frozen
encoder's pooled features; `measured`, the same on the volumes that the models which come with Larmor measure; `atlas`, the mean
of the training label maps laid over the body; `threshold`, for one structure, the intensity of one series that best separates
it in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from ehr.features import RecordSequence
from finetune.linear import LinearMap, log_odds
from finetune.samples import LabelledStudy, progress_over
from foundation.encoder import Encoder, EncoderConfig, Features
from foundation.errors import InputError
from foundation.preprocess import Grid, PreparedStudy, sample_at
from foundation.study import CONTRASTS
from foundation.tokens import Tokens
from heads import HeadConfig, classification, head_module, quality, regression
from heads._reading import find
from heads._study import StudyHead
from heads.adapters.folder import load_model
from heads.base import EMBEDDED, Head, StudyBatch, StudySample, TaskModel
from heads.segmentation import DenseConfig, LabelMapHead

NETWORKS = ("dynunet", "densenet")
FITTED = ("majority", "linear", "measured", "atlas", "threshold")

FILTERS = (16, 32, 64, 128)  # nnU-Net's plan for these volumes has three halvings; it starts from 32 on a GPU
LEAST_VOXELS = 32  # DenseNet halves five times
ATLAS_VOXELS = 48  # along each edge of the body's box
THRESHOLDS = np.linspace(-3, 6, 181)  # standard deviations of the normalised series
MEASURING = ("brain-structures", "lesion")  # the first says how large the brain is
LEAST_ML, LEAST_SHARE = 1.0, 1e-4  # what is not there has a logarithm too
ALONE = {"record": None, "members": 1}


class _Nothing(nn.Module):
    """An encoder that looks at nothing."""

    def forward(self, tokens: Tokens) -> None:
        return None


def network(recipe: str, config: HeadConfig) -> TaskModel:
    """A task model with another network in the place of encoder and head."""
    is_dense = issubclass(head_module(config.kind).Head, LabelMapHead)
    if is_dense != (recipe == "dynunet") or config.kind == "anomaly":
        raise InputError(
            "a baseline network does the task's kind",
            got=f"recipe '{recipe}' for a head of kind '{config.kind}'",
            remedy="Use dynunet for label maps, densenet for answers about a whole study.",
        )
    head = _dynunet_head(config) if isinstance(config, DenseConfig) else _DenseNetHead(config)
    return TaskModel(_Nothing(), head)


def _dynunet_head(config: DenseConfig) -> LabelMapHead:
    """The task's own head, so that lesions are counted where it counts them, with a DynUNet of a channel for each contrast."""
    kind: type[LabelMapHead] = head_module(config.kind).Head

    class DynUNetHead(kind):
        def __init__(self) -> None:
            LabelMapHead.__init__(self, EncoderConfig(), config)
            depth = len(FILTERS)
            self.net = DynUNet(
                spatial_dims=3,
                in_channels=len(CONTRASTS),
                out_channels=1 + len(config.structures),
                kernel_size=[3] * depth,
                strides=[1] + [2] * (depth - 1),
                upsample_kernel_size=[2] * (depth - 1),
                filters=FILTERS,
            )
            # `skip_layers` is what runs and holds the same blocks again: named once, they are averaged and saved once.
            for twice in ("input_block", "downsamples", "bottleneck", "upsamples"):
                delattr(self.net, twice)

        def forward(self, features: Features | None, batch: StudyBatch) -> Float[Tensor, "batch classes x y z"]:
            return self.net(_by_contrast(batch))

    return DynUNetHead()


class _DenseNetHead(Head):
    """A DenseNet with a channel for each contrast; everything else is the task's own head's."""

    is_dense = False

    @property
    def sees_voxels(self) -> bool:
        return True

    def __init__(self, config: HeadConfig):
        super().__init__(EncoderConfig(), config)
        # A DenseNet has one answer, and reads no record.
        alone = {name: value for name, value in ALONE.items() if name in type(config).model_fields}
        own = head_module(config.kind).Head(EncoderConfig(), config.model_copy(update=alone))
        assert isinstance(own, StudyHead)
        num_outputs = own.answer.out_features
        for unused in ("norm", "pool", "answer"):
            setattr(own, unused, nn.Identity())
        self.own = own
        # Groups and not batches are normalised: a batch of few labelled studies says little of the next.
        norm = ("group", {"num_groups": 8})
        self.net = DenseNet121(spatial_dims=3, in_channels=len(CONTRASTS), out_channels=num_outputs, norm=norm)
        for name in ("meet", "loss", "read", "refuse", "score_case", "summarise"):
            setattr(self, name, getattr(own, name))

    def forward(self, features: Features | None, batch: StudyBatch) -> Tensor:
        volumes = _by_contrast(batch)
        missing = [max(0, LEAST_VOXELS - n) for n in volumes.shape[:1:-1]]
        return self.own.finish(self.net(nn.functional.pad(volumes, [n for after in missing for n in (0, after)])))


def _by_contrast(batch: StudyBatch) -> Float[Tensor, "batch contrasts x y z"]:
    """A channel for each contrast, as nnU-Net has one for each input; zero where there is none, the mean where there are several.

    The mean of all series would be an easy opponent: what is bright in one contrast is dark in another.
    """
    assert batch.voxels is not None and batch.has_series is not None and batch.contrast is not None
    belongs = nn.functional.one_hot(batch.contrast, len(CONTRASTS)) * batch.has_series[..., None]
    weight = belongs / belongs.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bsxyz,bsc->bcxyz", batch.voxels, weight.to(batch.voxels.dtype))


# ------------------------------------------------------------------------------------------------ without a gradient


class Baseline(TaskModel):
    """A task's head with another way to its output. `fit` is called once, with the training studies."""

    def __init__(self, config: HeadConfig):
        super().__init__(_Nothing(), head_module(config.kind).Head(EncoderConfig(), config))

    def fit(self, studies: Sequence[LabelledStudy]) -> None:
        raise NotImplementedError

    def output_of(self, prepared: PreparedStudy, record: RecordSequence | None = None) -> Tensor:
        raise NotImplementedError


def baseline(recipe: str, config: HeadConfig, encoder: Encoder | None) -> Baseline:
    """A baseline of this recipe, or an `InputError` if it cannot do the task."""
    if recipe == "linear":
        if encoder is None:
            raise InputError(
                "recipe 'linear' looks at a pretrained encoder's features",
                got="encoder: null",
                remedy="Set encoder=FOLDER (pretraining writes one).",
            )
        made = _Linear(config, encoder)
    else:
        made = _WITHOUT_ENCODER[recipe](config)
    if not made.does(config):
        raise InputError(
            "a baseline does the task's kind",
            got=f"recipe '{recipe}' for a head of kind '{config.kind}'",
            remedy=made.WHAT,
        )
    return made


class _Majority(Baseline):
    WHAT = "It answers for a whole study: classification, regression, quality."

    @staticmethod
    def does(config: HeadConfig) -> bool:
        return isinstance(config, classification.Config | regression.Config | quality.Config)

    def fit(self, studies: Sequence[LabelledStudy]) -> None:
        """The head has met the rows already: what it adds to any answer is all there is. A head of quality adds nothing: its
        constant is how frequent each kind is, and the median severity, of which the absolute error is least."""
        assert isinstance(self.head, StudyHead)
        self.constant = torch.zeros(1, self.head.answer.out_features)
        if isinstance(self.head, quality.Head):
            *kinds, severity = (truth for truth, _ in self.head.columns([study.targets for study in studies]))
            said = [log_odds(truth[np.isfinite(truth)]) for truth in kinds]
            self.constant = torch.tensor([[*said, float(np.nanmedian(severity))]], dtype=torch.float32)

    def output_of(self, prepared: PreparedStudy, record: RecordSequence | None = None) -> Tensor:
        assert isinstance(self.head, StudyHead)
        return self.head.finish(self.constant)


class _LinearMap(Baseline):
    """Logistic or ridge regression on numbers that are known of a study."""

    WHAT = "It answers for a whole study: classification, regression, quality."

    @staticmethod
    def does(config: HeadConfig) -> bool:
        return _Majority.does(config)

    def _features(self, prepared: PreparedStudy) -> np.ndarray:
        raise NotImplementedError

    def fit(self, studies: Sequence[LabelledStudy]) -> None:
        assert isinstance(self.head, StudyHead)
        features = np.stack([self._features(study.prepared) for study in progress_over(studies, "features")])
        self.map = LinearMap.fit(features, self.head.columns([study.targets for study in studies]))

    def output_of(self, prepared: PreparedStudy, record: RecordSequence | None = None) -> Tensor:
        assert isinstance(self.head, StudyHead)
        said = torch.from_numpy(self.map(self._features(prepared))).float()
        return self.head.finish(self.head.unfinish(said[None]))


class _Linear(_LinearMap):
    def __init__(self, config: HeadConfig, encoder: Encoder):
        super().__init__(config)
        self.look = encoder.eval()

    def _features(self, prepared: PreparedStudy) -> np.ndarray:
        batch = StudyBatch.of([StudySample.of(prepared)], dense=False)
        with torch.inference_mode():
            return StudyHead.glimpse(self.look(batch.tokens), batch)[0].numpy()


class _Measured(_LinearMap):
    """On what the models that come with Larmor measure: how large the brain is, and how large in it each structure and kind of
    lesion. A pooled token says little of a lesion that a mask shows."""

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        self.models = [load_model(EMBEDDED / name) for name in MEASURING]
        heads = [one.model.head for one in self.models]
        self.names = [(one.config.name, name) for one, head in zip(self.models, heads) for name in _measured_by(head)]

    def _features(self, prepared: PreparedStudy) -> np.ndarray:
        volumes = dict.fromkeys(self.names, 0.0)
        for model, reading in find(self.models, prepared.study).said.items():
            for finding in reading.findings:
                for one in finding.measurements:
                    if one.name == "volume" and (model, finding.name) in volumes:
                        volumes[model, finding.name] += one.value
        whole = sum(ml for (model, _), ml in volumes.items() if model == MEASURING[0])
        return np.log([LEAST_ML + whole, *(LEAST_SHARE + ml / (LEAST_ML + whole) for ml in volumes.values())])


def _measured_by(head: Head) -> list[str]:
    """Names of the structures, and of the kinds of lesion where the head tells kinds."""
    assert isinstance(head, LabelMapHead)
    return [one.name for one in (*head.config.structures, *getattr(head.config, "kinds", ()))]


class _Dense(Baseline):
    """A baseline of label maps: its output is log shares of the classes on the study's grid."""

    WHAT = "It draws label maps: segmentation, detection."

    @staticmethod
    def does(config: HeadConfig) -> bool:
        return isinstance(config, DenseConfig)

    @property
    def num_classes(self) -> int:
        return 1 + len(self.head.config.structures)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    def _classes(self, study: LabelledStudy) -> np.ndarray:
        assert study.labels is not None
        return study.prepared.labels_to_grid(self.head.classes_of(study.labels))


class _Atlas(_Dense):
    """Shares of the classes in a box around the body, which is all that is aligned."""

    def fit(self, studies: Sequence[LabelledStudy]) -> None:
        shares = torch.zeros(self.num_classes, *(ATLAS_VOXELS,) * 3)
        for study in studies:
            classes = torch.from_numpy(self._classes(study).astype(np.int64))
            one_hot = nn.functional.one_hot(classes, self.num_classes).movedim(-1, 0).float().numpy()
            box, own = _body_grid(study.prepared), study.prepared.grid
            shares += torch.from_numpy(np.stack([sample_at(one, own.affine, box) for one in one_hot]))
        self.shares = shares / len(studies)

    def output_of(self, prepared: PreparedStudy, record: RecordSequence | None = None) -> Tensor:
        box = _body_grid(prepared)
        laid = np.stack([sample_at(one.numpy(), box.affine, prepared.grid) for one in self.shares])
        on_grid = torch.from_numpy(laid)
        on_grid[0] += 1 - on_grid.sum(dim=0)  # beyond the box there is only background
        return on_grid.clamp(min=1e-6).log()[None]


def _body_grid(prepared: PreparedStudy) -> Grid:
    """`ATLAS_VOXELS` along each edge of the reference series' body, on the study's axes."""
    where = np.argwhere(prepared.body[0])
    first, last = where.min(axis=0) - 0.5, where.max(axis=0) + 0.5
    step = (last - first) / ATLAS_VOXELS
    affine = prepared.grid.affine.copy()
    affine[:3, :3] = prepared.grid.affine[:3, :3] * step
    affine[:3, 3] = prepared.grid.affine[:3, :3] @ (first + step / 2) + prepared.grid.affine[:3, 3]
    return Grid((ATLAS_VOXELS, ATLAS_VOXELS, ATLAS_VOXELS), affine)


class _Threshold(_Dense):
    WHAT = "It draws one structure by the brightness of one series."

    @staticmethod
    def does(config: HeadConfig) -> bool:
        return isinstance(config, DenseConfig) and len(config.structures) == 1

    def fit(self, studies: Sequence[LabelledStudy]) -> None:
        """The contrast, the threshold and whether it is above or below that give the best mean Dice in training."""
        contrasts = {contrast for study in studies for contrast in study.prepared.contrasts}
        best = (-1.0, "", 0.0, 1)
        for contrast in sorted(contrasts):
            for sign in (1, -1):
                dice = np.zeros(len(THRESHOLDS))
                for study in studies:
                    if contrast in study.prepared.contrasts:
                        dice += _dice_by_threshold(
                            *self._voxels(study.prepared, contrast, sign), self._classes(study) > 0
                        )
                place = int(dice.argmax())
                best = max(best, (float(dice[place]) / len(studies), contrast, float(THRESHOLDS[place]), sign))
        _, self.contrast, self.threshold, self.sign = best

    @staticmethod
    def _voxels(prepared: PreparedStudy, contrast: str, sign: int) -> tuple[np.ndarray, np.ndarray]:
        index = prepared.contrasts.index(contrast) if contrast in prepared.contrasts else 0  # pyright: ignore[reportArgumentType]
        return sign * prepared.voxels[index], prepared.body[index]

    def output_of(self, prepared: PreparedStudy, record: RecordSequence | None = None) -> Tensor:
        voxels, body = self._voxels(prepared, self.contrast, self.sign)
        is_there = torch.from_numpy((voxels > self.threshold) & body).float()
        return torch.stack([1 - is_there, is_there])[None] * 10


def _dice_by_threshold(voxels: np.ndarray, body: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice at each of `THRESHOLDS` of 'brighter than it and in the body'; 1 where neither has a voxel."""
    edges = np.concatenate([THRESHOLDS, [np.inf]])
    counts = np.histogram(voxels[body], edges)[0][::-1].cumsum()[::-1]
    hits = np.histogram(voxels[body & truth], edges)[0][::-1].cumsum()[::-1]
    both = counts + truth.sum()
    return np.where(both > 0, 2 * hits / np.maximum(both, 1), 1.0)


_WITHOUT_ENCODER = {"majority": _Majority, "measured": _Measured, "atlas": _Atlas, "threshold": _Threshold}
