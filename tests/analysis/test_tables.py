"""Tables joined, extended and thinned."""

import numpy as np
import pyarrow as pa
import pytest

from vemray.analysis.tables import derive, join, select_rows
from vemray.errors import RecipeError
from vemray.ops import build

OBJECTS = pa.table({"label": pa.array([3, 2**63, 1], pa.uint64()), "volume": [8.0, 0.0, 27.0], "cut": [True, False, None]})
DISTANCE = pa.table({"label": pa.array([1, 3, 2**63], pa.uint64()), "to_a": [1.0, None, 30.0], "to_b": [4.0, 2.0, 20.0]})


def test_derive():
    got = derive(DISTANCE, {"nearest": "min(to_a, to_b)", "far": "nearest > 3", "l": "log(max(to_a, to_b, 4) - 4)", "r": "sqrt(abs(-to_b))"})
    assert got["nearest"].to_pylist() == [1.0, None, 20.0] and got["far"].to_pylist() == [False, False, True]
    assert got["l"].to_pylist() == [None, None, pytest.approx(np.log(26))]
    assert got["r"].to_pylist() == pytest.approx([2, np.sqrt(2), np.sqrt(20)]) and got.column_names[:3] == DISTANCE.column_names
    assert derive(OBJECTS, {"c": "cut + 0"})["c"].to_pylist() == [1.0, 0.0, None], "a missing true or false is no number"
    assert derive(OBJECTS.slice(0, 0), {"c": "volume"})["c"].type == pa.float64()


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"volume": "volume + 1"}, "has a column 'volume' already"),
        ({"a": "volum + 1"}, "Did you mean 'volume'"),
        ({"a": "mim(volume, 1)"}, "Did you mean 'min'"),
        ({"a": "min(volume)"}, "takes two values or more, not 1"),
        ({"a": "sqrt(volume, 2)"}, "takes one value, not 2"),
        ({"a": "min(volume, key=1)"}, "may hold"),
        ({"a": "min(*volume, 1)"}, "may hold"),
        ({"a": "volume.sqrt()"}, "may hold"),
    ],
)
def test_derive_refuses(columns, said):
    with pytest.raises(RecipeError, match=said):
        derive(OBJECTS, columns)


def test_a_wrong_expression_fails_before_anything_runs():
    with pytest.raises(RecipeError, match="step 'a': .*'derive'.*columns.x.*cannot be read"):
        build("derive", {"columns": {"x": "1 +"}}, "step 'a': ")
    with pytest.raises(RecipeError, match="parameters of 'correlate' cannot be used: where.*may hold"):
        build("correlate", {"where": "x ** 2 > 1"})


def test_text_is_no_number():
    with pytest.raises(RecipeError, match="'name', which does not hold numbers but string"):
        derive(pa.table({"name": ["a"]}), {"x": "name + 1"})


def test_select_rows():
    assert select_rows(DISTANCE, "to_a < 5 or to_b < 3")["label"].to_pylist() == [1, 3]
    assert select_rows(DISTANCE, "to_a < 0").schema.equals(DISTANCE.schema)


def test_join_by_label():
    got = join({"objects": OBJECTS, "distance": DISTANCE})
    assert got.column_names == ["label", "volume", "cut", "to_a", "to_b"] and got["label"].to_pylist() == [3, 2**63, 1]
    assert got["to_a"].to_pylist() == [None, 30.0, 1.0] and got["to_b"].to_pylist() == [2.0, 20.0, 4.0]
    empty = join({"objects": OBJECTS.slice(0, 0), "distance": DISTANCE.slice(0, 0)})
    assert empty.num_rows == 0 and empty.schema.equals(got.schema)


def test_keys_that_are_missing():
    short = DISTANCE.slice(1)
    for tables, said in (({"a": OBJECTS, "b": short}, "'label' 1 of the table 'a'"), ({"b": short, "a": OBJECTS}, "'label' 1 of the table 'a'")):
        with pytest.raises(RecipeError, match=said):
            join(tables)
    null = join({"a": OBJECTS, "b": short}, missing="null")
    assert null["label"].to_pylist() == [3, 2**63, 1] and null["to_b"].to_pylist() == [2.0, 20.0, None]
    assert join({"a": OBJECTS, "b": short}, missing="drop")["label"].to_pylist() == [3, 2**63]
    assert join({"b": short, "a": OBJECTS}, missing="null")["label"].to_pylist() == [3, 2**63]


def test_names_that_clash():
    same = OBJECTS.select(["label", "volume"]).take([2, 0, 1])
    assert join({"a": OBJECTS, "b": same}).column_names == OBJECTS.column_names
    other = same.drop_columns(["volume"]).append_column("volume", pa.array([1.0, 2.0, 3.0]))
    with pytest.raises(RecipeError, match="'volume', the later one in 'b'. Give a prefix: prefix: {b: b_}"):
        join({"a": OBJECTS, "b": other})
    got = join({"a": OBJECTS, "b": other}, prefix={"b": "b_"})
    assert got["volume"].to_pylist() == [8.0, 0.0, 27.0] and got["b_volume"].to_pylist() == [2.0, 3.0, 1.0]
    with pytest.raises(RecipeError, match="prefix names 'c'"):
        join({"a": OBJECTS}, prefix={"c": "c_"})


def test_keys_that_repeat():
    pairs = pa.table({"label": pa.array([1, 1, 3], pa.uint64()), "area": [1.0, 2.0, 3.0]})
    assert join({"pairs": pairs, "d": DISTANCE}, missing="drop")["to_b"].to_pylist() == [4.0, 4.0, 2.0]
    with pytest.raises(RecipeError, match="two rows with the same 'label'"):
        join({"d": DISTANCE, "pairs": pairs}, missing="null")
    with pytest.raises(RecipeError, match="Did you mean 'label'"):
        join({"d": DISTANCE}, on="lable")


def test_data_sets_are_part_of_the_key():
    a = pa.table({"dataset": ["p", "q"], "label": [1, 1], "v": [1.0, 2.0]})
    b = pa.table({"dataset": ["q", "p"], "label": [1, 1], "w": [20.0, 10.0]})
    assert join({"a": a, "b": b})["w"].to_pylist() == [10.0, 20.0]
    with pytest.raises(RecipeError, match="a column 'dataset' and some have not"):
        join({"a": a, "b": b.drop_columns(["dataset"]).slice(0, 1)})
