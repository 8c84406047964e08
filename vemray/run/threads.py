"""Threads of a task, set explicitly and equal in every runner: a float reduction may differ in its last bit with their number."""

from __future__ import annotations

import contextlib
import functools
import sys

#: what a worker process is started with
WORKER_ENV = {v: "1" for v in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")}


@contextlib.contextmanager
def single_threaded():
    with _libraries(len(sys.modules)).limit(limits=1):
        yield


@functools.lru_cache(maxsize=1)
def _libraries(modules: int):
    """The thread pools in this process. Looking for them costs milliseconds: only again when more modules were imported."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
