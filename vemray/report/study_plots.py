"""The plots of a study of cells, as PNG or SVG: a correlation with its line, two groups with their test, shares of a whole, a distribution.

Every plot says n; what a test found is given as a line of text, as the statistics' table has it. Values are in the table's columns' units and
are shown in those of `quantities`. The groups' colours can be told apart by colour-blind readers (Okabe and Ito 2008)."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from vemray.errors import InputError
from vemray.report.quantities import Quantity, quantity

#: Okabe and Ito's colours without yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
_STYLE = {
    "font.size": 9,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "vemray",
    "svg.fonttype": "none",
}
#: dots are drawn up to so many; of more, every n-th
_DOTS = 4000


def _start(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=200)
    return figure, figure.subplots()


def _finished(figure, form: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=form, facecolor="white", metadata={"Date": None} if form == "svg" else {"Software": None})
    return out.getvalue()


def _styled(plot):
    """Draws with the module's style, and leaves matplotlib's own as it was."""
    import functools

    @functools.wraps(plot)
    def drawn(*args, **how):
        import matplotlib

        form = how.pop("form", "png")
        if form not in ("png", "svg", "pdf"):
            raise InputError(f"a plot is png, svg or pdf, not '{form}'.")
        with matplotlib.rc_context(_STYLE):
            return _finished(plot(*args, **how), form)

    return drawn


def _shown(values: Sequence[float], q: Quantity) -> np.ndarray:
    return np.asarray(values, float) * q.factor


@_styled
def scatter(
    x: Sequence[float], y: Sequence[float], x_column: str, y_column: str, text: str = "", colour: str = COLOURS[0],
    names: Sequence[str | None] = (None, None),
):  # fmt: skip
    """y over x with the least-squares line and its 95 % confidence band; `text` is written into the plot, such as "r = -0.61 [-0.70, -0.49]".
    `names`: of x and y, without units, instead of what the columns' names give."""
    qx, qy = quantity(x_column, names[0]), quantity(y_column, names[1])
    x, y = _shown(x, qx), _shown(y, qy)
    ok = np.isfinite(x) & np.isfinite(y)
    x, y = x[ok], y[ok]
    figure, a = _start(4.2, 3.5)
    step = max(1, -(-len(x) // _DOTS))
    a.scatter(x[::step], y[::step], s=14 if len(x) < 500 else 5, color=colour, alpha=0.55, linewidths=0)
    if len(x) > 2 and np.ptp(x) > 0:
        at, line, half = regression(x, y)
        a.plot(at, line, color="black", linewidth=1.2)
        a.fill_between(at, line - half, line + half, color="black", alpha=0.12, linewidth=0)
    said = f"{text}\nn = {len(x)}" if text else f"n = {len(x)}"
    a.set_title(said, loc="left", fontsize=9)
    a.set_xlabel(qx.label)
    a.set_ylabel(qy.label)
    return figure


def regression(x: np.ndarray, y: np.ndarray, points: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares: abscissae, the line at them, and half the width of the 95 % confidence band of the mean."""
    from scipy.stats import t

    n, mean = len(x), x.mean()
    sxx = ((x - mean) ** 2).sum()
    slope = ((x - mean) * (y - y.mean())).sum() / sxx
    at = np.linspace(x.min(), x.max(), points)
    line = y.mean() + slope * (at - mean)
    residual = y - y.mean() - slope * (x - mean)
    deviation = np.sqrt((residual**2).sum() / (n - 2))
    return at, line, t.ppf(0.975, n - 2) * deviation * np.sqrt(1 / n + (at - mean) ** 2 / sxx)


@_styled
def groups(values: Mapping[str, Sequence[float]], column: str, text: str = ""):
    """A violin for each group with its quartiles and, of small groups, every value; `text` such as "Welch's t = 3.1, p = 0.002"."""
    q = quantity(column)
    shown = {n: v[np.isfinite(v)] for n, v in ((n, _shown(v, q)) for n, v in values.items())}
    figure, a = _start(1.2 + 1.25 * max(2, len(shown)), 3.6)
    for i, (v, colour) in enumerate(zip(shown.values(), _cycled(len(shown)))):
        if not len(v):
            continue
        if len(v) > 4 and np.ptp(v) > 0:
            body = a.violinplot(v, [i], widths=0.8, showextrema=False)["bodies"][0]
            body.set(facecolor=colour, alpha=0.35, edgecolor="none")
        step = max(1, -(-len(v) // 300))
        spread = np.random.default_rng(i).uniform(-0.13, 0.13, len(v[::step]))
        a.scatter(i + spread, v[::step], s=6, color=colour, alpha=0.6, linewidths=0)
        low, middle, high = np.percentile(v, [25, 50, 75])
        a.plot([i, i], [low, high], color="black", linewidth=3, solid_capstyle="butt")
        a.plot(i, middle, "o", color="white", markersize=5, markeredgecolor="black", markeredgewidth=1)
    a.set_xticks(range(len(shown)), [f"{textwrap.fill(str(n), 20)}\nn = {len(v)}" for n, v in shown.items()])
    a.set_xlim(-0.6, len(shown) - 0.4)
    a.set_ylabel(q.label)
    if text:
        a.set_title(text, fontsize=9)
    return figure


@_styled
def distribution(values: Sequence[float], column: str, text: str = "", bins: int = 40, colour: str = COLOURS[0]):
    """A histogram with its median."""
    q = quantity(column)
    v = _shown(values, q)
    v = v[np.isfinite(v)]
    figure, a = _start(4.2, 3.0)
    a.hist(v, bins=min(bins, max(5, int(2 * np.sqrt(len(v))))), color=colour, alpha=0.85, edgecolor="white", linewidth=0.4)
    if len(v):
        a.axvline(np.median(v), color="black", linestyle="--", linewidth=1)
        said = f"median {np.median(v):.3g} {q.unit}".rstrip()
        a.set_title(f"{text}\n{said}, n = {len(v)}" if text else f"{said}, n = {len(v)}", loc="left", fontsize=9)
    a.set_xlabel(q.label)
    a.set_ylabel("objects")
    return figure


@_styled
def shares(percent: Mapping[str, float], whole: str = "cell volume", colours: Sequence[str] | None = None):
    """Per cent of a whole, one bar each, with the number at its end."""
    names = list(percent)
    figure, a = _start(4.6, 0.7 + 0.38 * len(names))
    at = np.arange(len(names))[::-1]
    a.barh(at, list(percent.values()), color=list(colours or _cycled(len(names))), height=0.64)
    a.set_yticks(at, names)
    for y, p in zip(at, percent.values()):
        a.text(p, y, f" {p:.3g} %", va="center", fontsize=9)
    a.set_xlim(0, max([*percent.values(), 1e-9]) * 1.18)
    a.set_xlabel(f"% of {whole}")
    return figure


@_styled
def composition(parts: Mapping[str, float], whole: str = "cell volume", colours: Sequence[str] | None = None):
    """Parts that make up a whole as one ring; what is missing to 100 % is 'other'. InputError if they are more than the whole."""
    total = sum(parts.values())
    if total > 100.01 or min(parts.values(), default=0) < 0:
        raise InputError(f"parts of a whole are between 0 and 100 % together, not {total:.4g} %. Objects that lie in each other belong into bars.")
    shown = {**parts, **({"other": 100 - total} if total < 99.95 else {})}
    rgb = [*(colours or _cycled(len(parts))), "#cccccc"][: len(shown)]
    figure, a = _start(5.6, 3.0)
    wedges, _ = a.pie(list(shown.values()), colors=rgb, startangle=90, counterclock=False, wedgeprops={"width": 0.42, "edgecolor": "white"})
    a.legend(wedges, [f"{n}  {p:.3g} %" for n, p in shown.items()], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    a.text(0, 0, whole.replace(" ", "\n"), ha="center", va="center", fontsize=9)
    return figure


def _cycled(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]
