"""What is finished, so that a run resumes where it was: small create-once objects, never one per block but where blocks failed, never changed in place.

    ledger/<stage>-<key>/begun.json                         the stage has begun: its grid, and a mark that its volumes carry too
    ledger/<stage>-<key>/<pass>-<grid>/g-<z>-<y>-<x>        a finished group of neighbouring blocks, with its merged partial
    ledger/<stage>-<key>/<pass>-<grid>/b-<index>            a finished block of a group in which another failed, with its partial
    ledger/<stage>-<key>/complete.json                      the whole stage is done: what it made, under which content keys
    ledger/lease.json                                       who runs now; renewed while it lives
    ledger/events/<run>-<n>.jsonl                           what happened

A stage's key is its content: operator, parameters, inputs. A group that was lost is done again, to the same values."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
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
    """The ledger of one stage, at `url`."""

    url: str

    @classmethod
    def of(cls, root: str, stage: str, key: str) -> StageLedger:
        return cls(access.join(root, "ledger", f"{stage}-{key[:16]}"))

    @classmethod
    def all(cls, root: str) -> list[StageLedger]:
        """Every stage that was begun under `root`, also by other recipes."""
        folder = access.join(root, "ledger")
        return [cls(access.join(folder, n)) for n in access.list_names(folder) if re.fullmatch(r".+-[0-9a-f]{16}", n)]

    def complete(self) -> dict | None:
        """What the finished stage recorded, or None."""
        return self._read("complete.json")

    def begun(self) -> dict | None:
        """What was recorded when the stage began, or None."""
        return self._read("begun.json")

    def _read(self, name: str) -> dict | None:
        try:
            return json.loads(access.read_bytes(access.join(self.url, name)))
        except FileNotFoundError:
            return None

    def begin(self, record: dict) -> None:
        access.write_bytes(access.join(self.url, "begun.json"), json.dumps(record, indent=1).encode())

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

    def block_url(self, index: int) -> str:
        return access.join(self.url, f"b-{index}")

    def blocks(self) -> set[int]:
        """Blocks that were saved by themselves."""
        return {int(n[2:]) for n in access.list_names(self.url) if n.startswith("b-")}

    def save_block(self, index: int, partial: Any) -> None:
        access.write_bytes(self.block_url(index), pickle.dumps(partial, protocol=5))

    def load_block(self, index: int) -> Any:
        return pickle.loads(access.read_bytes(self.block_url(index)))


class Lease:
    """One run at a time writes to an output. The holder renews `ledger/lease.json`; one whose process on this machine is gone, or that
    has been silent for LEASE_SECONDS on another, is taken over."""

    def __init__(self, root: str):
        self.url = access.join(root, "ledger", "lease.json")
        self.id = uuid.uuid4().hex

    def take(self) -> None:
        if not access.create_only(self.url, self._body()):
            holder = self._holder()
            if holder and self._alive(holder):
                raise BusyError(
                    f"{self.url.rsplit('/ledger', 1)[0]} is being written by another run (process {holder['pid']} on {holder['host']}, "
                    f"last sign of life {time.time() - holder['beat']:.0f} s ago). Wait for it, stop it, or choose another --out."
                )
            access.remove(self.url)
            access.create_only(self.url, self._body())
        self.check()  # of two that take over at once, one reads the other's name

    def check(self) -> None:
        """BusyError if the lease is not, or no longer, this run's."""
        holder = self._holder()
        if holder and holder["id"] != self.id:
            raise BusyError(f"another run (process {holder['pid']} on {holder['host']}) has taken over {self.url}; this one stops.")

    def renew(self) -> None:
        """To be called every few seconds. BusyError if another run has taken over."""
        self.check()
        access.write_bytes(self.url, self._body())

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
        pid = os.getpid()
        who = {"id": self.id, "host": socket.gethostname(), "pid": pid, "where": _where(), "began": _began(pid), "beat": time.time()}
        return json.dumps(who).encode()

    @staticmethod
    def _alive(holder: dict) -> bool:
        """Where processes can be looked at, one lives or does not, however long it is silent; elsewhere only its beat tells."""
        if holder["where"] and holder["where"] == _where():
            return _began(holder["pid"]) == holder["began"]
        return time.time() - holder["beat"] < LEASE_SECONDS


def _where() -> str:
    """Where a process number means the same process: this boot of this machine and its space of numbers. '' without /proc."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as f:
        return f"{f.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _began(pid: int) -> str | None:
    """When the process was started, in the kernel's ticks; None if there is none."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as f:
        return f.read().rsplit(")", 1)[1].split()[19]
    return None
