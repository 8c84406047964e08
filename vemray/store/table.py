"""Tables as Parquet (zstd) and small records as JSON, in a folder or a bucket."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vemray.store import access

#: rows that are read together: what a task fetches of a table sorted by label is a few times this
ROW_GROUP = 1 << 16


def write_table(url: str, table: pa.Table) -> None:
    """One Parquet object, atomically."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP)
    access.write_bytes(url, buffer.getvalue())


def read_table(url: str) -> pa.Table:
    """The table at `url`. FileNotFoundError if there is none."""
    return pq.read_table(pa.BufferReader(access.read_bytes(url)))


def read_rows(url: str, column: str, values: np.ndarray) -> pa.Table:
    """The rows of the table at `url` whose whole-number `column` is among `values` (sorted); of a table sorted by it, little more is read."""
    with access.open_read(url) as f:
        file = pq.ParquetFile(f)
        at = file.schema_arrow.get_field_index(column)
        if at < 0:
            return file.schema_arrow.empty_table()  # who asked for it says which columns there are
        wanted = []
        for g in range(file.metadata.num_row_groups):
            facts = file.metadata.row_group(g).column(at).statistics
            if facts is None or not facts.has_min_max or np.searchsorted(values, facts.min) < np.searchsorted(values, facts.max, side="right"):
                wanted.append(g)
        table = file.read_row_groups(wanted)
    found = table.column(column).to_numpy()
    return table.filter(pa.array(np.isin(found, values))) if found.dtype.kind in "ui" else table


def write_json(url: str, value: Any) -> None:
    access.write_json_bytes(url, value)


def read_json(url: str) -> Any:
    return json.loads(access.read_bytes(url))
