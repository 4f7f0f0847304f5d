"""The loss of label maps: Dice over what is there, against a computation by hand; detection counts what is in two masks."""

import numpy as np
import pytest
import torch

from foundation.encoder import EncoderConfig
from foundation.preprocess import prepare_study
from foundation.study import Study
from heads import parse_head
from heads.base import StudyBatch, StudySample
from heads.detection import Head as Detection
from heads.segmentation import ContrastBlock, Head

ENCODER = EncoderConfig(width=64, depth=1)
THREE = [{"value": value, "name": f"part {value}", "paired": False} for value in (1, 2, 5)]


def make(kind: type, **config: object):
    torch.manual_seed(0)
    values = {"kind": kind.__module__.rpartition(".")[2], "structures": THREE, "channels": [2, 2, 2], "bottleneck": 4}
    return kind(ENCODER, parse_head(values | config))


def test_a_stem_averages_what_each_series_says_by_its_own_contrast() -> None:
    """Against a loop over the series; what lies in the place of an absent one is not looked at."""
    torch.manual_seed(0)
    block, normal = ContrastBlock(3), torch.nn.functional.instance_norm
    for table in (block.scale, block.shift):
        torch.nn.init.normal_(table.weight)
    voxels, contrast = torch.randn(2, 3, 5, 6, 7), torch.tensor([[0, 4, 2], [1, 0, 0]])
    has_series = torch.tensor([[True, True, True], [True, False, True]])
    for one, out in enumerate(block(voxels, has_series, contrast)):
        said = []
        for number in has_series[one].nonzero().flatten().tolist():
            code = contrast[one, number]
            x = normal(block.first(voxels[one, number][None, None]))[0]
            x = x * block.scale.weight[code][:, None, None, None] + block.shift.weight[code][:, None, None, None]
            said.append(torch.where(x > 0, x, 0.01 * x))
        expected = block.rest[1:](torch.stack(said).mean(dim=0)[None])[0]
        assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("there", [(1, 2), (2,), ()])
def test_dice_is_taken_over_the_structures_that_are_there(make_series, there: tuple[int, ...]) -> None:
    head = make(Head)
    prepared = prepare_study(Study("s", (make_series((8, 8, 8), spacing_mm=(4.0,) * 3),)), (4.0,) * 3)
    classes = np.zeros((8, 8, 8), np.int16)
    for place, index in enumerate(there):
        classes[2 * place : 2 * place + 2] = index
    batch = StudyBatch.of([StudySample.of(prepared, classes)], dense=True)
    output = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    p = output[0].softmax(dim=0).numpy()
    naive = -np.log(np.take_along_axis(p, classes[None].astype(int), axis=0)).mean()
    dice = [1 - (2 * p[i][classes == i].sum() + 1e-5) / (p[i].sum() + (classes == i).sum() + 1e-5) for i in there]
    naive += np.mean(dice) if dice else 0.0
    assert head.loss(output, batch)["loss"].item() == pytest.approx(naive, rel=1e-5)


def test_lesions_are_counted_over_all_cases(make_series) -> None:
    """Two of three found, one of three that were said is none: recall 2/3, precision 2/3, and an error of the count of a half."""
    lesion = {"value": 1, "name": "plaque", "paired": False, "min_ml": 0.1}
    head = make(Detection, structures=[lesion])
    series = make_series((24, 12, 12), spacing_mm=(4.0,) * 3)
    prepared = prepare_study(Study("s", (series,)), (4.0,) * 3)
    truth, said = np.zeros((2, 24, 12, 12), np.int16)
    truth[1:3, 2:5, 2:5], truth[8:10, 2:5, 2:5], truth[15:17, 2:5, 2:5] = 1, 1, 1
    said[2:4, 2:5, 2:5], said[8:10, 2:5, 2:5], said[20:23, 8:11, 8:11] = 1, 1, 1
    said[0, 11, 11] = 1  # 0.064 ml is no lesion
    cases = []
    for one in (said, truth):
        output = 20 * torch.nn.functional.one_hot(torch.from_numpy(one).long(), 2).movedim(-1, 0)[None].float()
        cases.append(head.score_case(output, prepared, truth, {}))
    assert (
        head.labels_of(
            20 * torch.nn.functional.one_hot(torch.from_numpy(said).long(), 2).movedim(-1, 0)[None].float(), prepared
        )[0, 11, 11]
        == 0
    )
    only_first, both = head.summarise(cases[:1]), head.summarise(cases)
    assert only_first["found plaque"] == only_first["true plaque"] == only_first["F1 plaque"] == pytest.approx(2 / 3)
    assert both["found plaque"] == pytest.approx(5 / 6) and both["count error plaque"] == 0
    assert both["dice plaque"] == pytest.approx((1 + cases[0]["dice plaque"]) / 2)
    nothing = head.score_case(output * 0, prepared, np.zeros_like(truth), {})
    assert head.summarise([*cases, nothing])["dice where there is plaque"] == pytest.approx(both["dice plaque"])


def test_values_that_also_count_are_learnt_and_scored_as_one(make_series) -> None:
    head = make(Detection, structures=[{"value": 3, "also": [4, 7], "name": "lesion", "paired": False}])
    labels = np.zeros((8, 8, 8), np.int16)
    labels[:2], labels[2:4], labels[4:6], labels[6:] = 3, 4, 7, 5
    expected = np.zeros_like(labels)
    expected[:6] = 1
    assert np.array_equal(head.classes_of(labels), expected)
    prepared = prepare_study(Study("s", (make_series((8, 8, 8), spacing_mm=(4.0,) * 3),)), (4.0,) * 3)
    output = 20 * torch.nn.functional.one_hot(torch.from_numpy(expected).long(), 2).movedim(-1, 0)[None].float()
    scores = head.score_case(output, prepared, labels, {})
    assert scores["dice lesion"] == 1 and scores["lesions lesion"] == scores["found lesion"] == 1
    assert set(np.unique(head.labels_of(output, prepared))) == {0, 3}
