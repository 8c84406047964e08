"""Faces around points, and the surface that is fitted to them."""

from __future__ import annotations

import numpy as np
from numba import njit

from vemray.geometry import ArtefactSpec
from vemray.ops.face_extract import UNIT
from vemray.ops.face_tree import FAN, span, squared
from vemray.ops.faces import Surface, face_areas

#: how often a fit is repeated around the point that the last one gave
ROUNDS = 4


@njit(cache=True, nogil=True)
def _near(lo, hi, i, limit, half, label, any_label, tree):
    """Places in the tree of the faces whose middles lie within `limit` nm2 of point i, of one label or any."""
    origin, voxels, sides, leaf_start = tree[0], tree[2], tree[3], tree[4]
    level, node_lo, node_hi, label_min, label_max = tree[8], tree[9], tree[10], tree[11], tree[12]
    levels = len(level) - 1
    stack_level, stack_node = np.empty(FAN * 24, np.int64), np.empty(FAN * 24, np.int64)
    out, found = np.empty(1024, np.int64), 0
    top = 0
    stack_level[0], stack_node[0] = levels - 1, level[levels - 1]
    while top >= 0:
        k, n = stack_level[top], stack_node[top]
        top -= 1
        if not any_label and not (label_min[n] <= label and label <= label_max[n]):
            continue
        if squared(lo, hi, i, node_lo, node_hi, n, half) > limit:
            continue
        if k > 0:
            first = level[k - 1] + FAN * (n - level[k])
            for c in range(first, min(first + FAN, level[k])):
                top += 1
                stack_level[top], stack_node[top] = k - 1, c
            continue
        for j in range(leaf_start[n], leaf_start[n + 1]):
            d2 = 0.0
            for a in range(3):
                p, q = span(voxels, sides, origin, j, a)
                g = ((p + q) / 2 - lo[i, a]) * half[a]
                d2 += g * g
            if d2 <= limit:
                if found == len(out):
                    out = np.append(out, np.empty_like(out))
                out[found] = j
                found += 1
    return out[:found]


def faces_near(surface: Surface, half_voxels: np.ndarray, radius_nm: float, label: np.ndarray | None = None):
    """For each point (n, 3) the faces whose middles lie within a radius, of its `label` if given: yields (point, faces' block, places in Faces),
    block after block."""
    half, limit = np.array(surface.spec.spacing.zyx) / 2, radius_nm * radius_nm
    block_lo, block_hi = surface.bounds()
    gap = np.maximum(np.maximum(block_lo - half_voxels[:, None], half_voxels[:, None] - block_hi), 0.0) * half
    meets = gap[..., 0] ** 2 + gap[..., 1] ** 2 + gap[..., 2] ** 2 <= limit
    for b in np.flatnonzero(meets.any(axis=0)):
        faces = surface.block(b)
        tree = faces.tree.arrays()
        for i in np.flatnonzero(meets[:, b]):
            own = np.uint64(0) if label is None else label[i]
            found = _near(half_voxels, half_voxels, i, limit, half, own, label is None, tree)
            if len(found):
                yield i, faces, faces.tree.order[found]


def half_voxels(at: np.ndarray, spec: ArtefactSpec) -> np.ndarray:
    """Positions in nm (n, 3) in half voxels of a grid."""
    return 2 * (at - np.array(spec.origin_nm)) / np.array(spec.spacing.zyx)


def fitted_points(at: np.ndarray, near: np.ndarray, normal: np.ndarray, label: np.ndarray, surface: Surface, radius_nm: float) -> np.ndarray:
    """For each position (n, 3) the point nearest to it of a quadric through the faces of `label` that lie within a radius of the point `near` it and
    look where `normal` does; then around that point again. NaN where there are fewer than 12. All in nm."""
    spec, areas = surface.spec, face_areas(surface.spec.spacing)
    per, origin = np.array(spec.spacing.zyx) / 2, np.array(spec.origin_nm)
    out, there, up = np.full((len(at), 3), np.nan), np.arange(len(at)), normal.copy()
    for _ in range(ROUNDS):
        parts: list[list[np.ndarray]] = [[] for _ in there]
        centre = np.where(np.isfinite(out), out, near)
        for i, faces, places in faces_near(surface, half_voxels(centre[there], spec), radius_nm, label[there]):
            normals = faces.normals[places] / UNIT
            facing = normals @ up[there[i]] > 0
            places, normals = places[facing], normals[facing]
            weight = areas[faces.sides[places] >> 1] / np.abs(normals).sum(axis=1)
            key = faces.keys(spec.shape, places)
            parts[i].append(np.concatenate([key[:, None], faces.centres(places) * per + origin, normals, weight[:, None]], axis=1))
        kept = np.zeros(len(there), bool)
        for i, row in enumerate(there):
            patch = np.concatenate(parts[i]) if parts[i] else np.empty((0, 8))
            patch = patch[np.argsort(patch[:, 0], kind="stable")]  # one order of sums, whatever the blocks
            found = _nearest_of_quadric(patch[:, 1:4], patch[:, 4:7], patch[:, 7], centre[row], at[row], radius_nm) if len(patch) >= 12 else None
            if found is not None:
                out[row], up[row] = found
                kept[i] = True
        there = there[kept]
    return out


def _nearest_of_quadric(middles, normals, weight, centre, at, radius: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The point of the quadric that is nearest to `at`, no farther across than the radius, and the normal at the centre; None if the faces lie on a
    line. Lengths in radii."""
    up = (normals * weight[:, None]).sum(axis=0)
    up /= np.linalg.norm(up)
    u = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    u /= np.linalg.norm(u)
    axes = np.stack([u, np.cross(up, u), up])
    p, q, h = axes @ ((middles - centre) / radius).T
    terms = np.stack([np.ones_like(p), p, q, p * p / 2, p * q, q * q / 2], axis=1)
    moments = terms.T @ (terms * weight[:, None])
    if np.linalg.cond(moments) > 1e10:
        return None
    c = np.linalg.solve(moments, terms.T @ (h * weight))
    bent, slope, aim = np.array([[c[3], c[4]], [c[4], c[5]]]), c[1:3], axes @ ((at - centre) / radius)
    x = np.zeros(2)
    for _ in range(20):
        height, g = c[0] + slope @ x + x @ bent @ x / 2, slope + bent @ x
        over = height - aim[2]
        step = x - aim[:2] + over * g
        hessian = np.eye(2) + np.outer(g, g) + over * bent
        least = np.linalg.eigvalsh(hessian)[0]
        if least < 1e-3:  # beyond the centre of curvature
            hessian += (1e-3 - least) * np.eye(2)
        new = x - np.linalg.solve(hessian, step)
        new /= max(1.0, np.linalg.norm(new))
        if np.abs(new - x).max() < 1e-12:
            break
        x = new
    height = c[0] + slope @ x + x @ bent @ x / 2
    return centre + radius * (np.array([x[0], x[1], height]) @ axes), up
