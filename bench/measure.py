"""Runs one side of a comparison in a process of its own and measures it: wall time, CPU time of it and its children, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
ENV = {v: "1" for v in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}


@dataclass
class Run:
    wall: float
    cpu: float
    peak_gb: float
    said: dict

    def __getitem__(self, key: str) -> float:
        return self.said.get(key, getattr(self, key, None))


def run(command: list[str]) -> Run:
    """`command` prints one JSON line last; its own 'wall_s' and 'cpu_s', if it gives them, leave out imports and start-up."""
    import psutil

    start = time.perf_counter()
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ENV}, cwd=ROOT, text=True)
    peak = [0]

    def watch() -> None:
        me = psutil.Process(p.pid)
        while p.poll() is None:
            total = 0
            try:
                for q in [me, *me.children(recursive=True)]:
                    total = max(total, q.memory_info().rss)
            except psutil.Error:
                pass
            peak[0] = max(peak[0], total)
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    out, err = p.communicate()
    thread.join()
    if p.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{err[-3000:]}")
    said = json.loads(out.strip().splitlines()[-1])
    return Run(said.get("wall_s", time.perf_counter() - start), said.get("cpu_s", 0.0), peak[0] / 1e9, said)


def interleaved(commands: dict[str, list[str]], repeats: int) -> dict[str, Run]:
    """Each command `repeats` times, taking turns; the run with the median CPU time of each."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            runs[name].append(run(command))
    out = {}
    for name, rs in runs.items():
        middle = median(r.cpu for r in rs)
        out[name] = min(rs, key=lambda r: abs(r.cpu - middle))
        out[name].wall = median(r.wall for r in rs)
    return out
