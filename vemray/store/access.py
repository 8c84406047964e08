"""The one place where a URL becomes storage: a path or file:// (local), s3:// (obstore), any other scheme fsspec knows.

Credentials and endpoint come from where every AWS tool looks (AWS_* variables, profile files, instance roles) and go nowhere
else: no message, log or file carries them. Clients are opened in the process that uses them and never cross a fork.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from vemray.errors import StorageError, VemrayError, VolumeError

# One request up to this size, because only single puts are atomic with conditions and cheap in requests; parts of it beyond.
PART = 64 << 20
# A killed server was back after 14 to 24 s, so the usual 2.5 to 8 s of retries are not enough (docs: storage).
PATIENT = {"max_retries": 60, "retry_timeout": timedelta(seconds=180), "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2}}
BRIEF = {"max_retries": 2, "retry_timeout": timedelta(seconds=4), "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2}}


def scheme(url: str) -> str:
    """'file' for local paths and file:// URLs, else the URL's scheme."""
    match = re.match(r"^([A-Za-z][A-Za-z0-9+.-]+)://", str(url))
    return match.group(1).lower() if match else "file"


def local_path(url: str) -> str:
    """The file system path of a local URL."""
    url = os.fspath(url)
    if url.startswith("file://"):
        from urllib.request import url2pathname

        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise VolumeError(f"'{url}' names the host '{parts.netloc}'; a file URL must be local: file:///absolute/path.")
        return url2pathname(parts.path)
    return os.path.expanduser(url)


def shown(url: str) -> str:
    """The URL as messages may show it: without user, password or signed query."""
    if scheme(url) == "file":
        return os.fspath(url)
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}{parts.path}"


def join(url: str, *parts: str) -> str:
    """`url` with path parts appended; empty parts are skipped."""
    out = os.fspath(url)
    for part in parts:
        part = str(part).strip("/")
        if part:
            out = f"{out.rstrip('/') or '/'}/{part}" if out.rstrip("/") else f"/{part}"
    return out


def bucket_key(url: str) -> tuple[str, str]:
    """(bucket, key) of an s3:// URL. VolumeError if it carries credentials or no bucket."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise VolumeError("an s3:// URL must not carry credentials. Use s3://bucket/path and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile.")
    if not parts.netloc:
        raise VolumeError(f"'{shown(url)}' names no bucket. Write s3://bucket/path.")
    path = url.split("://", 1)[1][len(parts.netloc) :]
    return parts.netloc, path.strip("/")


# ---------------------------------------------------------------------------------------------------------------- errors


def _s3_code(text: str) -> str:
    """The S3 error code in a client's message, or ''. Only this word of a server's answer is ever shown."""
    match = re.search(r"<Code>(\w+)</Code>", text) or re.search(r"error occurred \((\w+)\)", text)
    if match:
        return match.group(1)
    match = re.search(r"status code: (\d{3})", text)
    return f"HTTP {match.group(1)}" if match else ""


def _endpoint() -> str:
    with contextlib.suppress(Exception):
        return shown(_s3_settings(_environment())["endpoint"] or "") or "Amazon S3"
    return "the S3 endpoint"


def translated(error: BaseException, url: str, doing: str) -> BaseException:
    """The vemray error that `error` means for someone `doing` something at `url` ('read', 'write', ...); `error` itself when
    it is none of storage's. Never repeats the client's own message: it may quote signatures or key ids."""
    if isinstance(error, VemrayError):
        return error
    where, text = shown(url), str(error)
    code = _s3_code(text)
    name = type(error).__name__
    if scheme(url) == "s3" and not (isinstance(error, OSError) and error.errno is not None and not code):
        bucket = urlsplit(url).netloc
        if code == "NoSuchBucket":
            return StorageError(f"Cannot {doing} {where}: there is no bucket '{bucket}' at {_endpoint()}. Create it, or correct the bucket's name or AWS_ENDPOINT_URL.")
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(f"there is nothing at {where}")
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed") or name in ("UnauthenticatedError", "NoCredentialsError"):
            return StorageError(f"Cannot {doing} {where}: {_endpoint()} does not accept the credentials ({code or name}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_PROFILE.")
        if code in ("AccessDenied", "AllAccessDisabled", "HTTP 403") or isinstance(error, PermissionError) or name == "PermissionDeniedError":
            return StorageError(f"Cannot {doing} {where}: access denied by {_endpoint()}. Check that these credentials may {doing} in bucket '{bucket}' (AWS_ACCESS_KEY_ID, AWS_PROFILE).")
        if code in ("QuotaExceeded", "StorageFull", "XMinioStorageFull", "HTTP 507", "InsufficientStorage"):
            return StorageError(f"Cannot {doing} {where}: no space left on {_endpoint()} ({code}). Free space or raise the quota, then run again: finished blocks are kept.")
        if type(error).__module__.split(".")[0] in ("obstore", "botocore", "aiobotocore", "aiohttp", "s3fs") or isinstance(error, ConnectionError | TimeoutError):
            if code:
                return StorageError(f"Cannot {doing} {where}: {_endpoint()} answered {code}. Look at the server's log, then run again.")
            return StorageError(f"Cannot {doing} {where}: {_endpoint()} cannot be reached. Check AWS_ENDPOINT_URL, the network and that the server runs.")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"there is nothing at {where}")
    if isinstance(error, OSError):
        number = error.errno
        if number in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(f"Cannot {doing} {where}: no space left on the disk. Free space, then run again: finished blocks are kept.")
        if number in (errno.EACCES, errno.EPERM):
            return StorageError(f"Cannot {doing} {where}: permission denied. Check the folder's owner and mode.")
        if number == errno.EROFS:
            return StorageError(f"Cannot {doing} {where}: the file system is mounted read-only. Choose another place.")
        if number in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST):
            return StorageError(f"Cannot {doing} {where}: {os.strerror(number).lower()}. Check the path.")
        if number in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE):
            return StorageError(f"Cannot {doing} {where}: {os.strerror(number).lower()}. Check the disk or mount, then run again.")
        if scheme(url) != "file":
            return StorageError(f"Cannot {doing} {where}: {name}. Check the address, the network and the credentials.")
    return error


@contextlib.contextmanager
def storage_errors(url: str, doing: str) -> Iterator[None]:
    """Raise storage's errors as StorageError (or FileNotFoundError for a missing object) with what, where and what to do."""
    try:
        yield
    except Exception as e:
        other = translated(e, url, doing)
        if other is e:
            raise
        raise other from None  # the client's own message may quote signatures: not chained


# --------------------------------------------------------------------------------------------------------------- clients


def _environment() -> tuple:
    """What a client depends on: this process and the AWS settings, as a digest (no secret is kept)."""
    text = "\0".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("AWS_"))
    return os.getpid(), hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def _s3_settings(environment: tuple) -> dict[str, Any]:
    """Endpoint, region and credentials as botocore finds them (variables, profile, instance role); None means anonymous."""
    import botocore.session
    from botocore.configprovider import ConfiguredEndpointProvider

    session = botocore.session.Session()
    try:
        endpoint = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
        anonymous = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes")
        credentials = None if anonymous else session.get_credentials()
    except Exception as e:  # ProfileNotFound, ConfigParseError, ...: their text names files and profiles only
        raise StorageError(f"The AWS configuration cannot be used ({type(e).__name__}). Check AWS_PROFILE and the files in ~/.aws.") from None
    return {"endpoint": endpoint, "region": region, "credentials": credentials}


@functools.lru_cache(maxsize=64)
def _s3_store(environment: tuple, bucket: str, prefix: str, patient: bool):
    from obstore.store import S3Store

    settings = _s3_settings(environment)
    config: dict[str, Any] = {"region": settings["region"]}
    client: dict[str, Any] = {"timeout": timedelta(seconds=120 if patient else 5), "connect_timeout": timedelta(seconds=5)}
    if settings["endpoint"]:
        config["endpoint"] = settings["endpoint"]
        client["allow_http"] = settings["endpoint"].startswith("http://")
    provider = None
    if settings["credentials"] is None:
        config["skip_signature"] = True
    else:

        def provider(credentials=settings["credentials"]):  # botocore renews what expires
            frozen = credentials.get_frozen_credentials()
            from datetime import UTC, datetime

            expires = datetime.now(UTC) + timedelta(minutes=10) if hasattr(credentials, "refresh_needed") else None
            return {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "token": frozen.token, "expires_at": expires}

    return S3Store(
        bucket, prefix=prefix or None, config=config, client_options=client, retry_config=PATIENT if patient else BRIEF, credential_provider=provider
    )


def s3_client(url: str, patient: bool = True):
    """(obstore S3Store of the bucket, key) for an s3:// URL, from this process's cache."""
    bucket, key = bucket_key(url)
    return _s3_store(_environment(), bucket, "", patient), key


def array_store(url: str, read_only: bool = False):
    """A zarr Store rooted at `url`. Open it in the process that uses it."""
    kind = scheme(url)
    if kind == "file":
        from zarr.storage import LocalStore

        return LocalStore(local_path(url), read_only=read_only)
    if kind == "s3":
        bucket, key = bucket_key(url)
        return _object_store_class()(_s3_store(_environment(), bucket, key, True), read_only=read_only)
    from zarr.storage import FsspecStore

    fs, path = filesystem(url)
    if not getattr(fs, "async_impl", False):
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        fs = AsyncFileSystemWrapper(fs, asynchronous=True)
    elif not fs.asynchronous:
        import fsspec

        fs = fsspec.filesystem(kind, asynchronous=True, **{k: v for k, v in fs.storage_options.items() if k != "asynchronous"})
    return FsspecStore(fs, read_only=read_only, path=path)


@functools.lru_cache(maxsize=1)
def _object_store_class():
    import obstore
    from zarr.storage import ObjectStore

    class SinglePutStore(ObjectStore):
        """zarr's ObjectStore, which would send values over 5 MiB in parts."""

        async def set(self, key, value):
            self._check_writable()
            data = value.as_buffer_like()
            await obstore.put_async(self.store, key, data, use_multipart=memoryview(data).nbytes > PART, chunk_size=PART)

    return SinglePutStore


@functools.lru_cache(maxsize=8)
def _s3fs(environment: tuple):
    import s3fs

    settings = _s3_settings(environment)
    retries = {"retries": {"mode": "standard", "max_attempts": 20}}
    return s3fs.S3FileSystem(
        anon=settings["credentials"] is None, endpoint_url=settings["endpoint"], config_kwargs=retries, use_listings_cache=False, skip_instance_cache=True
    )


def filesystem(url: str):
    """(fsspec file system, path in it)."""
    if scheme(url) == "s3":
        bucket, key = bucket_key(url)
        return _s3fs(_environment()), f"{bucket}/{key}".rstrip("/")
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
            obstore.put(store, key, data, use_multipart=memoryview(data).nbytes > PART, chunk_size=PART)
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
            if _s3_code(str(e)) == "NoSuchBucket":
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
                    if _s3_code(str(e)) not in ("AccessDenied", "HTTP 403"):
                        raise  # who may not list may still be allowed to read
        _reached.add((_environment(), bucket_key(url)[0]))
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
    if scheme(url) == "s3" and (_environment(), bucket_key(url)[0]) not in _reached:
        probe(url)
