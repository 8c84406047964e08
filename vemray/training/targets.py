"""What a network learns to give, made of the labels of a crop: after it was turned and bent, so that no width or distance is.

Labels (int32, [Z,] Y, X): 0 is unknown, 1 the background or the first class, 2 and more the other classes, or objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["classes", "boundary", "affinities", "distance"]


@dataclass(frozen=True)
class Target:
    """`kind`: classes (as painted; of objects: background and object), boundary (of objects: background, if it is painted, inside, and a boundary
    of `width` voxels to each side), affinities (a channel for each axis of the network: 1 where a voxel and the one before it belong to one object;
    Turaga et al. 2010) or distance (to the object's end, in nm, as d / (d + `scale_nm`); 0 outside). The last two are no classes that exclude one
    another: the network ends in sigmoids."""

    kind: Kind
    names: tuple[str, ...]
    objects: bool = False
    width: int = 1
    scale_nm: float = 100.0

    @property
    def exclusive(self) -> bool:
        return self.kind in ("classes", "boundary")

    def indices(self, labels: np.ndarray) -> np.ndarray:
        """int64 class of each voxel, -1 where nothing is known; of what is not exclusive, 0 background and 1 object."""
        if self.kind == "boundary":
            walls = edges(labels, self.width)
            inside = len(self.names) - 2  # 1 where the background is a class, else 0
            out = np.where(labels > 1, inside, 0 if inside else -1)
            out[walls] = inside + 1
            out[labels == 0] = -1
            return out.astype(np.int64)
        return (np.minimum(labels, 2) if self.objects else labels).astype(np.int64) - 1

    def values(self, labels: np.ndarray, pixel_nm: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(values, known), float32 and bool of (channel, *labels.shape), of what is not exclusive."""
        known = np.stack([labels > 0] * len(self.names))
        out = np.zeros(known.shape, np.float32)
        if self.kind == "affinities":
            for axis in range(labels.ndim):
                here, before = [tuple(s if a == axis else slice(None) for a in range(labels.ndim)) for s in (slice(1, None), slice(None, -1))]
                out[axis][here] = (labels[here] == labels[before]) & (labels[here] > 1)
                known[axis][here] &= labels[before] > 0
                known[axis][(slice(None),) * axis + (0,)] = False
        else:
            import edt

            inside = np.where(labels > 1, labels, 0).astype(np.uint32)
            d = edt.edt(np.ascontiguousarray(inside), anisotropy=pixel_nm, black_border=False)
            d = np.where((inside > 0) & np.isfinite(d), d, 0).astype(np.float32)  # of an object without an end in the crop, unknown below
            out[0] = d / (d + np.float32(self.scale_nm))
            # an object's end may lie nearer where nothing is known, or beyond the crop
            within = edt.edt(np.ascontiguousarray(labels > 0), anisotropy=pixel_nm, black_border=True)
            known[0] &= (within >= d) & ((d > 0) | (inside == 0))
        return out, known


def edges(labels: np.ndarray, width: int) -> np.ndarray:
    """Voxels within `width` of one that belongs to another label. What is unknown is no other label."""
    out = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        here, before = [tuple(s if a == axis else slice(None) for a in range(labels.ndim)) for s in (slice(1, None), slice(None, -1))]
        differ = (labels[here] != labels[before]) & (labels[here] > 0) & (labels[before] > 0)
        out[here] |= differ
        out[before] |= differ
    if width > 1:
        from scipy.ndimage import binary_dilation

        out = binary_dilation(out, iterations=width - 1)
    return out & (labels > 0)
