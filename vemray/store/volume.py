"""Volumes in storage.

open(url)            read: OME-Zarr 0.4 and 0.5, label groups, plain Zarr v2 and v3
create(url, ...)     write: OME-Zarr 0.5, Zarr v3, sharded, multiscale; every level's metadata at once, workers only fill
replacing(url)       a place beside `url` that takes its place when all has gone well
fill_level(...)      the coarse levels that no single block determines
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np

from vemray.errors import StorageError, VolumeError
from vemray.geometry import Int3, Spacing
from vemray.store import access, metadata, pyramid, shards
from vemray.store.handle import KINDS, Volume, dtype_in_memory, fill_level, forget
from vemray.store.opening import at_level, levels_of, open, split_channel

__all__ = ["KINDS", "Volume", "at_level", "create", "fill_level", "levels_of", "open", "replacing", "split_channel"]

#: files at the top of a Zarr node
METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
#: what file managers leave everywhere
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}


def create(
    url: str,
    shape: Int3,
    dtype: str | np.dtype | type,
    spacing: Spacing,
    kind: str = "image",
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
    unless `overwrite`, which removes it first if it is a Zarr volume and nothing else."""
    dtype = np.dtype(dtype)
    if kind not in KINDS:
        raise VolumeError(f"there is no kind of volume '{kind}'. Kinds are: {', '.join(KINDS)}.")
    url, where = os.fspath(url).rstrip("/"), access.shown(os.fspath(url))
    shown_dtype = dtype_in_memory(dtype.name, kind, where)
    stored = np.dtype("uint8" if kind == "mask" or dtype.kind == "b" else shown_dtype)
    shape, shard, chunk = (tuple(int(v) for v in t) for t in (shape, shard, chunk))
    planned = pyramid.plan_levels(shape, spacing, shard, chunk, levels, tuple(origin_nm))
    access.reach(url)
    if access.exists(url):
        if access.scheme(url) == "file" and not access.is_folder(url):
            raise VolumeError(f"{where} is a file, and a volume is a folder. Choose another place.")
        if access.list_names(url) or access.scheme(url) != "file":
            if not overwrite:
                raise VolumeError(f"{where} exists already and is left alone. Choose another place, or say overwrite=True (--overwrite).")
            check_replaceable(url)
        access.remove(url)
    name = name or url.rsplit("/", 1)[-1].removesuffix(".zarr").removesuffix(".ome")
    extra = {**(attributes or {}), "layout": {"shard": list(shard), "chunk": list(chunk)}}
    try:
        for lv in planned:
            shards.create(url, lv, stored, kind)
        group = {"zarr_format": 3, "node_type": "group", "attributes": metadata.write_multiscale(name, planned, kind, extra)}
        access.write_json_bytes(access.join(url, "zarr.json"), group)  # last: what has it is complete
        _register_label(url)
    except FileNotFoundError:  # as /proc says of what nobody can create
        raise StorageError(f"Cannot write {where}: nothing can be created there. Choose another place.") from None
    forget()
    first = planned[0]
    size = (first.shard, first.chunk, len(planned))
    return Volume(
        url, first.path, 0, first.shape, shown_dtype, spacing, kind, first.origin_nm, *size, True, name, pyramid=planned
    )  # fmt: skip


def check_replaceable(url: str) -> None:
    """VolumeError unless what lies at `url` is a Zarr volume, whole or begun, and nothing else, so that it may be removed."""
    where, names = access.shown(url), set(access.list_names(url)) - LITTER
    # a level, or a chunk of Zarr v2: numbers with points; c: chunks of v3; anything else must be a node of its own
    others = [n for n in sorted(names - METADATA - {"c"}) if not n.replace(".", "").isdigit() and metadata.read_node(access.join(url, n)) is None]
    if others:
        raise VolumeError(f"{where} holds '{others[0]}', which is no part of a Zarr volume: it is not overwritten. Choose another place.")
    levels = [n for n in names if n.isdigit()]
    begun = all(set(access.list_names(access.join(url, n))) & {"zarr.json", "c"} for n in levels)  # killed before the group's metadata came
    if names and not names & METADATA and not (levels and begun):
        raise VolumeError(f"{where} is not a Zarr volume: it is not overwritten. Choose another place.")
    if not names and access.exists(url) and not access.is_folder(url):
        raise VolumeError(f"{where} is a file, and a volume is a folder. Choose another place.")


@contextlib.contextmanager
def replacing(url: str) -> Iterator[str]:
    """A place to create a volume at, which takes the place of the one at `url` when the block has gone well; else all is as it was.

    In a folder the two change places by renaming. An object store cannot rename: there the new one is copied within the store, after
    it has been written wholly."""
    url = os.fspath(url).rstrip("/")
    check_replaceable(url)
    local = access.scheme(url) == "file"
    place = os.path.realpath(access.local_path(url)) if local else url  # behind a link: the same disk
    parent, _, name = place.rpartition("/")
    fresh, old = (f"{parent}/.{name}.{word}-{uuid.uuid4().hex[:8]}" for word in ("new", "old"))
    try:
        yield fresh
    except BaseException:
        access.remove(fresh)
        raise
    if local:
        try:
            os.rename(place, old)
            try:
                os.rename(fresh, place)
            except BaseException:
                os.rename(old, place)
                raise
        except OSError as e:
            access.remove(fresh)
            raise StorageError(f"Cannot replace {access.shown(url)}: {(e.strerror or '').lower()}. It is as it was; choose another place.") from None
        access.remove(old)
    else:
        access.remove(url)
        try:
            _copy(fresh, url)
        except Exception as e:
            raise StorageError(f"{access.shown(url)} could not be put in place ({e}). The new volume is whole at {access.shown(fresh)}.") from None
        access.remove(fresh)
    forget()
    _register_label(url)


def _copy(source: str, target: str) -> None:
    """Every object under `source` to the same place under `target`, within the store; metadata of the group last."""
    with access.storage_errors(target, "write"):
        fs, base = access.filesystem(source)
        _, to = access.filesystem(target)
        fs.invalidate_cache()
        found = sorted((p[len(base) :] for p in fs.find(base)), key=lambda p: p == "/zarr.json")
        for part in found:
            fs.copy(base + part, to + part)


def _register_label(url: str) -> None:
    """A volume made at IMAGE/labels/NAME joins the list that the labels group keeps; one in the making has a hidden name."""
    parent, _, name = url.rpartition("/")
    if name.startswith(".") or not parent.endswith("/labels") or metadata.read_node(parent.rpartition("/")[0]) is None:
        return
    node = metadata.read_node(parent)
    attributes = dict(node.attributes) if node else {}
    ome = dict(attributes.get("ome") or {})
    listed = [n for n in ome.get("labels", []) if n != name]
    ome.update(version="0.5", labels=[*listed, name])
    access.write_json_bytes(access.join(parent, "zarr.json"), {"zarr_format": 3, "node_type": "group", "attributes": {**attributes, "ome": ome}})
