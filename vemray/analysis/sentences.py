"""Results of statistics in words, from the rows of their tables alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: a p below this is called a relation or a difference
ALPHA = 0.05
#: fewer objects than this are few
FEW = 10
_UNITS = {
    "per_nm": "per nm", "per_nm3": "per nm³", "per_um": "per µm", "per_um2": "per µm²", "per_um3": "per µm³",
    "nm": "nm", "nm2": "nm²", "nm3": "nm³", "um": "µm", "um2": "µm²", "um3": "µm³",
}  # fmt: skip
_UNIT = re.compile(rf"(?:_|^(?=per))({'|'.join(sorted(_UNITS, key=len, reverse=True))})$")


def plain(value: float) -> str:
    """Three figures, without a needless exponent."""
    size = abs(value)
    return f"{value:.3g}" if size == 0 or 1e-3 <= size < 1e3 else f"{value:.0f}" if 1e3 <= size < 1e6 else f"{value:.2e}"


def p_value(p: float) -> str:
    return "below 1e-300" if p < 1e-300 else f"{p:.1e}" if p < 1e-4 else f"{p:.2g}"


def title(stem: str, unit: str) -> str:
    """A column's name without its unit, in words: the distances of `distance_to_surface` and its like are columns to_TARGET_nm and nearest_nm."""
    if not stem:
        return "number"
    if unit in ("nm", "um"):
        stem = "distance_to_the_nearest" if stem == "nearest" else f"distance_{stem}" if stem.startswith("to_") else stem
    return stem.replace("_", " ")


def unit(name: str) -> str:
    """'nm' of 'radius_nm'; '' where a name says none."""
    found = _UNIT.search(name)
    return _UNITS[found[1]] if found else ""


def words(column: str, name: str | None = None) -> str:
    """'surface_to_volume_per_nm' as 'surface to volume (per nm)', with `name` as 'NAME (per nm)'; an expression stays as it is."""
    if not column.isidentifier():
        return name or column
    found = _UNIT.search(column)
    if not found:
        return name or title(column, "")
    return f"{name or title(column[: found.start()], found[1])} ({_UNITS[found[1]]})"


def replicates(n: int, datasets: int) -> str:
    if n < 2 or n == datasets:
        return ""
    if datasets > 1:
        return (
            f"The objects come from {datasets} data sets, and objects of one cell are not independent replicates: p and intervals take them as if they "
            f"were. The replicate is the cell: compare one value for each data set (n = {datasets})."
        )
    return (
        "Objects of one cell are not independent replicates: p and intervals speak about this cell only. The replicate is the cell: for a statement "
        "about cells compare several data sets."
    )


def _spatial_warning(row: Mapping[str, Any], n: int, why_not: str) -> list[str]:
    if why_not:
        return [f"The permutation test that respects spatial dependence was not made: {why_not}."]
    used = row.get("spatial_objects")
    return [f"The permutation test was made with {used} of the {n} objects, chosen at random."] if used and used < n else []


def _dropped(row: Mapping[str, Any]) -> list[str]:
    k = row["dropped"]
    return [f"{k} row{'s' if k > 1 else ''} without a value {'were' if k > 1 else 'was'} left out."] if k else []


def _axis(row: Mapping[str, Any], v: str) -> str:
    return words(row[v], row.get(v + "_name"))


def correlation_warning(row: Mapping[str, Any], why_not: str = "") -> str:
    n = row["n"]
    out = [replicates(n, row["datasets"])]
    if n < FEW:
        out.append(f"There are only {n} objects: the interval is wide, and p rests on assumptions that cannot be checked.")
    tied = [f"{_axis(row, v)} has {row[v + '_distinct']} distinct values" for v in "xy" if 0 < row[v + "_distinct"] < n]
    if tied:
        out.append(f"There are ties ({'; '.join(tied)}): p of Spearman's rho is approximate.")
    return " ".join(filter(None, [*out, *_dropped(row), *_spatial_warning(row, n, why_not)]))


def groups_warning(row: Mapping[str, Any], why_not: str = "") -> str:
    n = row["n_a"] + row["n_b"]
    out = [replicates(n, row["datasets"])]
    if min(row["n_a"], row["n_b"]) < FEW:
        out.append(f"There are only {row['n_a']} and {row['n_b']} objects: the t-tests rest on normal values, which cannot be checked.")
    low, high = sorted(row.get(f"sd_{g}") or 0.0 for g in "ab")
    if high > 2 * low and row.get("sd_a") is not None and row.get("sd_b") is not None:
        times = f"by a factor of {plain(high / low)}" if low > 0 else "(one is 0)"
        out.append(f"The standard deviations differ {times}: read Welch's test, not Student's.")
    if row["ties"]:
        out.append("There are ties: p of the Mann-Whitney test is by the normal approximation.")
    return " ".join(filter(None, [*out, *_dropped(row), *_spatial_warning(row, n, why_not)]))


def _among(row: Mapping[str, Any], n: int) -> str:
    where = f"Where {words(row['by'])} is {row['by_value']}, among" if row.get("by") is not None else "Among"
    return f"{where} {n} {row['objects']}"


def _with_warning(text: str, row: Mapping[str, Any]) -> str:
    return f"{text} {row['warning']}".strip()


def correlation_sentence(row: Mapping[str, Any]) -> str:
    x, y, n, rho = _axis(row, "x"), _axis(row, "y"), row["n"], row.get("spearman_rho")
    start = _among(row, n)
    if rho is None:
        same = [_axis(row, v) for v in "xy" if row[v + "_distinct"] == 1]
        why = "3 or more are needed" if n < 3 else f"all have the same {' and the same '.join(same)}"
        return _with_warning(f"{start}, no correlation of {y} with {x} can be computed: {why}.", row)
    interval = f"95 % CI {rho_text(row['spearman_low'])} to {rho_text(row['spearman_high'])}, " if row.get("spearman_low") is not None else ""
    facts = f"Spearman rho = {rho_text(rho)}, {interval}n = {n}, p = {p_value(row['spearman_p'])}"
    spatial = row.get("spearman_p_spatial")
    with_spatial = facts if spatial is None else f"{facts}; permutation respecting spatial dependence p = {p_value(spatial)}"
    direction = "rose" if rho > 0 else "fell"
    if row["spearman_p"] >= ALPHA or rho == 0:
        text = f"{start}, no relation of {y} with {x} was found ({with_spatial})."
    elif spatial is None or spatial < ALPHA:
        text = f"{start}, {y} {direction} with {x} ({with_spatial})."
    else:
        text = (
            f"{start}, {y} {direction} with {x} ({facts}), but not beyond what chance gives where near objects are alike "
            f"(permutation respecting spatial dependence p = {p_value(spatial)})."
        )
    return _with_warning(text, row)


def rho_text(rho: float) -> str:
    return f"{rho:.2f}" if f"{rho:.2f}" != "-0.00" else "0.00"


def groups_sentence(row: Mapping[str, Any]) -> str:
    value, a, b = words(row["value"]), row["group_a"], row["group_b"]
    n = row["n_a"] + row["n_b"]
    start = _among(row, n)
    if row.get("difference") is None:
        none = " and ".join(f"'{g}'" for g, k in ((a, row["n_a"]), (b, row["n_b"])) if k == 0)
        return _with_warning(f"{start}, {value} cannot be compared: there are none in {none}.", row)

    def group(g: str) -> str:
        sd = f", sd {plain(row['sd_' + g])}" if row.get("sd_" + g) is not None else ""
        return f"{row['group_' + g]} (mean {plain(row['mean_' + g])}{sd}, n = {row['n_' + g]})"

    p = row.get("welch_p")
    if p is None:
        text = f"{start}, {value} of {group('a')} and {group('b')} cannot be tested: each group needs two objects, and some of them must differ."
        return _with_warning(text, row)
    facts = (
        f"difference {plain(row['difference'])}, 95 % CI {plain(row['difference_low'])} to {plain(row['difference_high'])}; "
        f"Welch t = {plain(row['welch_t'])}, p = {p_value(p)}; Mann-Whitney p = {p_value(row['mann_whitney_p'])}; "
        f"Cohen's d = {plain(row['cohens_d'])}, Cliff's delta = {plain(row['cliffs_delta'])}"
    )
    spatial = row.get("p_spatial")
    with_spatial = facts if spatial is None else f"{facts}; permutation respecting spatial dependence p = {p_value(spatial)}"
    direction = "higher" if row["difference"] > 0 else "lower"
    if p >= ALPHA:
        text = f"{start}, no difference of {value} was found between {group('a')} and {group('b')}: {with_spatial}."
    elif spatial is None or spatial < ALPHA:
        text = f"{start}, {value} was {direction} in {group('a')} than in {group('b')}: {with_spatial}."
    else:
        text = (
            f"{start}, {value} was {direction} in {group('a')} than in {group('b')}: {facts}; but not beyond what chance gives where near objects "
            f"are alike (permutation respecting spatial dependence p = {p_value(spatial)})."
        )
    return _with_warning(text, row)


def placement_sentence(row: Mapping[str, Any], names: tuple[str, str], apart_nm: float) -> str:
    """A row of `random_placement`; '' for statistics that say nothing to a reader by themselves, or that too few objects leave undefined."""
    observed, p, n, objects = row["observed"], row["p"], row["objects"], row["what"]
    if not (observed == observed and p == p):
        return ""
    at_random = f"placed at random{f' at least {plain(apart_nm)} nm apart' if apart_nm else ''}"
    chance = f"{plain(row['low'])} to {plain(row['high'])}"
    simulated = f"(p = {p_value(p)}, {row['simulations']} placements)"
    more = observed > row["mean"]
    if row["statistic"] == "density_ratio":
        interval = f" (95 % interval {plain(row['interval_low'])} to {plain(row['interval_high'])})"
        text = f"Of {n} {objects}, {names[0]} had {plain(observed)} times as many per area as {names[1]}{interval}; {at_random} it is {chance} times"
        verdict = f": {'more' if more else 'fewer'} than by chance" if p < ALPHA else ", which chance alone gives as well"
    elif row["statistic"] == "mean_nearest_nm":
        text = f"The nearest of the other {n - 1} {objects} lay {plain(observed)} nm away in the mean; {at_random} it is {chance} nm"
        verdict = f": they lie {'farther apart' if more else 'nearer together'} than by chance" if p < ALPHA else ": no different from chance"
    else:
        return ""
    return f"{text} {simulated}{verdict}."
