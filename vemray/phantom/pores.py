"""Where the nuclear envelope has pores, what lies under them, and what only looks like it."""

from __future__ import annotations

import math

import numpy as np

from vemray.errors import InputError
from vemray.phantom.surfaces import APART, Surface, gradient, lobe_of, onto

#: how much denser pores are in the smaller lobe, where that is planted
DENSER = 1.6
#: nm. Least distance of two pores; pores' radius; half width and depth of pockets; depth of the inner membrane in the units of the level
HARD_CORE, RADIUS, HALF_WIDTH, DEPTH, INNER = 200.0, (56.0, 64.0), (76.0, 112.0), (150.0, 240.0), 42.0
#: a pocket is an ellipsoid cut by the inner membrane: where along its depth its middle lies (compiled into kernels.py, as is LIP: see surfaces.py)
MIDDLE = 0.42
#: nm of heterochromatin between two pockets, at least
WALL = 14.0
#: how far a pore stands out over the outer membrane, nm
LIP = 4.0
#: look-alikes for each pore: light holes that end under the envelope, and blind ones that reach it where no pore is
BURIED, BLIND = 0.3, 0.04
#: variance of the number of discs that exclude each other, over that of points that do not (Carnahan and Starling's equation of state in 2D, at a fifth filled)
REGULAR = 0.45
#: no pores
NONE = np.zeros((0, 16))


def fingers(rng, outer: Surface, lobes: np.ndarray, number: int) -> np.ndarray:
    """Narrow invaginations of the envelope, (n, 7): start outside ZYX, end inside ZYX, radius."""
    out: list[np.ndarray] = []
    for _ in range(200 * number):
        if len(out) == number:
            break
        k = rng.choice(len(outer.points), p=outer.areas / outer.area)
        p, n = outer.points[k], outer.normals[k]
        if _furrow(p[None], lobes)[0] < 500.0 or any(np.linalg.norm(p - f[:3]) < 900.0 for f in out):
            continue
        lean = n + 0.35 * rng.normal(size=3)
        lean /= np.linalg.norm(lean)
        out.append(np.array([*(p + 60.0 * lean), *(p - rng.uniform(170.0, 300.0) * lean), rng.uniform(70.0, 95.0)]))
    return np.array(out).reshape(-1, 7)


def pores(rng, outer: Surface, lobes: np.ndarray, invaginations: np.ndarray, per_um2: float, related: bool) -> np.ndarray:
    """(n, 16): middle and radius of a ball around all of it ZYX r, the pore's place on the outer membrane ZYX, outward normal ZYX, radius of the
    pore (0: a look-alike), depth of the hollow's top, half width and depth of the hollow, darkness of the pore's plug, lightness of the hollow."""
    lobe = lobe_of(outer.points, lobes)
    areas = np.array([outer.areas[lobe == i].sum() for i in (1, 2)])
    total = round(per_um2 * areas.sum() / 1e6)
    weight = areas * np.array([1.0, DENSER if related else 1.0])
    share = weight[1] / weight.sum()
    small = round(rng.normal(total * share, math.sqrt(REGULAR * total * share * (1 - share))))
    free = (_furrow(outer.points, lobes) > 150.0) & (_away(outer.points, invaginations) > 260.0)
    at, normal = np.zeros((0, 3)), np.zeros((0, 3))
    for i, number in ((1, total - small), (2, small)):
        at, normal = _strewn(rng, outer, free & (lobe == i), number, HARD_CORE, at, normal)
    depth = _inner(outer, at, normal)
    half, deep = rng.uniform(*HALF_WIDTH, len(at)), rng.uniform(*DEPTH, len(at))
    middle = at - normal * (depth + MIDDLE * deep)[:, None]
    apart = np.linalg.norm(middle[:, None] - middle, axis=-1) + np.where(np.eye(len(at)), 1e9, 0)
    half = np.minimum(half, (apart.min(1, initial=1e9) - WALL) / 2)
    real = _rows(at, normal, rng.uniform(*RADIUS, len(at)), depth, half, deep, rng.uniform(0.5, 0.85, len(at)), rng.uniform(0.72, 1.0, len(at)))
    return np.concatenate([real, _holes(rng, outer, free, at, middle, half)])


def _holes(rng, outer: Surface, free, pores_at, middles, halves) -> np.ndarray:
    """Light holes in the heterochromatin that belong to no pore."""
    n = len(pores_at)
    rows: list[np.ndarray] = []
    taken, wide = middles, halves
    for number, top in ((round(BLIND * n), (0.0, 0.0)), (round(BURIED * n), (45.0, 110.0))):
        tries = 40 * number
        at, normal = _strewn(rng, outer, free, tries, 0.0, np.zeros((0, 3)), np.zeros((0, 3)))
        depth, half, deep = _inner(outer, at, normal) + rng.uniform(*top, tries), rng.uniform(66.0, 108.0, tries), rng.uniform(110.0, 210.0, tries)
        middle, light, left = at - normal * (depth + MIDDLE * deep)[:, None], rng.uniform(0.7, 1.0, tries), number
        for i in range(tries):
            if not left:
                break
            if (np.linalg.norm(taken - middle[i], axis=1) < wide + half[i] + 25.0).any() or (np.linalg.norm(pores_at - at[i], axis=1) < 130.0).any():
                continue
            one = slice(i, i + 1)
            rows.append(_rows(at[one], normal[one], np.zeros(1), depth[one], half[one], deep[one], np.zeros(1), light[one]))
            taken, wide = np.concatenate([taken, middle[one]]), np.append(wide, half[i])
            left -= 1
    return np.concatenate(rows) if rows else NONE


def _rows(at, normal, radius, depth, half, deep, dark, light) -> np.ndarray:
    """The table's rows; a ball holds the pore and all of the hollow."""
    reach = (depth + deep) / 2
    ball = np.hypot(reach, np.maximum(half, radius)) + 12.0
    return np.column_stack([at - normal * reach[:, None], ball, at, normal, radius, depth, half, deep, dark, light])


def _strewn(rng, outer: Surface, allowed: np.ndarray, number: int, apart: float, at: np.ndarray, normal: np.ndarray):
    """`number` places more on the allowed part of a surface, evenly over its area, none nearer than `apart` to another."""
    index = np.flatnonzero(allowed)
    chance = outer.areas[index] / outer.areas[index].sum()
    wanted = len(at) + number
    for _ in range(100):
        if len(at) == wanted:
            return at, normal
        p = outer.points[rng.choice(index, max(2 * (wanted - len(at)), 8), p=chance)]
        p = onto(outer.level, p + rng.uniform(-APART / 2, APART / 2, p.shape))
        n = gradient(outer.level, p)
        n /= np.linalg.norm(n, axis=1, keepdims=True)
        if not apart:
            at, normal = np.concatenate([at, p])[:wanted], np.concatenate([normal, n])[:wanted]
            continue
        for q, m in zip(p, n):
            if len(at) < wanted and (((at - q) ** 2).sum(1) > apart * apart).all():
                at, normal = np.concatenate([at, q[None]]), np.concatenate([normal, m[None]])
    raise InputError(f"{number} pores that keep {apart:g} nm apart do not fit on this nucleus: use another seed.")


def _inner(outer: Surface, at: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Depth (nm) along the normal at which the inner membrane has been passed."""
    t = np.full(len(at), INNER)
    for _ in range(6):
        f = outer.level(at - t[:, None] * normal) + INNER
        t = np.clip(t + f, 20.0, 70.0)
    return t


def _furrow(p: np.ndarray, lobes: np.ndarray) -> np.ndarray:
    """About the distance along the surface to the border of the lobes."""
    d = np.linalg.norm(p[:, None] - lobes[:, :3], axis=-1) - lobes[:, 3]
    return np.abs(d[:, 0] - d[:, 1])


def _away(p: np.ndarray, invaginations: np.ndarray) -> np.ndarray:
    if not len(invaginations):
        return np.full(len(p), np.inf)
    return np.linalg.norm(p[:, None] - invaginations[:, :3], axis=-1).min(1) - 60.0


def pore_volume(rows: np.ndarray) -> np.ndarray:
    """nm3 of the plug: a disc through both membranes."""
    return math.pi * rows[:, 10] ** 2 * (rows[:, 11] + LIP)


def pore_area(rows: np.ndarray) -> np.ndarray:
    return 2 * math.pi * rows[:, 10] * (rows[:, 10] + rows[:, 11] + LIP)


def pore_centre(rows: np.ndarray) -> np.ndarray:
    return rows[:, 4:7] - rows[:, 7:10] * (rows[:, 11:12] - LIP) / 2


def pocket_volume(rows: np.ndarray) -> np.ndarray:
    t = MIDDLE / (1 - MIDDLE)
    return math.pi * rows[:, 12] ** 2 * (1 - MIDDLE) * rows[:, 13] * (2 / 3 + t - t**3 / 3)


def pocket_centre(rows: np.ndarray) -> np.ndarray:
    t = MIDDLE / (1 - MIDDLE)
    below = MIDDLE * rows[:, 13] + (1 - MIDDLE) * rows[:, 13] * (1 / 4 - t**2 / 2 + t**4 / 4) / (2 / 3 + t - t**3 / 3)
    return rows[:, 4:7] - rows[:, 7:10] * (rows[:, 11] + below)[:, None]


def pocket_area(rows: np.ndarray) -> np.ndarray:
    """nm2: of the ellipsoid below the cut (by the trapezoid rule over its meridian) and of the cut itself."""
    a, b, t = rows[:, 12], (1 - MIDDLE) * rows[:, 13], MIDDLE / (1 - MIDDLE)
    angle = np.linspace(-math.asin(t), math.pi / 2, 201)[:, None]
    ring = 2 * math.pi * a * np.cos(angle) * np.sqrt((a * np.sin(angle)) ** 2 + (b * np.cos(angle)) ** 2)
    return np.trapezoid(ring, angle, axis=0) + math.pi * a**2 * (1 - t**2)
