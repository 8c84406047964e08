"""A synthetic HeLa cell: every random choice of it, as a few arrays in nm. Rendering only evaluates them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vemray.errors import InputError
from vemray.geometry import Int3, Spacing

Preset = Literal["demo", "hela"]


@dataclass(frozen=True)
class Anatomy:
    """Sizes in nm. `demo` is an honest miniature: organelles of natural size in a cell of a third of its diameter."""

    cell: tuple[float, float, float]  # half axes ZYX
    nucleus: float  # radius of the larger lobe
    margin: float  # resin around the cell
    mitochondria: float  # share of the cytoplasm's volume
    lysosomes: float  # number per um3 of cytoplasm
    vesicles: float
    voxel: tuple[float, float, float]


ANATOMY: dict[str, Anatomy] = {
    "demo": Anatomy((2350.0, 3150.0, 3250.0), 1350.0, 320.0, 0.10, 0.55, 1.2, (32.0, 32.0, 32.0)),
    "hela": Anatomy((6500.0, 9500.0, 10000.0), 4600.0, 800.0, 0.10, 0.2, 0.8, (16.0, 16.0, 16.0)),
}

#: radius and length of mitochondria, nm
RADIUS, LENGTH = (180.0, 290.0), (500.0, 2600.0)
#: share of mitochondria that touch another
TOUCHING = 0.15
STEP = 110.0


@dataclass(frozen=True, eq=False)
class Scene:
    """`waves_*`: (n, 5) amplitude, kz, ky, kx, phase of a surface's undulation. `segments`: (n, 12) of mitochondria: start ZYX, end ZYX,
    radius, label, arc length at the start, and the direction across the cristae ZYX. `spheres`: (n, 6) centre ZYX, radius, kind (0 lysosome,
    1 vesicle), seed. Coordinates from the centre of the volume's first voxel."""

    preset: str
    seed: int
    shape: Int3
    spacing: Spacing
    centre: np.ndarray
    half_axes: np.ndarray
    waves_cell: np.ndarray
    lobes: np.ndarray
    waves_nucleus: np.ndarray
    nucleoli: np.ndarray
    segments: np.ndarray
    spheres: np.ndarray
    waves_er: np.ndarray
    touching: tuple[tuple[int, int], ...]

    @classmethod
    def make(cls, preset: str = "demo", seed: int = 1, voxel_nm: tuple[float, float, float] | None = None, shape: Int3 | None = None) -> Scene:
        """The scene of `seed`. The same cell at any voxel size; `shape` cuts that many voxels out of its middle."""
        if preset not in ANATOMY:
            raise InputError(f"there is no phantom '{preset}': choose {' or '.join(ANATOMY)}.")
        return _make(preset, seed, tuple(float(v) for v in voxel_nm) if voxel_nm else None, tuple(int(n) for n in shape) if shape else None)


@functools.lru_cache(maxsize=4)
def _make(preset: str, seed: int, voxel_nm, shape) -> Scene:
    a = ANATOMY[preset]
    spacing = Spacing(*(voxel_nm or a.voxel))
    rng = np.random.default_rng([seed, 7])
    half = np.array(a.cell) * rng.uniform(0.96, 1.04, 3)
    whole = tuple(math.ceil(2 * (h + a.margin) / s) for h, s in zip(a.cell, spacing.zyx))
    size = shape or whole
    # the cell's own coordinates have their origin at its centre; the volume is cut around it
    centre = np.array([(n - 1) / 2 * s for n, s in zip(size, spacing.zyx)])
    waves_cell = _waves(rng, 7, 70.0 if preset == "demo" else 160.0, (900.0, 3200.0))
    lobes = _lobes(rng, a)
    waves_nucleus = _waves(rng, 5, 45.0, (900.0, 2600.0))
    nucleoli = np.array(
        [
            [*(lobes[i % len(lobes)][:3] + rng.normal(0, 0.25, 3) * lobes[i % len(lobes)][3]), rng.uniform(0.2, 0.32) * lobes[i % len(lobes)][3]]
            for i in range(3 if preset == "hela" else 2)
        ]
    )
    draft = dict(half_axes=half, waves_cell=waves_cell, lobes=lobes, waves_nucleus=waves_nucleus)
    cytoplasm = 4 / 3 * math.pi * np.prod(half) - sum(4 / 3 * math.pi * r**3 for *_, r in lobes)
    segments, touching, points = _mitochondria(rng, draft, a.mitochondria * cytoplasm)
    spheres = _spheres(
        rng, draft, points, [(0, round(a.lysosomes * cytoplasm / 1e9), (140.0, 330.0)), (1, round(a.vesicles * cytoplasm / 1e9), (45.0, 120.0))]
    )
    waves_er = _waves(rng, 6, 1.0, (420.0, 900.0))
    return Scene(preset, seed, size, spacing, centre, half, waves_cell, lobes, waves_nucleus, nucleoli, segments, spheres, waves_er, tuple(touching))


def _waves(rng, n: int, amplitude: float, lengths: tuple[float, float]) -> np.ndarray:
    k = rng.normal(size=(n, 3))
    k *= (2 * np.pi / rng.uniform(*lengths, n) / np.linalg.norm(k, axis=1))[:, None]
    return np.concatenate([rng.uniform(0.4, 1.0, (n, 1)) * amplitude, k, rng.uniform(0, 2 * np.pi, (n, 1))], 1)


def _lobes(rng, a: Anatomy) -> np.ndarray:
    """Two balls, the larger and the smaller lobe; between them lies the cleavage furrow."""
    direction = rng.normal(size=3) * np.array([0.35, 1, 1])
    direction /= np.linalg.norm(direction)
    small = a.nucleus * rng.uniform(0.62, 0.7)
    off = rng.normal(0, 0.06, 3) * a.nucleus
    return np.array([[*(off - direction * 0.38 * a.nucleus), a.nucleus], [*(off + direction * (0.38 * a.nucleus + small * 0.72)), small]])


def undulation(p: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Sum of waves at points (n, 3)."""
    return (waves[:, 0] * np.sin(p @ waves[:, 1:4].T + waves[:, 4])).sum(-1)


def cell_distance(p: np.ndarray, half: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """About the signed distance (nm, negative inside) of points (n, 3), from the cell's centre, to the plasma membrane."""
    q = np.linalg.norm(p / half, axis=-1)
    scale = np.linalg.norm(p / half**2, axis=-1)
    return q * (q - 1) / np.maximum(scale, 1e-9) - undulation(p, waves)


def nucleus_distance(p: np.ndarray, lobes: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """About the signed distance (nm) to the outer nuclear membrane: a union of the lobes, rounded by 60 nm in the furrow."""
    d = np.linalg.norm(p[:, None] - lobes[:, :3], axis=-1) - lobes[:, 3]
    a, b = d[:, 0], d[:, 1]
    h = np.clip(0.5 + 0.5 * (b - a) / 120.0, 0, 1)
    return b * (1 - h) + a * h - 120.0 * h * (1 - h) - undulation(p, waves)


def _inside(p: np.ndarray, draft: dict, clearance: float) -> bool:
    """Whether all points keep `clearance` from plasma membrane and nucleus."""
    return bool(
        (cell_distance(p, draft["half_axes"], draft["waves_cell"]) < -clearance).all()
        and (nucleus_distance(p, draft["lobes"], draft["waves_nucleus"]) > clearance).all()
    )


def _mitochondria(rng, draft: dict, wanted_nm3: float):
    """Curved tubes that keep apart, and some that start on the side of another and lead away from it."""
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
        if not _inside(line, draft, radius + 90.0):
            continue
        if len(placed):
            gap = np.linalg.norm(line[:, None] - placed[:, :3], axis=-1) - radius - placed[:, 3]
            others = placed[:, 4] != partner
            if others.any() and gap[:, others].min() < 95.0:
                continue
            # the partner is met with the first point alone
            if partner and (gap[1:, ~others].min() < 20.0 or gap[0, ~others].min() < -12.0):
                continue
        label += 1
        if partner:
            touching.append((int(partner), label))
        placed = np.concatenate([placed, np.column_stack([line, np.full(len(line), radius), np.full(len(line), label)])])
        axis = line[-1] - line[0]
        across = np.cross(axis, rng.normal(size=3))
        across /= np.linalg.norm(across) + 1e-9
        for i in range(len(line) - 1):
            segments.append([*line[i], *line[i + 1], radius, label, i * STEP, *across])
        filled += math.pi * radius**2 * (len(line) - 1) * STEP + 4 / 3 * math.pi * radius**3
    return np.array(segments).reshape(-1, 12), touching, placed


def _walk(rng, start: np.ndarray, direction: np.ndarray, length: float) -> np.ndarray:
    points = [start]
    turn = rng.normal(size=3) * 0.12
    for _ in range(max(2, round(length / STEP))):
        direction = direction + turn + rng.normal(size=3) * 0.1
        direction = direction / np.linalg.norm(direction)
        points.append(points[-1] + direction * STEP)
    return np.array(points)


def _spheres(rng, draft: dict, placed: np.ndarray, kinds) -> np.ndarray:
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
