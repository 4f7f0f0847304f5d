"""What the tests of the record share: a record read from a few resources."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ehr.record import Record, Records, read_records
from tests.ehr.making import PATIENT, bundle


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Records]:
    """`read(resource, ..., strict=False)`: the records of a bundle of these."""

    def read(*resources: dict[str, Any], **options: Any) -> Records:
        path = tmp_path / "bundle.json"
        path.write_text(json.dumps(bundle(*resources)))
        return read_records(path, **options)

    return read


@pytest.fixture
def record(read: Callable[..., Records]) -> Callable[..., Record]:
    """`record(resource, ...)`: the record of patient "a", who is added if absent."""

    def record(*resources: dict[str, Any], **options: Any) -> Record:
        has_patient = any(one["resourceType"] == "Patient" for one in resources)
        return read(*resources, *([] if has_patient else [PATIENT]), **options).only()

    return record
