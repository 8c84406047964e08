"""Addresses as text: paths, file://, s3:// and other URLs. Nothing is opened here."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from vemray.errors import VolumeError


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
        raise VolumeError(
            "an s3:// URL must not carry credentials. Use s3://bucket/path and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile."
        )
    if not parts.netloc:
        raise VolumeError(f"'{shown(url)}' names no bucket. Write s3://bucket/path.")
    path = url.split("://", 1)[1][len(parts.netloc) :]
    return parts.netloc, path.strip("/")
