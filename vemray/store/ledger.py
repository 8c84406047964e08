"""What is finished, so that a run resumes where it was: small create-once objects, never one per block, never changed in place.

    ledger/<stage>-<key>/<pass>-<grid>/g-<z>-<y>-<x>      a finished group of neighbouring blocks, with its merged partial
    ledger/<stage>-<key>/complete.json                      the whole stage is done: what it wrote
    ledger/lease.json                                       who runs now; renewed while it lives
    ledger/events/<run>-<n>.jsonl                           what happened

A stage's key is its content: operator, parameters, inputs. A group that was lost is done again, to the same values."""

from __future__ import annotations

import json
import os
import pickle
import socket
import time
import uuid
from dataclasses import dataclass
from typing import Any

from vemray.errors import BusyError
from vemray.geometry import Grid, Int3
from vemray.store import access

LEASE_SECONDS = 60


@dataclass(frozen=True)
class StageLedger:
    """The ledger of one stage under `root` (a URL)."""

    root: str
    stage: str
    key: str

    @property
    def url(self) -> str:
        return access.join(self.root, "ledger", f"{self.stage}-{self.key[:16]}")

    def complete(self) -> dict | None:
        """What the finished stage recorded, or None."""
        try:
            return json.loads(access.read_bytes(access.join(self.url, "complete.json")))
        except FileNotFoundError:
            return None

    def finish(self, record: dict) -> None:
        access.write_bytes(access.join(self.url, "complete.json"), json.dumps(record, indent=1).encode())

    def passed(self, name: str, grid: Grid) -> PassLedger:
        return PassLedger(access.join(self.url, f"{name}-{'x'.join(map(str, grid.block_shape))}"))

    def forget(self) -> None:
        access.remove(self.url)

    def forget_passes(self) -> None:
        """Drop everything but complete.json."""
        for name in access.list_names(self.url):
            if name != "complete.json":
                access.remove(access.join(self.url, name))


@dataclass(frozen=True)
class PassLedger:
    """Finished groups of one pass over one grid. A group's object holds the pickled merged partial of its blocks."""

    url: str

    def group_url(self, coords: Int3) -> str:
        return access.join(self.url, "g-" + "-".join(map(str, coords)))

    def done(self) -> set[Int3]:
        return {tuple(map(int, n[2:].split("-"))) for n in access.list_names(self.url) if n.startswith("g-")}

    def save(self, coords: Int3, partial: Any) -> None:
        access.write_bytes(self.group_url(coords), pickle.dumps(partial, protocol=5))

    def load(self, coords: Int3) -> Any:
        return pickle.loads(access.read_bytes(self.group_url(coords)))


class Lease:
    """One run at a time writes to an output. The holder renews `ledger/lease.json`; one that has been silent for
    LEASE_SECONDS, or whose process on this host is gone, is taken over."""

    def __init__(self, root: str):
        self.url = access.join(root, "ledger", "lease.json")
        self.id = uuid.uuid4().hex
        self._renewed = 0.0

    def take(self) -> None:
        if access.create_only(self.url, self._body()):
            self._renewed = time.time()
            return
        holder = self._holder()
        if holder and self._alive(holder):
            raise BusyError(
                f"{self.url.rsplit('/ledger', 1)[0]} is being written by another run (process {holder['pid']} on {holder['host']}, "
                f"last sign of life {time.time() - holder['beat']:.0f} s ago). Wait for it, stop it, or choose another --out."
            )
        access.remove(self.url)
        if not access.create_only(self.url, self._body()):
            raise BusyError(f"another run took {self.url} at this moment. Try again.")
        self._renewed = time.time()

    def renew(self) -> None:
        """Call often; writes every few seconds. BusyError if another run has taken over."""
        if time.time() - self._renewed < LEASE_SECONDS / 6:
            return
        holder = self._holder()
        if holder and holder["id"] != self.id:
            raise BusyError(f"another run (process {holder['pid']} on {holder['host']}) has taken over {self.url}; this one stops.")
        access.write_bytes(self.url, self._body())
        self._renewed = time.time()

    def release(self) -> None:
        holder = self._holder()
        if holder and holder["id"] == self.id:
            access.remove(self.url)

    def _holder(self) -> dict | None:
        try:
            return json.loads(access.read_bytes(self.url))
        except (FileNotFoundError, ValueError):
            return None

    def _body(self) -> bytes:
        return json.dumps({"id": self.id, "host": socket.gethostname(), "pid": os.getpid(), "beat": time.time()}).encode()

    @staticmethod
    def _alive(holder: dict) -> bool:
        if holder["host"] == socket.gethostname():
            try:
                os.kill(holder["pid"], 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                pass
        return time.time() - holder["beat"] < LEASE_SECONDS
