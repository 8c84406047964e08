"""The serial runner: one process, blocks in shuffled order on purpose, so that an order that matters shows."""

from __future__ import annotations

import random
from typing import Any

from vemray.run.threads import single_threaded


class SerialPool:
    notice = ""

    def __init__(self, work, rng: random.Random):
        self.work, self.rng, self.queue = work, rng, []

    @property
    def in_flight(self) -> int:
        return len(self.queue)

    def submit(self, index: int) -> None:
        self.queue.append(index)

    def wait(self) -> list[tuple[int, Any, Any]]:
        """[(index, stats, handle of the partial)] of at least one finished block."""
        index = self.queue.pop(self.rng.randrange(len(self.queue)))
        with single_threaded():
            bundle, stats = self.work.run(index)
        return [(index, stats, bundle)]

    def close(self, cancel: bool = False) -> None:
        self.queue.clear()


class SerialRunner:
    """See Runner in engine.py. Handles are plain values."""

    name = "serial"
    workers = 1
    window = 8

    def __init__(self, seed: int = 0):
        self.rng = random.Random(seed)

    def pool(self, work, memory_bytes: int, actors: bool = False) -> SerialPool:
        return SerialPool(work, self.rng)

    def call(self, fn, *args, returns: int = 1, cpus: int = 1) -> Any:
        with single_threaded():
            return fn(*args)

    def ready(self, handle: Any, seconds: float) -> bool:
        return True

    def get(self, handle: Any) -> Any:
        return handle

    def close(self) -> None:
        pass
