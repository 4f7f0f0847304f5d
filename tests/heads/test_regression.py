"""Regression: outputs are in the target's unit whatever it is, and errors are what they are called."""

import numpy as np
import pytest
import torch

from foundation.encoder import EncoderConfig, Features
from foundation.errors import InputError
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.study import Study
from heads.base import StudyBatch, StudySample
from heads.regression import Config, Head

ENCODER = EncoderConfig(width=64, depth=1)


def make() -> Head:
    torch.manual_seed(0)
    return Head(ENCODER, Config(target="age_years", name="brain age", unit="a", dropout=0.0)).eval()


@pytest.fixture
def prepared(make_series) -> PreparedStudy:
    return prepare_study(Study("s", (make_series((12, 12, 12), spacing_mm=(4.0, 4.0, 4.0)),)), (4.0, 4.0, 4.0))


def test_another_unit_gives_the_same_loss_and_the_same_answer(prepared: PreparedStudy) -> None:
    """Years or days: what is learnt does not depend on it."""
    ages = [31.0, 47.5, 66.0, 80.0]
    found = []
    for factor in (1.0, 365.25):
        rows = [{"age_years": factor * age} for age in ages]
        head = make()
        head.meet(rows)
        batch = StudyBatch.of([StudySample.of(prepared, None, row) for row in rows], dense=False)
        generator = torch.Generator().manual_seed(1)
        features = Features(
            torch.randn(4, len(batch.tokens), 64, generator=generator), torch.randn(4, 4, 64, generator=generator)
        )
        said = head(features, batch)
        found.append((said / factor, head.loss(said, batch)["loss"]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-4)
    assert found[0][1].item() == pytest.approx(found[1][1].item(), rel=1e-4)


def test_the_summary_of_known_cases() -> None:
    cases = [{"said": 50.0, "truth": 48.0}, {"said": 60.0, "truth": 64.0}, {"said": 1.0, "truth": float("nan")}]
    summary = make().summarise(cases)
    assert summary["mae"] == 3 and summary["bias"] == -1 and summary["correlation"] == pytest.approx(1)


def test_no_row_with_the_target_is_an_input_error() -> None:
    with pytest.raises(InputError, match="rows to learn from"):
        make().meet([{}, {"age_years": None}])


def test_it_reads_a_measurement(prepared: PreparedStudy) -> None:
    (finding,) = make().read(torch.tensor([63.2]), prepared, source="age", mask_path=None).findings
    assert finding.measured("brain age") == pytest.approx(63.2) and not finding.is_abnormal
    assert np.isfinite(finding.measurements[0].value) and finding.measurements[0].unit == "a"
