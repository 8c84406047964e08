"""What the phantom is held against, and how a biologist would have painted it."""

from __future__ import annotations

import numpy as np

from vemray.phantom.scene import Scene

#: labels of `sparse_annotation`; 0 is unlabelled
CLASSES = ("resin", "cytoplasm", "nucleus", "mitochondria", "lysosomes")


def contrast_to_noise(image: np.ndarray, membrane: np.ndarray, cytosol: np.ndarray) -> float:
    """|mean grey of membrane - mean grey of cytosol| / standard deviation of the noise within the cytosol.

    The noise is what a 3 x 3 mean within each plane does not explain (robustly, from the median absolute deviation), corrected for the share of
    white noise that the mean itself keeps. `image` (Z, Y, X); masks of the same shape."""
    from scipy.ndimage import uniform_filter

    grey = image.astype(np.float32)
    residual = grey - uniform_filter(grey, (0, 3, 3))
    r = residual[cytosol]
    noise = 1.4826 * np.median(np.abs(r - np.median(r))) / np.sqrt(1 - 1 / 9)
    return float(abs(grey[membrane].mean() - grey[cytosol].mean()) / noise)


def membrane_and_cytosol(labels: np.ndarray, spacing_nm: tuple[float, float, float], clear_nm: float) -> tuple[np.ndarray, np.ndarray]:
    """From a dense labelling of bodies: voxels at a border between two, and voxels farther than `clear_nm` from any border."""
    import edt

    border = np.zeros(labels.shape, bool)
    for axis in range(3):
        a, b = [slice(None)] * 3, [slice(None)] * 3
        a[axis], b[axis] = slice(1, None), slice(None, -1)
        differ = labels[tuple(a)] != labels[tuple(b)]
        border[tuple(a)] |= differ
        border[tuple(b)] |= differ
    return border, edt.edt(~border, anisotropy=spacing_nm) > clear_nm


def sparse_annotation(scene: Scene, truth: dict[str, np.ndarray], every: int = 10, fraction: float = 0.5, seed: int = 1) -> dict[int, np.ndarray]:
    """Partly painted planes, z -> uint8 (Y, X): 0 unlabelled, then the CLASSES from 1.

    `truth`: `render(scene, whole)`, or the same at a coarser voxel size. Every `every`-th plane is painted; of its organelles and of square patches
    of the rest about `fraction`, and a thin line between cytoplasm and organelle is left out, as a hurried person leaves it. Lysosomes, which look
    like mitochondria, are painted as a class of their own: the network must be shown what it shall not take."""
    from scipy.ndimage import binary_dilation, binary_erosion

    rng = np.random.default_rng([seed, scene.seed, 3])
    out = {}
    for z in range(every // 2, len(truth["cell"]), every):
        cell, nucleus, mito = truth["cell"][z], truth["nucleus"][z], truth["mitochondria"][z]
        if not cell.any():
            continue
        plane = np.zeros(cell.shape, np.uint8)
        full = np.where(cell, 2, 1).astype(np.uint8)
        full[nucleus] = 3
        tile = 40
        for y in range(0, cell.shape[0], tile):
            for x in range(0, cell.shape[1], tile):
                if rng.random() < fraction:
                    part = (slice(y, y + tile), slice(x, x + tile))
                    plane[part] = full[part]
        organelle = (mito > 0) | (truth["lysosomes"][z] > 0)
        plane[organelle] = 0
        near = binary_dilation(organelle) & ~organelle
        unsure = near & (rng.random(cell.shape) < 0.5)
        plane[unsure] = 0
        for labels, value in ((mito, 4), (truth["lysosomes"][z], 5)):
            for label in np.unique(labels[labels > 0]):
                if rng.random() < fraction:
                    one = labels == label
                    plane[one] = value
                    ring = binary_dilation(one, iterations=4) & ~organelle
                    plane[ring & ~unsure] = full[ring & ~unsure]
        edge = nucleus & ~binary_erosion(nucleus)
        plane[edge & (rng.random(cell.shape) < 0.3)] = 0
        out[z] = plane
    return out


def object_planes(labels: np.ndarray, every: int = 5) -> dict[int, np.ndarray]:
    """Fully painted planes of one kind of object, z -> uint8 (Y, X): 1 elsewhere, 2 in an object. Every `every`-th plane that has one."""
    planes = {z: (labels[z] > 0).astype(np.uint8) + np.uint8(1) for z in range(every // 2, len(labels), every)}
    return {z: plane for z, plane in planes.items() if plane.max() == 2}
