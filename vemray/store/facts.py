"""What a volume consists of, without reading it: the size and time (or etag) of each of its objects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from vemray.store import access


@dataclass(frozen=True)
class TreeFacts:
    """`digest` changes when an object under the URL is added, removed or changed."""

    objects: int
    bytes: int
    digest: str


def tree_facts(url: str) -> TreeFacts:
    h, n, total = 0, 0, 0
    for name, size, stamp in _objects(url):
        # a sum of hashes does not depend on the order of the listing, and needs no list in memory
        h = (h + int.from_bytes(hashlib.sha256(f"{name}\0{size}\0{stamp}".encode()).digest(), "big")) % (1 << 256)
        n, total = n + 1, total + size
    return TreeFacts(n, total, f"{h:064x}")


def _objects(url: str) -> Iterator[tuple[str, int, str]]:
    with access.storage_errors(url, "list"):
        if access.scheme(url) == "file":
            root = access.local_path(url)
            seen: set[str] = set()  # a link may lead in a circle
            for folder, folders, files in os.walk(root, followlinks=True):
                seen.add(os.path.realpath(folder))
                folders[:] = [d for d in folders if os.path.realpath(os.path.join(folder, d)) not in seen]
                for f in files:
                    path = os.path.join(folder, f)
                    st = os.stat(path)
                    yield os.path.relpath(path, root), st.st_size, str(st.st_mtime_ns)
        elif access.scheme(url) == "s3":
            import obstore

            store, key = access.s3_client(url)
            for page in obstore.list(store, key + "/", chunk_size=1000):
                for o in page:
                    yield o["path"].removeprefix(key), o["size"], (o["e_tag"] or str(o["last_modified"])).strip('"')
        else:
            fs, path = access.filesystem(url)
            for name, info in sorted(fs.find(path, detail=True).items()):
                yield name.removeprefix(path), int(info.get("size") or 0), str(info.get("etag") or info.get("mtime") or "")
