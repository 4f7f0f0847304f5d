"""The tissue tables hold together, cite what they say they cite, and gadolinium adds rates."""

import re

import numpy as np
import pytest
import torch

from foundation.errors import InputError
from foundation.physics.relaxometry import (
    AGENTS,
    ESTIMATE,
    FIELDS_T,
    TISSUES,
    TYPICAL_UPTAKE_MMOL_L,
    Tissue,
    TissueTable,
    Value,
    relaxivity,
    sample_tissues,
    shortened,
    typical_tissues,
)

NEEDED = {
    *("grey_matter", "white_matter", "csf", "deep_grey", "hindbrain_grey", "hindbrain_white"),
    *("muscle", "fat", "bone", "skin", "marrow", "blood"),
    *("necrosis", "enhancing_tumour", "non_enhancing_tumour", "oedema", "ms_plaque", "wmh"),
    *("acute_infarct", "haemorrhage"),
}
SUBJECTS = [(field_t, seed) for field_t in (0.3, 1.5, 2.0, 3.0, 7.0) for seed in range(20)]


def values_of(tissue: Tissue) -> list[Value]:
    times = [getattr(at, name) for at in (tissue.at_1_5t, tissue.at_3t) for name in ("t1", "t2", "t2_star")]
    return [tissue.pd, tissue.adc, *times]


def same(one: TissueTable, other: TissueTable) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.properties, other.properties))


def test_every_tissue_that_the_cohort_needs_is_there() -> None:
    assert set(TISSUES) >= NEEDED


@pytest.mark.parametrize("name", TISSUES)
def test_every_value_is_positive_and_names_its_source(name: str) -> None:
    for value in values_of(TISSUES[name]):
        assert value.typical > 0 and 0 <= value.spread <= 0.5 and 0 < value.low <= value.typical <= value.high
        assert value.source == ESTIMATE or value.source == "by definition" or re.search(r": [\d.]+$", value.source)


def test_every_cited_number_lies_in_the_range_that_cites_it() -> None:
    cited = 0
    for name, tissue in TISSUES.items():
        for value in values_of(tissue):
            for number in re.findall(r": ([\d.]+)", value.source):
                cited += 1
                assert value.low - 0.01 <= float(number) <= value.high + 0.01, (name, value)
    assert cited > 50


@pytest.mark.parametrize(("field_t", "seed"), SUBJECTS)
def test_no_decay_is_slower_than_the_one_it_is_part_of(field_t: float, seed: int) -> None:
    table = sample_tissues(field_t, np.random.default_rng(seed))
    assert all(bool((column > 0).all()) for column in table.properties)
    assert bool((table.t2_star <= table.t2).all()) and bool((table.t2 <= table.t1).all())


@pytest.mark.parametrize("name", TISSUES)
def test_typical_times_are_ordered_without_any_cap(name: str) -> None:
    for at in (TISSUES[name].at_1_5t, TISSUES[name].at_3t):
        assert at.t2_star.typical <= at.t2.typical <= at.t1.typical


@pytest.mark.parametrize("field_t", FIELDS_T)
def test_a_subject_stays_in_every_range_and_fills_it(field_t: float) -> None:
    tables = [sample_tissues(field_t, np.random.default_rng(seed)) for seed in range(200)]
    for row, (name, tissue) in enumerate(TISSUES.items()):
        times = tissue.at_1_5t if field_t == 1.5 else tissue.at_3t
        for column, value in {"t1": times.t1, "pd": tissue.pd, "adc": tissue.adc}.items():
            drawn = torch.stack([getattr(table, column)[row] for table in tables])
            assert value.low - 1e-9 <= float(drawn.min()) and float(drawn.max()) <= value.high + 1e-9, (name, column)
            assert float(drawn.max() - drawn.min()) >= 0.9 * (value.high - value.low)


def test_a_subject_is_a_pure_function_of_the_seed() -> None:
    assert same(sample_tissues(3.0, np.random.default_rng(5)), sample_tissues(3.0, np.random.default_rng(5)))
    assert not same(sample_tissues(3.0, np.random.default_rng(5)), sample_tissues(3.0, np.random.default_rng(6)))


def test_a_subject_goes_from_field_to_field_as_a_power_law() -> None:
    fields_t = (0.3, 0.75, 1.5, 3.0, 6.0)
    tables = [sample_tissues(field_t, np.random.default_rng(1)) for field_t in fields_t]
    t1 = torch.stack([table.t1 for table in tables]).log()
    slope = t1.diff(dim=0) / torch.tensor(fields_t, dtype=t1.dtype).log().diff()[:, None]
    assert torch.allclose(slope, slope[:1].expand_as(slope), atol=1e-9)
    brain = [tables[0].index(name) for name in ("grey_matter", "white_matter", "oedema", "muscle")]
    assert bool(((slope[:, brain] > 0.1) & (slope[:, brain] < 0.6)).all())  # 0.38 in brain, Rooney 2007
    for table in tables:
        assert torch.equal(table.pd, tables[0].pd) and torch.equal(table.adc, tables[0].adc)


def test_the_power_law_meets_what_was_measured_at_7_tesla() -> None:
    table = typical_tissues(7.0)
    assert float(table.t1[table.index("grey_matter")]) == pytest.approx(1939, rel=0.10)  # Wright 2008
    assert float(table.t1[table.index("white_matter")]) == pytest.approx(1126, rel=0.10)


@pytest.mark.parametrize("field_t", FIELDS_T)
def test_iron_shortens_t2_star(field_t: float) -> None:
    table = typical_tissues(field_t)
    t2_star = [float(table.t2_star[table.index(name)]) for name in ("grey_matter", "thalamus", "striatum", "pallidum")]
    assert t2_star == sorted(t2_star, reverse=True)
    assert table.t2_star[table.index("deep_grey")] < table.t2_star[table.index("grey_matter")]


@pytest.mark.parametrize("field_t", [0.0, -3.0, 0.1, 11.7, float("nan")])
def test_a_field_far_from_the_tables_is_an_input_error(field_t: float) -> None:
    with pytest.raises(InputError):
        sample_tissues(field_t, np.random.default_rng(0))
    with pytest.raises(InputError):
        relaxivity("gadobutrol", field_t)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("field_t", [0.5, 1.5, 2.2, 3.0, 7.0])
def test_gadolinium_adds_rates_in_proportion_to_its_concentration(agent: str, field_t: float) -> None:
    r1, r2 = relaxivity(agent, field_t)
    assert r2 >= r1 > 0
    before = typical_tissues(field_t)
    mmol_l = torch.linspace(0.0, 5.0, len(before.names), dtype=torch.float64)
    after = shortened(before.t1, before.t2, before.t2_star, mmol_l, field_t, agent)
    for was, became, per_mmol in zip(before.properties, after, (r1, r2, r2)):
        assert torch.allclose(1000 / became - 1000 / was, per_mmol * mmol_l, atol=1e-9)
    assert bool((after[2] <= after[1]).all()) and bool((after[1] <= after[0]).all())


def test_a_typical_uptake_changes_only_the_tissues_it_names() -> None:
    before = typical_tissues(3.0)
    after = before.with_gadolinium(TYPICAL_UPTAKE_MMOL_L)
    shorter = {name for name, was, became in zip(before.names, before.t1, after.t1) if became < was}
    assert shorter == set(TYPICAL_UPTAKE_MMOL_L)
    assert float(after.t1[after.index("enhancing_tumour")]) == pytest.approx(520, rel=0.02)
    assert torch.equal(after.pd, before.pd) and torch.equal(after.adc, before.adc)


def test_what_a_user_can_get_wrong_is_an_input_error() -> None:
    table = typical_tissues(3.0)
    with pytest.raises(InputError, match="white_matter"):
        table.index("white matter")
    with pytest.raises(InputError):
        table.with_gadolinium({"blood": -1.0})
    with pytest.raises(InputError, match="gadobutrol"):
        table.with_gadolinium({"blood": 1.0}, agent="gadobutrole")
