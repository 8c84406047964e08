"""The report of a run: one HTML page that holds everything it shows, from what the run left."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vemray.errors import InputError, VemrayError
from vemray.geometry import Spacing
from vemray.plan.recipe import ReportSpec
from vemray.report import figures, plots
from vemray.report.pictures import PALETTE, Source, crowded, data_uri, slice_figure
from vemray.run.results import Results
from vemray.store import access
from vemray.store.volume import open as open_volume

#: rows of a table that the page shows, and that its figures are drawn from
ROWS, SAMPLE = 100, 20000
SHOWN = (
    "label",
    "volume_nm3",
    "surface_area_nm2",
    "surface_to_volume_per_nm",
    "sphericity",
    "axis_major_nm",
    "centroid_z_nm",
    "centroid_y_nm",
    "centroid_x_nm",
    "touches_border",
    "intensity_mean",
)


def write_report(url: str, to: str | None = None, spec: ReportSpec | None = None) -> str:
    """Write `report/index.html` of the finished run in the folder `url` (local or s3://), and its figures as files beside it, and return the page's URL.
    `to`: another folder than `report`. `spec`: what it shows, instead of what the recipe of the run says. InputError if the run is not finished."""
    results = Results(url)
    if results.state != "done":
        raise InputError(f"the run in {url} is {results.state}, not done: there is no report yet. The same `vemray run` command resumes it.")
    if spec is not None:
        results.run["recipe"]["report"] = spec.model_dump(mode="json")
    folder = to or access.join(str(url), "report")
    page, files = render(results, access.join(results.url, "tables") if to else "../tables")
    for name, data in files.items():
        access.write_bytes(access.join(folder, name), data)
    target = access.join(folder, "index.html")
    access.write_bytes(target, page.encode())
    return target


def render(results: Results, tables_at: str = "../tables") -> tuple[str, dict[str, bytes]]:
    """The page, and its figures as files: name -> bytes. `tables_at`: where its links find the tables."""
    import jinja2

    run = results.run
    spec = run["recipe"].get("report") or {}
    shown, notes = Shown.of(results, spec)
    colours = {title: "#{:02x}{:02x}{:02x}".format(*PALETTE[i % len(PALETTE)]) for i, title in enumerate(shown.overlays)}
    chosen = [n for n in results.arrow if spec.get("tables") is None or n in spec["tables"]]
    tables = {n: results.arrow[n] for n in chosen if "volume_nm3" in results.arrow[n].column_names}
    composition = _composition(results, chosen, colours)
    pictures = _pictures(shown)
    drawn = {
        "scenes": figures.scenes(results, spec.get("scenes") or {}),
        "statistics": figures.statistics(results, chosen, ROWS),
        "distributions": figures.distributions(results, spec.get("distributions") or [], SAMPLE),
    }
    files = {name: data for found in drawn.values() for f in found for name, data in f.files.items()}
    files |= composition["files"] if composition else {}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("vemray.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html.j2").render(
        run=run,
        about=spec.get("about", ""),
        summary=_summary(run, tables, composition),
        pictures=pictures,
        notes=notes,
        colours=colours,
        composition=composition,
        **drawn,
        uri=_uri,
        tables_at=tables_at,
        classes=[_class(n, t, _colour(run, spec, n, colours)) for n, t in tables.items()],
        evaluation=_evaluation(run),
        recipe=json.dumps(run["recipe"], indent=2),
        bytes=_bytes,
    )
    return page, files


def _uri(png: bytes) -> str:
    """A PNG as the page holds it: what is large, and so a picture and no plot, as JPEG."""
    if len(png) < 200_000:
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"
    import io

    from PIL import Image

    return data_uri(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), "JPEG")


def _colour(run: Mapping, spec: Mapping, table: str, colours: Mapping[str, str]) -> str:
    """A table's figures have the colour of the overlay that it measures."""
    measured = run["recipe"]["steps"].get(table, {}).get("labels", table.removesuffix("_table"))
    title = next((t for t, n in (spec.get("overlays") or {}).items() if n == measured), measured)
    return colours.get(title, "#777")


@dataclass
class Shown:
    """The volumes in the pictures: those the recipe names, else its one image with every label volume that was kept."""

    image: Any = None
    overlays: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Results, spec: Mapping) -> tuple[Shown, list[str]]:
        """And lines about what could not be found."""
        images = [n for n, facts in results.run["inputs"].items() if facts["kind"] == "image" and "of" not in facts]
        name = spec.get("image") or (images[0] if len(images) == 1 else None)
        overlays = spec.get("overlays") or {n: n for n, kind in results.kinds.items() if kind == "labels"}
        found = {n: _volume(results, n) for n in [*([name] if name else []), *overlays.values()]}
        notes = [v for v in found.values() if isinstance(v, str)]
        volumes = {n: v for n, v in found.items() if not isinstance(v, str)}
        return cls(volumes.get(name), {t: volumes[n] for t, n in overlays.items() if n in volumes}), notes


def _volume(results: Results, name: str):
    """An output or an input of the run; a line about it where it cannot be opened, such as an input that has moved since."""
    facts = results.run["inputs"].get(name)
    if name not in results.volumes and facts is None:
        return f"'{name}' was not kept, so the pictures are without it: name it in the recipe's outputs."
    try:
        if facts is None:
            return results.volumes[name]
        level = facts.get("level", 0)
        return open_volume(facts["url"], level, None if level else Spacing(*facts["spacing_nm"]), facts["kind"])
    except (VemrayError, OSError):
        url = access.shown(facts["url"] if facts else results.volumes.urls[name])
        return f"The {'input' if facts else 'output'} '{name}' was not found at {url}, so the pictures are without it."


def _pictures(shown: Shown) -> list[dict]:
    """The image alone and with its overlays: planes through the middle, read from the pyramid."""
    image = Source.of(shown.image) if shown.image is not None else None
    sources = {t: Source.of(v) for t, v in shown.overlays.items()}
    out = []
    if image:
        out.append({"title": "Image", "uri": data_uri(slice_figure(image), "JPEG")})
    if sources:
        listed = ", ".join(sources)
        title = f"Image with {listed}" if image else listed
        each = [t for t, s in sources.items() if crowded(s)]
        out.append({"title": title, "uri": data_uri(slice_figure(image, sources, each=each), "JPEG"), "each": each})
    return out


def _composition(results: Results, chosen: list[str], colours: Mapping[str, str]) -> dict | None:
    for n in chosen:
        t = results.arrow[n]
        if "volume_um3" not in t.column_names:
            continue
        rows = t.to_pylist()
        percents = [c for c in t.column_names if c.startswith("percent_of_")]
        first = [r for r in rows if r.get(percents[0]) is not None] if percents else []
        figure, files = "", {}
        if first:
            whole = percents[0].removeprefix("percent_of_")
            files = figures.shares(n, first, percents[0], [colours.get(r["name"], "#999") for r in first]).files
            figure = plots.bars(
                [r["name"] for r in first],
                [r[percents[0]] for r in first],
                [colours.get(r["name"], "#999") for r in first],
                f"per cent of the {whole}'s volume",
            )
        return {"name": n, "rows": rows, "percents": percents, "figure": figure, "files": files}
    return None


def _class(name: str, table, colour: str) -> dict[str, Any]:
    """One class of objects: counts, quartiles, figures, first rows. Statistics are of the objects that the border does not cut, where there
    are any: a cut one has no volume and no shape of its own."""
    cut = table.column("touches_border").to_numpy(zero_copy_only=False).astype(bool) if "touches_border" in table.column_names else None
    border = 0 if cut is None else int(np.count_nonzero(cut))
    n = table.num_rows
    whole = table.filter(~cut) if 0 < border < n else table
    rows = np.arange(whole.num_rows)
    if sampled := len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), SAMPLE, replace=False))
    part = whole.take(rows)
    values = {c: part.column(c).to_numpy(zero_copy_only=False).astype(float) * f for c, _, _, f in plots.FEATURES if c in table.column_names}
    stats = []
    for column, title, unit, factor in plots.FEATURES:
        if column in table.column_names and n:
            v = whole.column(column).to_numpy(zero_copy_only=False).astype(float) * factor
            v = v[np.isfinite(v)]
            if len(v):
                quartiles = [float(x) for x in np.percentile(v, [25, 50, 75])]
                stats.append({"title": title, "unit": unit, "n": len(v), "q": quartiles, "min": float(v.min()), "max": float(v.max())})
    columns = [c for c in SHOWN if c in table.column_names]
    return {
        "name": name, "n": n, "border": border, "whole": whole.num_rows, "stats": stats, "sampled": sampled, "columns": columns,
        "rows": table.select(columns).slice(0, ROWS).to_pylist(), "figure": plots.distributions(values, colour) if whole.num_rows > 1 else "",
    }  # fmt: skip


def _evaluation(run: Mapping) -> list[dict]:
    out = []
    for name, e in (run.get("evaluation") or {}).items():
        base = (run.get("baseline") or {}).get(name)
        several = e["objects"] and e["objects"][0]["true"] > 1
        out.append(
            {"name": name, "e": e, "base": base, "figure": plots.agreement_curve(e["objects"], base["objects"] if base else None) if several else ""}
        )
    return out


def _summary(run: Mapping, tables: Mapping, composition: dict | None) -> list[str]:
    """The result in plain words."""
    out = []
    if composition:
        for r in composition["rows"]:
            parts = [
                f"{r[p]:.1f} % of the {p.removeprefix('percent_of_')}"
                for p in composition["percents"]
                if r.get(p) is not None and r["name"] != p.removeprefix("percent_of_")
            ]
            count = f" ({r['objects']} objects)" if (r.get("objects") or 0) > 1 else ""
            out.append(f"{r['name'].capitalize()}{count}: {r['volume_um3']:.2f} µm³" + (", " + ", ".join(parts) if parts else "") + ".")
    else:
        out += [f"{n}: {t.num_rows} object{'s' * (t.num_rows != 1)}." for n, t in tables.items()]
    for name, e in (run.get("evaluation") or {}).items():
        o = e["objects"][0]
        if o["true"] > 1:
            base = (run.get("baseline") or {}).get(name)
            beside = f"; {base['method']} reaches {base['objects'][0]['f1']:.3f}" if base else ""
            out.append(
                f"Held against the truth, {name}: object F1 {o['f1']:.3f} at IoU {o['iou']:g} ({o['matched']} of {o['true']} found, {o['predicted'] - o['matched']} too many){beside}."
            )
        else:
            out.append(f"Held against the truth, {name}: Dice {e['voxels']['dice']:.3f}.")
    return out


def _bytes(n: float) -> str:
    from vemray.plan.cost import size

    return size(n)
