"""Tables: what is taken from them, what is refused, and that nothing later than the images slips in."""

import math
from pathlib import Path

import numpy as np
import pytest

from finetune.prognosis.patients import TableConfig, from_table
from foundation.config import parse_config
from foundation.errors import InputError

WHO = """id,age,sex,grade,cut,days,dead
a,60,M,4,GTR,100,1
b,50,F,3,STR,200,0
c,,F,4,GTR,0,1
d,70,M,4,,300,1
e,41,F,2,biopsy,400,0
"""
SEEN = "id,shape_x,shape_y,other\ne,5,6,z\na,1,2,z\nb,3,,z\nd,7,8,z\nc,0,0,z\n"


@pytest.fixture
def values(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "who.csv").write_text(WHO)
    (tmp_path / "seen.csv").write_text(SEEN)
    files = [str(tmp_path / name) for name in ("who.csv", "seen.csv")]
    return {
        "files": files,
        "id": "id",
        "time": "days",
        "observed": "dead",
        "age": "age",
        "sex": "sex",
        "image": ["shape_*"],
    }


def test_files_are_joined_by_patient_and_those_without_time_left_out(values: dict) -> None:
    found = from_table(parse_config(TableConfig, values))
    assert found.names == ("a", "b", "d", "e") and found.notes == ("1 of 5 without a usable time left out.",)
    assert found.seen.time.tolist() == [100, 200, 300, 400] and found.seen.is_observed.tolist() == [
        True,
        False,
        True,
        False,
    ]
    np.testing.assert_equal(found.image, [[1, 2], [3, math.nan], [7, 8], [5, 6]])
    # Of two sexes one column: the commoner, or first by name, is 0.
    np.testing.assert_equal(found.person, [[60, 1], [50, 0], [70, 1], [41, 0]])


def test_what_was_known_only_later_needs_a_declared_landmark(values: dict) -> None:
    with pytest.raises(InputError, match="landmark"):
        parse_config(TableConfig, values | {"later": ["grade"]})
    found = from_table(parse_config(TableConfig, values | {"later": ["grade", "cut"], "landmark": "surgery"}))
    assert found.columns is not None
    np.testing.assert_equal(found.columns[:, 2], [4, 3, 4, 2])
    # 'cut' has three kinds, so two columns, and is not known of d.
    assert found.columns.shape == (4, 5) and np.isnan(found.columns[2, 3:]).all()
    assert "surgery" in found.notes[1] and "grade, cut" in found.notes[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time": "dais"}, "named column"),
        ({"image": ["shade_*"]}, "named column"),
        ({"id": "name"}, "column 'name'"),
        ({"observed": "sex"}, "is 1 or 0"),
    ],
)
def test_a_wrong_name_is_an_input_error(values: dict, changes: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_table(parse_config(TableConfig, values | changes))


def test_two_rows_of_one_patient_are_refused(values: dict, tmp_path: Path) -> None:
    (tmp_path / "seen.csv").write_text(SEEN + "a,1,2,z\n")
    with pytest.raises(InputError, match="one row"):
        from_table(parse_config(TableConfig, values))


def test_an_event_of_a_table_has_one_of_the_causes(values: dict, tmp_path: Path) -> None:
    (tmp_path / "why.csv").write_text("id,why\na,tumour\nb,\nc,stroke\nd,stroke\ne,\n")
    asked = values | {"files": [*values["files"], str(tmp_path / "why.csv")]}
    config = parse_config(TableConfig, asked | {"cause": "why"})
    found = from_table(config, ("tumour", "stroke"))
    assert found.seen.cause.tolist() == [0, 0, 1, 0] and found.seen.had(1).tolist() == [False, False, True, False]
    with pytest.raises(InputError, match="one of the head's causes"):
        from_table(config, ("tumour", "fall"))
    with pytest.raises(InputError, match="names and a column"):
        from_table(parse_config(TableConfig, asked), ("tumour", "stroke"))
