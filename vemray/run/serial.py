"""The serial runner: one process, blocks in shuffled order on purpose, so that an order that matters shows."""

from __future__ import annotations

import random
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from vemray.errors import BlockError
from vemray.plan.stages import ACTOR_BLOCKS
from vemray.run.threads import hold_single_threaded, keep_freed_memory, single_threaded


class SerialPool:
    notice = ""

    def __init__(self, work, rng: random.Random):
        self.work, self.rng, self.queue = work, rng, []

    @property
    def in_flight(self) -> int:
        return len(self.queue)

    def submit(self, index: int) -> None:
        self.queue.append(index)

    def _any(self) -> int:
        return self.queue.pop(self.rng.randrange(len(self.queue)))

    def wait(self) -> list[tuple[int, Any, Any]]:
        """[(index, stats, handle of the partial)] of at least one finished block; the error in place of the stats where it failed."""
        index = self._any()
        with single_threaded():
            return [_done(index, self.work.run, index)]

    def close(self, cancel: bool = False) -> None:
        self.queue.clear()


def _done(index: int, fn, *args) -> tuple[int, Any, Any]:
    try:
        bundle, stats = fn(*args)
    except BlockError as e:
        return index, e, None
    return index, stats, bundle


class ModelPool(SerialPool):
    """For operators that hold a model: while the main thread computes a block, threads read and write others. As many are in hand as an actor has."""

    def __init__(self, work, rng: random.Random):
        super().__init__(work, rng)
        keep_freed_memory()  # before there are threads, which would keep memory of their own
        self.reading: dict[Future, int] = {}
        self.writing: dict[Future, int] = {}
        self.limits = single_threaded()
        self.limits.__enter__()  # of the whole process until it is closed; a thread's own are set where it starts
        self.threads = ThreadPoolExecutor(ACTOR_BLOCKS - 1, "block", initializer=hold_single_threaded)

    @property
    def in_flight(self) -> int:
        return len(self.queue) + len(self.reading) + len(self.writing)

    def _read_on(self) -> None:
        while self.queue and len(self.reading) + len(self.writing) < ACTOR_BLOCKS:
            index = self._any()
            self.reading[self.threads.submit(self.work.fetch, index)] = index

    def wait(self) -> list[tuple[int, Any, Any]]:
        while True:
            self._read_on()
            wait([*self.reading, *self.writing], return_when=FIRST_COMPLETED)
            if out := [_done(self.writing.pop(f), f.result) for f in list(self.writing) if f.done()]:
                return out
            ready = next(f for f in self.reading if f.done())
            index = self.reading.pop(ready)
            try:
                block = ready.result()
                self.work.compute(block)
            except BlockError as e:
                return [(index, e, None)]
            self.writing[self.threads.submit(self.work.store, block)] = index

    def close(self, cancel: bool = False) -> None:
        super().close()
        self.threads.shutdown(wait=True, cancel_futures=True)  # what is being written is written whole
        self.limits.__exit__(None, None, None)


class SerialRunner:
    """See Runner in engine.py. Handles are plain values."""

    name = "serial"
    workers = 1
    window = 8

    def __init__(self, seed: int = 0):
        self.rng = random.Random(seed)

    def pool(self, work, memory_bytes: int, actors: bool = False) -> SerialPool:
        return (ModelPool if actors else SerialPool)(work, self.rng)

    def call(self, fn, *args, returns: int = 1, cpus: int = 1) -> Any:
        with single_threaded():
            return fn(*args)

    def ready(self, handle: Any, seconds: float) -> bool:
        return True

    def get(self, handle: Any) -> Any:
        return handle

    def close(self) -> None:
        pass
