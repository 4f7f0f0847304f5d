"""Files to resources: every container alike, and one bad part costs that part; reasons quote nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ehr.bundle import DEEPEST_BUNDLE, Quarantine, resources_in
from ehr.record import read_records
from foundation.errors import InputError

SECRET = "Grimhilde Musterfrau"
RESOURCES: list[dict[str, Any]] = [
    {"resourceType": "Patient", "id": "a", "birthDate": "1950-02-01", "name": [{"text": SECRET}]},
    {"resourceType": "Condition", "id": "c", "subject": {"reference": "Patient/a"}, "recordedDate": "2019-01-01"},
    {"resourceType": "Basic", "id": "b"},
]


def bundle(resources: list[dict[str, Any]]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "entry": [{"resource": one} for one in resources]}


def found(source: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    quarantine = Quarantine()
    resources = [one.resource for one in resources_in(source, quarantine)]
    assert SECRET not in repr(quarantine)
    return resources, [(one.file, one.place, one.reason) for one in quarantine.entries]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["bundle.json", "lines.ndjson", "lines.jsonl", "lines.json", "nested.json", "folder"])
def test_every_container_gives_the_same_resources(name: str, suffix: str, tmp_path: Path):
    lines = "\n".join(json.dumps(one) for one in RESOURCES)
    content = {
        "bundle.json": json.dumps(bundle(RESOURCES), indent=1),
        "nested.json": json.dumps(bundle([bundle(RESOURCES[:2]), RESOURCES[2]])),
    }.get(name, f"\n{lines}\n\n" if name.endswith("l") or name.startswith("lines.n") else lines)
    if name == "folder":
        (tmp_path / "deep").mkdir()
        for number, one in enumerate(RESOURCES):
            path = tmp_path / ("deep" if number else ".") / f"{number}.json{suffix}"
            path.write_bytes(gzip.compress(json.dumps(one).encode()) if suffix else json.dumps(one).encode())
        (tmp_path / "notes.txt").write_text(SECRET)
        (tmp_path / ".hidden.json").write_text(SECRET)
        source = tmp_path
    else:
        source = tmp_path / f"{name}{suffix}"
        source.write_bytes(gzip.compress(content.encode()) if suffix else content.encode())
    resources, quarantined = found(source)
    assert sorted(one["id"] for one in resources) == ["a", "b", "c"]
    assert quarantined == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (f'{{"x": "{SECRET}'.encode(), "not JSON"),
        (b'{"resourceType": "Patient", "x": NaN}', "a number that JSON does not have"),
        (b'{"x": ' + b"9" * 10_000 + b"}", "a number that JSON does not have"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["x"]', "not a JSON object"),
        (b'{"id": "x"}', "no resourceType"),
        (b'{"resourceType": 7}', "no resourceType"),
        (b'{"resourceType": "Bundle", "entry": {"resource": 1}}', "a bundle's entry is not a list"),
    ],
)
@pytest.mark.parametrize("by_line", [False, True])
def test_an_unreadable_document_is_set_aside_and_the_rest_goes_on(
    content: bytes, reason: str, by_line: bool, tmp_path: Path
):
    good = json.dumps(RESOURCES[0]).encode()
    if by_line:
        (tmp_path / "x.ndjson").write_bytes(good + b"\n" + (content or b"{") + b"\n" + good)  # an empty line is none
    else:
        (tmp_path / "bad.json").write_bytes(content)
        (tmp_path / "good.json").write_bytes(good)
    resources, quarantined = found(tmp_path)
    assert len(resources) == 1 + by_line
    assert len(quarantined) == 1
    file, place, why = quarantined[0]
    assert (file, why) == ("x.ndjson" if by_line else "bad.json", reason)
    assert place == "line 2" if by_line else place.startswith(("line 1, column", "file", "document"))


def test_a_bad_entry_is_set_aside_alone(tmp_path: Path):
    entries = [
        {"resource": RESOURCES[0]},
        None,
        {"resource": 5},
        {"resource": {"id": SECRET}},
        {"request": {"method": "DELETE"}},
    ]
    (tmp_path / "b.json").write_text(json.dumps({"resourceType": "Bundle", "entry": entries}))
    resources, quarantined = found(tmp_path / "b.json")
    assert resources == [RESOURCES[0]]
    assert [(place, why) for _, place, why in quarantined] == [
        ("entry 1", "not a JSON object"),
        ("entry 2", "not a JSON object"),
        ("entry 3", "no resourceType"),
    ]


def test_bundles_inside_bundles_end(tmp_path: Path):
    nested = RESOURCES[0]
    for _ in range(DEEPEST_BUNDLE + 1):
        nested = bundle([nested])
    (tmp_path / "b.json").write_text(json.dumps(nested))
    resources, quarantined = found(tmp_path)
    assert resources == []
    assert [why for *_, why in quarantined] == ["bundles inside bundles without end"]


def test_a_gzip_cut_short_keeps_the_lines_before(tmp_path: Path):
    lines = "\n".join(json.dumps(RESOURCES[1] | {"id": f"{number}-{hash(number * 7919)}"}) for number in range(5000))
    whole = gzip.compress(lines.encode())
    (tmp_path / "x.ndjson.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "y.json.gz").write_bytes(b"no gzip at all")
    resources, quarantined = found(tmp_path)
    assert 1000 < len(resources) < 5000
    assert {(file, why) for file, _, why in quarantined} == {
        ("x.ndjson.gz", "damaged gzip"),
        ("y.json.gz", "damaged gzip"),
    }


def test_a_source_that_is_none_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="neither"):
        read_records(tmp_path / "absent")
    with pytest.raises(InputError, match="FHIR files"):
        read_records(tmp_path)
