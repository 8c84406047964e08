"""The recipe: named steps, each an operator with its inputs by name and its parameters in physical units. Strict: an unknown key
is an error that names the nearest valid one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import yaml

from vemray.errors import RecipeError, nearest
from vemray.plan.scenes import SceneSpec, column_of, measured


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class InputSpec(Strict):
    """An input that the user gives, or, with `of`, a coarser level of the pyramid of one that is given: `level` by its number, or the first whose
    voxels have at least `min_voxel_nm` along every axis."""

    kind: Literal["image", "probability", "mask", "labels", "table"] = "image"
    about: str = ""
    of: str | None = None
    level: int | None = pydantic.Field(None, ge=0)
    min_voxel_nm: float | None = pydantic.Field(None, gt=0)

    @pydantic.model_validator(mode="after")
    def _one_level(self):
        ways = (self.level is not None) + (self.min_voxel_nm is not None)
        if self.of is None and ways:
            raise ValueError("'level' and 'min_voxel_nm' choose a level of another input: name it, of: INPUT")
        if self.of is not None and ways != 1:
            raise ValueError(f"say which level of '{self.of}' it is: level: 2, or min_voxel_nm: 32 (one of the two)")
        return self


class ReportSpec(Strict):
    """What the report shows. Left out: the recipe's one image, every kept label volume, every table of objects; no pictures in 3D.
    `scenes`: name -> a picture in 3D, `distributions`: TABLE.COLUMN."""

    image: str | None = None
    overlays: dict[str, str] = {}
    tables: list[str] | None = None
    scenes: dict[str, SceneSpec] = {}
    distributions: list[str] = []
    about: str = ""

    @pydantic.model_validator(mode="after")
    def _files(self):
        for name in self.scenes:
            if not name or not name.replace("_", "a").isalnum():
                raise ValueError(f"scenes: '{name}' cannot be the name of a picture's file: use letters, digits and _")
        for text in self.distributions:
            if "." not in text.strip("."):
                raise ValueError(f"distributions names '{text}': give TABLE.COLUMN")
        return self

    @property
    def used_tables(self) -> list[tuple[str, str]]:
        """(where it is named, table)"""
        scenes = [(f"report.scenes.{n}", t) for n, s in self.scenes.items() for t in s.tables]
        return [*(("report.tables", n) for n in self.tables or ()), *scenes, *(("report.distributions", column_of(d)[0]) for d in self.distributions)]


def _check_why(name: str, step: dict[str, Any]) -> None:
    """`why` is a sentence about the step, or a mapping: `op` for the step itself, and each of its parameters by name."""
    why = step.get("why", "")
    if isinstance(why, str):
        return
    if not isinstance(why, dict) or not all(isinstance(v, str) for v in why.values()):
        raise ValueError(f"'why' of step '{name}' must be text, or a mapping of its parameters to text")
    for key in why:
        if key not in step or key == "why":
            raise ValueError(f"'why' of step '{name}' explains '{key}', which the step does not set.{nearest(key, [k for k in step if k != 'why'])}")


class Recipe(Strict):
    vemray: Literal[1]
    name: str
    about: str = ""
    inputs: dict[str, InputSpec]
    steps: dict[str, dict[str, Any]]
    outputs: list[str] | None = None
    report: ReportSpec = ReportSpec()
    #: first step of a chapter -> its title, and after a line break what is said about it; of a file's comments where it does not say so itself
    chapters: dict[str, str] = {}
    #: folder that relative paths in the recipe start from
    folder: str = pydantic.Field(default="", exclude=True)

    @property
    def given_inputs(self) -> list[str]:
        """Inputs that the user gives; the others are levels of these."""
        return [n for n, i in self.inputs.items() if i.of is None]

    @pydantic.model_validator(mode="before")
    @classmethod
    def _kind_of_levels(cls, data: Any):
        """A level of an input is of the input's kind where it does not say so itself."""
        inputs = data.get("inputs")
        if not isinstance(inputs, dict) or not all(isinstance(i, dict) for i in inputs.values()):
            return data
        kinds = {n: inputs.get(str(i["of"]), {}).get("kind", "image") for n, i in inputs.items() if "of" in i and "kind" not in i}
        return {**data, "inputs": {n: {**i, "kind": kinds[n]} if n in kinds else i for n, i in inputs.items()}}

    @pydantic.model_validator(mode="after")
    def _levels(self):
        for name, i in self.inputs.items():
            if i.of is None:
                continue
            whole = self.inputs.get(i.of)
            if whole is None:
                raise ValueError(f"inputs.{name}.of names '{i.of}', which is not an input.{nearest(i.of, self.given_inputs)}")
            if whole.of is not None or whole.kind == "table":
                raise ValueError(
                    f"inputs.{name}.of names '{i.of}', which is {'a table' if whole.kind == 'table' else 'a level itself'}: name a volume"
                )
            if whole.kind != i.kind:
                raise ValueError(f"inputs.{name} is {i.kind}, but it is a level of '{i.of}', which is {whole.kind}")
        return self

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
            _check_why(name, step)
        for name in self.chapters:
            if name not in self.steps:
                raise ValueError(f"chapters names '{name}', which is not a step.{nearest(name, self.steps)}")
        if not self.steps:
            raise ValueError("it has no steps, so there is nothing to run. `vemray ops` lists the operators that a step can name")
        if self.outputs is not None and not self.outputs:
            raise ValueError("outputs: [] keeps nothing. Name what is to be kept, or leave 'outputs' out: tables and last volumes are kept then")
        return self

    @pydantic.model_validator(mode="after")
    def _reported(self):
        """What the report shows is there: an input, or a step that is kept."""
        image = [("report.image", self.report.image)] if self.report.image is not None else []
        overlays = [(f"report.overlays.{t}", n) for t, n in self.report.overlays.items()]
        scenes = [(f"report.scenes.{n}", v) for n, s in self.report.scenes.items() for v in s.volumes]
        tables = self.report.used_tables
        for where, name in [*image, *overlays, *scenes, *tables]:
            step = name.partition(".")[0]  # step.output: what a step gives is known when it is resolved
            if (where, name) in tables:
                if step not in self.steps:
                    raise ValueError(f"{where} names '{name}', which is not a step.{nearest(name, self.steps)}")
            elif name in self.inputs and self.inputs[name].kind == "table":
                raise ValueError(f"{where} names '{name}', which is a table")
            elif step not in self.steps and name not in self.inputs:
                raise ValueError(f"{where} names '{name}', which is neither a step nor an input.{nearest(name, [*self.steps, *self.inputs])}")
            if step in self.steps and self.outputs is not None and step not in {o.partition(".")[0] for o in self.outputs}:
                raise ValueError(f"{where} names '{name}', which is not kept: add it to 'outputs'")
        for name, s in self.report.scenes.items():
            if s.colour and (about := measured(self.steps, column_of(s.colour)[0])) not in s.volumes:
                if about not in [measured(self.steps, t) for t in s.tables[:-1]]:
                    raise ValueError(f"report.scenes.{name}: colour {s.colour} is about '{about}', which is not shown: add it to 'show' or 'points'")
        return self


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the last one's victory."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """The mapping in the file at `path`, a `what` ('recipe'). RecipeError says why it cannot be read."""
    try:
        data = parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise RecipeError(f"there is no {what} '{path}'.") from None
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path} is not a text file in UTF-8 ({e.reason} at byte {e.start}): a {what} is YAML.") from None
    except OSError as e:
        raise RecipeError(f"the {what} '{path}' cannot be read: {(e.strerror or type(e).__name__).lower()}. Name a YAML file.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds no mapping at its top. A {what} begins with 'vemray: 1'.")
    return data


_CHAPTER = re.compile(r"\s*#\s*-{3,}\s*(\S.*?)\s*-{3,}\s*$")


def chapters(text: str) -> dict[str, str]:
    """A recipe's chapters from the comments between its steps: first step -> title, and after a line break the comment lines right below it."""
    root = yaml.compose(text, yaml.SafeLoader)
    top, steps = next(((k, v) for k, v in root.value if k.value == "steps"), (None, None)) if isinstance(root, yaml.MappingNode) else (None, None)
    if not isinstance(steps, yaml.MappingNode):
        return {}
    lines, out = text.splitlines(), {}
    starts = [(k.start_mark.line, k.value) for k, _ in steps.value]
    for (before, _), (line, name) in zip([(top.start_mark.line, ""), *starts], starts):
        said = [i for i in range(before, line) if _CHAPTER.match(lines[i])]
        if said:
            below = [lines[i].strip().lstrip("# ") for i in range(said[-1] + 1, line) if lines[i].strip().startswith("#")]
            out[name] = "\n".join([_CHAPTER.match(lines[said[-1]])[1], " ".join(below)]).strip()
    return out


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{where}{at} is not valid YAML: {e.problem or e.context}.") from None
    except yaml.YAMLError as e:
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(e).split())}.") from None


def load_recipe(source: str | Path | Mapping, sets: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe from a YAML file or a mapping; `sets` are 'steps.NAME.parameter=value' overrides. RecipeError says what is wrong."""
    folder = ""
    where = "recipe"
    if isinstance(source, Mapping):
        data = plain(source, where)
    else:
        path = Path(source)
        where, folder = str(path), str(path.resolve().parent)
        data = read_yaml(path, "recipe")
        data.setdefault("name", path.stem)
        if found := chapters(path.read_text(encoding="utf-8")):
            data.setdefault("chapters", found)
    _check_keys(data, where)
    for s in sets:
        override(data, s, "steps.NAME.parameter")
    if "steps" not in data and {"classes", "volumes"} & set(data):
        raise RecipeError(f"{where} looks like a recipe for training. Run it with: vemray train {where}")
    try:
        return Recipe(**data, folder=folder)
    except pydantic.ValidationError as e:
        raise RecipeError(f"{where}: {_said(e, data)}") from None


_MISSING = {
    "vemray": "its first line must be 'vemray: 1', the version of the format",
    "name": "it has no 'name'",
    "inputs": "it has no 'inputs'. Name the volumes it takes, such as 'inputs: {em: {kind: image}}'",
    "steps": "it has no 'steps'. Name what is to be done, such as 'steps: {smooth: {op: gaussian, image: em, sigma_nm: 10}}'",
}


def _said(error: pydantic.ValidationError, data: dict) -> str:
    """The first mistake in words."""
    p = error.errors()[0]
    at = ".".join(map(str, p["loc"]))
    if p["type"] == "missing" and at in _MISSING:
        return _MISSING[at] + "."
    if at == "vemray":
        return f"'vemray: {data.get('vemray')}' is not a version of recipes that is known here. Write 'vemray: 1'."
    if p["type"] == "extra_forbidden":
        model: Any = {"inputs": InputSpec, "report": ReportSpec}.get(str(p["loc"][0]), Recipe) if len(p["loc"]) > 1 else Recipe
        model = SceneSpec if p["loc"][:2] == ("report", "scenes") else model
        return f"unknown key '{at}'.{nearest(str(p['loc'][-1]), [f for f in model.model_fields if f != 'folder'])}"
    text = f"{at + ': ' if at else ''}{p['msg'].removeprefix('Value error, ')}"
    return text if text[-1] in ".?" else text + "."


def _check_keys(data: Any, where: str, at: str = "", depth: int = 3) -> None:
    """Keys are text, and none is the name of what only the program sets."""
    if not isinstance(data, dict) or not depth:
        return
    for key, value in data.items():
        if not isinstance(key, str):
            why = " (YAML reads yes, no, on and off so)" if isinstance(key, bool) else ""
            raise RecipeError(f"{where}: the key {key!r}{' under ' + at if at else ''} is not text{why}. Put it in quotes, or choose another name.")
        if not at and key == "folder":
            raise RecipeError(f"{where}: unknown key 'folder'. Paths in a recipe start from the folder it lies in.")
        _check_keys(value, where, f"{at}.{key}" if at else key, depth - 1)


def plain(value: Any, where: str, at: str = "") -> Any:
    """A copy of `value` in plain Python: paths as text, numpy's numbers as numbers. RecipeError names what cannot stand in a recipe."""
    if isinstance(value, Mapping):
        return {k: plain(v, where, f"{at}.{k}" if at else str(k)) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), where, at)
    if isinstance(value, list | tuple):
        return [plain(v, where, at) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise RecipeError(f"{where}: '{at}' holds something of type {type(value).__name__}; a recipe holds text, numbers, yes or no, lists and mappings.")


def override(data: dict, text: str, form: str, least: int = 2) -> None:
    """Carry out one --set: 'a.b=value', at `least` so many keys, all but the last there already. `form` is how it is written."""
    path, eq, value = text.partition("=")
    keys = path.split(".")
    if not eq or len(keys) < least or not all(keys):
        raise RecipeError(f"--set {text}: write it as {form}=value")
    at = data
    for i, k in enumerate(keys[:-1]):
        if k not in at:
            raise RecipeError(f"--set {text}: the recipe has no '{'.'.join(keys[: i + 1])}'.{nearest(k, at)}")
        if not isinstance(at[k], dict):
            raise RecipeError(f"--set {text}: '{'.'.join(keys[: i + 1])}' holds one value, nothing below it. Write {'.'.join(keys[: i + 1])}=value")
        at = at[k]
    at[keys[-1]] = parse_yaml(value, f"--set {text}: the value")
