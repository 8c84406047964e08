"""Object measurements: exact integer sums for each label, merged in any order to the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vemray.errors import RecipeError
from vemray.geometry import Box, Spacing
from vemray.ops import measure_kernels as mk
from vemray.ops.base import ArraySpec, Measure, Port, Site, register
from vemray.ops.planes import Planes, Runs
from vemray.ops.surface import surface_area

# int64 columns that fit at any volume size
_N, _FIRST, _LO, _HI, _PAIRS, _EULER = mk.N, mk.FIRST, slice(mk.LO, mk.HI), slice(mk.HI, mk.LESS), slice(mk.LESS, mk.EULER), mk.EULER
_SURFACE = slice(8, 22)
_NARROW = mk.NARROW
# columns in two limbs, value = high * 2^48 + low, since squared coordinates of a whole cell overflow 64 bits
_S, _SS, _ISUM, _ISQ = slice(0, 3), slice(3, 9), 9, 10
_WIDE = 11
_MASK = (1 << mk.BITS) - 1
#: the places of _SS
_PRODUCTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
#: columns that need the neighbourhoods of voxels
SURFACE_COLUMNS = ("surface_area_nm2", "surface_to_volume_per_nm", "sphericity", "euler_number")


@register("measure")
@dataclass(frozen=True)
class MeasureObjects(Measure):
    """One row for each label: volume, centroid, box, axes, surface and shape; with an image its intensity.

    Columns. `volume_voxels`, `volume_nm3`; `centroid_{z,y,x}_nm` (of voxel centres, from the volume's origin);
    `bbox_{z,y,x}_{min,max}` (voxels, half open); `axis_{major,middle,minor}_nm` (full axes of the ellipsoid with the same second moments:
    2 sqrt(5 * eigenvalue) of the covariance of voxel centres); `orientation_{z,y,x}` (unit vector of the major axis, its largest component
    positive); `equivalent_diameter_nm`; `surface_area_nm2` (Crofton's formula, see ops/surface.py: no surface where the volume's border
    cuts an object, see `touches_border`); `surface_to_volume_per_nm`; `sphericity` (pi^(1/3) (6 V)^(2/3) / A: Wadell 1935; above 1 for objects
    of a few voxels or cut ones, slightly for round ones in thick sections); `euler_number` (pieces - tunnels + cavities, voxels touching over faces); `first_voxel` (raster
    index); `touches_border` (of the volume); `intensity_{mean,std,min,max,sum}` (a probability in 0..1).

    Sums are of integers. Intensities of floats are summed in steps of 2^-20: they must lie within +-2^20, and reach 2^-10 somewhere."""

    serves = "steps 7 and 8: volumes, surface-to-volume"
    ports = (Port("labels", ("labels",)), Port("image", ("image", "probability", "mask"), optional=True, doc="whose intensity is measured"))

    def check(self, labels: ArraySpec, image: ArraySpec | None = None) -> None:
        if np.dtype(labels.dtype).kind != "u":
            raise RecipeError(f"'measure' takes labels of an unsigned integer type, not {labels.dtype}.")
        if image is not None and image.dtype in ("float16", "float64", "uint64", "int64"):
            raise RecipeError(f"'measure' takes images of 8, 16 or 32 bit integers or float32, not {image.dtype}. Use rescale first.")

    @staticmethod
    def column_names(with_image: bool) -> list[str]:
        """The table's columns, for conditions to be checked before anything is measured."""
        image = ArraySpec((1, 1, 1), "uint8", Spacing(1, 1, 1)) if with_image else None
        return Objects.none().table(ArraySpec((1, 1, 1), "uint64", Spacing(1, 1, 1), "labels"), image).column_names

    def memory(self, labels: ArraySpec, image: ArraySpec | None = None) -> float:
        # up to 800 bytes a label while its sums are sorted: the connected components of 20 % noise, of two voxels each, with two planes of runs
        return 75

    def measure(self, labels: np.ndarray, image: np.ndarray | None = None, *, site: Site) -> Objects:
        return self._objects(labels, image, site, True)

    def measure_local(self, labels: np.ndarray, keys: np.ndarray, image: np.ndarray | None = None, *, site: Site, surface: bool = False) -> Objects:
        """What `measure` gives of a labeller's LocalLabels, by global keys: for filters between the two passes of a labelling, by
        `rekey` of the merged partial. `surface` may be asked for only if pieces of one object touch in no block: pairs of voxels of
        different keys count as surface."""
        return self._objects(labels, image, site, surface).rekey(np.arange(1, len(keys) + 1, dtype=np.uint64), keys)

    def _objects(self, labels: np.ndarray, image: np.ndarray | None, site: Site, surface: bool) -> Objects:
        if image is not None and image.dtype == np.bool_:
            image = image.view(np.uint8)
        keys, *sums, extremes, bad = mk.accumulate(labels, image, site.write.start, site.shape, surface)
        if bad:
            raise RecipeError("'measure' met intensities beyond +-1048576, or not finite (NaN or infinity). Rescale or mask the image first.")
        planes = Planes.of(labels, site.write, site.shape) if surface else Planes(site.write, {})
        return Objects.of(keys, sums, extremes, site, planes, surface)

    def finish(self, partial: Objects, inputs: tuple[ArraySpec, ...]):
        image = inputs[1] if len(inputs) > 1 else None
        largest = float(np.abs(partial.extremes).max(initial=0))
        if image is not None and np.dtype(image.dtype).kind == "f" and 0 < largest < 2.0**-10:
            raise RecipeError(f"'measure' met intensities of at most {largest:.3g}, too small for sums in steps of 1e-6. Rescale the image first.")
        return partial.table(inputs[0], image)


@dataclass
class Objects:
    """Sums of the labels of a group of blocks, by label in ascending order. `planes` hold labels of the group's outside: pairs of
    voxels over the face of two groups are counted when they merge."""

    keys: np.ndarray  # uint64 (n,)
    narrow: np.ndarray  # int64 (n, _NARROW)
    high: np.ndarray  # int64 (n, _WIDE)
    low: np.ndarray  # int64 (n, _WIDE), 0 <= low < 2^48
    extremes: np.ndarray  # float64 (n, 2): least and largest intensity
    planes: Planes
    surface: bool = True

    @classmethod
    def none(cls) -> Objects:
        wide = np.zeros((0, _WIDE), np.int64)
        return cls(np.zeros(0, np.uint64), np.zeros((0, _NARROW), np.int64), wide, wide, np.zeros((0, 2)), Planes(Box((0, 0, 0), (0, 0, 0)), {}))

    @classmethod
    def of(cls, keys: np.ndarray, sums: list[np.ndarray], extremes: np.ndarray, site: Site, planes: Planes, surface: bool) -> Objects:
        """From a block's sums [narrow, wide], which it uses up: sorted, and from the block's corner to the volume's."""
        order = np.argsort(keys, kind="stable")
        wide = sums.pop()
        narrow = sums.pop()[order]
        keys, extremes = keys[order], extremes[order]
        corner, n = site.write.start, narrow[:, _N]
        narrow[:, _LO] += np.array(corner)
        narrow[:, _HI] += np.array(corner)
        narrow[:, _PAIRS] = 2 * n[:, None] - narrow[:, _PAIRS] if surface else 0
        far = max(site.write.stop) if len(keys) else 0
        large = int(n.max(initial=0)) * far * far >= 1 << 60  # a large object far from the corner
        n = n.astype(object) if large else n

        def column(i: int) -> np.ndarray:
            return wide[order, i].astype(object) if large else wide[order, i]

        high, low = np.empty((len(keys), _WIDE), np.int64), np.empty((len(keys), _WIDE), np.int64)
        s = [column(mk.S + i) for i in range(3)]
        for i in range(3):
            moved = s[i] + corner[i] * n
            high[:, i], low[:, i] = moved >> mk.BITS, moved & _MASK
        for i, (a, b) in enumerate(_PRODUCTS, 3):
            moved = column(mk.SS + i - 3) + corner[a] * s[b] + corner[b] * s[a] + corner[a] * corner[b] * n
            high[:, i], low[:, i] = moved >> mk.BITS, moved & _MASK
        high[:, _ISUM], low[:, _ISUM] = wide[order, mk.ISUM_HI], wide[order, mk.ISUM_LO]
        high[:, _ISQ], low[:, _ISQ] = wide[order, mk.ISQ_HI], wide[order, mk.ISQ_LO]
        return cls(keys, narrow, high, low, extremes, planes, surface)

    def merge(self, upper: Objects, axis: int) -> Objects:
        both = zip(self._arrays(), upper._arrays())
        out = replace(self, planes=self.planes.join(upper.planes, axis))._set(*(np.concatenate(pair) for pair in both))._joined()
        if self.surface:
            facing = self.planes.facing(upper.planes, axis)
            labels, change = mk.across(*(p.astype(np.uint64, copy=False) for p in facing), axis)
            if len(labels):
                change[:, :13] *= -2
                out.narrow[np.searchsorted(out.keys, labels), _SURFACE] += change
        return out

    def rekey(self, keys: np.ndarray, ids: np.ndarray) -> Objects:
        """With the labels `keys` (uint64, sorted, holding every label of this partial) replaced by `ids` (uint64, same length; 0 drops).
        Labels with the same id become one object; ValueError if their surface was measured: their contacts would count as surface."""
        keys, ids = np.asarray(keys, np.uint64), np.asarray(ids, np.uint64)

        def final(labels: np.ndarray) -> np.ndarray:
            if not len(keys):
                return np.zeros(len(labels), np.uint64)
            at = np.minimum(np.searchsorted(keys, labels), len(keys) - 1)
            return np.where(keys[at] == labels, ids[at], np.uint64(0))

        new = final(self.keys)
        kept = new > 0
        faces = {f: Runs(r.shape, final(r.values), r.lengths) for f, r in self.planes.faces.items()}
        out = replace(self, planes=Planes(self.planes.box, faces))._set(new[kept], *(a[kept] for a in self._arrays()[1:]))._joined()
        if self.surface and len(out.keys) < np.count_nonzero(kept):
            raise ValueError("labels cannot be joined after their surface was measured: measure without it")
        return out

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.keys, self.narrow, self.high, self.low, self.extremes

    def _set(self, *arrays: np.ndarray) -> Objects:
        self.keys, self.narrow, self.high, self.low, self.extremes = arrays
        return self

    def _joined(self) -> Objects:
        """Sorted, with rows of equal keys made one."""
        order = np.argsort(self.keys, kind="stable")
        keys = self.keys[order]
        first = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, bool)
        if first.all():
            return self._set(*(a[order] for a in self._arrays()))
        row = np.cumsum(first) - 1
        alone = order[first]
        narrow, high, low, extremes = (a[alone] for a in self._arrays()[1:])
        # the other rows of each key, in layers without a key twice
        rest, to = order[~first], row[~first]
        layer = np.arange(len(keys))[~first] - np.flatnonzero(first)[to]
        for k in range(1, int(layer.max()) + 1):
            i, j = rest[layer == k], to[layer == k]
            added = narrow[j] + self.narrow[i]
            added[:, [_FIRST, 2, 3, 4]] = np.minimum(narrow[j][:, [_FIRST, 2, 3, 4]], self.narrow[i][:, [_FIRST, 2, 3, 4]])
            added[:, _HI] = np.maximum(narrow[j, _HI], self.narrow[i, _HI])
            narrow[j] = added
            total = low[j] + self.low[i]
            high[j], low[j] = high[j] + self.high[i] + (total >> mk.BITS), total & _MASK
            least, most = np.minimum(extremes[j, 0], self.extremes[i, 0]), np.maximum(extremes[j, 1], self.extremes[i, 1])
            extremes[j] = np.stack([least, most], 1)
        return self._set(keys[first], narrow, high, low, extremes)

    # -- the table -------------------------------------------------------------------------------------------------------------------

    def table(self, labels: ArraySpec, image: ArraySpec | None):
        """pyarrow.Table, rows by ascending label. Every value is computed from the object's own exact sums alone."""
        import pyarrow as pa

        shape, spacing = labels.shape, labels.spacing
        nm = spacing.zyx
        count = self.narrow[:, _N]
        lo, hi = self.narrow[:, _LO], self.narrow[:, _HI]
        volume = count * spacing.voxel_nm3
        centroids, values, major = self._ellipsoid(nm)
        out = {"label": self.keys, "volume_voxels": count, "volume_nm3": volume}
        out |= {f"centroid_{a}_nm": centroids[:, i] + labels.origin_nm[i] for i, a in enumerate("zyx")}
        for i, a in enumerate("zyx"):
            out[f"bbox_{a}_min"], out[f"bbox_{a}_max"] = lo[:, i], hi[:, i] + 1
        out |= {f"axis_{name}_nm": np.sqrt(20 * np.maximum(values[:, 2 - i], 0)) for i, name in enumerate(("major", "middle", "minor"))}
        out |= {f"orientation_{a}": major[:, i] for i, a in enumerate("zyx")}
        out["equivalent_diameter_nm"] = np.cbrt(6 * volume / np.pi)
        if self.surface:
            area = surface_area(self.narrow[:, _PAIRS], nm)
            with np.errstate(divide="ignore"):
                round_ = np.where(area > 0, np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area, np.nan)
            out |= dict(zip(SURFACE_COLUMNS, (area, area / volume, round_, self.narrow[:, _EULER])))
        out["first_voxel"] = self.narrow[:, _FIRST].astype(np.uint64)
        out["touches_border"] = ((lo == 0) | (hi == np.array(shape) - 1)).any(axis=1)
        if image is not None:
            out |= self._intensity(image)
        return pa.table(out)

    def _exact(self, rows: np.ndarray, column: int) -> np.ndarray:
        """A wide column as Python integers."""
        return (self.high[rows, column].astype(object) << mk.BITS) + self.low[rows, column].astype(object)

    def _wrapped(self, rows: np.ndarray, column: int) -> np.ndarray:
        """A wide column as int64, modulo 2^64: sums and products of such are right wherever the result fits."""
        return (self.high[rows, column] << mk.BITS) + self.low[rows, column]

    def _halves(self, fits: np.ndarray):
        """(rows, their columns' getter, type of the numbers): most in 64 bits, the few largest objects in Python integers."""
        return ((np.flatnonzero(fits), self._wrapped, np.int64), (np.flatnonzero(~fits), self._exact, object))

    def _ellipsoid(self, nm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centroids (nm), eigenvalues (nm2, ascending) and major axes of the covariance of voxel centres. Moments are taken about the voxel
        below the centroid: integers, small enough to lose nothing when divided."""
        count = self.narrow[:, _N]
        centre, cov = np.zeros((len(count), 3)), np.zeros((len(count), 3, 3))
        side = (self.narrow[:, _HI] - self.narrow[:, _LO]).max(axis=1, initial=0) + 1.0
        for rows, column, kind in self._halves(count * side**2 < 2.0**62):
            n = count[rows].astype(kind)
            middle, rest = [], []
            for a in range(3):
                lowest = self.narrow[rows, _LO][:, a].astype(kind)
                s = column(rows, a) - lowest * n
                middle.append(lowest + s // n)
                rest.append(s % n)
                centre[rows, a] = (middle[a].astype(float) + rest[a].astype(float) / n.astype(float)) * nm[a]
            for i, (a, b) in enumerate(_PRODUCTS):
                # sum (u - m)(v - k) = sum uv - m sum v - k sum u + n m k, with sum u = n m + rest
                about = column(rows, 3 + i) - middle[a] * (n * middle[b] + rest[b]) - middle[b] * rest[a]
                f, ra, rb = n.astype(float), rest[a].astype(float), rest[b].astype(float)
                cov[rows, a, b] = cov[rows, b, a] = (about.astype(float) / f - ra / f * (rb / f)) * nm[a] * nm[b]
        values, vectors = np.linalg.eigh(cov)
        major = vectors[:, :, 2]
        biggest = np.take_along_axis(major, np.abs(major).argmax(axis=1)[:, None], 1) if len(count) else np.zeros((0, 1))
        return centre, values, major * np.where(biggest < 0, -1.0, 1.0)

    def _intensity(self, image: ArraySpec) -> dict:
        step = mk.FIXED if np.dtype(image.dtype).kind == "f" else 1.0
        top = 255.0 if (image.kind, image.dtype) == ("probability", "uint8") else 1.0
        count = self.narrow[:, _N]
        mean, variance, total = np.zeros(len(count)), np.zeros(len(count)), np.zeros(len(count))
        width = (self.extremes[:, 1] - self.extremes[:, 0]) * step + 2
        for rows, column, kind in self._halves((count * width**2 < 2.0**62) & (np.abs(self.high[:, _ISUM]) < 1 << 14)):
            n = count[rows].astype(kind)
            s = column(rows, _ISUM)
            middle, rest = s // n, s % n
            about = column(rows, _ISQ) - middle * (s + rest)  # sum (v - middle)^2
            f = n.astype(float)
            mean[rows] = middle.astype(float) + rest.astype(float) / f
            variance[rows] = about.astype(float) / f - (rest.astype(float) / f) ** 2
            total[rows] = s.astype(float)
        unit = step * top
        return {
            "intensity_mean": mean / unit, "intensity_std": np.sqrt(np.maximum(variance, 0)) / unit,
            "intensity_min": (self.extremes[:, 0] + 0.0) / top, "intensity_max": (self.extremes[:, 1] + 0.0) / top, "intensity_sum": total / unit,
        }  # fmt: skip
