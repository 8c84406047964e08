"""One network over a volume in tiles. `infer` runs one, or an ensemble of them, each on a tile grid of its own.

Every tile is always computed from the same voxels, in a batch of the same shape, at the same place in it, whatever block asks for it. All boxes
and shapes here are of the volume turned so that a 2D network's planes are stacked along its first axis."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vemray.errors import ModelError, RecipeError
from vemray.geometry import Box, Int3, Spacing
from vemray.models import files
from vemray.models.facts import normalised
from vemray.models.sums import Sums, picked, taken
from vemray.models.tiles import Tile, blend_tiles, even_edge, exact_tiles, ramp, reflected
from vemray.ops.base import ArraySpec, Site

#: bytes of the activations of planes that go through the network together; a GPU needs as many to be busy. Never what is free just now: the last bit of a
#: result may depend on the batch, which so follows from the model and the tile alone
BATCH_BYTES = {"cpu": 144 << 20, "cuda": 2 << 30}
#: batches that a GPU has to do while one is taken from it
AHEAD = {"cpu": 0, "cuda": 1}
#: default tiles are at most about this long, and multiples of the usual chunk
MOST_EDGE, EDGE_UNIT = {2: 1024, 3: 96}, {2: 64, 3: 32}
#: a probability may lie so far outside of 0..1, as those of networks do that are not made to stay within; it is clipped then
PLAUSIBLE = 0.5
#: a block of a 2D network is at least this thick
THICK = 32

Tile3 = tuple[Tile, Tile, Tile]


@functools.lru_cache(maxsize=16)
def _facts(path: str, stamp: tuple) -> files.Facts:
    return files.load_facts(path)


@functools.lru_cache(maxsize=16)
def _model(path: str, stamp: tuple, device: str, precision: str) -> files.Model:
    return files.load(path, device, precision)


@dataclass(frozen=True)
class View:
    """A symmetry of the tile: axes, counted from the last, that are flipped, and then whether y and x are exchanged."""

    flip: tuple[int, ...] = ()
    exchange: bool = False

    def there(self, x: np.ndarray) -> np.ndarray:
        x = np.flip(x, self.flip) if self.flip else x
        return x.swapaxes(-1, -2) if self.exchange else x

    def back(self, y: np.ndarray) -> np.ndarray:
        y = y.swapaxes(-1, -2) if self.exchange else y
        return np.flip(y, self.flip) if self.flip else y


def views(tta: str, dims: int) -> tuple[View, ...]:
    """What test-time augmentation shows the network, the tile as it is first. Powers of two: their mean is exact in floats."""
    if tta == "none":
        return (View(),)
    axes = range(-dims, 0)
    flips = [f for n in range(dims + 1) for f in itertools.combinations(axes, n)]
    return tuple(View(f, e) for e in ((False, True) if tta == "turns" else (False,)) for f in flips)


@dataclass(frozen=True)
class Member:
    """A network and how it is run: the parameters of `infer` that concern its tiles."""

    path: str
    mode: str | None = None
    tile: int | None = None
    overlap: int | None = None
    batch: int | None = None
    device: str = "cpu"
    tta: str = "none"
    precision: str = "float32"

    @property
    def about(self) -> files.Facts:
        return _facts(self.path, files.stamp(self.path))

    def model(self) -> files.Model:
        return _model(self.path, files.stamp(self.path), self.device, self.precision)

    @property
    def blend(self) -> bool:
        a = self.about
        usual = "exact" if a.dims == 2 and a.halo is not None else "blend"
        return (self.mode or a.mode or usual) == "blend"

    @property
    def shared(self) -> int:
        usual = 32 if self.about.dims == 2 else 16
        return self.overlap or min([usual, *(w // 2 for w in self.about.window or ())])

    def check(self, image: ArraySpec, axis: str, any_voxels: bool) -> None:
        """RecipeError or ModelError where the network cannot be run on `image`, turned already from `axis`."""
        a = self.about
        if a.channels != 2 * a.context + 1:
            colour = ", as colour images have" if a.channels in (3, 4) else ""
            planes = f" If they are neighbouring planes, say so in its facts: context: {a.channels // 2}." if a.dims == 2 and a.channels % 2 else ""
            raise ModelError(
                f"the model {self.path} takes {a.channels} channels{colour}; the volume is grey and has one. Use a model of one channel.{planes}"
            )
        if a.dims == 3 and axis != "z":
            raise RecipeError(f"the model {self.path} is 3D and sees all directions at once: leave 'axes' out.")
        self._check_voxels(image, axis, any_voxels)
        self._check_views(any_voxels)
        if a.halo is None and not self.blend:
            raise RecipeError(
                f"the model {self.path} sees all of its tile (its normalisation takes statistics from it), so tiles cannot be joined exactly: leave "
                "'mode' out, or say mode: blend."
            )
        if self.mode == "exact" and a.mode == "blend" and not any(a.halos):
            raise RecipeError(
                f"the model {self.path} does not say its halo, so tiles cannot be joined exactly: leave 'mode' out, or give the halo in a sidecar."
            )
        wide = np.issubdtype(image.dtype, np.integer) and np.dtype(image.dtype).itemsize > 2
        if wide and (a.normalisation.method == "dtype" or a.gives == "image"):
            raise RecipeError(f"the model {self.path} takes images of 8 or 16 bits or float32, not {image.dtype}. Convert it with rescale.")
        if self.precision != "float32" and not self.path.endswith(".vemray"):
            raise RecipeError(f"the model {self.path} runs in float32 only: leave 'precision' out, or use a .vemray model.")
        if a.batch and self.batch and a.batch != self.batch:
            raise RecipeError(f"the model {self.path} takes batches of {a.batch} only: leave 'batch' out.")
        if a.window and self.tile:
            raise RecipeError(f"the model {self.path} takes tiles of {' x '.join(map(str, a.window))} only: leave 'tile' out.")
        if self.blend:
            for n, edge, stride in zip(image.shape, self.edges(image.shape), a.strides):
                if stride > 1 and n > edge and self.shared > edge - stride:
                    raise RecipeError(f"overlap ({self.shared}) must be smaller than the tile ({edge}) by at least the network's stride ({stride}).")

    def _check_voxels(self, image: ArraySpec, axis: str, any_voxels: bool) -> None:
        a = self.about
        if any_voxels:
            return
        if a.voxel_nm is None:
            installed = self.path.startswith(files.entry.PREFIX)
            where = "its facts" if installed else f'{os.path.basename(self.path)}.json beside it, {{"voxel_nm": [z, y, x]}}'
            raise ModelError(
                f"the model {self.path} does not say what voxels it was trained on. Write it into {where}, or say ignore_voxel_size: true."
            )
        seen = slice(1 if a.dims == 2 and not a.context else 0, 3)  # a network of single planes never sees how far they lie apart
        if max(max(x, y) / min(x, y) for x, y in zip(a.voxel_nm[seen], image.spacing.zyx[seen])) > 1.05:
            trained = " x ".join(f"{v:g}" for v in a.voxel_nm)
            along = f" Planes stacked along {axis} have other pixels: leave it out of 'axes'." if axis != "z" else ""
            turned = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 1, 0)}[axis]
            raise ModelError(
                f"the model {self.path} was trained on voxels of {trained} nm (z, y, x), the volume has "
                f"{Spacing(*[image.spacing.zyx[i] for i in turned])}.{along} {self._way_out(image, seen)}, or ignore_voxel_size: true."
            )

    def _way_out(self, image: ArraySpec, seen: slice) -> str:
        """What to do with voxels of another size."""
        if all(x < 1.05 * m for m, x in zip(self.about.voxel_nm[seen], image.spacing.zyx[seen])):
            return (
                "Use a level of its pyramid with such voxels (inputs: {of: ..., level: ...}) or 'downsample' it, and bring the result back with "
                "'upsample'; or use a model that fits"
            )
        return "Use a model that fits"

    def _check_views(self, any_voxels: bool) -> None:
        a = self.about
        if self.tta != "turns":
            return
        if a.dims == 3:
            raise RecipeError(f"the model {self.path} is 3D, and tta: turns is for networks of planes: say tta: flips.")
        for what, value in (("stride", a.strides), ("halo", a.halos), ("window", a.zyx(a.window, 1) if a.window else (1, 1, 1))):
            if value[1] != value[2]:
                raise RecipeError(f"tta: turns exchanges y and x, but the model {self.path} has a {what} of {value[1]} x {value[2]}: say tta: flips.")
        if a.voxel_nm and not any_voxels and abs(a.voxel_nm[1] / a.voxel_nm[2] - 1) > 0.05:
            raise RecipeError(
                f"tta: turns exchanges y and x, but the model {self.path} was trained on pixels of {a.voxel_nm[1]:g} x {a.voxel_nm[2]:g} nm: "
                "say tta: flips."
            )

    # the tile grid ----------------------------------------------------------------------------------------------------

    def edges(self, shape: Int3) -> Int3:
        """Edge of a tile along z, y, x: of its core in exact mode, of all of it in blend mode."""
        a = self.about
        if a.window:
            window = a.zyx(a.window, 1)
            return window if self.blend else tuple(w - 2 * h for w, h in zip(window, a.halos))
        edges = []
        for n, stride in zip(shape, a.strides):
            edges.append(-(-self.tile // stride) * stride if self.tile else even_edge(n, MOST_EDGE[a.dims], math.lcm(stride, EDGE_UNIT[a.dims])))
        return (1, *edges[1:]) if a.dims == 2 else tuple(edges)

    def tiles(self, shape: Int3) -> list[list[Tile]]:
        """Tiles along z, y, x. A 2D network takes each plane by itself, with the planes beside it that it has channels for."""
        a = self.about
        windows = a.zyx(a.window, 1) if a.window else (None, None, None)
        out = []
        for axis, (n, edge, halo, stride, window) in enumerate(zip(shape, self.edges(shape), a.halos, a.strides, windows)):
            if a.dims == 2 and axis == 0:
                out.append([Tile((z - a.context, z + a.context + 1), (z, z + 1)) for z in range(n)])
            elif self.blend:
                out.append(blend_tiles(n, edge, self.shared, stride, window))
            else:
                out.append(exact_tiles(n, edge, halo, stride, window))
        return out

    def meeting(self, shape: Int3, box: Box) -> list[list[Tile]]:
        return [[t for t in ts if t.core[0] < b and t.core[1] > a] for ts, a, b in zip(self.tiles(shape), box.start, box.stop)]

    def read_box(self, write: Box, shape: Int3) -> Box:
        start, stop = [], []
        for ts, n in zip(self.meeting(shape, write), shape):
            ends = (ts[0], ts[-1])
            where = [reflected(*t.window, n) for t in ends]  # whatever lies between two windows lies between their voxels
            where += [np.array([max(0, t.window[0]), min(n, t.window[1]) - 1]) for t in ends]
            start.append(min(int(w.min()) for w in where))
            stop.append(max(int(w.max()) for w in where) + 1)
        return Box(tuple(start), tuple(stop)).clip(shape)

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        """Blocks that hold whole tiles, so that none is computed for two: for a 2D network thin and wide."""
        a = self.about
        edges = self.edges(shape)
        if self.blend:  # its tiles lie across every border between blocks: fewer borders
            edges = [min(n, 2 * e) if n > e else e for n, e in zip(shape, edges)]

        def whole(axis: int) -> int:
            n, e, c = shape[axis], edges[axis], chunk[axis]
            aligned = math.lcm(e, c)
            return min(-(-n // c) * c, aligned if aligned <= 2048 else -(-e // c) * c)

        if a.dims == 3:
            return tuple(max(block[i], whole(i)) // whole(i) * whole(i) for i in range(3))
        return (-(-max(THICK, self.places(shape)) // chunk[0]) * chunk[0], whole(1), whole(2))

    def window_voxels(self, shape: Int3) -> int:
        """Of the largest tile."""
        tiles = self.tiles(shape)[1:] if self.about.dims == 2 else self.tiles(shape)
        return math.prod(max(t.window[1] - t.window[0] for t in ts) for ts in tiles)

    def places(self, shape: Int3) -> int:
        """Planes a batch; 3D tiles go one by one."""
        a = self.about
        if a.batch or self.batch:
            return a.batch or self.batch
        if a.dims == 3:
            return 1
        fit = int(BATCH_BYTES[self.device] // (self.window_voxels(shape) * a.memory))
        return 1 << min(6, max(1, fit).bit_length() - 1)  # a power of two, as chunks are: blocks then seldom cut a batch

    def network_bytes(self, shape: Int3) -> float:
        """What a batch takes, input and output with it."""
        a = self.about
        views_held = 0 if self.tta == "none" else a.channels + len(a.classes)
        a_voxel = (a.memory if self.device == "cpu" else 0) + 4 * (1 + a.channels + 3 * len(a.classes) + views_held)
        return self.places(shape) * self.window_voxels(shape) * a_voxel

    def sums_bytes(self, shape: Int3, block: Int3, layers: int) -> float:
        """Of blending, for each voxel of the block: float32 sums of a batch of planes, or of all of a 3D block."""
        if not self.blend:
            return 0.0
        return 4.0 * (layers + 2) * (1 if self.about.dims == 3 else min(1.0, self.places(shape) / min(shape[0], block[0])))

    # running ----------------------------------------------------------------------------------------------------------

    def values(self, image: np.ndarray, histogram: dict | None, mask: np.ndarray | None, site: Site, layers: list[list[int]]) -> Iterator:
        """(box, values) over the write box: for each of the `layers` the sum of its channels, float32 over the box. What no tile was computed for is
        left out, or 0."""
        model, dims = self.model(), self.about.dims
        constants = self.constants(histogram, image.dtype)
        zs, ys, xs = self.meeting(site.shape, site.write)
        for slab in self._slabs(zs, site.shape):
            lo, hi = max(slab[0].core[0], site.write.start[0]), min(slab[-1].core[1], site.write.stop[0])
            box = Box((lo, *site.write.start[1:]), (hi, *site.write.stop[1:]))
            sink = Sums(box.shape, len(layers)) if self.blend else None
            batches = self._asked(self._batches(slab, ys, xs, site.shape), mask, box, site)
            for tiles, scores in self._predicted(model, image, constants, batches, site):
                for s, t in zip(scores, tiles):
                    part = _core(t).intersect(box) if t else None
                    if not part or not part.size:
                        continue
                    origin = [a.window[0] for a in t]
                    if dims == 2:
                        s, origin[0] = s[:, None], t[0].core[0]
                    s = s[(slice(None), *part.shift(tuple(-o for o in origin)).slices)]
                    self._check_scores(s, part, image, mask, site)
                    found = picked(s, layers)
                    if sink is None:
                        yield part, found
                    else:
                        sink.add(found, self._weights(t, part, site.shape), part.within(box).slices)
            if sink is not None:
                yield box, sink.mean()

    def _check_scores(self, scores: np.ndarray, part: Box, image: np.ndarray, mask: np.ndarray | None, site: Site) -> None:
        """ModelError for what is no probability, or no number, where it is wanted."""
        low, high = (-PLAUSIBLE, 1 + PLAUSIBLE) if self.about.gives == "probabilities" else (-np.inf, np.inf)
        if low < scores.min() and scores.max() < high:  # false for NaN
            return
        bad = ~((low < scores) & (scores < high))
        if mask is not None:
            bad &= mask[part.within(site.read).slices]
        if not bad.any():
            return
        if not np.isfinite(scores[bad]).all():
            source = "the image holds such values" if not np.isfinite(image).all() else "look at its weights and its normalisation"
            raise ModelError(f"{self.path}: the network gives NaN or infinity: {source}.")
        raise ModelError(
            f"{self.path}: the network gives values from {scores.min():.3g} to {scores.max():.3g}, which are no probabilities. Say in its "
            "facts what makes them such: activation: softmax or sigmoid."
        )

    def constants(self, histogram: dict | None, dtype):
        return self.about.normalisation.constants(histogram, dtype)

    def _slabs(self, zs: list[Tile], shape: Int3) -> Iterator[list[Tile]]:
        """Tiles along z that are finished together: all of a 3D network's; the planes of one batch of a 2D network's, which begins at a multiple
        of its size whatever the block."""
        if self.about.dims == 3:
            yield zs
            return
        n = self.places(shape)
        for g in range(zs[0].core[0] // n, (zs[-1].core[0]) // n + 1):
            yield [t for t in zs if t.core[0] // n == g]

    def _batches(self, slab: list[Tile], ys: list[Tile], xs: list[Tile], shape: Int3) -> Iterator[list[Tile3 | None]]:
        """Tiles that go through the network together, None where a place in the batch stays empty: always the same for the same tiles."""
        n = self.places(shape)
        for ty in ys:
            for tx in xs:
                if self.about.dims == 3:  # one tile a batch, unless the file asks for more places
                    for tz in slab:
                        yield [(tz, ty, tx), *[None] * (n - 1)]
                else:
                    first = slab[0].core[0] // n * n
                    places = n if self.about.batch else min(n, shape[0] - first)
                    filled = {t.core[0] - first: (t, ty, tx) for t in slab}
                    yield [filled.get(i) for i in range(places)]

    def _asked(self, batches: Iterator, mask: np.ndarray | None, box: Box, site: Site) -> Iterator[list[Tile3 | None]]:
        """A tile that nobody asked for leaves its place in the batch empty, and a batch without any is left out."""
        for tiles in batches:
            if mask is not None:
                tiles = [t if t and mask[_core(t).intersect(box).within(site.read).slices].any() else None for t in tiles]
            if any(tiles):
                yield tiles

    def _predicted(self, model: files.Model, image: np.ndarray, constants, batches: Iterator, site: Site) -> Iterator:
        """(tiles, scores) in order. While a GPU has one batch, the next is cut and sent, and only then the first taken from it."""
        begun: deque = deque()
        for tiles in batches:
            begun.append((tiles, self._begin(model, image, constants, tiles, site)))
            if len(begun) > AHEAD[self.device]:
                tiles, end = begun.popleft()
                yield tiles, end()
        for tiles, end in begun:
            yield tiles, end()

    def _begin(self, model: files.Model, image: np.ndarray, constants, tiles: list[Tile3 | None], site: Site):
        """Starts to predict; returns what gives the scores."""
        a = self.about
        window = [t.window[1] - t.window[0] for t in next(t for t in tiles if t is not None)]
        batch = np.zeros((len(tiles), a.channels, *window[3 - a.dims :]), np.float32)
        for place, t in zip(batch, tiles):
            if t is not None:
                at = [reflected(*w.window, n) - r for w, n, r in zip(t, site.shape, site.read.start)]
                normalised(taken(image, at).reshape(place.shape), constants, place)
        shown = views(self.tta, a.dims)
        if len(shown) == 1:
            return model.begin(batch)
        return functools.partial(self._mean_of, model, batch, shown)

    @staticmethod
    def _mean_of(model: files.Model, batch: np.ndarray, shown: tuple[View, ...]) -> np.ndarray:
        total = None
        for view in shown:
            y = view.back(model.predict(view.there(batch)))
            total = y if total is None else np.add(total, y, out=total)
        total *= np.float32(1 / len(shown))
        return total

    def _weights(self, tiles: Tile3, part: Box, shape: Int3) -> np.ndarray:
        cut = [
            np.ones(b - a, np.float32) if self.about.dims == 2 and axis == 0 else ramp(t, n, self.shared)[a - t.core[0] : b - t.core[0]]
            for axis, (t, n, a, b) in enumerate(zip(tiles, shape, part.start, part.stop))
        ]
        return cut[0][:, None, None] * cut[1][:, None] * cut[2]


def _core(t: Tile3) -> Box:
    return Box(tuple(a.core[0] for a in t), tuple(a.core[1] for a in t))
