"""A walk through a run: every step of its recipe in order, with its parameters, the reasons given for them, and what came out of it:
a picture of each volume, the first rows of each table, the plots of its statistics. In chapters, as the recipe's comments divide it.
Made from a run that kept everything (`everything`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from vemray.analysis.sentences import unit
from vemray.errors import InputError
from vemray.ops import OPERATORS
from vemray.plan.recipe import Recipe
from vemray.report import figures
from vemray.report.pictures import PALETTE, Source, View, encode, overlay, rgb, to_grey, window
from vemray.report.scale import scale_bar
from vemray.run.results import Results
from vemray.store import access

#: pixels along the longer side of the overview, and of the square detail beside it
OVERVIEW, DETAIL, QUALITY = 460, 360, 74
#: of a table that the page shows at most
ROWS, COLUMNS = 3, 7
#: columns that tell most about an object, shown first
TELLING = ("label", "name", "volume_nm3", "surface_to_volume_per_nm", "sphericity")


def everything(recipe: Recipe) -> Recipe:
    """The same recipe with every step kept: what a walk-through shows."""
    return recipe.model_copy(update={"outputs": list(recipe.steps)})


@dataclass
class Stop:
    """One step: `parameters` are (name, value, reason), `pictures` (output, JPEG bytes), `tables` (output, columns, rows, number of rows), `plots`
    (name, PNG bytes). `chapter`: title and text of the chapter that begins with it."""

    name: str
    op: str
    why: str
    does: str
    inputs: dict[str, str]
    parameters: list[tuple[str, Any, str]]
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[str]], int]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    plots: list[tuple[str, bytes]] = field(default_factory=list)
    chapter: tuple[str, str] | None = None


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
        files = results.run.get("models", {})  # a model by its name: where it lay is no one's business
        given = [
            (k, v.rpartition("/")[2] if isinstance(v, str) and v in files else v, reasons.get(k, ""))
            for k, v in body.items()
            if k not in {"op", "why", *ports}
        ]
        first = (cls.__doc__ or "").strip().split("\n\n")[0]
        stop = Stop(name, body["op"], reasons.get("op", ""), " ".join(first.split()), inputs, given)
        if name in (titles := recipe.get("chapters") or {}):
            title, _, text = titles[name].partition("\n")
            stop.chapter = (title, text)
        for o in (o for o in results.run["keep"] if o == name or o.startswith(name + ".")):
            if o in results.volumes:
                stop.pictures.append((o, encode(picture(ground, results.volumes[o], at, side_nm), "JPEG", quality=QUALITY)))
            elif o in results.arrow:
                stop.tables.append((o, *_head(results.arrow[o])))
                table = results.arrow[o]
                drawn = figures.statistics(results, [o], ROWS)
                stop.sentences += [" ".join(f.lines) for f in drawn]
                stop.plots += [(f"{o}_{i}" if i else o, f.png) for i, f in enumerate(drawn) if f.png]
                percents = [c for c in table.column_names if c.startswith("percent_of_")] if body["op"] == "composition" else []
                if percents:
                    bars = figures.shares(o, [r for r in table.to_pylist() if r[percents[0]] is not None], percents[0], None)
                    stop.plots.append((o, bars.png))
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
    names = [c for c in table.column_names if c not in ("dataset", "sentence", "warning")]
    new = [c for c in names if c not in TELLING and not c.startswith(("bbox", "centroid", "orientation", "first_voxel", "volume_voxels", "axis"))]
    names = [*(c for c in TELLING if c in names), *(new[-COLUMNS:] if "volume_nm3" in names else new)][:COLUMNS]
    rows = [[_text(r[c]) for c in names] for r in table.slice(0, ROWS).to_pylist()]
    return names, rows, table.num_rows


def _text(value: Any) -> str:
    return "–" if value is None or value != value else f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(found: list[Stop], title: str, about: str, pictures: str, closing: Sequence[str] = ()) -> str:
    """The page; its pictures are looked for as `pictures`/OUTPUT.jpg, its plots as .png. `closing`: lines below the last step."""
    lines = [f"# {title}", "", about.strip(), ""]
    chapters = [s.chapter[0] for s in found if s.chapter]
    lines += [f"- [{_capital(c)}](#{_anchor(_capital(c))})" for c in chapters] + [""] * bool(chapters)
    steps = {s.name for s in found}
    for s in found:
        if s.chapter:
            lines += [f"## {_capital(s.chapter[0])}", ""] + [_capital(s.chapter[1]), ""] * bool(s.chapter[1])
        lines += [f"{'###' if chapters else '##'} {s.name}", ""]
        takes = ", ".join(f"{k}: {', '.join(_linked(r, steps) for r in v.split(', '))}" for k, v in s.inputs.items())
        lines += [f"`{s.op}`" + (f" ({takes})" if takes else "") + f". {_sentence(s.why or s.does)}", ""]
        if s.parameters:
            lines += ["| parameter | value | why |", "|---|---|---|"]
            lines += [f"| `{k}` | {_cell(_valued(k, v))} | {_cell(why)} |" for k, v, why in s.parameters] + [""]
        for o, _ in s.pictures:
            lines += [f"![{o}]({pictures}/{o}.jpg)", ""]
        for _, names, rows, n in s.tables if not s.sentences else ():
            lines += [f"{n} row{'s' * (n != 1)}" + (f", the first {len(rows)}:" if n > len(rows) else ":"), ""]
            lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)] + ["| " + " | ".join(map(_cell, r)) + " |" for r in rows] + [""]
        lines += [f"> {x}\n" for x in s.sentences]
        for o, _ in s.plots:
            lines += [f'<img src="{pictures}/{o}.png" alt="{o}" width="420">', ""]
    return "\n".join([*lines, *closing]).rstrip() + "\n"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return _capital(text) + "." * (not text.endswith((".", ":", "?")))


def _anchor(heading: str) -> str:
    """The name that a heading has in a page that is made of Markdown."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _linked(ref: str, steps: Collection[str]) -> str:
    step = ref.partition(".")[0]
    return f"[{ref}](#{step})" if step in steps else ref


def _valued(name: str, value: Any) -> str:
    """A parameter's value with the unit that its name ends with."""
    shown = ", ".join(map(_number, value)) if isinstance(value, list) else _number(value)
    return f"{shown} {unit(name)}".rstrip() if isinstance(value, int | float | list) and not isinstance(value, bool) else shown


def _number(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"`{value}`" if isinstance(value, str) else f"{value}"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def write(
    found: list[Stop], folder: str, title: str, about: str, name: str = "walkthrough.md", pictures: str = "pictures", closing: Sequence[str] = ()
) -> str:
    """Write the page and its pictures into `folder` (local or s3://); returns the page's URL."""
    for s in found:
        for o, data in s.pictures:
            access.write_bytes(access.join(folder, pictures, f"{o}.jpg"), data)
        for o, data in s.plots:
            access.write_bytes(access.join(folder, pictures, f"{o}.png"), data)
    page = access.join(folder, name)
    access.write_bytes(page, markdown(found, title, about, pictures, closing).encode())
    return page


def write_page(
    results: Results,
    folder: str,
    name: str = "walkthrough.md",
    pictures: str = "pictures",
    at_nm: Sequence[float] | None = None,
    side_nm: float = 1200.0,
) -> str:
    """The walk through a run as `name` in `folder`, with the pictures in 3D that its recipe's report asks for at the end; returns the page's URL."""
    recipe = results.run["recipe"]
    found = stops(results, at_nm, side_nm)
    ground = _ground(results, recipe)
    at = tuple(at_nm) if at_nm is not None else tuple(sum(e) / 2 for e in ground.extent_nm)
    first = encode(picture(ground, ground.first, at, side_nm), "JPEG", quality=QUALITY)
    access.write_bytes(access.join(folder, pictures, "input.jpg"), first)
    voxel = " × ".join(f"{v:g}" for v in ground.first.spacing.zyx)
    about = [
        recipe.get("about", "").strip(), "",
        f"Every step of the recipe `{recipe['name']}`, in its order, as it ran on `{results.run['dataset']}` "
        f"({' × '.join(map(str, ground.first.shape))} voxels of {voxel} nm; z, y, x). Each picture shows the plane z = {at[0] / 1000:.2f} µm, whole on "
        f"the left, and {side_nm / 1000:g} µm of it on the right. Images are grey; masks are orange, and each object of a label volume has a colour of its own, "
        "over the image. This page is written by `vemray walkthrough`.", "",
        f"![input]({pictures}/input.jpg)", "",
    ]  # fmt: skip
    closing = []
    for f in figures.scenes(results, (recipe.get("report") or {}).get("scenes") or {}):
        closing += [f"> {n}\n" for n in f.notes]
        if f.png:
            access.write_bytes(access.join(folder, pictures, f"3d-{f.name}.jpg"), _smaller(f.png))
            closing += [f"![{f.title}]({pictures}/3d-{f.name}.jpg)", "", f"{_sentence(f.title)}", ""]
    closing = ["## Pictures in 3D", "", *closing] if closing else []
    return write(found, folder, f"{recipe['name']}, step by step", "\n".join(about), name, pictures, closing)


def _smaller(png: bytes, width: int = 900) -> bytes:
    import io

    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    return encode(np.asarray(image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)), "JPEG", quality=85)


def reworded(results: Results, recipe: Recipe) -> None:
    """Let a run's recipe say what `recipe` says: chapters, reasons, what the report shows. What ran stays as it was."""
    said = recipe.model_dump(mode="json")
    own = results.run["recipe"]
    own.update({k: said[k] for k in ("about", "chapters", "report")})
    for name, step in own["steps"].items():
        if "why" in (new := recipe.steps.get(name, {})):
            step["why"] = new["why"]
