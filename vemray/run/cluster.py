"""The Ray runner: a bounded window of tasks with their memory declared, actors for operators that hold a model, retries for
infrastructure only. Partials stay in Ray's object store; the driver sees block numbers and costs."""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import sys
import time
from collections import Counter, deque
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from vemray.errors import BlockError, PlanError, StorageError, VemrayError
from vemray.plan.stages import ACTOR_BLOCKS
from vemray.run.threads import WORKER_ENV
from vemray.store import access

#: a lost worker or an unreachable store is tried again this often; an operator's own error never
RETRIES = 5
#: a block is left out when so many actors have died of it, the last of them with nothing else in hand
DEATHS = 3
#: seconds after which the user is told that no actor has started yet
PATIENCE = 30


class _Died(StorageError):
    """A process was lost, and not only what it did."""


def _run(work, index, s3):
    access.expect_s3_view(s3)
    return work.run(index)


def _view_of(work) -> str:
    """What the driver takes s3:// to be, if the work reads or writes there."""
    return access.s3_view() if any(access.scheme(url) == "s3" for url in work.urls) else ""


def _call(fn, *args):
    return fn(*args)


# made once: each call of ray.remote() is a new function that Ray sends to every node and keeps
_RUN, _CALL = ray.remote(_run), ray.remote(_call)


class _Holder:
    """An actor that holds a stage's model. It runs a few blocks in threads: while one computes, others read and write."""

    def __init__(self, work, s3):
        self.work, self.s3 = work, s3

    def answer(self):
        return True

    def run(self, index):
        return _run(self.work, index, self.s3)


class TaskPool:
    #: what the user should know, said once by the engine
    notice = ""

    def __init__(self, runner: RayRunner, work, memory_bytes: int):
        self.work, self.s3 = ray.put(work), _view_of(work)
        self.pending: dict[Any, tuple[int, Any]] = {}
        self.fn = _RUN.options(
            num_cpus=1, num_returns=2, memory=memory_bytes, max_retries=RETRIES, retry_exceptions=[StorageError], name=f"{work.stage}"
        )

    @property
    def in_flight(self) -> int:
        return len(self.pending)

    def submit(self, index: int) -> None:
        bundle, stats = self.fn.remote(self.work, index, self.s3)
        self.pending[stats] = (index, bundle)

    def wait(self) -> list[tuple[int, Any, Any]]:
        """[(index, stats, handle of the partial)] of blocks that are finished, maybe none; the error in place of the stats where one failed."""
        ready, _ = ray.wait(list(self.pending), num_returns=1, timeout=1.0)
        if not ready:
            return []
        ready, _ = ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
        out = []
        for ref in ready:
            if one := self._ended(ref, *self.pending.pop(ref)):
                out.append(one)
        return out

    def _ended(self, ref, index: int, bundle) -> tuple[int, Any, Any] | None:
        try:
            return index, _get(ref), bundle
        except BlockError as e:
            return index, e, None

    def close(self, cancel: bool = False) -> None:
        if cancel:
            for ref in self.pending:
                ray.cancel(ref, force=True)
        self.pending.clear()


class ActorPool(TaskPool):
    """One actor a GPU, or one a CPU worker where there is none, but no more than the nodes can hold. Blocks wait here and go to actors that
    have answered: one that finds no place holds up nothing. One that dies is replaced, and each block that it held goes to an actor that holds nothing
    else; what then takes actors down is a block that fails, and the others go on."""

    def __init__(self, runner: RayRunner, work, memory_bytes: int):
        self.pending = {}
        gpus = int(ray.cluster_resources().get("GPU", 0))
        need = {"CPU": 1, "memory": memory_bytes, **({"GPU": 1} if gpus else {})}
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        places = sum(min(int(have.get(r, 0) // n) for r, n in need.items()) for have in nodes)
        cls = ray.remote(_Holder).options(
            num_cpus=1, num_gpus=int(gpus > 0), memory=memory_bytes, max_concurrency=ACTOR_BLOCKS, max_restarts=0, max_task_retries=RETRIES
        )  # fmt: skip
        self.stage, view = work.stage, _view_of(work)
        self.new = functools.partial(cls.remote, work, view)
        self.actors = [self.new() for _ in range(max(1, min(gpus or runner.workers, places)))]
        self.stillborn = 0
        self.deaths: Counter[int] = Counter()  # of actors that held the block
        self.asked = {a.answer.remote(): i for i, a in enumerate(self.actors)}
        self.load: dict[int, int] = {}  # of actors that have answered
        self.queue: deque[int] = deque()
        self.where: dict[Any, tuple[int, Any, int]] = {}  # place, actor, load
        self.began = time.time()

    @property
    def in_flight(self) -> int:
        return len(self.pending) + len(self.queue)

    def submit(self, index: int) -> None:
        self.queue.append(index)
        self._hand_out()

    def _hand_out(self) -> None:
        if self.asked:
            answered, _ = ray.wait(list(self.asked), num_returns=len(self.asked), timeout=0)
            for ref in answered:
                place = self.asked.pop(ref)
                try:
                    _get(ref)
                    self.load[place] = 0
                except _Died:
                    self.stillborn += 1
                    if self.stillborn > RETRIES:
                        raise
                    self._replace(place)
        while self.queue and self.load:
            i = min(self.load, key=self.load.__getitem__)
            weight = ACTOR_BLOCKS if self.queue[0] in self.deaths else 1
            if self.load[i] + weight > ACTOR_BLOCKS:
                break
            bundle, stats = self.actors[i].run.options(num_returns=2, retry_exceptions=[StorageError]).remote(self.queue[0])
            self.load[i] += weight
            self.where[stats] = (i, self.actors[i], weight)
            self.pending[stats] = (self.queue.popleft(), bundle)

    def _replace(self, place: int) -> None:
        ray.kill(self.actors[place])
        self.load.pop(place, None)
        self.actors[place] = self.new()
        self.asked[self.actors[place].answer.remote()] = place

    def _ended(self, ref, index: int, bundle):
        place, actor, weight = self.where.pop(ref)
        if self.actors[place] is actor:
            self.load[place] -= weight
        try:
            return super()._ended(ref, index, bundle)
        except _Died as e:
            if self.actors[place] is actor:
                self._replace(place)
            self.deaths[index] += 1
            if self.deaths[index] >= DEATHS:
                return index, BlockError(f"stage '{self.stage}', block {index}: {self.deaths[index]} workers died of it. {e}"), None
            self.notice = "a worker that held the model died and was replaced; its blocks are done again, one by one"
            self.queue.append(index)
            return None

    def wait(self):
        if not self.pending:
            ray.wait(list(self.asked), num_returns=1, timeout=1.0)
            self._hand_out()
            if not self.load and time.time() - self.began > PATIENCE:
                self.notice, self.began = "no worker has room for the model yet; waiting for the cluster", float("inf")
            return []
        out = super().wait()
        self._hand_out()
        return out

    def close(self, cancel: bool = False) -> None:
        super().close(False)
        self.queue.clear()
        for a in self.actors:
            ray.kill(a)


class RayRunner:
    """See Runner in engine.py. `address`: None starts Ray on this machine with `workers` CPUs; 'auto' or a URL joins a cluster."""

    name = "ray"

    def __init__(self, workers: int | None = None, address: str | None = None):
        self.started = not ray.is_initialized()
        env = {**WORKER_ENV, **{k: v for k, v in os.environ.items() if k.startswith("VEMRAY_")}}
        if not address:
            env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)  # a user's own operators, wherever the driver found them
        if self.started:
            common = dict(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": env}, configure_logging=False)
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the engine says what failed, once
            try:
                if address:
                    _knock(address)
                    ray.init(address=address, **common)
                else:
                    n = workers or os.cpu_count() or 1
                    # 'local': a Ray of its own, also beside one that runs on this machine already
                    ray.init(address="local", num_cpus=n, include_dashboard=False, **common)
            except (ConnectionError, RuntimeError, ValueError) as e:
                raise PlanError(f"Ray could not be reached at {address or 'this machine'}: {e}") from None
        self.workers = workers or int(ray.cluster_resources().get("CPU", 1))
        # two tasks a worker and two more, so that none waits for the driver; on a cluster that others use too, as many as were asked for
        self.window = self.workers if workers and (address or not self.started) else 2 * self.workers + 2

    def pool(self, work, memory_bytes: int, actors: bool = False) -> TaskPool:
        have = max((n["Resources"].get("memory", 0) for n in ray.nodes() if n["Alive"]), default=0)
        if memory_bytes > have:
            raise PlanError(
                f"stage '{work.stage}' declares {memory_bytes / 1e6:,.0f} MB a task, but the largest node offers Ray {have / 1e6:,.0f} MB."
            )
        return (ActorPool if actors else TaskPool)(self, work, memory_bytes)

    def call(self, fn, *args, returns: int = 1, cpus: int = 1) -> Any:
        """A task for `fn(*args)`. With cpus=0 it runs also while actors hold all the workers."""
        options = dict(num_cpus=cpus, num_returns=returns, max_retries=RETRIES, retry_exceptions=[StorageError])
        return _CALL.options(**options).remote(fn, *args)

    def ready(self, handle: Any, seconds: float) -> bool:
        return bool(ray.wait([handle], timeout=seconds)[0])

    def get(self, handle: Any) -> Any:
        return _get(handle)

    def close(self) -> None:
        if self.started:
            ray.shutdown()


def _knock(address: str) -> None:
    """ConnectionError in seconds if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    if found := re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+)\]?:(\d+)", address):
        try:
            socket.create_connection((found[1], int(found[2])), timeout=5).close()
        except OSError as e:
            raise ConnectionError(f"nobody answers ({e}). Check the address and that the cluster is up.") from None


def _get(ref: Any) -> Any:
    """ray.get with the cause instead of Ray's wrapping."""
    try:
        return ray.get(ref)
    except RayTaskError as e:
        cause = e.cause
        if isinstance(cause, VemrayError):
            raise cause from None
        raise BlockError(str(cause or e)) from e
    except (WorkerCrashedError, ActorDiedError, ActorUnavailableError) as e:
        raise _Died(f"workers kept dying ({RETRIES} times on one block); the machine may be out of memory. {type(e).__name__}") from e
    except OutOfMemoryError as e:
        raise _Died("Ray stopped a worker again and again because the machine ran out of memory. Use fewer workers or smaller blocks.") from e
    except RayError as e:
        raise StorageError(
            f"Ray lost what a task was doing ({type(e).__name__}). Look at the cluster, then run again: finished blocks are kept."
        ) from e
