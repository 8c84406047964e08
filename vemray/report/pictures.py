"""Pictures of volumes: planes read from the pyramid level that is just fine enough, label overlays and outlines, scale bars.

    source = Source.of(open(url))                       # or Source.of_array(array, spacing)
    view = View.across(source, "xz", at_nm=4000, pixels=800)
    grey = to_grey(source.sample(view), *window([...]))
    rgb = scale_bar(overlay(grey, labels.sample(view)), view.pixel_nm)

Positions are in nm in the volume's own frame (the centre of voxel 0 at its origin). Pixels are square in nm, so anisotropic volumes
appear in their true proportions: grey values are interpolated linearly, labels are never mixed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vemray.errors import InputError
from vemray.geometry import Box, Spacing
from vemray.report.scale import scale_bar

RGB = tuple[int, int, int]
#: plane -> (axis of the normal, axis of rows, axis of columns)
PLANES = {"xy": (0, 1, 2), "xz": (1, 0, 2), "yz": (2, 1, 0)}
#: distinct for colour-blind readers, and visible on grey
PALETTE: tuple[RGB, ...] = (
    (240, 140, 40), (70, 150, 230), (60, 185, 120), (225, 105, 175), (235, 205, 50), (140, 120, 230), (40, 190, 195), (225, 75, 65),
)  # fmt: skip
#: voxels of a plane held at once while it is read
_PIECE = 1 << 24


@dataclass(frozen=True)
class Array:
    """A numpy array with the face of a volume's level."""

    data: np.ndarray
    spacing: Spacing
    kind: str = "image"
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def shape(self):
        return self.data.shape

    def read(self, box: Box) -> np.ndarray:
        return self.data[box.slices]


class Source:
    """All levels of a volume, each opened when it is first needed."""

    def __init__(self, levels: int, get):
        self._count, self._get, self._opened = levels, get, {}

    @classmethod
    def of(cls, volume) -> Source:
        """From a handle of the store on level 0."""
        from vemray.store.volume import open as open_volume

        channel = max([d for d in volume.dims if isinstance(d, int)], default=0)
        url = f"{volume.url}#c={channel}" if channel else volume.url
        first = volume.spacing if volume.levels == 1 else None
        return cls(volume.levels, lambda i: volume if i == volume.level else open_volume(url, level=i, kind=volume.kind, spacing=first))

    @classmethod
    def of_array(cls, data: np.ndarray, spacing: Spacing | Sequence[float], kind: str | None = None) -> Source:
        kind = kind or ("mask" if data.dtype == bool else "labels" if data.dtype == np.uint64 else "image")
        return cls(1, lambda i: Array(data, spacing if isinstance(spacing, Spacing) else Spacing(*spacing), kind))

    def level(self, i: int):
        if i not in self._opened:
            self._opened[i] = self._get(i)
        return self._opened[i]

    @property
    def first(self):
        return self.level(0)

    @property
    def kind(self) -> str:
        return self.first.kind

    @property
    def extent_nm(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of the outer faces of the volume, ZYX."""
        v = self.first
        return tuple((o - s / 2, o - s / 2 + n * s) for o, s, n in zip(v.origin_nm, v.spacing.zyx, v.shape))

    def level_for(self, pixel_nm: float, axes: Sequence[int]) -> int:
        """The coarsest level whose voxels along `axes` are not larger than a pixel; 0 if none."""
        best = 0
        for i in range(1, self._count):
            if any(self.level(i).spacing.zyx[a] > pixel_nm * 1.01 for a in axes if self.first.spacing.zyx[a] <= pixel_nm * 1.01):
                break
            if all(self.first.spacing.zyx[a] > pixel_nm * 1.01 for a in axes):
                break
            best = i
        return best

    def level_within(self, lo: Sequence[float], hi: Sequence[float], voxels: int) -> int | None:
        """The finest level at which the box lo..hi (nm) has at most `voxels` along each axis; None if there is none."""
        for i in range(self._count):
            if all((b - a) / s <= voxels for a, b, s in zip(lo, hi, self.level(i).spacing.zyx)):
                return i
        return None

    def sample(self, view: View) -> np.ndarray:
        """(rows, columns) of the view's pixels: float32 for an image or probability, labels as they are stored (mask: bool)."""
        normal, row, column = PLANES[view.plane]
        at = self.level(self.level_for(view.pixel_nm, (row, column)))
        index = _index(view.at_nm, at, normal)
        edges = [at.origin_nm[a] - at.spacing.zyx[a] / 2 for a in (row, column)]
        steps = [at.spacing.zyx[a] for a in (row, column)]
        limits = [at.shape[a] for a in (row, column)]
        lows = [(lo - e) / s for (lo, _), e, s in zip((view.rows_nm, view.columns_nm), edges, steps)]
        highs = [(hi - e) / s for (_, hi), e, s in zip((view.rows_nm, view.columns_nm), edges, steps)]
        first = [max(0, min(n - 1, math.floor(v) - 1)) for v, n in zip(lows, limits)]
        last = [max(f + 1, min(n, math.ceil(v) + 1)) for v, f, n in zip(highs, first, limits)]
        smooth = at.kind in ("image", "probability")
        factors = [max(1, math.floor(view.pixel_nm / s)) for s in steps]
        plane = _read_plane(at, view.plane, index, first, last, factors, smooth)
        lows = [(v - f) / k for v, f, k in zip(lows, first, factors)]
        highs = [(v - f) / k for v, f, k in zip(highs, first, factors)]
        if not smooth:
            rows, columns = (_nearest(lo, hi, n, m) for lo, hi, n, m in zip(lows, highs, view.shape, plane.shape))
            return plane[np.ix_(rows, columns)]
        from PIL import Image

        h, w = plane.shape
        box = (max(0.0, lows[1]), max(0.0, lows[0]), min(w, highs[1]), min(h, highs[0]))
        return np.asarray(Image.fromarray(plane).resize(view.shape[::-1], Image.Resampling.BILINEAR, box=box))


def _index(nm: float, level, axis: int) -> int:
    return int(np.clip(round((nm - level.origin_nm[axis]) / level.spacing.zyx[axis]), 0, level.shape[axis] - 1))


def _nearest(lo: float, hi: float, pixels: int, voxels: int) -> np.ndarray:
    return np.clip(np.floor(lo + (np.arange(pixels) + 0.5) * (hi - lo) / pixels).astype(int), 0, voxels - 1)


def _read_plane(level, plane: str, index: int, first, last, factors, smooth: bool) -> np.ndarray:
    """Rows first[0]:last[0], columns first[1]:last[1] of a plane, reduced by whole factors (mean of an image, every n-th label) while reading,
    so that a volume without a pyramid does not need its plane in memory."""
    normal, row, column = PLANES[plane]
    fr, fc = factors
    width = last[1] - first[1]
    many = max(1, _PIECE // max(1, width) // fr) * fr
    pieces = []
    for top in range(first[0], last[0], many):
        start, stop = [0, 0, 0], [0, 0, 0]
        start[normal], stop[normal] = index, index + 1
        start[row], stop[row] = top, min(last[0], top + many)
        start[column], stop[column] = first[1], last[1]
        part = np.squeeze(level.read(Box(tuple(start), tuple(stop))), axis=normal)
        part = part.T if row > column else part  # arrays are ZYX
        if smooth:
            part = part.astype(np.float32)
            for axis, f in ((0, fr), (1, fc)):
                if f > 1:
                    at = np.arange(0, part.shape[axis], f)
                    part = np.add.reduceat(part, at, axis=axis) / np.diff([*at, part.shape[axis]]).reshape([-1 if a == axis else 1 for a in (0, 1)])
        else:
            part = part[fr // 2 if len(part) > fr // 2 else 0 :: fr, fc // 2 if part.shape[1] > fc // 2 else 0 :: fc]
        pieces.append(part)
    out = np.concatenate(pieces)
    return np.ascontiguousarray(out, np.float32) if smooth else out


@dataclass(frozen=True)
class View:
    """A rectangle in a plane, and the size of its pixels. `rows_nm`, `columns_nm`: (low, high) of its outer edges."""

    plane: str
    at_nm: float
    rows_nm: tuple[float, float]
    columns_nm: tuple[float, float]
    pixel_nm: float

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(max(1, round((hi - lo) / self.pixel_nm)) for lo, hi in (self.rows_nm, self.columns_nm))

    @classmethod
    def across(cls, source: Source, plane: str, at_nm: float | None = None, pixel_nm: float | None = None, pixels: int = 1000) -> View:
        """The whole plane at `at_nm` (default: the middle). Without `pixel_nm` its longer side gets `pixels`."""
        if plane not in PLANES:
            raise InputError(f"there is no plane '{plane}': planes are xy, xz and yz.")
        extent = source.extent_nm
        normal, row, column = PLANES[plane]
        at_nm = sum(extent[normal]) / 2 if at_nm is None else at_nm
        pixel_nm = pixel_nm or max(b - a for a, b in (extent[row], extent[column])) / pixels
        return cls(plane, at_nm, extent[row], extent[column], pixel_nm)

    @classmethod
    def around(cls, source: Source, plane: str, centre_nm: Sequence[float], side_nm: float, pixels: int = 240) -> View:
        """A square of `side_nm` around a point (ZYX, nm), moved inwards where it would leave the volume, smaller where that is smaller."""
        normal, row, column = PLANES[plane]
        spans = []
        for axis in (row, column):
            lo, hi = source.extent_nm[axis]
            side = min(side_nm, hi - lo)
            start = min(max(lo, centre_nm[axis] - side / 2), hi - side)
            spans.append((start, start + side))
        return cls(plane, centre_nm[normal], *spans, side_nm / pixels)


# ------------------------------------------------------------------------------------------------------------------ colours


def label_colours(labels: np.ndarray) -> np.ndarray:
    """uint8 (n, 3) for n labels: the same label has the same colour everywhere, consecutive ones differ most (golden-ratio hues)."""
    key = np.asarray(labels, np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: wraps on purpose
    hue = (key >> np.uint64(40)).astype(np.float64) / (1 << 24)
    kind = (key >> np.uint64(16)) % np.uint64(3)
    value, saturation = np.choose(kind.astype(int), [1.0, 0.82, 0.95]), np.choose(kind.astype(int), [0.75, 0.85, 0.5])
    channel = (np.array([5.0, 3.0, 1.0]) + hue[..., None] * 6) % 6
    rgb = value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(channel, 4 - channel), 0, 1))
    return np.round(rgb * 255).astype(np.uint8)


def outlines(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """bool: pixels of a label within `width` pixels of another label or of the background."""
    labels = labels.astype(np.uint8) if labels.dtype == bool else labels
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        a, b = [slice(None)] * 2, [slice(None)] * 2
        a[axis], b[axis] = slice(None, -1), slice(1, None)
        differ = labels[tuple(a)] != labels[tuple(b)]
        edge[tuple(a)] |= differ
        edge[tuple(b)] |= differ
    for _ in range(width - 1):
        wider = edge.copy()
        wider[1:] |= edge[:-1]
        wider[:-1] |= edge[1:]
        wider[:, 1:] |= edge[:, :-1]
        wider[:, :-1] |= edge[:, 1:]
        edge = wider
    return edge & (labels != 0)


def crowded(source: Source, pixels: int = 500) -> bool:
    """Whether a quarter or more of the outlines of objects, in the middle plane, lies between two of them: a segmentation without gaps."""
    if source.kind != "labels":
        return False
    plane = source.sample(View.across(source, "xy", pixels=pixels))
    touch = edge = 0
    for a, b in ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])):
        differ = a != b
        edge += int(np.count_nonzero(differ))
        touch += int(np.count_nonzero(differ & (a != 0) & (b != 0)))
    return 4 * touch > edge


def layer(
    labels: np.ndarray, colours: RGB | Mapping[int, RGB] | None = None, fill: float = 0.35, width: int = 2, outline: RGB | None = None
) -> np.ndarray:
    """RGBA uint8 to lie over a picture: labels filled with opacity `fill`, outlined opaquely `width` pixels wide.

    `colours`: None for a colour of its own for each label, one RGB for all, or label -> RGB (others are left out). A probability (float 0..255)
    becomes a veil, denser where it is higher. `outline`: one colour for all outlines, else the label's."""
    out = np.zeros((*labels.shape, 4), np.uint8)
    if labels.dtype.kind == "f":
        out[..., :3] = colours or PALETTE[0]
        out[..., 3] = np.clip(labels / 255 * 170, 0, 255)
        return out
    present, inverse = np.unique(labels, return_inverse=True)
    inverse = inverse.reshape(labels.shape)
    table = np.zeros((len(present), 4), np.uint8)
    if colours is None:
        table[:, :3] = label_colours(present)
        table[:, 3] = 255
    elif isinstance(colours, Mapping):
        for i, label in enumerate(present.tolist()):
            if label in colours:
                table[i] = (*colours[label], 255)
    else:
        table[:] = (*colours, 255)
    table[present == 0] = 0
    out = table[inverse]
    shown = out[..., 3] > 0
    edge = outlines(np.where(shown, inverse + 1, 0), width) if width else np.zeros(labels.shape, bool)
    out[..., 3] = np.where(shown, np.where(edge, 255, round(255 * fill)), 0)
    if outline is not None:
        out[edge, :3] = outline
    out[out[..., 3] == 0] = 0
    return out


def overlay(
    grey: np.ndarray,
    labels: np.ndarray,
    colours: RGB | Mapping[int, RGB] | None = None,
    fill: float = 0.35,
    width: int = 1,
    outline: RGB | None = None,
) -> np.ndarray:
    """RGB uint8: `labels` over a grey or RGB picture of the same size (both uint8). Colours as in `layer`."""
    over = layer(labels, colours, fill, width, outline)
    alpha = over[..., 3:].astype(np.float32) / 255
    return np.round(rgb(grey) * (1 - alpha) + over[..., :3] * alpha).astype(np.uint8)


def rgb(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture


def window(planes: Sequence[np.ndarray], percent: tuple[float, float] = (0.5, 99.5)) -> tuple[float, float]:
    """(black, white): percentiles of all finite values of the planes together."""
    values = np.concatenate([p[np.isfinite(p)].ravel() for p in planes]) if planes else np.zeros(0)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, percent)
    return float(low), float(high) if high > low else float(low) + 1.0


def to_grey(plane: np.ndarray, black: float, white: float) -> np.ndarray:
    """uint8: black and below 0, white and above 255; not-a-number is black."""
    return np.nan_to_num(np.clip((plane - black) * (255 / (white - black)), 0, 255)).round().astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------------ figures


def slice_figure(
    image: Source | None,
    overlays: Mapping[str, Source] | None = None,
    at_nm: Sequence[float] | None = None,
    pixels: int = 1000,
    gap: int = 6,
    each: Collection[str] = (),
) -> np.ndarray:
    """RGB uint8: the planes xy, yz (right) and xz (below) through a point (ZYX nm; default the middle) at one scale, `pixels` along the longest
    side, overlays in the colours of PALETTE in their order, with a scale bar. Objects of the overlays in `each` have a colour of their own,
    within outlines of the overlay's."""
    sources = [image] if image else []
    sources += list((overlays or {}).values())
    if not sources:
        raise InputError("a slice figure needs an image or an overlay.")
    extent = sources[0].extent_nm
    at = at_nm or [sum(e) / 2 for e in extent]
    pixel_nm = max(hi - lo for lo, hi in extent) / pixels
    views = {p: View.across(sources[0], p, at[axes[0]], pixel_nm) for p, axes in PLANES.items()}
    greys = {p: image.sample(v) for p, v in views.items()} if image else {}
    low, high = window(list(greys.values()))
    made = {}
    for p, v in views.items():
        made[p] = to_grey(greys[p], low, high) if image else np.full(v.shape, 40, np.uint8)
        for i, (name, source) in enumerate((overlays or {}).items()):
            colour, own = PALETTE[i % len(PALETTE)], name in each
            made[p] = overlay(made[p], source.sample(v), None if own else colour, 0.45 if own else 0.35, outline=colour)
    xy, xz, yz = (rgb(made[p]) for p in ("xy", "xz", "yz"))
    out = np.full((xy.shape[0] + gap + xz.shape[0], xy.shape[1] + gap + yz.shape[1], 3), 255, np.uint8)
    out[: xy.shape[0], : xy.shape[1]] = scale_bar(xy, pixel_nm)
    out[: xy.shape[0], xy.shape[1] + gap :] = yz
    out[xy.shape[0] + gap :, : xy.shape[1]] = xz
    return out


def encode(picture: np.ndarray, form: str = "PNG", quality: int = 88) -> bytes:
    """A uint8 picture as PNG or JPEG. An RGBA of few colours becomes a small palette PNG, without loss."""
    from PIL import Image

    out = io.BytesIO()
    if form == "JPEG":
        Image.fromarray(picture).save(out, "JPEG", quality=quality, subsampling=0, optimize=True)
        return out.getvalue()
    if picture.ndim == 3 and picture.shape[2] == 4:
        packed = np.ascontiguousarray(picture).view(np.uint32)[..., 0]
        colours, inverse = np.unique(packed, return_inverse=True)
        if len(colours) <= 256:
            rgba = colours.view(np.uint8).reshape(-1, 4)
            small = Image.fromarray(inverse.reshape(packed.shape).astype(np.uint8), "P")
            small.putpalette(rgba[:, :3].tobytes())
            small.save(out, "PNG", transparency=rgba[:, 3].tobytes(), optimize=True)
            return out.getvalue()
    Image.fromarray(picture).save(out, "PNG", optimize=True)
    return out.getvalue()


def data_uri(picture: np.ndarray, form: str = "PNG", **how: Any) -> str:
    return f"data:image/{form.lower()};base64,{base64.b64encode(encode(picture, form, **how)).decode()}"
