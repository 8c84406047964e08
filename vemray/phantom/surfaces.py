"""The phantom's two membranes as level sets: how far a place is from them, where they lie, how large they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: rounding of the furrow between the lobes, and of the mouths of fingers, nm (compiled into kernels.py: change that file too, numba does not see it here)
FURROW, MOUTH = 120.0, 50.0
#: distance between the points that stand for a surface, nm
APART = 55.0


def undulation(p: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Sum of waves at points (n, 3)."""
    return (waves[:, 0] * np.sin(p @ waves[:, 1:4].T + waves[:, 4])).sum(-1)


def cell_distance(p: np.ndarray, half: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """About the signed distance (nm, negative inside) of points (n, 3), from the cell's centre, to the plasma membrane; zero exactly on it."""
    q = np.linalg.norm(p / half, axis=-1)
    scale = np.linalg.norm(p / half**2, axis=-1)
    return q * (q - 1) / np.maximum(scale, 1e-9) - undulation(p, waves)


def nucleus_distance(p: np.ndarray, lobes: np.ndarray, waves: np.ndarray, fingers: np.ndarray | None = None) -> np.ndarray:
    """About the signed distance (nm) to the outer nuclear membrane: a union of the lobes, rounded by 60 nm in the furrow, less the fingers of
    cytoplasm; zero exactly on it."""
    d = np.linalg.norm(p[:, None] - lobes[:, :3], axis=-1) - lobes[:, 3]
    a, b = d[:, 0], d[:, 1]
    h = np.clip(0.5 + 0.5 * (b - a) / FURROW, 0, 1)
    out = b * (1 - h) + a * h - FURROW * h * (1 - h) - undulation(p, waves)
    for finger in () if fingers is None else fingers:
        middle, reach = (finger[:3] + finger[3:6]) / 2, np.abs(finger[3:6] - finger[:3]).max() / 2 + 400.0
        near = np.flatnonzero((np.abs(p - middle) < reach).all(1))  # farther away it moves no surface
        e = finger[6] - distance_to_line(p[near], finger)
        d = np.maximum(out[near], e)
        out[near] = d + MOUTH / 4 * np.maximum(0.0, 1 - np.abs(out[near] - e) / MOUTH) ** 2
    return out


def distance_to_line(p: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Distance of points (n, 3) to the segment from line[:3] to line[3:6]."""
    u = line[3:6] - line[:3]
    t = np.clip((p - line[:3]) @ u / (u @ u), 0, 1)
    return np.linalg.norm(p - line[:3] - t[:, None] * u, axis=1)


def lobe_of(p: np.ndarray, lobes: np.ndarray) -> np.ndarray:
    """1 or 2: the lobe (the first is the larger) that points (n, 3) are nearer to; the border runs through the furrow."""
    return 1 + np.argmin(np.linalg.norm(p[:, None] - lobes[:, :3], axis=-1) - lobes[:, 3], axis=1)


def gradient(level: Callable, p: np.ndarray, step: float = 0.25) -> np.ndarray:
    out = np.empty(p.shape)
    for a in range(3):
        e = np.zeros(3)
        e[a] = step
        out[:, a] = (level(p + e) - level(p - e)) / (2 * step)
    return out


def onto(level: Callable, p: np.ndarray, steps: int = 6) -> np.ndarray:
    """Points (n, 3) near a surface moved onto it, along its normal."""
    g = gradient(level, p)
    g /= (g**2).sum(1, keepdims=True)
    for _ in range(steps):
        p = p - level(p)[:, None] * g
    return p


@dataclass(frozen=True, eq=False)
class Surface:
    """`points` (n, 3) on {level = 0}, their outward `normals` and the `areas` (nm2) they stand for."""

    level: Callable[[np.ndarray], np.ndarray]
    points: np.ndarray
    normals: np.ndarray
    areas: np.ndarray

    @property
    def area(self) -> float:
        return float(self.areas.sum())

    @property
    def volume(self) -> float:
        """Enclosed volume, by the divergence theorem."""
        return float(((self.points * self.normals).sum(1) * self.areas).sum() / 3)

    @functools.cached_property
    def _tree(self):
        from scipy.spatial import cKDTree

        return cKDTree(self.points)

    def near(self, p: np.ndarray) -> np.ndarray:
        """Distance of points (n, 3) to the nearest of the surface's points: at most `APART`, and rarely more than 2 nm, too much."""
        return self._tree.query(p)[0]

    def distance(self, p: np.ndarray, starts: int = 6) -> np.ndarray:
        """Distance (nm, without sign) of points (n, 3) to the surface, to 0.1 nm: from the nearest of its points along the surface, in ever smaller steps."""
        x = self.points[self._tree.query(p, starts)[1]].reshape(-1, 3)
        p = np.repeat(p, starts, axis=0)
        best = np.linalg.norm(p - x, axis=1)
        ways = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
        for step in (32.0, 16.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5):
            g = gradient(self.level, x)
            length2 = (g**2).sum(1, keepdims=True)
            n = g / np.sqrt(length2)
            e = np.cross(n, np.eye(3)[np.argmin(np.abs(n), axis=1)])
            e /= np.linalg.norm(e, axis=1, keepdims=True)
            f = np.cross(n, e)
            at = x
            for i, j in ways:
                y = at + step * (i * e + j * f)
                for _ in range(3):
                    y = y - self.level(y)[:, None] * g / length2
                d = np.linalg.norm(p - y, axis=1)
                better = (d < best) & (np.abs(self.level(y)) < 0.05)
                x, best = np.where(better[:, None], y, x), np.where(better, d, best)
        return best.reshape(-1, starts).min(1)


def _directions(n: int) -> np.ndarray:
    """n directions evenly over the sphere (Fibonacci)."""
    i = np.arange(n) + 0.5
    z, phi = 1 - 2 * i / n, i * np.pi * (3 - np.sqrt(5))
    r = np.sqrt(1 - z * z)
    return np.stack([z, r * np.sin(phi), r * np.cos(phi)], 1)


def _rays(level: Callable, origin: np.ndarray, half_axes: np.ndarray):
    """Where rays from `origin` meet a surface that is about an ellipsoid: points, normals, areas."""
    u = _directions(int(4 * np.pi * np.mean(half_axes**2) / APART**2))
    rho = 1 / np.linalg.norm(u / half_axes, axis=1)
    for _ in range(8):
        f = level(origin + rho[:, None] * u)
        if np.abs(f).max() < 1e-6:
            break
        slope = (level(origin + (rho + 0.5)[:, None] * u) - f) / 0.5
        rho = rho - np.clip(f / np.maximum(slope, 0.4), -80, 80)
    p = origin + rho[:, None] * u
    n = gradient(level, p)
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    facing = (n * u).sum(1)
    met = (np.abs(level(p)) < 1e-3) & (facing > 0.05)
    areas = 4 * np.pi / len(u) * rho**2 / np.maximum(facing, 0.05)
    return p[met], n[met], areas[met]


def plasma_membrane(half: np.ndarray, waves: np.ndarray) -> Surface:
    level = functools.partial(cell_distance, half=half, waves=waves)
    return Surface(level, *_rays(level, np.zeros(3), half))


def envelope(lobes: np.ndarray, waves: np.ndarray, fingers: np.ndarray) -> Surface:
    """The outer nuclear membrane: seen from the centre of each lobe, and the walls of the fingers from their middle lines."""
    smooth = functools.partial(nucleus_distance, lobes=lobes, waves=waves)
    level = functools.partial(nucleus_distance, lobes=lobes, waves=waves, fingers=fingers)
    parts = []
    for i, lobe in enumerate(lobes):
        p, n, areas = _rays(smooth, lobe[:3], np.full(3, lobe[3]))
        # no surface over the mouth of a finger; around it, the rim lies lower
        deep = level(p)
        keep = (lobe_of(p, lobes) == i + 1) & (deep < MOUTH / 4)
        p, n, areas, deep = p[keep], n[keep], areas[keep], deep[keep]
        rim = deep > 1e-3
        p[rim] = onto(level, p[rim], 12)
        parts.append((p, n, areas))
    for finger in fingers:
        parts.append(_wall(level, smooth, finger))
    return Surface(level, *(np.concatenate(a) for a in zip(*parts)))


def _wall(level: Callable, smooth: Callable, finger: np.ndarray):
    """The wall of a finger, from the rounded rim of its mouth to its tip."""
    start, end, r = finger[:3], finger[3:6], finger[6]
    axis = (end - start) / np.linalg.norm(end - start)
    e = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    e /= np.linalg.norm(e)
    f = np.cross(axis, e)
    apart = APART / 3
    length, around = np.linalg.norm(end - start), int(2 * np.pi * r / apart)
    along = (np.arange(int(length / apart)) + 0.5) * apart
    turn = 2 * np.pi * np.arange(around) / around
    out = (np.cos(turn)[:, None] * e + np.sin(turn)[:, None] * f)[None]
    tube = (start + along[:, None, None] * axis + r * out).reshape(-1, 3)
    ball = _directions(int(4 * np.pi * r * r / apart**2))
    tip = end + r * ball[ball @ axis > 0]
    p = np.concatenate([tube, tip])
    areas = np.concatenate([np.full(len(tube), 2 * np.pi * r / around * apart), np.full(len(tip), 4 * np.pi * r * r / len(ball))])
    # above the mouth there is no wall; where it begins it bends away and is met near by
    inside = smooth(p) < 0
    p, areas = onto(level, p[inside], 12), areas[inside]
    good = np.abs(level(p)) < 1e-2
    p = p[good]
    n = gradient(level, p)
    return p, n / np.linalg.norm(n, axis=1, keepdims=True), areas[good]
