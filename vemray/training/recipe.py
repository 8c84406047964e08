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

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pydantic

from vemray.errors import InputError, RecipeError, nearest
from vemray.models.files import Normalisation
from vemray.plan.recipe import override, read_yaml
from vemray.store.volume import open as open_volume
from vemray.training.annotation import read_planes
from vemray.training.train import Settings, Trained, planes_of, train


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class Annotated(Strict):
    volume: str
    planes: str


class TrainRecipe(Strict):
    vemray: Literal[1]
    out: str
    classes: list[str]
    volumes: list[Annotated]
    settings: Settings = Settings()
    normalisation: Normalisation = Normalisation()
    folder: str = pydantic.Field(default="", exclude=True)

    def path(self, p: str) -> str:
        return p if "://" in p or os.path.isabs(p) else os.path.normpath(os.path.join(self.folder, p))


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
            known = Settings.__dataclass_fields__ if p["loc"][0] == "settings" else Annotated.model_fields if p["loc"][0] == "volumes" else ()
            raise RecipeError(f"{path}: unknown key '{at}'.{nearest(str(p['loc'][-1]), known)}") from None
        raise RecipeError(f"{path}: {at}: {p['msg']}.") from None


def run(recipe: TrainRecipe, progress: Callable[[dict], None] = lambda e: None, overwrite: bool = False) -> Trained:
    """Train as `recipe` says. InputError if the model is there already, unless `overwrite`."""
    planes, spacing, out = [], None, recipe.path(recipe.out)
    if os.path.exists(out) and not overwrite:
        raise InputError(f"{out} exists already and is left alone. Choose another 'out' (--set out=...), or replace it with --overwrite.")
    for v in recipe.volumes:
        volume = open_volume(recipe.path(v.volume))
        if spacing is not None and any(abs(a / b - 1) > 0.05 for a, b in zip(volume.spacing.zyx, spacing.zyx)):
            raise InputError(f"{v.volume} has voxels of {volume.spacing}, the volume before it {spacing}: train on one voxel size.")
        spacing = spacing or volume.spacing
        planes += planes_of(volume, read_planes(recipe.path(v.planes)), recipe.normalisation)
    return train(planes, recipe.classes, spacing, out, recipe.settings, recipe.normalisation, progress)
