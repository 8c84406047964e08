"""Any box of a scene."""

from __future__ import annotations

import numpy as np

from vemray.geometry import Box
from vemray.phantom import kernels
from vemray.phantom.scene import Scene

#: standard deviation of the noise at grey 160; sets the contrast-to-noise ratio to that of the real volume (docs/phantom.md)
NOISE = 2.0


def render(scene: Scene, box: Box) -> dict[str, np.ndarray]:
    """`em` uint8; `cell`, `nucleus` bool; `mitochondria`, `lysosomes` and, where the scene has them, `pores`, `pockets` uint64 labels over `box` (voxels,
    ZYX). A voxel belongs to the structure its centre is in. A pore and the pocket under it have the same label."""
    shape = box.shape
    em, cell, nucleus = np.zeros(shape, np.uint8), np.zeros(shape, bool), np.zeros(shape, bool)
    mito, lysosome = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
    porous = len(scene.pores) > 0
    pore, pocket = (np.zeros(shape if porous else (0, 0, 0), np.uint64) for _ in range(2))
    parts = (
        scene.centre, scene.half_axes, scene.waves_cell, scene.lobes, scene.waves_nucleus, scene.nucleoli, scene.segments, scene.spheres, scene.waves_er,
        scene.fingers, scene.pores, scene.lining,
    )  # fmt: skip
    start, spacing = np.array(box.start, np.int64), np.array(scene.spacing.zyx)
    kernels.render(start, shape, spacing, parts, scene.seed * 1000, NOISE, em, cell, nucleus, mito, lysosome, pore, pocket)
    out = {"em": em, "cell": cell, "nucleus": nucleus, "mitochondria": mito, "lysosomes": lysosome}
    return {**out, "pores": pore, "pockets": pocket} if porous else out
