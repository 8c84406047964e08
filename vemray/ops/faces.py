"""Surfaces of objects as the faces of their voxels, block by block, and how operators read them.

A face is (z, y, x, d): the global coordinates of the voxel that belongs to the label, and its side d = 2 * axis + (1 on the upper side). Space
is measured in nm from the volume's origin, with the centre of voxel v at v * spacing: a face is an axis-aligned rectangle, half a voxel
away from its voxel's centre. The volume's border bounds nothing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import ArraySpec, ArtefactSpec, Box, Int3, Spacing
from vemray.ops import face_extract as kernels
from vemray.ops.base import Artefact, Piece, Port, Site, register
from vemray.ops.face_tree import Tree

#: what a process keeps of the surfaces that it reads, all together; one block that is larger is held alone
CACHE_BYTES = 256 << 20
#: bytes that a loaded block may take for each voxel: noise has one face a voxel
BYTES_PER_VOXEL = 45
#: a face's share of the surface's area is kept in steps of this
AREA_STEP = 2.0**-16


@dataclass
class Faces:
    """Faces of one block, by label, then raster index and side. `voxels` are relative to `origin`."""

    origin: np.ndarray  # int64 (3,)
    labels: np.ndarray  # uint64 (n,), ascending
    starts: np.ndarray  # int64 (n + 1,): faces of label k are starts[k]:starts[k + 1]
    voxels: np.ndarray  # uint16 or uint32 (m, 3)
    sides: np.ndarray  # uint8 (m,)
    normals: np.ndarray  # int8 (m, 3): outward, of length 127

    def __post_init__(self):
        self._tree: Tree | None = None

    @classmethod
    def none(cls) -> Faces:
        return cls(
            np.zeros(3, np.int64), np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros((0, 3), np.uint16), np.zeros(0, np.uint8),
            np.zeros((0, 3), np.int8),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.sides)

    @property
    def faces(self) -> np.ndarray:
        """int32 (m, 4): global z, y, x, and d."""
        out = np.empty((len(self), 4), np.int32)
        out[:, :3] = self.voxels
        out[:, :3] += self.origin.astype(np.int32)
        out[:, 3] = self.sides
        return out

    def of(self, label: int) -> np.ndarray:
        """int32 (m, 4): faces of one label."""
        return self._label(label).faces

    def _label(self, label: int) -> Faces:
        k = int(np.searchsorted(self.labels, np.uint64(label)))
        if k == len(self.labels) or self.labels[k] != np.uint64(label):
            return self._rows(slice(0, 0), self.labels[:0], np.zeros(1, np.int64))
        a, b = self.starts[k : k + 2]
        return self._rows(slice(a, b), self.labels[k : k + 1], np.array([0, b - a]))

    def _rows(self, rows, labels, starts) -> Faces:
        return Faces(self.origin, labels, starts, self.voxels[rows], self.sides[rows], self.normals[rows])

    def inside(self, box: Box) -> Faces:
        """The faces whose voxels lie in `box`."""
        lower, upper = np.array(box.start) - self.origin, np.array(box.stop) - self.origin
        kept = ((self.voxels >= lower) & (self.voxels < upper)).all(axis=1)
        if kept.all():
            return self
        counts = np.add.reduceat(np.append(kept, False).astype(np.int64), self.starts[:-1]) if len(self.labels) else np.zeros(0, np.int64)
        some = counts > 0
        return self._rows(kept, self.labels[some], np.concatenate([[0], np.cumsum(counts[some])]))

    def label_rows(self) -> np.ndarray:
        """int64 (m,): number of each face's label in `labels`."""
        return np.repeat(np.arange(len(self.labels)), np.diff(self.starts))

    def shares(self, some=slice(None)) -> np.ndarray:
        """int64 (m,), of all faces or some: area of the surface over the area of the face, in AREA_STEPs: 1 / (|nz| + |ny| + |nx|) for the unit normal n. Faces alone
        overestimate a surface by that sum, a sphere 1.5 times."""
        return kernels.shares(self.normals[some], 1 / AREA_STEP)

    def keys(self, shape: Int3, some=slice(None)) -> np.ndarray:
        """int64 (m,), of all faces or some: raster index * 6 + side, which orders faces of a volume of that shape."""
        at = self.voxels[some].astype(np.int64) + self.origin
        return ((at[:, 0] * shape[1] + at[:, 1]) * shape[2] + at[:, 2]) * 6 + self.sides[some]

    def centres(self, some=slice(None)) -> np.ndarray:
        """int64 (m, 3), of all faces or some: middles of the faces in half voxels from the centre of voxel (0, 0, 0)."""
        at, sides = 2 * (self.voxels[some].astype(np.int64) + self.origin), self.sides[some]
        at[np.arange(len(sides)), sides >> 1] += np.where(sides & 1, 1, -1)
        return at

    @property
    def tree(self) -> Tree:
        """For searches; made when first asked for."""
        if self._tree is None:
            self._tree = Tree.of(self)
        return self._tree


def face_areas(spacing: Spacing) -> np.ndarray:
    """float64 (3,): nm2 of a voxel's face across each axis."""
    z, y, x = spacing.zyx
    return np.array([y * x, z * x, z * y])


def area_nm2(sums: np.ndarray, spacing: Spacing) -> np.ndarray:
    """From sums (..., 3) of `shares` by axis; summed in a fixed order."""
    a = face_areas(spacing) * AREA_STEP
    return sums[..., 0] * a[0] + sums[..., 1] * a[1] + sums[..., 2] * a[2]


class _Cache:
    """What was loaded last, of all surfaces in the process, up to CACHE_BYTES."""

    def __init__(self):
        self.items: OrderedDict[tuple, Faces] = OrderedDict()
        self.bytes = 0
        self.lock = threading.Lock()

    def get(self, key: tuple, load: Callable[[], Faces]) -> Faces:
        with self.lock:
            if key in self.items:
                self.items.move_to_end(key)
                return self.items[key]
        item = load()
        with self.lock:
            if key not in self.items:
                self.items[key] = item
                self.bytes += _size(item)
            while self.bytes > CACHE_BYTES and len(self.items) > 1:
                self.bytes -= _size(self.items.popitem(last=False)[1])
        return item


def _size(faces: Faces) -> int:
    """Bytes of the faces with their tree."""
    return 50 * len(faces) + 100 * len(faces.labels)


_cache = _Cache()


class Surface:
    """A surface as operators read it: `spec`, and `index`, arrays over the blocks that have faces. Blocks are loaded when asked for and the last
    ones kept. `read(block number)` gives a block's arrays."""

    def __init__(self, spec: ArtefactSpec, index: Mapping[str, np.ndarray], read: Callable[[int], Mapping[str, np.ndarray]]):
        self.spec, self.index, self._read = spec, index, read
        self._cached_as = object()

    def __len__(self) -> int:
        """Blocks that have faces."""
        return len(self.index["block"])

    def block(self, i: int) -> Faces:
        """The faces of the i-th block of the index."""
        return _cache.get((self._cached_as, i), lambda: Faces(**self._read(int(self.index["block"][i]))))

    def blocks(self) -> Iterator[Faces]:
        """Every block that has faces, one at a time."""
        return (self.block(i) for i in range(len(self)))

    def blocks_of(self, label: int) -> np.ndarray:
        """The blocks of the index that may hold faces of a label."""
        return np.flatnonzero((self.index["label_min"] <= np.uint64(label)) & (np.uint64(label) <= self.index["label_max"]))

    def faces_of(self, label: int) -> np.ndarray:
        """int32 (m, 4): all faces of one label, by raster index and side: the same for every grid."""
        found = [self.block(i).of(label) for i in self.blocks_of(label)]
        faces = np.concatenate([np.zeros((0, 4), np.int32), *found])
        return faces[np.lexsort(faces.T[::-1])]

    def inside(self, box: Box) -> Iterator[Faces]:
        """The faces whose voxels lie in `box`, block by block."""
        lower, upper = self.index["lower"], self.index["upper"]
        meets = ((lower < np.array(box.stop)) & (upper > np.array(box.start))).all(axis=1)
        for i in np.flatnonzero(meets):
            if len(part := self.block(i).inside(box)):
                yield part

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 (blocks, 3) each: boxes around the blocks' faces, in half voxels from the centre of voxel (0, 0, 0)."""
        return 2.0 * self.index["lower"] - 1, 2.0 * self.index["upper"] - 1


@register("surface")
@dataclass(frozen=True)
class SurfaceFaces(Artefact):
    """The surface of each label: its voxels' faces towards other labels and background, with normals; exact distances, areas and meshes are
    computed from it.

    The volume's border is no surface. A normal is the gradient of the smoothed label (Gaussian of 1.3 voxels), outward; it gives each face its
    share of the area, 1 / (|nz| + |ny| + |nx|), which corrects the staircase of faces: spheres of radius 5 voxels or more within 1.5 %, planes
    within 0.6 %, in voxels four times as thick as wide within 2.5 %."""

    serves = "steps 9, 10, 14 and 15: distances to membranes, density on the surface, curvature"
    ports = (Port("labels", ("labels", "mask")),)

    towards: Annotated[
        Literal["any", "background"], Field(description="any: also faces between two labels; background: not them, as where one object was cut")
    ] = "any"

    @classmethod
    def examples(cls):
        return [cls(), cls(towards="background")]

    def check(self, labels: ArraySpec) -> None:
        if np.dtype(labels.dtype).kind not in "ub":
            raise RecipeError(f"'surface' takes a mask or labels of an unsigned integer type, not {labels.dtype}.")

    def halo(self, spacing: Spacing) -> Int3:
        return (kernels.REACH,) * 3

    def memory(self, labels: ArraySpec) -> float:
        return 22  # of noise: a face a voxel

    def output(self, labels: ArraySpec) -> ArtefactSpec:
        return ArtefactSpec(labels.shape, labels.spacing, "surface", labels.origin_nm)

    def __call__(self, labels: np.ndarray, *, site: Site) -> Piece:
        if labels.dtype == np.bool_:
            labels = labels.view(np.uint8)
        own = site.write.within(site.read)
        keys = _distinct(labels[own.slices])
        start, stop = np.array(own.start), np.array(own.stop)
        counts = kernels.count(labels, start, stop, keys, self.towards == "background")
        starts = np.concatenate([[0], np.cumsum(counts)])
        n = int(starts[-1])
        voxels = np.empty((n, 3), np.uint16 if max(site.write.shape) < 1 << 16 else np.uint32)
        sides, normals = np.empty(n, np.uint8), np.empty((n, 3), np.int8)
        per_nm = 1 / np.array(site.spacing.zyx)
        kernels.fill(
            labels, start, stop, keys, self.towards == "background", starts[:-1].copy(), per_nm, kernels.ALONG, kernels.ACROSS, voxels, sides, normals
        )
        some = counts > 0
        keys, starts = keys[some].astype(np.uint64), np.concatenate([[0], np.cumsum(counts[some])])
        faces = Faces(np.array(site.write.start, np.int64), keys, starts, voxels, sides, normals)
        return Piece(vars_of(faces) if n else {}, entry(faces))


def vars_of(faces: Faces) -> dict[str, np.ndarray]:
    return {k: getattr(faces, k) for k in Faces.__dataclass_fields__}


def entry(faces: Faces) -> dict[str, np.ndarray]:
    """A block's entry in the index: box of its voxels, numbers of faces and labels, least and largest label, `area`: sums of `shares` by axis."""
    lower = faces.voxels.min(axis=0, initial=np.iinfo(faces.voxels.dtype).max).astype(np.int64) + faces.origin
    upper = faces.voxels.max(axis=0, initial=0).astype(np.int64) + faces.origin + 1
    return {
        "lower": lower, "upper": upper, "faces": np.int64(len(faces)), "labels": np.int64(len(faces.labels)),
        "label_min": faces.labels[0] if len(faces) else np.uint64(0), "label_max": faces.labels[-1] if len(faces) else np.uint64(0),
        "area": kernels.share_sums(faces.normals, faces.sides, 1 / AREA_STEP),
    }  # fmt: skip


def _distinct(labels: np.ndarray) -> np.ndarray:
    """The labels other than 0 that occur, sorted; found by the starts of their runs."""
    flat = labels.reshape(-1)
    found = np.unique(np.concatenate([flat[:1], flat[1:][flat[1:] != flat[:-1]]]))
    return found[found > 0]
