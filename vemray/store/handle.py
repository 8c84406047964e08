"""`Volume`: a small picklable handle on one level of an OME-Zarr multiscale (or a plain Zarr array), in ZYX and nanometres.
`store.volume` opens and creates them."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vemray.errors import StorageError, VolumeError
from vemray.geometry import ArraySpec, Box, Grid, Int3, Kind, Spacing
from vemray.store import access, metadata, pyramid, shards
from vemray.store.pyramid import Level

if TYPE_CHECKING:
    import xarray

KINDS = ("image", "probability", "mask", "labels")


@dataclass(frozen=True)
class Volume:
    """One level of a volume. Reading is safe from any number of processes; a shard is written by exactly one of them.

    `shape`, `shard`, `chunk` in voxels (ZYX); `spacing` in nm; `origin_nm` is the centre of voxel (0, 0, 0); `dtype` is what
    `read` gives ('bool' for a mask). `dims` says where z, y, x lie in the stored array: a letter per axis, or a fixed index."""

    url: str
    path: str
    level: int
    shape: Int3
    dtype: str
    spacing: Spacing
    kind: Kind = "image"
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shard: Int3 = (1, 1, 1)
    chunk: Int3 = (1, 1, 1)
    levels: int = 1
    writable: bool = False
    name: str = ""
    dims: tuple[int | str, ...] = ("z", "y", "x")
    pyramid: tuple[Level, ...] = ()

    @property
    def spec(self) -> ArraySpec:
        return ArraySpec(self.shape, self.dtype, self.spacing, self.kind, self.origin_nm)

    @property
    def box(self) -> Box:
        return Box.of(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the level in memory."""
        return self.box.size * np.dtype(self.dtype).itemsize

    @property
    def where(self) -> str:
        """The array's address, as messages show it."""
        return access.shown(access.join(self.url, self.path))

    @property
    def attributes(self) -> dict[str, Any]:
        """What vemray recorded with the volume: its kind and the `attributes` given to `create`. Reads the metadata."""
        node = metadata.read_node(self.url)
        found = node.attributes.get("vemray") if node else None
        return dict(found) if isinstance(found, dict) else {}

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`: a C-contiguous array (ZYX) of the caller's own, native byte order; a mask as bool. Chunks that were never
        written hold the fill value. VolumeError for a box outside the volume or data that is truncated or corrupt."""
        if not self.box.contains(box):
            raise VolumeError(f"box {box} does not lie in {self.where}, which holds {self.box}. Clip it: box.clip(volume.shape).")
        with access.storage_errors(self.url, "read"):
            stored = self._stored
            try:
                array = shards.read(stored, box) if isinstance(stored, shards.Shards) else _read_zarr(stored, self.dims, box)
            except (FileNotFoundError, OSError):
                raise
            except Exception as e:
                if access.translated(e, self.url, "read") is not e:
                    raise
                raise VolumeError(f"the data of {self.where} in {box} are truncated or corrupt ({_short(e)}). Copy or compute it again.") from e
        if self.kind == "mask":
            return array.view(bool) if array.dtype == np.uint8 and not (array > 1).any() else array != 0
        if array.dtype.name != self.dtype:
            if array.dtype.kind == "i" and self.kind == "labels" and array.size and array.min() < 0:
                raise VolumeError(f"{self.where} holds negative labels in {box}. Labels are numbers from 0 (background) up: renumber them first.")
            array = array.astype(self.dtype)
        return array

    def write(self, box: Box, array: np.ndarray) -> int:
        """Write whole shards, and the part of the inline coarser levels they determine. Returns the bytes stored. VolumeError for a box that is
        not shard-aligned, a volume opened read-only, or an array of another shape or type."""
        self._check_writable(box, array)
        array = _to_stored(array, self.kind, self.dtype, self.where)
        with access.storage_errors(self.url, "write"):
            total = shards.write(_shards(self), box, array)
            for i, lv in enumerate(self.pyramid[1:], 1):
                if not lv.inline:
                    break
                box = _coarse_box(box, lv)
                array = pyramid.reduce(array, lv.factor, self.kind in ("labels", "mask"))
                total += shards.write(_shards(self.at(i)), box, array)
        return total

    def at(self, level: int) -> Volume:
        """The handle on another level of a volume that vemray wrote."""
        if not 0 <= level < len(self.pyramid):
            raise VolumeError(f"{access.shown(self.url)} has no level {level} here. Open it: open(url, level={level}).")
        lv = self.pyramid[level]
        return replace(self, level=level, path=lv.path, shape=lv.shape, spacing=lv.spacing, origin_nm=lv.origin_nm, shard=lv.shard, chunk=lv.chunk)

    @property
    def later_levels(self) -> list[tuple[int, Grid]]:
        """Levels that `write` does not fill: (level, grid of boxes for `fill_level`), to be done in this order, each when the one before is whole."""
        return [(i, Grid(lv.shape, lv.shard)) for i, lv in enumerate(self.pyramid) if i and not lv.inline]

    def to_xarray(self) -> xarray.DataArray:
        """A lazy DataArray (z, y, x) with voxel centres in nm as coordinates: indexing reads only what is asked for."""
        from vemray.store.lazy import to_xarray

        return to_xarray(self)

    @property
    def _stored(self):
        return _opened(self._key)

    @property
    def _key(self) -> tuple:
        """What a cached reader of this process depends on: a volume made again in another form at the same address has another key."""
        return (os.getpid(), self.url, self.path, self.shape, self.shard, self.chunk, self.dtype, self.kind, self.dims)

    def _check_writable(self, box: Box, array: np.ndarray) -> None:
        if not self.writable:
            raise VolumeError(f"{self.where} was opened to read. Inputs are never written to: create a volume, or open with writable=True.")
        if self.level:
            raise VolumeError(f"{self.where} is a coarser level, which follows from level 0. Write there; fill_level makes the later levels.")
        self._check_box(box, array)

    def _check_box(self, box: Box, array: np.ndarray) -> None:
        if not self.box.contains(box) or box.size == 0:
            raise VolumeError(f"box {box} does not lie in {self.where}, which holds {self.box}.")
        down = tuple(a // s * s for a, s in zip(box.start, self.shard))
        up = tuple(min(-(-b // s) * s, n) for b, s, n in zip(box.stop, self.shard, self.shape))
        if down != box.start or up != box.stop:
            raise VolumeError(
                f"box {box} is not whole shards of {self.where} (shard {self.shard}): two blocks would write one object and lose voxels. "
                f"Write the nearest whole-shard box {Box(down, up)}, or create the volume with shard= your block shape."
            )
        if tuple(array.shape) != box.shape:
            raise VolumeError(f"an array of shape {tuple(array.shape)} does not fill box {box} of {self.where}: it needs {box.shape}.")


def fill_level(volume: Volume, level: int, box: Box) -> int:
    """Compute `box` of a later level from the level before it and write it. Returns the bytes stored. `box` must be whole shards of that level."""
    target = volume.at(level)
    lv = volume.pyramid[level]
    if level == 0 or lv.inline:
        raise VolumeError(f"level {level} of {access.shown(volume.url)} is filled by write; later_levels names those that are not.")
    finer = volume.at(level - 1)
    source = replace(finer, kind="labels") if volume.kind == "mask" else finer
    source = replace(source, dtype="uint8") if volume.kind == "mask" else source
    array = pyramid.reduce(source.read(pyramid.source_box(box, lv.factor, finer.shape)), lv.factor, volume.kind in ("labels", "mask"))
    target._check_box(box, array)
    with access.storage_errors(volume.url, "write"):
        return shards.write(_shards(target), box, array)


def _coarse_box(box: Box, level: Level) -> Box:
    return Box(tuple(a // f for a, f in zip(box.start, level.factor)), tuple(-(-b // f) for b, f in zip(box.stop, level.factor)))


def _to_stored(array: np.ndarray, kind: str, dtype: str, where: str) -> np.ndarray:
    """The array as it is stored (mask: uint8 0/1). Only lossless conversions."""
    if kind == "mask":
        array = np.asarray(array)
        return (array if array.dtype == bool else array != 0).view(np.uint8)
    if array.dtype.name != dtype and not np.can_cast(array.dtype, dtype, "safe"):
        raise VolumeError(f"{where} holds {dtype}; {array.dtype} values would change. Convert the array, or create a volume of that type.")
    return np.asarray(array, np.dtype(dtype))


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


# --------------------------------------------------------------------------------------------------------- stored arrays


@functools.lru_cache(maxsize=256)
def _opened(key: tuple):
    """This process's reader of an array: our own for shards as vemray writes them, zarr's for all others."""
    _, url, path, shape, shard, chunk, _, _, dims = key
    found = shards.describe(url, path) if dims == ("z", "y", "x") else None
    if found is None:
        import zarr

        found = zarr.open_array(store=access.array_store(url, read_only=True), path=path, mode="r")
        now = tuple(found.shape[dims.index(a)] for a in "zyx")
    else:
        now = found.shape
    if now != shape or (isinstance(found, shards.Shards) and (found.shard, found.chunk) != (shard, chunk)):
        raise VolumeError(f"{access.shown(access.join(url, path))} was replaced by another volume since it was opened. Open it again.")
    return found


def _shards(volume: Volume) -> shards.Shards:
    found = volume._stored
    if not isinstance(found, shards.Shards):
        raise StorageError(f"{volume.where} is not an array that vemray wrote, or its metadata is lost. Create it again.")
    return found


def forget() -> None:
    """Drop this process's readers, after a volume was made again."""
    _opened.cache_clear()


def _read_zarr(array, dims: tuple[int | str, ...], box: Box) -> np.ndarray:
    """`box` of a zarr array of any rank: fixed indices where `dims` has numbers, then ZYX order, native and contiguous."""
    where = dict(zip("zyx", box.slices))
    got = np.asarray(array[tuple(where[d] if isinstance(d, str) else slice(d, d + 1) for d in dims)])
    kept = got.reshape([n for n, d in zip(got.shape, dims) if isinstance(d, str)])
    letters = [d for d in dims if isinstance(d, str)]
    zyx = kept.transpose([letters.index(a) for a in "zyx"])
    out = np.array(zyx, dtype=zyx.dtype.newbyteorder("="), order="C", copy=None)
    return out if out.flags.writeable and out.base is None else out.copy()


def dtype_in_memory(dtype: str, kind: str, where: str) -> str:
    if np.dtype(dtype).kind not in "biuf":
        raise VolumeError(f"{where} holds {dtype}; vemray reads integer, float and bool volumes.")
    if kind == "mask":
        return "bool"
    if kind == "labels":
        if np.dtype(dtype).kind not in "iu":
            raise VolumeError(f"{where} holds {dtype}, but labels are whole numbers. Open it as an image, or convert it.")
        return dtype.replace("int", "uint") if dtype.startswith("int") else dtype
    if kind == "probability" and dtype != "uint8":
        raise VolumeError(
            f"{where} holds {dtype}, but a probability is stored as uint8 (0..255 stands for 0..1). Open it as an image, or convert it."
        )
    return "uint8" if dtype == "bool" else dtype
