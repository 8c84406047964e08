"""A synthetic HeLa cell: every random choice of it, as a few arrays in nm. Rendering only evaluates them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vemray.errors import InputError
from vemray.geometry import Int3, Spacing
from vemray.phantom import organelles, pores, surfaces

Around = Literal["cell", "envelope"]
Preset = Literal["demo", "pores", "hela"]
#: what may be planted: pores denser in the smaller lobe; a surface-to-volume ratio of mitochondria that falls with the distance to the nearest membrane
Relation = Literal["pore_density", "mitochondria_form"]
#: coarsest voxel that shows a pore, nm
FINE = 16.0


@dataclass(frozen=True)
class Anatomy:
    """Sizes in nm. `demo` is an honest miniature: organelles of natural size in a cell of a third of its diameter. `pores` is the same with what the
    study of nuclear pores and of mitochondria needs."""

    cell: tuple[float, float, float]  # half axes ZYX
    nucleus: float  # radius of the larger lobe
    margin: float  # resin around the cell
    mitochondria: float  # share of the cytoplasm's volume
    lysosomes: float  # number per um3 of cytoplasm
    vesicles: float
    voxel: tuple[float, float, float]
    waves: float = 70.0  # of the plasma membrane
    nucleoli: int = 2
    pores: float = 0.0  # number per um2 of the nuclear envelope
    fingers: int = 0  # invaginations of the envelope
    lining: tuple[float, float, float, float] = (46.0, 26.0, 14.0, 140.0)  # heterochromatin under the envelope: mean, two variations, most
    relations: tuple[Relation, ...] = ()
    reach: float = 420.0  # over which the form of mitochondria changes, where it does


THICK, RELATIONS = (150.0, 34.0, 16.0, 230.0), ("pore_density", "mitochondria_form")
ANATOMY: dict[str, Anatomy] = {
    "demo": Anatomy((2350.0, 3150.0, 3250.0), 1350.0, 320.0, 0.10, 0.55, 1.2, (32.0, 32.0, 32.0)),
    "pores": Anatomy(
        (2350.0, 3150.0, 3250.0), 1350.0, 320.0, 0.10, 0.55, 1.2, (16.0, 16.0, 16.0), pores=6.0, fingers=4, lining=THICK, relations=RELATIONS
    ),
    "hela": Anatomy(
        (6500.0, 9500.0, 10000.0), 4600.0, 800.0, 0.10, 0.2, 0.8, (16.0, 16.0, 16.0), 160.0, 3, 6.0, 24, THICK, RELATIONS, 1400.0
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scene:
    """`waves_*`: (n, 5) amplitude, kz, ky, kx, phase of a surface's undulation. `segments`: (n, 12) of mitochondria: start ZYX, end ZYX,
    radius, label, arc length at the start, and the direction across the cristae ZYX. `spheres`: (n, 6) centre ZYX, radius, kind (0 lysosome,
    1 vesicle), seed. `fingers`: see `pores.fingers`; `pores`: see `pores.pores`. Coordinates from the cell's centre, which lies `centre` from that of the
    volume's first voxel."""

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
    fingers: np.ndarray
    pores: np.ndarray
    lining: tuple[float, float, float, float]
    relations: tuple[Relation, ...]

    @classmethod
    def make(
        cls,
        preset: str = "demo",
        seed: int = 1,
        voxel_nm: tuple[float, float, float] | None = None,
        shape: Int3 | None = None,
        around: Around = "cell",
        pores: bool | None = None,
        relations: Iterable[Relation] | None = None,
    ) -> Scene:
        """The scene of `seed`. The same cell at any voxel size; `shape` cuts that many voxels out of it, around its middle or a place on the nuclear
        envelope. `pores`: draw nuclear pores (default: where the preset has them and the voxels are fine enough). `relations`: what is planted
        (default: all that the preset has)."""
        if preset not in ANATOMY:
            raise InputError(f"there is no phantom '{preset}': choose {' or '.join(ANATOMY)}.")
        if around not in get_args(Around):
            raise InputError(f"a part of the phantom lies around {' or '.join(get_args(Around))}, not '{around}'.")
        voxel = tuple(float(v) for v in voxel_nm or ANATOMY[preset].voxel)
        a, fine = ANATOMY[preset], max(voxel) <= FINE
        if unknown := set(relations or ()) - set(a.relations):
            known = f"it has {', '.join(a.relations)}" if a.relations else "it has none; 'pores' and 'hela' have"
            raise InputError(f"the phantom '{preset}' has no relation {', '.join(sorted(unknown))}: {known}.")
        if pores and not a.pores:
            raise InputError(f"the phantom '{preset}' has no nuclear pores: choose 'pores' or 'hela'.")
        if pores and not fine:
            raise InputError(
                f"nuclear pores need voxels of {FINE:g} nm or less, not {' x '.join(f'{v:g}' for v in voxel)}: set voxel_nm, or leave pores out."
            )
        planted = a.relations if relations is None else tuple(r for r in a.relations if r in relations)
        drawn = a.pores > 0 and fine and pores is not False
        return _make(preset, seed, voxel, tuple(int(n) for n in shape) if shape else None, around, drawn, planted)

    @functools.cached_property
    def envelope(self) -> surfaces.Surface:
        """The outer nuclear membrane."""
        return surfaces.envelope(self.lobes, self.waves_nucleus, self.fingers)

    @functools.cached_property
    def plasma_membrane(self) -> surfaces.Surface:
        return surfaces.plasma_membrane(self.half_axes, self.waves_cell)


@functools.lru_cache(maxsize=4)
def _make(preset: str, seed: int, voxel, shape, around: Around, drawn: bool, relations: tuple[Relation, ...]) -> Scene:
    a = ANATOMY[preset]
    spacing = Spacing(*voxel)
    rng = np.random.default_rng([seed, 7])
    half = np.array(a.cell) * rng.uniform(0.96, 1.04, 3)
    size = shape or tuple(math.ceil(2 * (h + a.margin) / s) for h, s in zip(a.cell, spacing.zyx))
    waves_cell = _waves(rng, 7, a.waves, (900.0, 3200.0))
    lobes = _lobes(rng, a)
    waves_nucleus = _waves(rng, 5, 45.0, (900.0, 2600.0))
    nucleoli = np.array(
        [
            [*(lobes[i % len(lobes)][:3] + rng.normal(0, 0.25, 3) * lobes[i % len(lobes)][3]), rng.uniform(0.2, 0.32) * lobes[i % len(lobes)][3]]
            for i in range(a.nucleoli)
        ]
    )
    draft = dict(half_axes=half, waves_cell=waves_cell, lobes=lobes, waves_nucleus=waves_nucleus)
    cytoplasm = 4 / 3 * math.pi * np.prod(half) - sum(4 / 3 * math.pi * r**3 for *_, r in lobes)
    wanted = a.mitochondria * cytoplasm
    if a.relations:
        segments, touching, points = organelles.mitochondria_by_form(rng, draft, wanted, "mitochondria_form" in relations, a.reach)
    else:
        segments, touching, points = organelles.mitochondria(rng, draft, wanted)
    spheres = organelles.spheres(
        rng, draft, points, [(0, round(a.lysosomes * cytoplasm / 1e9), (140.0, 330.0)), (1, round(a.vesicles * cytoplasm / 1e9), (45.0, 120.0))]
    )
    waves_er = _waves(rng, 6, 1.0, (420.0, 900.0))
    # pores have random numbers of their own: with or without them, and however dense, it is the same cell
    rng = np.random.default_rng([seed, 8])
    outer = surfaces.envelope(lobes, waves_nucleus, np.zeros((0, 7))) if drawn or a.fingers or around == "envelope" else None
    fingers = pores.fingers(rng, outer, lobes, a.fingers) if a.fingers else np.zeros((0, 7))
    holes = pores.pores(rng, outer, lobes, fingers, a.pores, "pore_density" in relations) if drawn else pores.NONE
    # the cell's own coordinates have their origin at its centre; the volume is cut around it, or around a place on the envelope
    middle = np.zeros(3) if around == "cell" else _at_envelope(outer, lobes)
    centre = np.array([(n - 1) / 2 * s for n, s in zip(size, spacing.zyx)]) - middle
    return Scene(
        preset, seed, size, spacing, centre, half, waves_cell, lobes, waves_nucleus, nucleoli, segments, spheres, waves_er, tuple(touching),
        fingers, holes, a.lining, relations,
    )  # fmt: skip


def _at_envelope(outer: surfaces.Surface, lobes: np.ndarray) -> np.ndarray:
    """Where the smaller lobe ends, seen from the larger, within the slice: the envelope is cut across there."""
    away = (lobes[1, :3] - lobes[0, :3]) * np.array([0.0, 1.0, 1.0])
    return outer.points[np.argmin(np.linalg.norm(outer.points - lobes[1, :3] - away / np.linalg.norm(away) * lobes[1, 3], axis=1))]


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
