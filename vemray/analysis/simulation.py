"""An observed statistic against those of simulated patterns: p, envelope and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from vemray.analysis.sentences import p_value, plain
from vemray.errors import RecipeError


def simulation_test(
    observed: float,
    simulated: Sequence[float],
    what: str,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Monte Carlo test (Barnard 1963). `p` is (1 + simulated patterns at least as extreme) / (1 + patterns); two-sided it is twice the smaller
    of both sides, at most 1. `low` and `high` hold `confidence` of the simulated. `what` is the statistic in words, for the sentence."""
    values = np.asarray(simulated, float)
    if len(values) == 0 or not np.isfinite(values).all() or not np.isfinite(observed):
        raise RecipeError(f"{what}: the observed value and one or more simulated ones are needed, all of them finite.")
    equal = 1e-12 * abs(observed)
    above, below = (float((1 + np.count_nonzero(far)) / (1 + len(values))) for far in (values >= observed - equal, values <= observed + equal))
    p = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[alternative]
    low, high = (float(v) for v in np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]))
    out = {"observed": float(observed), "simulated": len(values), "mean": float(values.mean()), "low": low, "high": high, "p": p}
    return {**out, "alternative": alternative, "sentence": _sentence(out, what, confidence)}


def _sentence(t: dict[str, Any], what: str, confidence: float) -> str:
    where = f"{confidence:.0%}".replace("%", " %") + f" of {t['simulated']} simulated patterns lie within {plain(t['low'])} to {plain(t['high'])}"
    facts = f"mean of the simulated {plain(t['mean'])}; {where}; p = {p_value(t['p'])}"
    least = 1 / (1 + t["simulated"])
    few = f" With {t['simulated']} simulations p cannot fall below {p_value(least)}." if least > 0.01 else ""
    if t["p"] >= 0.05:
        return f"{what} was {plain(t['observed'])}, as chance gives ({facts}).{few}"
    side = "above" if t["observed"] > t["mean"] else "below"
    return f"{what} was {plain(t['observed'])}, {side} what chance gives ({facts}).{few}"


def envelope_test(observed: Sequence[float], simulated: np.ndarray, what: str, confidence: float = 0.95) -> dict[str, Any]:
    """The same of a curve, such as a count of pairs over distances: `observed` (m,), `simulated` (patterns, m). One p of the whole curve, two-sided,
    by its largest deviation from the mean, in standard deviations of all patterns with the observed among them (Myllymaki et al. 2017, J R Stat
    Soc B 79:381, studentised deviation test), and the envelope that goes with it: the curve leaves it where p < 1 - confidence."""
    curve, others = np.asarray(observed, float), np.asarray(simulated, float)
    if others.ndim != 2 or others.shape[1:] != curve.shape or len(others) < 2 or not (np.isfinite(others).all() and np.isfinite(curve).all()):
        raise RecipeError(f"{what}: an observed curve (m,) and two or more simulated ones (patterns, m) are needed, all of them finite.")
    every = np.vstack([curve, others])
    mean, sd = every.mean(0), every.std(0)
    scaled = np.divide(np.abs(every - mean), sd, out=np.zeros_like(every), where=sd > 0).max(1)
    p = float(np.count_nonzero(scaled >= scaled[0] * (1 - 1e-12)) / len(every))
    # the smallest width that no more than 1 - confidence of all curves reach
    width = float(np.sort(scaled)[::-1][max(0, int((1 - confidence) * len(every) + 1e-9) - 1)])
    outside = np.flatnonzero(np.abs(curve - mean) >= width * sd * (1 - 1e-12)) if p <= 1 - confidence else np.zeros(0, int)
    verdict = "left the envelope of chance" if len(outside) else "stayed within the envelope of chance"
    sentence = f"{what} {verdict} ({len(others)} simulated patterns, p of the whole curve = {p_value(p)})."
    return {"p": p, "mean": mean, "low": mean - width * sd, "high": mean + width * sd, "outside": outside, "sentence": sentence}
