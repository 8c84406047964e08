"""Volumes in storage.

open(url)            read: OME-Zarr 0.4 and 0.5, label groups, plain Zarr v2 and v3
create(url, ...)     write: OME-Zarr 0.5, Zarr v3, sharded, multiscale; every level's metadata at once, workers only fill
fill_level(...)      the coarse levels that no single block determines
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from vemray.errors import VolumeError
from vemray.geometry import Int3, Spacing
from vemray.store import access, metadata, pyramid, shards
from vemray.store.handle import KINDS, Volume, dtype_in_memory, fill_level, forget
from vemray.store.opening import open, split_channel

__all__ = ["KINDS", "Volume", "create", "fill_level", "open", "split_channel"]


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
    unless `overwrite`, which removes it first."""
    dtype = np.dtype(dtype)
    if kind not in KINDS:
        raise VolumeError(f"there is no kind of volume '{kind}'. Kinds are: {', '.join(KINDS)}.")
    url, where = os.fspath(url).rstrip("/"), access.shown(os.fspath(url))
    shown_dtype = dtype_in_memory(dtype.name, kind, where)
    stored = np.dtype("uint8" if kind == "mask" or dtype.kind == "b" else shown_dtype)
    shape, shard, chunk = (tuple(int(v) for v in t) for t in (shape, shard, chunk))
    planned = pyramid.plan_levels(shape, spacing, shard, chunk, levels, tuple(origin_nm))
    access.reach(url)
    if access.exists(url) and (access.scheme(url) != "file" or access.list_names(url)):
        if not overwrite:
            raise VolumeError(f"{where} exists already and is left alone. Choose another place, or say overwrite=True (--overwrite).")
        access.remove(url)
    name = name or url.rsplit("/", 1)[-1].removesuffix(".zarr").removesuffix(".ome")
    extra = {**(attributes or {}), "layout": {"shard": list(shard), "chunk": list(chunk)}}
    with access.storage_errors(url, "write"):
        for lv in planned:
            shards.create(url, lv, stored, kind)
        group = {"zarr_format": 3, "node_type": "group", "attributes": metadata.write_multiscale(name, planned, kind, extra)}
        access.write_json_bytes(access.join(url, "zarr.json"), group)  # last: what has it is complete
        _register_label(url)
    forget()
    first = planned[0]
    size = (first.shard, first.chunk, len(planned))
    return Volume(
        url, first.path, 0, first.shape, shown_dtype, spacing, kind, first.origin_nm, *size, True, name, pyramid=planned
    )  # fmt: skip


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
