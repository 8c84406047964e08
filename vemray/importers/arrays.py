"""NumPy's .npy and .npz: mapped where they lie plainly on a disk, else read plane by plane."""

from __future__ import annotations

import contextlib
import math
import zipfile

import numpy as np
from numpy.lib import format as npy

from vemray.errors import VolumeError
from vemray.geometry import Box, Spacing
from vemray.importers.base import Format, Source
from vemray.store import access


def _header(f, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of an open .npy; VolumeError if it is none or holds no numbers."""
    try:
        version = npy.read_magic(f)
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(f)
    except ValueError as e:
        raise VolumeError(f"{where} cannot be read as a NumPy array ({e}). Save it again with numpy.save.") from None
    if dtype.kind not in "biuf":
        raise VolumeError(f"{where} holds {dtype}; vemray imports integers, floats and booleans.")
    if len(shape) != 3:
        raise VolumeError(f"{where} has the shape {shape}; a volume has three axes, z, y and x. Save one volume of them.")
    return shape, fortran, dtype


def _source(shape, dtype, read, close=lambda: None) -> Source:
    return Source(tuple(int(n) for n in shape), dtype.newbyteorder("="), read, kind="mask" if dtype.kind == "b" else None, close=close)


def _mapped(url: str, offset: int, shape, fortran: bool, dtype: np.dtype, where: str) -> Source:
    try:
        data = np.memmap(access.local_path(url), dtype, "r", offset, shape, "F" if fortran else "C")
    except ValueError as e:  # mmap length is greater than file size
        raise VolumeError(f"{where} is truncated ({e}). Copy it again.") from None
    return _source(shape, dtype, lambda box: data[box.slices])


def _detects_npy(url: str, fragment: str) -> bool:
    return url.lower().endswith(".npy") and not access.is_folder(url)


def _opens_npy(url: str, fragment: str, spacing: Spacing | None) -> Source:
    where = access.shown(url)
    if fragment:
        raise VolumeError(f"'#{fragment}' means nothing for a .npy file, which holds one array. Name the file {where} alone.")
    with access.open_read(url) as f:
        shape, fortran, dtype = _header(f, where)
        offset = f.tell()
    if access.scheme(url) == "file":
        return _mapped(url, offset, shape, fortran, dtype, where)
    if fortran:
        raise VolumeError(f"{where} is in Fortran order, which can only be read from a disk. Copy it here first.")
    plane = dtype.itemsize * shape[1] * shape[2]

    def read(box: Box) -> np.ndarray:
        z0, z1 = box.start[0], box.stop[0]
        data = access.read_bytes(url, offset + z0 * plane, offset + z1 * plane)
        if len(data) != (z1 - z0) * plane:
            raise VolumeError(f"{where} is truncated. Copy it again.")
        return np.frombuffer(data, dtype).reshape(z1 - z0, *shape[1:])[:, box.slices[1], box.slices[2]]

    return _source(shape, dtype, read)


def _detects_npz(url: str, fragment: str) -> bool:
    return url.lower().endswith(".npz") and not access.is_folder(url)


def _opens_npz(url: str, fragment: str, spacing: Spacing | None) -> Source:
    where = access.shown(url)
    stack = contextlib.ExitStack()
    try:
        f = stack.enter_context(access.open_read(url))
        try:
            archive = stack.enter_context(zipfile.ZipFile(f))
        except zipfile.BadZipFile:
            raise VolumeError(f"{where} is not a readable .npz archive. Copy it again, or save it with numpy.savez.") from None
        keys = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        listed = f"It holds: {_listed(archive, keys)}."
        if fragment and fragment not in keys:
            raise VolumeError(f"{where} has no array '{fragment}'. {listed}")
        if not fragment and len(keys) != 1:
            raise VolumeError(f"{where} holds {len(keys)} arrays: say which, as {where}#{keys[0] if keys else 'name'}. {listed}")
        member = archive.getinfo((fragment or keys[0]) + ".npy")
        return _member(url, archive, member, f"{where}#{member.filename.removesuffix('.npy')}", stack)
    except BaseException:
        stack.close()
        raise


def _listed(archive: zipfile.ZipFile, keys: list[str]) -> str:
    out = []
    for k in keys:
        with contextlib.suppress(Exception), archive.open(k + ".npy") as f:
            shape, _, dtype = (npy.read_array_header_1_0 if npy.read_magic(f) == (1, 0) else npy.read_array_header_2_0)(f)
            out.append(f"{k} {'x'.join(map(str, shape)) or 'a single value'} {dtype}")
    return ", ".join(out) or "no arrays"


def _member(url: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str, stack: contextlib.ExitStack) -> Source:
    """One array of the archive: mapped when it is stored as it is, else unpacked in order, never more than the planes asked for."""
    stream = stack.enter_context(archive.open(member))
    shape, fortran, dtype = _header(stream, where)
    start = stream.tell()
    if member.compress_type == zipfile.ZIP_STORED and access.scheme(url) == "file":
        with access.open_read(url) as f:
            f.seek(member.header_offset + 26)
            name, extra = (int.from_bytes(f.read(2), "little") for _ in range(2))
        source = _mapped(url, member.header_offset + 30 + name + extra + start, shape, fortran, dtype, where)
        stack.close()
        return source
    plane = dtype.itemsize * shape[1] * shape[2]
    if fortran:
        whole = np.frombuffer(_unpacked(stream, dtype.itemsize * math.prod(shape), where), dtype).reshape(shape, order="F")
        return _source(shape, dtype, lambda box: whole[box.slices], stack.close)

    def read(box: Box) -> np.ndarray:
        z0, z1 = box.start[0], box.stop[0]
        stream.seek(start + z0 * plane)  # backwards unpacks again from the start
        data = np.frombuffer(_unpacked(stream, (z1 - z0) * plane, where), dtype)
        return data.reshape(z1 - z0, *shape[1:])[:, box.slices[1], box.slices[2]]

    return _source(shape, dtype, read, stack.close)


def _unpacked(stream, n: int, where: str) -> bytes:
    try:
        data = stream.read(n)
    except (zipfile.BadZipFile, OSError, EOFError) as e:
        raise VolumeError(f"{where} is damaged ({e}). Copy it again.") from None
    if len(data) != n:
        raise VolumeError(f"{where} is truncated. Copy it again.")
    return data


NPY = Format("npy", "a NumPy .npy array (z, y, x)", _detects_npy, _opens_npy)
NPZ = Format("npz", "a NumPy .npz archive (an array by file.npz#name)", _detects_npz, _opens_npz)
