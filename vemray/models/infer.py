"""Running a network over a volume in tiles, blockwise: the tiles belong to the volume, so blocks do not change a bit."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import ModelError, RecipeError, nearest
from vemray.geometry import Box, Int3, Spacing
from vemray.models import files
from vemray.models.tiles import Tile, blend_tiles, even_edge, exact_tiles, ramp, reflected
from vemray.ops.base import ArraySpec, Composite, Filter, Port, Site, Step, register
from vemray.ops.histogram import Histogram, percentile

#: voxels of the planes that go through the network together; the batch has one shape, whatever the block
BATCH_VOXELS = 1 << 18
MOST_EDGE = {2: 1024, 3: 160}


@functools.lru_cache(maxsize=8)
def _facts(path: str, stamp: tuple) -> files.Facts:
    return files.load_facts(path)


@functools.lru_cache(maxsize=4)
def _model(path: str, stamp: tuple, device: str) -> files.Model:
    return files.load(path, device)


def _stamp(path: str) -> tuple:
    try:
        s = os.stat(path)
    except OSError:
        raise ModelError(f"there is no model '{path}'. A path in a recipe starts from the recipe's folder.") from None
    return (s.st_size, s.st_mtime_ns)


def device_of(asked: str) -> str:
    """'cpu' or 'cuda'."""
    if asked == "cpu":
        return "cpu"
    import torch

    has = torch.cuda.is_available()
    if asked == "cuda" and not has:
        raise ModelError("device: cuda was asked for, but torch finds no GPU here. Use device: auto, or run where one is.")
    return "cuda" if has else "cpu"


Path_ = Annotated[str, Field(description="model file (.vemray or .onnx); a relative path starts from the recipe's folder", json_schema_extra={"path": True})]
Classes = Annotated[list[str] | None, Field(description="classes whose probability is wanted; default: all but the first, which is the background")]
Groups = Annotated[dict[str, list[str]], Field(description="further outputs: name -> classes whose probabilities are added, e.g. cell: [cytoplasm, nucleus]")]
Mode = Annotated[Literal["exact", "blend"], Field(description="exact: tiles with a halo as wide as the receptive field, equal to the whole plane; blend: overlapping tiles, smoothly weighted")]
Edge = Annotated[int | None, Field(gt=0, description="edge of a tile in voxels; default: whole planes up to 1024, else equal parts (3D: 160)")]
Overlap = Annotated[int, Field(gt=0, description="for blend: voxels that neighbouring tiles share")]
Device = Annotated[Literal["auto", "cpu", "cuda"], Field(description="where the network runs; results are equal within one kind of device")]
Ignore = Annotated[bool, Field(description="run although the volume's voxels differ from those the model was trained at")]


@register("infer_tiles", hidden=True)
@dataclass(frozen=True)
class InferTiles(Filter):
    """Probabilities of a network's classes, tile by tile of the volume's own grid."""

    holds_model = True
    ports = (Port("image", ("image",)), Port("histogram", ("scalars",), optional=True))

    model: Path_ = ""
    classes: Classes = None
    groups: Groups = field(default_factory=dict)
    mode: Mode = "exact"
    tile: Edge = None
    overlap: Overlap = 32
    device: Device = "auto"
    ignore_voxel_size: Ignore = False

    @property
    def about(self) -> files.Facts:
        return _facts(self.model, _stamp(self.model))

    def files(self) -> tuple[str, ...]:
        return (self.model,)

    def facts(self) -> dict:
        import torch

        return {"device": device_of(self.device), "precision": "float32", "threads": 1, "torch": torch.__version__.split("+")[0]}

    def wanted(self) -> dict[str, list[int]]:
        """Output name -> channels that are added for it."""
        known = self.about.classes
        out = {}
        for name in self.classes if self.classes is not None else known[1:] or known:
            out[name] = [name]
        out.update(self.groups)
        for name, members in out.items():
            for m in members:
                if m not in known:
                    raise RecipeError(f"the model {self.model} has no class '{m}'.{nearest(m, known)} It has: {', '.join(known)}.")
            if not name.replace("_", "a").isalnum():
                raise RecipeError(f"'{name}' cannot be an output's name: use letters, digits and _")
        return {name: [known.index(m) for m in members] for name, members in out.items()}

    def check(self, image: ArraySpec) -> None:
        a = self.about
        if a.channels != 1:
            raise ModelError(f"the model {self.model} takes {a.channels} channels; a volume has one.")
        off = [max(x, y) / min(x, y) for x, y in zip(a.voxel_nm, image.spacing.zyx)][1 if a.dims == 2 else 0 :]
        if max(off) > 1.05 and not self.ignore_voxel_size:
            trained = " x ".join(f"{v:g}" for v in a.voxel_nm)
            raise ModelError(f"the model {self.model} was trained at {trained} nm (z, y, x), the volume has {image.spacing}. Use a pyramid level or model that fits, or ignore_voxel_size: true.")
        if image.dtype == "float64":
            raise RecipeError("'infer' takes integer or float32 images, not float64.")
        self.wanted()

    def output(self, image: ArraySpec) -> dict[str, ArraySpec]:
        return {name: image.like(np.uint8, "probability") for name in self.wanted()}

    # the tile grid ----------------------------------------------------------------------------------------------------

    def tiles(self, shape: Int3) -> list[list[Tile]]:
        """Tiles along z, y, x. A 2D network takes each plane by itself."""
        a = self.about
        out = []
        for axis, n in enumerate(shape):
            if a.dims == 2 and axis == 0:
                out.append([Tile((z, z + 1), (z, z + 1)) for z in range(n)])
                continue
            edge = -(-self.tile // a.stride) * a.stride if self.tile else even_edge(n, MOST_EDGE[a.dims], a.stride)
            if self.mode == "exact":
                out.append(exact_tiles(n, edge, a.halo, a.stride))
            else:
                if self.overlap >= edge:
                    raise RecipeError(f"overlap ({self.overlap}) must be smaller than the tile ({edge}).")
                out.append(blend_tiles(n, edge, self.overlap, a.stride))
        return out

    def _meeting(self, shape: Int3, box: Box) -> list[list[Tile]]:
        return [[t for t in ts if t.core[0] < b and t.core[1] > a] for ts, a, b in zip(self.tiles(shape), box.start, box.stop)]

    def read_box(self, write: Box, shape: Int3, spacing: Spacing) -> Box:
        start, stop = [], []
        for ts, n in zip(self._meeting(shape, write), shape):
            where = [reflected(*t.window, n) for t in ts]
            start.append(min(int(w.min()) for w in where))
            stop.append(max(int(w.max()) for w in where) + 1)
        return Box(tuple(start), tuple(stop))

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        """Blocks of whole tiles: for planes thin and wide, so that no tile is computed for two blocks."""
        a = self.about
        if a.dims == 3:
            return block
        edges = [-(-self.tile // a.stride) * a.stride if self.tile else even_edge(n, MOST_EDGE[2], a.stride) for n in shape[1:]]
        wide = [min(-(-n // c) * c, math.lcm(e, c) if math.lcm(e, c) <= 2048 else -(-e // c) * c) for n, e, c in zip(shape[1:], edges, chunk[1:])]
        return (chunk[0], *wide)

    def _batch(self, window: tuple[int, ...]) -> int:
        return max(1, BATCH_VOXELS // math.prod(window)) if self.about.dims == 2 else 1

    def memory(self, image: ArraySpec) -> float:
        # activations of one batch dominate: the widest layers hold about 6 times `base` floats a voxel, beside the scores and outputs
        a = self.about
        base = int((a.network or {}).get("base", 32))
        edges = [ts[0].window[1] - ts[0].window[0] if len(ts) == 1 else max(t.window[1] - t.window[0] for t in ts) for ts in self.tiles(image.shape)]
        window = tuple(edges[1:] if a.dims == 2 else edges)
        batch = self._batch(window) * math.prod(window) * 4 * (6 * base + 4 * len(a.classes))
        voxels = math.prod(min(n, e) for n, e in zip(image.shape, self.block_shape(image.shape, (256,) * 3, (64,) * 3)))
        return batch / max(1, voxels) + 2 + len(self.wanted()) * (1 if self.mode == "exact" else 6)

    # running ----------------------------------------------------------------------------------------------------------

    def __call__(self, image: np.ndarray, histogram: dict | None = None, *, site: Site) -> dict[str, np.ndarray]:
        a = self.about
        model = _model(self.model, _stamp(self.model), device_of(self.device))
        low, scale = self._normalisation(histogram)
        wanted = self.wanted()
        out = {name: np.zeros(site.write.shape, np.uint8) for name in wanted}
        zs, ys, xs = self._meeting(site.shape, site.write)
        windows = [(ty, tx) for ty in ys for tx in xs]
        size = max(self._batch((ty.window[1] - ty.window[0], tx.window[1] - tx.window[0])) for ty, tx in windows) if a.dims == 2 else 1
        if a.dims == 2 and self.mode == "exact":
            self._planes(model, image, low, scale, wanted, out, zs, windows, size, site)
        else:
            self._weighted(model, image, low, scale, wanted, out, zs, windows, site)
        return out

    def _normalisation(self, histogram: dict | None) -> tuple[np.float32, np.float32]:
        n = self.about.normalisation
        low, high = (percentile(histogram, n.low), percentile(histogram, n.high)) if n.method == "percentile" else (n.low, n.high)
        return np.float32(low), np.float32(1 / (high - low) if high > low else 1.0)

    def _gather(self, image: np.ndarray, site: Site, *tiles: Tile) -> np.ndarray:
        """The window's voxels, (Z, Y, X) in the image's dtype, reflected beyond the volume's ends."""
        at = [reflected(*t.window, n) - r for t, n, r in zip(tiles, site.shape, site.read.start)]
        return image[np.ix_(*at)]

    def _planes(self, model, image, low, scale, wanted, out, zs, windows, size, site) -> None:
        """Exact planes: several z of one window in a batch of fixed size; the last one is filled up with zeros."""
        for ty, tx in windows:
            h, w = ty.window[1] - ty.window[0], tx.window[1] - tx.window[0]
            n = self._batch((h, w))
            batch = np.zeros((n, 1, h, w), np.float32)
            for i in range(0, len(zs), n):
                some = zs[i : i + n]
                batch[:] = 0
                for k, tz in enumerate(some):
                    batch[k, 0] = (self._gather(image, site, tz, ty, tx)[0] - low) * scale
                scores = model.predict(batch)
                y0, y1 = max(ty.core[0], site.write.start[1]), min(ty.core[1], site.write.stop[1])
                x0, x1 = max(tx.core[0], site.write.start[2]), min(tx.core[1], site.write.stop[2])
                inner = (slice(y0 - ty.window[0], y1 - ty.window[0]), slice(x0 - tx.window[0], x1 - tx.window[0]))
                target = (slice(y0 - site.write.start[1], y1 - site.write.start[1]), slice(x0 - site.write.start[2], x1 - site.write.start[2]))
                for name, channels in wanted.items():
                    for k, tz in enumerate(some):
                        out[name][tz.core[0] - site.write.start[0]][target] = _quantised(_added(scores[k], channels)[inner])

    def _weighted(self, model, image, low, scale, wanted, out, zs, windows, site) -> None:
        """Blended planes, and 3D tiles of both modes: tiles added in the order of the grid, divided by the sum of their weights."""
        three = self.about.dims == 3
        starts = site.write.start
        layers = [zs] if three else [[z] for z in zs]
        for layer in layers:
            z_lo, z_hi = max(layer[0].core[0], starts[0]), min(layer[-1].core[1], site.write.stop[0])
            shape = (z_hi - z_lo, *site.write.shape[1:])
            sums = {name: np.zeros(shape, np.float32) for name in wanted}
            weights = np.zeros(shape, np.float32)
            for tz in layer:
                for ty, tx in windows:
                    patch = (self._gather(image, site, tz, ty, tx) - low) * scale
                    scores = model.predict(np.ascontiguousarray(patch.astype(np.float32)[None, None] if three else patch.astype(np.float32)[None]))[0]
                    tiles = (tz, ty, tx)
                    lo = [max(t.core[0], o) for t, o in zip(tiles, (z_lo, *starts[1:]))]
                    hi = [min(t.core[1], e) for t, e in zip(tiles, (z_hi, *site.write.stop[1:]))]
                    inner = tuple(slice(a - t.window[0], b - t.window[0]) for a, b, t in zip(lo, hi, tiles))
                    target = tuple(slice(a - o, b - o) for a, b, o in zip(lo, hi, (z_lo, *starts[1:])))
                    if self.mode == "exact":
                        weight = np.ones([b - a for a, b in zip(lo, hi)], np.float32)
                    else:
                        parts = [ramp(t, n, self.overlap)[a - t.core[0] : b - t.core[0]] for t, n, a, b in zip(tiles, site.shape, lo, hi)]
                        weight = parts[0][:, None, None] * parts[1][:, None] * parts[2]
                    for name, channels in wanted.items():
                        value = _added(scores, channels)
                        sums[name][target] += weight * (value if three else value[None])[inner]
                    weights[target] += weight
            for name in wanted:
                out[name][z_lo - starts[0] : z_hi - starts[0]] = _quantised(sums[name] / weights)


def _added(scores: np.ndarray, channels: list[int]) -> np.ndarray:
    """Sum of the channels of (classes, ...), in order."""
    value = scores[channels[0]]
    for c in channels[1:]:
        value = value + scores[c]
    return value


def _quantised(p: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(p * np.float32(255)), 0, 255).astype(np.uint8)


@register("infer")
@dataclass(frozen=True)
class Infer(Composite):
    """Probabilities (0..1, stored in 255 steps) of a network's classes for every voxel: one output for each class, named `step.class`.

    Normalisation is taken once from the whole volume's histogram, as the model says. Tiles lie on a grid of the volume."""

    serves = "steps 3 and 13: run the models on the whole set"
    ports = (Port("image", ("image",)),)

    model: Path_ = ""
    classes: Classes = None
    groups: Groups = field(default_factory=dict)
    mode: Mode = "exact"
    tile: Edge = None
    overlap: Overlap = 32
    device: Device = "auto"
    ignore_voxel_size: Ignore = False

    def files(self) -> tuple[str, ...]:
        return (self.model,)

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        if not self.model:
            raise RecipeError("'infer' needs a model: model: FILE.vemray or FILE.onnx")
        run = InferTiles(self.model, self.classes, self.groups, self.mode, self.tile, self.overlap, self.device, self.ignore_voxel_size)
        if run.about.normalisation.method == "percentile":
            return [Step(".histogram", Histogram(), inputs), Step("", run, {**inputs, "histogram": ".histogram"})]
        return [Step("", run, inputs)]
