"""Tables of users: types as meant, and every mistake named with file, line and column."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vemray.errors import InputError
from vemray.store import access
from vemray.store.given_table import read_given_table


def read(folder, text, name="t.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_given_table(str(folder / name))


def test_types_are_what_all_rows_hold(tmp_path):
    text = """label,class,group,mean,seen,note,large,missing
1,mito,7,0.5,true,,9223372036854775819,
2,"a, b",-3,1e3,False,x,0,4
3,ER,+2,-inf,TRUE,17 nm,18446744073709551615,
"""
    t = read(tmp_path, text).table
    assert {f.name: str(f.type) for f in t.schema} == {
        "label": "int64", "class": "string", "group": "int64", "mean": "double", "seen": "bool", "note": "string", "large": "uint64", "missing": "int64"
    }  # fmt: skip
    assert t.column("large").to_pylist() == [2**63 + 11, 0, 2**64 - 1], "labels above 2^63 keep every digit"
    assert t.column("class").to_pylist() == ["mito", "a, b", "ER"] and t.column("group").to_pylist() == [7, -3, 2]
    assert t.column("missing").to_pylist() == [None, 4, None] and t.column("note").to_pylist() == ["", "x", "17 nm"]
    assert t.column("mean").to_pylist() == [0.5, 1000.0, -np.inf] and t.column("seen").to_pylist() == [True, False, True]


def test_as_spreadsheets_write_it(tmp_path):
    t = read(tmp_path, "\ufefflabel , class\r\n 1 ,mito\r\n2,ER\r\n\r\n").table
    assert t.column_names == ["label", "class"] and t.column("label").to_pylist() == [1, 2]


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("label,class\n", "a header line and no rows"),
        ("label,class,label\n1,a,2\n", "line 1 has two columns 'label'"),
        ("label,,class\n1,a,2\n", "line 1: column 2 has no name"),
        ("label,new\n1,2\n3,x7\n", "line 3, column 'new': 'x7' is not a number, but line 2 holds '2'"),
        ("label,new\n1,abc\n3,5\n", "line 2, column 'new': 'abc' is not a number, but line 3 holds '5'"),
        ("label,new\n1,0.5\n3,1.2.3\n", "line 3, column 'new': '1.2.3' is not a number"),
        ("label,new\n1,2\n\n3,4\n", "line 3: it is empty"),
        ("label,new\n1,2\n3,4,5\n", "line 3: 3 values where the header names 2 columns: '3,4,5'"),
        ("label;new\n1;2\n", "separated by semicolons"),
        ("label\tnew\n1\t2\n", "separated by tabs"),
        (b"label,new\n1,2\n3,\xff\n", "line 3: not text in UTF-8"),
        ("label\n1\n18446744073709551616\n", "line 3, column 'label': the whole number 18446744073709551616 does not fit"),
        ("label\n-1\n9223372036854775808\n", "line 3, column 'label': the whole number 9223372036854775808 does not fit"),
    ],
)
def test_mistakes_name_line_and_column(tmp_path, text, says):
    with pytest.raises(InputError) as e:
        read(tmp_path, text)
    assert says in str(e.value) and str(tmp_path / "t.csv") in str(e.value)


def test_parquet(tmp_path):
    table = pa.table({"label": pa.array([1, 2**63 + 1], pa.uint64()), "class": ["a", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    given = read_given_table(str(tmp_path / "t.parquet"))
    assert given.table.equals(table) and given.bytes == (tmp_path / "t.parquet").stat().st_size
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert read_given_table(str(tmp_path / "none.parquet")).table.num_rows == 0
    with pytest.raises(InputError, match="is not a Parquet file, or is damaged"):
        read(tmp_path, "label,class\n1,a\n", "csv.parquet")
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="has two columns 'a'"):
        read_given_table(str(tmp_path / "twice.parquet"))


def test_what_is_no_table(tmp_path):
    with pytest.raises(InputError, match="there is no table at"):
        read_given_table(str(tmp_path / "none.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_given_table(str(tmp_path / "folder.csv"))
    with pytest.raises(InputError, match="give a .csv or .parquet file"):
        read_given_table(str(tmp_path / "t.xlsx"))


def test_the_content_is_the_digest(tmp_path):
    first = read(tmp_path, "label\n1\n")
    assert read(tmp_path, "label\n1\n", "copy.csv").digest == first.digest != read(tmp_path, "label\n2\n").digest


@pytest.mark.s3
def test_on_s3(s3_url):
    access.write_bytes(access.join(s3_url, "t.csv"), b"label,class\n1,a\n")
    assert read_given_table(access.join(s3_url, "t.csv")).table.to_pylist() == [{"label": 1, "class": "a"}]
    with pytest.raises(InputError, match="there is no table at"):
        read_given_table(access.join(s3_url, "none.csv"))
