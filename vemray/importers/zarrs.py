"""Zarr v2 and v3 arrays, OME-Zarr 0.4 and 0.5 (anything `store.volume.open` opens)."""

from __future__ import annotations

import numpy as np

from vemray.geometry import Spacing
from vemray.importers.base import Format, Source
from vemray.store import access, metadata, volume


def _detects(url: str, fragment: str) -> bool:
    return access.is_folder(url) and metadata.read_node(url) is not None


def _opens(url: str, fragment: str, spacing: Spacing | None) -> Source:
    found = volume.open(f"{url}#{fragment}" if fragment else url, spacing=spacing)
    return Source(found.shape, np.dtype(found.dtype), found.read, found.spacing, found.kind, found.origin_nm)


FORMAT = Format("zarr", "Zarr v2 and v3 arrays, OME-Zarr 0.4 and 0.5 (a channel by #c=0)", _detects, _opens)
