"""What an operator is: a frozen dataclass of parameters in physical units that works on numpy arrays.

Operators do no I/O and know nothing of blocks in flight, Ray or plans. They are told where their arrays lie (`Site`) and
must return the same values however the volume was cut: *blockwise equals whole*.

    kind       gets                          gives
    Filter     arrays over a read box        an array over the write box
    Labeller   arrays over a read box        labels of the write box, plus Evidence that stitches them to the neighbours'
    Measure    arrays over a read box        a Partial; `finish` turns the merged Partial into a table or scalars
    Artefact   arrays over a read box        a Piece: the block's own file, with its entry in the index of all files
    Analysis   tables                        a table
    Composite  nothing                       expands into steps of the other kinds
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from vemray.errors import RecipeError, nearest
from vemray.geometry import ArraySpec, ArtefactSpec, Box, Int3, Spacing

#: what a port may be fed with; "array" is any of the four array kinds. A surface comes as a `Surface` (ops/faces.py), read as it is asked for
PortKind = Literal["array", "image", "probability", "mask", "labels", "table", "scalars", "surface"]
#: specs of what lies in a volume
SPATIAL = (ArraySpec, ArtefactSpec)


@dataclass(frozen=True)
class Site:
    """Where the arrays of one call lie. All boxes are global voxel coordinates (ZYX); `read` is clipped to the volume, so an
    array's edge is the volume's true edge exactly where the box touches it."""

    shape: Int3
    spacing: Spacing
    read: Box
    write: Box
    inputs: tuple[ArraySpec, ...] = ()
    #: where the arrays of ports on other grids lie, by port, in voxels of their own grids
    boxes: Mapping[str, Box] = field(default_factory=dict)

    @property
    def crop(self) -> tuple[slice, slice, slice]:
        """Slices that cut the write box out of an array over the read box."""
        return self.write.within(self.read).slices

    def linear(self, zyx: np.ndarray) -> np.ndarray:
        """Global raster index (uint64) of global voxel coordinates (n, 3)."""
        _, ny, nx = self.shape
        zyx = np.asarray(zyx, np.uint64)
        return (zyx[..., 0] * np.uint64(ny) + zyx[..., 1]) * np.uint64(nx) + zyx[..., 2]

    @classmethod
    def whole(cls, spec: ArraySpec, *others: ArraySpec) -> Site:
        box = Box.of(spec.shape)
        return cls(spec.shape, spec.spacing, box, box, (spec, *others))


@dataclass(frozen=True)
class Port:
    """A named input of an operator. `kinds` are accepted; `optional` ports may be left out (the call then gets None)."""

    name: str
    kinds: tuple[PortKind, ...] = ("array",)
    optional: bool = False
    doc: str = ""
    #: a port that takes several inputs by name (a mapping in the recipe); the call gets a dict name -> value
    many: bool = False
    #: its array may lie on other voxels than the operator works on; `BlockOperator.read_box_of` says what is read of it
    other_grid: bool = False
    #: only its shape, voxel size and origin are used: it is never read, and the call gets None
    grid_only: bool = False

    def accepts(self, kind: str) -> bool:
        return kind in self.kinds or ("array" in self.kinds and kind in ("image", "probability", "mask", "labels"))


@dataclass(frozen=True)
class Exact:
    """Blockwise equals whole, value for value."""


@dataclass(frozen=True)
class Approximate:
    """The operator depends on how the volume is cut; the run reports its seams. `why` is shown to the user."""

    why: str


@runtime_checkable
class Partial(Protocol):
    """An accumulator that merges. `upper` adjoins `self` on its upper side along `axis` (0, 1, 2); together they are a box.
    Merging is associative in every order of a tree over the grid. May mutate and return self. Must pickle."""

    def merge(self, upper: Any, axis: int) -> Any: ...


@dataclass(frozen=True)
class Numbering:
    """How a labeller's keys become final ids. `keys` (uint64, sorted, unique) and `ids` (uint64, same length, 0 drops)."""

    keys: np.ndarray
    ids: np.ndarray
    count: int


class Evidence(Partial, Protocol):
    def resolve(self) -> Numbering: ...


@dataclass
class LocalLabels:
    """One block's own labelling. `labels`: uint32 over the write box, 0 background, i > 0 has the global key `keys[i-1]`
    (uint64, unique over the volume and independent of the blocks, such as the global raster index of a defining voxel)."""

    labels: np.ndarray
    keys: np.ndarray
    evidence: Evidence


@dataclass(frozen=True)
class Operator:
    """Base of all operators. Subclasses are frozen dataclasses whose fields are the recipe's parameters."""

    name: ClassVar[str] = ""  # set by @register
    ports: ClassVar[tuple[Port, ...]] = (Port("image"),)
    contract: ClassVar[Exact | Approximate] = Exact()
    #: raise it when the same parameters give new values: it is part of the content key
    version: ClassVar[int] = 1
    #: which step of the published workflow it serves, shown by `vemray ops`
    serves: ClassVar[str] = ""

    @classmethod
    def examples(cls) -> Sequence[Operator]:
        """Parameter sets that the conformance test runs."""
        return [cls()]

    def files(self) -> tuple[str, ...]:
        """Paths of files that parametrise the operator (a model): their hashes enter the content key."""
        return ()

    def facts(self) -> dict[str, Any]:
        """What beside the parameters decides the values and enters the content key: device class, precision, threads."""
        return {}


@dataclass(frozen=True)
class BlockOperator(Operator):
    """An operator that sees arrays of a block."""

    #: None, or the axes along which a read box must span the whole volume (whole-axis sweeps)
    whole_axes: ClassVar[tuple[int, ...]] = ()

    def halo(self, spacing: Spacing) -> Int3:
        """Voxels needed beyond the write box on each side, ZYX."""
        return (0, 0, 0)

    def read_box(self, write: Box, shape: Int3, spacing: Spacing) -> Box:
        """What must be read to compute `write`: by default grown by the halo and clipped to the volume."""
        return write.grow(self.halo(spacing)).clip(shape)

    def read_box_of(self, port: str, write: Box, *inputs: ArraySpec) -> Box:
        """The voxels of a port on another grid that `write` depends on, in that grid. `inputs` as for `memory`."""
        raise NotImplementedError(f"{type(self).__name__} must say what it reads at '{port}'")

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        """The block this operator works best in, given the one asked for; a multiple of `chunk`. Changes no result."""
        return block

    def memory(self, *inputs: ArraySpec) -> float:
        """Upper bound of the bytes a call allocates, per voxel of the read box: its output and temporaries, not its inputs."""
        raise NotImplementedError(f"{type(self).__name__} must declare its memory")

    def fixed_memory(self) -> int:
        """Upper bound of the bytes that a call holds whatever the size of its block, such as what it keeps of a surface that it reads."""
        return 0

    def rows(self) -> dict[str, tuple[str, str]]:
        """Table ports of which a block needs only the rows of its own labels: port -> (port of the labels, column that holds them). The call
        then gets those rows, or more."""
        return {}

    def check(self, *inputs: ArraySpec) -> None:
        """Raise RecipeError when these inputs cannot be used with these parameters. Called while planning."""


@dataclass(frozen=True)
class Filter(BlockOperator):
    #: True for operators whose first call is dear (they hold a model): they run in actors and are never fused
    holds_model: ClassVar[bool] = False

    def output(self, *inputs: ArraySpec) -> ArraySpec | dict[str, ArraySpec]:
        """The output's spec; a dict for several outputs, which a recipe names as `step.key`."""
        raise NotImplementedError

    def __call__(self, *arrays: np.ndarray, site: Site) -> np.ndarray | dict[str, np.ndarray]:
        """`arrays` cover `site.read` (scalars and tables come as given). Returns an array over `site.read`, which the caller crops, or over
        `site.write`. Never writes into its inputs."""
        raise NotImplementedError


@dataclass(frozen=True)
class Labeller(BlockOperator):
    #: cheap labellers are run again in pass 2 instead of keeping pass 1's labels in scratch
    cheap: ClassVar[bool] = False

    def label(self, *arrays: np.ndarray, site: Site) -> LocalLabels:
        raise NotImplementedError


@dataclass(frozen=True)
class Measure(BlockOperator):
    gives: ClassVar[Literal["table", "scalars"]] = "table"

    def measure(self, *arrays: np.ndarray, site: Site) -> Partial:
        raise NotImplementedError

    def finish(self, partial: Partial, inputs: tuple[ArraySpec, ...]):
        """pyarrow.Table, or a JSON-able dict of scalars."""
        raise NotImplementedError


@dataclass(frozen=True)
class Piece:
    """What an Artefact makes of one block. `arrays` go into the block's file; without any there is no file. `entry`: small arrays, of the
    same names, types and shapes in every block, stacked over the blocks that have a file into the index."""

    arrays: dict[str, np.ndarray]
    entry: dict[str, np.ndarray]


@dataclass(frozen=True)
class Artefact(BlockOperator):
    def output(self, *inputs: ArraySpec) -> ArtefactSpec:
        raise NotImplementedError

    def __call__(self, *arrays: np.ndarray, site: Site) -> Piece:
        """What belongs to the voxels of `site.write`. The union over the blocks must not depend on how they were cut."""
        raise NotImplementedError


@dataclass(frozen=True)
class Analysis(Operator):
    ports: ClassVar[tuple[Port, ...]] = (Port("table", ("table",)),)
    gives: ClassVar[Literal["table", "scalars"]] = "table"

    def __call__(self, *tables):
        """pyarrow tables (scalars, surfaces) in, one table out."""
        raise NotImplementedError


@dataclass(frozen=True)
class Step:
    """One node of an expanded composite: `inputs` maps port names to names of steps; names that start with '.' are the
    composite's own steps."""

    name: str
    op: Operator
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Composite(Operator):
    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        """Steps in order; the last one's name is '' and is the composite's output. Others are called '.something'."""
        raise NotImplementedError


OPERATORS: dict[str, type[Operator]] = {}


def register(name: str, *, hidden: bool = False) -> Callable[[type[Operator]], type[Operator]]:
    """Class decorator that puts an operator into the recipe schema, `vemray ops`, the docs table and the conformance test.
    `hidden` operators are parts of composites: tested like all, not offered in recipes."""

    def wrap(cls):
        if name in OPERATORS:
            raise ValueError(f"an operator called '{name}' is registered already ({OPERATORS[name].__module__})")
        cls.name, cls.hidden = name, hidden
        OPERATORS[name] = cls
        return cls

    return wrap


@functools.lru_cache(maxsize=1)
def load_plugins() -> None:
    """Operators of others: modules named in VEMRAY_PLUGINS (comma separated) and entry points of the group 'vemray.operators'."""
    import importlib
    import importlib.metadata
    import os

    for module in filter(None, os.environ.get("VEMRAY_PLUGINS", "").split(",")):
        importlib.import_module(module.strip())
    for point in importlib.metadata.entry_points(group="vemray.operators"):
        point.load()


def find(name: str) -> type[Operator]:
    load_plugins()
    if name not in OPERATORS:
        offered = [n for n, c in OPERATORS.items() if not c.hidden]
        raise RecipeError(f"there is no operator '{name}'.{nearest(name, offered)} `vemray ops` lists them.")
    return OPERATORS[name]


@functools.cache
def _adapter(cls: type[Operator]):
    import pydantic

    cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    return pydantic.TypeAdapter(cls)


def build(name: str, parameters: Mapping[str, Any], where: str = "") -> Operator:
    """The operator `name` with these parameters. RecipeError names the unknown or invalid one and the nearest valid."""
    import pydantic

    cls = find(name)
    fields = cls.__dataclass_fields__
    for key in parameters:
        if key not in fields:
            raise RecipeError(
                f"{where}'{name}' has no parameter or input '{key}'.{nearest(key, [*fields, *(p.name for p in cls.ports)])} See `vemray ops {name}`."
            )
    try:
        return _adapter(cls).validate_python(dict(parameters))
    except pydantic.ValidationError as e:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'parameters'}: {p['msg']}" for p in e.errors())
        raise RecipeError(f"{where}parameters of '{name}' cannot be used: {problems}. See `vemray ops {name}`.") from None


def parameters(op: Operator) -> dict[str, Any]:
    """JSON-able parameters: `build(op.name, parameters(op)) == op`."""
    return _adapter(type(op)).dump_python(op, mode="json")
