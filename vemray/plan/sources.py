"""The inputs of a recipe as they were found: volumes, levels of their pyramids, tables. Each says where it lies and what identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vemray.geometry import ArraySpec
from vemray.store.facts import TreeFacts
from vemray.store.given_table import GivenTable
from vemray.store.volume import Volume


@dataclass(frozen=True)
class Source:
    """An input volume with its identity: a digest of its metadata and of size and time (or etag) of each of its objects. `of`: the input that it
    is a level of."""

    name: str
    volume: Volume
    key: str
    facts: TreeFacts
    of: str | None = None

    @property
    def spec(self) -> ArraySpec:
        return self.volume.spec

    @property
    def url(self) -> str:
        return self.volume.url

    @property
    def described(self) -> str:
        v = self.volume
        level = f" level {v.level}" if self.of else ""
        return f"{v.url}{level}, {' x '.join(map(str, v.shape))} voxels of {v.spacing}, {v.dtype}"

    @property
    def record(self) -> dict[str, Any]:
        """What run.json says of it."""
        v = self.volume
        return {
            "url": v.url, **({"of": self.of} if self.of else {}), "level": v.level, "shape": v.shape, "dtype": v.dtype, "kind": v.kind,
            "spacing_nm": v.spacing.zyx, "origin_nm": v.origin_nm,
            "objects": self.facts.objects, "bytes": self.facts.bytes, "digest": self.facts.digest,
        }  # fmt: skip


@dataclass(frozen=True)
class TableSource:
    """An input table as it was read; its content is its identity."""

    name: str
    given: GivenTable
    key: str

    spec: ClassVar[str] = "table"
    of: ClassVar[None] = None

    @property
    def url(self) -> str:
        return self.given.url

    @property
    def described(self) -> str:
        table = self.given.table
        return f"{self.url}, {table.num_rows:,} rows of {', '.join(f'{f.name} ({f.type})' for f in table.schema)}"

    @property
    def record(self) -> dict[str, Any]:
        """What run.json says of it."""
        table, given = self.given.table, self.given
        return {
            "url": self.url, "kind": "table", "rows": table.num_rows, "columns": {f.name: str(f.type) for f in table.schema},
            "objects": 1, "bytes": given.bytes, "digest": given.digest,
        }  # fmt: skip
