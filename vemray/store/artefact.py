"""Files of blocks that hold no voxels (the faces of surfaces), in a folder or a bucket:

    artefact.json          kind, shape, spacing and origin of the volume, block shape, the mark of the run that began it; `files` once whole
    index.npz.zst          arrays over the blocks that have a file, in the order of their numbers in the grid
    blocks/<n>.npz.zst     arrays of block n

An .npz.zst is numpy's .npz (stored, not deflated) in one zstd frame: `zstd -d` and `numpy.load` read it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from vemray.errors import VolumeError
from vemray.geometry import ArtefactSpec, Int3, Spacing
from vemray.store import access
from vemray.store.table import read_json, write_json


def write_arrays(url: str, arrays: Mapping[str, np.ndarray]) -> int:
    """One object, atomically. Returns its bytes."""
    plain = io.BytesIO()
    np.savez(plain, **arrays)
    packed = pa.Codec("zstd", 1).compress(plain.getbuffer())
    access.write_bytes(url, packed)
    return len(packed)


def read_arrays(url: str) -> dict[str, np.ndarray]:
    """FileNotFoundError if there is none."""
    data = access.read_bytes(url)
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as f:
            plain = f.read()
        with np.load(io.BytesIO(plain), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError) as e:
        raise VolumeError(f"{url} is truncated or corrupt ({e}). Copy or compute it again.") from None


@dataclass(frozen=True)
class ArtefactFiles:
    """The files of one artefact, at `url`."""

    url: str

    def _record(self) -> dict:
        return read_json(access.join(self.url, "artefact.json"))

    def begin(self, spec: ArtefactSpec, block_shape: Int3, mark: str) -> None:
        """Remove what is there and begin anew."""
        access.remove(self.url)
        write_json(access.join(self.url, "artefact.json"), {**asdict(spec), "block_shape": list(block_shape), "mark": mark})

    def mark(self) -> str | None:
        """The mark it was begun with; None where there is nothing."""
        try:
            return self._record()["mark"]
        except FileNotFoundError:
            return None

    def write(self, block: int, arrays: Mapping[str, np.ndarray]) -> int:
        return write_arrays(access.join(self.url, "blocks", f"{block}.npz.zst"), arrays)

    def read(self, block: int) -> dict[str, np.ndarray]:
        return read_arrays(access.join(self.url, "blocks", f"{block}.npz.zst"))

    def finish(self, index: Mapping[str, np.ndarray]) -> None:
        """Write the index: every block's file is there."""
        write_arrays(access.join(self.url, "index.npz.zst"), index)
        write_json(access.join(self.url, "artefact.json"), {**self._record(), "files": len(index["block"])})

    def index(self) -> dict[str, np.ndarray]:
        return read_arrays(access.join(self.url, "index.npz.zst"))

    def spec(self) -> ArtefactSpec:
        """VolumeError where there is no artefact, or an unfinished one."""
        try:
            r = self._record()
        except FileNotFoundError:
            r = {}
        if "files" not in r:
            raise VolumeError(f"{self.url} holds no finished surface. Run the recipe that makes it to its end.")
        return ArtefactSpec(tuple(r["shape"]), Spacing(**r["spacing"]), r["kind"], tuple(r["origin_nm"]))
