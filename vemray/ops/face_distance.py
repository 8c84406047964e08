"""Exact distances to surfaces: from centres of objects, and from surface to surface. Nothing is written but a table."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError, nearest
from vemray.geometry import ArtefactSpec, Box, Int3, Spacing
from vemray.ops import face_tree
from vemray.ops.base import Measure, Port, Site, register
from vemray.ops.face_near import fitted_points
from vemray.ops.faces import BYTES_PER_VOXEL, CACHE_BYTES, Faces, Surface

#: faces whose distances are searched together
CHUNK = 1 << 16
WHICH = {"any": face_tree.ANY, "own": face_tree.OWN, "other": face_tree.OTHER}


@dataclass
class Found:
    """What is nearest to each row: squared distance in nm2 (infinite where there is nothing), label and key of the face, key of the row's own face,
    the point on the face, and how much farther the middles of the voxels are than their faces."""

    d2: np.ndarray
    label: np.ndarray
    face: np.ndarray
    query: np.ndarray
    point: np.ndarray  # float64 (n, 3) nm
    inset: np.ndarray  # float64 (n,) nm

    def take(self, at: np.ndarray) -> Found:
        return Found(*(a[at] for a in vars(self).values()))


@dataclass
class Nearest:
    """Rows by label, ascending, with what each has `found` of each target. Merging takes the least (distance, label, face, own face)."""

    rows: np.ndarray  # uint64 (n,)
    found: dict[str, Found]

    def merge(self, upper: Nearest, axis: int) -> Nearest:
        rows = np.concatenate([self.rows, upper.rows])
        found, kept = {}, rows
        for name, mine in self.found.items():
            both = Found(*(np.concatenate([a, b]) for a, b in zip(vars(mine).values(), vars(upper.found[name]).values())))
            order = np.lexsort((both.query, both.face, both.label, both.d2, rows))
            first = np.ones(len(rows), bool)
            first[1:] = rows[order][1:] != rows[order][:-1]
            kept, found[name] = rows[order][first], both.take(order[first])
        return Nearest(kept, found)


@dataclass
class Boxes:
    """What distances are measured from: boxes (points or faces) in nm, grouped; each group belongs to a row. `lo`, `hi`: half voxels of `spec`."""

    spec: ArtefactSpec
    lo: np.ndarray  # float64 (n, 3)
    hi: np.ndarray
    keys: np.ndarray  # int64 (n,)
    group: np.ndarray  # int32 (groups + 1,)
    row: np.ndarray  # int64 (groups,)

    def on(self, spec: ArtefactSpec) -> tuple[np.ndarray, np.ndarray]:
        return moved(self.lo, self.spec, spec), moved(self.hi, self.spec, spec)


def moved(half: np.ndarray, spec: ArtefactSpec, to: ArtefactSpec) -> np.ndarray:
    """Half voxels (..., 3) of one grid in those of another; on the same grid the same numbers."""
    if (spec.spacing, spec.origin_nm) == (to.spacing, to.origin_nm):
        return half
    mine, theirs = np.array(spec.spacing.zyx), np.array(to.spacing.zyx)
    return half * (mine / theirs) + 2 * (np.array(spec.origin_nm) - np.array(to.origin_nm)) / theirs


def search(chunks: Sequence[Callable[[], Boxes]], bounds: np.ndarray, own: np.ndarray, which: int, surface: Surface, found: Found) -> None:
    """Lower `found` by what the surface holds: its blocks from the nearest on, until none can be nearer. `bounds` (chunks, 2, 3): corners of a box
    around each chunk, in half voxels of the surface's grid; a chunk is made only for blocks that may be near enough."""
    if not len(chunks) or not len(surface):
        return
    half = np.array(surface.spec.spacing.zyx) / 2
    block_lo, block_hi = surface.bounds()
    gap = np.maximum(np.maximum(block_lo - bounds[:, 1:], bounds[:, :1] - block_hi), 0.0) * half
    bound = gap[..., 0] ** 2 + gap[..., 1] ** 2 + gap[..., 2] ** 2  # (chunks, blocks)
    _, ny, nx = surface.spec.shape
    worst = np.full(len(chunks), np.inf)
    for i in np.argsort(bound.min(axis=0), kind="stable"):
        if which == face_tree.OWN and not ((surface.index["label_min"][i] <= own) & (own <= surface.index["label_max"][i])).any():
            continue
        for c in np.flatnonzero(bound[:, i] <= worst):
            boxes = chunks[c]()
            lo, hi = boxes.on(surface.spec)
            group_lo, group_hi = np.minimum.reduceat(lo, boxes.group[:-1]), np.maximum.reduceat(hi, boxes.group[:-1])
            rest = (own, which, half, ny, nx, surface.block(i).tree.arrays(), found.d2, found.label, found.face, found.query)
            if np.isinf(worst[c]) and len(boxes.lo) > len(boxes.row):  # the first box of each group bounds what the others need to look at
                at, each = boxes.group[:-1], np.arange(len(boxes.row) + 1, dtype=np.int32)
                face_tree.nearest(lo[at], hi[at], boxes.keys[at], each, boxes.row, lo[at], hi[at], *rest)
            face_tree.nearest(lo, hi, boxes.keys, boxes.group, boxes.row, group_lo, group_hi, *rest)
            worst[c] = found.d2[boxes.row].max()


def rectangles(keys: np.ndarray, shape: Int3) -> tuple[np.ndarray, np.ndarray]:
    """Faces by their keys, as boxes in half voxels."""
    index, side = keys // 6, keys % 6
    middle = 2.0 * np.stack([index // (shape[1] * shape[2]), index // shape[2] % shape[1], index % shape[2]], axis=1)
    lo, hi = middle - 1, middle + 1
    rows, axis = np.arange(len(keys)), side // 2
    lo[rows, axis] = hi[rows, axis] = middle[rows, axis] + np.where(side % 2 == 1, 1.0, -1.0)
    return lo, hi


def nothing_found(n: int) -> Found:
    top = np.iinfo(np.int64).max
    return Found(
        np.full(n, np.inf), np.full(n, np.iinfo(np.uint64).max, np.uint64), np.full(n, top), np.full(n, top), np.full((n, 3), np.nan), np.zeros(n)
    )


def nm(half: np.ndarray, spec: ArtefactSpec) -> np.ndarray:
    """From half voxels (n, 3) of a grid."""
    return half * (np.array(spec.spacing.zyx) / 2) + np.array(spec.origin_nm)


def put_points(found: Found, at: np.ndarray, surface: Surface) -> None:
    """The points of the faces found that are nearest to `at` (n, 3), nm."""
    there = np.flatnonzero(np.isfinite(found.d2))
    lo, hi = (nm(b, surface.spec) for b in rectangles(found.face[there], surface.spec.shape))
    found.point[there] = np.clip(at[there], lo, hi)


def inset(gap: np.ndarray, *spacings: Spacing) -> np.ndarray:
    """nm (n,): half a voxel of each spacing along the line of `gap` (n, 3), nm along each axis. 0 where nothing lies between."""
    length = np.linalg.norm(gap, axis=1)
    along = gap @ sum(np.array(s.zyx) for s in spacings) / 2
    return np.divide(along, length, out=np.zeros_like(length), where=length > 0)


def table_of(nearest: Nearest, points: bool, between: str):
    """Columns `label`; NAME_nm, NAME_label and, if asked for, NAME_{z,y,x}_nm of each target as to_NAME...; `nearest_nm`, `nearest`."""
    import pyarrow as pa

    names = sorted(nearest.found)
    out = {"label": nearest.rows}
    far = {name: np.sqrt(f.d2) + (f.inset if between == "voxels" else 0.0) for name, f in nearest.found.items()}
    for name in names:
        f = nearest.found[name]
        there = np.isfinite(f.d2)
        out[f"to_{name}_nm"] = np.where(there, far[name], np.nan)
        out[f"to_{name}_label"] = np.where(there, f.label, np.uint64(0))
        if points:
            out |= {f"to_{name}_{a}_nm": f.point[:, i] for i, a in enumerate("zyx")}
    each = np.stack([far[n] for n in names], axis=1)
    least = each.min(axis=1)
    there = np.isfinite(least)
    out["nearest_nm"] = np.where(there, least, np.nan)
    out["nearest"] = pa.array([names[i] if ok else None for i, ok in zip(each.argmin(axis=1), there)], pa.string())
    return pa.table(out)


def positions(table, columns: str) -> np.ndarray:
    """float64 (n, 3) nm of the columns `{columns}_{z,y,x}_nm`. RecipeError if one is missing or not finite."""
    out = np.stack([column(table, f"{columns}_{a}_nm").astype(np.float64) for a in "zyx"], axis=1)
    if not np.isfinite(out).all():
        raise RecipeError(
            f"column '{columns}_{'zyx'[int(np.argwhere(~np.isfinite(out))[0, 1])]}_nm' of the table holds values that are no positions."
        )
    return out


def column(table, name: str) -> np.ndarray:
    if name not in table.column_names:
        raise RecipeError(f"the table has no column '{name}'.{nearest(name, table.column_names)} It has {', '.join(table.column_names)}.")
    return table.column(name).to_numpy()


def labels_of(table, name: str) -> np.ndarray:
    """A column of labels as uint64. RecipeError if it holds anything but whole numbers from 0."""
    values = column(table, name)
    if values.dtype.kind not in "uif" or not ((values >= 0) & (values == np.floor(values))).all():
        raise RecipeError(f"column '{name}' of the table must hold whole numbers from 0 to be used as labels.")
    return values.astype(np.uint64)


def rows_inside(table, columns: str, site: Site, spec: ArtefactSpec) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, positions in nm) of the rows whose voxel lies in the block; one beyond the volume belongs to the border's voxel."""
    at = positions(table, columns)
    label = labels_of(table, "label")
    if len(np.unique(label)) < len(label):
        values, counts = np.unique(label, return_counts=True)
        raise RecipeError(f"the table has several rows of label {values[counts > 1][0]}: each object must have one.")
    voxel = np.floor((at - np.array(spec.origin_nm)) / np.array(spec.spacing.zyx) + 0.5)
    voxel = np.clip(voxel, 0, np.array(spec.shape) - 1)
    here = ((voxel >= np.array(site.write.start)) & (voxel < np.array(site.write.stop))).all(axis=1)
    rows = np.flatnonzero(here)
    return rows[np.argsort(label[rows], kind="stable")], at


def some_objects(rng, shape: Int3, spacing) -> object:
    """For tests: positions in and a little beyond the volume, some on voxel boundaries."""
    import pyarrow as pa

    n = int(rng.integers(0, 40))
    voxels = rng.integers(-2, 2 * np.array(shape) + 2, (n, 3)) / 2 + np.where(rng.random((n, 1)) < 0.5, rng.random((n, 3)), 0)
    label = rng.choice(np.array([3, 7, 2**33, 2**40 + 1, 2**63 + 11], np.uint64), n) + np.arange(64, 64 * (n + 1), 64, dtype=np.uint64)
    return pa.table({"label": label, **{f"centroid_{a}_nm": voxels[:, i] * spacing[i] for i, a in enumerate("zyx")}})


class SurfaceReader(Measure):
    """A measure that reads surfaces and no voxels."""

    def memory(self, *inputs) -> float:
        return 2 * BYTES_PER_VOXEL  # the block's own faces and those of the block that is searched

    def fixed_memory(self) -> int:
        return CACHE_BYTES + CHUNK * 200


def nearest_to_points(at: np.ndarray, surface: Surface, own: np.ndarray | None = None, which: int = face_tree.ANY) -> Found:
    """What is nearest to each point (n, 3) nm."""
    spec, n = surface.spec, len(at)
    out = nothing_found(n)
    own = np.zeros(n, np.uint64) if own is None else own
    here = 2 * (at - np.array(spec.origin_nm)) / np.array(spec.spacing.zyx)
    boxes = Boxes(spec, here, here, np.zeros(n, np.int64), np.arange(n + 1, dtype=np.int32), np.arange(n))
    if n:
        search([lambda: boxes], np.stack([here.min(axis=0), here.max(axis=0)])[None], own, which, surface, out)
    put_points(out, at, surface)
    there = np.isfinite(out.d2)
    out.inset[there] = inset(np.abs(at - out.point)[there], spec.spacing)
    return out


@dataclass(frozen=True)
class _Searcher(SurfaceReader):
    """One that measures distances to several targets."""

    which: Annotated[
        Literal["any", "own", "other"],
        Field(description="labels of a target that count: any; own: only the one that an object has itself; other: all but that one"),
    ] = "any"
    points: Annotated[
        bool, Field(description="also give the point of each target that is nearest: columns to_NAME_z_nm, to_NAME_y_nm, to_NAME_x_nm")
    ] = False
    between: Annotated[
        Literal["faces", "voxels"],
        Field(
            description="faces: the surface is the faces of its voxels, which stand out over what was digitised; voxels: it runs through the middles of "
            "the nearest ones, which is free of that bias"
        ),
    ] = "faces"


@register("distance_to_surface")
@dataclass(frozen=True)
class CentreDistances(_Searcher):
    """Distance of each object's centre to the nearest face of each target surface, exact to the voxel boundary, and the smallest of them.

    One row an object of the table, by label: `to_NAME_nm` and `to_NAME_label` (the target's label there) for each target by name;
    `nearest_nm` and `nearest`, the smallest and its name, of equal ones the first in the alphabet. A distance is that of a point to a
    rectangle, the face of a voxel; always positive, whether the centre lies within the target or outside. NaN, label 0 and no name where a
    target has no face that counts. Of faces at one distance the least label counts.

    A smooth body is digitised to the voxels whose middles lie in it. Of the many that are about nearest some corner stands out, by about half a voxel
    along the line of the distance: distances come out that much too small. With `between: voxels` this is added, as if to the middle of the
    nearest voxel: on smooth membranes within 0.2 voxel of the true distance (docs/accuracy.md).

    With `fit_nm` distances are to the quadric fitted by least squares to the faces within that radius of the nearest one, of its label and on its
    side, each with its share of the area; then around the quadric's nearest point, four times in all. To the faces where there are fewer than 12.
    Tilted planes and balls of radius 5 to 30 voxels, fitted within 3 voxels: median error 0.04 to 0.07 voxels instead of 0.5 to 0.6; in voxels
    four times as thick as wide 0.02 to 0.06 widths instead of 0.9 to 1.3; within 5 voxels less, also from afar (0.02 at 400 voxels from a ball
    of 60). The radius should be smaller than that of the surface's curvature."""

    serves = "step 9: distance of each mitochondrion's centre to the nuclear membrane, the plasma membrane, and the smaller of both"
    ports = (
        Port("objects", ("table",), doc="with `label` and positions, as `measure` gives them"),
        Port("targets", ("surface",), many=True, doc="surfaces, by the names that the columns get; they need not share a grid"),
    )

    position: Annotated[str, Field(description="positions are the columns NAME_z_nm, NAME_y_nm, NAME_x_nm")] = "centroid"
    label_column: Annotated[str, Field(description="for own and other: the table's column that holds the label in the target")] = "label"
    fit_nm: Annotated[
        float | None,
        Field(gt=0, description="distances to the surface fitted to the faces so near, nm: 3 to 5 of the coarsest voxels. Default: to the faces"),
    ] = None

    @classmethod
    def examples(cls):
        return [cls(), cls("other", True), cls("own", between="voxels", label_column="label"), cls(points=True, fit_nm=60.0)]

    def example_tables(self, rng, shape: Int3, spacing):
        return {"objects": some_objects(rng, shape, spacing)}

    def measure(self, objects, targets: Mapping[str, Surface], *, site: Site) -> Nearest:
        first = next(iter(targets.values())).spec
        rows, at = rows_inside(objects, self.position, site, first)
        at, found = at[rows], {}
        own = labels_of(objects, self.label_column)[rows]
        for name, surface in targets.items():
            f = found[name] = nearest_to_points(at, surface, own, WHICH[self.which])
            if self.fit_nm is not None:
                _fit(at, f, surface, self.fit_nm)
        return Nearest(labels_of(objects, "label")[rows], found)

    def finish(self, partial: Nearest, inputs):
        return table_of(partial, self.points, self.between)


def _fit(at: np.ndarray, found: Found, surface: Surface, radius_nm: float) -> None:
    """Points and distances of the surface fitted around the points found, where there are faces enough."""
    there = np.flatnonzero(np.isfinite(found.d2))
    side = found.face[there] % 6
    outward = np.eye(3)[side >> 1] * np.where(side & 1, 1, -1)[:, None]
    point = fitted_points(at[there], found.point[there], outward, found.label[there], surface, radius_nm)
    ok = np.isfinite(point[:, 0])
    found.point[there[ok]] = point[ok]
    away = point[ok] - at[there[ok]]
    found.d2[there[ok]] = away[:, 0] ** 2 + away[:, 1] ** 2 + away[:, 2] ** 2
    found.inset[there[ok]] = 0  # no corner stands out of a fitted surface


def face_chunks(faces: Faces, spec: ArtefactSpec, size: int = CHUNK) -> tuple[list[Callable[[], Boxes]], np.ndarray]:
    """The faces in chunks of neighbours, leaf by leaf of their tree, and the corners of a box around each (chunks, 2, 3); the rows are the numbers
    of their labels."""
    tree = faces.tree
    ends = [0]
    while ends[-1] < len(tree.leaf_label):
        ends.append(max(ends[-1] + 1, int(np.searchsorted(tree.leaf_start, tree.leaf_start[ends[-1]] + size, side="right")) - 1))
    chunks = [functools.partial(_chunk, faces, spec, a, b) for a, b in itertools.pairwise(ends)]
    corners = [(tree.lo[a:b].min(axis=0), tree.hi[a:b].max(axis=0)) for a, b in itertools.pairwise(ends)]
    return chunks, np.array(corners).reshape(-1, 2, 3)


def _chunk(faces: Faces, spec: ArtefactSpec, a: int, b: int) -> Boxes:
    """The faces of the leaves a:b."""
    tree = faces.tree
    first, last = tree.leaf_start[a], tree.leaf_start[b]
    keys = Faces(faces.origin, faces.labels, faces.starts, tree.voxels[first:last], tree.sides[first:last], faces.normals[:0]).keys(spec.shape)
    return Boxes(spec, *rectangles(keys, spec.shape), keys, tree.leaf_start[a : b + 1] - first, tree.leaf_label[a:b].astype(np.int64))


def surface_to_surfaces(surface: Surface, targets: Mapping[str, Surface], which: int, box: Box) -> Nearest:
    """Of each label with faces in `box`, what those faces are nearest to in each target."""
    out = Nearest(np.zeros(0, np.uint64), {name: nothing_found(0) for name in targets})
    for faces in surface.inside(box):
        found = {}
        for name, target in targets.items():
            f = found[name] = nothing_found(len(faces.labels))
            chunks, corners = face_chunks(faces, surface.spec)
            search(chunks, moved(corners, surface.spec, target.spec), faces.labels, which, target, f)
            there = np.isfinite(f.d2)
            middles = np.full((len(f.d2), 3), np.nan)
            lo, hi = rectangles(f.query[there], surface.spec.shape)
            middles[there] = nm((lo + hi) / 2, surface.spec)
            put_points(f, middles, target)
            (a, b), (c, d) = (
                (nm(corner, spec) for corner in rectangles(keys[there], spec.shape))
                for keys, spec in ((f.query, surface.spec), (f.face, target.spec))
            )
            f.inset[there] = inset(np.maximum(np.maximum(a - d, c - b), 0.0), surface.spec.spacing, target.spec.spacing)
        out = out.merge(Nearest(faces.labels, found), 0)
    return out


@register("surface_distance")
@dataclass(frozen=True)
class SurfaceDistances(_Searcher):
    """Distance of each object's surface to each target surface: the least between any two faces, exact; 0 where they touch.

    One row for each label of `surface`, by label, with the columns of `distance_to_surface`. The point asked for with `points` is the one of the
    nearest face that is nearest to the middle of the object's own face. With `between: voxels` half a voxel is added at both ends, but where two touch."""

    serves = "step 9: distance of each mitochondrion's surface to the membranes"
    ports = (
        Port("surface", ("surface",), doc="of the objects"),
        Port("targets", ("surface",), many=True, doc="surfaces, by the names that the columns get; they need not share a grid"),
    )

    @classmethod
    def examples(cls):
        return [cls(), cls("other", True), cls("own", between="voxels")]

    def measure(self, surface: Surface, targets: Mapping[str, Surface], *, site: Site) -> Nearest:
        return surface_to_surfaces(surface, targets, WHICH[self.which], site.write)

    def finish(self, partial: Nearest, inputs):
        return table_of(partial, self.points, self.between)


@register("nearest_surface")
@dataclass(frozen=True)
class NearestSurface(SurfaceReader):
    """Each object's nearest neighbour of the same labelling, from surface to surface: columns `label`, `neighbour_nm`, `neighbour_label`, by
    label. 0 nm where two touch; of equally near ones the least label; NaN and label 0 where there is no other."""

    serves = "step 9: distances between objects"
    ports = (Port("surface", ("surface",)),)

    def measure(self, surface: Surface, *, site: Site) -> Nearest:
        return surface_to_surfaces(surface, {"neighbour": surface}, face_tree.OTHER, site.write)

    def finish(self, partial: Nearest, inputs):
        import pyarrow as pa

        f = partial.found["neighbour"]
        there = np.isfinite(f.d2)
        columns = {
            "label": partial.rows,
            "neighbour_nm": np.where(there, np.sqrt(f.d2), np.nan),
            "neighbour_label": np.where(there, f.label, np.uint64(0)),
        }
        return pa.table(columns)
