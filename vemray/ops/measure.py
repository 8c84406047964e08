"""Object measurements: exact integer sums for each label, merged in any order to the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vemray.errors import RecipeError
from vemray.geometry import Spacing
from vemray.ops import measure_kernels as mk
from vemray.ops.base import ArraySpec, Measure, Port, Site, register
from vemray.ops.planes import Planes
from vemray.ops.surface import surface_area

# int64 columns that fit at any volume size
_N, _FIRST, _LO, _HI, _IMIN, _IMAX, _PAIRS = 0, 1, slice(2, 5), slice(5, 8), 8, 9, slice(10, 23)
_NARROW = 23
# columns in two limbs, value = high * 2^32 + low, since squared coordinates of a whole cell overflow 64 bits
_S, _SS, _ISUM, _ISQ = slice(0, 3), slice(3, 9), 9, 10
_WIDE = 11


@register("measure")
@dataclass(frozen=True)
class MeasureObjects(Measure):
    """One row for each label: volume, centroid, box, axes, surface and shape; with an image its intensity.

    Columns. `volume_voxels`, `volume_nm3`; `centroid_{z,y,x}_nm` (of voxel centres, the first voxel of the volume at 0);
    `bbox_{z,y,x}_{min,max}` (voxels, half open); `axis_{major,middle,minor}_nm` (full axes of the ellipsoid with the same second moments, as
    scikit-image: sqrt(20 * eigenvalue)); `orientation_{z,y,x}` (unit vector of the major axis, its largest component positive);
    `equivalent_diameter_nm`; `surface_area_nm2` (Crofton's formula, see ops/surface.py: no surface where the volume's border cuts);
    `surface_to_volume_per_nm`; `sphericity` (pi^(1/3) (6 V)^(2/3) / A: Wadell 1935; over 1 only for a few voxels or a cut object);
    `first_voxel` (raster index); `touches_border` (of the volume); `intensity_{mean,std,min,max,sum}` (a probability in 0..1).

    Sums are of integers. Float images are taken in fixed point, in steps of 1/65536, within +-32768."""

    serves = "steps 7 and 8: volumes, surface-to-volume"
    ports = (Port("labels", ("labels",)), Port("image", ("image", "probability", "mask"), optional=True, doc="whose intensity is measured"))

    def check(self, labels: ArraySpec, image: ArraySpec | None = None) -> None:
        if image is not None and image.dtype in ("float64", "uint64", "int64"):
            raise RecipeError(f"'measure' takes images of 8, 16 or 32 bits, not {image.dtype}. Use rescale first.")

    @staticmethod
    def column_names(with_image: bool) -> list[str]:
        """The table's columns, for conditions to be checked before anything is measured."""
        none = np.zeros(0, np.uint64)
        wide = np.zeros((0, _WIDE), np.int64)
        empty = Objects(none, np.zeros((0, _NARROW), np.int64), wide, wide, None)
        image = ArraySpec((1, 1, 1), "uint8", Spacing(1, 1, 1)) if with_image else None
        return empty.table((1, 1, 1), Spacing(1, 1, 1), image).column_names

    def memory(self, labels: ArraySpec, image: ArraySpec | None = None) -> float:
        # runs of two planes, and about a kilobyte a label while the table is made: blocks of objects of 50 voxels each
        return 24

    def measure(self, labels: np.ndarray, image: np.ndarray | None = None, *, site: Site) -> Objects:
        if image is None:
            grey, is_float = np.zeros((1, 1, 1), np.uint8), False
        else:
            grey = image.view(np.uint8) if image.dtype == np.bool_ else image
            is_float = grey.dtype.kind == "f"
        keys, acc, bad = mk.accumulate(labels, grey, image is not None, is_float, np.array(site.write.start, np.int64), np.array(site.shape, np.int64))
        if bad:
            raise RecipeError("'measure' cannot take intensities beyond +-32768 (float) or 31 bits (integer), or that are not finite. Use rescale first.")
        return Objects.of(keys, acc, site, Planes.of(labels, site.write, site.shape))

    def finish(self, partial: Objects, inputs: tuple[ArraySpec, ...]):
        image = inputs[1] if len(inputs) > 1 else None
        return partial.table(inputs[0].shape, inputs[0].spacing, image)


@dataclass
class Objects:
    """Sums of the labels of a group of blocks, by label in ascending order. `planes` hold labels of the group's outside: pairs of
    voxels over the face of two groups are counted when they merge."""

    keys: np.ndarray  # uint64 (n,)
    narrow: np.ndarray  # int64 (n, _NARROW)
    high: np.ndarray  # int64 (n, _WIDE)
    low: np.ndarray  # int64 (n, _WIDE), 0 <= low < 2^32
    planes: Planes

    @classmethod
    def of(cls, keys: np.ndarray, acc: np.ndarray, site: Site, planes: Planes) -> Objects:
        order = np.argsort(keys, kind="stable")
        keys, acc = keys[order], acc[order]
        oz, oy, ox = (int(v) for v in site.write.start)
        n = acc[:, mk.N]
        s, ss = acc[:, mk.S : mk.S + 3].copy(), acc[:, mk.SS : mk.SS + 6].copy()
        # from the block's corner to the volume's
        for i, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
            o = (oz, oy, ox)
            ss[:, i] += o[a] * s[:, b] + o[b] * s[:, a] + o[a] * o[b] * n
        s += np.array([oz, oy, ox]) * n[:, None]
        narrow = np.empty((len(keys), _NARROW), np.int64)
        narrow[:, _N], narrow[:, _FIRST] = n, acc[:, mk.FIRST]
        narrow[:, _LO] = acc[:, mk.LO : mk.LO + 3] + np.array(site.write.start)
        narrow[:, _HI] = acc[:, mk.HI : mk.HI + 3] + np.array(site.write.start)
        narrow[:, _IMIN], narrow[:, _IMAX] = acc[:, mk.IMIN], acc[:, mk.IMAX]
        # pairs with just one voxel in the label: both orientations, less those outside the volume, less both voxels of equal pairs
        narrow[:, _PAIRS] = 2 * n[:, None] - acc[:, mk.OUT : mk.OUT + 13] - 2 * acc[:, mk.SAME : mk.SAME + 13]
        whole = np.empty((len(keys), _WIDE), np.int64)
        whole[:, _S], whole[:, _SS], whole[:, _ISUM] = s, ss, acc[:, mk.ISUM]
        whole[:, _ISQ] = 0
        high, low = whole >> 32, whole & 0xFFFFFFFF
        high[:, _ISQ] = acc[:, mk.ISQ_HI] + (acc[:, mk.ISQ_LO] >> 32)
        low[:, _ISQ] = acc[:, mk.ISQ_LO] & 0xFFFFFFFF
        return cls(keys, narrow, high, low, planes)

    def merge(self, upper: Objects, axis: int) -> Objects:
        labels, same = mk.same_across(*self.planes.facing(upper.planes, axis), axis)
        planes = self.planes.join(upper.planes, axis)
        keys = np.concatenate([self.keys, upper.keys])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        narrow, high, low = (np.concatenate([a, b])[order] for a, b in ((self.narrow, upper.narrow), (self.high, upper.high), (self.low, upper.low)))
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
        if len(starts) < len(keys):
            least, most = [_FIRST, 2, 3, 4, _IMIN], [5, 6, 7, _IMAX]
            joined = np.add.reduceat(narrow, starts, axis=0)
            joined[:, least] = np.minimum.reduceat(narrow[:, least], starts, axis=0)
            joined[:, most] = np.maximum.reduceat(narrow[:, most], starts, axis=0)
            keys, narrow = keys[starts], joined
            high, low = np.add.reduceat(high, starts, axis=0), np.add.reduceat(low, starts, axis=0)
            high, low = high + (low >> 32), low & 0xFFFFFFFF
        if len(labels):
            narrow[np.searchsorted(keys, labels), _PAIRS] -= 2 * same
        return Objects(keys, narrow, high, low, planes)

    def exact(self, column: int) -> np.ndarray:
        """A wide column as Python integers."""
        return self.high[:, column].astype(object) * (1 << 32) + self.low[:, column].astype(object)

    def table(self, shape, spacing: Spacing, image: ArraySpec | None):
        import pyarrow as pa

        nm = spacing.zyx
        count = self.narrow[:, _N]
        n = count.astype(float)
        out = {"label": self.keys, "volume_voxels": count, "volume_nm3": n * spacing.voxel_nm3}
        many = count.astype(object)
        sums = [self.exact(i) for i in range(3)]
        for i, a in enumerate("zyx"):
            out[f"centroid_{a}_nm"] = _ratio(sums[i], many) * nm[i]
        for i, a in enumerate("zyx"):
            out[f"bbox_{a}_min"] = self.narrow[:, _LO][:, i]
            out[f"bbox_{a}_max"] = self.narrow[:, _HI][:, i] + 1
        eigenvalues, vectors = self._ellipsoid(sums, many, nm)
        for name, column in (("major", 2), ("middle", 1), ("minor", 0)):
            out[f"axis_{name}_nm"] = np.sqrt(20 * np.maximum(eigenvalues[:, column], 0))
        for i, a in enumerate("zyx"):
            out[f"orientation_{a}"] = vectors[:, i]
        volume = out["volume_nm3"]
        out["equivalent_diameter_nm"] = np.cbrt(6 * volume / np.pi)
        area = surface_area(self.narrow[:, _PAIRS], nm)
        out["surface_area_nm2"] = area
        out["surface_to_volume_per_nm"] = area / volume
        with np.errstate(divide="ignore"):
            out["sphericity"] = np.where(area > 0, np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area, np.nan)
        out["first_voxel"] = self.narrow[:, _FIRST].astype(np.uint64)
        lo, hi = self.narrow[:, _LO], self.narrow[:, _HI]
        out["touches_border"] = ((lo == 0) | (hi == np.array(shape) - 1)).any(axis=1)
        if image is not None:
            out.update(self._intensity(image, many))
        return pa.table(out)

    def _ellipsoid(self, sums, n, nm) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (nm2, ascending) and major axes of the covariance of voxel centres, from exact integers."""
        cov = np.zeros((len(n), 3, 3))
        for i, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
            cov[:, a, b] = cov[:, b, a] = _ratio(n * self.exact(3 + i) - sums[a] * sums[b], n * n) * nm[a] * nm[b]
        values, vectors = np.linalg.eigh(cov)
        major = vectors[:, :, 2] if len(n) else np.zeros((0, 3))
        biggest = np.take_along_axis(major, np.abs(major).argmax(axis=1)[:, None], 1) if len(n) else np.zeros((0, 1))
        return values, major * np.where(biggest < 0, -1.0, 1.0)

    def _intensity(self, image: ArraySpec, n) -> dict:
        unit = mk.FIXED if np.dtype(image.dtype).kind == "f" else 255.0 if (image.kind, image.dtype) == ("probability", "uint8") else 1.0
        total, squares = self.exact(_ISUM), self.exact(_ISQ)
        return {
            "intensity_mean": _ratio(total, n) / unit,
            "intensity_std": np.sqrt(_ratio(n * squares - total * total, n * n)) / unit,
            "intensity_min": self.narrow[:, _IMIN] / unit,
            "intensity_max": self.narrow[:, _IMAX] / unit,
            "intensity_sum": total.astype(float) / unit,
        }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b of Python integers, correctly rounded."""
    return (a / b).astype(float) if len(a) else np.zeros(0)
