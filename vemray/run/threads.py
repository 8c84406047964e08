"""Threads of a task, set explicitly and equal in every runner: a float reduction may differ in its last bit with their number."""

from __future__ import annotations

import contextlib

#: what a worker process is started with
WORKER_ENV = {v: "1" for v in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")}


@contextlib.contextmanager
def single_threaded():
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
