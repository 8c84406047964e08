"""What a picture in 3D shows, in the words that a recipe's report and `vemray picture` share: NAME:OPACITY, TABLE:RADIUS, TABLE.COLUMN, x=0.5."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

import pydantic

from vemray.errors import InputError, nearest

VIEWS = ("oblique", "xy", "xz", "yz", "back")
#: radius of a ball that has none given
POINT_NM = 60.0


def shown(text: str, option: str = "show") -> tuple[str, float]:
    """'NAME' or 'NAME:OPACITY'."""
    return _split(text, 1.0, option, lambda o: 0 < o <= 1, "an opacity above 0 and at most 1")


def dotted(text: str, option: str = "points") -> tuple[str, float]:
    """'TABLE' or 'TABLE:RADIUS_NM'."""
    return _split(text, POINT_NM, option, lambda r: r > 0, "a radius in nm")


def clipped(text: str, option: str = "clip") -> tuple[str, str, float, bool]:
    """(layer or '' for all, axis, where, whether that is in nm) of 'x=0.5', 'x=3200nm' or 'NAME:x=0.5'."""
    layer, _, rest = text.rpartition(":")
    axis, equals, number = rest.partition("=")
    nm = number.endswith("nm")
    try:
        value = float(number.removesuffix("nm"))
    except ValueError:
        value = math.nan
    if axis not in ("x", "y", "z") or not equals or not math.isfinite(value) or (not nm and not 0 < value < 1):
        raise InputError(
            f"{option} {text}: give an axis and where it is cut, x=0.5 as a share of the extent or x=3200nm; NAME:x=0.5 cuts one of the volumes."
        )
    return layer, axis, value, nm


def column_of(text: str, option: str = "colour") -> tuple[str, str]:
    """(table, column) of 'TABLE.COLUMN'."""
    table, point, column = text.rpartition(".")
    if not point or not table or not column:
        raise InputError(f"{option} {text}: give TABLE.COLUMN.")
    return table, column


def _split(text: str, default: float, option: str, allowed, what: str) -> tuple[str, float]:
    name, colon, number = text.partition(":")
    try:
        value = float(number) if colon else default
    except ValueError:
        value = math.nan
    if not name or not (math.isfinite(value) and allowed(value)):
        raise InputError(f"{option} {text}: give NAME or NAME:NUMBER, the number {what}.")
    return name, value


def measured(steps: Mapping[str, Mapping[str, Any]], table: str) -> str:
    """Name of the label volume whose objects a table is about: what its step takes as labels, or the first step before it does."""
    seen = set()
    while table in steps and table not in seen:
        seen.add(table)
        step = steps[table]
        if step.get("op") == "sample_surface":
            return table  # points of its own, that are no objects of the surface
        if "labels" in step:
            return step["labels"]
        inputs = [v for k, given in step.items() if k not in ("op", "why") for v in (given.values() if isinstance(given, Mapping) else [given])]
        before = next((v for v in inputs if isinstance(v, str) and v in steps and v not in seen), None)
        if before is None:
            break
        table = before
    return table.removesuffix("_table")


def check_map(name: str) -> None:
    import matplotlib

    if name not in matplotlib.colormaps:
        raise InputError(f"there is no colour map '{name}'.{nearest(name, list(matplotlib.colormaps))}")


def check_view(name: str) -> None:
    if name not in VIEWS:
        raise InputError(f"there is no view '{name}'.{nearest(name, VIEWS)} There are: {', '.join(VIEWS)}.")


class SceneSpec(pydantic.BaseModel):
    """One picture in 3D. The keys are the options of `vemray picture`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    show: list[str] = []
    points: list[str] = []
    colour: str | None = None
    range: tuple[float, float] | None = None
    map: str = "viridis"
    clip: list[str] = []
    view: str = "oblique"
    level: int | None = pydantic.Field(None, ge=0)
    size: tuple[int, int] = (1500, 1200)
    title: str = ""

    @pydantic.model_validator(mode="after")
    def _readable(self):
        try:
            layers = [*(shown(s)[0] for s in self.show), *(dotted(p)[0] for p in self.points)]
            for layer in (clipped(c)[0] for c in self.clip):
                if layer and layer not in layers:
                    raise InputError(f"clip cuts '{layer}', which is not shown.{nearest(layer, layers)}")
            if self.colour:
                column_of(self.colour)
            check_view(self.view)
            if self.map != "viridis":
                check_map(self.map)
        except InputError as e:
            raise ValueError(str(e)) from None
        if not layers:
            raise ValueError("nothing to show: name label volumes under 'show', or tables under 'points'")
        if self.range and not self.range[0] < self.range[1]:
            raise ValueError("range: the lower end of the colour scale comes first")
        if not 64 <= min(self.size) <= max(self.size) <= 8192:
            raise ValueError("size: 64 to 8192 pixels for each side")
        return self

    @property
    def volumes(self) -> list[str]:
        return [shown(s)[0] for s in self.show]

    @property
    def tables(self) -> list[str]:
        return [*(dotted(p)[0] for p in self.points), *([column_of(self.colour)[0]] if self.colour else [])]

    def command(self, url: str, out: str) -> str:
        """The command that draws the same."""
        said = ["vemray", "picture", url]
        for key, value in self.model_dump(exclude_defaults=True).items():
            for v in value if key in ("show", "points", "clip") else [",".join(map(str, value)) if isinstance(value, tuple | list) else value]:
                said += [f"--{key}", str(v)]
        return shlex.join([*said, "--out", out])
