"""One contract for every head: it runs on any study, gives every weight a gradient, reads, refuses, scores and reloads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from foundation.calibration import Calibration
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.preprocess import prepare_study
from foundation.reading.collection import read_manifest, read_mask, read_study
from heads import head_kinds, parse_head
from heads.base import Scope, StudyBatch, StudySample, TaskConfig, TaskModel, load_task, save_task

SPACING = (4.0, 4.0, 4.0)
ENCODER = EncoderConfig(width=64, depth=2)
CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"
# So that a phantom of 26 voxels is learnt in seconds; a head that has nothing here is tested as its config has it.
SMALLER: dict[str, dict[str, Any]] = {
    "segmentation": {
        "structures": [{"value": 1, "name": "core", "paired": False}],
        "channels": [4, 8, 8],
        "bottleneck": 16,
    },
    "detection": {  # with kinds: tests/heads/test_kinds.py
        "structures": [{"value": 1, "name": "core", "paired": False}],
        "channels": [4, 8, 8],
        "bottleneck": 16,
        "kinds": [],
        "together": [],
    },
    "prognosis": {
        "record": None,
        "members": 2,
        "horizons_days": [1.0, 2.0],
    },  # with a record: tests/heads/test_prognosis.py
    "anomaly": {"looks": 2, "decoder_width": 64, "decoder_depth": 1},
}

UNTOLD = {"contrast": ("encoder.embed.origin.acquisition.weight",)}  # what a head keeps from its encoder
OF_ITS_OWN = ("anomaly", "contrast")  # heads whose truth is in the images and not in the row


class Answers(dict):
    """The targets of a phantom: to any question whether its core is large, 1 or 0, which is a number and a class alike."""

    def __init__(self, large: int):
        super().__init__(large=large)

    def get(self, name: str, default: object = None) -> object:
        return self["large"]


def examples() -> dict[str, dict[str, Any]]:
    """For each kind the head of a config that has it, without dropout."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        head = yaml.safe_load(path.read_text())["head"]
        if head["kind"] not in found:
            config = parse_head(head).model_dump(mode="json") | SMALLER.get(head["kind"], {})
            found[head["kind"]] = config | ({"dropout": 0.0} if "dropout" in config else {})
    return found


EXAMPLES = examples()
CLASSES = {"target": "large", "classes": ["small core", "large core"]}


def make(kind: str, **changes: object) -> TaskModel:
    torch.manual_seed(0)
    return TaskModel.build(Encoder(ENCODER), parse_head(EXAMPLES[kind] | changes))


@pytest.fixture
def studies(make_collection) -> list[tuple[Any, Any, Any]]:
    """Prepared studies with labels and targets; one of them has one series fewer."""
    collection = read_manifest(make_collection(4))
    cases = []
    for row in collection.rows:
        study = read_study(row, collection.root)
        answers = Answers(int(row.targets["large"]))  # type: ignore[arg-type]
        cases.append((prepare_study(study, SPACING), read_mask(row, study, collection.root), answers))
    assert {len(prepared.study.series) for prepared, _, _ in cases} == {1, 2}
    return cases


def batch_of(model: TaskModel, studies: list[tuple[Any, Any, Any]]) -> StudyBatch:
    samples = []
    for prepared, labels, targets in studies:
        on_grid = prepared.labels_to_grid(model.head.classes_of(labels)) if model.head.is_dense else None
        samples.append(StudySample.of(prepared, on_grid, targets))
    return StudyBatch.of(samples, dense=model.head.is_dense)


def test_every_head_has_a_config() -> None:
    """One file and one config: that is all that a new head needs, and all that it takes to be tested here."""
    assert set(EXAMPLES) == set(head_kinds())


@pytest.mark.parametrize("kind", head_kinds())
def test_the_loss_is_finite_and_every_weight_gets_a_gradient(kind: str, studies: list) -> None:
    model = make(kind)
    model.head.meet([targets for _, _, targets in studies])
    batch = batch_of(model, studies)
    batch.tokens.acquisition.fill_(1.0)
    losses = model(batch)
    assert torch.isfinite(losses["loss"])
    losses["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The air vector needs a cell without body, and these balls fill their cells.
    assert set(without) <= {"head.air", *UNTOLD.get(kind, ())}


@pytest.mark.parametrize("kind", head_kinds())
@torch.no_grad()
def test_a_batch_equals_one_by_one(kind: str, studies: list) -> None:
    """Whatever else is in the batch, shorter or longer, a study's output is its own."""
    model = make(kind).eval()
    together = model.output(batch_of(model, studies))
    for index, study in enumerate(studies):
        alone = model.output(batch_of(model, [study]))[0]
        box = tuple(slice(n) for n in alone.shape)
        assert torch.allclose(together[index][box], alone, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("kind", head_kinds())
def test_it_learns_four_studies(kind: str, studies: list) -> None:
    model = make(kind)
    model.head.meet([targets for _, _, targets in studies])
    batch = batch_of(model, studies)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2 if model.head.is_dense else 3e-3)
    values = []
    for _ in range(30):
        loss = model(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(
    "kind", [kind for kind in head_kinds() if not make(kind).head.is_dense and kind not in OF_ITS_OWN]
)
def test_a_row_without_the_answer_is_not_learnt_from(kind: str, studies: list) -> None:
    """The loss of a batch is that of its rows that know; of none it is 0, and can still be learnt from."""
    model = make(kind)
    known = batch_of(model, studies[:2])
    mixed = batch_of(model, [*studies[:2], *((prepared, labels, {}) for prepared, labels, _ in studies[2:])])
    unknown = batch_of(model, [(prepared, labels, {}) for prepared, labels, _ in studies])
    assert model(mixed)["loss"].item() == pytest.approx(model(known)["loss"].item(), rel=1e-4)
    nothing = model(unknown)["loss"]
    nothing.backward()
    assert nothing.item() == 0
    cases = [model.head.score_case(model.output_of(studies[0][0]), studies[0][0], studies[0][1], {})]
    assert all(np.isnan(value) for value in model.head.summarise(cases).values())


@pytest.mark.parametrize("kind", head_kinds())
def test_it_reads_refuses_and_scores(kind: str, studies: list) -> None:
    model = make(kind)
    prepared = studies[0][0]
    output = model.output_of(prepared)
    said = model.head.read(output, prepared, source="test", mask_path="masks/test.nii.gz")
    refused = model.head.refuse(source="test", why="for a test")
    assert said.findings and {f.source for f in said.findings} == {"test"}
    assert {f.name for f in refused} == {f.name for f in said.findings}
    assert {f.presence for f in refused} == {"not_assessed"} and {f.note for f in refused} == {"for a test"}
    if model.head.draws:
        assert said.labels is not None and said.labels.shape == prepared.study.reference.shape
    cases = [model.head.score_case(model.output_of(p), p, mask, t) for p, mask, t in studies]
    summary = model.head.summarise(cases)
    assert summary and all(isinstance(value, float) for value in summary.values())


@pytest.mark.parametrize("kind", head_kinds())
def test_a_saved_task_gives_the_same_output(kind: str, studies: list, tmp_path: Path) -> None:
    model = make(kind)
    scope = Scope.of([prepared for prepared, _, _ in studies])
    config = TaskConfig(
        name="test",
        caution=None,
        encoder=ENCODER,
        head=parse_head(EXAMPLES[kind]),
        spacing_mm=SPACING,
        scope=scope,
    )
    save_task(tmp_path / "task", model, config, card="# test\n", provenance={})
    loaded, again, _ = load_task(tmp_path / "task")
    assert again == config
    assert torch.equal(loaded.output_of(studies[0][0]), model.output_of(studies[0][0]))


def test_a_calibration_is_kept_applied_and_said(studies: list, tmp_path: Path) -> None:
    """Probabilities are those of the scaled scores, and every finding that has one says that it is calibrated."""
    prepared, _, targets = studies[0]
    for calibration in (None, Calibration(temperatures=(2.5,), fitted_on="12 studies", num_studies=12)):
        config = TaskConfig(
            name="test",
            caution=None,
            encoder=ENCODER,
            head=parse_head(EXAMPLES["classification"] | CLASSES),
            spacing_mm=SPACING,
            scope=Scope.of([prepared]),
            calibration=calibration,
        )
        save_task(tmp_path / "task", make("classification", **CLASSES), config, card="# test\n", provenance={})
        model, again, _ = load_task(tmp_path / "task")
        assert again == config
        output = model.output_of(prepared)
        expected = (output / (2.5 if calibration else 1.0)).softmax(dim=1)[0]
        (said,) = model.head.read(output, prepared, source="test", mask_path=None).findings
        assert said.is_calibrated == (calibration is not None)
        assert said.probability == pytest.approx(expected[1].item())
        case = model.head.score_case(output, prepared, None, targets)
        assert [case["p small core"], case["p large core"]] == pytest.approx(expected.tolist())
        assert case["right"] == float(int(expected.argmax()) == targets["large"])


@pytest.mark.parametrize("kind", head_kinds())
def test_the_main_score_is_one_that_is_measured(kind: str, studies: list) -> None:
    model = make(kind)
    prepared, labels, targets = studies[0]
    case = model.head.score_case(model.output_of(prepared), prepared, labels, targets)
    assert model.head.main_score is None or model.head.main_score in case


def test_a_perfect_segmentation_scores_one(studies: list) -> None:
    """Truth in, through the grid and back onto the series' own axes: Dice 1 and distance 0 in all orientations."""
    model = make("segmentation")
    for prepared, labels, targets in studies:
        classes = torch.from_numpy(prepared.labels_to_grid(labels).astype(np.int64))
        output = 20 * torch.nn.functional.one_hot(classes, 2).movedim(-1, 0)[None].float()
        scores = model.head.score_case(output, prepared, labels, targets)
        assert scores["dice"] == 1
        assert scores["hd95_mm core"] == 0


def test_the_stem_is_told_each_series_contrast(studies: list) -> None:
    """The same voxels under another contrast may be read otherwise, and what is learnt of one leaves the other alone."""
    model = make("segmentation")
    batch = batch_of(model, [study for study in studies if len(study[0].contrasts) == 1])
    assert batch.contrast is not None
    model(batch)["loss"].backward()
    scale = model.get_parameter("head.look.scale.weight").grad
    assert scale is not None
    assert set(scale.abs().sum(dim=1).nonzero().flatten().tolist()) == set(batch.contrast.flatten().tolist())


def test_a_class_that_does_not_exist_is_an_input_error(studies: list) -> None:
    model = make("classification", **CLASSES)
    for wrong in (7, "enormous core", True):
        with pytest.raises(InputError, match="class by name or index"):
            model(StudyBatch.of([StudySample.of(studies[0][0], None, {"large": wrong})], dense=False))
    with pytest.raises(InputError, match="is a number"):
        make("regression", target="size").head.meet([{"size": "big"}])


def test_scope_objects_to_another_field_of_view_and_contrast(studies: list) -> None:
    prepared = studies[0][0]
    scope = Scope.of([prepared])
    assert scope.objection(prepared) is None
    small = Scope(contrasts=("T1w",), smallest_extent_mm=(30.0, 30.0, 30.0), largest_extent_mm=(50.0, 50.0, 50.0))
    assert "field" in (small.objection(prepared) or "")
    other = Scope(
        contrasts=("FLAIR",), smallest_extent_mm=scope.smallest_extent_mm, largest_extent_mm=scope.largest_extent_mm
    )
    assert "FLAIR" in (other.objection(prepared) or "")
