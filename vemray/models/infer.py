"""Running a network over a volume in tiles, blockwise: the tiles belong to the volume, so blocks do not change a bit.

Every tile is always computed from the same voxels, in a batch of the same shape, at the same place in it, whatever block asks for it; a tile that
two blocks need is computed twice, and `block_shape` asks for blocks that rarely do."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import ModelError, RecipeError, nearest
from vemray.geometry import Box, Int3, Spacing
from vemray.models import files
from vemray.models.facts import normalised, restored
from vemray.models.sums import Sums, added, taken
from vemray.models.tiles import Tile, blend_tiles, even_edge, exact_tiles, ramp, reflected
from vemray.ops.base import ArraySpec, Composite, Filter, Operator, Port, Site, Step, register
from vemray.ops.histogram import Histogram

#: voxels that go through the network together: what keeps the activations of a small network in some hundred MB, or a GPU busy
BATCH_VOXELS = {"cpu": 1 << 18, "cuda": 1 << 22}
#: default tiles are at most about this long, and multiples of the usual chunk
MOST_EDGE, EDGE_UNIT = {2: 1024, 3: 96}, {2: 64, 3: 32}
#: a block of a 2D network is at least this thick
THICK = 32


@functools.lru_cache(maxsize=8)
def _facts(path: str, stamp: tuple) -> files.Facts:
    return files.load_facts(path)


@functools.lru_cache(maxsize=4)
def _model(path: str, stamp: tuple, device: str) -> files.Model:
    return files.load(path, device)


def device_of(asked: str) -> str:
    """'cpu' or 'cuda'. 'auto' is the GPU where the machine that plans has one that torch can use."""
    if asked != "auto":
        return asked
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


Path_ = Annotated[
    str,
    Field(
        description="model file (.vemray, .onnx, .czann, TorchScript) or BioImage.IO package (folder, .yaml, .zip), a relative path from the recipe's "
        "folder; or entry:NAME, a network of an installed package",
        json_schema_extra={"path": True},
    ),
]
Classes = Annotated[
    list[str] | None, Field(description="classes whose probability is wanted; default: all but the first where that is the background")
]
Groups = Annotated[
    dict[str, list[str]], Field(description="further outputs: name -> classes whose probabilities are added, e.g. cell: [cytoplasm, nucleus]")
]
Output = Annotated[
    Literal["probabilities", "classes"],
    Field(description="probabilities: a volume for each class; classes: one, 'classes', with the number of the likeliest class, 0 for the first"),
]
Mode = Annotated[
    Literal["exact", "blend"] | None,
    Field(
        description="exact: tiles with a halo as wide as the receptive field, equal to the whole plane; blend: overlapping tiles, smoothly weighted; "
        "default: exact for 2D networks, blend for 3D, whose halo would cost several times the tile"
    ),
]
Edge = Annotated[int | None, Field(gt=0, description="edge of a tile in voxels; default: whole planes up to 1024, else equal parts (3D: 96)")]
Overlap = Annotated[int | None, Field(gt=0, description="for blend: voxels that neighbouring tiles share, at least; default 32 (3D: 16)")]
Batch = Annotated[int | None, Field(gt=0, description="tiles that go through the network together; default: by their size and the device")]
Axes = Annotated[
    list[Literal["z", "y", "x"]] | None,
    Field(
        min_length=1,
        description="for a 2D network: the directions along which its planes are stacked, e.g. [z, y, x] for all three; each costs a pass. What one "
        "direction takes for a structure, or misses where it lies flat in the plane, the others set right. Default: z",
    ),
]
Rule = Annotated[Literal["mean", "median", "min", "max"], Field(description="how the probabilities of several directions become one")]
Ignore = Annotated[bool, Field(description="run although the volume's voxels differ by more than 5 per cent from those the model was trained on")]


@dataclass(frozen=True)
class Inference(Operator):
    """How a network is run: the parameters of `infer`, and of the operator that does it."""

    model: Path_ = ""
    classes: Classes = None
    groups: Groups = field(default_factory=dict)
    show: Output = "probabilities"
    mode: Mode = None
    tile: Edge = None
    overlap: Overlap = None
    batch: Batch = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="where the network runs; auto: on a GPU if the planning machine has one; results are equal within one kind"),
    ] = "auto"
    ignore_voxel_size: Ignore = False

    @classmethod
    def examples(cls):
        return []  # they need a model file: tests/models runs the laws on them

    def __hash__(self):
        return hash(json.dumps(vars(self)))

    def files(self) -> tuple[str, ...]:
        """The model's files, a sidecar among them: their contents are part of what the result is made from."""
        return files.parts(self.model) if self.model else ()


@register("infer_tiles", hidden=True)
@dataclass(frozen=True)
class InferTiles(Inference, Filter):
    """Probabilities of a network's classes, tile by tile of the volume's own grid. Outputs: name -> uint8 0..255 for 0..1, rounded to nearest; of a
    network that gives an image, name -> grey values of the input's type."""

    holds_model = True
    version = 3
    ports = (Port("image", ("image",)), Port("histogram", ("scalars",), optional=True), Port("mask", ("mask",), optional=True))

    device: Annotated[Literal["cpu", "cuda"], Field(description="where the network runs; results are equal within one kind of device")] = "cpu"
    axis: Annotated[Literal["z", "y", "x"], Field(description="for a 2D network: the axis that its planes are stacked along")] = "z"

    __hash__ = Inference.__hash__

    # Everything below the methods of the base works on the volume turned so that the planes are stacked along its first axis

    @property
    def _upright(self) -> InferTiles:
        return dataclasses.replace(self, axis="z")

    def _turn(self, zyx):
        """A triple, or an array (as a view), with the first axis and this one exchanged; twice gives the original."""
        other = "zyx".index(self.axis)
        if isinstance(zyx, np.ndarray):
            return zyx.swapaxes(0, other)
        out = list(zyx)
        out[0], out[other] = out[other], out[0]
        return tuple(out)

    def _turned(self, box: Box) -> Box:
        return Box(self._turn(box.start), self._turn(box.stop))

    def _turned_spec(self, spec: ArraySpec) -> ArraySpec:
        return dataclasses.replace(spec, shape=self._turn(spec.shape), spacing=Spacing(*self._turn(spec.spacing.zyx)))

    @property
    def about(self) -> files.Facts:
        return _facts(self.model, files.stamp(self.model))

    def facts(self) -> dict:
        package = files.engine(self.model)
        try:
            version = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            version = ""
        return {"device": self.device, "precision": "float32", "threads": 1, package: version}

    def wanted(self) -> dict[str, list[int]]:
        """Output name -> channels that are added for it."""
        known, image = self.about.classes, self.about.gives == "image"
        if image and (self.groups or self.show == "classes"):
            raise RecipeError(f"the model {self.model} gives an image, not classes: leave '{'groups' if self.groups else 'show'}' out.")
        if self.show == "classes":
            return {"classes": list(range(len(known)))}
        usual = known if image else known[self.about.background :] or known
        out = {name: [name] for name in (self.classes if self.classes is not None else usual)}
        out.update(self.groups)
        for name, channels in out.items():
            for c in channels:
                if c not in known:
                    raise RecipeError(f"the model {self.model} has no class '{c}'.{nearest(c, known)} It has: {', '.join(known)}.")
            if not channels or not name.replace("_", "a").isalnum():
                raise RecipeError(f"'{name}' cannot be an output: it needs a name of letters, digits and _, and at least one class.")
        if not out:
            raise RecipeError("'infer' has nothing to give: name a class or a group.")
        return {name: [known.index(c) for c in channels] for name, channels in out.items()}

    def check(self, image: ArraySpec, *_) -> None:
        a = self.about
        if a.channels != 1:
            colour = ", as colour images have" if a.channels in (3, 4) else ""
            raise ModelError(
                f"the model {self.model} takes {a.channels} channels{colour}; the volume is grey and has one. Use a model of one channel."
            )
        if a.dims == 3 and self.axis != "z":
            raise RecipeError(f"the model {self.model} is 3D and sees all directions at once: leave 'axes' out.")
        axes = slice(1 if a.dims == 2 else 0, 3)  # a 2D network never sees how far planes lie apart
        if a.voxel_nm is None and not self.ignore_voxel_size:
            installed = self.model.startswith(files.entry.PREFIX)
            where = "its facts" if installed else f'{os.path.basename(self.model)}.json beside it, {{"voxel_nm": [z, y, x]}}'
            raise ModelError(
                f"the model {self.model} does not say what voxels it was trained on. Write it into {where}, or say ignore_voxel_size: true."
            )
        off = 1.0 if a.voxel_nm is None else max(max(x, y) / min(x, y) for x, y in zip(a.voxel_nm[axes], self._turn(image.spacing.zyx)[axes]))
        if off > 1.05 and not self.ignore_voxel_size:
            trained = " x ".join(f"{v:g}" for v in a.voxel_nm)
            along = f" Planes stacked along {self.axis} have other pixels: leave it out of 'axes'." if self.axis != "z" else ""
            raise ModelError(
                f"the model {self.model} was trained on voxels of {trained} nm (z, y, x), the volume has {image.spacing}.{along} "
                "Use a pyramid level or a model that fits, or ignore_voxel_size: true."
            )
        if self.mode == "exact" and a.mode == "blend" and not any(a.halos):
            raise RecipeError(
                f"the model {self.model} does not say its halo, so tiles cannot be joined exactly: leave 'mode' out, or give the halo in a sidecar."
            )
        if image.dtype == "float64":
            raise RecipeError("'infer' takes integer or float32 images, not float64. Convert it with rescale.")
        wide = np.issubdtype(image.dtype, np.integer) and np.dtype(image.dtype).itemsize > 2
        if wide and (a.normalisation.method == "dtype" or a.gives == "image"):
            raise RecipeError(f"the model {self.model} takes images of 8 or 16 bits or float32, not {image.dtype}. Convert it with rescale.")
        if a.batch and self.batch and a.batch != self.batch:
            raise RecipeError(f"the model {self.model} takes batches of {a.batch} only: leave 'batch' out.")
        if a.window and self.tile:
            raise RecipeError(f"the model {self.model} takes tiles of {' x '.join(map(str, a.window))} only: leave 'tile' out.")
        if self._blend:
            shape = self._turn(image.shape)
            for n, edge, stride in zip(shape, self._edges(shape), a.strides):
                if stride > 1 and n > edge and self._shared > edge - stride:
                    raise RecipeError(f"overlap ({self._shared}) must be smaller than the tile ({edge}) by at least the network's stride ({stride}).")
        self.wanted()

    def output(self, image: ArraySpec, *_) -> dict[str, ArraySpec]:
        if self.about.gives == "image":
            return {name: image.like(self._dtype(image.dtype), "image") for name in self.wanted()}
        return {name: image.like(np.uint8, "labels" if self.show == "classes" else "probability") for name in self.wanted()}

    def _dtype(self, image) -> np.dtype:
        """Of the outputs: uint8, or for an image the input's integers, else float32."""
        if self.about.gives == "image":
            return np.dtype(image) if np.issubdtype(image, np.integer) else np.dtype(np.float32)
        return np.dtype(np.uint8)

    @property
    def _blend(self) -> bool:
        return (self.mode or self.about.mode or ("exact" if self.about.dims == 2 else "blend")) == "blend"

    @property
    def _shared(self) -> int:
        usual = 32 if self.about.dims == 2 else 16
        return self.overlap or min([usual, *(w // 2 for w in self.about.window or ())])

    # the tile grid ----------------------------------------------------------------------------------------------------

    def _edges(self, shape: Int3) -> Int3:
        """Edge of a tile along z, y, x: of its core in exact mode, of all of it in blend mode."""
        a = self.about
        if a.window:
            window = a.zyx(a.window, 1)
            return window if self._blend else tuple(w - 2 * h for w, h in zip(window, a.halos))
        edges = []
        for n, stride in zip(shape, a.strides):
            edges.append(-(-self.tile // stride) * stride if self.tile else even_edge(n, MOST_EDGE[a.dims], math.lcm(stride, EDGE_UNIT[a.dims])))
        return (1, *edges[1:]) if a.dims == 2 else tuple(edges)

    def tiles(self, shape: Int3) -> list[list[Tile]]:
        """Tiles along z, y, x. A 2D network takes each plane by itself."""
        a = self.about
        windows = a.zyx(a.window, 1) if a.window else (None, None, None)
        out = []
        for axis, (n, edge, halo, stride, window) in enumerate(zip(shape, self._edges(shape), a.halos, a.strides, windows)):
            if a.dims == 2 and axis == 0:
                out.append([Tile((z, z + 1), (z, z + 1)) for z in range(n)])
            elif self._blend:
                out.append(blend_tiles(n, edge, self._shared, stride, window))
            else:
                out.append(exact_tiles(n, edge, halo, stride, window))
        return out

    def _meeting(self, shape: Int3, box: Box) -> list[list[Tile]]:
        return [[t for t in ts if t.core[0] < b and t.core[1] > a] for ts, a, b in zip(self.tiles(shape), box.start, box.stop)]

    def read_box(self, write: Box, shape: Int3, spacing: Spacing) -> Box:
        if self.axis != "z":
            return self._turned(self._upright.read_box(self._turned(write), self._turn(shape), spacing))
        start, stop = [], []
        for ts, n in zip(self._meeting(shape, write), shape):
            where = [reflected(*t.window, n) for t in (ts[0], ts[-1])]  # whatever lies between two windows lies between their voxels
            where += [np.array([max(0, t.window[0]), min(n, t.window[1]) - 1]) for t in (ts[0], ts[-1])]
            start.append(min(int(w.min()) for w in where))
            stop.append(max(int(w.max()) for w in where) + 1)
        return Box(tuple(start), tuple(stop)).clip(shape)

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        """Blocks that hold whole tiles, so that none is computed for two: for a 2D network thin and wide."""
        if self.axis != "z":
            return self._turn(self._upright.block_shape(self._turn(shape), self._turn(block), self._turn(chunk)))
        a = self.about
        edges = self._edges(shape)
        if self._blend:  # its tiles lie across every border between blocks: fewer borders
            edges = [min(n, 2 * e) if n > e else e for n, e in zip(shape, edges)]

        def whole(axis: int) -> int:
            n, e, c = shape[axis], edges[axis], chunk[axis]
            aligned = math.lcm(e, c)
            return min(-(-n // c) * c, aligned if aligned <= 2048 else -(-e // c) * c)

        if a.dims == 3:
            return tuple(max(block[i], whole(i)) // whole(i) * whole(i) for i in range(3))
        return (-(-max(THICK, self._batch(shape)) // chunk[0]) * chunk[0], whole(1), whole(2))

    def _largest_window(self, shape: Int3) -> Int3:
        return tuple(max(t.window[1] - t.window[0] for t in ts) for ts in self.tiles(shape))

    def _batch(self, shape: Int3) -> int:
        """Planes a batch; 3D tiles go one by one."""
        a = self.about
        if a.batch or self.batch:
            return a.batch or self.batch
        if a.dims == 3:
            return 1
        fit = BATCH_VOXELS[self.device] // math.prod(self._largest_window(shape))
        return 1 << min(6, max(1, fit).bit_length() - 1)  # a power of two, as chunks are: blocks then seldom cut a batch

    def memory(self, image: ArraySpec, *_) -> float:
        if self.axis != "z":
            return self._upright.memory(self._turned_spec(image))
        a, shape = self.about, image.shape
        tiles = self._batch(shape) * math.prod(self._largest_window(shape))
        network = tiles * (a.memory if self.device == "cpu" else 0) + tiles * 4 * (2 + 3 * len(a.classes))
        block = self.block_shape(shape, (64,) * 3, (1,) * 3)
        layers = len(a.classes) if self.show == "classes" else len(self.wanted())
        summed = 0.0
        if self._blend:  # float32 sums, of a batch of planes or of all of a 3D block
            summed = 4.0 * (layers + 2) * (1 if a.dims == 3 else min(1.0, self._batch(shape) / min(shape[0], block[0])))
        voxels = math.prod(min(n, b) for n, b in zip(shape, block))
        return (network + (16 << 20)) / voxels + len(self.wanted()) * self._dtype(image.dtype).itemsize + summed + 1

    # running ----------------------------------------------------------------------------------------------------------

    def __call__(self, image: np.ndarray, histogram: dict | None = None, mask: np.ndarray | None = None, *, site: Site) -> dict[str, np.ndarray]:
        if self.axis != "z":
            there = Site(self._turn(site.shape), Spacing(*self._turn(site.spacing.zyx)), self._turned(site.read), self._turned(site.write))
            out = self._upright(self._turn(image), histogram, None if mask is None else self._turn(mask), site=there)
            return {name: np.ascontiguousarray(self._turn(a)) for name, a in out.items()}
        model = _model(self.model, files.stamp(self.model), self.device)
        constants = self.about.normalisation.constants(histogram, image.dtype)
        wanted = self.wanted()
        out = {name: np.zeros(site.write.shape, self._dtype(image.dtype)) for name in wanted}
        zs, ys, xs = self._meeting(site.shape, site.write)
        for slab in self._slabs(zs, site.shape):
            lo, hi = max(slab[0].core[0], site.write.start[0]), min(slab[-1].core[1], site.write.stop[0])
            box = Box((lo, *site.write.start[1:]), (hi, *site.write.stop[1:]))
            sink = Sums(box.shape, self._layers(wanted)) if self._blend else None
            for tiles in self._batches(slab, ys, xs, site.shape):
                if mask is not None:  # a tile that nobody asked for leaves its place in the batch empty
                    tiles = [t if t and mask[_core(t).intersect(box).within(site.read).slices].any() else None for t in tiles]
                    if not any(tiles):
                        continue
                scores = self._predict(model, image, constants, tiles, site)
                for s, t in zip(scores, tiles):
                    if t is None:
                        continue
                    part = _core(t).intersect(box)
                    if not part.size:
                        continue
                    inner = part.shift(tuple(-a.window[0] for a in t)).slices
                    values = (s if self.about.dims == 3 else s[:, None])[(slice(None), *inner)]
                    if sink is None:
                        self._store(values, wanted, out, part.within(site.write).slices, constants)
                    else:
                        sink.add(values, self._weights(t, part, site.shape), part.within(box).slices)
            if sink is not None:
                self._store(sink.mean(), wanted, out, box.within(site.write).slices, constants, merged=True)
        if mask is not None:
            for array in out.values():
                array *= mask[site.crop]
        return out

    def _slabs(self, zs: list[Tile], shape: Int3) -> Iterator[list[Tile]]:
        """Tiles along z that are finished together: all of a 3D network's; the planes of one batch of a 2D network's, which begins at a multiple
        of its size whatever the block."""
        if self.about.dims == 3:
            yield zs
            return
        n = self._batch(shape)
        for g in range(zs[0].core[0] // n, (zs[-1].core[0]) // n + 1):
            yield [t for t in zs if t.core[0] // n == g]

    def _batches(self, slab: list[Tile], ys: list[Tile], xs: list[Tile], shape: Int3) -> Iterator[list[tuple[Tile, Tile, Tile] | None]]:
        """Tiles that go through the network together, None where a place in the batch stays empty: always the same for the same tiles."""
        n = self._batch(shape)
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

    def _predict(self, model: files.Model, image: np.ndarray, constants, tiles, site: Site) -> np.ndarray:
        window = [t.window[1] - t.window[0] for t in next(t for t in tiles if t is not None)]
        batch = np.zeros((len(tiles), 1, *(window if self.about.dims == 3 else window[1:])), np.float32)
        for place, t in zip(batch, tiles):
            if t is not None:
                at = [reflected(*a.window, n) - r for a, n, r in zip(t, site.shape, site.read.start)]
                normalised(taken(image, at).reshape(place[0].shape), constants, place[0])
        return model.predict(batch)

    def _weights(self, tiles: tuple[Tile, Tile, Tile], part: Box, shape: Int3) -> np.ndarray:
        cut = [
            np.ones(b - a, np.float32) if self.about.dims == 2 and axis == 0 else ramp(t, n, self._shared)[a - t.core[0] : b - t.core[0]]
            for axis, (t, n, a, b) in enumerate(zip(tiles, shape, part.start, part.stop))
        ]
        return cut[0][:, None, None] * cut[1][:, None] * cut[2]

    def _layers(self, wanted: dict[str, list[int]]) -> list[list[int]]:
        """Channels that are added before blending, for each sum that is kept."""
        return [[c] for c in wanted["classes"]] if self.show == "classes" else list(wanted.values())

    def _store(self, values: np.ndarray, wanted: dict[str, list[int]], out: dict[str, np.ndarray], at, constants, merged: bool = False) -> None:
        """Put (channels, Z, Y, X), or layers that are `merged` already, into the outputs."""
        if self.show == "classes":
            out["classes"][at] = values.argmax(0)
            return
        for i, (name, channels) in enumerate(wanted.items()):
            if self.about.gives == "image":
                out[name][at] = restored(values[i if merged else channels[0]], constants, out[name].dtype)
                continue
            p = (values[i] if merged else added(values, channels)) * np.float32(255)
            np.rint(p, out=p)
            out[name][at] = np.clip(p, 0, 255, out=p)


@register("infer_merge", hidden=True)
@dataclass(frozen=True)
class InferMerge(Filter):
    """One probability of each class from those of several passes. The port's names are 'class.pass'."""

    ports = (Port("images", ("probability",), many=True),)

    rule: Rule = "mean"

    @classmethod
    def examples(cls):
        return [cls(rule) for rule in ("mean", "median", "min", "max")]

    def output(self, images: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
        return {key.partition(".")[0]: spec.like(np.uint8, "probability") for key, spec in images.items()}

    def memory(self, images: Mapping[str, ArraySpec]) -> float:
        return 3.0 * len(images) + 6

    def __call__(self, images: Mapping[str, np.ndarray], *, site: Site) -> dict[str, np.ndarray]:
        passes: dict[str, list[np.ndarray]] = {}
        for key, array in images.items():
            passes.setdefault(key.partition(".")[0], []).append(array)
        return {name: self._merged(arrays) for name, arrays in passes.items()}

    def _merged(self, arrays: list[np.ndarray]) -> np.ndarray:
        low, high = functools.reduce(np.minimum, arrays), functools.reduce(np.maximum, arrays)
        if self.rule in ("min", "max"):
            return low if self.rule == "min" else high
        total = functools.reduce(np.add, arrays, np.uint16(0))
        if self.rule == "median" and len(arrays) == 3:
            return (total - low - high).astype(np.uint8)
        n = np.uint16(len(arrays))
        return ((total + n // np.uint16(2)) // n).astype(np.uint8)  # in whole numbers, rounded to nearest

    def example_inputs(self, rng, shape, spacing):
        spec = ArraySpec(tuple(shape), "uint8", Spacing(*spacing), "probability")
        names = [f"images.{c}.{a}" for c in ("one", "other") for a in "zyx"]
        return {n: rng.integers(0, 256, shape, dtype=np.uint8) for n in names}, dict.fromkeys(names, spec)


@register("infer")
@dataclass(frozen=True)
class Infer(Inference, Composite):
    """Probabilities (0..1, stored in 255 steps) of a network's classes for every voxel: one output for each class, named `step.class`. Of a network
    that gives an image (a denoiser) the image, `step.output`: of the input's type if that is of integers, else float32.

    Normalisation is taken once from the whole volume's histogram, as the model says. Tiles lie on a grid of the volume, so a crop that is a block of
    the whole gets the same values. Beyond the volume's ends the image is reflected to a whole number of the network's strides, and then the network's
    own padding acts. A 2D network may go through the planes along several `axes`, the results joined by `rule`."""

    serves = "steps 3 and 13: run the models on the whole set"
    ports = (
        Port("image", ("image",), doc="of the voxel size that the model was trained on"),
        Port("mask", ("mask",), optional=True, doc="where probabilities are wanted: 0 elsewhere, and tiles without any of it are not computed"),
    )

    axes: Axes = None
    rule: Rule = "mean"

    __hash__ = Inference.__hash__

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        if not self.model:
            raise RecipeError("'infer' needs a model: model: FILE.vemray, .onnx, .czann, .pt, a BioImage.IO package or entry:NAME")
        axes = list(dict.fromkeys(self.axes or ["z"]))
        own = {**{f.name: getattr(self, f.name) for f in dataclasses.fields(Inference)}, "device": device_of(self.device)}
        run = {axis: InferTiles(**own, axis=axis) for axis in axes}
        steps, first = [], run[axes[0]]
        if first.about.normalisation.needs_histogram:
            steps.append(Step(".histogram", Histogram(), {"image": inputs["image"]}))
            inputs = {**inputs, "histogram": ".histogram"}
        if len(axes) == 1:
            return [*steps, Step("", first, inputs)]
        if first.about.gives == "image":
            raise RecipeError(f"the model {self.model} gives an image, which is not merged from several 'axes': run them one by one.")
        if self.show == "classes":
            raise RecipeError("several 'axes' give probabilities: leave 'show' out, and compare them afterwards.")
        steps += [Step(f".along_{axis}", op, inputs) for axis, op in run.items()]
        return [*steps, Step("", InferMerge(self.rule), {f"images.{name}.{a}": f".along_{a}.{name}" for name in first.wanted() for a in axes})]


def _core(t: tuple[Tile, Tile, Tile]) -> Box:
    return Box(tuple(a.core[0] for a in t), tuple(a.core[1] for a in t))
