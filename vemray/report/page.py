"""The report of a run: one HTML page that holds everything it shows, from what the run left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vemray.report import plots
from vemray.report.pictures import PALETTE, Source, data_uri, slice_figure
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


def write_report(url: str) -> str:
    """Write `report/index.html` of the run in the folder `url` (local or s3://) and return its URL."""
    page = render(Results(url))
    target = access.join(str(url), "report", "index.html")
    access.write_bytes(target, page.encode())
    return target


def render(results: Results) -> str:
    import jinja2

    run = results.run
    spec = run["recipe"].get("report") or {}
    overlays = {title: name for title, name in (spec.get("overlays") or {}).items() if name in results.volumes}
    colours = {title: "#{:02x}{:02x}{:02x}".format(*PALETTE[i % len(PALETTE)]) for i, title in enumerate(overlays)}
    tables = {n: results.arrow[n] for n in results.arrow if "." not in n and "volume_nm3" in results.arrow[n].column_names}
    composition = _composition(results, colours)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("vemray.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(
        run=run,
        summary=_summary(run, tables, composition),
        pictures=_pictures(results, run, spec, overlays),
        colours=colours,
        composition=composition,
        classes=[_class(n, t, colours.get(n.removesuffix("_table"), "#777")) for n, t in tables.items()],
        evaluation=_evaluation(run),
        recipe=json.dumps(run["recipe"], indent=2),
        bytes=_bytes,
    )


def _pictures(results: Results, run: Mapping, spec: Mapping, overlays: Mapping[str, str]) -> list[dict]:
    """The image alone and with its overlays: planes through the middle, read from the pyramid."""
    name = spec.get("image")
    volume = results.volumes[name] if name in results.volumes else _input(run, name)
    if volume is None and not overlays:
        return []
    image = Source.of(volume) if volume is not None else None
    sources = {t: Source.of(results.volumes[n]) for t, n in overlays.items()}
    out = []
    if image:
        out.append({"title": "Image", "uri": data_uri(slice_figure(image), "JPEG")})
    if sources:
        out.append(
            {"title": "Image with " + ", ".join(overlays) if image else ", ".join(overlays), "uri": data_uri(slice_figure(image, sources), "JPEG")}
        )
    return out


def _input(run: Mapping, name: str | None):
    """The input volume, if it still can be opened: a report of an old run does without."""
    if name not in run["inputs"]:
        return None
    from vemray.errors import VemrayError
    from vemray.geometry import Spacing

    facts = run["inputs"][name]
    try:
        return open_volume(facts["url"], spacing=Spacing(*facts["spacing_nm"]))
    except (VemrayError, FileNotFoundError):
        return None


def _composition(results: Results, colours: Mapping[str, str]) -> dict | None:
    for n in results.arrow:
        t = results.arrow[n]
        if "." in n or "volume_um3" not in t.column_names:
            continue
        rows = t.to_pylist()
        percents = [c for c in t.column_names if c.startswith("percent_of_")]
        first = [r for r in rows if r.get(percents[0]) is not None] if percents else []
        figure = ""
        if first:
            whole = percents[0].removeprefix("percent_of_")
            figure = plots.bars(
                [r["name"] for r in first],
                [r[percents[0]] for r in first],
                [colours.get(r["name"], "#999") for r in first],
                f"per cent of the {whole}'s volume",
            )
        return {"name": n, "rows": rows, "percents": percents, "figure": figure}
    return None


def _class(name: str, table, colour: str) -> dict[str, Any]:
    """One class of objects: counts, quartiles, figures, first rows."""
    n = table.num_rows
    rows = np.arange(n) if n <= SAMPLE else np.sort(np.random.default_rng(0).choice(n, SAMPLE, replace=False))
    part = table.take(rows)
    values = {c: part.column(c).to_numpy(zero_copy_only=False).astype(float) * f for c, _, _, f in plots.FEATURES if c in table.column_names}
    stats = []
    for column, title, unit, factor in plots.FEATURES:
        if column in table.column_names and n:
            v = table.column(column).to_numpy(zero_copy_only=False).astype(float) * factor
            v = v[np.isfinite(v)]
            if len(v):
                stats.append(
                    {
                        "title": title,
                        "unit": unit,
                        "n": len(v),
                        "q": [float(x) for x in np.percentile(v, [25, 50, 75])],
                        "min": float(v.min()),
                        "max": float(v.max()),
                    }
                )
    border = int(np.count_nonzero(table.column("touches_border").to_numpy(zero_copy_only=False))) if "touches_border" in table.column_names else 0
    columns = [c for c in SHOWN if c in table.column_names]
    return {
        "name": name, "n": n, "border": border, "stats": stats, "sampled": n > SAMPLE, "columns": columns,
        "rows": table.select(columns).slice(0, ROWS).to_pylist(), "figure": plots.distributions(values, colour) if n > 1 else "",
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
        out += [f"{n}: {t.num_rows} objects." for n, t in tables.items()]
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
