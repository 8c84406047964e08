"""What surrounds points on a membrane: how much of it, how many others on it, and how it is curved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vemray.geometry import Int3
from vemray.ops.base import Port, Site, register
from vemray.ops.face_distance import SurfaceReader, labels_of, nearest_to_points, nm, rows_inside, some_objects
from vemray.ops.face_extract import UNIT
from vemray.ops.face_near import faces_near, half_voxels
from vemray.ops.faces import Surface, area_nm2, face_areas


@dataclass
class Rows:
    """Columns by label, each row from one block."""

    columns: dict[str, np.ndarray]

    def merge(self, upper: Rows, axis: int) -> Rows:
        return Rows({k: np.concatenate([v, upper.columns[k]]) for k, v in self.columns.items()})

    def sorted(self) -> dict[str, np.ndarray]:
        order = np.argsort(self.columns["label"])
        return {k: v[order] for k, v in self.columns.items()}


@dataclass(frozen=True)
class _AtObjects(SurfaceReader):
    """A measure at the objects of a table, on one surface."""

    ports = (Port("objects", ("table",), doc="with `label` and positions, as `measure` gives them"), Port("surface", ("surface",)))

    radius_nm: Annotated[float, Field(gt=0, description="how far around an object to look, in nm")] = 200.0
    position: Annotated[str, Field(description="positions are the columns NAME_z_nm, NAME_y_nm, NAME_x_nm")] = "centroid"

    @classmethod
    def examples(cls):
        return [cls(40.0)]

    def example_tables(self, rng, shape: Int3, spacing):
        return {"objects": some_objects(rng, shape, spacing)}


@register("surface_density")
@dataclass(frozen=True)
class SurfaceDensity(_AtObjects):
    """How densely objects lie on a surface around each of them: objects of the table within `radius_nm` of it, itself included, over the area of
    the surface within `radius_nm`.

    Columns, by label: `objects`, counted by centres; `area_nm2` of faces whose middles are within the radius, each with its share of the surface
    (see `surface`), whatever label; `per_um2`, NaN where there is no surface. What the volume's border cuts off is not counted in the area."""

    serves = "step 14: density of the pores, here on the surface instead of in the volume"

    def measure(self, objects, surface: Surface, *, site: Site) -> Rows:
        from scipy.spatial import cKDTree

        rows, at = rows_inside(objects, self.position, site, surface.spec)
        counts = cKDTree(at).query_ball_point(at[rows], self.radius_nm, return_length=True) if len(rows) else np.zeros(0, np.int64)
        sums = np.zeros((len(rows), 3), np.int64)
        for i, faces, found in faces_near(surface, half_voxels(at[rows], surface.spec), self.radius_nm):
            shares, axis = faces.shares(found), faces.sides[found] >> 1
            for a in range(3):
                sums[i, a] += shares[axis == a].sum()
        return Rows({"label": labels_of(objects, "label")[rows], "objects": counts.astype(np.int64), "sums": sums})

    def finish(self, partial: Rows, inputs):
        import pyarrow as pa

        c = partial.sorted()
        area = area_nm2(c["sums"], inputs[0].spacing)
        with np.errstate(divide="ignore"):
            per_um2 = np.where(area > 0, c["objects"] / (area * 1e-6), np.nan)
        return pa.table({"label": c["label"], "objects": c["objects"], "area_nm2": area, "per_um2": per_um2})


@register("curvature")
@dataclass(frozen=True)
class Curvature(_AtObjects):
    """Curvature of a surface next to each object: of a quadric fitted to the faces around the point of the surface that is nearest.

    The faces are those of the nearest label whose middles lie within `radius_nm` of that point, and that look to the same side as the nearest one:
    not the far side of a thin sheet. Least squares of the height over the plane across their mean normal, each face weighted by its share of the
    area (a Monge patch, as in Goldfeather and Interrante 2004). Columns, by label: `distance_nm` to the surface, `mean_per_um`, `gaussian_per_um2`,
    the principal curvatures `largest_per_um` and `least_per_um`, and `faces`, their number. Positive is convex as seen from outside the
    label: a ball of radius R has 1 / R. NaN with fewer than 12 faces. The radius should span at least 5 voxels, and be at most half of the least
    radius of curvature: at half, a ball's comes out about 7 % too large. Where the volume's border cuts the surface the fit is one-sided."""

    serves = "step 15: curvature as a covariate of the density of pores"

    def measure(self, objects, surface: Surface, *, site: Site) -> Rows:
        rows, at = rows_inside(objects, self.position, site, surface.spec)
        found = nearest_to_points(at[rows], surface)
        there = np.flatnonzero(np.isfinite(found.d2))
        parts: list[list[np.ndarray]] = [[] for _ in there]
        for i, faces, places in faces_near(surface, half_voxels(found.point[there], surface.spec), self.radius_nm, found.label[there]):
            middles = nm(faces.centres(places).astype(np.float64), surface.spec)
            keys = faces.keys(surface.spec.shape, places)
            parts[i].append(np.concatenate([keys[:, None], middles, faces.normals[places], faces.sides[places, None] >> 1], axis=1))
        values = np.full((len(rows), 4), np.nan)
        count = np.zeros(len(rows), np.int64)
        areas = face_areas(surface.spec.spacing)
        for i, pieces in zip(there, parts):
            if pieces:
                patch = np.concatenate(pieces)
                patch = patch[np.argsort(patch[:, 0], kind="stable")]  # one order of sums, whatever the blocks
                values[i], count[i] = _fit(patch, found.face[i], found.point[i], areas)
        distance = np.where(np.isfinite(found.d2), np.sqrt(found.d2), np.nan)
        return Rows({"label": labels_of(objects, "label")[rows], "distance": distance, "values": values, "faces": count})

    def finish(self, partial: Rows, inputs):
        import pyarrow as pa

        c = partial.sorted()
        names = ("mean_per_um", "gaussian_per_um2", "largest_per_um", "least_per_um")
        values = {n: c["values"][:, i] * (1e6 if n.endswith("um2") else 1e3) for i, n in enumerate(names)}
        return pa.table({"label": c["label"], "distance_nm": c["distance"], **values, "faces": c["faces"]})


def _fit(patch: np.ndarray, nearest_key: int, centre: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, int]:
    """Mean, Gaussian, largest and least curvature (1 / nm) at `centre`, and the number of faces used. Rows of `patch`: key, middle in nm, normal,
    axis."""
    normals = patch[:, 4:7] / UNIT
    side = patch[:, 0] == nearest_key
    if not side.any():  # the nearest face is larger than the radius
        return np.full(4, np.nan), 0
    facing = normals @ normals[side][0] > 0
    patch, normals = patch[facing], normals[facing]
    if len(patch) < 12:
        return np.full(4, np.nan), len(patch)
    weight = areas[patch[:, 7].astype(int)] / np.abs(normals).sum(axis=1)
    up = (normals * weight[:, None]).sum(axis=0)
    up /= np.linalg.norm(up)
    u = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    u /= np.linalg.norm(u)
    v = np.cross(up, u)
    local = patch[:, 1:4] - centre
    scale = np.abs(local).max()
    p, q, h = local @ u / scale, local @ v / scale, local @ up / scale
    terms = np.stack([np.ones_like(p), p, q, p * p / 2, p * q, q * q / 2], axis=1)
    moments = terms.T @ (terms * weight[:, None])
    if np.linalg.cond(moments) > 1e10:  # the faces lie on a line
        return np.full(4, np.nan), len(patch)
    _, hu, hv, huu, huv, hvv = np.linalg.solve(moments, terms.T @ (h * weight))
    g = 1 + hu * hu + hv * hv
    mean = -((1 + hv * hv) * huu - 2 * hu * hv * huv + (1 + hu * hu) * hvv) / (2 * g**1.5) / scale
    gaussian = (huu * hvv - huv * huv) / g**2 / scale**2
    root = np.sqrt(max(mean * mean - gaussian, 0.0))
    return np.array([mean, gaussian, mean + root, mean - root]), len(patch)


@dataclass
class Areas:
    """By label: faces and sums of shares by axis."""

    label: np.ndarray
    faces: np.ndarray
    sums: np.ndarray

    def merge(self, upper: Areas, axis: int) -> Areas:
        label = np.concatenate([self.label, upper.label])
        order = np.argsort(label, kind="stable")
        label = label[order]
        first = np.flatnonzero(np.concatenate([[True], label[1:] != label[:-1]])) if len(label) else np.zeros(0, np.int64)
        if not len(first):
            return self
        faces, sums = (np.concatenate(pair)[order] for pair in ((self.faces, upper.faces), (self.sums, upper.sums)))
        return Areas(label[first], np.add.reduceat(faces, first), np.add.reduceat(sums, first))


@register("surface_area")
@dataclass(frozen=True)
class SurfaceAreas(SurfaceReader):
    """Area of each label's surface and how densely objects lie on it: the whole, of which `surface_density` gives the part around each object.

    Columns, by label: `faces`, `area_nm2`, each face with its share of the surface (see `surface`; `measure` gives Crofton's estimate, with the
    smaller error); with objects also `objects`, the rows whose `label_column` holds the label, and `per_um2`. No area where the volume's border
    cuts, and no objects beyond it: the density is that of the part seen."""

    serves = "steps 14 and 15: density of pores on the envelope and on its sections"
    ports = (
        Port("surface", ("surface",)),
        Port("objects", ("table",), optional=True, doc="of objects, with a column of the label that each lies on, as `distance_to_surface` gives it"),
    )

    label_column: Annotated[str, Field(description="column of the label that an object lies on")] = "label"

    def example_tables(self, rng, shape: Int3, spacing):
        return {"objects": some_objects(rng, shape, spacing)}

    def measure(self, surface: Surface, objects=None, *, site: Site) -> Counted:
        out = Areas(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64))
        for faces in surface.inside(site.write):
            sums = np.zeros((len(faces.labels), 3), np.int64)
            np.add.at(sums, (faces.label_rows(), faces.sides >> 1), faces.shares())
            out = out.merge(Areas(faces.labels, np.diff(faces.starts), sums), 0)
        return Counted(out, None if objects is None else labels_of(objects, self.label_column))

    def finish(self, partial: Counted, inputs):
        import pyarrow as pa

        areas = partial.areas
        area = area_nm2(areas.sums, inputs[0].spacing)
        columns = {"label": areas.label, "faces": areas.faces, "area_nm2": area}
        if partial.on is not None:
            on = np.sort(partial.on)
            columns["objects"] = np.searchsorted(on, areas.label, side="right") - np.searchsorted(on, areas.label)
            columns["per_um2"] = columns["objects"] / (area * 1e-6)
        return pa.table(columns)


@dataclass
class Counted:
    """Areas, and the labels that objects lie on, of all objects: the same in every block."""

    areas: Areas
    on: np.ndarray | None

    def merge(self, upper: Counted, axis: int) -> Counted:
        return Counted(self.areas.merge(upper.areas, axis), self.on)
