"""Connected components, exact in blocks: each block labelled by itself, labels joined over the planes where groups of blocks meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.ops.base import ArraySpec, Labeller, LocalLabels, Numbering, Port, Site, register
from vemray.ops.codes import paired
from vemray.ops.planes import Planes

Connectivity = Literal[6, 18, 26]


@register("connected_components")
@dataclass(frozen=True)
class ConnectedComponents(Labeller):
    """One label for each connected set of voxels of a mask, numbered 1..N by the raster order of their first voxels.

    Blocks are labelled by cc3d (two-pass union-find on decision trees, Wu et al. 2005; github.com/seung-lab/connected-components-3d)."""

    serves = "instances"
    cheap = True
    ports = (Port("mask", ("mask",), doc="the voxels to label; threshold an image or a probability first"),)

    connectivity: Annotated[
        Connectivity, Field(description="which voxels touch: over faces (6), edges too (18), corners too (26); number of neighbours")
    ] = 6

    @classmethod
    def examples(cls):
        return [cls(), cls(18), cls(26)]

    def memory(self, mask: ArraySpec) -> float:
        return 14

    def label(self, mask: np.ndarray, *, site: Site) -> LocalLabels:
        labels, count = _label_block(mask[site.crop], self.connectivity)
        keys = first_voxels(labels, count, site)
        planes = Planes.of(labels, site.write, site.shape)
        return LocalLabels(labels, keys, Touching.of(keys, planes, self.connectivity))


@register("label_parts")
@dataclass(frozen=True)
class LabelParts(Labeller):
    """One label for each connected part of each object: voxels belong together if they touch and carry the same label. Touching objects
    stay apart, an object in two pieces becomes two. Parts are numbered 1..N by the raster order of their first voxels.

    With `within` voxels belong together if both their labels are the same: objects are cut where they pass from one label of `within` to
    another, and what lies outside it is left out."""

    serves = "step 4: segment morphology; objects that fall apart"
    cheap = True
    ports = (
        Port("labels", ("labels",)),
        Port("within", ("labels", "mask"), optional=True, doc="parts do not pass from one of its labels to another"),
    )

    connectivity: Annotated[
        Connectivity, Field(description="which voxels touch: over faces (6), edges too (18), corners too (26); number of neighbours")
    ] = 6

    @classmethod
    def examples(cls):
        return [cls(), cls(18), cls(26)]

    def check(self, labels: ArraySpec, within: ArraySpec | None = None) -> None:
        for spec in (labels, within):
            if spec is not None and np.dtype(spec.dtype).kind not in "ub":
                raise RecipeError(f"'label_parts' takes labels of an unsigned integer type, not {spec.dtype}.")

    def memory(self, labels: ArraySpec, within: ArraySpec | None = None) -> float:
        return 24

    def label(self, labels: np.ndarray, within: np.ndarray | None = None, *, site: Site) -> LocalLabels:
        codes, pairs = paired(labels[site.crop], None if within is None else within[site.crop])
        parts, count = _label_block(codes, self.connectivity)
        keys = first_voxels(parts, count, site)
        first = np.unravel_index(keys.astype(np.int64), site.shape)
        of_parts = pairs[codes[tuple(f - a for f, a in zip(first, site.write.start))].astype(np.int64) - 1]
        return LocalLabels(parts, keys, Touching.of(keys, Planes.of(parts, site.write, site.shape), self.connectivity, of_parts))


@dataclass
class Touching:
    """Evidence of components in a group of blocks. A component's root is the smallest key of its parts so far: its first voxel.

    `keys` are all blocks' labels, `joins` say (root, smaller root that took it over), at most one for each key. The planes hold
    1..n for the components that still touch the group's outside, whose roots are `roots[0..n-1]`. Only components of equal rows of
    `values` join; None: all do."""

    connectivity: int
    keys: list[np.ndarray]
    joins: list[np.ndarray]
    roots: np.ndarray
    planes: Planes
    values: np.ndarray | None = None  # (n, k)

    @classmethod
    def of(cls, keys: np.ndarray, planes: Planes, connectivity: int, values: np.ndarray | None = None) -> Touching:
        return cls(connectivity, [keys], [], keys, planes, values)._compact(np.arange(len(keys) + 1, dtype=np.uint32))

    def _compact(self, owner: np.ndarray) -> Touching:
        """Map plane entries to their `owner` and renumber those that are left."""
        planes = self.planes.map(owner)
        used = planes.used(len(owner))
        used[0] = False
        lut = np.zeros(len(owner), np.uint32)
        lut[used] = np.arange(1, np.count_nonzero(used) + 1, dtype=np.uint32)
        self.planes, self.roots = planes.map(lut), self.roots[used[1:]]
        if self.values is not None:
            self.values = self.values[used[1:]]
        return self

    def merge(self, upper: Touching, axis: int) -> Touching:
        n = len(self.roots)
        shift = np.arange(n, n + len(upper.roots) + 1, dtype=np.uint32)
        shift[0] = 0
        a, b = self.planes.facing(upper.planes, axis)
        roots = np.concatenate([self.roots, upper.roots])
        owner = np.arange(len(roots) + 1, dtype=np.uint32)
        kind = np.zeros(len(owner), np.int64)
        if self.values is not None:
            self.values = np.concatenate([self.values, upper.values])
            if len(roots):
                kind[1:] = np.unique(self.values, axis=0, return_inverse=True)[1].reshape(-1)
        _join_facing(a, shift[b], {6: 0, 18: 1, 26: 2}[self.connectivity], kind, owner)
        smallest = roots.copy()
        np.minimum.at(smallest, owner[1:] - 1, roots)
        taken = smallest[owner[1:] - 1]
        lost = taken != roots
        self.keys += upper.keys
        self.joins += [*upper.joins, np.stack([roots[lost], taken[lost]], 1)]
        self.roots, self.planes = smallest, self.planes.join(upper.planes.map(shift), axis)
        return self._compact(owner)

    def resolve(self) -> Numbering:
        keys = np.sort(np.concatenate(self.keys))
        parent = np.arange(len(keys))
        for j in self.joins:
            parent[np.searchsorted(keys, j[:, 0])] = np.searchsorted(keys, j[:, 1])
        while True:  # a parent is always the smaller key: the depth halves each time
            grand = parent[parent]
            if (grand == parent).all():
                break
            parent = grand
        is_root = parent == np.arange(len(keys))
        rank = np.cumsum(is_root, dtype=np.uint64)
        return Numbering(keys, rank[parent], int(np.count_nonzero(is_root)))


def _label_block(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    """uint32 labels 1..n of one array, and n: components of a mask, or of equal values of uint32 codes."""
    import cc3d

    if mask.size < 64:  # cc3d reserves too few provisional labels for a few tiny shapes such as 3 x 3 x 3
        labels, count = cc3d.connected_components(np.pad(mask, 2), connectivity=connectivity, out_dtype=np.uint32, return_N=True)
        return np.ascontiguousarray(labels[2:-2, 2:-2, 2:-2]), count
    if 1 in mask.shape:  # the same neighbours in a plane; cc3d reserves too few for 26
        connectivity = min(connectivity, 18)
    mask = np.ascontiguousarray(mask)
    if not mask.flags.writeable:  # cc3d takes no read-only array, though it does not write
        mask = mask.copy()
    labels, count = cc3d.connected_components(
        mask, connectivity=connectivity, out_dtype=np.uint32, binary_image=mask.dtype == np.bool_, return_N=True
    )
    return np.ascontiguousarray(labels), count


def first_voxels(labels: np.ndarray, count: int, site: Site) -> np.ndarray:
    """Global raster index (uint64) of the first voxel of each of the labels 1..count; `labels` cover `site.write`."""
    first = np.full(count + 1, np.iinfo(np.uint64).max)
    _first_voxels(labels, np.array(site.write.start, np.int64), np.array(site.shape, np.int64), first)
    return first[1:]


@njit(cache=True, nogil=True)
def _first_voxels(labels, start, shape, first):
    nz, ny, nx = labels.shape
    none = first[0]
    for z in range(nz):
        for y in range(ny):
            base = ((z + start[0]) * shape[1] + y + start[1]) * shape[2] + start[2]
            last = np.uint32(0)
            for x in range(nx):
                v = labels[z, y, x]
                if v != last:  # only run starts are looked up
                    last = v
                    if v != 0 and first[v] == none:
                        first[v] = np.uint64(base + x)


@njit(cache=True, nogil=True)
def _find(owner, i):
    while owner[i] != i:
        owner[i] = owner[owner[i]]
        i = owner[i]
    return i


@njit(cache=True, nogil=True)
def _join_facing(a, b, reach, kind, owner):
    """Union-find over entries of two facing planes, of equal `kind`. `reach`: how many of the two in-plane steps a touch may take
    (0, 1, 2). Leaves `owner` flat."""
    ny, nx = a.shape
    for y in range(ny):
        for x in range(nx):
            u = a[y, x]
            if u == 0:
                continue
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if abs(dy) + abs(dx) > reach or y + dy < 0 or y + dy >= ny or x + dx < 0 or x + dx >= nx:
                        continue
                    v = b[y + dy, x + dx]
                    if v != 0 and kind[u] == kind[v]:
                        ru, rv = _find(owner, u), _find(owner, v)
                        if ru < rv:
                            owner[rv] = ru
                        elif rv < ru:
                            owner[ru] = rv
    for i in range(owner.size):
        owner[i] = _find(owner, i)
