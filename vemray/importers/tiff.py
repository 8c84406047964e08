"""One multi-page TIFF: plain, ImageJ or OME. Voxel size from ImageJ's or OME's metadata where they give all three axes and a unit."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import numpy as np
import tifffile

from vemray.errors import VolumeError
from vemray.geometry import Box, Spacing
from vemray.importers.base import Format, Source
from vemray.store import access
from vemray.store.metadata import nanometres

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it has to say becomes our errors, not lines of a log
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _detects(url: str, fragment: str) -> bool:
    if access.is_folder(url):
        return False
    with access.open_read(url) as f:
        return f.read(4) in MAGIC


def _opens(url: str, fragment: str, spacing: Spacing | None) -> Source:
    where = access.shown(url)
    stack = contextlib.ExitStack()
    try:
        f = stack.enter_context(access.open_read(url))
        try:
            with _complaints() as said:
                # by name where it can be: OME-TIFF sets continue in neighbouring files
                tif = stack.enter_context(tifffile.TiffFile(access.local_path(url) if access.scheme(url) == "file" else f))
                series = tif.series[0]
                axes, shape, dtype = series.axes, series.shape, series.dtype
            if said:
                raise ValueError(said[0])
        except Exception as e:  # damaged headers raise what they like
            raise VolumeError(f"{where} cannot be read as a TIFF; it is truncated, damaged or incomplete ({e}). Copy it again.") from None
        if dtype is None or dtype.kind not in "biuf":
            raise VolumeError(f"{where} holds {dtype}; vemray imports integers, floats and booleans.")
        place, depth = _place(axes, shape, fragment, where)
        read = _mapped(url, series, place, depth) or _paged(series, place, shape, where)
        spacing = spacing or _ome_spacing(tif) or _imagej_spacing(tif)
        return Source((depth, *shape[-2:]), dtype.newbyteorder("="), read, spacing, "mask" if dtype.kind == "b" else None, close=stack.close)
    except BaseException:
        stack.close()
        raise


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """tifffile's log of missing pages and files: it then goes on with what is left, which would be a thinner volume."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if re.search("reshape|page offset|offset to page|corrupted|missing|expected|failed to read", text):
                said.append(re.sub(r"^<tifffile\.\w+ [^>]*> ", "", text))

    log, listener = logging.getLogger("tifffile"), Listener()
    log.addHandler(listener)
    try:
        yield said
    finally:
        log.removeHandler(listener)


def _place(axes: str, shape: tuple[int, ...], fragment: str, where: str) -> tuple[list[int | None], int]:
    """(the index of each leading axis, None for z; the number of planes). VolumeError for axes that must be chosen or cannot be used."""
    channel = int(fragment[2:]) if fragment.startswith("c=") and fragment[2:].isdigit() else None
    if fragment and channel is None:
        raise VolumeError(f"'#{fragment}' after {where} is not understood. A channel is chosen by #c=0.")
    if axes[-2:] != "YX":
        raise VolumeError(f"{where} has the axes {axes} {shape}: grey planes (y, x) are imported. Convert colour to grey first.")
    leading = dict(zip(axes[:-2], shape[:-2]))
    long = [a for a, n in leading.items() if n > 1 and not (a == "C" and channel is not None)]
    z = "Z" if "Z" in leading else next((a for a in long if a in "IQ"), None)  # I, Q: planes without a name
    place: list[int | None] = []
    for a, n in leading.items():
        if a == z:
            place.append(None)
        elif a == "C" and channel is not None and channel < n:
            place.append(channel)
        elif n == 1:
            place.append(0)
        elif a == "C":
            raise VolumeError(f"{where} has {n} channels. Choose one: {where}#c=0 (to {n - 1}).")
        elif a == "T":
            raise VolumeError(f"{where} is a time series of {n} frames. If they are sections, save it as a z stack (in ImageJ: Image > Properties).")
        else:
            raise VolumeError(f"{where} has the axes {axes} {shape}; vemray imports z, y, x. Save one volume of them.")
    if channel is not None and "C" not in leading and channel:
        raise VolumeError(f"{where} has no channel axis, so there is no channel {channel}.")
    return place, (leading[z] if z else 1)


def _mapped(url: str, series, place, depth: int):
    """A reader that maps the file, for uncompressed contiguous data on a disk; else None."""
    if access.scheme(url) != "file" or series.dataoffset is None:
        return None
    dtype = series.dtype.newbyteorder(series.parent.byteorder if hasattr(series.parent, "byteorder") else series.pages[0].parent.byteorder)
    if dtype.kind == "b" or access.object_facts(url)["size"] < series.dataoffset + dtype.itemsize * math.prod(series.shape):
        return None  # page by page then names the plane that is missing
    data = np.memmap(access.local_path(url), dtype, "r", series.dataoffset, tuple(series.shape))
    planes = data[tuple(slice(None) if p is None else p for p in place)].reshape(depth, *series.shape[-2:])
    return lambda box: planes[box.slices]


def _paged(series, place, shape, where: str):
    def read(box: Box) -> np.ndarray:
        out = np.empty(box.shape, series.dtype.newbyteorder("="))
        for i, z in enumerate(range(box.start[0], box.stop[0])):
            at = [z if p is None else p for p in place]
            number = int(np.ravel_multi_index(at, shape[:-2])) if at else 0
            try:
                page = series.pages[number]
                if page is None:
                    raise ValueError("it is not in the file")
                plane = page.asarray(maxworkers=1)
                if plane.shape != shape[-2:]:
                    raise ValueError(f"it has the shape {plane.shape}")
            except Exception as e:  # decoders raise what they like
                raise VolumeError(f"plane {z} of {where} is truncated or corrupt ({type(e).__name__}: {e}). Replace the file.") from None
            out[i] = plane[box.slices[1], box.slices[2]]
        return out

    return read


def _ome_spacing(tif: tifffile.TiffFile) -> Spacing | None:
    """PhysicalSizeZ/Y/X of the first image in nm, None unless all three are given. Without a unit it is micrometres (the schema's
    default), but three ones without a unit are a writer's placeholder."""
    if not tif.is_ome or not tif.ome_metadata:
        return None
    try:
        pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
        sizes = [float(pixels.get(f"PhysicalSize{a}")) for a in "ZYX"]
        names = [pixels.get(f"PhysicalSize{a}Unit") for a in "ZYX"]
        if names == [None] * 3 and sizes == [1.0] * 3:
            return None
        return Spacing(*(s * nanometres(u or "µm") for s, u in zip(sizes, names)))
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError):
        return None


def _imagej_spacing(tif: tifffile.TiffFile) -> Spacing | None:
    """ImageJ's spacing, unit and resolution tags in nm, None unless all are there and the unit is a length."""
    meta = tif.imagej_metadata if tif.is_imagej else None
    if not meta:
        return None
    try:
        unit = nanometres(str(meta["unit"]).encode("ascii", "backslashreplace").decode("unicode_escape"))
        per = [tif.pages[0].tags[f"{a}Resolution"].value for a in "YX"]
        y, x = (d / n for n, d in per)
        return Spacing(abs(float(meta["spacing"])) * unit, y * unit, x * unit)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


FORMAT = Format("tiff", "a multi-page TIFF (plain, ImageJ, OME; a channel by #c=0)", _detects, _opens)
