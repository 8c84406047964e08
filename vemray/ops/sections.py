"""Objects cut into sections by a plane or by points that a person chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import ArraySpec
from vemray.ops.base import Filter, Port, Site, register

Point = tuple[float, float, float]
#: a voxel so near to the cut, nm, lies on it: rounding does not decide
ON_THE_CUT = 1e-6


@register("sections")
@dataclass(frozen=True)
class Sections(Filter):
    """Objects cut by hand: by a plane into sections 1 (against its normal, and on it) and 2, or by points into 1, 2, ..., each voxel in the section
    of its nearest point, of equally near ones the first.

    Positions are in nm as in tables: `centroid_z_nm` and the like, or what a viewer shows in the volume's own frame. A voxel belongs where its
    centre lies. The cut goes through all objects alike and says nothing of which object a voxel is of: `label_parts` of the objects `within` the
    sections gives each part a label of its own, `mask_labels` before it leaves one object alone. For a surface without the cut, take
    `surface` of the sections `towards: background`. `neck` and `sections_at_neck` find the plane by themselves."""

    serves = "step 15: the nucleus in two sections, cut by hand"
    ports = (Port("labels", ("labels", "mask"), doc="what is cut; 0 stays 0"),)

    point_nm: Annotated[Point | None, Field(description="a point of the plane (z, y, x), nm")] = None
    normal: Annotated[
        Point | None, Field(description="direction (z, y, x) across the plane, of any length, in physical space: from section 1 to 2")
    ] = None
    points_nm: Annotated[
        tuple[Point, ...] | None, Field(description="instead of a plane: two points (z, y, x) or more, nm, one in the middle of each section")
    ] = None

    @classmethod
    def examples(cls):
        return [
            cls((0.0, 1.0, 2.0), (1.0, -2.0, 0.5)), cls((0.0, 0.0, 0.0), (0.0, 0.0, -3.0)), cls(points_nm=((0.0, 0.0, 0.0), (1.0, -1.0, 1.0))),
            cls(points_nm=((0.5, 1.0, 0.0), (0.0, -1.0, 1.0), (0.0, 1.0, -1.0), (-0.5, -1.0, -1.0))),
        ]  # fmt: skip

    def check(self, labels: ArraySpec) -> None:
        plane, points = self.point_nm is not None or self.normal is not None, self.points_nm is not None
        if plane == points or (plane and (self.point_nm is None or self.normal is None)):
            raise RecipeError("'sections' takes a plane by 'point_nm' and 'normal', or 'points_nm': one of the two, whole.")
        if plane and not (np.isfinite(self.normal).all() and np.any(self.normal)):
            raise RecipeError(f"sections: the normal {list(self.normal)} has no direction. Give (z, y, x), not all 0.")
        at = np.array([self.point_nm] if plane else self.points_nm, float).reshape(-1, 3)
        if points and len(at) < 2:
            raise RecipeError(f"sections: 'points_nm' has {len(at)} point{'s'[: len(at) != 1]}. It takes two or more, one for each section.")
        spacing = np.array(labels.spacing.zyx)
        low = np.array(labels.origin_nm) - spacing / 2
        high = low + spacing * labels.shape
        for p in at:
            if not ((low <= p) & (p <= high)).all():
                ends = ", ".join(f"{a} {lo:g} to {hi:g}" for a, lo, hi in zip("zyx", low, high))
                raise RecipeError(
                    f"sections: the point {p.tolist()} lies outside of the volume, whose voxels go from {ends} nm. Points are (z, y, x)."
                )
        if len(np.unique(at, axis=0)) < len(at):
            values, counts = np.unique(at, axis=0, return_counts=True)
            raise RecipeError(f"sections: the point {values[counts > 1][0].tolist()} stands twice in 'points_nm'. Each section needs its own.")

    def output(self, labels: ArraySpec) -> ArraySpec:
        return labels.like(np.uint64, "labels")

    def memory(self, labels: ArraySpec) -> float:
        return 8.1

    def __call__(self, labels: np.ndarray, *, site: Site) -> np.ndarray:
        slopes, heights, within = self._planes()
        spec = site.inputs[0]
        first = np.array(self.point_nm if self.points_nm is None else self.points_nm[0])
        # global positions from the first point on, so that blocks do not matter and few digits are lost
        along = [
            np.outer(spec.origin_nm[a] - first[a] + np.arange(site.read.start[a], site.read.stop[a]) * spec.spacing.zyx[a], slopes[:, a])
            for a in range(3)
        ]
        out = np.empty(labels.shape, np.uint64)
        _least(labels, *along, heights, within, out)
        return out

    def _planes(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Slopes (k, 3) and heights (k,) of functions of the position from the first point on: a voxel belongs to the least of them, the first of those
        that differ by no more than the third."""
        if self.points_nm is None:
            normal = np.array(self.normal) / np.abs(self.normal).max()
            return np.stack([np.zeros(3), -normal / np.sqrt((normal * normal).sum())]), np.zeros(2), ON_THE_CUT
        q = np.array(self.points_nm) - np.array(self.points_nm[0])
        squared = (q * q).sum(axis=1)  # |v - q|^2 without |v|^2, which is the same for all
        return -2 * q, squared, 2 * ON_THE_CUT * float(np.sqrt(squared.max()))


@njit(cache=True, nogil=True)
def _least(labels, along_z, along_y, along_x, heights, within, out):
    """Number from 1 of the function that is least at each set voxel, 0 elsewhere."""
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if labels[z, y, x] == 0:
                    out[z, y, x] = 0
                    continue
                least, which = np.inf, 0
                for k in range(len(heights)):
                    value = along_z[z, k] + along_y[y, k] + along_x[x, k] + heights[k]
                    if value < least - within:
                        least, which = value, k + 1
                out[z, y, x] = which
