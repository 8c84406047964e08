"""Any box of a scene, and the table of its objects."""

from __future__ import annotations

import numpy as np

from vemray.geometry import Box
from vemray.phantom import kernels
from vemray.phantom.scene import Scene, cell_distance, nucleus_distance

#: standard deviation of the noise at grey 160; sets the contrast-to-noise ratio to that of the real volume (docs/phantom.md)
NOISE = 2.0


def render(scene: Scene, box: Box) -> dict[str, np.ndarray]:
    """`em` uint8; `cell`, `nucleus` bool; `mitochondria`, `lysosomes` uint64 labels over `box` (voxels, ZYX). A voxel belongs to the structure its
    centre is in."""
    shape = box.shape
    em, cell, nucleus = np.zeros(shape, np.uint8), np.zeros(shape, bool), np.zeros(shape, bool)
    mito, lysosome = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
    parts = (
        scene.centre, scene.half_axes, scene.waves_cell, scene.lobes, scene.waves_nucleus, scene.nucleoli, scene.segments, scene.spheres, scene.waves_er
    )  # fmt: skip
    start, spacing = np.array(box.start, np.int64), np.array(scene.spacing.zyx)
    kernels.render(start, shape, spacing, parts, scene.seed * 1000, NOISE, em, cell, nucleus, mito, lysosome)
    return {"em": em, "cell": cell, "nucleus": nucleus, "mitochondria": mito, "lysosomes": lysosome}


def truth_table(scene: Scene):
    """pyarrow.Table, a row for each object: class, label, centre (nm), radius, length, what it touches, distances to the membranes.

    `touches` is the lowest label among the mitochondria that it touches (0: none), `touching` their number. One that touches another began at
    it, so every pair stands in the row of its higher label: `touches < label`."""
    import pyarrow as pa

    rows = [{"class": "nucleus", "label": 1, "centre": scene.lobes[0, :3], "radius_nm": scene.lobes[0, 3], "length_nm": 0.0, **_touch([])}]
    for label in np.unique(scene.segments[:, 7]).astype(int):
        s = scene.segments[scene.segments[:, 7] == label]
        line = np.concatenate([s[:, :3], s[-1:, 3:6]])
        rows.append(
            {
                "class": "mitochondrion",
                "label": int(label),
                "centre": line.mean(0),
                "radius_nm": s[0, 6],
                "length_nm": float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum()),
                **_touch([a + b - label for a, b in scene.touching if label in (a, b)]),
            }
        )
    for i, s in enumerate(scene.spheres):
        rows.append(
            {"class": "lysosome" if s[4] == 0 else "vesicle", "label": i + 1, "centre": s[:3], "radius_nm": s[3], "length_nm": 0.0, **_touch([])}
        )
    centres = np.array([r.pop("centre") for r in rows])
    table = {k: [r[k] for r in rows] for k in rows[0]}
    for i, a in enumerate("zyx"):
        table[f"centre_{a}_nm"] = centres[:, i] + scene.centre[i]
    table["to_plasma_membrane_nm"] = -cell_distance(centres, scene.half_axes, scene.waves_cell)
    table["to_nucleus_nm"] = nucleus_distance(centres, scene.lobes, scene.waves_nucleus)
    return pa.table(table)


def _touch(partners: list[int]) -> dict[str, int]:
    return {"touches": int(min(partners, default=0)), "touching": len(partners)}
