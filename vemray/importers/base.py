"""What a foreign format has to say to become a volume: one `Format` per file of this package, listed in `FORMATS` of convert.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vemray.geometry import Box, Int3, Spacing

if TYPE_CHECKING:
    from vemray.ops.base import Kind


@dataclass
class Source:
    """An opened foreign volume. `shape` ZYX; `dtype` native; `spacing` (nm) only where the file's own metadata can be trusted.

    `read(box)` gives an array (ZYX) of the box, of any layout and byte order. `close` is called at the end."""

    shape: Int3
    dtype: np.dtype
    read: Callable[[Box], np.ndarray]
    spacing: Spacing | None = None
    kind: Kind | None = None
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    close: Callable[[], Any] = field(default=lambda: None)


@dataclass(frozen=True)
class Format:
    """`detects(url, fragment)` is cheap; `opens(url, fragment, spacing)` gives a Source or raises a VolumeError that says what is wrong.
    `fragment` is what follows # in the address ('' if nothing does): a key, or c=1 for a channel."""

    name: str
    reads: str
    detects: Callable[[str, str], bool]
    opens: Callable[[str, str, Spacing | None], Source]
