"""A walk through a run: every step of its recipe in order, with its parameters, the reasons given for them, and what came out of it:
a picture of each volume, the first rows of each table. Made from a run that kept everything (`everything`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vemray.errors import InputError
from vemray.ops import OPERATORS
from vemray.plan.recipe import Recipe
from vemray.report.pictures import PALETTE, Source, View, encode, overlay, rgb, to_grey, window
from vemray.report.scale import scale_bar
from vemray.run.results import Results
from vemray.store import access

#: pixels along the longer side of the overview, and of the square detail beside it
OVERVIEW, DETAIL = 460, 360
ROWS = 4
#: columns of a table that the page shows at most
COLUMNS = 7


def everything(recipe: Recipe) -> Recipe:
    """The same recipe with every step kept: what a walk-through shows."""
    return recipe.model_copy(update={"outputs": list(recipe.steps)})


@dataclass
class Stop:
    """One step: `parameters` are (name, value, reason), `pictures` (output, JPEG bytes), `tables` (output, columns, rows, number of rows)."""

    name: str
    op: str
    why: str
    does: str
    inputs: dict[str, str]
    parameters: list[tuple[str, Any, str]]
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[str]], int]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def stops(results: Results, at_nm: Sequence[float] | None = None, side_nm: float = 1200.0) -> list[Stop]:
    """The run's steps. Pictures: the xy plane through the point `at_nm` (ZYX; default the middle of the volume), and a square of `side_nm` around it."""
    recipe = results.run["recipe"]
    ground = _ground(results, recipe)
    at = tuple(at_nm) if at_nm is not None else tuple(sum(e) / 2 for e in ground.extent_nm)
    out = []
    for name, body in recipe["steps"].items():
        cls = OPERATORS[body["op"]]
        why = body.get("why", {})
        reasons = why if isinstance(why, dict) else {"op": why}
        ports = {p.name for p in cls.ports}
        inputs = {k: ", ".join(v.values()) if isinstance(v, dict) else str(v) for k, v in body.items() if k in ports}
        given = [(k, v, reasons.get(k, "")) for k, v in body.items() if k not in {"op", "why", *ports}]
        first = (cls.__doc__ or "").strip().split("\n\n")[0]
        stop = Stop(name, body["op"], reasons.get("op", ""), " ".join(first.split()), inputs, given)
        for o in (o for o in results.run["keep"] if o == name or o.startswith(name + ".")):
            if o in results.volumes:
                stop.pictures.append((o, encode(picture(ground, results.volumes[o], at, side_nm), "JPEG", quality=82)))
            elif o in results.arrow:
                stop.tables.append((o, *_head(results.arrow[o])))
                table = results.arrow[o]
                if "sentence" in table.column_names:
                    stop.sentences += [s for s in table.column("sentence").to_pylist() if s]
        out.append(stop)
    return out


def _ground(results: Results, recipe: dict) -> Source:
    """The image that everything is shown on: the one the report names, else the recipe's first."""
    name = (recipe.get("report") or {}).get("image")
    facts = results.run["inputs"]
    images = [n for n, f in facts.items() if f.get("kind") == "image"]
    if name is None and not images:
        raise InputError("a walk-through needs an image to show the steps on: the recipe has none among its inputs.")
    from vemray.store.volume import open as open_volume

    name = name or images[0]
    return Source.of(results.volumes[name] if name in results.volumes else open_volume(facts[name]["url"]))


def picture(ground: Source, volume, at: Sequence[float], side_nm: float):
    """RGB uint8: a volume in the xy plane through `at`, whole and around the point; labels and masks lie over the image."""
    import numpy as np

    source = Source.of(volume)
    views = [View.across(ground, "xy", at[0], pixels=OVERVIEW), View.around(ground, "xy", at, side_nm, pixels=DETAIL)]
    tiles = []
    for view in views:
        if source.kind in ("labels", "mask"):
            grey = ground.sample(view)
            colours = None if source.kind == "labels" else PALETTE[0]
            tile = overlay(to_grey(grey, *window([grey])), source.sample(view), colours, 0.45)
        else:
            plane = source.sample(view)
            low, high = (0.0, 255.0) if source.kind == "probability" else window([plane])
            tile = to_grey(plane, low, high)
        tiles.append(scale_bar(rgb(tile), view.pixel_nm))
    height = max(t.shape[0] for t in tiles)
    out = np.full((height, sum(t.shape[1] for t in tiles) + 8, 3), 255, np.uint8)
    x = 0
    for t in tiles:
        out[: t.shape[0], x : x + t.shape[1]] = t
        x += t.shape[1] + 8
    return out


def _head(table) -> tuple[list[str], list[list[str]], int]:
    names = [c for c in table.column_names if c not in ("dataset", "sentence", "warning")][:COLUMNS]
    rows = [[_text(r[c]) for c in names] for r in table.slice(0, ROWS).to_pylist()]
    return names, rows, table.num_rows


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(found: list[Stop], title: str, about: str, pictures: str) -> str:
    """The page; its pictures are looked for as `pictures`/OUTPUT.jpg."""
    lines = [f"# {title}", "", about, ""]
    for s in found:
        lines += [f"## {s.name}", ""]
        takes = ", ".join(f"{k}: {v}" for k, v in s.inputs.items())
        lines += [f"`{s.op}`" + (f" ({takes})" if takes else "") + f". {s.why or s.does}", ""]
        if s.parameters:
            lines += ["| parameter | value | why |", "|---|---|---|"]
            lines += [f"| {k} | {_cell(v)} | {_cell(why)} |" for k, v, why in s.parameters] + [""]
        for o, _ in s.pictures:
            lines += [f"![{o}]({pictures}/{o}.jpg)", ""]
        for o, names, rows, n in s.tables:
            lines += [f"{o}: {n} row{'s' * (n != 1)}" + (f", the first {len(rows)}:" if n > len(rows) else ":"), ""]
            lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)] + ["| " + " | ".join(map(_cell, r)) + " |" for r in rows] + [""]
        lines += [f"> {x}\n" for x in s.sentences]
    return "\n".join(lines).rstrip() + "\n"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def write(found: list[Stop], folder: str, title: str, about: str, name: str = "walkthrough.md", pictures: str = "pictures") -> str:
    """Write the page and its pictures into `folder` (local or s3://); returns the page's URL."""
    for s in found:
        for o, data in s.pictures:
            access.write_bytes(access.join(folder, pictures, f"{o}.jpg"), data)
    page = access.join(folder, name)
    access.write_bytes(page, markdown(found, title, about, pictures).encode())
    return page
