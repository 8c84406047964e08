"""A body cut in two at its neck: its sections by planes of many directions, counted blockwise, and the plane at which they are narrowest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import InputError, RecipeError
from vemray.geometry import ArraySpec, Int3
from vemray.ops.base import Filter, Measure, Port, Site, register
from vemray.ops.sections import Sections

#: directions over the half sphere, about 7 degrees apart; most bins along one
DIRECTIONS, BINS = 500, 1024
#: bits of a bin's fraction in a position; a voxel counts 2^SHARES, shared by the two bins that it lies between: no ripple from planes of voxels
BITS, SHARES = 20, 8
#: bins to each side over which areas are averaged, falling off to nothing: two voxels, or slanting planes of voxels make ripples
SMOOTH = 4
_POINT, _NORMAL = tuple(f"point_{a}_nm" for a in "zyx"), tuple(f"normal_{a}" for a in "zyx")
COLUMNS = (*_POINT, *_NORMAL, "cut_area_nm2", "ratio", "waist_ratio", "volume_1_nm3", "volume_2_nm3")


@dataclass
class Profiles:
    """Voxels by direction and bin; None where there are none."""

    counts: np.ndarray | None

    def merge(self, upper: Profiles, axis: int) -> Profiles:
        if self.counts is None or upper.counts is None:
            return upper if self.counts is None else self
        return Profiles(self.counts + upper.counts)


@dataclass(frozen=True)
class _Lattice:
    """Where the voxels that are looked at lie along each direction."""

    step: np.ndarray  # (3,) every so many voxels
    normals: np.ndarray  # (k, 3) directions
    along: np.ndarray  # (k, 3) way of one step, an integer, so that every block puts a voxel into the same bin; 2^BITS is a bin
    first: np.ndarray  # (k,) the least position in the volume
    width: float  # of a bin, nm
    bins: int

    @classmethod
    def of(cls, shape: Int3, spacing: tuple[float, float, float], voxel_nm: float) -> _Lattice:
        step = np.array([max(1, int(voxel_nm / s + 1e-9)) for s in spacing])
        size, last = step * spacing, (np.array(shape) - 1) // step
        width = max(size.max() / 2, float(np.linalg.norm(size * last)) / BINS)
        # evenly over the half sphere by Fibonacci's spiral
        i = np.arange(DIRECTIONS) + 0.5
        z, angle = i / DIRECTIONS, np.pi * (1 + 5**0.5) * i
        r = np.sqrt(1 - z * z)
        normals = np.stack([z, r * np.sin(angle), r * np.cos(angle)], 1)
        along = np.rint(normals * size / width * (1 << BITS)).astype(np.int64)
        ends = along * last
        first = np.minimum(ends, 0).sum(axis=1)
        return cls(step, normals, along, first, width, int((np.maximum(ends, 0).sum(axis=1) - first).max() >> BITS) + 2)


@register("neck")
@dataclass(frozen=True)
class Neck(Measure):
    """The plane that cuts a body at its neck, where two lobes meet: the cleavage furrow of a nucleus. All set voxels are one body.

    The square root of the area that planes of one direction cut out of a convex body is a concave function of their place (Brunn and Minkowski).
    Its concave hull is what a convex body would have there. Of planes of 500 directions that leave each side `least_share` of the volume, the one
    is taken whose area is the least share of that, the `ratio`. A neck is found so even if the smaller lobe is nowhere wider than it, or not
    deeper.

    A table of one row, or none without voxels: a point of the plane (nm, as in all tables), its unit normal, from the larger side 1 to the smaller
    2; `cut_area_nm2`; `ratio` of that area to a convex body's, 1 for a body without a neck; `waist_ratio` of it to the smaller of the largest areas
    on both sides, 1 if nothing beyond the plane is wider; the volumes of both sides. `sections_at_neck` cuts by it. Directions are 7 degrees apart,
    so that the plane is tilted by up to 5. Voxels are taken from a lattice of about `voxel_nm`; areas are averaged over two of its steps to either
    side (or over a 256th of the volume's diagonal, if that is more): of a neck 20 steps wide the area comes out 10 to 20 % too large."""

    serves = "step 15: the nucleus in two sections at its cleavage furrow"
    ports = (Port("labels", ("labels", "mask"), doc="the body; objects that are not of it are left out before, by `filter_objects`"),)

    voxel_nm: Annotated[float, Field(gt=0, description="every so many nm a voxel is looked at; a tenth of the neck's width is fine enough")] = 32.0
    least_share: Annotated[float, Field(ge=0, le=0.25, description="share of the volume that each side has at least")] = 0.1

    @classmethod
    def examples(cls):
        return [cls(8.0), cls(20.0, 0.0)]

    def memory(self, labels: ArraySpec) -> float:
        return 0.1

    def fixed_memory(self) -> int:
        # the counts, whatever the volume
        return DIRECTIONS * (BINS + 8) * 8

    def measure(self, labels: np.ndarray, *, site: Site) -> Profiles:
        lattice = _Lattice.of(site.shape, site.spacing.zyx, self.voxel_nm)
        start = np.array(site.read.start)
        begin = -start % lattice.step
        if not labels[tuple(slice(b, None, s) for b, s in zip(begin, lattice.step))].any():
            return Profiles(None)
        counts = np.zeros((DIRECTIONS, lattice.bins), np.int64)
        at, row = (start + begin) // lattice.step, np.empty(labels.shape[2], np.int64)
        _count(labels, begin, lattice.step, at, lattice.along, lattice.first, row, counts)
        return Profiles(counts)

    def finish(self, partial: Profiles, inputs: tuple[ArraySpec, ...]):
        import pyarrow as pa

        if partial.counts is None:
            return pa.table({name: np.zeros(0) for name in COLUMNS})
        spec = inputs[0]
        lattice = _Lattice.of(spec.shape, spec.spacing.zyx, self.voxel_nm)
        counts = np.pad(partial.counts, ((0, 0), (SMOOTH, SMOOTH)))
        below = np.cumsum(counts, axis=1) - counts / 2
        total = below[0, -1]
        places = lattice.first / (1 << BITS) + (np.arange(counts.shape[1]) - SMOOTH)[:, None]  # of the bins, in bins
        hat = SMOOTH - np.abs(np.arange(1 - SMOOTH, SMOOTH))
        areas = np.stack([np.convolve(c, hat, "same") for c in counts])  # integers
        hulls = np.zeros(areas.shape)
        _hulls(areas, np.sqrt(areas), hulls)
        share = np.minimum(below, total - below) / total
        allowed = (share >= self.least_share) & (share > 0)
        ratio = np.divide(areas, hulls * hulls, out=np.full(areas.shape, np.inf), where=allowed)
        k, b = np.unravel_index(np.argmin(ratio), ratio.shape)
        # the body's centre from its means along all directions, moved onto the plane
        means = (counts * places.T).sum(axis=1) / total
        centre = np.linalg.lstsq(lattice.normals, means * lattice.width, rcond=None)[0]
        normal = lattice.normals[k]
        point = centre + (places[b, k] * lattice.width - centre @ normal) * normal
        voxel = spec.spacing.voxel_nm3 * math.prod(lattice.step.tolist()) / (1 << SHARES)
        volumes = voxel * below[k, b], voxel * (total - below[k, b])
        if volumes[0] < volumes[1]:
            normal, volumes = -normal, volumes[::-1]
        area = areas[k, b]
        waist = min(areas[k, : b + 1].max(), areas[k, b:].max())
        values = (*(point + spec.origin_nm), *normal, area * voxel / (hat.sum() * lattice.width), ratio[k, b], area / waist, *volumes)
        return pa.table({name: np.array([v], float) for name, v in zip(COLUMNS, values)})


@njit(cache=True, nogil=True)
def _count(labels, begin, step, at, along, first, row, counts):
    """Set voxels of the lattice by direction and bin. `begin`: the lattice's first voxel in the block, which is its `at`-th; `row`: scratch."""
    nz, ny, nx = labels.shape
    for i in range((nz - begin[0] + step[0] - 1) // step[0]):
        for j in range((ny - begin[1] + step[1] - 1) // step[1]):
            n = 0
            for k in range((nx - begin[2] + step[2] - 1) // step[2]):
                if labels[begin[0] + i * step[0], begin[1] + j * step[1], begin[2] + k * step[2]] != 0:
                    row[n] = at[2] + k
                    n += 1
            for d in range(len(along) if n else 0):
                base, slope = along[d, 0] * (at[0] + i) + along[d, 1] * (at[1] + j) - first[d], along[d, 2]
                for k in range(n):
                    place = base + slope * row[k]
                    bin_, part = place >> BITS, (place >> (BITS - SHARES)) & ((1 << SHARES) - 1)
                    counts[d, bin_] += (1 << SHARES) - part
                    counts[d, bin_ + 1] += part


@njit(cache=True, nogil=True)
def _hulls(areas, roots, hulls):
    """Least concave function above each row of `roots`, over the bins from the one before the first of any area to the one after the last."""
    corner = np.empty(areas.shape[1], np.int64)
    for k in range(len(areas)):
        y, set_ = roots[k], np.flatnonzero(areas[k])
        n = 0
        for i in range(max(set_[0] - 1, 0), min(set_[-1] + 2, len(y))):
            while n > 1:
                a, b = corner[n - 2], corner[n - 1]
                if (y[b] - y[a]) * (i - b) > (y[i] - y[b]) * (b - a):
                    break
                n -= 1
            corner[n] = i
            n += 1
        for c in range(n - 1):
            a, b = corner[c], corner[c + 1]
            for i in range(a, b + 1):
                hulls[k, i] = y[i] if i == a or i == b else y[a] + (y[b] - y[a]) * ((i - a) / (b - a))


@register("sections_at_neck")
@dataclass(frozen=True)
class SectionsAtNeck(Filter):
    """A body cut in two at the plane that `neck` found: 1 on the larger side, and on the plane, 2 on the smaller.

    A body without a neck stays one section, 1: where the table's `ratio` is above `most_ratio`, or it has no row. Convex bodies have a ratio above
    0.95, two balls that overlap 0.4 to 0.7, a nucleus with dents but no neck 0.9. What is cut need not be what the neck was found on, only lie in
    the same place. `sections` cuts by hand."""

    serves = "step 15: the nucleus in two sections at its cleavage furrow"
    ports = (Port("labels", ("labels", "mask"), doc="what is cut; 0 stays 0"), Port("neck", ("table",), doc="of `neck`"))

    most_ratio: Annotated[float, Field(gt=0, description="a neck whose `ratio` is above this is none")] = 0.8

    @classmethod
    def examples(cls):
        return [cls(), cls(0.3)]

    def example_tables(self, rng, shape: Int3, spacing):
        import pyarrow as pa

        row = (*(rng.random(3) * shape * spacing), *rng.standard_normal(3), 1.0, 0.5, 0.5, 2.0, 1.0)
        return {"neck": pa.table({name: [float(v)] for name, v in zip(COLUMNS, row)})}

    def output(self, labels: ArraySpec) -> ArraySpec:
        return labels.like(np.uint64, "labels")

    def memory(self, labels: ArraySpec) -> float:
        return 8.1

    def __call__(self, labels: np.ndarray, neck, *, site: Site) -> np.ndarray:
        if missing := [c for c in (*_POINT, *_NORMAL, "ratio") if c not in neck.column_names]:
            raise InputError(f"the table has no column '{missing[0]}': 'sections_at_neck' takes the table of `neck`.")
        if neck.num_rows > 1:
            raise RecipeError(f"'sections_at_neck' cuts at one plane, but the table has {neck.num_rows} rows.")
        row = neck.to_pylist()[0] if neck.num_rows else None
        if row is None or row["ratio"] > self.most_ratio:
            return (labels != 0).astype(np.uint64)
        return Sections(tuple(row[c] for c in _POINT), tuple(row[c] for c in _NORMAL))(labels, site=site)
