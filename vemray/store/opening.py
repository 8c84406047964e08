"""How a URL becomes a `Volume`: what OME-Zarr 0.4 and 0.5, label groups and plain Zarr arrays say about axes, voxel size and type."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from vemray.errors import VolumeError
from vemray.geometry import Int3, Spacing
from vemray.store import access, metadata, pyramid, shards
from vemray.store.handle import KINDS, Volume, dtype_in_memory
from vemray.store.pyramid import Level


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


def open(url: str, level: int = 0, spacing: Spacing | None = None, kind: str | None = None, writable: bool = False) -> Volume:
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
        size, origin = metadata.spacing_of(ms, level, zyx, where)
    else:
        size, origin = _scaled(spacing, ms, level, zyx), (0.0, 0.0, 0.0)
    found = kind or own.get("kind") or ("labels" if ms.is_labels else "mask" if dtype == "bool" else "image")
    volume = Volume(
        url, ms.paths[level], level, tuple(shape[i] for i in zyx), dtype_in_memory(dtype, found, where), size, found, origin,
        tuple(shard[i] for i in zyx), tuple(chunk[i] for i in zyx), len(ms.paths), False, ms.name, dims,
    )  # fmt: skip
    return _writable(volume, ms) if writable else volume


@dataclass(frozen=True)
class LevelFacts:
    """One resolution level as the metadata of a multiscale describe it."""

    path: str
    shape: Int3
    spacing: Spacing
    origin_nm: tuple[float, float, float]
    dtype: str
    shard: Int3
    chunk: Int3


def levels_of(volume: Volume) -> list[LevelFacts]:
    """All levels of a volume opened at level 0, finest first. Where it was opened with a voxel size of the user's, the others are scaled alike."""
    node = metadata.read_node(volume.url)
    ms = metadata.read_multiscale(node, access.shown(volume.url)) if node and node.type == "group" else None
    if ms is None:
        return [LevelFacts(volume.path, volume.shape, volume.spacing, volume.origin_nm, volume.dtype, volume.shard, volume.chunk)]
    zyx = tuple(volume.dims.index(a) for a in "zyx")
    out = []
    for level, path in enumerate(ms.paths):
        array = metadata.read_node(access.join(volume.url, path))
        if array is None or array.type != "array":
            raise VolumeError(f"{access.shown(volume.url)} is incomplete: its metadata names the array '{path}', which is not there.")
        shape, dtype, shard, chunk = (tuple(v[i] for i in zyx) if isinstance(v, tuple) else v for v in _array_facts(array, volume.where))
        if _says_itself(volume, ms, zyx):
            spacing, origin = metadata.spacing_of(ms, level, zyx, volume.where)
        else:
            spacing = _scaled(volume.spacing, ms, level, zyx)
            shift = (ms.translations[level][i] - ms.translations[0][i] for i in zyx)
            unit = (s / ms.scales[0][i] if ms.scales[0] else 1.0 for s, i in zip(volume.spacing.zyx, zyx))  # nm
            origin = tuple(o + d * u for o, d, u in zip(volume.origin_nm, shift, unit))
        out.append(LevelFacts(path, shape, spacing, origin, dtype_in_memory(dtype, volume.kind, volume.where), shard, chunk))
    return out


def _says_itself(volume: Volume, ms: metadata.Multiscale, zyx: Int3) -> bool:
    """Whether the volume has the voxel size that its file says."""
    try:
        return metadata.spacing_of(ms, 0, zyx, volume.where) == (volume.spacing, volume.origin_nm)
    except VolumeError:
        return False


def at_level(volume: Volume, level: int, facts: LevelFacts) -> Volume:
    """The handle on another level of a volume opened to read."""
    return replace(volume, level=level, writable=False, pyramid=(), **vars(facts))


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
            raise VolumeError(f"axis '{axis}' of {where} has length {n}; vemray reads z, y, x only. Save one {axis} as a volume of its own.")
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
        url, "", 0, tuple(shape[i] for i in zyx), dtype_in_memory(dtype, found, where), spacing, found, (0.0, 0.0, 0.0),
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
        raise VolumeError(f"the array metadata of {where} cannot be read ({type(e).__name__}: {e}). It is damaged or of an unknown type.") from None


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
