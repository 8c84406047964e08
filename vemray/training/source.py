"""Annotated volumes: grey values and labels of any box, read where a crop needs them, so that a volume need not fit into memory.

Labels are int32: 0 is not annotated. Painted classes are 1, 2, ...; of painted objects 1 is the background and the others, from 2, are objects."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vemray.errors import InputError
from vemray.geometry import Box, Grid, Int3, Spacing, turned_back, turned_grid
from vemray.models.facts import normalised
from vemray.models.files import Normalisation
from vemray.models.tiles import reflected

#: what of a volume is kept in memory, in blocks of this shape
CACHE_BYTES, BLOCK = 1 << 30, (32, 256, 256)
Values = Literal["classes", "objects"]


class Array:
    """A volume in memory, with what training asks of one."""

    def __init__(self, array: np.ndarray, spacing: Spacing):
        from vemray.geometry import ArraySpec

        self.array, self.shape, self.spacing = array, array.shape, spacing
        self.spec = ArraySpec(array.shape, array.dtype, spacing, "image")

    def read(self, box: Box) -> np.ndarray:
        return self.array[box.slices]


class Cached:
    """Boxes of a volume, put together from the blocks used last. Safe for several threads."""

    def __init__(self, volume: Any, most: int = CACHE_BYTES):
        self.volume, self.shape, self.most = volume, volume.shape, most
        self.grid = Grid(volume.shape, tuple(min(b, n) for b, n in zip(BLOCK, volume.shape)))
        self.blocks: OrderedDict[Int3, np.ndarray] = OrderedDict()
        self.bytes, self.lock = 0, threading.Lock()

    def __reduce__(self):
        return Cached, (self.volume, self.most)

    def _block(self, c: Int3) -> np.ndarray:
        with self.lock:
            if c in self.blocks:
                self.blocks.move_to_end(c)
                return self.blocks[c]
        edge = self.grid.block_shape
        start = tuple(i * e for i, e in zip(c, edge))
        found = self.volume.read(Box(start, tuple(s + e for s, e in zip(start, edge))).clip(self.shape))
        with self.lock:
            if c not in self.blocks:
                self.blocks[c] = found
                self.bytes += found.nbytes
            while self.bytes > self.most and len(self.blocks) > 1:
                self.bytes -= self.blocks.popitem(last=False)[1].nbytes
        return found

    def read(self, box: Box) -> np.ndarray:
        """A box inside the volume."""
        edge = self.grid.block_shape
        first = [a // e for a, e in zip(box.start, edge)]
        last = [(b - 1) // e for b, e in zip(box.stop, edge)]
        out = None
        for c in np.ndindex(*[b - a + 1 for a, b in zip(first, last)]):
            c = tuple(int(a + i) for a, i in zip(first, c))
            start = tuple(i * e for i, e in zip(c, edge))
            part = self._block(c)
            if out is None:
                out = np.empty(box.shape, part.dtype)
            own = Box(start, tuple(s + n for s, n in zip(start, part.shape)))
            both = own.intersect(box)
            out[both.within(box).slices] = part[both.within(own).slices]
        return out


class LabelVolume:
    """Labels of a whole volume, or of the `region` of it that is annotated, and there of what the volume `mask` sets. `every`: crops of a 2D network are
    of every n-th plane along each of `axes`, counted from the middle one."""

    def __init__(
        self, volume: Any, values: Values = "classes", zero_known: bool | None = None, region: Box | None = None, axes: str = "z", every: int = 1,
        mask: Any = None,
    ):  # fmt: skip
        self.cached, self.values, self.axes, self.every = Cached(volume), values, axes, every
        self.zero_known = values == "objects" if zero_known is None else zero_known
        self.known = (region or Box.of(volume.shape)).clip(volume.shape)
        self.mask = None if mask is None else Cached(mask)

    def boxes(self) -> list[tuple[Box, str]]:
        """What is annotated, in parts, with the axes that its planes may be stacked along."""
        if self.every == 1:
            grid = Grid(self.known.shape, BLOCK)
            return [(grid.write_box(i).shift(self.known.start), self.axes) for i in range(len(grid))]
        out = []
        for axis in self.axes:
            a = "zyx".index(axis)
            grid = Grid(self.known.shape, tuple(1 if i == a else max(BLOCK) for i in range(3)))
            parts = (grid.write_box(i).shift(self.known.start) for i in range(len(grid)))
            out += [(box, axis) for box in parts if (box.start[a] - self.cached.shape[a] // 2) % self.every == 0]
        return out

    def done(self, axis: str) -> set[int]:
        """Planes along the axis that nobody need paint: those of every n, or those that are annotated all over."""
        a = "zyx".index(axis)
        if self.every > 1:
            return {box.start[a] for box, along in self.boxes() if along == axis}
        others = [i for i in range(3) if i != a]
        all_over = self.zero_known and self.mask is None and all(self.known.shape[i] == self.cached.shape[i] for i in others)
        return set(range(self.known.start[a], self.known.stop[a])) if all_over else set()

    def largest(self) -> int:
        """The largest label."""
        return max((int(self.read(box).max()) for box, _ in self.boxes()), default=0)

    def digest(self) -> str:
        h = hashlib.sha256(f"{self.values} {self.zero_known} {self.known} {self.axes} {self.every}".encode())
        for box, _ in self.boxes():
            h.update(np.ascontiguousarray(self.read(box)))
        return h.hexdigest()

    def read(self, box: Box) -> np.ndarray:
        out = np.zeros(box.shape, np.int32)
        inside = box.intersect(self.known)
        if inside.size:
            found = coded(self.cached.read(inside), self.values, self.zero_known)
            if self.mask is not None:
                found[self.mask.read(inside) == 0] = 0
            out[inside.within(box).slices] = found
        return out


class PaintedPlanes:
    """Painted planes: axis -> index -> labels, each in the order of the volume's two other axes."""

    def __init__(self, shape: Int3, planes: Mapping[str, Mapping[int, np.ndarray]], values: Values = "classes", zero_known: bool | None = None):
        known = values == "objects" if zero_known is None else zero_known
        self.planes: dict[str, dict[int, np.ndarray]] = {}
        for axis, found in planes.items():
            a = "zyx".index(axis)
            wanted = tuple(n for i, n in enumerate(shape) if i != a)
            for i, p in sorted(found.items()):
                if not 0 <= i < shape[a] or p.shape != wanted:
                    raise InputError(
                        f"the painted plane {i} along {axis} is {p.shape}; the volume has planes 0 to {shape[a] - 1} along {axis}, of {wanted}."
                    )
                self.planes.setdefault(axis, {})[i] = p
        self.shape, self.values, self.zero_known = shape, values, known

    def done(self, axis: str) -> set[int]:
        """Planes along the axis that somebody has painted, if only in part."""
        return set(self.planes.get(axis, ()))

    def boxes(self) -> list[tuple[Box, str]]:
        out = []
        for axis, found in self.planes.items():
            a = "zyx".index(axis)
            for i in found:
                start, stop = [0, 0, 0], list(self.shape)
                start[a], stop[a] = i, i + 1
                out.append((Box(tuple(start), tuple(stop)), axis))
        return out

    def largest(self) -> int:
        return max((int(p.max()) for found in self.planes.values() for p in found.values()), default=0) + self.zero_known

    def digest(self) -> str:
        h = hashlib.sha256(f"{self.values} {self.zero_known}".encode())
        for axis, found in self.planes.items():
            for i, p in found.items():
                h.update(f"{axis} {i} {p.shape} {p.dtype}".encode())
                h.update(np.ascontiguousarray(p))
        return h.hexdigest()

    def read(self, box: Box) -> np.ndarray:
        """A voxel that two planes paint has the label of the one that is stacked along the first axis of z, y, x."""
        out = np.zeros(box.shape, np.int32)
        inside = box.clip(self.shape)
        if not inside.size:
            return out
        part = out[inside.within(box).slices]
        for axis in sorted(self.planes, key="zyx".index, reverse=True):
            a = "zyx".index(axis)
            plane = inside.slices[:a] + inside.slices[a + 1 :]
            for i, labels in self.planes[axis].items():
                if inside.start[a] <= i < inside.stop[a]:
                    at = part[(slice(None),) * a + (i - inside.start[a],)]
                    here = coded(labels[plane], self.values, self.zero_known)
                    np.copyto(at, here, where=here > 0)
        return out


def coded(values: np.ndarray, kind: Values, zero_known: bool) -> np.ndarray:
    """Labels as they are used here. Painted classes: 0 is not annotated, or, where zero is known, the first class."""
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if (
        values.dtype.kind not in "iu"
        or (values.size and int(values.max()) >= 1 << 24)
        or (values.dtype.kind == "i" and values.size and values.min() < 0)
    ):
        raise InputError(
            f"labels are whole numbers from 0 to {(1 << 24) - 1:,}; these are {values.dtype}, up to {values.max() if values.size else 0}."
        )
    out = values.astype(np.int32)
    if kind == "objects":
        return out + 1 if zero_known else np.where(out > 0, out + 1, 0).astype(np.int32)
    return out + 1 if zero_known else out


@dataclass(frozen=True)
class Turned:
    """That a volume is what the operator `rotate` made of another."""

    of: Source
    degrees: float
    about: str


@dataclass
class Source:
    """One annotated volume. `image(box)` and `labels(box)` take boxes that reach beyond it. One that is `turned` has the grey values of the other, shows
    nothing of what is kept for validation there, and is never judged itself. InputError where its voxels are not those that `rotate` makes."""

    name: str
    volume: Any  # .shape, .read(Box), .spec
    annotation: LabelVolume | PaintedPlanes
    normalisation: Normalisation = field(default_factory=Normalisation)
    turned: Turned | None = None

    def __post_init__(self):
        spec = self.volume.spec
        self.shape, self.spacing = tuple(self.volume.shape), spec.spacing
        if self.turned is None:
            histogram = histogram_of(self.volume) if self.normalisation.needs_histogram else None
            self.constants = self.normalisation.constants(histogram, np.dtype(spec.dtype))
        else:
            t = self.turned
            wanted = turned_grid(t.of.volume.spec, t.degrees, t.about, spec.spacing.x)
            if wanted.shape != self.shape or any(abs(s / spec.spacing.x - 1) > 1e-6 for s in spec.spacing.zyx):
                raise InputError(
                    f"{self.name} is {self.shape} voxels of {spec.spacing}; {t.of.name} turned by {t.degrees:g} degrees about {t.about} is "
                    f"{wanted.shape} of {wanted.spacing}. Make it with the operator 'rotate', or leave 'turned' out."
                )
            self.constants = t.of.constants
        self.cached = Cached(self.volume)
        self.held: Box | None = None  # kept for validation
        self.gap: Box | None = None  # that and what lies next to it

    def digest(self) -> str:
        """Of what is annotated and how grey values are taken; the grey values themselves are known by their histogram."""
        turned = "" if self.turned is None else f" {self.turned.of.name} {self.turned.degrees} {self.turned.about}"
        return hashlib.sha256(f"{self.name} {self.shape} {self.spacing} {self.constants} {self.annotation.digest()}{turned}".encode()).hexdigest()

    def image(self, box: Box) -> np.ndarray:
        """float32, normalised exactly as inference will; reflected beyond the volume's ends."""
        if Box.of(self.shape).contains(box):
            return normalised(self.cached.read(box), self.constants, np.empty(box.shape, np.float32))
        at = [reflected(a, b, n) for a, b, n in zip(box.start, box.stop, self.shape)]
        around = Box(tuple(int(i.min()) for i in at), tuple(int(i.max()) + 1 for i in at))
        found = self.cached.read(around)[np.ix_(*[i - a for i, a in zip(at, around.start)])]
        return normalised(found, self.constants, np.empty(box.shape, np.float32))

    def labels(self, box: Box, validation: bool = False) -> np.ndarray:
        """int32, 0 where nothing is known: for training without what is held back, for validation that alone."""
        out = self.annotation.read(box)
        if validation:
            if self.held is not None:
                inside = self.held.intersect(box)
                kept = np.zeros_like(out)
                if inside.size:
                    kept[inside.within(box).slices] = out[inside.within(box).slices]
                return kept
        elif self.gap is not None:
            inside = self.gap.intersect(box)
            if inside.size:
                out[inside.within(box).slices] = 0
        elif self.turned is not None and self.turned.of.gap is not None:
            out[self._in_gap(box)] = 0
        return out

    def _in_gap(self, box: Box) -> np.ndarray:
        """bool over the box: what lies in the gap of the volume that this one was turned from."""
        t = self.turned
        matrix, offset = turned_back(t.of.volume.spec, self.volume.spec, t.degrees, t.about)
        out = np.ones(box.shape, bool)
        zyx = np.ogrid[box.slices]
        for row, o, a, b in zip(matrix, offset, t.of.gap.start, t.of.gap.stop):
            at = np.round(o + sum(m * i for m, i in zip(row, zyx)), 9)
            out &= (at >= a - 0.5) & (at < b - 0.5)
        return out


def painted(image: Any, planes: Mapping[int, np.ndarray] | Mapping[str, Mapping[int, np.ndarray]], spacing: Spacing | None = None,
            normalisation: Normalisation | None = None, name: str = "volume", **how: Any) -> Source:  # fmt: skip
    """A source of painted planes: `planes` is z -> labels, or axis -> index -> labels. `image`: a volume, or an array (ZYX) with its `spacing`."""
    volume = Array(image, spacing) if isinstance(image, np.ndarray) else image
    by_axis = planes if all(isinstance(k, str) for k in planes) else {"z": planes}
    return Source(name, volume, PaintedPlanes(tuple(volume.shape), by_axis, **how), normalisation or Normalisation())


def histogram_of(volume) -> dict:
    """Histogram of a volume (anything with .shape, .spec and .read(Box)), as the operator gives it to inference."""
    from vemray.ops.base import Site
    from vemray.ops.histogram import Histogram

    op, total = Histogram(), None
    grid = Grid(volume.shape, (64, 512, 512))
    for i in range(len(grid)):
        box = grid.write_box(i)
        part = op.measure(volume.read(box), site=Site(volume.shape, volume.spec.spacing, box, box, (volume.spec,)))
        total = part if total is None else total.merge(part, 0)
    return op.finish(total, (volume.spec,))
