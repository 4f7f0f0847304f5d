"""Damaged resources are answered, set aside or refused, and never anything else; `benchmarks/mutate.py` does it 20,000 times."""

from __future__ import annotations

import json

import pytest
from numpy.random import default_rng

from benchmarks.mutate import mutate, mutated
from ehr.synthesis import make_bundle
from tests.ehr.making import patient_truth


def test_damage_is_never_a_crash():
    resources = [
        entry["resource"]
        for number, version in enumerate(("R4", "R5"))
        for entry in make_bundle(patient_truth(number), version=version)[0]["entry"]
    ]
    tally = mutate(resources, 600, seed=0)
    assert tally.failures == []
    assert tally.outcomes["fast, set aside"] > 10 and tally.outcomes["strict, set aside"] > 100
    assert tally.outcomes["fast, events admitted"] > 100


@pytest.mark.parametrize("seed", range(3))
def test_damage_repeats_with_its_seed_and_does_damage(seed: int):
    resource = make_bundle(patient_truth(0))[0]["entry"][3]["resource"]
    before = json.dumps(resource)
    first, again = (mutated(resource, default_rng(seed)) for _ in range(2))
    assert first == again != before.encode()
    assert json.dumps(resource) == before
