"""Running networks over a volume in tiles, blockwise: the tiles belong to the volume, so blocks do not change a bit.

A tile that two blocks need is computed twice, and `block_shape` asks for blocks that rarely do. How one network goes over a volume: member.py."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vemray.errors import ModelError, RecipeError, nearest
from vemray.geometry import Box, Int3, Spacing
from vemray.models import files
from vemray.models.facts import restored
from vemray.models.member import Member
from vemray.ops.base import ArraySpec, Composite, Filter, Operator, Port, Site, Step, register
from vemray.ops.histogram import Histogram

#: planes of an ensemble's sums that become bytes together
STRIP = 16
#: bytes that torch or ONNX Runtime takes at its first call, whatever the network
LIBRARY = 32 << 20


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
    str | list[str],
    Field(
        description="model file (.vemray, .onnx, .czann, TorchScript) or BioImage.IO package (folder, .yaml, .zip), a relative path from the recipe's "
        "folder; or entry:NAME, a network of an installed package. A list of them is an ensemble, whose probabilities are averaged: they must know the same classes and voxels",
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
Tta = Annotated[
    Literal["none", "flips", "turns"],
    Field(
        description="test-time augmentation: each tile is shown to the network mirrored too, and the results, mirrored back, are averaged. flips: 4 times "
        "(3D: 8); turns: also with y and x exchanged, 8 times, for 2D networks. Costs as many times the computing"
    ),
]
Precision = Annotated[
    Literal["float32", "bf16", "fp16"],
    Field(
        description="numbers that the network computes with, of .vemray models. bf16 and fp16 are faster where the processor has them (GPUs; CPUs with "
        "AVX-512 BF16: bf16); of a trained network nearly all probabilities differ from float32's by less than 0.01 (bf16) or 0.002 (fp16)"
    ),
]
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
    tta: Tta = "none"
    precision: Precision = "float32"
    ignore_voxel_size: Ignore = False

    @property
    def models(self) -> list[str]:
        """Its files, one or an ensemble's."""
        return [self.model] if isinstance(self.model, str) else self.model

    @classmethod
    def examples(cls):
        return []  # they need a model file: tests/models runs the laws on them

    def __hash__(self):
        return hash(json.dumps(vars(self)))

    def files(self) -> tuple[str, ...]:
        """The models' files, sidecars among them: their contents are part of what the result is made from."""
        return tuple(f for m in self.models if m for f in files.parts(m))


@register("infer_tiles", hidden=True)
@dataclass(frozen=True)
class InferTiles(Inference, Filter):
    """Probabilities of a network's classes, tile by tile of the volume's own grid. Outputs: name -> uint8 0..255 for 0..1, rounded to nearest; of a
    network that gives an image, name -> grey values of the input's type."""

    holds_model = True
    version = 4
    ports = (Port("image", ("image",)), Port("histogram", ("scalars",), optional=True), Port("mask", ("mask",), optional=True))

    device: Annotated[Literal["cpu", "cuda"], Field(description="where the network runs; results are equal within one kind of device")] = "cpu"
    axis: Annotated[Literal["z", "y", "x"], Field(description="for a 2D network: the axis that its planes are stacked along")] = "z"

    __hash__ = Inference.__hash__

    # The members work on the volume turned so that the planes are stacked along its first axis

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
    def members(self) -> list[Member]:
        return [Member(m, self.mode, self.tile, self.overlap, self.batch, self.device, self.tta, self.precision) for m in self.models]

    @property
    def about(self) -> files.Facts:
        """Of the first model: in what else counts here the others are equal to it."""
        return self.members[0].about

    @property
    def named(self) -> str:
        return f"the model{'s' * (len(self.models) > 1)} {', '.join(self.models)}"

    def facts(self) -> dict:
        versions = {}
        for package in dict.fromkeys(map(files.engine, self.models)):
            try:
                versions[package] = importlib.metadata.version(package).split("+")[0]
            except importlib.metadata.PackageNotFoundError:
                versions[package] = ""
        return {"device": self.device, "precision": self.precision, "threads": 1, **versions}

    def wanted(self) -> dict[str, list[int]]:
        """Output name -> channels that are added for it."""
        known, image = self.about.classes, self.about.gives == "image"
        if image and (self.groups or self.show == "classes"):
            raise RecipeError(f"{self.named} gives an image, not classes: leave '{'groups' if self.groups else 'show'}' out.")
        if self.show == "classes":
            if self.classes is not None or self.groups:
                raise RecipeError(f"show: classes gives the likeliest of all: leave '{'groups' if self.groups else 'classes'}' out.")
            return {"classes": list(range(len(known)))}
        usual = known if image else known[self.about.background :] or known
        out = {name: [name] for name in (self.classes if self.classes is not None else usual)}
        out.update(self.groups)
        for name, channels in out.items():
            for c in channels:
                if c not in known:
                    raise RecipeError(f"{self.named} has no class '{c}'.{nearest(c, known)} It has: {', '.join(known)}.")
            if not channels or not name.replace("_", "a").isalnum():
                raise RecipeError(f"'{name}' cannot be an output: it needs a name of letters, digits and _, and at least one class.")
        if not out:
            raise RecipeError("'infer' has nothing to give: name a class or a group.")
        return {name: [known.index(c) for c in channels] for name, channels in out.items()}

    def check(self, image: ArraySpec, *_) -> None:
        if image.dtype == "float64":
            raise RecipeError("'infer' takes integer or float32 images, not float64. Convert it with rescale.")
        self._check_ensemble()
        for member in self.members:
            member.check(self._turned_spec(image), self.axis, self.ignore_voxel_size)
        self.wanted()

    def _check_ensemble(self) -> None:
        first, *others = self.members
        for other in others:
            a, b = first.about, other.about
            if a.classes != b.classes:
                raise ModelError(
                    f"an ensemble's models know the same classes in the same order; {first.path} knows {', '.join(a.classes)}, but {other.path} "
                    f"{', '.join(b.classes)}. Leave one out."
                )
            if "image" in (a.gives, b.gives):
                raise RecipeError(f"an ensemble averages probabilities, but {(first if a.gives == 'image' else other).path} gives an image.")
            if a.voxel_nm != b.voxel_nm and not self.ignore_voxel_size:
                one, two = (" x ".join(f"{v:g}" for v in x.voxel_nm) + " nm" if x.voxel_nm else "unknown voxels" for x in (a, b))
                raise ModelError(
                    f"an ensemble's models were trained on the same voxels; {first.path} was on {one}, but {other.path} on {two}. Leave one out, or say "
                    "ignore_voxel_size: true."
                )

    def output(self, image: ArraySpec, *_) -> dict[str, ArraySpec]:
        if self.about.gives == "image":
            return {name: image.like(self._dtype(image.dtype), "image") for name in self.wanted()}
        return {name: image.like(np.uint8, "labels" if self.show == "classes" else "probability") for name in self.wanted()}

    def _dtype(self, image) -> np.dtype:
        """Of the outputs: uint8, or for an image the input's integers, else float32."""
        if self.about.gives == "image":
            return np.dtype(image) if np.issubdtype(image, np.integer) else np.dtype(np.float32)
        return np.dtype(np.uint8)

    def read_box(self, write: Box, shape: Int3, spacing: Spacing) -> Box:
        boxes = [m.read_box(self._turned(write), self._turn(shape)) for m in self.members]
        return self._turned(Box(tuple(map(min, *[b.start for b in boxes] * 2)), tuple(map(max, *[b.stop for b in boxes] * 2))))

    def block_shape(self, shape: Int3, block: Int3, chunk: Int3) -> Int3:
        """Blocks that hold whole tiles of the largest."""
        blocks = [m.block_shape(self._turn(shape), self._turn(block), self._turn(chunk)) for m in self.members]
        return self._turn(tuple(map(max, *blocks * 2)))

    def memory(self, image: ArraySpec, *_) -> float:
        members, shape = self.members, self._turn(image.shape)
        block = self._turn(self.block_shape(image.shape, (64,) * 3, (1,) * 3))
        layers = len(self._layers(self.wanted()))
        kept = max(m.sums_bytes(shape, block, layers) for m in members) + (4.0 * layers if len(members) > 1 else 0)
        voxels = math.prod(min(n, b) for n, b in zip(shape, block))
        network = max(m.network_bytes(shape) for m in members)
        return (network + (16 << 20)) / voxels + len(self.wanted()) * self._dtype(image.dtype).itemsize + kept + 1

    def fixed_memory(self) -> int:
        """The networks, which stay, as read and as the library lays their weights out; and what the library loads when it first computes."""
        return 3 * sum(os.path.getsize(f) for f in self.files() if os.path.isfile(f)) + LIBRARY

    def __call__(self, image: np.ndarray, histogram: dict | None = None, mask: np.ndarray | None = None, *, site: Site) -> dict[str, np.ndarray]:
        if self.axis != "z":
            there = Site(self._turn(site.shape), Spacing(*self._turn(site.spacing.zyx)), self._turned(site.read), self._turned(site.write))
            out = self._upright(self._turn(image), histogram, None if mask is None else self._turn(mask), site=there)
            return {name: np.ascontiguousarray(self._turn(a)) for name, a in out.items()}
        wanted, members = self.wanted(), self.members
        layers = self._layers(wanted)
        out = {name: np.zeros(site.write.shape, self._dtype(image.dtype)) for name in wanted}
        if len(members) == 1:
            constants = members[0].constants(histogram, image.dtype)
            for box, values in members[0].values(image, histogram, mask, site, layers):
                self._store(values, out, box.within(site.write).slices, constants)
        else:
            self._store_mean(members, image, histogram, mask, site, layers, out)
        if mask is not None:
            for array in out.values():
                array *= mask[site.crop]
        return out

    def _store_mean(self, members: list[Member], image, histogram, mask, site: Site, layers: list[list[int]], out: dict[str, np.ndarray]) -> None:
        """Of an ensemble: float32 sums over the block, the members in their order, whose mean is rounded once."""
        sums = np.zeros((len(layers), *site.write.shape), np.float32)
        for member in members:
            for box, values in member.values(image, histogram, mask, site, layers):
                at = box.within(site.write).slices
                for total, layer in zip(sums, values):
                    total[at] += layer
        sums /= np.float32(len(members))
        for z in range(0, sums.shape[1], STRIP):
            self._store(sums[:, z : z + STRIP], out, slice(z, z + STRIP), None)

    def _layers(self, wanted: dict[str, list[int]]) -> list[list[int]]:
        """Channels that are added, for each value that is asked of the network: of all classes where the likeliest is wanted."""
        return [[c] for c in wanted["classes"]] if self.show == "classes" else list(wanted.values())

    def _store(self, values: Sequence[np.ndarray], out: dict[str, np.ndarray], at, constants) -> None:
        """Put the layers, float32 (Z, Y, X) each, into the outputs."""
        if self.show == "classes":
            out["classes"][at] = np.argmax(values, 0)
            return
        for array, layer in zip(out.values(), values):
            if self.about.gives == "image":
                array[at] = restored(layer, constants, array.dtype)
                continue
            p = layer * np.float32(255)
            np.rint(p, out=p)
            array[at] = np.clip(p, 0, 255, out=p)


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
    own padding acts. A 2D network may go through the planes along several `axes`, the results joined by `rule`; one with `context` sees the planes
    beside each as further channels, reflected at the volume's ends. Several models are an ensemble: the mean of their probabilities, in float32
    before it is rounded to a step. `tta` averages over mirrored tiles likewise."""

    serves = "steps 3 and 13: run the models on the whole set"
    ports = (
        Port("image", ("image",), doc="of the voxel size that the model was trained on"),
        Port("mask", ("mask",), optional=True, doc="where probabilities are wanted: 0 elsewhere, and tiles without any of it are not computed"),
    )

    axes: Axes = None
    rule: Rule = "mean"

    __hash__ = Inference.__hash__

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        if not self.model or not all(self.models):
            raise RecipeError("'infer' needs a model: model: FILE.vemray, .onnx, .czann, .pt, a BioImage.IO package or entry:NAME")
        axes = list(dict.fromkeys(self.axes or ["z"]))
        own = {**{f.name: getattr(self, f.name) for f in dataclasses.fields(Inference)}, "device": device_of(self.device)}
        run = {axis: InferTiles(**own, axis=axis) for axis in axes}
        steps, first = [], run[axes[0]]
        if any(m.about.normalisation.needs_histogram for m in first.members):
            steps.append(Step(".histogram", Histogram(), {"image": inputs["image"]}))
            inputs = {**inputs, "histogram": ".histogram"}
        if len(axes) == 1:
            return [*steps, Step("", first, inputs)]
        if first.about.gives == "image":
            raise RecipeError(f"{first.named} gives an image, which is not merged from several 'axes': run them one by one.")
        if self.show == "classes":
            raise RecipeError("several 'axes' give probabilities: leave 'show' out, and compare them afterwards.")
        steps += [Step(f".along_{axis}", op, inputs) for axis, op in run.items()]
        return [*steps, Step("", InferMerge(self.rule), {f"images.{name}.{a}": f".along_{a}.{name}" for name in first.wanted() for a in axes})]
