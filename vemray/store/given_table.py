"""Tables that users give, CSV or Parquet, read strictly: what cannot be read as meant is an error that names file, line and column."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from vemray.errors import InputError
from vemray.store import access

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(inf|nan)$"
WHOLE = r"^-?\d+$"


@dataclass(frozen=True)
class GivenTable:
    """A table as it was when it was read; `digest` is the SHA-256 of the file's content."""

    url: str
    bytes: int
    digest: str
    table: pa.Table = field(repr=False, compare=False)


def read_given_table(url: str) -> GivenTable:
    """The table in a .csv file (commas, UTF-8, a header line) or a .parquet file, local or on S3. InputError says what is wrong with it."""
    where = access.shown(url)
    kind = url.lower().rsplit(".", 1)[-1]
    if kind not in ("csv", "parquet"):
        raise InputError(f"{where} is no table that can be read: give a .csv or .parquet file.")
    access.reach(url)
    if access.is_folder(url):
        raise InputError(f"{where} is a folder, but a table is one file. Name the .csv or .parquet file.")
    try:
        data = access.read_bytes(url)
    except FileNotFoundError:
        raise InputError(f"there is no table at {where}. Check the address.") from None
    if not data.strip():
        raise InputError(f"{where} is empty. A table has a header line with the names of its columns, and rows.")
    table = _csv(data, where) if kind == "csv" else _parquet(data, where)
    return GivenTable(url, len(data), hashlib.sha256(data).hexdigest(), table)


def _check_names(names: list[str], where: str) -> None:
    for i, name in enumerate(names):
        if not name.strip():
            raise InputError(f"{where}: column {i + 1} has no name. Name every column.")
    if twice := [n for n, k in Counter(names).items() if k > 1]:
        raise InputError(f"{where} has two columns '{twice[0]}'. Name each column differently.")


def _parquet(data: bytes, where: str) -> pa.Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_names(file.schema_arrow.names, where)
        return file.read()
    except (pa.ArrowException, OSError) as e:
        raise InputError(f"{where} is not a Parquet file, or is damaged ({str(e).strip().splitlines()[0][:160]}).") from None


def _csv(data: bytes, where: str) -> pa.Table:
    """Every column is read as text, then as the first type that holds all its values: whole numbers, numbers, true and false, text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise InputError(f"{where}, line {line}: not text in UTF-8. Save the table as CSV in UTF-8.") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    header, _, body = text.partition("\n")
    names = [n.strip() for n in next(csv.reader([header]))]
    for sign, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and sign in header:
            raise InputError(f"{where}, line 1: its columns are separated by {called}. Save it with commas.")
    _check_names(names, f"{where}, line 1")
    if not body.strip():
        raise InputError(f"{where} has a header line and no rows. Give at least one row; a .parquet file may have none, since it says its types.")
    if blank := re.search(r"^\s*$", body, re.MULTILINE):
        raise InputError(f"{where}, line {body.count(chr(10), 0, blank.start()) + 2}: it is empty. Take the line out.")
    wrong: list[pa.csv.InvalidRow] = []

    def note(row):
        wrong.append(row)
        return "skip"

    try:
        raw = pa.csv.read_csv(
            pa.BufferReader(body.encode()),
            pa.csv.ReadOptions(use_threads=False, column_names=names),
            pa.csv.ParseOptions(invalid_row_handler=note),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowException as e:
        raise InputError(f"{where} cannot be read as CSV: {str(e).strip().splitlines()[0][:160]}.") from None
    if wrong:
        row = wrong[0]
        at = f", line {row.number + 1}" if row.number else ""
        raise InputError(f"{where}{at}: {row.actual_columns} values where the header names {row.expected_columns} columns: '{row.text[:80]}'.")
    return pa.table({name: _typed(raw.column(name).combine_chunks(), f"column '{name}'", where) for name in names})


def _typed(values: pa.Array, column: str, where: str) -> pa.Array:
    """`values` (text) as the type they all have; an empty one is missing among numbers, and empty text among text."""
    trimmed = pc.utf8_trim_whitespace(values)
    given = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    number = pc.match_substring_regex(given, NUMBER, ignore_case=True)  # null where nothing is given
    if not pc.any(number).as_py():
        low = pc.utf8_lower(given)
        boolean = pc.is_in(low, pa.array(["true", "false"]))
        return pc.equal(low, "true") if given.null_count < len(given) and pc.all(pc.or_(boolean, pc.is_null(given))).as_py() else values
    if not pc.all(number).as_py():
        bad = pc.index(number, False).as_py()
        good = pc.index(number, True).as_py()
        raise InputError(
            f"{where}, line {bad + 2}, {column}: '{given[bad].as_py()[:40]}' is not a number, but line {good + 2} holds '{given[good].as_py()[:40]}'. "
            "Write numbers in every row of a column, or in none."
        )
    plain = pc.replace_substring_regex(given, r"^\+", "")
    if not pc.all(pc.match_substring_regex(plain, WHOLE)).as_py():
        return plain.cast(pa.float64())
    for dtype in (pa.int64(), pa.uint64()):
        try:
            return plain.cast(dtype)
        except pa.ArrowInvalid:
            continue
    large = next(i for i, v in enumerate(plain.to_pylist()) if v is not None and not -(1 << 63) <= int(v) < 1 << 63)
    raise InputError(
        f"{where}, line {large + 2}, {column}: the whole number {plain[large]} does not fit into 64 bits, or not with the negative ones of its column."
    )
