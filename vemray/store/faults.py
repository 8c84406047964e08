"""What storage's errors mean: each becomes a StorageError that says what, where and what to do, and never quotes the client,
whose own words may hold signatures or key ids."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from vemray.errors import StorageError, VemrayError
from vemray.store import s3
from vemray.store.address import scheme, shown

CREDENTIALS = "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken ExpiredToken UnauthenticatedError NoCredentialsError".split()
DENIED = "AccessDenied AllAccessDisabled Forbidden HTTP403 PermissionDeniedError".split()
FULL = "QuotaExceeded StorageFull XMinioStorageFull InsufficientStorage HTTP507".split()
CLIENTS = "obstore botocore aiobotocore aiohttp s3fs".split()
DISK = {
    errno.ENOSPC: "no space left on the disk. Free space, then run again: finished blocks are kept",
    errno.EDQUOT: "the disk quota is used up. Free space, then run again: finished blocks are kept",
    errno.EACCES: "permission denied. Check the folder's owner and mode",
    errno.EPERM: "permission denied. Check the folder's owner and mode",
    errno.EROFS: "the file system is mounted read-only. Choose another place",
    errno.EMFILE: "too many open files. Raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files. Raise the limit (ulimit -n)",
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY), "{}. Check the path"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), "{}. Check the disk or mount, then run again"),
}


def s3_code(text: str) -> str:
    """The S3 error code in a client's message, or ''. Only this word of a server's answer is ever shown."""
    match = re.search(r"<Code>(\w+)</Code>", text) or re.search(r"error occurred \((\w+)\)", text)
    if match:
        return match.group(1)
    match = re.search(r"status code: (\d{3})", text)
    return f"HTTP{match.group(1)}" if match else ""


def _endpoint() -> str:
    with contextlib.suppress(Exception):
        return shown(s3.settings_of(s3.environment())["endpoint"] or "") or "Amazon S3"
    return "the S3 endpoint"


def _s3_meaning(error: BaseException, url: str, doing: str) -> str:
    """Why an S3 client failed and what to do, '' if it is not about storage."""
    code, name = s3_code(str(error)), type(error).__name__
    bucket, endpoint = urlsplit(url).netloc, _endpoint()
    if code == "NoSuchBucket":
        return f"there is no bucket '{bucket}' at {endpoint}. Create it, or correct the bucket's name or AWS_ENDPOINT_URL"
    if code in CREDENTIALS or name in CREDENTIALS:
        return f"{endpoint} does not accept the credentials ({code or name}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_PROFILE"
    if code in DENIED or name in DENIED or isinstance(error, PermissionError):
        return f"access denied by {endpoint}. Check that these credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE) may {doing} in bucket '{bucket}'"
    if code in FULL:
        return f"no space left on {endpoint} ({code}). Free space or raise the quota, then run again: finished blocks are kept"
    if type(error).__module__.split(".")[0] in CLIENTS or isinstance(error, ConnectionError | TimeoutError):
        if code:
            return f"{endpoint} answered {code}. Look at the server's log, then run again"
        return f"{endpoint} cannot be reached. Check AWS_ENDPOINT_URL, the network and that the server runs"
    return ""


def translated(error: BaseException, url: str, doing: str) -> BaseException:
    """The vemray error that `error` means for someone `doing` something at `url` ('read', 'write', ...); FileNotFoundError for a
    missing object; `error` itself when it is none of storage's."""
    if isinstance(error, VemrayError):
        return error
    why = ""
    from_disk = isinstance(error, OSError) and error.errno is not None
    if scheme(url) == "s3" and (not from_disk or s3_code(str(error))):
        why = _s3_meaning(error, url, doing) if not isinstance(error, FileNotFoundError) or s3_code(str(error)) == "NoSuchBucket" else ""
    if not why and (isinstance(error, FileNotFoundError) or (isinstance(error, NotADirectoryError) and doing == "read")):
        return FileNotFoundError(f"there is nothing at {shown(url)}")
    if not why and from_disk and error.errno in DISK:
        why = DISK[error.errno].format(os.strerror(error.errno).lower())
    if not why and isinstance(error, OSError) and scheme(url) != "file":
        why = f"{type(error).__name__}. Check the address, the network and the credentials"
    return StorageError(f"Cannot {doing} {shown(url)}: {why}.") if why else error


@contextlib.contextmanager
def storage_errors(url: str, doing: str) -> Iterator[None]:
    """Raise storage's errors as StorageError (or FileNotFoundError for a missing object) with what, where and what to do."""
    try:
        yield
    except Exception as e:
        other = translated(e, url, doing)
        if other is e:
            raise
        raise other from None  # the client's own message is not chained
