"""Sparse annotation of a volume: planes painted here and there, points, strokes. What is not annotated is unknown.

`annotate` makes of them a volume of labels on the grid of the annotated one: 0 unknown, 1 the first class, 2 the second."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vemray.errors import InputError, nearest
from vemray.geometry import Box, Grid
from vemray.store import access, volume
from vemray.store.pyramid import reduce

AXES = {"nm": ("z_nm", "y_nm", "x_nm"), "voxels": ("z", "y", "x")}
OPTIONAL = ("radius_nm", "stroke")


def annotate(source: str, target: str, like: volume.Volume, classes: Sequence[str] = (), overwrite: bool = False) -> volume.Volume:
    """Write the annotations at `source` as labels (uint8) at `target`, on the voxels of `like`, a level of a volume that was annotated.

    `source` is a folder of painted planes (see `read_planes`) as large as those of `like`, or a CSV file of points with the columns z_nm, y_nm, x_nm
    (as the volume's metadata place its voxels) or z, y, x (voxels of `like`), class (a number from 1, or a name out of `classes`), and, if wanted,
    radius_nm (a ball instead of one voxel) and stroke (points with the same name are joined by straight lines, in their order). Returns the volume,
    opened to read; its attributes say how many voxels of each class it holds."""
    if os.path.isdir(source):
        part, counts = _planes(source, like, len(classes))
    elif source.lower().endswith(".csv"):
        part, counts = _points(source, like, list(classes))
    else:
        raise InputError(f"{source} is neither a folder of painted planes nor a CSV file of points.")
    if not counts:
        raise InputError(f"{source} annotates nothing: every value is 0.")
    names = list(classes) or [str(i + 1) for i in range(max(counts))]
    facts = {"source": source, "like": access.shown(like.url), "level": like.level, "voxels": {n: counts.get(i + 1, 0) for i, n in enumerate(names)}}

    def write(place: str) -> None:
        made = volume.create(
            place, like.shape, "uint8", like.spacing, "labels", levels=1, origin_nm=like.origin_nm, attributes={"annotations": facts}
        )  # fmt: skip
        try:
            grid = Grid(made.shape, made.shard)
            for i in range(len(grid)):
                array = part(grid.write_box(i))
                if array is not None:
                    made.write(grid.write_box(i), array)
        except BaseException:
            access.remove(place)
            raise

    if overwrite and access.exists(target):
        with volume.replacing(target) as place:
            write(place)
    else:
        write(target)
    return volume.open(target)


#: the labels of a box, None where there are none; and the number of voxels of each class
_Found = tuple[Callable[[Box], np.ndarray | None], dict[int, int]]


def coarser(planes: Mapping[int, np.ndarray], between: int, within: tuple[int, int]) -> dict[int, np.ndarray]:
    """Painted planes of a volume as planes of a coarser level of it, by the factors (powers of two) between planes and within them: the most frequent
    label of each window. Of planes that become one, the later fills in what the earlier leaves unknown."""
    out: dict[int, np.ndarray] = {}
    for i, plane in sorted(planes.items()):
        found, left = plane[None], within
        while max(left) > 1:
            step = tuple(min(2, f) for f in left)
            found, left = reduce(found, (1, *step), labels=True), tuple(f // s for f, s in zip(left, step))
        j = i // between
        out[j] = np.where(out[j] > 0, out[j], found[0]) if j in out else found[0]
    return out


def read_planes(folder: str, types: Sequence[type] = (np.uint8,)) -> dict[int, np.ndarray]:
    """z -> (Y, X) of the TIFF and PNG files in `folder`, of one of the `types`; z is the last number in a file's name."""
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder of annotated planes '{folder}'.")
    out: dict[int, np.ndarray] = {}
    for p in sorted(Path(folder).iterdir()):
        if p.suffix.lower() not in (".tif", ".tiff", ".png"):
            continue
        numbers = re.findall(r"\d+", p.stem)
        if not numbers:
            raise InputError(f"{p}: its name must end with the number of its plane, such as plane_0010{p.suffix}.")
        if p.suffix.lower() == ".png":
            from PIL import Image

            plane = np.array(Image.open(p))
        else:
            import tifffile

            plane = tifffile.imread(p)
        if plane.dtype == np.int32 and np.uint16 in types and p.suffix.lower() == ".png":
            plane = plane.astype(np.uint16)  # as Pillow gives 16 bits
        if plane.ndim != 2 or plane.dtype not in types:
            bits = " or ".join(str(8 * np.dtype(t).itemsize) for t in types)
            raise InputError(f"{p}: a plane of labels is {bits} bit grey (Y, X), this is {plane.dtype} {plane.shape}.")
        z = int(numbers[-1])
        if z in out:
            raise InputError(f"{p}: there is another file of plane {z} in that folder. Leave one.")
        out[z] = plane
    if not out:
        raise InputError(f"'{folder}' holds no TIFF or PNG planes.")
    return out


def _planes(folder: str, like: volume.Volume, classes: int) -> _Found:
    planes = read_planes(folder)
    counts = np.zeros(256, np.int64)
    for z, plane in planes.items():
        if plane.shape != like.shape[1:]:
            raise InputError(
                f"plane {z} in {folder} is {_said(plane.shape)}, those of {like.where} are {_said(like.shape[1:])} (y, x): paint on that level."
            )
        if z >= like.shape[0]:
            raise InputError(f"plane {z} in {folder} lies beyond {like.where}, whose planes are 0 to {like.shape[0] - 1}.")
        counts += np.bincount(plane.ravel(), minlength=256)
        if classes and plane.max() > classes:
            raise InputError(f"plane {z} in {folder} holds the value {plane.max()}, but there are {classes} classes (0 is unlabelled).")

    def part(box: Box) -> np.ndarray | None:
        out = np.zeros(box.shape, np.uint8)
        for z in range(box.start[0], box.stop[0]):
            if z in planes:
                out[z - box.start[0]] = planes[z][box.slices[1:]]
        return out if out.any() else None

    return part, {i: int(n) for i, n in enumerate(counts) if i and n}


def _points(path: str, like: volume.Volume, names: list[str]) -> _Found:
    voxels, ids, rows = [], [], []
    for row, at, number in _marks(path, like, names):
        voxels.append(at)
        ids.append(np.full(len(at), number, np.uint8))
        rows.append(np.full(len(at), row))
    if not voxels:
        raise InputError(f"{path} has no points.")
    zyx, ids, rows = np.concatenate(voxels), np.concatenate(ids), np.concatenate(rows)
    index = np.ravel_multi_index(zyx.T, like.shape)
    order = np.argsort(index, kind="stable")
    zyx, ids, rows, index = zyx[order], ids[order], rows[order], index[order]
    clash = np.flatnonzero((index[1:] == index[:-1]) & (ids[1:] != ids[:-1]))
    if len(clash):
        i = clash[0]
        a, b = sorted((int(rows[i]), int(rows[i + 1])))
        at = tuple(int(v) for v in zyx[i])
        raise InputError(f"{path}: lines {a} and {b} give the voxel {at} (z, y, x) to two classes. Correct one, or make a radius smaller.")
    first = np.concatenate([[True], index[1:] != index[:-1]])
    zyx, ids = zyx[first], ids[first]

    def part(box: Box) -> np.ndarray | None:
        here = ((zyx >= box.start) & (zyx < box.stop)).all(1)
        if not here.any():
            return None
        out = np.zeros(box.shape, np.uint8)
        out[tuple((zyx[here] - np.array(box.start)).T)] = ids[here]
        return out

    values, n = np.unique(ids, return_counts=True)
    return part, {int(v): int(k) for v, k in zip(values, n)}


def _marks(path: str, like: volume.Volume, names: list[str]) -> Iterator[tuple[int, np.ndarray, int]]:
    """(line of the file, voxels (n, 3), class) of each point, or of the way to it from the one before in its stroke."""
    spacing, origin = np.array(like.spacing.zyx), np.array(like.origin_nm)
    before: dict[str, tuple[np.ndarray, int]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f)
            axes = _columns(path, reader.fieldnames or [])
            for row in reader:
                line = reader.line_num
                at = np.array([_number(path, line, row, a) for a in AXES[axes]])
                nm = at - origin if axes == "nm" else at * spacing
                number = _class(path, line, row["class"], names)
                radius = _number(path, line, row, "radius_nm") if (row.get("radius_nm") or "").strip() else 0.0
                nearest_voxel = np.floor(nm / spacing + 0.5)
                if (nearest_voxel < 0).any() or (nearest_voxel >= like.shape).any():
                    raise InputError(
                        f"{path}, line {line}: the point lies outside {like.where}, at voxel {tuple(int(v) for v in nearest_voxel)} (z, y, x)."
                    )
                if radius < 0:
                    raise InputError(f"{path}, line {line}: radius_nm is {radius:g}; it cannot be negative.")
                stroke, way = (row.get("stroke") or "").strip(), nm[None]
                if stroke:
                    last, its = before.get(stroke, (nm, number))
                    if its != number:
                        raise InputError(f"{path}, line {line}: the stroke '{stroke}' changes its class. Give the two parts different names.")
                    before[stroke] = nm, number
                    steps = max(1, math.ceil(2 * float(np.abs((nm - last) / spacing).max())))
                    way = last + (nm - last) * np.linspace(0, 1, steps + 1)[:, None]
                yield line, _balls(way, radius, spacing, like.shape), number
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path} cannot be read as a CSV file: {e}.") from None


def _balls(centres: np.ndarray, radius_nm: float, spacing: np.ndarray, shape) -> np.ndarray:
    """Voxels (n, 3) whose centres lie within the radius of one of the `centres` (nm), and the voxel that each centre lies in."""
    reach = [np.arange(-r, r + 1) for r in (int(radius_nm / s) + 1 for s in spacing)]
    offsets = np.stack(np.meshgrid(*reach, indexing="ij"), -1).reshape(-1, 3)
    out = []
    for c in centres:
        own = np.floor(c / spacing + 0.5).astype(np.int64)
        around = own + offsets
        out.append(around[((around * spacing - c) ** 2).sum(1) <= radius_nm**2])
        out.append(own[None])
    zyx = np.unique(np.concatenate(out), axis=0)
    return zyx[((zyx >= 0) & (zyx < shape)).all(1)]


def _columns(path: str, header: Sequence[str]) -> str:
    """'nm' or 'voxels': which columns say where the points lie. InputError for columns that are missing or unknown."""
    found = [k for k, axes in AXES.items() if set(axes) <= set(header)]
    if len(found) != 1 or "class" not in header:
        raise InputError(
            f"{path}: its first line must name the columns z_nm, y_nm, x_nm (or z, y, x in voxels) and class; it says: {', '.join(header)}."
        )
    known = (*AXES[found[0]], "class", *OPTIONAL)
    for h in header:
        if h not in known:
            raise InputError(f"{path}: there is no column '{h}'.{nearest(h, known)} Columns are: {', '.join(known)}.")
    return found[0]


def _number(path: str, line: int, row: dict, column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}: {column} must be a number, got '{row[column]}'.")
    return value


def _class(path: str, line: int, text: str | None, names: list[str]) -> int:
    text = (text or "").strip()
    if text in names:
        return names.index(text) + 1
    if not (text.isdigit() and 1 <= int(text) <= (len(names) or 255)):
        known = f"one of {', '.join(names)}, or 1 to {len(names)}" if names else "a number from 1 to 255, or a name that --classes gives"
        raise InputError(f"{path}, line {line}: class must be {known}; it is '{text}'.{nearest(text, names)}")
    return int(text)


def _said(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
