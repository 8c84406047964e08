"""The truth about every object, from the scene alone: nothing is drawn for it."""

from __future__ import annotations

import itertools
import math

import numpy as np

from vemray.phantom import organelles, pores
from vemray.phantom.scene import Scene
from vemray.phantom.surfaces import Surface, lobe_of

#: distance of the places along a mitochondrion's axis at which its surface is held against the membranes, nm
ALONG = 11.0
NAN3 = np.full(3, np.nan)


def truth_table(scene: Scene):
    """pyarrow.Table, a row for each object: class, label, centre (nm), radius, length, what it touches, volume and surface of its body, distances to the
    membranes; of pores and pockets also the lobe of the nucleus (1: the larger) and, of pores, the outward normal.

    Volumes, surfaces and centroids are those of the drawn bodies in closed form (cell and nucleus: summed over their surfaces, to 0.5 %); distances of
    centres and of surfaces are to the drawn membranes, to 0.1 nm (`plasma_membrane`, `envelope` of the scene). NaN: does not apply.

    `touches` is the lowest label among the mitochondria that it touches (0: none), `touching` their number. One that touches another began at
    it, so every pair stands in the row of its higher label: `touches < label`. Pore and pocket of one label belong together."""
    import pyarrow as pa

    rows = [*_membranes(scene), *_mitochondria(scene), *_spheres(scene), *_pores(scene)]
    table = {k: [r[k] for r in rows] for k in rows[0] if k not in ("centre", "normal")}
    for i, a in enumerate("zyx"):
        table[f"centre_{a}_nm"] = [float(r["centre"][i] + scene.centre[i]) for r in rows]
    for i, a in enumerate("zyx"):
        table[f"normal_{a}"] = [float(r["normal"][i]) for r in rows]
    return pa.table(table)


def _row(kind: str, label: int, centre, volume: float, surface: float, **more) -> dict:
    return {
        "class": kind, "label": int(label), "centre": centre, "radius_nm": math.nan, "length_nm": 0.0, "touches": 0, "touching": 0,
        "volume_nm3": float(volume), "area_nm2": float(surface), "surface_to_volume_per_nm": float(surface / volume),
        "to_plasma_membrane_nm": math.nan, "to_nucleus_nm": math.nan, "to_nearest_membrane_nm": math.nan,
        "surface_to_plasma_membrane_nm": math.nan, "surface_to_nucleus_nm": math.nan, "lobe": 0, "normal": NAN3,
        **more,
    }  # fmt: skip


def _membranes(scene: Scene) -> list[dict]:
    out = []
    for kind, surface in (("cell", scene.plasma_membrane), ("nucleus", scene.envelope)):
        centre = (surface.points * (surface.points * surface.normals).sum(1, keepdims=True) * surface.areas[:, None]).sum(0) / (4 * surface.volume)
        out.append(_row(kind, 1, centre, surface.volume, surface.area))
    return out


def _distances(scene: Scene, centres: np.ndarray) -> list[dict]:
    membrane, nucleus = scene.plasma_membrane.distance(centres), scene.envelope.distance(centres)
    return [
        {"to_plasma_membrane_nm": float(a), "to_nucleus_nm": float(b), "to_nearest_membrane_nm": float(min(a, b))} for a, b in zip(membrane, nucleus)
    ]


def _mitochondria(scene: Scene) -> list[dict]:
    labels = np.unique(scene.segments[:, 7]).astype(int)
    lines = [scene.segments[scene.segments[:, 7] == label] for label in labels]
    radii = [s[0, 6] for s in lines]
    lines = [np.concatenate([s[:, :3], s[-1:, 3:6]]) for s in lines]
    bodies = [organelles.tube(line, r) for line, r in zip(lines, radii)]
    far = _distances(scene, np.array([centre for _, _, centre in bodies]).reshape(-1, 3))
    near = [_least(surface, lines) for surface in (scene.plasma_membrane, scene.envelope)]
    out = []
    for i, label in enumerate(labels):
        volume, surface, centre = bodies[i]
        partners = [a + b - label for a, b in scene.touching if label in (a, b)]
        out.append(
            _row(
                "mitochondrion", label, centre, volume, surface, radius_nm=float(radii[i]), touches=int(min(partners, default=0)), touching=len(partners),
                length_nm=float(np.linalg.norm(np.diff(lines[i], axis=0), axis=1).sum()), **far[i],
                surface_to_plasma_membrane_nm=float(near[0][i] - radii[i]), surface_to_nucleus_nm=float(near[1][i] - radii[i]),
            )
        )  # fmt: skip
    return out


def _least(surface: Surface, lines: list[np.ndarray]) -> list[float]:
    """Least distance of each line to a surface."""
    if not lines:
        return []
    t = np.linspace(0, 1, round(organelles.STEP / ALONG), endpoint=False)[:, None]
    places = [np.concatenate([*(a + t * (b - a) for a, b in itertools.pairwise(line)), line[-1:]]) for line in lines]
    owner = np.repeat(np.arange(len(lines)), [len(p) for p in places])
    places = np.concatenate(places)
    about = surface.near(places)
    least = np.full(len(lines), np.inf)
    np.minimum.at(least, owner, about)
    close = about < least[owner] + 12.0
    out = np.full(len(lines), np.inf)
    np.minimum.at(out, owner[close], surface.distance(places[close], 3))
    return out.tolist()


def _spheres(scene: Scene) -> list[dict]:
    far = _distances(scene, scene.spheres[:, :3])
    return [
        _row(
            "lysosome" if s[4] == 0 else "vesicle", i + 1, s[:3], 4 / 3 * math.pi * s[3] ** 3, 4 * math.pi * s[3] ** 2, radius_nm=float(s[3]), **far[i],
            surface_to_plasma_membrane_nm=far[i]["to_plasma_membrane_nm"] - s[3], surface_to_nucleus_nm=far[i]["to_nucleus_nm"] - s[3],
        )
        for i, s in enumerate(scene.spheres)
    ]  # fmt: skip


def _pores(scene: Scene) -> list[dict]:
    rows = scene.pores[scene.pores[:, 10] > 0]
    if not len(rows):
        return []
    lobes = lobe_of(rows[:, 4:7], scene.lobes)
    out = []
    for kind, centres, volumes, areas in (
        ("pore", pores.pore_centre(rows), pores.pore_volume(rows), pores.pore_area(rows)),
        ("pocket", pores.pocket_centre(rows), pores.pocket_volume(rows), pores.pocket_area(rows)),
    ):
        for i, row in enumerate(rows):
            out.append(
                _row(
                    kind,
                    i + 1,
                    centres[i],
                    volumes[i],
                    areas[i],
                    lobe=int(lobes[i]),
                    normal=row[7:10],
                    radius_nm=float(row[10 if kind == "pore" else 12]),
                )
            )
    return out


def planted(scene: Scene, table=None) -> dict[str, float]:
    """What the scene plants and what it came to: the ratio of the lobes' pore densities, smaller to larger (planted; and realised: counted over the area
    of the envelope), and the rank correlation of the mitochondria's surface-to-volume ratio with the distance of their centres to the nearest membrane."""
    from scipy.stats import spearmanr

    table = (table or truth_table(scene)).to_pandas()
    mito = table[table["class"] == "mitochondrion"]
    out = {"mitochondria_rank_correlation": float(spearmanr(mito.surface_to_volume_per_nm, mito.to_nearest_membrane_nm).statistic)}
    if len(scene.pores):
        lobe, areas = lobe_of(scene.envelope.points, scene.lobes), scene.envelope.areas
        density = [(table[table["class"] == "pore"].lobe == i).sum() / areas[lobe == i].sum() * 1e6 for i in (1, 2)]
        out |= {
            "pore_density_ratio_planted": pores.DENSER if "pore_density" in scene.relations else 1.0,
            "pore_density_ratio": float(density[1] / density[0]),
            "pores_per_um2_larger": float(density[0]),
            "pores_per_um2_smaller": float(density[1]),
        }
    return out
