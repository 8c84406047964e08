"""A folder of TIFF planes, one a file, in natural order of their names (slice_9 before slice_10)."""

from __future__ import annotations

import re
import warnings
from collections import Counter

import numpy as np
import tifffile

from vemray.errors import VolumeError
from vemray.geometry import Box, Spacing
from vemray.importers.base import Format, Source
from vemray.store import access


def natural(name: str) -> list:
    """Sort key: runs of digits compare as numbers."""
    return [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", name)]


def _names(url: str) -> list[str]:
    names = [n for n in access.list_names(url) if n.lower().endswith((".tif", ".tiff")) and not n.startswith(".")]
    return sorted(names, key=lambda n: (natural(n), n))


def _detects(url: str, fragment: str) -> bool:
    return access.is_folder(url) and bool(_names(url))


def _opens(url: str, fragment: str, spacing: Spacing | None) -> Source:
    names, where = _names(url), access.shown(url)
    if fragment:
        raise VolumeError(f"'#{fragment}' means nothing for a folder of TIFF planes. Name the folder {where} alone.")
    _check_names(names, where)
    first = _facts(url, names[0])
    for name in names[1:]:
        facts = _facts(url, name)
        if facts != first:
            raise VolumeError(f"the planes of {where} differ: {name} is {_said(facts)}, {names[0]} is {_said(first)}. Remove or correct {name}.")
    _warn_gaps(names, where)
    shape, dtype = first

    def read(box: Box) -> np.ndarray:
        out = np.empty(box.shape, dtype)
        for i, name in enumerate(names[box.start[0] : box.stop[0]]):
            with access.open_read(access.join(url, name)) as f:
                out[i] = _plane(f, name, where, shape)[box.slices[1], box.slices[2]]
        return out

    return Source((len(names), *shape), dtype, read)


def _pattern(name: str) -> str:
    """The name with every number, also a negative one after a sign such as =, replaced by #."""
    stem = name.rpartition(".")[0]
    return re.sub(r"(?<![^\W_])-?\d+|\d+", "#", stem).lower()


def _check_names(names: list[str], where: str) -> None:
    """A series of planes differs in its numbers alone: a picture of another name (an average, an overview) is no plane of it."""
    patterns = Counter(map(_pattern, names))
    usual, count = patterns.most_common(1)[0]
    if len(patterns) == 1:
        return
    if count == 1:
        said = f"{names[0]} first, {names[-1]} last"
        warnings.warn(f"{where}: the names of the planes are no numbered series; they are taken in the order of their names, {said}.", stacklevel=2)
        return
    odd = next(n for n in names if _pattern(n) != usual)
    like = next(n for n in names if _pattern(n) == usual)
    many = len(names) - count
    raise VolumeError(
        f"{where} holds {odd}{f' and {many - 1} more' if many > 1 else ''}, which does not belong to the series of {count} planes named like {like}. "
        "Move what is no plane of it to another folder."
    )


def _facts(url: str, name: str) -> tuple[tuple[int, int], np.dtype]:
    """((y, x), dtype) of a plane from its header; VolumeError naming a plane that is none."""
    where = access.shown(url)
    with access.open_read(access.join(url, name)) as f:
        try:
            with tifffile.TiffFile(f) as tif:
                pages = len(tif.pages)
                page = tif.pages[0]
                shape, dtype = page.shape, page.dtype
        except (tifffile.TiffFileError, ValueError, IndexError, KeyError, TypeError) as e:
            raise VolumeError(f"plane {name} of {where} is not a readable TIFF ({e}). Replace it.") from None
    if pages > 1:
        raise VolumeError(f"{name} in {where} has {pages} pages; in a folder every file is one plane. Import the file: {access.join(where, name)}")
    if len(shape) != 2 or dtype is None:
        raise VolumeError(f"plane {name} of {where} has the shape {shape}: grey planes (y, x) are imported. Convert colour to grey first.")
    if dtype.kind not in "biuf":
        raise VolumeError(f"plane {name} of {where} holds {dtype}; vemray imports integers, floats and booleans.")
    return shape, dtype.newbyteorder("=")


def _plane(f, name: str, where: str, shape: tuple[int, int]) -> np.ndarray:
    try:
        with tifffile.TiffFile(f) as tif:
            plane = tif.pages[0].asarray(maxworkers=1)
    except Exception as e:  # decoders raise what they like
        raise VolumeError(f"plane {name} of {where} is truncated or corrupt ({type(e).__name__}: {e}). Replace it.") from None
    if plane.shape != shape:
        raise VolumeError(f"plane {name} of {where} changed while it was read. Import again.")
    return plane


def _said(facts) -> str:
    return f"{facts[0][0]} x {facts[0][1]} {facts[1]}"


def _warn_gaps(names: list[str], where: str) -> None:
    """Planes are taken as neighbours: say so when their numbers are not consecutive."""
    numbers = [[int(t) for t in re.findall(r"\d+", n)] for n in names]
    if len({len(n) for n in numbers}) != 1 or not numbers[0] or len(names) < 3:
        return
    last = [n[-1] for n in numbers]
    steps = np.diff(last)
    if all(n[:-1] == numbers[0][:-1] for n in numbers) and (steps > 0).all() and len(set(steps)) > 1:
        at = int(np.argmax(steps > steps.min()))
        warnings.warn(f"{where}: no plane between {names[at]} and {names[at + 1]}; they are taken as neighbours.", stacklevel=2)


FORMAT = Format("tiff-stack", "a folder of single-plane TIFF files", _detects, _opens)
