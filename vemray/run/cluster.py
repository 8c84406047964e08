"""The Ray runner: a bounded window of tasks with their memory declared, actors for operators that hold a model, retries for
infrastructure only. Partials stay in Ray's object store; the driver sees block numbers and costs."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, WorkerCrashedError

from vemray.errors import BlockError, PlanError, StorageError, VemrayError
from vemray.run.threads import WORKER_ENV
from vemray.store import access

#: a lost worker or an unreachable store is tried again this often; an operator's own error never
RETRIES = 5


def _run(work, index, s3):
    access.expect_s3_view(s3)
    return work.run(index)


def _view_of(work) -> str:
    """What the driver takes s3:// to be, if the work reads or writes there."""
    return access.s3_view() if any(access.scheme(url) == "s3" for url in work.urls) else ""


def _call(fn, *args):
    return fn(*args)


class _Holder:
    """An actor that holds a stage's model. It runs a few blocks in threads: while one computes, others read and write."""

    def __init__(self, work, s3):
        self.work, self.s3 = work, s3

    def run(self, index):
        return _run(self.work, index, self.s3)


class TaskPool:
    def __init__(self, runner: RayRunner, work, memory_bytes: int):
        self.work, self.s3 = ray.put(work), _view_of(work)
        self.pending: dict[Any, tuple[int, Any]] = {}
        self.fn = ray.remote(_run).options(
            num_cpus=1, num_returns=2, memory=memory_bytes, max_retries=RETRIES, retry_exceptions=[StorageError], name=f"{work.stage}"
        )

    @property
    def in_flight(self) -> int:
        return len(self.pending)

    def submit(self, index: int) -> None:
        bundle, stats = self.fn.remote(self.work, index, self.s3)
        self.pending[stats] = (index, bundle)

    def wait(self) -> list[tuple[int, Any, Any]]:
        ready, _ = ray.wait(list(self.pending), num_returns=1, timeout=1.0)
        if not ready:
            return []
        ready, _ = ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
        out = []
        for ref in ready:
            index, bundle = self.pending.pop(ref)
            out.append((index, _get(ref), bundle))
        return out

    def close(self, cancel: bool = False) -> None:
        if cancel:
            for ref in self.pending:
                ray.cancel(ref, force=True)
        self.pending.clear()


class ActorPool(TaskPool):
    """One actor a GPU, or one a CPU worker where there is none."""

    threads = 3

    def __init__(self, runner: RayRunner, work, memory_bytes: int):
        self.pending = {}
        gpus = int(ray.cluster_resources().get("GPU", 0))
        n = gpus or runner.workers
        cls = ray.remote(_Holder).options(
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            memory=memory_bytes * (1 if not gpus else self.threads),
            max_concurrency=self.threads,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            name=None,
        )
        self.actors = [cls.remote(work, _view_of(work)) for _ in range(n)]  # by value: an actor that restarts needs it again
        self.load = [0] * n
        self.where: dict[Any, int] = {}

    def submit(self, index: int) -> None:
        a = min(range(len(self.actors)), key=self.load.__getitem__)
        bundle, stats = self.actors[a].run.options(num_returns=2, retry_exceptions=[StorageError]).remote(index)
        self.load[a] += 1
        self.where[stats] = a
        self.pending[stats] = (index, bundle)

    def wait(self):
        before = set(self.pending)
        out = super().wait()
        for ref in before - set(self.pending):
            self.load[self.where.pop(ref)] -= 1
        return out

    def close(self, cancel: bool = False) -> None:
        super().close(False)
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

    def call(self, fn, *args, memory_bytes: int = 0) -> Any:
        return (
            ray.remote(_call).options(num_cpus=1, memory=memory_bytes or None, max_retries=RETRIES, retry_exceptions=[StorageError]).remote(fn, *args)
        )

    def get(self, handle: Any) -> Any:
        return _get(handle)

    def close(self) -> None:
        if self.started:
            ray.shutdown()


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
        raise StorageError(f"workers kept dying ({RETRIES} times on one block); the machine may be out of memory. {type(e).__name__}") from e
