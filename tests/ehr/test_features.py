"""The two views: against a naive second count, the same whatever the order of files, and nothing that is missing hidden."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ehr.features import FARTHEST, RecordSequence, age_years, sequence_of, tabulate
from ehr.index import Admitted, admit, index_of
from ehr.record import Record, read_records
from ehr.times import DAY_S
from ehr.units import State
from ehr.vocabulary import PADDING, PATIENT_CODES, UNKNOWN, Vocabulary
from foundation.errors import InputError
from tests.ehr.making import PATIENT, bundle, concept, observation, study

SCAN = study("scan", "2020-05-03T10:00:00Z", "1.2.3")
ICD = "http://hl7.org/fhir/sid/icd-10-cm"
SCT = "http://snomed.info/sct"
MakeRecord = Callable[..., Record]


def admitted(record: Record) -> Admitted:
    return admit(record, index_of(record, study_uid="1.2.3"))


def condition(name: str, *codes: tuple[str, str], day: str = "2020-01-01") -> dict[str, object]:
    codings = [{"system": system, "code": code} for system, code in codes]
    return {"resourceType": "Condition", "id": name, "subject": {"reference": "Patient/a"}, "code": {"coding": codings},
            "recordedDate": f"{day}T10:00:00Z"}  # fmt: skip


def glucose(name: str, day: str, value: float, **fields: object) -> dict[str, object]:
    return observation(name, day=day, valueQuantity={"value": value, "unit": "mg/dL"}, **fields)


def test_a_sequence_says_what_when_and_how_much(record: MakeRecord):
    no_unit = observation("c", day="2020-05-01", code=concept("2160-0"), valueQuantity={"value": 1.0})
    low = observation(
        "d", day="2020-05-01", code=concept("1988-5"), valueQuantity={"value": 5, "unit": "mg/L", "comparator": "<"}
    )
    one = admitted(record(SCAN, glucose("a", "2019-05-03", 70), glucose("b", "2020-05-01", 99), no_unit, low))
    vocabulary = Vocabulary.fit([one], min_patients=1)
    sequence = sequence_of(one, vocabulary)
    names = [vocabulary.codes[place] for place in sequence.code]
    analytes = ["ANALYTE|glucose", "ANALYTE|C-reactive protein", "ANALYTE|creatinine", "ANALYTE|glucose"]
    assert names == ["PATIENT|age", "PATIENT|female", *analytes]
    assert sequence.position.tolist() == pytest.approx([one_age(one) / 90, 0, 0, 1, 0, 1])
    assert sequence.state.tolist() == [
        State.USABLE,
        State.NONE,
        State.USABLE,
        State.USABLE,
        State.NO_UNIT,
        State.USABLE,
    ]
    assert sequence.comparator.tolist() == [0, 0, 0, -1, 0, 0]
    assert sequence.order.tolist() == [0, 0, 2, 1, 1, 1]
    days = [0, 0] + [(one.index.time - event.happened.middle) / DAY_S for event in one.events if event.happened]
    assert sequence.log_days.tolist() == pytest.approx([math.log1p(number) for number in days])


def one_age(one: Admitted) -> float:
    age = age_years(one)
    assert age is not None
    return age


def test_files_in_any_order_give_the_same_bytes(tmp_path: Path):
    resources = [
        PATIENT,
        SCAN,
        *(glucose(f"g{number}", f"2020-0{1 + number % 4}-11", 80 + number) for number in range(20)),
    ]
    resources += [condition(f"c{number}", (ICD, f"I{number}0"), day="2020-01-01") for number in range(9)]
    found = []
    for seed in range(4):
        shuffled = [resources[place] for place in np.random.default_rng(seed).permutation(len(resources))]
        (tmp_path / "b.json").write_text(json.dumps(bundle(*shuffled)))
        found.append(admitted(read_records(tmp_path / "b.json").only()))
    vocabulary = Vocabulary.fit(found[:1], min_patients=1)
    assert len({sequence_of(one, vocabulary).tobytes() for one in found}) == 1
    assert len({tabulate([one], vocabulary).values.tobytes() for one in found}) == 1


def test_a_repeated_fact_counts_once_and_a_second_measurement_twice(record: MakeRecord):
    one = admitted(
        record(SCAN, glucose("a", "2020-05-01", 90), glucose("b", "2020-05-01", 90), glucose("c", "2020-05-01", 91))
    )
    vocabulary = Vocabulary.fit([one], min_patients=1)
    assert len(sequence_of(one, vocabulary)) == 2 + 2
    assert tabulate([one], vocabulary).column("ANALYTE|glucose in all").tolist() == [2.0]


def test_the_latest_are_kept_where_there_is_no_room(record: MakeRecord):
    one = admitted(
        record(SCAN, *(glucose(str(number), f"2020-04-{number:02d}", number + 60) for number in range(1, 29)))
    )
    vocabulary = Vocabulary.fit([one], min_patients=1)
    whole, short = (sequence_of(one, vocabulary, max_events=number) for number in (512, 10))
    assert len(whole) == 30 and len(short) == 10
    assert short.order.tolist() == [0, 0, *range(8, 0, -1)]
    assert short.position[2:].tolist() == whole.position[-8:].tolist()
    with pytest.raises(InputError):
        sequence_of(one, vocabulary, max_events=1)


def test_extreme_values_are_bounded(record: MakeRecord):
    one = admitted(record(SCAN, observation("a", code=concept("1988-5"), valueQuantity={"value": 690, "unit": "mg/L"})))
    assert sequence_of(one, Vocabulary()).position.max() == FARTHEST


AGES = {"1960-05-03": 60.0, "1931-05-03": 89.0, "1929-05-03": 90.0, "1905": 90.0, "2021": None, None: None}


@pytest.mark.parametrize(("birth", "age"), AGES.items())
def test_ages_over_89_are_90(birth: str | None, age: float | None, record: MakeRecord):
    patient = {"resourceType": "Patient", "id": "a"} | ({"birthDate": birth} if birth else {})
    found = age_years(admitted(record(patient, SCAN)))
    assert found == (None if age is None else pytest.approx(age, abs=0.01))


def test_no_patient_and_no_event_is_an_empty_sequence(read: Callable[..., dict[str, Record]]):
    (one,) = read(SCAN).values()
    assert len(sequence_of(admitted(one), Vocabulary())) == 0
    assert sequence_of(admitted(one), Vocabulary()).tobytes() == RecordSequence.empty().tobytes()


def test_values_of_different_analytes_are_never_one_column(record: MakeRecord):
    rare = [
        observation(str(number), code=concept(code), valueQuantity={"value": 10, "unit": "U/L"})
        for number, code in enumerate(("1742-6", "1920-8"))
    ]
    one = admitted(record(SCAN, *rare))
    few = Vocabulary.fit([one], min_patients=1).model_copy(update={"codes": (*Vocabulary().codes, "ANALYTE|*")})
    table = tabulate([one], few)
    assert table.column("ANALYTE|* in all").tolist() == [2.0]
    assert not [name for name in table.names if name.endswith("last")]


def test_the_table_against_a_naive_count(record: MakeRecord):
    """The same columns, counted again from the resources themselves."""
    days = ["2015-01-01", "2019-08-01", "2020-04-20", "2020-05-02"]
    values = [100.0, 80.0, 120.0, 110.0]
    spoilt = glucose("x", "2020-05-02", 90) | {"valueQuantity": {"value": 90, "unit": "bananas"}}
    whole = record(SCAN, *(glucose(str(n), day, value) for n, (day, value) in enumerate(zip(days, values))), spoilt)
    bare = record(SCAN)
    patients = [admitted(whole), admitted(bare)]
    table = tabulate(patients, Vocabulary.fit(patients, min_patients=1))

    ages = [
        (np.datetime64("2020-05-03T10:00:00") - np.datetime64(f"{day}T08:00:00.5")) / np.timedelta64(1, "D")
        for day in days
    ]
    expected = {
        "ANALYTE|glucose last": [110.0, math.nan],
        "ANALYTE|glucose change": [-10.0, math.nan],
        "ANALYTE|glucose days since": [ages[-1], math.nan],
        "ANALYTE|glucose is known": [1.0, 0.0],
        "ANALYTE|glucose in 1 days": [0.0, 0.0],
        "ANALYTE|glucose in 30 days": [sum(age <= 30 for age in ages) + 1, 0.0],  # the spoilt one happened all the same
        "ANALYTE|glucose in 365 days": [sum(age <= 365 for age in ages) + 1, 0.0],
        "ANALYTE|glucose in 1826 days": [sum(age <= 1826 for age in ages) + 1, 0.0],
        "ANALYTE|glucose in all": [5.0, 0.0],
        "is_female": [1.0, 1.0],
        "is_male": [0.0, 0.0],
    }
    for name, column in expected.items():
        assert table.column(name).tolist() == pytest.approx(column, nan_ok=True, abs=1e-4), name
    assert len(set(table.names)) == len(table.names) == table.values.shape[1]


# ------------------------------------------------------------------------------------------------ vocabulary


def test_a_vocabulary_knows_only_what_was_before_the_index(record: MakeRecord):
    after = condition("later", (ICD, "C71.9"), day="2020-06-01")
    one = admitted(record(SCAN, condition("before", (ICD, "I10")), after))
    codes = Vocabulary.fit([one], min_patients=1).codes
    assert "ICD10CM|I10" in codes and not any("C71" in code for code in codes)


def test_rare_codes_are_left_out(record: MakeRecord):
    many = [admitted(record(SCAN, condition("c", (ICD, "I10")))) for _ in range(3)]
    rare = admitted(record(SCAN, condition("c", (ICD, "Q87.4"))))
    codes = Vocabulary.fit([*many, rare], min_patients=3).codes
    assert "ICD10CM|I10" in codes and "ICD10CM|Q87.4" not in codes
    assert "ICD10CM|*" in codes  # all four have some code of this system
    with pytest.raises(InputError):
        Vocabulary.fit(many, min_patients=0)


def test_the_fall_back_chain(record: MakeRecord):
    both = ((SCT, "38341003"), (ICD, "I10.0"))
    train = [admitted(record(SCAN, condition("c", *both), condition("d", (ICD, "G35.1")))) for _ in range(2)]
    vocabulary = Vocabulary.fit(train, min_patients=2)

    def place(*codes: tuple[str, str]) -> tuple[str, str]:
        (event,) = [one for one in admitted(record(SCAN, condition("x", *codes))).events if one.kind == "Condition"]
        number, match = vocabulary.place_of(event)
        return vocabulary.codes[number], match

    name = place((ICD, "I10.0"))[0]
    assert place((ICD, "I10.0"), (SCT, "38341003")) == place((SCT, "38341003"), (ICD, "I10.0")) == (name, "exact")
    assert place(("http://local.example", "7"), (SCT, "38341003")) == ("SNOMED|38341003", "exact")  # a sibling coding
    assert place((ICD, "G35.9")) == ("ICD10|G35", "parent")
    assert place(("http://hl7.org/fhir/sid/icd-10", "G35")) == ("ICD10|G35", "exact")
    assert place((ICD, "C71.9")) == ("ICD10CM|*", "system")
    assert place(("http://local.example", "7")) == ("?", "none")
    assert place() == ("?", "none")
    coverage = vocabulary.coverage(train)
    assert coverage["exact"] == 4 and coverage["none"] == 0


def test_a_coded_answer_falls_back_to_its_question(record: MakeRecord):
    def answered(code: str) -> Admitted:
        value = {"coding": [{"system": SCT, "code": code}]}
        return admitted(
            record(SCAN, observation("o", code=concept("72166-2"), valueQuantity=None, valueCodeableConcept=value))
        )

    vocabulary = Vocabulary.fit([answered("1")], min_patients=1)
    assert [vocabulary.codes[vocabulary.place_of(answered(code).events[0])[0]] for code in "12"] == [
        "LOINC|72166-2=SNOMED|1", "LOINC|72166-2",
    ]  # fmt: skip


def test_a_vocabulary_is_saved_and_checked(tmp_path: Path, record: MakeRecord):
    vocabulary = Vocabulary.fit([admitted(record(SCAN, condition("c", (ICD, "I10"))))], min_patients=1)
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert (
        vocabulary.codes[PADDING] == "" and vocabulary.codes[UNKNOWN] == "?" and vocabulary.codes[2:6] == PATIENT_CODES
    )
    for content in ("{}x", '{"codes": ["a", "b"]}', vocabulary.model_dump_json().replace("ICD10CM|I10", "?"), "[]"):
        path.write_text(content)
        with pytest.raises(InputError):
            Vocabulary.load(path)
    with pytest.raises(InputError):
        Vocabulary.load(tmp_path / "absent.json")
