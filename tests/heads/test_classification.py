"""Classification: the network learns what is apart from how frequent a class was; labels are scored one by one."""

import numpy as np
import pytest
import torch

from foundation.encoder import EncoderConfig
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.study import Study
from heads import parse_head
from heads.base import StudyBatch, StudySample
from heads.classification import Head

ENCODER = EncoderConfig(width=64, depth=1)
LABELS = ["tumour", "infarct", "atrophy"]


def make(**config: object) -> Head:
    torch.manual_seed(0)
    return Head(ENCODER, parse_head({"kind": "classification", "dropout": 0.0, **config}))


@pytest.fixture
def prepared(make_series) -> PreparedStudy:
    return prepare_study(Study("s", (make_series((12, 12, 12), spacing_mm=(4.0, 4.0, 4.0)),)), (4.0, 4.0, 4.0))


def asked(prepared: PreparedStudy, *targets: dict) -> StudyBatch:
    return StudyBatch.of([StudySample.of(prepared, None, one) for one in targets], dense=False)


def test_frequencies_of_the_training_rows_become_the_prior() -> None:
    head = make(target="kind", classes=["none", "tumour", "infarct"])
    head.meet([{"kind": "none"}] * 6 + [{"kind": 1}] + [{}] * 5)
    assert head.prior.exp().tolist() == pytest.approx([7 / 10, 2 / 10, 1 / 10])
    labels = make(classes=LABELS)
    labels.meet([{"tumour": 1, "infarct": 0}] * 3 + [{"tumour": 0, "infarct": 0, "atrophy": None}] * 5)
    assert labels.prior.tolist() == pytest.approx(np.log([4 / 6, 1 / 9, 1]).tolist(), abs=1e-6)


def test_the_loss_of_labels_is_the_mean_over_those_that_are_known(prepared: PreparedStudy) -> None:
    head = make(classes=LABELS)
    output = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    loss = head.loss(output, asked(prepared, {"tumour": 1, "infarct": 0}, {"atrophy": 1, "tumour": None}))["loss"]
    naive = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0)), np.log1p(np.exp(2.0))]
    assert loss.item() == pytest.approx(np.mean(naive))


def test_labels_are_scored_one_by_one_and_by_what_the_network_says(prepared: PreparedStudy) -> None:
    """A label of prior -2 whose output is -1 speaks for the label, though its probability is below a half."""
    head = make(classes=LABELS)
    head.prior.copy_(torch.tensor([-2.0, 0.0, 0.0]))
    outputs = torch.tensor([[-1.0, 1.0, 0.0], [-3.0, 2.0, 0.0], [-2.5, -1.0, 0.0]])
    truths = [{"tumour": 1, "infarct": 1}, {"tumour": 0, "infarct": 0}, {"tumour": 0, "infarct": 0, "atrophy": 1}]
    cases = [head.score_case(row[None], prepared, None, truth) for row, truth in zip(outputs, truths, strict=True)]
    summary = head.summarise(cases)
    assert summary["auroc tumour"] == 1 and summary["auroc infarct"] == 0.5 and np.isnan(summary["auroc atrophy"])
    assert summary["auroc"] == 0.75 and summary["balanced accuracy"] == pytest.approx((1 + 0.75) / 2)
    (tumour, infarct, atrophy) = head.read(outputs[:1], prepared, source="m", mask_path=None).findings
    assert (tumour.presence, infarct.presence) == ("absent", "present")
    assert tumour.probability == pytest.approx(1 / (1 + np.e)) and atrophy.probability == 0.5


def test_the_mean_auroc_of_classes_leaves_out_those_that_do_not_occur(prepared: PreparedStudy) -> None:
    head = make(target="kind", classes=["none", "tumour", "infarct"])
    outputs = torch.tensor([[3.0, 0.0, 0.0], [2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 3.0, 0.0]])
    cases = [
        head.score_case(row[None], prepared, None, {"kind": kind})
        for row, kind in zip(outputs, (0, 0, 1, "tumour"), strict=True)
    ]
    assert head.summarise(cases) == {"auroc": 1.0, "balanced accuracy": 1.0}
