"""The figures of a run's report: the plots of its statistics and the pictures in 3D that its recipe asks for, each with what is said about it.

A figure that cannot be made costs the report one line, not the other figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vemray.analysis import features
from vemray.analysis.groups import split
from vemray.analysis.points import CENTRE
from vemray.analysis.selection import samples
from vemray.analysis.sentences import p_value, plain, rho_text
from vemray.errors import InputError, MissingExtra, VemrayError, nearest
from vemray.plan.scenes import SceneSpec, column_of
from vemray.report import study_plots
from vemray.run.results import Results

#: plots of one step with `by`
EACH = 12
#: voxels of a level that is meshed for a picture of the report: more than its pixels show
VOXELS = 24_000_000


@dataclass
class Figure:
    """`files`: name in the report's folder -> bytes, the PNG that the page shows first. `lines`: what is said beside it, `notes`: warnings."""

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    title: str = ""
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""

    @property
    def png(self) -> bytes | None:
        return next((data for name, data in self.files.items() if name.endswith(".png")), None)


def _plot(name: str, draw, *args: Any, **how: Any) -> dict[str, bytes]:
    return {f"plots/{name}.{form}": draw(*args, form=form, **how) for form in ("png", "svg")}


def statistics(results: Results, chosen: list[str], rows: int) -> list[Figure]:
    """Results in words, every table that carries sentences, with the warning beside each; a correlation and a comparison with its plot."""
    out: list[Figure] = []
    heard = set()
    for name in chosen:
        table = results.arrow[name]
        if "sentence" not in table.column_names:
            continue
        step = results.run["recipe"]["steps"].get(name, {})
        draw = {"correlate": _scatters, "compare_groups": _violins}.get(step.get("op"))
        said = [r for r in table.slice(0, rows).to_pylist() if r["sentence"]]
        drawn: dict[Any, dict[str, bytes]] = {}
        note = ""
        if draw and step["table"] not in results.arrow:
            note = f"No plot: the objects in '{step['table']}' were not kept. Name it in the recipe's outputs."
        elif draw:
            try:
                drawn = dict(draw(name, step, results.arrow[step["table"]], {r["by_value"]: r for r in said[:EACH]}))
            except VemrayError as e:
                note = f"No plot: {e}"
        for i, r in enumerate(said):
            warning = r.get("warning") or ""
            text = r["sentence"].removesuffix(warning).strip()  # a sentence ends with its warning, which is set apart here
            notes = ["With the same warning."] if warning in heard else [warning] if warning else []
            heard |= {warning} - {""}
            out.append(Figure(name, drawn.get(r.get("by_value"), {}), lines=[text], notes=notes + [note] * (note != "" and not i)))
    return out


def _scatters(name: str, step: Mapping, table, rows: Mapping[Any, Mapping]) -> Iterator[tuple[Any, dict[str, bytes]]]:
    first = next(iter(rows.values()), None)
    if first is None:
        return
    both = tuple(features.value(first[v], table) for v in "xy")
    for i, s in enumerate(samples(table, both, step.get("where"), step.get("by"), step.get("position", CENTRE))):
        if (r := rows.get(s.by)) is None:
            continue
        text = "" if s.by is None else f"{r['by']} = {s.by}. "
        if r["spearman_rho"] is not None:
            low, high = r.get("spearman_low"), r.get("spearman_high")
            interval = f" [{rho_text(low)}, {rho_text(high)}]" if low is not None and high is not None else ""
            text += f"Spearman ρ = {rho_text(r['spearman_rho'])}{interval}, p = {p_value(r['spearman_p'])}"
            if r["spearman_p_spatial"] is not None:
                text += f"\np respecting spatial dependence = {p_value(r['spearman_p_spatial'])}"
        names = (r.get("x_name"), r.get("y_name"))
        yield s.by, _plot(_numbered(name, s.by, i), study_plots.scatter, *s.columns, r["x"], r["y"], text, names=names)


def _violins(name: str, step: Mapping, table, rows: Mapping[Any, Mapping]) -> Iterator[tuple[Any, dict[str, bytes]]]:
    first = next(iter(rows.values()), None)
    if first is None:
        return
    where = step.get("where")
    keep = np.ones(table.num_rows, bool) if where is None else features.evaluate(where, table)
    second, _ = split(table, step.get("group", "section"), keep)
    columns = (second, features.value(first["value"], table))
    for i, s in enumerate(samples(table, columns, where, step.get("by"), step.get("position", CENTRE))):
        if (r := rows.get(s.by)) is None:
            continue
        text = "" if s.by is None else f"{r['by']} = {s.by}\n"
        if r["welch_p"] is not None:
            text += f"Welch t = {plain(r['welch_t'])}, p = {p_value(r['welch_p'])}\nMann-Whitney p = {p_value(r['mann_whitney_p'])}"
            text += f"\np respecting spatial dependence = {p_value(r['p_spatial'])}" if r["p_spatial"] is not None else ""
        both = {r["group_a"]: s.columns[1][s.columns[0] == 0], r["group_b"]: s.columns[1][s.columns[0] == 1]}
        yield s.by, _plot(_numbered(name, s.by, i), study_plots.groups, both, r["value"], text)


def _numbered(name: str, by: Any, i: int) -> str:
    return name if by is None else f"{name}_{i + 1}"


def shares(name: str, rows: list[dict], percent: str, colours: list[str] | None) -> Figure:
    """The bars of a table of `composition` as files; the page has its own."""
    values = {r["name"]: r[percent] for r in rows}
    return Figure(name, _plot(name, study_plots.shares, values, f"{percent.removeprefix('percent_of_')} volume", colours))


def distributions(results: Results, asked: list[str], sample: int) -> list[Figure]:
    """A histogram of each TABLE.COLUMN; of very many values a sample."""
    out = []
    for text in asked:
        name, column = column_of(text, "report.distributions:")
        figure = Figure(text)
        try:
            table = results.arrow[name]
            if column not in table.column_names:
                raise InputError(f"'{name}' has no column '{column}'.{nearest(column, table.column_names)}")
            values = table.column(column).to_numpy(zero_copy_only=False)
            if values.dtype.kind not in "fiub":
                raise InputError("a histogram is of numbers.")
            if len(values) > sample:
                values = np.random.default_rng(0).choice(values, sample, replace=False)
                figure.notes.append(f"A random sample (seed 0) of {sample} values.")
            figure.files = _plot(f"{name}_{column}", study_plots.distribution, values, column)
        except (KeyError, VemrayError) as e:
            figure.notes = [f"{text} is not drawn: {e.args[0] if e.args else e}"]
        out.append(figure)
    return out


def scenes(results: Results, asked: Mapping[str, Mapping]) -> list[Figure]:
    """The pictures in 3D. Without the extra 'pictures' one line in their place."""
    from vemray.report.objects3d import VOXELS as MOST
    from vemray.report.objects3d import picture

    out = []
    for name, body in asked.items():
        s = SceneSpec(**body)
        figure = Figure(name, title=s.title or name.replace("_", " "), command=s.command(results.url, f"{name}.png"))
        try:
            bound = VOXELS if s.level is None else MOST
            png, figure.lines = picture(results, s.show, s.colour, s.points, s.clip, s.view, s.range, s.map, s.level, s.size, "", bound)
            figure.files = {f"scenes/{name}.png": png}
        except MissingExtra as e:
            return [Figure("", notes=[f"Left out, {', '.join(asked)}: {e}"])]
        except Exception as e:  # a driver that cannot draw is no reason to have no report
            said = str(e).replace("--", "") if isinstance(e, VemrayError) else f"{type(e).__name__}: {e}"
            figure.notes.append(f"'{name}' could not be drawn. {said}")
        out.append(figure)
    return out
