"""Surface area from counts along the 13 lattice directions (Crofton's formula), for any voxel spacing.

    S = 2 * sum_k c_k * T_k * V / |d_k|

T_k: number of voxel pairs (v, v + d_k), both inside the volume, of which exactly one lies in the object; V: voxel volume; |d_k|: length of
the direction; c_k: share of the unit sphere that is nearer to +-d_k than to any other direction, so that sum c_k = 1.
Legland, Kieu and Devaux 2007 (Image Anal Stereol 26:83); Lehmann and Legland 2012 (Insight Journal).

The counts are integers, so blocks add up to the whole exactly. Pairs that reach outside the volume do not count: an object cut by the
volume's border gets no surface where it is cut."""

from __future__ import annotations

import functools
import itertools

import numpy as np

#: the 13 directions ZYX, first non-zero component positive
DIRECTIONS = np.array([d for d in itertools.product((-1, 0, 1), repeat=3) if d > (0, 0, 0)], np.int64)
#: number of the direction of an offset (dz + 1, dy + 1, dx + 1) or its opposite; -1 for no offset
DIRECTION_OF = np.full((3, 3, 3), -1, np.int64)
for _k, (_z, _y, _x) in enumerate(DIRECTIONS):
    DIRECTION_OF[_z + 1, _y + 1, _x + 1] = DIRECTION_OF[1 - _z, 1 - _y, 1 - _x] = _k


@functools.lru_cache(maxsize=64)
def weights(spacing: tuple[float, float, float]) -> np.ndarray:
    """float64 (13,): area in nm2 of one pair of each direction, for a spacing ZYX in nm."""
    from scipy.spatial import SphericalVoronoi

    vectors = DIRECTIONS * np.array(spacing)
    lengths = np.linalg.norm(vectors, axis=1)
    unit = vectors / lengths[:, None]
    areas = SphericalVoronoi(np.concatenate([unit, -unit])).calculate_areas()
    share = (areas[:13] + areas[13:]) / (4 * np.pi)
    return 2 * share * np.prod(spacing) / lengths


def surface_area(pairs: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """nm2 (n,) from pair counts (n, 13). Summed in a fixed order."""
    w = weights(tuple(spacing))
    out = np.zeros(len(pairs))
    for k in range(13):
        out += pairs[:, k] * w[k]
    return out


def plane_bias(spacing: tuple[float, float, float]) -> tuple[float, float]:
    """Smallest and largest relative error of the area of a plane, over all its orientations: 2 sum_k c_k |n . d_k| / |d_k| - 1. Closed surfaces
    average over orientations; a flat one does not."""
    vectors = DIRECTIONS * np.array(spacing)
    lengths = np.linalg.norm(vectors, axis=1)
    share = weights(tuple(spacing)) * lengths / (2 * np.prod(spacing))
    i = np.arange(20_000) + 0.5  # normals spread evenly on the half sphere (Fibonacci), and the axes and directions themselves
    z, angle = i / len(i), np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - z * z)
    normals = np.concatenate([np.stack([z, ring * np.sin(angle), ring * np.cos(angle)], 1), np.eye(3), vectors / lengths[:, None]])
    ratio = 2 * np.abs(normals @ (vectors / lengths[:, None]).T) @ share
    return float(ratio.min() - 1), float(ratio.max() - 1)
