"""TRAIN.yaml: what `vemray train` reads.

vemray: 1
out: models/mitochondria.vemray
classes: [background, mitochondria]
volumes:
  - volume: cell.zarr
    planes: annotation/            # plane_0010.tif or .png: 0 unlabelled, 1..K the classes
settings: {steps: 400}
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import Field

from vemray.errors import InputError, RecipeError, nearest
from vemray.geometry import Box
from vemray.models.files import Normalisation
from vemray.plan.recipe import override, read_yaml
from vemray.store.volume import open as open_volume
from vemray.training.annotation import coarser, read_planes
from vemray.training.source import LabelVolume, PaintedPlanes, Source, Turned
from vemray.training.targets import Target
from vemray.training.train import Settings, Trained, train

#: nm of the pixels that classes are learned from where the recipe does not say
USUAL_NM, MOST_NM = 8.0, 12.0
Axis = Literal["z", "y", "x"]
Span = tuple[int, int]


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class TurnedSpec(Strict):
    of: Annotated[str, Field(description="`volume` of an entry before")]
    degrees: Annotated[float, Field(description="of the operator `rotate`")]
    about: Annotated[Axis, Field(description="of the operator `rotate`")]


class Volume(Strict):
    volume: Annotated[str, Field(description="OME-Zarr, a folder or s3://; it is read where it is annotated")]
    level: Annotated[
        int | None,
        Field(
            ge=0,
            description="level of the pyramid that is learned from, and so the voxel size of the network; default: for classes the one whose pixels are "
            "nearest to 8 nm, up to 12 nm; for boundaries, affinities and distances 0",
        ),
    ] = None
    planes: Annotated[
        str | dict[Axis, str] | None, Field(description="folder of painted planes (TIFF, PNG; the number in the name is the plane), or axis: folder")
    ] = None
    labels: Annotated[str | None, Field(description="instead of planes: a label volume on the same voxels")] = None
    values: Annotated[
        Literal["classes", "objects"],
        Field(description="what numbers mean. classes: 0 unlabelled, 1 the first class; objects: 0 background, every other number an object"),
    ] = "classes"
    zero: Annotated[Literal["unlabelled", "background"] | None, Field(description="what 0 means, if not that: background is the first class")] = None
    region: Annotated[
        tuple[Span, Span, Span] | None, Field(description="the part of `labels` that is used: [[z, z], [y, y], [x, x]], from and up to, in voxels")
    ] = None
    axes: Annotated[
        list[Axis], Field(min_length=1, description="of `labels`: the axes that a 2D network's planes are stacked along")
    ] = ["z"]  # fmt: skip
    every: Annotated[int, Field(gt=0, description="of `labels`: a 2D network's planes are every n-th along each of `axes`")] = 1
    known: Annotated[str | None, Field(description="a mask on the same voxels: `labels` count where it is set; elsewhere nothing is known")] = None
    turned: Annotated[
        TurnedSpec | None,
        Field(description="that it is another one, `of`, turned by `rotate`: what that keeps for validation is not trained on here either"),
    ] = None


class TargetSpec(Strict):
    kind: Annotated[
        Literal["classes", "boundary", "affinities", "distance"],
        Field(description="what the network gives: classes; of objects their boundaries, affinities to the next voxel, or distance to their end"),
    ] = "classes"
    width: Annotated[int, Field(gt=0, description="of a boundary, in voxels to each side")] = 1
    scale_nm: Annotated[float, Field(gt=0, description="of a distance d, which is given as d / (d + scale)")] = 100.0


class TrainRecipe(Strict):
    vemray: Literal[1]
    out: Annotated[str, Field(description="MODEL.vemray")]
    volumes: Annotated[list[Volume], Field(min_length=1)]
    classes: Annotated[
        list[str], Field(description="names of the classes, the background first; of objects the name of the object is the second")
    ] = []
    target: TargetSpec = TargetSpec()
    folds: Annotated[int, Field(ge=1, le=20, description="train as many networks, each with another part of the annotation kept for validation")] = 1
    settings: Settings = Settings()
    normalisation: Normalisation = Normalisation()
    folder: str = pydantic.Field(default="", exclude=True)

    def path(self, p: str) -> str:
        return p if "://" in p or os.path.isabs(p) else os.path.normpath(os.path.join(self.folder, p))

    @property
    def outs(self) -> list[str]:
        out = self.path(self.out)
        stem, suffix = os.path.splitext(out)
        return [out] if self.folds == 1 else [f"{stem}-{i + 1}{suffix}" for i in range(self.folds)]

    def made_target(self) -> Target:
        """RecipeError where classes and target do not fit."""
        t, kinds = self.target, {v.values for v in self.volumes}
        objects = kinds == {"objects"}
        if t.kind != "classes" and not objects:
            raise RecipeError(f"target {t.kind} is made of objects: say 'values: objects' of every volume, where each number is an object.")
        if t.kind == "classes":
            if len(kinds) > 1:
                raise RecipeError("some volumes are painted as classes and some as objects: train on one of the two.")
            if len(self.classes) < 1 or (objects and len(self.classes) != 2):
                raise RecipeError(
                    "'classes' must name " + ("the background and the object." if objects else "the numbers 1, 2, ... of what is painted.")
                )
            names = tuple(self.classes)
        elif t.kind == "boundary":
            known = any(v.zero in (None, "background") for v in self.volumes)
            names = ("background", "inside", "boundary") if known else ("inside", "boundary")
        else:
            names = tuple(f"affinity_{a}" for a in "zyx"[-self.settings.dims :]) if t.kind == "affinities" else ("distance",)
        if t.kind != "classes" and self.classes:
            raise RecipeError(f"target {t.kind} has its own classes ({', '.join(names)}): leave 'classes' out.")
        return Target(t.kind, names, objects, t.width, t.scale_nm)


def load(path: str | Path, sets: list[str] | tuple[str, ...] = ()) -> TrainRecipe:
    """The training recipe at `path`, with 'settings.steps=100'-like overrides. RecipeError."""
    path = Path(path)
    data = read_yaml(path, "training recipe")
    if "steps" in data:
        raise RecipeError(f"{path} looks like a recipe to run. Run it with: vemray run {path} --volume URL --out FOLDER")
    for s in sets:
        if s.partition(".")[0] in ("settings", "normalisation"):
            data.setdefault(s.partition(".")[0], {})
        override(data, s, "settings.NAME", least=1)
    for key in data:
        if key not in TrainRecipe.model_fields or key == "folder":
            raise RecipeError(f"{path}: unknown key '{key}'.{nearest(key, [f for f in TrainRecipe.model_fields if f != 'folder'])}")
    try:
        return TrainRecipe(**data, folder=str(path.resolve().parent))
    except pydantic.ValidationError as e:
        p = e.errors()[0]
        at = ".".join(map(str, p["loc"]))
        if p["type"] == "missing":
            begins = " A training recipe begins with 'vemray: 1'." if at == "vemray" else ""
            raise RecipeError(f"{path}: it has no '{at}'.{begins}") from None
        if at == "vemray":
            raise RecipeError(f"{path}: 'vemray: {data['vemray']}' is not a version that is known here. Write 'vemray: 1'.") from None
        if p["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = {"settings": Settings.__dataclass_fields__, "volumes": Volume.model_fields, "target": TargetSpec.model_fields}.get(
                p["loc"][0], ()
            )
            raise RecipeError(f"{path}: unknown key '{at}'.{nearest(str(p['loc'][-1]), known)}") from None
        raise RecipeError(f"{path}: {at}: {p['msg']}.") from None


def sources_of(recipe: TrainRecipe) -> list[Source]:
    """The annotated volumes, opened. InputError for what does not fit together."""
    out: list[Source] = []
    for v in recipe.volumes:
        if (v.planes is None) == (v.labels is None):
            raise InputError(f"{v.volume}: give 'planes' or 'labels', one of the two.")
        volume = open_volume(recipe.path(v.volume), _level(recipe, v))
        if v.planes is not None:
            if v.region is not None or v.every > 1 or v.known is not None:
                given = "region" if v.region is not None else "every" if v.every > 1 else "known"
                raise InputError(f"{v.volume}: '{given}' is for 'labels'; of planes, leave out the files, or the part of a plane.")
            annotation = _painted(recipe, v, volume)
        else:
            annotation = _labelled(recipe, v, volume)
        turned = None
        if v.turned is not None:
            before = {o.volume: s for o, s in zip(recipe.volumes, out) if o.turned is None}
            if v.turned.of not in before:
                raise InputError(f"{v.volume}: 'turned: of' is {v.turned.of}, which is no volume before it.{nearest(v.turned.of, before)}")
            turned = Turned(before[v.turned.of], v.turned.degrees, v.turned.about)
        seen = _seen(volume.spacing.zyx, annotation, recipe.settings)
        if out and not _alike(seen, _seen(out[0].spacing.zyx, out[0].annotation, recipe.settings)):
            what = "voxel size" if recipe.settings.dims == 3 else "size of pixels"
            raise InputError(f"{v.volume} has voxels of {volume.spacing}, the volume before it {out[0].spacing}: train on one {what}.")
        out.append(Source(os.path.basename(v.volume.rstrip("/")) or v.volume, volume, annotation, recipe.normalisation, turned))
    return out


def _level(recipe: TrainRecipe, v: Volume) -> int:
    """Mitochondria and the like are told by what lies around them: on small pixels a small network sees too little of it, and takes four times as long."""
    if v.level is not None:
        return v.level
    if recipe.target.kind != "classes":
        return 0
    url = recipe.path(v.volume)
    fit = [
        (abs(math.log(nm / USUAL_NM)), i) for i in range(open_volume(url).levels) if (nm := min(open_volume(url, i).spacing.zyx)) <= MOST_NM or i == 0
    ]
    return min(fit)[1]


def _painted(recipe: TrainRecipe, v: Volume, volume: Any) -> PaintedPlanes:
    folders = {"z": v.planes} if isinstance(v.planes, str) else v.planes
    finest = volume if volume.level == 0 else open_volume(recipe.path(v.volume))
    planes = {}
    for axis, folder in folders.items():
        painted = read_planes(recipe.path(folder), (np.uint8, np.uint16))
        a = "zyx".index(axis)
        if volume.level and all(p.shape == tuple(n for i, n in enumerate(finest.shape) if i != a) for p in painted.values()):
            factor = tuple(round(c / f) for c, f in zip(volume.spacing.zyx, finest.spacing.zyx))
            painted = coarser(painted, factor[a], tuple(f for i, f in enumerate(factor) if i != a))
        planes[axis] = painted
    return PaintedPlanes(volume.shape, planes, v.values, None if v.zero is None else v.zero == "background")


def _labelled(recipe: TrainRecipe, v: Volume, volume: Any) -> LabelVolume:
    def beside(path: str):
        found = open_volume(recipe.path(path), volume.level if _has(recipe.path(path), volume.level) else 0)
        if found.shape != volume.shape:
            raise InputError(f"{path} has {found.shape} voxels, {v.volume} {volume.shape}: labels must lie on the voxels of the volume.")
        return found

    if v.every > 1 and recipe.settings.dims == 3:
        raise InputError(f"{v.volume}: 'every' is for 2D networks; a 3D one has no planes.")
    region = Box(*zip(*v.region)) if v.region else None
    if region is not None and not region.clip(volume.shape).size:
        raise InputError(f"{v.volume}: the region {region} holds no voxel of it.")
    known = None if v.zero is None else v.zero == "background"
    mask = None if v.known is None else beside(v.known)
    return LabelVolume(beside(v.labels), v.values, known, region, "".join(dict.fromkeys(v.axes)), v.every, mask)


def _seen(nm: tuple[float, float, float], annotation: LabelVolume | PaintedPlanes, settings: Settings) -> list[tuple[float, ...]]:
    """Of voxels of `nm` (ZYX) what the network sees: a 2D one the pixels of its planes, by axis; with neighbours how far apart they are too."""
    if settings.dims == 3:
        return [nm]
    axes = dict.fromkeys(a for _, axes in annotation.boxes() for a in axes)
    return [(nm["zyx".index(a)] if settings.context else 0.0, *(n for n, b in zip(nm, "zyx") if b != a)) for a in axes]


def _alike(a: list[tuple[float, ...]], b: list[tuple[float, ...]]) -> bool:
    """Whether all that one volume shows the other shows too, to 5 per cent."""

    def shown(one: tuple[float, ...], by: list[tuple[float, ...]]) -> bool:
        return any(all(abs(p - q) <= 0.05 * q for p, q in zip(one, other)) for other in by)

    return all(shown(o, b) for o in a) or all(shown(o, a) for o in b)


def _has(url: str, level: int) -> bool:
    return level < open_volume(url).levels


def run(recipe: TrainRecipe, progress: Callable[[dict], None] = lambda e: None, overwrite: bool = False) -> list[Trained]:
    """Train as `recipe` says: one network, or one a fold. InputError if a model is there already, unless `overwrite`."""
    target, outs = recipe.made_target(), recipe.outs
    there = [o for o in outs if os.path.exists(o)]
    if len(there) == len(outs) and not overwrite:
        raise InputError(f"{there[0]} exists already and is left alone. Choose another 'out' (--set out=...), or replace it with --overwrite.")
    sources, done = sources_of(recipe), []
    for s in sources:
        progress({"volume": s.name, "level": s.volume.level, "voxels": str(s.spacing)})
    for i, out in enumerate(outs):
        if out in there and not overwrite:  # a fold of a training that was interrupted
            progress({"fold": i + 1, "kept": out})
            continue
        if len(outs) > 1:
            progress({"fold": i + 1, "of_folds": len(outs)})
        fold = (i, len(outs)) if len(outs) > 1 else None
        done.append(train(sources, target, out, recipe.settings, progress, fold, overwrite))
    return done
