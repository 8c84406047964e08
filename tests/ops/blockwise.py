"""Runs any operator in memory, blockwise on any grid: the harness of the conformance test and of every operator's own test.

    from tests.ops.blockwise import run, spec_of, assert_same
    image = ...                                              # numpy, ZYX
    specs = {"image": spec_of(image, (16, 8, 4))}
    whole = run(op, {"image": image}, specs, block=image.shape)
    assert_same(whole, run(op, {"image": image}, specs, block=(7, 5, 9), seed=1))

Blocks run in shuffled order; inputs are read-only, and half the time a strided view as after a fused filter; partials are pickled
and merged in a random tree whose groups are boxes; whole-axis sweeps get blocks that span their axes. Ports that take several
inputs are keyed 'port.key', in `values` and in `specs`. A surface is given as `SurfaceOf` its labels: the operator gets it cut into
blocks at random. An artefact's result is the union of its blocks' pieces.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vemray.geometry import Box, Grid, Int3, Spacing
from vemray.ops.base import SPATIAL, Analysis, ArraySpec, Artefact, ArtefactSpec, BlockOperator, Composite, Filter, Labeller, Measure, Operator, Site
from vemray.ops.faces import Faces, Surface, SurfaceFaces

ARRAY_KINDS = {"array", "image", "probability", "mask", "labels"}
SPATIAL_KINDS = {*ARRAY_KINDS, "surface"}


@dataclass(frozen=True)
class SurfaceOf:
    """A surface to be: of labels or a mask with their spec."""

    labels: np.ndarray
    spec: ArraySpec
    op: SurfaceFaces = SurfaceFaces()  # noqa: RUF009  frozen

    @property
    def surface_spec(self) -> ArtefactSpec:
        return self.op.output(self.spec)

    def made(self, block: Int3, rng=None) -> Surface:
        """Blocks of at most `block`, at random with an `rng`."""
        if rng is not None:
            block = tuple(int(rng.integers(max(1, min(b, n) // 2), max(1, min(b, n)) + 1)) for b, n in zip(block, self.spec.shape))
        grid, pieces = Grid(self.spec.shape, block), {}
        for i in range(len(grid)):
            site = site_of(self.op, grid, i, (self.spec,))
            piece = self.op(*block_arguments(self.op, {"labels": self.labels}, site, None), site=site)
            if piece.arrays:
                pieces[i] = piece
        first = self.op(np.zeros((1, 1, 1), bool), site=Site((1, 1, 1), self.spec.spacing, Box.of((1, 1, 1)), Box.of((1, 1, 1)), (self.spec,))).entry
        index = {k: np.array([p.entry[k] for p in pieces.values()], v.dtype).reshape(-1, *v.shape) for k, v in first.items()}
        return Surface(self.surface_spec, {"block": np.array(list(pieces), np.int64), **index}, {i: p.arrays for i, p in pieces.items()}.__getitem__)


def spec_of(array: np.ndarray, spacing=(8.0, 8.0, 8.0), kind: str | None = None) -> ArraySpec:
    """Spec of a ZYX array; kind by dtype unless given: bool is a mask, uint64 labels, everything else an image."""
    kind = kind or ("mask" if array.dtype == bool else "labels" if array.dtype == np.uint64 else "image")
    return ArraySpec(tuple(array.shape), array.dtype.name, spacing if isinstance(spacing, Spacing) else Spacing(*spacing), kind)


def run(
    op: Operator,
    values: Mapping[str, Any],
    specs: Mapping[str, ArraySpec],
    grid: Grid | None = None,
    *,
    block: Int3 | None = None,
    seed: int = 0,
    spec: bool = False,
):
    """Run `op` on whole arrays (and tables, scalars) given by port name, cut into `grid` or into blocks of shape `block`; default: one
    block. Filter: array or dict of arrays; Labeller: final uint64 labels; Measure and Analysis: table or scalars; Composite: what
    its last step gives. With `spec=True` returns (value, declared spec)."""
    rng = np.random.default_rng(seed)
    if grid is None:
        shape = own_shape(op, specs)
        grid = Grid(shape, block or shape)
    values = {k: v.made(grid.block_shape, rng) if isinstance(v, SurfaceOf) else v for k, v in values.items()}
    value, declared = _run(op, values, specs, grid, rng)
    return (value, declared) if spec else value


def _run(op, values, specs, grid, rng):
    if isinstance(op, Composite):
        return run_composite(op, values, specs, grid, rng)
    if isinstance(op, Filter):
        return run_filter(op, values, specs, grid, rng), op.output(*call_specs(op, specs))
    if isinstance(op, Labeller):
        first = next(specs[r] for r in _keys(op, specs) if isinstance(specs.get(r), ArraySpec))
        return run_labeller(op, values, specs, grid, rng), first.like("uint64", "labels")
    if isinstance(op, Measure):
        return run_measure(op, values, specs, grid, rng), op.gives
    if isinstance(op, Artefact):
        return run_artefact(op, values, specs, grid, rng), op.output(*call_specs(op, specs))
    if isinstance(op, Analysis):
        return op(*arguments(op, values, lambda v: v)), op.gives
    raise TypeError(f"{type(op).__name__} is no known kind of operator")


def run_filter(op: Filter, values, specs, grid: Grid, rng) -> Any:
    """Every block once, in shuffled order, cropped and put together."""
    call = call_specs(op, specs)
    op.check(*call)
    declared = op.output(*call)
    outputs = {}
    grid = span(grid, op.whole_axes)
    for index in rng.permutation(len(grid)):
        site = site_of(op, grid, int(index), call)
        made = op(*block_arguments(op, values, site, rng), site=site)
        assert isinstance(made, dict) == isinstance(declared, dict), f"{op.name}: one array or several, as declared"
        for key, array in made.items() if isinstance(made, dict) else [("", made)]:
            part = cropped(op, array, site)
            whole = outputs.setdefault(key, np.empty(grid.shape, part.dtype))
            assert whole.dtype == part.dtype, f"{op.name}: dtype {part.dtype} in one block, {whole.dtype} in another"
            whole[site.write.slices] = part
    return outputs if isinstance(declared, dict) else outputs[""]


def run_labeller(op: Labeller, values, specs, grid: Grid, rng) -> np.ndarray:
    """Label every block, merge the evidence, resolve it, map each block's local labels to ids."""
    call = call_specs(op, specs)
    op.check(*call)
    found, sites = {}, {}
    grid = span(grid, op.whole_axes)
    for index in map(int, rng.permutation(len(grid))):
        site = sites[index] = site_of(op, grid, index, call)
        local = op.label(*block_arguments(op, values, site, rng), site=site)
        assert local.labels.dtype == np.uint32 and local.labels.shape == site.write.shape, f"{op.name}: labels are uint32 over the write box"
        assert local.keys.dtype == np.uint64 and int(local.labels.max(initial=0)) <= len(local.keys), f"{op.name}: a uint64 key for each local label"
        found[index] = local
    numbering = merge_tree({i: local.evidence for i, local in found.items()}, grid, rng).resolve()
    keys, ids = numbering.keys, numbering.ids
    assert keys.dtype == ids.dtype == np.uint64 and (keys[1:] > keys[:-1]).all(), f"{op.name}: numbering keys are sorted and unique uint64"
    out = np.zeros(grid.shape, np.uint64)
    for index, local in found.items():
        at = np.searchsorted(keys, local.keys)
        present = np.unique(local.labels)
        for i in present[present > 0] - 1:
            assert at[i] < len(keys) and keys[at[i]] == local.keys[i], f"{op.name}: key {local.keys[i]} of a block is missing in the numbering"
        lut = np.zeros(len(local.keys) + 1, np.uint64)
        if len(keys):
            lut[1:] = ids[np.minimum(at, len(keys) - 1)]
        out[sites[index].write.slices] = lut[local.labels]
    if "markers" in values:
        assert set(np.unique(out)) <= {0, *np.unique(values["markers"])}, f"{op.name}: a marker keeps its id"
    else:
        assert int(out.max(initial=0)) <= numbering.count, f"{op.name}: ids go from 1 to count"
    return out


def run_measure(op: Measure, values, specs, grid: Grid, rng) -> Any:
    """Measure every block, merge, finish: a table or scalars."""
    call = call_specs(op, specs)
    op.check(*call)
    partials = {}
    grid = span(grid, op.whole_axes)
    for index in map(int, rng.permutation(len(grid))):
        site = site_of(op, grid, index, call)
        partials[index] = op.measure(*block_arguments(op, values, site, rng), site=site)
    return op.finish(merge_tree(partials, grid, rng), call)


def run_artefact(op: Artefact, values, specs, grid: Grid, rng) -> dict[str, np.ndarray]:
    """Every block's piece, put together by label, raster index and side: arrays `label`, `faces`, `normals`."""
    call = call_specs(op, specs)
    op.check(*call)
    out, entries = [], []
    for index in map(int, rng.permutation(len(grid))):
        site = site_of(op, grid, index, call)
        piece = op(*block_arguments(op, values, site, rng), site=site)
        entries.append({k: (v.dtype, v.shape) for k, v in piece.entry.items()})
        faces = Faces(**piece.arrays) if piece.arrays else Faces.none()
        out.append((np.repeat(faces.labels, np.diff(faces.starts)), faces.faces, faces.normals))
        owned = (faces.faces[:, :3] >= site.write.start).all() and (faces.faces[:, :3] < site.write.stop).all()
        assert owned and len(faces) == piece.entry["faces"], f"{op.name}: faces of the block's own voxels, counted in its entry"
    assert all(e == entries[0] for e in entries), f"{op.name}: entries of the index are alike in every block"
    label, faces, normals = (np.concatenate(parts) for parts in zip(*out))
    order = np.lexsort((*faces.T[::-1], label))
    return {"label": label[order], "faces": faces[order], "normals": normals[order]}


def run_composite(op: Composite, values, specs, grid: Grid, rng, trace: list | None = None):
    """Expand and run the steps. Returns (value, spec) of the last; `trace` collects (operator, values, specs) of every plain step,
    composites within composites expanded."""
    have, known = {f"in:{k}": v for k, v in values.items()}, {f"in:{k}": v for k, v in specs.items()}
    for k, v in values.items():
        known.setdefault(f"in:{k}", "table" if hasattr(v, "column_names") else "scalars")
    value = declared = None
    steps = op.expand({k: f"in:{k}" for k in values})
    assert steps and steps[-1].name == "", f"{op.name}: the last step of a composite is called ''"
    for step in steps:
        for ref in step.inputs.values():
            assert ref in have, f"{op.name}: step '{step.name}' takes '{ref}', which is neither an input nor an earlier step"
        mine = {k: have[r] for k, r in step.inputs.items()}
        mine_specs = {k: known[r] for k, r in step.inputs.items()}
        if isinstance(step.op, Composite):
            value, declared = run_composite(step.op, mine, mine_specs, grid, rng, trace)
        else:
            if trace is not None:
                trace.append((step.op, mine, mine_specs))
            value, declared = _run(step.op, mine, mine_specs, grid, rng)
        have[step.name], known[step.name] = value, declared
        if isinstance(value, dict) and isinstance(declared, dict):
            have.update({f"{step.name}.{k}": v for k, v in value.items()})
            known.update({f"{step.name}.{k}": s for k, s in declared.items()})
    return value, declared


def plain_steps(op: Operator, values, specs, grid: Grid | None = None, seed: int = 0) -> list[tuple[Operator, dict, dict]]:
    """Every plain operator that `op` runs, with the inputs it gets: [(operator, values, specs)]."""
    if not isinstance(op, Composite):
        return [(op, dict(values), dict(specs))]
    if grid is None:
        shape = next(s.shape for s in specs.values() if isinstance(s, ArraySpec))
        grid = Grid(shape, shape)
    trace: list = []
    run_composite(op, values, specs, grid, np.random.default_rng(seed), trace)
    return trace


# -- pieces ----------------------------------------------------------------------------------------------------------------------


def span(grid: Grid, axes: tuple[int, ...]) -> Grid:
    """The grid with blocks that span the whole volume along `axes`."""
    return Grid(grid.shape, tuple(max(1, n) if a in axes else b for a, (n, b) in enumerate(zip(grid.shape, grid.block_shape))))


def site_of(op: BlockOperator, grid: Grid, index: int, call: tuple) -> Site:
    write = grid.write_box(index)
    spacing = own_spec(op, call).spacing
    read = op.read_box(write, grid.shape, spacing)
    legal = read.contains(write) and Box.of(grid.shape).contains(read)
    assert legal, f"{op.name}: read box {read} must hold the write box {write} and lie in the volume {grid.shape}"
    for axis in op.whole_axes:
        assert read.shape[axis] == grid.shape[axis]
    boxes = {p.name: op.read_box_of(p.name, write, *call) for p in op.ports if p.other_grid}
    return Site(grid.shape, spacing, read, write, call, boxes)


def own_spec(op: Operator, call: tuple) -> ArraySpec | ArtefactSpec:
    """The grid that the operator works on: that of its arrays, or of its output where they lie on others."""
    ports = [p for p in op.ports if set(p.kinds) & SPATIAL_KINDS]
    own = [c for p, c in zip(ports, call) if not p.other_grid]
    return next((s for c in own for s in (c.values() if isinstance(c, dict) else [c]) if isinstance(s, SPATIAL)), None) or op.output(*call)


def own_shape(op: Operator, specs: Mapping[str, Any]) -> Int3:
    """Shape of that grid; (1, 1, 1) for an operator on tables."""
    if any(p.other_grid for p in op.ports):
        return own_spec(op, call_specs(op, specs)).shape
    return next((s.shape for s in specs.values() if isinstance(s, SPATIAL)), (1, 1, 1))


def _keys(op: Operator, given: Mapping[str, Any]) -> list[str]:
    """The keys of `given` in the order of the ports."""
    return [k for p in op.ports for k in given if k.partition(".")[0] == p.name]


def arguments(op: Operator, values: Mapping[str, Any], take) -> list[Any]:
    """Call arguments in port order: `take(value)` of each; a dict for a many-port; None for an optional port left out."""
    unknown = [k for k in values if k.partition(".")[0] not in {p.name for p in op.ports}]
    assert not unknown, f"{op.name} has no input '{unknown[0]}'"
    missing = [p.name for p in op.ports if not p.optional and not p.many and p.name not in values]
    assert not missing, f"{op.name} needs the input '{missing[0]}'"

    def one(p):
        if p.many:
            return {k.partition(".")[2]: take(values[k]) for k in values if k.partition(".")[0] == p.name}
        return take(values[p.name]) if p.name in values else None

    return [one(p) for p in op.ports]


def call_specs(op: Operator, specs: Mapping[str, Any]) -> tuple:
    """Specs for `output`, `check`, `memory` and `finish`: of array and surface ports in port order, None for one left out; tables are left out."""
    only_tables = {p.name for p in op.ports if not set(p.kinds) & SPATIAL_KINDS}
    left_out = {p.name: None for p in op.ports if not p.many and p.name not in specs}
    ports = arguments(op, {**specs, **left_out}, lambda s: s)
    return tuple(s for p, s in zip(op.ports, ports) if p.name not in only_tables)


def block_arguments(op: Operator, values: Mapping[str, Any], site: Site, rng) -> list[Any]:
    ports = {p.name: p for p in op.ports}

    def take(key):
        value, port = values[key], ports[key.partition(".")[0]]
        if port.grid_only or not isinstance(value, np.ndarray) or value.ndim != 3:
            return None if port.grid_only else value
        part = value[site.boxes.get(key, site.read).slices]
        if rng is None or rng.random() < 0.5:
            part = part.copy()
        part.flags.writeable = False
        return part

    return arguments(op, {key: key for key in values}, take)


def cropped(op: Operator, array: np.ndarray, site: Site) -> np.ndarray:
    if array.shape == site.write.shape:
        return array
    wanted = f"{op.name} gave {array.shape}; it must cover the read box {site.read.shape} or the write box {site.write.shape}"
    assert array.shape == site.read.shape, wanted
    return array[site.crop]


def merge_tree(partials: Mapping[int, Any], grid: Grid, rng) -> Any:
    """Merge all blocks' partials in a random tree: the grid is cut at random planes down to single blocks, so that every merge joins
    two boxes that adjoin. Partials are pickled on the way, as between processes."""

    def merged(start: Int3, stop: Int3):
        shape = [b - a for a, b in zip(start, stop)]
        if math.prod(shape) == 1:
            return pickle.loads(pickle.dumps(partials[grid.index(start)]))
        axis = int(rng.choice([a for a in range(3) if shape[a] > 1]))
        cut = int(rng.integers(start[axis] + 1, stop[axis]))
        lower = merged(start, tuple(cut if a == axis else v for a, v in enumerate(stop)))
        upper = merged(tuple(cut if a == axis else v for a, v in enumerate(start)), stop)
        out = lower.merge(upper, axis)
        assert out is not None, "merge returns the merged partial"
        return pickle.loads(pickle.dumps(out)) if rng.random() < 0.25 else out

    return merged((0, 0, 0), grid.counts)


def assert_same(a: Any, b: Any, rtol: float = 1e-9, where: str = "") -> None:
    """Arrays and labels equal bit for bit (NaN equals NaN); numbers in tables and scalars to `rtol` relative, integers exactly."""
    if isinstance(a, np.ndarray):
        described = f"{where}{a.dtype} {a.shape} against {getattr(b, 'dtype', type(b))} {getattr(b, 'shape', '')}"
        assert isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape, described
        same = a == b
        if a.dtype.kind == "f":
            same |= np.isnan(a) & np.isnan(b)
        if not same.all():
            at = tuple(int(v) for v in np.argwhere(~same)[0])
            raise AssertionError(f"{where}{np.count_nonzero(~same)} of {a.size} values differ, first at {at}: {a[at]!r} against {b[at]!r}")
    elif hasattr(a, "column_names"):
        assert a.schema.equals(b.schema), f"{where}schemas differ: {a.schema} against {b.schema}"
        assert a.num_rows == b.num_rows, f"{where}{a.num_rows} rows against {b.num_rows}"
        for name in a.column_names:
            assert_same(a[name].to_pylist(), b[name].to_pylist(), rtol, f"{where}column {name}: ")
    elif isinstance(a, Mapping):
        assert isinstance(b, Mapping) and list(a) == list(b), f"{where}keys {list(a)} against {list(b)}"
        for k in a:
            assert_same(a[k], b[k], rtol, f"{where}{k}: ")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), f"{where}{len(a)} values against {len(b)}"
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, rtol, f"{where}[{i}] ")
    elif isinstance(a, float) and isinstance(b, float):
        assert (math.isnan(a) and math.isnan(b)) or a == b or abs(a - b) <= rtol * max(abs(a), abs(b)), f"{where}{a!r} against {b!r}"
    else:
        assert type(a) is type(b) and a == b, f"{where}{a!r} against {b!r}"
