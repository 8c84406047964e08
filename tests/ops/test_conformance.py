"""The laws of every operator, from the registry: registering an operator puts it under test, with no line here.

1 blockwise equals whole; 2 what comes out is what was declared; 3 pure: inputs untouched, any order, twice the same;
5 recipe -> operator -> recipe, and pickling; 6 measured peak memory <= declared; 7 agrees with a whole-array library function
(oracles.py). Law 4, serial equals Ray, is the runner's test.

Inputs are made from the kinds of the ports. An operator that needs others defines
`example_inputs(self, rng, shape, spacing) -> (values, specs)` by port name, or, for its tables and scalars alone,
`example_tables(self, rng, shape, spacing) -> values`; one that takes a table or scalars and says nothing gets those that reach it
in a composite that uses it. One that can be tested in no way fails.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import gc
import importlib
import itertools
import json
import math
import pickle
import pkgutil
import tracemalloc
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from scipy import ndimage

import vemray.ops
from tests.ops import oracles
from tests.ops.blockwise import SPATIAL_KINDS, SurfaceOf, arguments, assert_same, call_specs, own_shape, own_spec, plain_steps, run, spec_of
from vemray.errors import InputError
from vemray.geometry import Box
from vemray.ops import OPERATORS, build, parameters
from vemray.ops.base import (
    Analysis,
    Approximate,
    ArraySpec,
    Artefact,
    ArtefactSpec,
    BlockOperator,
    Composite,
    Exact,
    Filter,
    Labeller,
    Measure,
    Operator,
    Port,
    Site,
)

ISO, ODD, FLAT = (8.0, 8.0, 8.0), (50.0, 4.6, 4.6), (16.0, 8.0, 4.0)
#: name -> (shape, spacing in nm, block, what fills the inputs)
SCENES = {
    "undivided": ((19, 23, 26), ISO, (8, 9, 7), "blobs"),
    "anisotropic": ((11, 22, 29), ODD, (4, 9, 12), "noise"),
    "one slab": ((17, 14, 21), FLAT, (17, 14, 6), "blobs"),
    "thin z": ((1, 21, 25), FLAT, (3, 8, 9), "blobs"),
    "thin y": ((20, 1, 23), ODD, (9, 1, 5), "noise"),
    "thin x": ((22, 18, 1), ISO, (7, 8, 4), "blobs"),
    "block beyond volume": ((9, 8, 10), FLAT, (4, 64, 64), "noise"),
    "single voxels": ((3, 4, 2), ISO, (1, 1, 1), "noise"),
    "empty": ((9, 10, 11), ISO, (4, 5, 6), "empty"),
    "full": ((9, 10, 11), ODD, (4, 5, 6), "full"),
}
VARIANTS = {
    "image": [("image", np.uint8), ("image", np.float32), ("image", np.uint16)],
    "probability": [("probability", np.uint8)],
    "mask": [("mask", np.bool_)],
    "labels": [("labels", np.uint64)],
}
#: of glibc's mallopt
MMAP_THRESHOLD = -3
#: operators of other packages (models) are tested there, by `laws`
OURS = {name: cls for name, cls in OPERATORS.items() if cls.__module__.startswith("vemray.ops.")}
CASES = [pytest.param(op, id=f"{name}-{i}") for name, cls in sorted(OURS.items()) for i, op in enumerate(cls.examples())]
every = pytest.mark.parametrize("op", CASES)


# -- inputs ----------------------------------------------------------------------------------------------------------------------


def field(rng, shape, fill: str) -> np.ndarray:
    """Float field in 0..1: smooth blobs with specks, plain noise, a fifth of the voxels, every second voxel, or all 0 or 1."""
    if fill in ("empty", "full"):
        return np.full(shape, float(fill == "full"))
    if fill == "chessboard":
        return np.indices(shape).sum(0) % 2.0
    noise = rng.random(shape)
    if fill == "specks":
        return np.where(noise < 0.2, 1 - noise, 0.5 * noise)
    if fill == "noise":
        return noise
    if min(shape) > 64:  # the smooth field wraps around, so large volumes are tiles of a small one
        return np.tile(field(rng, (32, 32, 32), fill), [-(-n // 32) for n in shape])[tuple(slice(n) for n in shape)]
    smooth = ndimage.gaussian_filter(noise, [min(2.0, n / 4) for n in shape], mode="wrap")
    smooth = (smooth - smooth.min()) / max(1e-9, np.ptp(smooth))
    return np.where(rng.random(shape) < 0.03, noise, smooth)


def make(rng, shape, kind: str, dtype, fill: str) -> np.ndarray:
    f = field(rng, shape, fill)
    if kind == "mask":
        return f > 0.5
    if kind == "labels":
        parts, n = ndimage.label(f > 0.5)
        ids = np.concatenate(
            [[0], rng.choice(np.array([3, 7, 2**33, 2**40 + 1, 2**63 + 11], np.uint64), n) + rng.permutation(n).astype(np.uint64) * np.uint64(64)]
        )
        return ids.astype(np.uint64)[parts]
    if np.dtype(dtype).kind == "f":
        return ((f - 0.3) * 200).astype(dtype)
    return np.round(f * np.iinfo(dtype).max).astype(dtype)


def variants(port: Port) -> list[tuple[str, type]]:
    if "surface" in port.kinds:
        return [("surface", np.uint64)]
    kinds = [k for k in ("image", "probability", "mask", "labels") if port.accepts(k)]
    return [v for k in kinds for v in VARIANTS[k]]


def inputs(op: Operator, rng, shape, spacing, fill: str, variant: int) -> tuple[dict, dict]:
    """Values and specs by port name. `variant` goes through the kinds and dtypes that the ports accept."""
    if hasattr(op, "example_inputs"):
        return op.example_inputs(rng, shape, spacing)
    tables = op.example_tables(rng, shape, spacing) if hasattr(op, "example_tables") else {}
    if any(not p.optional and not set(p.kinds) & SPATIAL_KINDS and p.name not in tables for p in op.ports):
        return inputs_of_composite(op, rng, shape, spacing, fill, variant)
    values, specs = dict(tables), {}
    rest = variant
    for port in op.ports:
        if not set(port.kinds) & SPATIAL_KINDS:
            continue
        rest, choice = divmod(rest, choices(port))
        if choice == len(variants(port)):
            continue  # an optional port left out
        kind, dtype = variants(port)[choice]
        for key in (f"{port.name}.one", f"{port.name}.two") if port.many else (port.name,):
            values[key] = make(rng, shape, "labels" if kind == "surface" else kind, dtype, fill)
            specs[key] = spec_of(values[key], spacing, "labels" if kind == "surface" else kind)
            if kind == "surface":
                values[key] = SurfaceOf(values[key], specs[key])
                specs[key] = values[key].surface_spec
    return values, specs


def port_keys(op: Operator) -> list[str]:
    """Names of all inputs, as `expand` gets them."""
    if hasattr(op, "example_inputs"):
        return list(op.example_inputs(np.random.default_rng(0), (4, 5, 6), ISO)[0])
    return [key for p in op.ports for key in ((f"{p.name}.one", f"{p.name}.two") if p.many else (p.name,))]


def choices(port: Port) -> int:
    return len(variants(port)) + port.optional


def inputs_of_composite(op: Operator, rng, shape, spacing, fill: str, variant: int) -> tuple[dict, dict]:
    """What reaches an operator of this class inside a composite that uses it."""
    for whole in users(type(op)):
        try:
            values, specs = inputs(whole, rng, shape, spacing, fill, variant)
            steps = plain_steps(whole, values, specs)
        except InputError:
            continue
        for part, part_values, part_specs in steps:
            if type(part) is type(op):
                return part_values, {k: s for k, s in part_specs.items() if isinstance(s, ArraySpec)}
    pytest.fail(
        f"'{op.name}' takes a table or scalars, and no composite's examples pass it any. "
        f"Give {type(op).__name__} a method example_inputs(self, rng, shape, spacing) -> (values, specs), or use it in a composite."
    )


@functools.cache
def users(cls: type[Operator]) -> list[Operator]:
    """Examples of composites that run an operator of this class."""

    def runs(op: Operator) -> bool:
        if not isinstance(op, Composite):
            return type(op) is cls
        return any(runs(s.op) for s in op.expand(dict.fromkeys(port_keys(op), "in")))

    out = []
    for other in OPERATORS.values():
        if issubclass(other, Composite) and other is not cls:
            for example in other.examples():
                try:
                    if runs(example):
                        out.append(example)
                except InputError:
                    continue
    return out


@functools.cache
def usable(op: Operator) -> tuple[int, ...]:
    """The variants of inputs that the operator takes, at most 12; it may refuse some (floats, say) by an InputError, but not all."""
    total = math.prod(choices(p) for p in op.ports if set(p.kinds) & SPATIAL_KINDS)
    found, refused = {}, ""
    for v in range(0, total, max(1, total // 12)):
        try:
            values, specs = inputs(op, np.random.default_rng(v), (4, 5, 6), ISO, "noise", v)
            same = repr([(k, s.kind, getattr(s, "dtype", "")) for k, s in specs.items() if not isinstance(s, str)])
            if same not in found:
                run(op, values, specs)
                found[same] = v
        except InputError as e:
            refused = str(e)
    assert found, f"'{op.name}' refuses every input that its ports accept: {refused}"
    return tuple(found.values())


def scene_inputs(op: Operator, scene: str):
    shape, spacing, block, fill = SCENES[scene]
    usables = usable(op)
    at = list(SCENES).index(scene) * 5 + zlib.crc32(repr(op).encode())
    rng = np.random.default_rng(zlib.crc32(f"{op.name} {scene}".encode()))
    values, specs = inputs(op, rng, shape, spacing, fill, usables[at % len(usables)])
    return values, specs, block


def fingerprint(values) -> dict[str, int]:
    return {k: zlib.crc32(np.ascontiguousarray(v).tobytes()) for k, v in values.items() if isinstance(v, np.ndarray)}


# -- the laws --------------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("scene", SCENES)
def test_blockwise_equals_whole(op, scene):
    """Laws 1, 2, 3 and 7 on one scene."""
    values, specs, block = scene_inputs(op, scene)
    before = fingerprint(values)
    whole, declared = run(op, values, specs, spec=True)
    as_declared(op, whole, declared, own_shape(op, specs))
    if isinstance(op, Labeller) and "markers" not in values:  # a marker keeps its id
        assert_canonical(whole)
    for oracle in oracles.ORACLES.get(op.name, ()):
        if oracle.when(op, values):
            oracles.check(oracle, whole, op, values, next(iter(specs.values())))
    if isinstance(op, Analysis):
        assert_same(whole, run(op, values, specs), rtol=0)
    elif isinstance(op.contract, Exact):
        once = run(op, values, specs, block=block, seed=1)
        assert_same(whole, once, where=f"blocks of {block} against the whole volume: ")
        assert_same(once, run(op, values, specs, block=block, seed=2), where="the same blocks in another order: ")
    else:
        assert isinstance(op.contract, Approximate) and op.contract.why.strip(), f"'{op.name}' is not exact and must say why"
        once = run(op, values, specs, block=block, seed=1)
        assert_same(once, run(op, values, specs, block=block, seed=2), where="the same blocks in another order: ")
    assert fingerprint(values) == before, f"'{op.name}' wrote into its inputs"


def as_declared(op: Operator, value, declared, shape) -> None:
    if isinstance(declared, ArtefactSpec):
        assert declared.shape == tuple(shape) and value["faces"].shape == (len(value["label"]), 4)
    elif isinstance(declared, dict) and not hasattr(declared, "column_names"):
        assert list(value) == list(declared)
        for k in declared:
            as_declared(op, value[k], declared[k], shape)
    elif isinstance(declared, ArraySpec):
        assert value.shape == declared.shape == tuple(shape)
        assert value.dtype.name == declared.dtype, f"'{op.name}' declared {declared.dtype} and gave {value.dtype}"
        assert {
            "mask": value.dtype == np.bool_,
            "labels": value.dtype.kind == "u",
            "probability": value.dtype in (np.uint8, np.float16, np.float32),
        }.get(declared.kind, True)
    elif declared == "table":
        assert hasattr(value, "column_names"), f"'{op.name}' declared a table and gave {type(value).__name__}"
    else:
        assert declared == "scalars" and json.loads(json.dumps(value)) is not None, f"'{op.name}' declared scalars"


def assert_canonical(labels: np.ndarray) -> None:
    """Ids are 1..N in raster order of each object's first voxel."""
    ids, first = np.unique(labels, return_index=True)
    first = first[ids > 0]
    assert np.array_equal(ids[ids > 0], np.arange(1, len(first) + 1)), "ids are 1..N"
    assert (np.diff(first) > 0).all(), "ids are in raster order of the first voxels"


@every
def test_recipe_and_pickle(op):
    """Law 5."""
    dumped = json.loads(json.dumps(parameters(op)))
    assert build(op.name, dumped) == op
    assert pickle.loads(pickle.dumps(op)) == op
    assert hash(op) == hash(build(op.name, dumped))
    if isinstance(op, Composite):
        for step in op.expand(dict.fromkeys(port_keys(op), "in")):
            assert build(step.op.name, json.loads(json.dumps(parameters(step.op)))) == step.op


@every
def test_documented(op):
    """What `vemray ops` prints is there."""
    cls = type(op)
    assert (cls.__doc__ or "").strip() and not cls.__doc__.startswith(f"{cls.__name__}("), f"'{op.name}' has no docs"
    for f in dataclasses.fields(cls):
        name = f.name
        assert "description=" in str(f.type) or any(getattr(m, "description", None) for m in getattr(f.type, "__metadata__", ())), (
            f"'{op.name}': parameter '{name}' has no description"
        )


@pytest.mark.parametrize("op", [c for c in CASES if isinstance(c.values[0], BlockOperator)])
def test_memory(op):
    """Law 6: one call on a read box of 96^3, whose arrays are strided as after a fused filter, for the smallest and the
    largest type of input; and on the many small things that noise makes. A chessboard of labels, one a voxel, is left out."""
    by_size = sorted(
        usable(op),
        key=lambda v: sum(
            np.dtype(getattr(s, "dtype", "u1")).itemsize for s in inputs(op, np.random.default_rng(v), (2, 2, 2), ISO, "noise", v)[1].values()
        ),
    )
    scenes = [*((v, "blobs") for v in {by_size[0], by_size[-1]}), (by_size[-1], "specks")]
    if not any(p.accepts("labels") or p.accepts("surface") for p in op.ports):
        scenes.append((by_size[-1], "chessboard"))
    for variant, fill in scenes if not hasattr(op, "example_inputs") else scenes[:1]:
        declared, traced, resident = measured_memory(op, variant, fill=fill)
        if resident > declared + 4:  # in a process of its own, whose heap no test before has left holes in
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                declared, traced, resident = fresh.submit(measured_memory, op, variant, fill=fill).result()
        assert traced <= declared + 2 and resident <= declared + 4, (
            f"'{op.name}' on {fill} declares {declared:.1f} bytes a voxel of its read box, but needs {max(traced, resident):.1f} "
            f"(numpy and numba {traced:.1f}, resident memory {resident:.1f})"
        )


def measured_memory(op: BlockOperator, variant: int, shape=(96, 96, 96), fill: str = "blobs") -> tuple[float, float, float]:
    """Bytes per voxel of the read box: declared; allocated by numpy and numba (tracemalloc); and the rise of the kernel's high-water
    mark of resident memory, which also holds what C++ allocates (cc3d, edt), 0 where /proc does not let it be reset."""

    def call(shape):
        values, specs = inputs(op, np.random.default_rng(5), shape, ISO, fill, variant)
        values = {k: strided(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
        values = {k: v.made(shape) if isinstance(v, SurfaceOf) else v for k, v in values.items()}
        spec_tuple = call_specs(op, specs)
        shape = own_shape(op, specs)
        box = Box.of(shape)
        boxes = {p.name: Box.of(specs[p.name].shape) for p in op.ports if p.other_grid}
        site = Site(shape, own_spec(op, spec_tuple).spacing, box, box, spec_tuple, boxes)
        args = arguments(op, values, lambda v: v)
        method = op if isinstance(op, Filter | Artefact) else op.label if isinstance(op, Labeller) else op.measure
        return lambda: method(*args, site=site), op.memory(*spec_tuple) + op.fixed_memory() / box.size, box.size

    call((12, 13, 14))[0]()  # imports and compiles
    run_once, declared, voxels = call(shape)
    gc.collect()
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(
            MMAP_THRESHOLD, 1 << 17
        )  # arrays of their own pages: holes in the allocator's heap, left by tests before, are no need of this one
        libc.malloc_trim(0)  # or freed memory that the allocator keeps would hide what is taken from it
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        resident_before = resident("VmRSS")
    except (OSError, AttributeError):
        resident_before = math.inf
    tracemalloc.start()
    try:
        traced_before = tracemalloc.get_traced_memory()[0]
        run_once()
        traced = tracemalloc.get_traced_memory()[1] - traced_before
    finally:
        tracemalloc.stop()
    return declared, traced / voxels, max(0.0, resident("VmHWM") - resident_before) / voxels


def resident(key: str) -> float:
    """Resident memory of this process now (VmRSS) or at most (VmHWM), bytes; 0 where /proc does not say."""
    try:
        with open("/proc/self/status") as f:
            return next((int(line.split()[1]) * 1024 for line in f if line.startswith(key + ":")), 0)
    except OSError:
        return 0


def strided(array: np.ndarray) -> np.ndarray:
    """The same values, cut out of a larger array."""
    wide = np.zeros(tuple(n + 2 for n in array.shape), array.dtype)
    view = wide[1:-1, 1:-1, 1:-1]
    view[...] = array
    view.flags.writeable = False
    return view


def laws(op: Operator) -> None:
    """Every law on one operator: for operators that live outside vemray.ops."""
    for scene in SCENES:
        test_blockwise_equals_whole(op, scene)
    test_recipe_and_pickle(op)
    test_documented(op)
    if isinstance(op, BlockOperator):
        test_memory(op)


def test_registry_is_tested():
    """Every family is imported by vemray.ops, and every operator has examples and a kind that the harness runs."""
    for module in pkgutil.iter_modules(vemray.ops.__path__):
        importlib.import_module(f"vemray.ops.{module.name}")
    late = {n for n, c in OPERATORS.items() if c.__module__.startswith("vemray.ops.")} - set(OURS)
    assert not late, f"{late} are registered, but vemray/ops/__init__.py does not import their modules"
    for name, cls in OURS.items():
        assert cls.examples(), f"'{name}' has no examples: it is not tested"
        assert issubclass(cls, Filter | Labeller | Measure | Artefact | Analysis | Composite), f"'{name}' is of no known kind"
        assert isinstance(cls.contract, Exact | Approximate)
    unknown = set(oracles.ORACLES) - set(OURS)
    assert not unknown, f"oracles for operators that do not exist: {unknown}"


# -- the laws themselves: each must notice an operator that breaks it -----------------------------------------------------------------


class Broken(Filter):
    """Sum of a voxel and the next along x: needs one voxel of halo."""

    name = "broken"

    def halo(self, spacing):
        return (0, 0, 1)

    def output(self, image):
        return image.like(np.int64, "image")

    def memory(self, image):
        return 24

    def __call__(self, image, *, site):
        out = image.astype(np.int64)
        out[:, :, :-1] += image[:, :, 1:].astype(np.int64)
        return out


class ShortHalo(Broken):
    def halo(self, spacing):
        return (0, 0, 0)


class KnowsTheBlock(Broken):
    def __call__(self, image, *, site):
        return image.astype(np.int64) - int(image[site.crop].min())


class OtherType(Broken):
    def output(self, image):
        return image.like(np.int32, "image")


class WritesInputs(Broken):
    def __call__(self, image, *, site):
        image[0] = 0
        return image.astype(np.int64)


class Counts(Broken):
    calls = itertools.count()

    def __call__(self, image, *, site):
        return image.astype(np.int64) + next(self.calls)


class SaysTooLittle(Broken):
    def memory(self, image):
        return 4


def test_an_honest_operator_passes():
    for scene in SCENES:
        test_blockwise_equals_whole(Broken(), scene)
    test_memory(Broken())


@pytest.mark.parametrize(
    "cls,error",
    [(ShortHalo, AssertionError), (KnowsTheBlock, AssertionError), (OtherType, AssertionError), (WritesInputs, ValueError), (Counts, AssertionError)],
)
def test_a_broken_operator_is_caught(cls, error):
    with pytest.raises(error):
        test_blockwise_equals_whole(cls(), "undivided")


def test_undeclared_memory_is_caught():
    with pytest.raises(AssertionError, match="declares 4"):
        test_memory(SaysTooLittle())


def test_an_operator_that_cannot_be_tested_fails():
    class Lost(Broken):
        ports = (Port("image"), Port("table", ("table",)))

    with pytest.raises(pytest.fail.Exception, match="no composite's examples pass it any"):
        test_blockwise_equals_whole(Lost(), "undivided")
