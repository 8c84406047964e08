"""What a process that runs blocks sets up: its threads, explicitly and equal in every runner, since a float reduction may differ in its last
bit with their number; and how it keeps memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys

#: what a worker process is started with
WORKER_ENV = {
    **{v: "1" for v in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")},
    # as keep_freed_memory: a worker has threads of its own before it runs the first block
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1), "MALLOC_ARENA_MAX": "1",
}  # fmt: skip


@contextlib.contextmanager
def single_threaded():
    with _libraries(len(sys.modules)).limit(limits=1):
        yield


def hold_single_threaded() -> None:
    """For the rest of this thread's life."""
    _libraries(len(sys.modules)).limit(limits=1)


@functools.lru_cache(maxsize=1)
def _libraries(modules: int):
    """The thread pools in this process. Looking for them costs milliseconds: only again when more modules were imported."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next array instead of giving it back to the kernel, which would zero it page by page again: a
    U-Net on planes of 1024 x 1024 gets 1.5 times as fast, a watershed 1.3 times. What a process holds stays at its peak, as declared.
    Threads that already run keep their own small heaps, which cannot do so."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-8, 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
        mallopt(option, value)
