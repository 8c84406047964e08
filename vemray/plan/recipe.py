"""The recipe: named steps, each an operator with its inputs by name and its parameters in physical units. Strict: an unknown key
is an error that names the nearest valid one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from vemray.errors import RecipeError, nearest


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class InputSpec(Strict):
    kind: Literal["image", "probability", "mask", "labels"] = "image"
    about: str = ""


class ReportSpec(Strict):
    """What the report shows beside the tables."""

    image: str | None = None
    overlays: dict[str, str] = {}
    tables: list[str] | None = None
    about: str = ""


class Recipe(Strict):
    vemray: Literal[1]
    name: str
    about: str = ""
    inputs: dict[str, InputSpec]
    steps: dict[str, dict[str, Any]]
    outputs: list[str] | None = None
    report: ReportSpec = ReportSpec()
    #: folder that relative paths in the recipe start from
    folder: str = pydantic.Field(default="", exclude=True)

    @pydantic.model_validator(mode="after")
    def _names(self):
        for name in [*self.steps, *self.inputs]:
            if not name or not name.replace("_", "a").isalnum():
                raise ValueError(f"'{name}' cannot be a name: use letters, digits and _")
        both = set(self.steps) & set(self.inputs)
        if both:
            raise ValueError(f"'{min(both)}' is the name of an input and of a step")
        for name, step in self.steps.items():
            if "op" not in step:
                raise ValueError(f"step '{name}' has no 'op'")
        return self


def load_recipe(source: str | Path | dict, sets: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe from a YAML file or a mapping; `sets` are 'steps.NAME.parameter=value' overrides. RecipeError says what is wrong."""
    folder = ""
    where = "recipe"
    if isinstance(source, dict):
        data = yaml.safe_load(yaml.safe_dump(source))
    else:
        path = Path(source)
        where, folder = str(path), str(path.resolve().parent)
        try:
            data = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            raise RecipeError(f"there is no recipe '{path}'.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise RecipeError(f"{path} is not valid YAML: {e}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{where} holds no mapping at its top. A recipe begins with 'vemray: 1'.")
    for s in sets:
        _override(data, s)
    try:
        return Recipe(**data, folder=folder)
    except pydantic.ValidationError as e:
        p = e.errors()[0]
        at = ".".join(map(str, p["loc"]))
        if p["type"] == "extra_forbidden":
            model: Any = {"inputs": InputSpec, "report": ReportSpec}.get(str(p["loc"][0]), Recipe) if len(p["loc"]) > 1 else Recipe
            raise RecipeError(f"{where}: unknown key '{at}'.{nearest(str(p['loc'][-1]), [f for f in model.model_fields if f != 'folder'])}") from None
        raise RecipeError(f"{where}: {at + ': ' if at else ''}{p['msg'].removeprefix('Value error, ')}") from None


def _override(data: dict, text: str) -> None:
    path, eq, value = text.partition("=")
    keys = path.split(".")
    if not eq or len(keys) < 2:
        raise RecipeError(f"--set {text}: write it as steps.NAME.parameter=value")
    at = data
    for i, k in enumerate(keys[:-1]):
        if not isinstance(at, dict) or not isinstance(at.get(k), dict):
            raise RecipeError(f"--set {text}: the recipe has no '{'.'.join(keys[: i + 1])}'.{nearest(k, at) if isinstance(at, dict) else ''}")
        at = at[k]
    at[keys[-1]] = yaml.safe_load(value)
