"""From a graph to stages, the units that run: filters that follow each other fused into one task, measures riding on the stage that
makes their labels, whole-axis sweeps on pencils. Every stage knows its grid, what it reads and writes, and its peak memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from vemray.errors import PlanError
from vemray.geometry import Box, Grid, Int3
from vemray.ops.base import ArraySpec, Artefact, BlockOperator, Filter, Labeller, Measure
from vemray.ops.per_object import PerObject
from vemray.plan.graph import Graph, Node, _call_specs, digest
from vemray.plan.grids import boxes_read, grid_spec, read_inputs, refs_on_other_grids

#: blocks that an actor with a model has in hand: one computes, the others read and write
ACTOR_BLOCKS = 3
#: a fused task may read this many times what it writes before a scratch volume is cheaper
FUSE_READ_RATIO = 2.0


@dataclass(frozen=True)
class Options:
    """How a plan is cut and what a task may use. None of it changes a result."""

    block: Int3 = (256, 256, 256)
    chunk: Int3 = (64, 64, 64)
    memory_bytes: int = 2_000_000_000  # of one task, as the command line has it

    def __post_init__(self):
        if any(b % c for b, c in zip(self.block, self.chunk)):
            raise PlanError(f"a block of {self.block} is not a multiple of the chunk {self.chunk} along each axis: one block must own whole shards.")


@dataclass(frozen=True)
class Stage:
    """`target` is a Filter, Labeller, Measure, Artefact or Analysis; `inline` maps refs to filters computed within the task; `riders` are
    measures of what the stage writes; `outputs` its refs."""

    name: str
    kind: Literal["map", "label", "measure", "artefact", "object", "analysis"]
    target: Node
    inline: dict[str, Node] = field(default_factory=dict)
    riders: tuple[Node, ...] = ()
    grid: Grid | None = None
    memory_bytes: int = 0
    specs: dict[str, Any] = field(default_factory=dict)  # of every ref this stage touches

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.target, *self.riders)

    @property
    def outputs(self) -> dict[str, Any]:
        return {o: s for n in self.nodes for o, s in n.outputs.items()}

    @property
    def reads(self) -> tuple[str, ...]:
        """Refs the stage gets from storage."""
        own = set(self.outputs)
        refs = [r for n in (*self.nodes, *self.inline.values()) for r in read_inputs(n).values()]
        return tuple(dict.fromkeys(r for r in refs if r not in own and r not in self.inline))

    @property
    def key(self) -> str:
        return digest(self.kind, self.target.key, sorted(n.key for n in self.riders))

    @property
    def holds_model(self) -> bool:
        return isinstance(self.target.op, Filter) and self.target.op.holds_model

    @property
    def title(self) -> str:
        chain = [n.op.name for n in self.inline.values()] + [n.op.name for n in self.nodes]
        return " + ".join(chain)


@dataclass(frozen=True)
class Plan:
    graph: Graph
    stages: tuple[Stage, ...]
    options: Options

    @property
    def keep(self) -> tuple[str, ...]:
        return self.graph.keep


def fuse(graph: Graph, options: Options | None = None, have: frozenset[str] = frozenset()) -> Plan:
    """Cut the graph into stages. `have`: outputs that lie there already, so that nothing new rides on making them. PlanError, with
    numbers, when a task cannot fit into `options.memory_bytes`."""
    options = options or Options()
    inlined = _inlined(graph, options)
    riders = _riders(graph, inlined, have)
    riding = {m.name for ms in riders.values() for m in ms}
    stages = []
    for node in graph.nodes.values():
        if node.name in riding or any(o in inlined for o in node.outputs):
            continue
        stages.append(_stage(graph, node, tuple(riders.get(node.name, ())), inlined, options))
    plan = Plan(graph, tuple(_ordered(stages, graph)), options)
    _refuse_what_cannot_fit(plan)
    return plan


def _consumers(graph: Graph, ref: str) -> list[Node]:
    return [n for n in graph.nodes.values() if ref in read_inputs(n).values()]


def _halo(node: Node, graph: Graph, block: Int3) -> Int3:
    """Halo of a node, also of one that reads more than its halo: measured on a box in the middle of a large volume."""
    spec = grid_spec(node, {r: graph.spec(r) for r in node.inputs.values()})
    if spec is None:
        return (0, 0, 0)
    far = tuple(1000 * b for b in block)
    write = Box(tuple(500 * b for b in block), tuple(501 * b for b in block))
    read = node.op.read_box(write, far, spec.spacing)
    return tuple(max(w - r, s - t) for w, r, s, t in zip(write.start, read.start, read.stop, write.stop))


def _inlined(graph: Graph, options: Options) -> dict[str, Int3]:
    """Refs computed inside their consumers' tasks, with the halo their chain adds up to."""
    out: dict[str, Int3] = {}
    for node in graph.nodes.values():
        op = node.op
        if not isinstance(op, Filter) or op.holds_model or op.whole_axes or list(node.outputs) != [node.name]:
            continue
        (ref,) = node.outputs
        users = _consumers(graph, ref)
        if ref in graph.keep or not users or any(ref in refs_on_other_grids(u) for u in users) or _reads_much(node, graph, options.block):
            continue
        mine = _halo(node, graph, options.block)
        chain = max((out[r] for r in read_inputs(node).values() if r in out), default=(0, 0, 0), key=sum)
        total = tuple(a + b for a, b in zip(mine, chain))
        if len(users) > 1 and any(total):
            continue  # several would compute it again: a scratch volume is cheaper

        def fits(user: Node, total=total) -> bool:
            if not isinstance(user.op, BlockOperator) or user.op.whole_axes or (isinstance(user.op, Filter) and user.op.holds_model):
                return False
            h = tuple(a + b for a, b in zip(_halo(user, graph, options.block), total))
            return math.prod(b + 2 * x for b, x in zip(options.block, h)) <= FUSE_READ_RATIO * math.prod(options.block)

        if all(fits(u) for u in users):
            out[ref] = total
    return out


def _reads_much(node: Node, graph: Graph, block: Int3) -> bool:
    """Whether it reads more voxels on other grids than it makes on its own."""
    others = refs_on_other_grids(node)
    if not others:
        return False
    specs = {r: graph.spec(r) for r in node.inputs.values()}
    write = Box.of(block).clip(grid_spec(node, specs).shape)
    return sum(box.size for r, box in boxes_read(node, write, specs) if r in others) > write.size


def _riders(graph: Graph, inlined: dict[str, Int3], have: frozenset[str]) -> dict[str, list[Node]]:
    """Measures without halo that ride on the stage that writes one of their inputs: the voxels are touched once."""
    out: dict[str, list[Node]] = {}
    order = {o: i for i, n in enumerate(graph.nodes.values()) for o in n.outputs}
    for m in graph.nodes.values():
        if not isinstance(m.op, Measure) or refs_on_other_grids(m) or any(_halo(m, graph, (64, 64, 64))):
            continue
        refs = [r for r in m.inputs.values() if r not in graph.sources]
        if not refs or any(r in inlined for r in refs):
            continue
        last = max(refs, key=lambda r: order[r])
        host = graph.producer(last)
        if last not in have and isinstance(host.op, Labeller | Filter) and not host.op.whole_axes and len(host.outputs) == 1:
            out.setdefault(host.name, []).append(m)
    return out


KINDS = {Filter: "map", Labeller: "label", Measure: "measure", Artefact: "artefact"}


def _stage(graph: Graph, node: Node, riders: tuple[Node, ...], inlined: dict[str, Int3], options: Options) -> Stage:
    op = node.op
    kind = next((k for cls, k in KINDS.items() if isinstance(op, cls)), "analysis")
    inline: dict[str, Node] = {}

    def gather(n: Node) -> None:
        for r in read_inputs(n).values():
            if r in inlined and r not in inline:
                gather(graph.producer(r))
                inline[r] = graph.producer(r)

    for n in (node, *riders):
        gather(n)
    nodes = (node, *riders, *inline.values())
    specs = {r: graph.spec(r) for n in nodes for r in (*n.inputs.values(), *n.outputs)}
    if kind == "analysis":
        return Stage(node.name, kind, node, specs=specs)
    if isinstance(op, PerObject):  # how large the objects are shows when they are done: a task takes what it may, at most what the volume would need
        labels = grid_spec(node, specs)
        grid = Grid(labels.shape, options.block)
        return Stage(
            node.name, "object", node, grid=grid, memory_bytes=min(options.memory_bytes, op.bytes_for(math.prod(labels.shape), labels)), specs=specs
        )
    shape = grid_spec(node, specs).shape
    grid = Grid(shape, _block_shape(shape, node, specs, options))
    stage = Stage(node.name, kind, node, inline, riders, grid, 0, specs)
    return Stage(node.name, kind, node, inline, riders, grid, peak_bytes(stage), specs)


def _block_shape(shape: Int3, node: Node, specs: dict, options: Options) -> Int3:
    """The options' block; for a whole-axis sweep a pencil that spans those axes and is as thick along the others as memory allows."""
    whole = node.op.whole_axes
    if not whole:
        return node.op.block_shape(shape, options.block, options.chunk)
    rounded = tuple(-(-n // c) * c for n, c in zip(shape, options.chunk))
    per_voxel = node.op.memory(*_call_specs(node.op, node.inputs, specs)) + 8
    block = [rounded[a] if a in whole else options.chunk[a] for a in range(3)]
    free = [a for a in (2, 1, 0) if a not in whole]
    grown = True
    while grown:
        grown = False
        for a in free:
            bigger = list(block)
            bigger[a] = min(2 * block[a], options.block[a])
            if bigger != block and math.prod(bigger) * per_voxel <= min(options.memory_bytes, 1 << 30) / 2:
                block, grown = bigger, True
    return tuple(block)


def peak_bytes(stage: Stage) -> int:
    """Upper bound of what a task of this stage allocates: inputs and temporaries of the deepest point of its chain, its outputs,
    and the buffers that encode one shard."""
    grid, worst = stage.grid, 0
    middle = _largest_block(grid)

    def need(node: Node, write: Box) -> float:
        """Peak while computing `node` over `write`, its output excluded from what is held before the call."""
        held, peak = 0.0, 0.0
        for r, read in boxes_read(node, write, stage.specs):
            if r in stage.target.outputs:
                continue  # just made, and counted as written
            if r in stage.inline:
                peak = max(peak, held + need(stage.inline[r], read))
            else:
                peak = max(peak, held + 2.0 * read.size * _itemsize(stage.specs[r]))  # decoded chunks, then the assembled array
            held += read.size * _itemsize(stage.specs[r])
        read = node.op.read_box(write, grid.shape, grid_spec(node, stage.specs).spacing)
        return max(peak, held + node.op.memory(*_call_specs(node.op, node.inputs, stage.specs)) * read.size + node.op.fixed_memory())

    box = grid.write_box(middle)
    worst = need(stage.target, box)
    written = sum(box.size * _itemsize(s) for s in stage.target.outputs.values() if isinstance(s, ArraySpec))
    if stage.kind == "label":
        written += box.size * 4  # the block's own uint32 labels beside the final ones
    riders = max((need(m, box) for m in stage.riders), default=0.0)
    encode = 1.5 * written
    waiting = 0.0
    if stage.holds_model:  # blocks that are being read or written while another computes
        inputs = sum(read.size * _itemsize(stage.specs[r]) for r, read in boxes_read(stage.target, box, stage.specs))
        waiting = (ACTOR_BLOCKS - 1) * (written + encode + inputs)
    return int(waiting + max(worst + written, written + riders, written + encode))


def _largest_block(grid: Grid) -> int:
    return grid.index(tuple(min(1, n - 1) if n > 2 else 0 for n in grid.counts))


def _itemsize(spec: ArraySpec) -> int:
    import numpy as np

    return np.dtype(spec.dtype).itemsize


def _ordered(stages: list[Stage], graph: Graph) -> list[Stage]:
    """Each stage after those that make what it reads."""
    made_by = {o: s.name for s in stages for o in s.outputs}
    waiting, done, out = list(stages), set(), []
    while waiting:
        for s in waiting:
            if all(made_by.get(r) in done or r in graph.sources for r in s.reads):
                waiting.remove(s)
                done.add(s.name)
                out.append(s)
                break
        else:
            raise PlanError(f"stages wait for each other: {', '.join(s.name for s in waiting)}")
    return out


def _refuse_what_cannot_fit(plan: Plan) -> None:
    limit = plan.options.memory_bytes
    for s in plan.stages:
        if s.memory_bytes > limit:
            block, chunk = plan.options.block, plan.options.chunk
            smaller = tuple(max(c, b // 2 // c * c) for b, c in zip(block, chunk))
            hint = (
                f"Use smaller blocks (--block {','.join(map(str, smaller))}) or allow more (--memory)."
                if smaller != block
                else "Allow more with --memory."
            )
            raise PlanError(
                f"stage '{s.name}' ({s.title}) needs {s.memory_bytes / 1e6:,.0f} MB a task with blocks of {s.grid.block_shape}, "
                f"but a task may use {limit / 1e6:,.0f} MB. {hint}"
            )
