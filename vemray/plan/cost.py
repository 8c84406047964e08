"""What a plan costs before it runs: blocks, bytes, requests, memory, and time from a calibration on this machine."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace

import numpy as np

from vemray.geometry import Box, Int3
from vemray.ops.base import ArraySpec, Artefact, Filter, Labeller, Measure, Site
from vemray.plan.graph import Node, _call_specs
from vemray.plan.grids import boxes_read, grid_spec, other_boxes
from vemray.plan.stages import Plan, Stage

#: decoding and encoding speed assumed beside the operators, bytes per second of one core (zstd level 1; see docs/performance.md)
STORE_BYTES_PER_SECOND = 4e8
CALIBRATION_EDGE = 64


@dataclass(frozen=True)
class Cost:
    blocks: int
    bytes_read: int
    bytes_written: int
    requests: int
    memory_bytes: int
    seconds: float | None  # of one core; None where a model or an unmeasured operator decides


def cost(stage: Stage, plan: Plan) -> Cost:
    """Sizes are of decoded voxels; requests count an index and the chunks of each shard touched, and one put a shard and level."""
    if stage.grid is None:
        return Cost(1, 0, 0, 2 * len(stage.reads) + 1, 0, 0.0)
    passes = 2 if stage.kind == "label" else 1
    typical = _typical(stage)
    read = requests = 0
    # objects are read one by one: about each voxel once
    for ref, box in (
        _boxes_read(stage, typical) if stage.kind != "object" else [(r, typical) for r, s in stage.specs.items() if isinstance(s, ArraySpec)]
    ):
        spec = stage.specs[ref]
        read += box.size * np.dtype(spec.dtype).itemsize
        requests += _requests(box, plan.options.block, plan.options.chunk)
    recomputed = passes == 2 and stage.target.op.cheap
    outputs = [s for s in stage.target.outputs.values() if isinstance(s, ArraySpec)]
    written = sum(typical.size * np.dtype(s.dtype).itemsize for s in outputs)
    puts = len(outputs) + (stage.kind == "artefact")
    if passes == 2 and not recomputed:
        written += typical.size * 4
        read += typical.size * 4
        puts += 2
    n = len(stage.grid)
    read, requests = read * (2 if recomputed else 1), requests * (2 if recomputed else 1) + puts
    seconds = _seconds(stage, typical)
    if seconds is not None:
        seconds = n * (seconds * (2 if recomputed else 1) + (read + written) / STORE_BYTES_PER_SECOND)
    return Cost(n, n * read, n * written, n * requests + -(-n // 8), stage.memory_bytes, seconds)


def _typical(stage: Stage) -> Box:
    g = stage.grid
    return g.write_box(g.index(tuple(n // 2 if n > 2 else 0 for n in g.counts)))


def _boxes_read(stage: Stage, write: Box):
    def walk(node: Node, write: Box):
        for r, read in boxes_read(node, write, stage.specs):
            if r in stage.inline:
                yield from walk(stage.inline[r], read)
            elif r not in stage.outputs:
                yield r, read

    for node in stage.nodes:
        yield from walk(node, write)


def _requests(box: Box, shard: Int3, chunk: Int3) -> int:
    def touched(unit: Int3) -> int:
        return math.prod(-(-b // u) - a // u for a, b, u in zip(box.start, box.stop, unit))

    return touched(shard) + touched(chunk)


def _seconds(stage: Stage, write: Box) -> float | None:
    """Core seconds of one block from running each operator once on a small block of blobs."""
    total = 0.0
    for node in (*stage.inline.values(), *stage.nodes):
        if isinstance(node.op, Filter) and node.op.holds_model:
            return None
        rate = calibrate(node, stage)
        if rate is None:
            return None
        total += write.size / rate
    return total


_rates: dict[str, float | None] = {}


def calibrate(node: Node, stage: Stage) -> float | None:
    """Voxels per second of `node` on this machine, measured once a process; None when it needs tables or surfaces that do not exist yet."""
    if node.key in _rates:
        return _rates[node.key]
    specs = [s for s in _call_specs(node.op, node.inputs, stage.specs)]
    if any(s is not None and not isinstance(s, ArraySpec) for s in specs):
        _rates[node.key] = None
        return None
    if len(specs) != len([p for p in node.op.ports if p.name in node.inputs]) and any(
        not set(p.kinds).isdisjoint({"table", "scalars"}) for p in node.op.ports
    ):
        _rates[node.key] = None
        return None
    edge = tuple(min(CALIBRATION_EDGE, n) for n in stage.grid.shape)
    rng = np.random.default_rng(0)
    first = grid_spec(node, stage.specs)
    box = Box.of(edge)
    others = other_boxes(node, box, stage.specs)
    ports = [p for p in node.op.ports if not set(p.kinds) <= {"table", "scalars"}]
    small = [s and (s if p.other_grid else replace(s, shape=edge)) for p, s in zip(ports, specs)]
    site = Site(edge, first.spacing, box, box, tuple(small), others)
    arrays = [
        _sample(replace(s, shape=others[p.name].shape) if p.other_grid else s, rng) if s and not p.grid_only else None for p, s in zip(ports, small)
    ]
    best = math.inf
    try:
        for _ in itertools.repeat(None, 2):  # the first call compiles
            t0 = time.perf_counter()
            if isinstance(node.op, Filter | Artefact):
                node.op(*arrays, site=site)
            elif isinstance(node.op, Labeller):
                node.op.label(*arrays, site=site)
            elif isinstance(node.op, Measure):
                node.op.measure(*arrays, site=site)
            best = min(best, time.perf_counter() - t0)
    except Exception:  # a block of blobs may not be what the operator takes: no estimate rather than no plan
        _rates[node.key] = None
        return None
    _rates[node.key] = box.size / best
    return _rates[node.key]


def _sample(spec: ArraySpec, rng) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(spec.shape), 3)
    if spec.kind == "mask":
        return field > 0
    if spec.kind == "labels":
        import cc3d

        return cc3d.connected_components(field > 0.05).astype(spec.dtype)
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-9)
    top = np.iinfo(spec.dtype).max if np.issubdtype(np.dtype(spec.dtype), np.integer) else 1.0
    return (field * top).astype(spec.dtype)


def size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if n >= 10 or unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return ""


def _row(c: Cost) -> tuple[str, ...]:
    return f"{c.blocks:,}", size(c.bytes_read), size(c.bytes_written), f"{c.requests:,}", size(c.memory_bytes)


def explain(plan: Plan, workers: int, done: set[str] = frozenset()) -> str:
    """The plan as text: a line a stage, and the sums."""
    head = ("stage", "what runs in one task", "blocks", "read", "written", "requests", "a task", "time")
    rows, costs = [], []
    for s in plan.stages:
        if s.name in done:
            rows.append((s.name, s.title, "-", "-", "-", "-", "-", "complete"))
            continue
        c = cost(s, plan)
        costs.append(c)
        rows.append((s.name, s.title, *_row(c), duration(c.seconds / workers) if c.seconds is not None else ("model" if s.holds_model else "?")))
    total = Cost(
        sum(c.blocks for c in costs), sum(c.bytes_read for c in costs), sum(c.bytes_written for c in costs), sum(c.requests for c in costs),
        max((c.memory_bytes for c in costs), default=0), sum(c.seconds or 0.0 for c in costs),
    )  # fmt: skip
    over = "over " if any(c.seconds is None for c in costs) else ""
    rows.append(("all", f"{workers} workers", *_row(total), over + duration(total.seconds / workers)))
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(v.ljust(w) if i < 2 else v.rjust(w) for i, (v, w) in enumerate(zip(r, widths))) for r in [head, *rows]]
    sources = [f"{n}: {s.described}" for n, s in plan.graph.sources.items()]
    how = f"blocks of {plan.options.block}, chunks of {plan.options.chunk}; bytes are of decoded voxels; time from a calibration on this machine"
    return "\n".join([*sources, how, "", *lines, "", f"kept: {', '.join(plan.keep)}"])


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    m, s = divmod(int(seconds), 60)
    h, m = divmod(m, 60)
    return f"{h} h {m:02d} min" if h else f"{m} min {s:02d} s"
