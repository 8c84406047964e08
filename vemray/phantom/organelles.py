"""Where mitochondria, lysosomes and vesicles lie, and what a mitochondrion's size and form are."""

from __future__ import annotations

import math

import numpy as np

from vemray.phantom.surfaces import cell_distance, gradient, nucleus_distance

#: radius and length of mitochondria, nm
RADIUS, LENGTH = (180.0, 290.0), (500.0, 2600.0)
#: share of mitochondria that touch another
TOUCHING = 0.15
STEP = 110.0
#: where the surface-to-volume ratio is drawn: its value at a membrane and far from one (1/nm), its scatter (natural logarithm), and the radii it may lead to
AT_MEMBRANE, FAR, SCATTER, RADII = 0.0158, 0.0066, 0.13, (125.0, 340.0)
#: the same where it is drawn without regard to place; the most a radius then comes to, and half the room from axis to axis that all,
#: thick or thin, are given
ANYWHERE, SPREAD, THICKEST, ROOM = 0.0106, 0.17, 245.0, 255.0


def _inside(p: np.ndarray, draft: dict, clearance: float) -> bool:
    """Whether all points keep `clearance` from plasma membrane and nucleus."""
    return bool(
        (cell_distance(p, draft["half_axes"], draft["waves_cell"]) < -clearance).all()
        and (nucleus_distance(p, draft["lobes"], draft["waves_nucleus"]) > clearance).all()
    )


def mitochondria(rng, draft: dict, wanted_nm3: float):
    """Curved tubes that keep apart, and some that start on the side of another and lead away from it: segments, touching pairs, points."""
    placed = np.zeros((0, 5))  # ZYX, radius, label of sample points
    segments, touching, filled, label = [], [], 0.0, 0
    half = draft["half_axes"]
    for _attempt in range(60000):
        if filled >= wanted_nm3:
            break
        radius = rng.uniform(*RADIUS)
        length = rng.uniform(*LENGTH) * (0.6 if rng.random() < 0.35 else 1.0)
        partner = 0
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        if len(placed) and rng.random() < TOUCHING:
            *at, r, partner = placed[rng.integers(len(placed))]
            start = np.array(at) + direction * (r + radius)
        else:
            start = rng.uniform(-half, half)
        line = _walk(rng, start, direction, length)
        if not _inside(line, draft, radius + 90.0) or not _free(line, radius, partner, placed):
            continue
        label += 1
        if partner:
            touching.append((int(partner), label))
        placed = np.concatenate([placed, np.column_stack([line, np.full(len(line), radius), np.full(len(line), label)])])
        segments += _segments(rng, line, radius, label)
        filled += math.pi * radius**2 * (len(line) - 1) * STEP + 4 / 3 * math.pi * radius**3
    return np.array(segments).reshape(-1, 12), touching, placed


def mitochondria_by_form(rng, draft: dict, wanted_nm3: float, related: bool, reach: float):
    """The same, but the surface-to-volume ratio is drawn and the radius follows from it and the length. `related`: the ratio falls with the distance
    of the centre to the nearest membrane, over about `reach` (nm); else it depends on nothing, and thick and thin ones are let equally near."""
    placed, segments, touching, filled, label = np.zeros((0, 5)), [], [], 0.0, 0
    half = draft["half_axes"]
    for _attempt in range(200000):
        if filled >= wanted_nm3:
            break
        length = rng.uniform(*LENGTH) * (0.6 if rng.random() < 0.35 else 1.0)
        scatter = rng.normal()
        partner = 0
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        if len(placed) and rng.random() < TOUCHING:
            *start, r, partner = placed[rng.integers(len(placed))]
            start = np.array(start)
        else:
            start = rng.uniform(-half, half)
            if not _inside(start[None], draft, (RADII[0] if related else THICKEST) + 45.0):
                continue
        line = _walk(rng, start, direction, length)
        total = (len(line) - 1) * STEP
        aside = direction * (r + np.mean(RADIUS)) if partner else 0.0
        if related:
            centre = (line.mean(0) + aside)[None]
            away = min(
                -cell_distance(centre, half, draft["waves_cell"])[0], nucleus_distance(centre, draft["lobes"], draft["waves_nucleus"])[0]
            )  # fmt: skip
            ratio = (FAR + (AT_MEMBRANE - FAR) * math.exp(-max(away, 0.0) / reach)) * math.exp(SCATTER * scatter)
        else:
            ratio = ANYWHERE * math.exp(SPREAD * scatter)
        radius = min(RADII[1] if related else THICKEST, max(RADII[0], _radius(ratio, total)))
        if partner:
            line = line + direction * (r + radius)
        clear, room = (radius if related else THICKEST) + 45.0, None if related else ROOM
        if (
            not _inside(line, draft, clear)
            or _coiled(line, THICKEST if room else radius)
            or not _free(line, radius, partner, placed, room)
            or not _clear(line, draft, clear)
        ):
            continue
        label += 1
        if partner:
            touching.append((int(partner), label))
        placed = np.concatenate([placed, np.column_stack([line, np.full(len(line), radius), np.full(len(line), label)])])
        segments += _segments(rng, line, radius, label)
        filled += math.pi * radius**2 * total + 4 / 3 * math.pi * radius**3
    return np.array(segments).reshape(-1, 12), touching, placed


def _clear(line: np.ndarray, draft: dict, clearance: float) -> bool:
    """`_inside`, where the levels are steeper than distances."""
    for level, sign in (
        (lambda p: cell_distance(p, draft["half_axes"], draft["waves_cell"]), -1),
        (lambda p: nucleus_distance(p, draft["lobes"], draft["waves_nucleus"]), 1),
    ):
        steep = np.maximum(1.0, np.linalg.norm(gradient(level, line), axis=1))
        if (sign * level(line) / steep < clearance).any():
            return False
    return True


def _radius(ratio: float, length: float) -> float:
    """Radius of the rod with round ends whose axis has this length and whose surface-to-volume ratio is `ratio`."""
    b = ratio * length - 4
    return (-b + math.sqrt(b * b + 32 / 3 * ratio * length)) / (8 / 3 * ratio)


def _coiled(line: np.ndarray, radius: float) -> bool:
    """Whether a tube comes back to itself."""
    apart = np.abs(np.arange(len(line))[:, None] - np.arange(len(line))) * STEP > math.pi * radius
    return bool((np.linalg.norm(line[:, None] - line, axis=-1)[apart] < 2 * radius + 60.0).any())


def _free(line: np.ndarray, radius: float, partner: float, placed: np.ndarray, room: float | None = None) -> bool:
    """Whether a tube keeps clear of all others and meets its partner with the first point alone. `room`: whatever the radii, the axes keep twice this
    apart."""
    low, high = line.min(0) - 800.0, line.max(0) + 800.0
    placed = placed[((placed[:, :3] > low) & (placed[:, :3] < high)).all(1)]
    if not len(placed):
        return True
    apart = np.linalg.norm(line[:, None] - placed[:, :3], axis=-1)
    gap = apart - radius - placed[:, 3]
    others = placed[:, 4] != partner
    if others.any() and (gap[:, others].min() < 95.0 if room is None else apart[:, others].min() < 2 * room):
        return False
    return not (partner and (gap[1:, ~others].min() < 20.0 or gap[0, ~others].min() < -12.0))


def _segments(rng, line: np.ndarray, radius: float, label: int) -> list[list[float]]:
    across = np.cross(line[-1] - line[0], rng.normal(size=3))
    across /= np.linalg.norm(across) + 1e-9
    return [[*line[i], *line[i + 1], radius, label, i * STEP, *across] for i in range(len(line) - 1)]


def _walk(rng, start: np.ndarray, direction: np.ndarray, length: float) -> np.ndarray:
    points = [start]
    turn = rng.normal(size=3) * 0.12
    for _ in range(max(2, round(length / STEP))):
        direction = direction + turn + rng.normal(size=3) * 0.1
        direction = direction / np.linalg.norm(direction)
        points.append(points[-1] + direction * STEP)
    return np.array(points)


def tube(line: np.ndarray, radius: float) -> tuple[float, float, np.ndarray]:
    """(volume nm3, surface nm2, centroid) of a tube with round ends along a line of points (n, 3). At each bend a wedge of a ball comes in on the
    outer side, and the cylinders overlap on the inner."""
    legs = np.diff(line, axis=0)
    lengths = np.linalg.norm(legs, axis=1)
    u = legs / lengths[:, None]
    bend = np.arccos(np.clip((u[1:] * u[:-1]).sum(1), -1, 1))
    cut = np.tan(bend / 2)
    outward = (u[:-1] - u[1:]) / np.maximum(2 * np.sin(bend / 2), 1e-12)[:, None]
    rods = math.pi * radius**2 * lengths
    wedges = 2 / 3 * radius**3 * (bend - 2 * cut)
    ends = 2 / 3 * math.pi * radius**3
    volume = rods.sum() + wedges.sum() + 2 * ends
    surface = 2 * math.pi * radius * lengths.sum() + 2 * radius**2 * (bend - 2 * cut).sum() + 4 * math.pi * radius**2
    moment = (rods[:, None] * (line[1:] + line[:-1]) / 2).sum(0) + (wedges[:, None] * line[1:-1]).sum(0)
    moment += ((math.pi / 4 * radius**4) * (np.sin(bend / 2) + cut)[:, None] * outward).sum(0)
    moment += ends * (line[0] - 3 / 8 * radius * u[0] + line[-1] + 3 / 8 * radius * u[-1])
    return float(volume), float(surface), moment / volume


def spheres(rng, draft: dict, placed: np.ndarray, kinds) -> np.ndarray:
    out: list[list[float]] = []
    half = draft["half_axes"]
    for kind, count, radii in kinds:
        left, tries = count, 0
        while left and tries < 200 * count:
            tries += 1
            r = rng.uniform(*radii)
            p = rng.uniform(-half, half)
            if not _inside(p[None], draft, r + 50.0):
                continue
            if len(placed) and (np.linalg.norm(placed[:, :3] - p, axis=1) - placed[:, 3] - r).min() < 45.0:
                continue
            if out and min(np.linalg.norm(np.array(o[:3]) - p) - o[3] - r for o in out) < 30.0:
                continue
            out.append([*p, r, kind, float(rng.integers(1 << 30))])
            left -= 1
    return np.array(out).reshape(-1, 6)
