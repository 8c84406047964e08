"""The final map of a labelling stage, from keys to ids, as pages of sorted keys: a task fetches the pages its block needs."""

from __future__ import annotations

import functools

import numpy as np

from vemray.ops.base import Numbering
from vemray.store import access

PAGE = 1 << 16  # entries of 16 bytes: one request of 1 MiB


class NumberingFile:
    """`pages`: (key, id) uint64 pairs sorted by key; `index`: first key of each page; `checksums`: uint32 for each block."""

    def __init__(self, url: str):
        self.url = url
        self.first = np.frombuffer(access.read_bytes(access.join(url, "index")), np.uint64)
        self.page = functools.lru_cache(maxsize=16)(self._page)

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def _opened(url: str, stamp: bytes) -> NumberingFile:
        return NumberingFile(url)

    @classmethod
    def open(cls, url: str) -> NumberingFile:
        """Cached in the process by content: a numbering written again is read again."""
        return cls._opened(url, access.read_bytes(access.join(url, "stamp")))

    @classmethod
    def write(cls, url: str, numbering: Numbering, checksums: np.ndarray) -> None:
        import hashlib

        pairs = np.ascontiguousarray(np.stack([numbering.keys.astype("<u8"), numbering.ids.astype("<u8")], 1))
        access.write_bytes(access.join(url, "pages"), pairs.tobytes())
        access.write_bytes(access.join(url, "index"), np.ascontiguousarray(pairs[::PAGE, 0]).tobytes())
        access.write_bytes(access.join(url, "checksums"), checksums.astype("<u4").tobytes())
        access.write_bytes(access.join(url, "stamp"), hashlib.blake2b(pairs, digest_size=16).hexdigest().encode())

    def _page(self, n: int) -> np.ndarray:
        data = access.read_bytes(access.join(self.url, "pages"), n * PAGE * 16, (n + 1) * PAGE * 16)
        return np.frombuffer(data, "<u8").reshape(-1, 2)

    def ids(self, keys: np.ndarray) -> np.ndarray:
        """Final ids (uint64) of `keys` (uint64, any order). KeyError if one is not in the numbering."""
        keys = np.asarray(keys, np.uint64)
        out = np.zeros(len(keys), np.uint64)
        if not len(keys):
            return out
        pages = np.searchsorted(self.first, keys, side="right").astype(np.int64) - 1
        if (pages < 0).any():
            raise KeyError(f"key {int(keys[pages < 0][0])} is not in the numbering {self.url}")
        for p in np.unique(pages):
            mine = pages == p
            page = self.page(int(p))
            at = np.searchsorted(page[:, 0], keys[mine])
            at = np.minimum(at, len(page) - 1)
            if (page[at, 0] != keys[mine]).any():
                raise KeyError(f"a key of this block is not in the numbering {self.url}")
            out[mine] = page[at, 1]
        return out

    def checksum(self, index: int) -> int:
        return int(np.frombuffer(access.read_bytes(access.join(self.url, "checksums"), 4 * index, 4 * index + 4), "<u4")[0])
