"""Tables as Parquet (zstd) and small records as JSON, in a folder or a bucket."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vemray.store import access


def write_table(url: str, table: pa.Table) -> None:
    """One Parquet object, atomically."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    access.write_bytes(url, buffer.getvalue())


def read_table(url: str) -> pa.Table:
    """The table at `url`. FileNotFoundError if there is none."""
    return pq.read_table(pa.BufferReader(access.read_bytes(url)))


def write_json(url: str, value: Any) -> None:
    access.write_json_bytes(url, value)


def read_json(url: str) -> Any:
    return json.loads(access.read_bytes(url))
