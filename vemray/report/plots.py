"""Figures of tables as inline SVG: distributions, per cent bars, agreement curves. Matplotlib without a display or global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

#: (column, title, unit shown, factor)
FEATURES = (
    ("volume_nm3", "volume", "µm³", 1e-9),
    ("surface_to_volume_per_nm", "surface to volume", "1/µm", 1e3),
    ("sphericity", "sphericity", "", 1.0),
    ("equivalent_diameter_nm", "equivalent diameter", "nm", 1.0),
    ("axis_major_nm", "major axis", "nm", 1.0),
    ("intensity_mean", "mean intensity", "grey", 1.0),
)


def _svg(figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, bbox_inches="tight")
    text = out.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float, columns: int = 1):
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "vemray"
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for a in axes:
        a.spines[["top", "right"]].set_visible(False)
    return figure, axes


def distributions(values: Mapping[str, np.ndarray], colour: str) -> str:
    """Histograms side by side of the features in `values` (already in the units of FEATURES)."""
    chosen = [f for f in FEATURES if f[0] in values]
    figure, axes = _figure(2.6 * len(chosen), 2.3, max(1, len(chosen)))
    for a, (name, title, unit, _) in zip(axes, chosen):
        v = values[name][np.isfinite(values[name])]
        a.hist(v, bins=min(40, max(5, int(np.sqrt(len(v)) * 1.5))) if len(v) else 5, color=colour)
        if len(v):
            a.axvline(np.median(v), color="#444", linewidth=1, linestyle="--")
        a.set_xlabel(f"{title} ({unit})" if unit else title)
        a.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    axes[0].set_ylabel("objects")
    return _svg(figure)


def bars(names: Sequence[str], percent: Sequence[float], colours: Sequence[str], label: str) -> str:
    figure, (a,) = _figure(6.2, 0.5 + 0.36 * len(names))
    at = np.arange(len(names))[::-1]
    a.barh(at, percent, color=colours, height=0.62)
    a.set_yticks(at, names)
    for y, p in zip(at, percent):
        a.text(p, y, f" {p:.1f} %", va="center", fontsize=9)
    a.set_xlabel(label)
    a.set_xlim(0, max([*percent, 1]) * 1.15)
    return _svg(figure)


def agreement_curve(rows: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]] | None) -> str:
    """F1, precision and recall over IoU thresholds; the baseline's F1 dashed."""
    figure, (a,) = _figure(4.6, 2.6)
    x = [r["iou"] for r in rows]
    for key, colour in (("f1", "#d2691e"), ("precision", "#4682b4"), ("recall", "#2e8b57")):
        a.plot(x, [r[key] for r in rows], marker="o", markersize=3, color=colour, label=key.upper() if key == "f1" else key)
    if base:
        a.plot([r["iou"] for r in base], [r["f1"] for r in base], "--", color="#999", label="F1, threshold alone")
    a.set_ylim(-0.02, 1.02)
    a.set_xlabel("IoU threshold")
    a.legend(frameon=False, fontsize=8)
    return _svg(figure)


def training(history: Sequence[Mapping]) -> str:
    """Loss, and Dice of each class on the validation region, by step."""
    figure, (left, right) = _figure(8.4, 2.8, 2)
    steps = [h["step"] for h in history]
    left.plot(steps, [h["loss"] for h in history], color="#444", marker=".")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    for name in history[-1]["dice"] if history else ():
        right.plot(steps, [np.nan if h["dice"][name] is None else h["dice"][name] for h in history], marker=".", label=name)
    right.set(xlabel="step", ylabel="Dice, validation region", ylim=(0, 1))
    right.legend(frameon=False, fontsize="small")
    return _svg(figure)
