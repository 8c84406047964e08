"""`Volume`: a small picklable handle on one level of an OME-Zarr multiscale (or a plain Zarr array), in ZYX and nanometres.

    open(url)            read: OME-Zarr 0.4 and 0.5, label groups, plain Zarr v2 and v3
    create(url, ...)     write: OME-Zarr 0.5, Zarr v3, sharded, multiscale; every level's metadata at once, workers only fill
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vemray.errors import StorageError, VolumeError
from vemray.geometry import Box, Grid, Int3, Spacing
from vemray.store import access, metadata, pyramid, shards
from vemray.store.pyramid import Level

if TYPE_CHECKING:
    import xarray

    from vemray.ops.base import ArraySpec, Kind

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
        from vemray.ops.base import ArraySpec

        return ArraySpec(self.shape, self.dtype, self.spacing, self.kind)

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
                raise VolumeError(f"the data of {self.where} in {box} are truncated or corrupt ({_short(e)}). Copy or compute the volume again.") from e
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
        levels = self.pyramid[self.level :]
        total = 0
        with access.storage_errors(self.url, "write"):
            for lv, following in zip(levels, [*levels[1:], None]):
                total += shards.write(_shards(self.url, lv.path, os.getpid()), box, array)
                if following is None or not following.inline:
                    break
                box = _coarse_box(box, following)
                array = pyramid.reduce(array, following.factor, self.kind in ("labels", "mask"))
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
        return _opened(self.url, self.path, self.writable, os.getpid())

    def _check_writable(self, box: Box, array: np.ndarray) -> None:
        if not self.writable:
            raise VolumeError(f"{self.where} was opened to read. Inputs are never written to: create a volume, or open with writable=True.")
        if not self.box.contains(box) or box.size == 0:
            raise VolumeError(f"box {box} does not lie in {self.where}, which holds {self.box}.")
        down = tuple(a // s * s for a, s in zip(box.start, self.shard))
        up = tuple(min(-(-b // s) * s, n) for b, s, n in zip(box.stop, self.shard, self.shape))
        if down != box.start or up != box.stop:
            raise VolumeError(
                f"box {box} is not whole shards of {self.where} (shard {self.shard}): two blocks would write one object and lose each other's voxels. "
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
    target._check_writable(box, array)
    with access.storage_errors(volume.url, "write"):
        return shards.write(_shards(volume.url, lv.path, os.getpid()), box, array)


def _coarse_box(box: Box, level: Level) -> Box:
    return Box(tuple(a // f for a, f in zip(box.start, level.factor)), tuple(-(-b // f) for b, f in zip(box.stop, level.factor)))


def _to_stored(array: np.ndarray, kind: str, dtype: str, where: str) -> np.ndarray:
    """The array as it is stored (mask: uint8 0/1). Only lossless conversions."""
    if kind == "mask":
        array = np.asarray(array)
        return np.ascontiguousarray(array if array.dtype == bool else array != 0).view(np.uint8)
    if array.dtype.name != dtype and not np.can_cast(array.dtype, dtype, "safe"):
        raise VolumeError(f"{where} holds {dtype}; {array.dtype} values would be changed. Convert the array first, or create the volume with that type.")
    return np.ascontiguousarray(array, np.dtype(dtype))


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


# --------------------------------------------------------------------------------------------------------- stored arrays


@functools.lru_cache(maxsize=256)
def _opened(url: str, path: str, writable: bool, pid: int):
    """This process's reader of an array: our own for shards as vemray writes them, zarr's for all others."""
    found = shards.describe(url, path)
    if found is not None:
        return found
    import zarr

    return zarr.open_array(store=access.array_store(url, read_only=True), path=path, mode="r")


@functools.lru_cache(maxsize=256)
def _shards(url: str, path: str, pid: int) -> shards.Shards:
    found = shards.describe(url, path)
    if found is None:
        raise StorageError(f"{access.shown(access.join(url, path))} is not an array as vemray writes it, or its metadata is missing. Create the volume again.")
    return found


def _forget(url: str) -> None:
    """Drop cached readers after the metadata at `url` changed."""
    _opened.cache_clear()
    _shards.cache_clear()


def _read_zarr(array, dims: tuple[int | str, ...], box: Box) -> np.ndarray:
    """`box` of a zarr array of any rank: fixed indices where `dims` has numbers, then ZYX order, native and contiguous."""
    where = dict(zip("zyx", box.slices))
    got = np.asarray(array[tuple(where[d] if isinstance(d, str) else slice(d, d + 1) for d in dims)])
    kept = got.reshape([n for n, d in zip(got.shape, dims) if isinstance(d, str)])
    letters = [d for d in dims if isinstance(d, str)]
    zyx = kept.transpose([letters.index(a) for a in "zyx"])
    out = np.array(zyx, dtype=zyx.dtype.newbyteorder("="), order="C", copy=None)
    return out if out.flags.writeable and out.base is None else out.copy()


# ------------------------------------------------------------------------------------------------------------------ open


def split_channel(url: str) -> tuple[str, int | None]:
    """(url, channel) of 'url#c=1'. Any other fragment is a VolumeError; a local path may hold a # of its own."""
    base, hash_, fragment = os.fspath(url).rpartition("#")
    if not hash_ or "/" in fragment:
        return os.fspath(url), None
    key, _, value = fragment.partition("=")
    if key == "c" and value.isdigit():
        return base, int(value)
    if access.scheme(url) == "file" and os.path.exists(access.local_path(url)):
        return os.fspath(url), None
    raise VolumeError(f"'#{fragment}' after {access.shown(base)} is not understood. A channel is chosen by #c=0.")


def open(url: str, level: int = 0, spacing: Spacing | None = None, kind: Kind | None = None, writable: bool = False) -> Volume:
    """Open an OME-Zarr 0.4 or 0.5 image or label group, or a plain Zarr array (v2, v3), to read.

    `spacing` (nm, of level 0) replaces what the file says and is required where it says nothing. Leading axes of length 1 are dropped;
    a longer one (time, channel) must be chosen: `url#c=1`. VolumeError says what is missing and how to give it."""
    url, channel = split_channel(url)
    url = url.rstrip("/") if url.strip("/") else url
    if kind is not None and kind not in KINDS:
        raise VolumeError(f"there is no kind of volume '{kind}'. Kinds are: {', '.join(KINDS)}.")
    access.reach(url)
    node = metadata.read_node(url)
    where = access.shown(url)
    if node is None:
        raise VolumeError(_nothing_here(url))
    own = node.attributes.get("vemray") if isinstance(node.attributes.get("vemray"), dict) else {}
    if node.type == "array":
        return _open_plain(url, node, level, spacing, kind or own.get("kind"), channel, writable)
    ms = metadata.read_multiscale(node, where)
    if ms is None:
        raise VolumeError(_no_multiscale(url, node))
    if not 0 <= level < len(ms.paths):
        raise VolumeError(f"{where} has no level {level}: its levels are 0 to {len(ms.paths) - 1}.")
    array = metadata.read_node(access.join(url, ms.paths[level]))
    if array is None or array.type != "array":
        raise VolumeError(f"{where} is incomplete: its metadata names the array '{ms.paths[level]}', which is not there. Copy or create it again.")
    shape, dtype, shard, chunk = _array_facts(array, where)
    axes = ms.axes or metadata.array_dimensions(array, len(shape)) or _default_axes(len(shape))
    if len(axes) != len(shape):
        raise VolumeError(f"{where}: {len(axes)} axes ({', '.join(axes)}) for an array of {len(shape)} dimensions. Correct the metadata.")
    dims, zyx = _choose(axes, shape, channel, where)
    if spacing is None:
        size, origin = metadata.spacing_of(ms, level, zyx, where) if ms.axes else metadata.spacing_of(replace(ms, scales=(None,) * len(ms.paths)), level, zyx, where)
    else:
        size, origin = _scaled(spacing, ms, level, zyx), (0.0, 0.0, 0.0)
    found = kind or own.get("kind") or ("labels" if ms.is_labels else "mask" if dtype == "bool" else "image")
    volume = Volume(
        url, ms.paths[level], level, tuple(shape[i] for i in zyx), _dtype(dtype, found, where), size, found, origin,
        tuple(shard[i] for i in zyx), tuple(chunk[i] for i in zyx), len(ms.paths), False, ms.name, dims,
    )  # fmt: skip
    return _writable(volume, ms) if writable else volume


def _nothing_here(url: str) -> str:
    where = access.shown(url)
    if not access.exists(url):
        return f"there is nothing at {where}. Check the address."
    names = access.list_names(url)
    volumes = [n for n in names if n.endswith(".zarr")]
    if volumes:
        return f"{where} is a folder that holds {', '.join(volumes[:5])}, not a volume itself. Name one of them."
    return f"{where} is not a Zarr volume (it has no zarr.json, .zgroup or .zarray). Other formats are converted by: vemray import {where} OUT.zarr"


def _no_multiscale(url: str, node: metadata.Node) -> str:
    where = access.shown(url)
    ome = node.attributes.get("ome") if isinstance(node.attributes.get("ome"), dict) else node.attributes
    labels = ome.get("labels")
    names = labels if isinstance(labels, list) else [n for n in access.list_names(url) if not n.startswith(".") and n != "zarr.json"]
    listed = f" It holds: {', '.join(map(str, names[:8]))}. Name one of them: {access.join(where, str(names[0]))}." if names else ""
    return f"{where} is a Zarr group without an image of its own.{listed}"


def _default_axes(ndim: int) -> tuple[str, ...]:
    return ("t", "c", "z", "y", "x")[-ndim:] if 3 <= ndim <= 5 else tuple(f"dim{i}" for i in range(ndim - 3)) + ("z", "y", "x")


def _choose(axes: tuple[str, ...], shape: tuple[int, ...], channel: int | None, where: str) -> tuple[tuple[int | str, ...], Int3]:
    """Which stored axis is z, y, x and which index the others take. VolumeError for a missing or an undecided axis."""
    missing = [a for a in "zyx" if a not in axes]
    if missing:
        raise VolumeError(f"{where} has the axes {', '.join(axes)}, without {', '.join(missing)}: vemray needs a volume of z, y and x.")
    dims: list[int | str] = []
    for axis, n in zip(axes, shape):
        if axis in ("z", "y", "x"):
            dims.append(axis)
        elif axis in ("c", "channel") and channel is not None:
            if channel >= n:
                raise VolumeError(f"{where} has {n} channels (0 to {n - 1}), there is no channel {channel}.")
            dims.append(channel)
        elif n == 1:
            dims.append(0)
        elif axis in ("c", "channel"):
            raise VolumeError(f"{where} has {n} channels. Choose one: {where}#c=0 (to {n - 1}).")
        else:
            raise VolumeError(f"axis '{axis}' of {where} has length {n}; vemray reads one volume of z, y, x. Save a single {axis} as a volume of its own.")
    if channel is not None and not any(a in ("c", "channel") for a in axes) and channel != 0:
        raise VolumeError(f"{where} has no channel axis, so there is no channel {channel}.")
    return tuple(dims), tuple(axes.index(a) for a in "zyx")


def _open_plain(url, node, level, spacing, kind, channel, writable) -> Volume:
    where = access.shown(url)
    if writable:
        raise VolumeError(f"{where} is a plain Zarr array; vemray writes only volumes it created. Create one.")
    if level:
        raise VolumeError(f"{where} is a plain Zarr array: it has only level 0.")
    shape, dtype, shard, chunk = _array_facts(node, where)
    if len(shape) < 3:
        raise VolumeError(f"{where} has {len(shape)} dimensions; vemray needs a volume of z, y and x.")
    axes = metadata.array_dimensions(node, len(shape))
    if axes is None or any(a not in axes for a in "zyx"):
        axes = _default_axes(len(shape))
    dims, zyx = _choose(axes, shape, channel, where)
    if spacing is None:
        raise VolumeError(f"voxel size unknown: {where} is a plain Zarr array, which cannot say it. {metadata.SPACING_HINT}")
    found = kind or ("mask" if dtype == "bool" else "image")
    return Volume(
        url, "", 0, tuple(shape[i] for i in zyx), _dtype(dtype, found, where), spacing, found, (0.0, 0.0, 0.0),
        tuple(shard[i] for i in zyx), tuple(chunk[i] for i in zyx), 1, False, "", dims,
    )  # fmt: skip


def _array_facts(node: metadata.Node, where: str) -> tuple[tuple[int, ...], str, tuple[int, ...], tuple[int, ...]]:
    """(shape, dtype, shard, chunk) of an array's metadata."""
    meta = node.array
    try:
        shape = tuple(int(n) for n in meta["shape"])
        if node.format == 2:
            dtype = np.dtype(meta["dtype"]).newbyteorder("=").name
            chunk = tuple(int(n) for n in meta["chunks"])
            return shape, dtype, chunk, chunk
        dtype = np.dtype(meta["data_type"]).name
        shard = chunk = tuple(int(n) for n in meta["chunk_grid"]["configuration"]["chunk_shape"])
        for codec in meta["codecs"]:
            if codec.get("name") == "sharding_indexed":
                chunk = tuple(int(n) for n in codec["configuration"]["chunk_shape"])
        return shape, dtype, shard, chunk
    except (KeyError, TypeError, ValueError) as e:
        raise VolumeError(f"the array metadata of {where} cannot be read ({type(e).__name__}: {e}). The file is damaged or of a type vemray does not read.") from None


def _dtype(dtype: str, kind: str, where: str) -> str:
    if np.dtype(dtype).kind not in "biuf":
        raise VolumeError(f"{where} holds {dtype}; vemray reads integer, float and bool volumes.")
    if kind == "mask":
        return "bool"
    if kind == "labels":
        if np.dtype(dtype).kind not in "iu":
            raise VolumeError(f"{where} holds {dtype}, but labels are whole numbers. Open it as an image, or convert it.")
        return dtype.replace("int", "uint") if dtype.startswith("int") else dtype
    if kind == "probability" and dtype != "uint8":
        raise VolumeError(f"{where} holds {dtype}, but a probability is stored as uint8 (0..255 stands for 0..1). Open it as an image, or convert it.")
    return "uint8" if dtype == "bool" else dtype


def _scaled(spacing: Spacing, ms: metadata.Multiscale, level: int, zyx: Int3) -> Spacing:
    """`spacing` of level 0 carried to `level` by the ratio of the file's own scales."""
    first, here = ms.scales[0], ms.scales[level]
    if level == 0:
        return spacing
    if first is None or here is None or any(first[i] <= 0 or here[i] <= 0 for i in zyx):
        return Spacing(*(s * 2**level for s in spacing.zyx))
    return Spacing(*(s * here[i] / first[i] for s, i in zip(spacing.zyx, zyx)))


def _writable(volume: Volume, ms: metadata.Multiscale) -> Volume:
    """The same handle, able to write, if vemray created the volume."""
    if volume.level or volume.dims != ("z", "y", "x") or shards.describe(volume.url, volume.path) is None:
        raise VolumeError(f"{volume.where} was not written by vemray as it is; it is opened to read only. Create a new volume to write to.")
    levels = []
    for i, path in enumerate(ms.paths):
        shape, _, shard, chunk = _array_facts(metadata.read_node(access.join(volume.url, path)), volume.where)
        size, origin = metadata.spacing_of(ms, i, (0, 1, 2), volume.where)
        levels.append(Level(path, shape, size, origin, shard, chunk))
    first = levels[0]
    node = metadata.read_node(volume.url)
    given = node.attributes.get("vemray", {}).get("layout", {})
    planned = pyramid.plan_levels(
        first.shape, first.spacing, tuple(given.get("shard", first.shard)), tuple(given.get("chunk", first.chunk)), len(levels), first.origin_nm
    )
    if [(p.shape, p.shard, p.chunk) for p in planned] != [(p.shape, p.shard, p.chunk) for p in levels]:
        raise VolumeError(f"the levels of {access.shown(volume.url)} are not laid out as this version of vemray writes them. Create a new volume.")
    return replace(volume, writable=True, pyramid=planned)


# ---------------------------------------------------------------------------------------------------------------- create


def create(
    url: str,
    shape: Int3,
    dtype: str | np.dtype | type,
    spacing: Spacing,
    kind: Kind = "image",
    shard: Int3 = (256, 256, 256),
    chunk: Int3 = (64, 64, 64),
    levels: int | None = None,
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    name: str | None = None,
    attributes: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Volume:
    """Create an OME-Zarr 0.5 volume (Zarr v3, sharded, zstd 1, every level's metadata) and return a writable handle.

    `shard` is what one block writes and must be a multiple of `chunk`, the smallest part that is read; both shrink to fit small volumes.
    `levels` None: until one chunk holds all. `attributes` (JSON-able) are kept under "vemray". VolumeError if something is there already,
    unless `overwrite`, which removes it first."""
    dtype = np.dtype(dtype)
    if kind not in KINDS:
        raise VolumeError(f"there is no kind of volume '{kind}'. Kinds are: {', '.join(KINDS)}.")
    url, where = os.fspath(url).rstrip("/"), access.shown(os.fspath(url))
    shown_dtype = _dtype(dtype.name, kind, where)
    stored = np.dtype("uint8" if kind == "mask" or dtype == bool else shown_dtype)
    shape, shard, chunk = (tuple(int(v) for v in t) for t in (shape, shard, chunk))
    planned = pyramid.plan_levels(shape, spacing, shard, chunk, levels, tuple(origin_nm))
    access.reach(url)
    if access.exists(url) and (access.scheme(url) != "file" or access.list_names(url)):
        if not overwrite:
            raise VolumeError(f"{where} exists already and is left as it is. Choose another place, or overwrite it on purpose (overwrite=True, --overwrite).")
        access.remove(url)
    name = name or url.rsplit("/", 1)[-1].removesuffix(".zarr").removesuffix(".ome")
    extra = {**(attributes or {}), "layout": {"shard": list(shard), "chunk": list(chunk)}}
    with access.storage_errors(url, "write"):
        for lv in planned:
            shards.create(url, lv, stored)
        group = {"zarr_format": 3, "node_type": "group", "attributes": metadata.write_multiscale(name, planned, kind, extra)}
        access.write_json_bytes(access.join(url, "zarr.json"), group)  # last: what has it is complete
        _register_label(url)
    _forget(url)
    first = planned[0]
    return Volume(
        url, first.path, 0, first.shape, shown_dtype, spacing, kind, first.origin_nm, first.shard, first.chunk, len(planned), True, name, ("z", "y", "x"), planned
    )


def _register_label(url: str) -> None:
    """A volume made at IMAGE/labels/NAME joins the list that the labels group keeps."""
    parent, _, name = url.rpartition("/")
    if not parent.endswith("/labels") or metadata.read_node(parent.rpartition("/")[0]) is None:
        return
    node = metadata.read_node(parent)
    attributes = dict(node.attributes) if node else {}
    ome = dict(attributes.get("ome") or {})
    listed = [n for n in ome.get("labels", []) if n != name]
    ome.update(version="0.5", labels=[*listed, name])
    access.write_json_bytes(access.join(parent, "zarr.json"), {"zarr_format": 3, "node_type": "group", "attributes": {**attributes, "ome": ome}})

