"""Foreign formats to sharded OME-Zarr 0.5, slab by slab: never more of the source in memory than a few slabs of shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from vemray.errors import VolumeError, nearest
from vemray.geometry import Box, Int3, Spacing
from vemray.importers import arrays, tiff, tiff_stack, zarrs
from vemray.importers.base import Format, Source
from vemray.store import access, volume
from vemray.store.metadata import SPACING_HINT

if TYPE_CHECKING:
    from vemray.ops.base import Kind

#: asked in this order; a new format is one file with a Format, listed here
FORMATS: tuple[Format, ...] = (zarrs.FORMAT, tiff_stack.FORMAT, arrays.NPY, arrays.NPZ, tiff.FORMAT)
#: bytes of the source that are read at once, where one row of shards is not more already
MEMORY = 1 << 30


def detect(src: str) -> tuple[Format, str, str]:
    """(format, url, fragment) of an address. VolumeError lists what is read."""
    base, hash_, fragment = os.fspath(src).rpartition("#")
    if not hash_ or "/" in fragment or (access.scheme(src) == "file" and os.path.exists(access.local_path(src))):
        base, fragment = os.fspath(src), ""
    url = base.rstrip("/") if base.strip("/") else base
    access.reach(url)
    if not access.exists(url):
        raise VolumeError(f"there is nothing at {access.shown(url)}. Check the address.")
    for f in FORMATS:
        if f.detects(url, fragment):
            return f, url, fragment
    listed = "; ".join(f.reads for f in FORMATS)
    raise VolumeError(f"{access.shown(url)} is of no type that is imported. Imported are: {listed}.")


def import_volume(
    src: str,
    dst: str,
    spacing: Spacing | None = None,
    kind: Kind | None = None,
    block: Int3 = (256, 256, 256),
    chunk: Int3 = (64, 64, 64),
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> volume.Volume:
    """Convert `src` (see FORMATS) to an OME-Zarr 0.5 volume with pyramid at `dst` and return it, opened to read.

    `spacing` (nm) is required where the file does not say its voxel size, and replaces it where it does. `kind` None: what the source says,
    else image; a float source becomes a probability only if its values are 0..1, labels only if they are whole numbers. `block` is the shard
    (ZYX). `progress(done, total)` counts boxes. The source is only read. A failed import leaves nothing at `dst`, or with `overwrite` what was
    there before."""
    found, url, fragment = detect(src)
    _check_apart(url, dst)
    if kind is not None and kind not in volume.KINDS:
        raise VolumeError(f"there is no kind of volume '{kind}'.{nearest(kind, volume.KINDS)} Kinds are: {', '.join(volume.KINDS)}.")
    if any(b % c for b, c in zip(block, chunk)):
        raise VolumeError(f"a block of {_said(block)} voxels is not whole chunks of {_said(chunk)}. Give multiples of the chunk.")
    source = found.opens(url, fragment, spacing)
    where = access.shown(url) + (f"#{fragment}" if fragment else "")
    try:
        spacing = spacing or source.spacing
        if spacing is None:
            raise VolumeError(f"voxel size unknown: {where} does not say it in a way that can be trusted. {SPACING_HINT}")
        if min(source.shape) < 1:
            raise VolumeError(f"{where} is empty: its shape is {source.shape}.")
        kind = kind or source.kind or "image"
        dtype = _stored_dtype(source, kind, where)

        def convert(place: str) -> None:
            made = volume.create(
                place, source.shape, dtype, spacing, kind, block, chunk, origin_nm=source.origin_nm, name=_name(dst),
                attributes={"imported": {"source": where, "format": found.name}},
            )  # fmt: skip
            try:
                _fill(made, source, dtype, where, progress)
            except BaseException:
                access.remove(place)
                raise

        if overwrite and access.exists(dst):
            with volume.replacing(dst) as place:
                convert(place)
        else:
            convert(dst)
    finally:
        source.close()
    return volume.open(dst)


def _said(shape: Int3) -> str:
    return str(shape[0]) if len(set(shape)) == 1 else " x ".join(map(str, shape))


def _name(dst: str) -> str:
    return os.fspath(dst).rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr").removesuffix(".ome")


def _check_apart(src: str, dst: str) -> None:
    if access.scheme(src) == access.scheme(dst) == "file":
        a, b = (os.path.realpath(access.local_path(u)) for u in (src, dst))
    else:
        a, b = src.rstrip("/"), os.fspath(dst).rstrip("/")
    if a == b or a.startswith(b + "/") or b.startswith(a + "/"):
        raise VolumeError(f"source and destination overlap: {access.shown(src)} and {access.shown(dst)}. Choose another place.")


def _stored_dtype(source: Source, kind: str, where: str) -> np.dtype:
    if kind == "probability":
        if source.dtype.kind != "f" and source.dtype != np.uint8:
            raise VolumeError(f"{where} holds {source.dtype}; a probability is a float of 0..1, or uint8 where 255 stands for 1.")
        return np.dtype("uint8")
    if kind == "labels" and source.dtype.kind != "u":
        return np.dtype(f"u{min(8, source.dtype.itemsize)}")
    if source.dtype == np.float16:
        return np.dtype("float32")
    return source.dtype


def _converted(array: np.ndarray, kind: str, dtype: np.dtype, where: str, box: Box) -> np.ndarray:
    if kind == "probability" and array.dtype.kind == "f":
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise VolumeError(f"{where} holds values outside 0..1 in {box}, so it is no probability. Import it as an image, or scale it.")
        return np.floor(array * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    if kind == "labels" and array.dtype.kind == "i" and array.size and array.min() < 0:
        raise VolumeError(f"{where} holds negative labels in {box}. Labels are numbers from 0 (background) up: renumber them first.")
    if kind == "labels" and array.dtype.kind == "f" and array.size:
        most = 1 << (np.finfo(array.dtype).nmant + 1)  # above it neighbouring whole numbers fall together
        if not (np.isfinite(array).all() and (array == np.floor(array)).all() and array.min() >= 0):
            raise VolumeError(f"{where} holds values in {box} that are no labels (whole numbers from 0 up). Import it as an image: --kind image.")
        if array.max() > most:
            raise VolumeError(f"{where} holds labels above {most:,}, which {array.dtype} cannot tell apart. Save them as whole numbers.")
    return array if kind == "mask" else array.astype(dtype, copy=False)


def _regions(shape: Int3, shard: Int3, itemsize: int) -> Iterator[Box]:
    """Boxes of whole shards, one shard deep, as wide as MEMORY allows: planes are decoded as seldom as possible."""
    depth = min(shard[0], shape[0])
    x = min(shape[2], max(1, MEMORY // (itemsize * depth * min(shard[1], shape[1]) * shard[2])) * shard[2])
    y = min(shape[1], max(1, MEMORY // (itemsize * depth * x * shard[1])) * shard[1]) if x == shape[2] else shard[1]
    for z0 in range(0, shape[0], shard[0]):
        for y0 in range(0, shape[1], y):
            for x0 in range(0, shape[2], x):
                yield Box((z0, y0, x0), (z0 + shard[0], y0 + y, x0 + x)).clip(shape)


def _fill(made: volume.Volume, source: Source, dtype: np.dtype, where: str, progress) -> None:
    regions = list(_regions(made.shape, made.shard, source.dtype.itemsize))
    total = len(regions) + sum(len(g) for _, g in made.later_levels)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    for region in regions:
        array = np.asarray(source.read(region))
        for box in _shard_boxes(region, made.shard):
            made.write(box, _converted(array[box.within(region).slices], made.kind, dtype, where, box))
        advance()
    for level, grid in made.later_levels:
        for i in range(len(grid)):
            volume.fill_level(made, level, grid.write_box(i))
            advance()


def _shard_boxes(region: Box, shard: Int3) -> Iterator[Box]:
    for z in range(region.start[0], region.stop[0], shard[0]):
        for y in range(region.start[1], region.stop[1], shard[1]):
            for x in range(region.start[2], region.stop[2], shard[2]):
                yield Box((z, y, x), (z + shard[0], y + shard[1], x + shard[2])).intersect(region)
