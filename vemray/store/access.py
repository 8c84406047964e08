"""The one place where a URL becomes storage: a path or file:// (local), s3:// (obstore), any other scheme fsspec knows.

Credentials and endpoint come from where every AWS tool looks and go nowhere else: no message, log or file carries them. Clients are
opened in the process that uses them and never cross a fork."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from vemray.errors import StorageError, VolumeError
from vemray.store import s3
from vemray.store.address import bucket_key, join, local_path, scheme, shown
from vemray.store.faults import DENIED, s3_code, storage_errors, translated
from vemray.store.s3 import client as s3_client
from vemray.store.s3 import view as s3_view

__all__ = [
    "array_store",
    "create_only",
    "exists",
    "expect_s3_view",
    "filesystem",
    "is_folder",
    "join",
    "list_names",
    "local_path",
    "object_facts",
    "open_read",
    "probe",
    "reach",
    "read_all",
    "read_bytes",
    "read_ranges",
    "read_suffix",
    "remove",
    "remove_object",
    "s3_client",
    "s3_view",
    "scheme",
    "shown",
    "storage_errors",
    "translated",
    "write_bytes",
    "write_json_bytes",
]


def array_store(url: str, read_only: bool = False):
    """A zarr Store rooted at `url`. Open it in the process that uses it."""
    kind = scheme(url)
    if kind == "file":
        from zarr.storage import LocalStore

        return LocalStore(local_path(url), read_only=read_only)
    if kind == "s3":
        bucket, key = bucket_key(url)
        return s3.zarr_store_class()(s3.store_of(s3.environment(), bucket, key, True), read_only=read_only)
    from zarr.storage import FsspecStore

    fs, path = filesystem(url)
    if not getattr(fs, "async_impl", False):
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        fs = AsyncFileSystemWrapper(fs, asynchronous=True)
    elif not fs.asynchronous:
        import fsspec

        fs = fsspec.filesystem(kind, asynchronous=True, **{k: v for k, v in fs.storage_options.items() if k != "asynchronous"})
    return FsspecStore(fs, read_only=read_only, path=path)


def filesystem(url: str):
    """(fsspec file system, path in it)."""
    if scheme(url) == "s3":
        bucket, key = bucket_key(url)
        return s3.file_system(s3.environment()), f"{bucket}/{key}".rstrip("/")
    import fsspec

    if scheme(url) == "file":
        return fsspec.filesystem("file"), os.path.abspath(local_path(url))
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as e:
        raise StorageError(f"Addresses of the kind {scheme(url)}:// need a package that is not installed: {e}") from None
    except ValueError as e:
        raise VolumeError(f"'{shown(url)}' cannot be used: {e}. Use a path, s3://bucket/path or another address that fsspec knows.") from None


# --------------------------------------------------------------------------------------------------------------- objects


def exists(url: str) -> bool:
    """True for an object, or a folder or prefix with something in it."""
    with storage_errors(url, "read"):
        if scheme(url) == "file":
            return os.path.exists(local_path(url))
        if scheme(url) == "s3":
            import obstore

            store, key = s3_client(url)
            if key:
                try:
                    obstore.head(store, key)
                    return True
                except FileNotFoundError:
                    pass
            found = obstore.list_with_delimiter(store, key or None)
            return bool(found["objects"] or found["common_prefixes"])
        fs, path = filesystem(url)
        return fs.exists(path)


def read_bytes(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The object's bytes [start, end); negative `start` without `end` counts from the end. FileNotFoundError if missing."""
    with storage_errors(url, "read"):
        if scheme(url) == "s3" or scheme(url) == "file":
            if start is None and end is None:
                return bytes(read_all(url))
            if start is not None and start < 0 and end is None:
                return bytes(read_suffix(url, -start))
            if end is not None and end >= 0 and (start or 0) >= 0:
                return bytes(read_ranges(url, [(start or 0, end)])[0])
            return bytes(read_all(url))[start:end]
        fs, path = filesystem(url)
        return fs.cat_file(path, start=start, end=end)


def read_all(url: str):
    """The object's bytes as any buffer, without a copy where possible. Errors as the client raises them."""
    if scheme(url) == "file":
        with open(local_path(url), "rb") as f:
            return f.read()
    if scheme(url) == "s3":
        import obstore

        store, key = s3_client(url)
        return memoryview(obstore.get(store, key).bytes())
    fs, path = filesystem(url)
    return fs.cat_file(path)


def read_suffix(url: str, n: int):
    """The last `n` bytes (all of a shorter object) as a buffer."""
    if scheme(url) == "file":
        with open(local_path(url), "rb") as f:
            size = os.fstat(f.fileno()).st_size
            return os.pread(f.fileno(), n, max(0, size - n))
    if scheme(url) == "s3":
        import obstore

        store, key = s3_client(url)
        return memoryview(obstore.get(store, key, options={"range": {"suffix": n}}).bytes())
    fs, path = filesystem(url)
    return fs.cat_file(path, start=-n)


def read_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list:
    """Buffers of the byte ranges [start, end) of one object, in order; near ones share a request on S3. A range beyond the end
    comes back short."""
    if not ranges:
        return []
    if scheme(url) == "file":
        with open(local_path(url), "rb") as f:
            return [os.pread(f.fileno(), b - a, a) for a, b in ranges]
    if scheme(url) == "s3":
        import obstore

        store, key = s3_client(url)
        return [memoryview(b) for b in obstore.get_ranges(store, key, starts=[a for a, _ in ranges], ends=[b for _, b in ranges])]
    fs, path = filesystem(url)
    return fs.cat_ranges([path] * len(ranges), [a for a, _ in ranges], [b for _, b in ranges])


@contextlib.contextmanager
def open_read(url: str) -> Iterator[BinaryIO]:
    """A seekable binary file to read from, closed at the end. Storage's errors are translated."""
    with storage_errors(url, "read"):
        if scheme(url) == "file":
            f = open(local_path(url), "rb")
        else:
            fs, path = filesystem(url)
            f = fs.open(path, "rb")
        with f:
            yield f


def is_folder(url: str) -> bool:
    """True for a local folder, or a prefix with something under it."""
    with storage_errors(url, "read"):
        if scheme(url) == "file":
            return os.path.isdir(local_path(url))
        fs, path = filesystem(url)
        return fs.isdir(path)


def write_bytes(url: str, data) -> None:
    """Write an object whole or not at all: readers see the old bytes or the new ones, never a part."""
    with storage_errors(url, "write"):
        if scheme(url) == "file":
            path = local_path(url)
            temporary = f"{path}.{uuid.uuid4().hex[:12]}.partial"
            try:
                try:
                    f = open(temporary, "wb")
                except FileNotFoundError:
                    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                    f = open(temporary, "wb")
                with f:
                    f.write(data)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        elif scheme(url) == "s3":
            import obstore

            store, key = s3_client(url)
            obstore.put(store, key, data, use_multipart=memoryview(data).nbytes > s3.PART, chunk_size=s3.PART)
        else:
            fs, path = filesystem(url)
            fs.makedirs(fs._parent(path), exist_ok=True)
            fs.pipe_file(path, bytes(data))


def write_json_bytes(url: str, value: Any) -> None:
    """Write a JSON document (metadata: small, readable by people)."""
    write_bytes(url, json.dumps(value, indent=2, ensure_ascii=False).encode())


def remove_object(url: str) -> None:
    """Remove one object if it is there (never a folder)."""
    with storage_errors(url, "remove"):
        try:
            if scheme(url) == "file":
                os.unlink(local_path(url))
            elif scheme(url) == "s3":
                import obstore

                store, key = s3_client(url)
                obstore.delete(store, key)
            else:
                fs, path = filesystem(url)
                fs.rm_file(path)
        except FileNotFoundError as e:
            if s3_code(str(e)) == "NoSuchBucket":
                raise


def create_only(url: str, data: bytes) -> bool:
    """Write an object if there is none: True if this call made it, False if it was there. Atomic on folders and on S3 (If-None-Match).
    On S3 a put whose answer was lost and that was sent again counts as there: who must know writes its own name and reads it back."""
    with storage_errors(url, "write"):
        if scheme(url) == "file":
            path = local_path(url)
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            # write aside and link: the name appears with its content or not at all, which O_EXCL alone would not give
            temporary = f"{path}.{uuid.uuid4().hex[:12]}.partial"
            try:
                with open(temporary, "wb") as f:
                    f.write(data)
                try:
                    os.link(temporary, path)
                    return True
                except FileExistsError:
                    return False
                except OSError as e:
                    if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EACCES):
                        raise
                try:  # a file system without hard links
                    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                except FileExistsError:
                    return False
                with open(fd, "wb") as f:
                    f.write(data)
                return True
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        if scheme(url) == "s3":
            import obstore

            store, key = s3_client(url)
            try:
                obstore.put(store, key, data, mode="create", use_multipart=False)
                return True
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                return False
        fs, path = filesystem(url)
        if fs.exists(path):
            return False
        fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, bytes(data))
        return True


def list_names(url: str) -> list[str]:
    """Names directly under a folder or prefix, sorted; [] if there is none. Unfinished temporary files are left out."""
    with storage_errors(url, "list"):
        if scheme(url) == "file":
            try:
                names = os.listdir(local_path(url))
            except (FileNotFoundError, NotADirectoryError):
                return []
        elif scheme(url) == "s3":
            import obstore

            store, key = s3_client(url)
            found = obstore.list_with_delimiter(store, key or None)
            names = [p.rstrip("/").rsplit("/", 1)[-1] for p in found["common_prefixes"]] + [o["path"].rsplit("/", 1)[-1] for o in found["objects"]]
        else:
            fs, path = filesystem(url)
            try:
                names = [p.rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(path, detail=False)]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted({n for n in names if not n.endswith(".partial")})


def remove(url: str) -> None:
    """Remove an object, or everything under a folder or prefix. Nothing there is no error."""
    with storage_errors(url, "remove"):
        if scheme(url) == "file":
            path = local_path(url)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        elif scheme(url) == "s3":
            import obstore

            store, key = s3_client(url)
            if not key:
                raise VolumeError(f"refusing to empty the whole bucket {shown(url)}. Name a path inside it.")
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(store, key)
            for page in obstore.list(store, key, chunk_size=1000):
                if page:
                    obstore.delete(store, [o["path"] for o in page])
        else:
            fs, path = filesystem(url)
            if fs.exists(path):
                fs.rm(path, recursive=True)


def object_facts(url: str) -> dict[str, Any]:
    """{"size", "modified" (ISO, UTC)} and "etag" where the storage has one; FileNotFoundError if missing."""
    with storage_errors(url, "read"):
        if scheme(url) == "file":
            st = os.stat(local_path(url))
            return {"size": st.st_size, "modified": _iso(st.st_mtime)}
        if scheme(url) == "s3":
            import obstore

            store, key = s3_client(url)
            head = obstore.head(store, key)
            return {"size": head["size"], "modified": _iso(head["last_modified"].timestamp()), "etag": (head["e_tag"] or "").strip('"')}
        fs, path = filesystem(url)
        info = fs.info(path)
        facts = {"size": info.get("size"), "etag": str(info.get("etag") or info.get("ETag") or "").strip('"')}
        return {k: v for k, v in facts.items() if v not in (None, "")}


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# ----------------------------------------------------------------------------------------------------------------- probe

_reached: set[tuple] = set()


def probe(url: str, write: bool = False) -> None:
    """Check before work starts that `url` can be read from (or written to), with a clear error within seconds where the
    patient clients of the workers would wait for minutes: no server, no bucket, wrong credentials, read-only or full disk."""
    if scheme(url) == "s3":
        import obstore

        with storage_errors(url, "write" if write else "read"):
            store, key = s3_client(url, patient=False)
            if write:
                name = f"{key}/.vemray-probe-{uuid.uuid4().hex[:12]}".lstrip("/")
                obstore.put(store, name, b"vemray checks that it can write here", use_multipart=False)
                obstore.delete(store, name)
            else:
                try:
                    obstore.list_with_delimiter(store, key or None)
                except obstore.exceptions.PermissionDeniedError as e:
                    if s3_code(str(e)) not in DENIED:
                        raise  # who may not list may still be allowed to read
        _reached.add((s3.environment(), bucket_key(url)[0]))
    elif scheme(url) == "file":
        path = os.path.abspath(local_path(url))
        if not write:
            if not os.path.exists(path):
                raise VolumeError(f"there is nothing at {shown(url)}. Check the path.")
            with storage_errors(url, "read"):
                os.listdir(path) if os.path.isdir(path) else open(path, "rb").close()
            return
        folder = path
        while not os.path.isdir(folder):
            if os.path.exists(folder):
                raise StorageError(f"Cannot write {shown(url)}: {folder} is a file, not a folder. Choose another place.")
            folder = os.path.dirname(folder)
        test = os.path.join(folder, f".vemray-probe-{uuid.uuid4().hex[:12]}.partial")
        with storage_errors(url, "write"):
            try:
                with open(test, "wb") as f:
                    f.write(b"\0" * 4096)
            except FileNotFoundError:  # such as /proc
                raise StorageError(f"Cannot write {shown(url)}: nothing can be created there. Choose another place.") from None
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(test)
    else:
        with storage_errors(url, "write" if write else "read"):
            fs, path = filesystem(url)
            fs.exists(path)


def reach(url: str) -> None:
    """`probe` an S3 bucket on this process's first contact with it, so that a wrong endpoint fails at once; later calls are free
    and leave a server that goes down in mid-work to the patient retries."""
    if scheme(url) == "s3" and (s3.environment(), bucket_key(url)[0]) not in _reached:
        probe(url)


@functools.lru_cache(maxsize=4)
def _agree(env: tuple, expected: str) -> None:
    if s3_view() != expected:
        raise StorageError(
            f"a worker on {socket.gethostname()} takes s3:// to be {s3_view()}; for the driver it is {expected}. "
            "Start Ray with the same AWS_* variables (or ~/.aws) on every machine, after they are set."
        )


def expect_s3_view(expected: str) -> None:
    """StorageError at once, where patient retries would wait for minutes, if this process finds another endpoint than `expected`
    (the driver's `s3_view()`), or no credentials where the driver has some. '' expects nothing."""
    if expected:
        _agree(s3.environment(), expected)
