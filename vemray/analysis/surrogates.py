"""Random fields with the spatial autocorrelation of a measured one: what chance gives where near objects are alike.

Viladomat, Mazumder, McInturff, McCauley and Hastie 2014, Biometrics 70:409, "Assessing the significance of global and local correlations under
spatial autocorrelation: a nonparametric approach": the values are permuted over the objects, smoothed over their nearest neighbours, scaled and
mixed with noise so that the variogram is the measured one's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

#: shares of the objects that a permuted field is smoothed over; the one that fits the variogram best is taken, for each surrogate its own
SHARES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: classes of distance of the variogram, of as many pairs each
CLASSES = 20
#: objects that the variogram is of, at most: a random subset beyond
VARIOGRAM_OBJECTS = 500
#: share of the pairs, the nearest, that the variogram is of: the paper's, and more where parts of the whole are compared
NEAR = 0.25
NEAR_AND_FAR = 0.5
#: objects that a test is made with, at most: a random subset beyond
TEST_OBJECTS = 5000
#: values held of the distances between objects, at a time
CHUNK = 1 << 22


@dataclass(frozen=True)
class Variogram:
    """Half the mean squared difference of pairs of the chosen objects, by class of distance."""

    chosen: np.ndarray  # (m,) of the objects
    pairs: np.ndarray  # (p, 2) of the chosen, nearest first
    starts: np.ndarray  # (classes + 1,) in `pairs`

    @classmethod
    def of(cls, positions: np.ndarray, near: float, rng: np.random.Generator) -> Variogram:
        from scipy.spatial.distance import pdist

        n = len(positions)
        chosen = np.arange(n) if n <= VARIOGRAM_OBJECTS else np.sort(rng.choice(n, VARIOGRAM_OBJECTS, replace=False))
        distance = pdist(positions[chosen])
        order = np.argsort(distance, kind="stable")[: max(1, int(near * len(distance)))]
        pairs = np.stack(np.triu_indices(len(chosen), 1), axis=1)[order]
        classes = min(CLASSES, len(pairs))
        return cls(chosen, pairs, np.linspace(0, len(pairs), classes + 1).astype(np.int64))

    def __call__(self, fields: np.ndarray) -> np.ndarray:
        """(classes, fields) of values (m, fields) at the chosen objects."""
        return _variogram(np.ascontiguousarray(fields), self.pairs, self.starts)


@njit(cache=True, nogil=True)
def _variogram(fields, pairs, starts):
    out = np.zeros((len(starts) - 1, fields.shape[1]))
    for c in range(len(starts) - 1):
        for p in range(starts[c], starts[c + 1]):
            a, b = fields[pairs[p, 0]], fields[pairs[p, 1]]
            for f in range(fields.shape[1]):
                d = a[f] - b[f]
                out[c, f] += d * d
        out[c] /= 2 * (starts[c + 1] - starts[c])
    return out


def surrogates(values: np.ndarray, positions: np.ndarray, count: int, seed: int, near: float = NEAR) -> np.ndarray:
    """float64 (count, n): each row holds the n `values` in another order, with about their variogram over `positions` (n, axes).

    The variogram is matched on normal scores of the ranks, so that a few extreme values do not make it; then the ranks are given their values
    back. alpha and beta of the regression are held at 0 or above. The rows do not depend on the order of the objects."""
    n = len(values)
    order = np.lexsort((values, *positions.T[::-1]))
    values, positions = values[order], positions[order]
    rng = np.random.default_rng(seed)
    scores = normal_scores(values)
    variogram = Variogram.of(positions, near, rng)
    permuted = np.stack([rng.permutation(scores) for _ in range(count)], axis=1)
    noise = rng.standard_normal((n, count))
    target = variogram(scores[variogram.chosen, None])
    sizes = sorted({max(2, round(share * n)) for share in SHARES})
    best = np.full(count, np.inf)
    size, alpha, beta = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
    for k in sizes:
        smooth = _smoothed(positions, permuted, k, variogram.chosen)
        a, b, error = _fit(target, variogram(smooth))
        better = error < best
        best[better], size[better], alpha[better], beta[better] = error[better], k, a[better], b[better]
    out = np.empty((count, n))
    ascending = np.sort(values)
    for k in np.unique(size):
        mine = np.flatnonzero(size == k)
        field = np.sqrt(beta[mine]) * _smoothed(positions, permuted[:, mine], int(k), np.arange(n)) + np.sqrt(alpha[mine]) * noise[:, mine]
        rank = np.argsort(np.argsort(field, axis=0, kind="stable"), axis=0)
        out[np.ix_(mine, order)] = ascending[rank].T
    return out


def correlation_test(x: np.ndarray, y: np.ndarray, positions: np.ndarray, count: int, seed: int) -> tuple[float, float]:
    """p of Pearson's r and of Spearman's rho, two-sided: (1 + surrogates with at least the observed size) / (1 + count). Surrogates of x are
    correlated with y, and those of y with x, and the larger p is given: the test is the same for (x, y) and (y, x) and errs towards a large p."""
    from scipy.stats import rankdata

    out = np.zeros(2)
    for a, b in ((x, y), (y, x)):
        fields = surrogates(a, positions, count, seed)
        ranks = rankdata(fields, axis=1)
        for i, (made, first, second) in enumerate(((fields, a, b), (ranks, rankdata(a), rankdata(b)))):
            other = (second - second.mean()) / np.linalg.norm(second - second.mean())
            # all rows of `made` hold the same values: their covariance with y is their correlation, but for a factor
            size, observed = np.abs((made - first.mean()) @ other), abs(float((first - first.mean()) @ other))
            out[i] = max(out[i], permutation_p(observed, size))
    return float(out[0]), float(out[1])


def difference_test(values: np.ndarray, first: np.ndarray, positions: np.ndarray, count: int, seed: int) -> float:
    """p of a difference of means between the objects where `first` is True and the others, two-sided: the groups stay where they are, and the
    values are replaced by surrogates."""
    fields = surrogates(values, positions, count, seed, NEAR_AND_FAR)

    def apart(v):
        return np.abs(v[..., first].mean(-1) - v[..., ~first].mean(-1))

    return permutation_p(float(apart(values)), apart(fields))


def permutation_p(observed: float, simulated: np.ndarray) -> float:
    """(1 + how many are at least the observed one, to rounding) / (1 + how many)."""
    return float((1 + np.count_nonzero(simulated >= observed - 1e-12 * abs(observed))) / (1 + len(simulated)))


def subset(n: int, seed: int) -> np.ndarray:
    """The objects that a test is made with: all, or a random TEST_OBJECTS of them, in order."""
    return np.arange(n) if n <= TEST_OBJECTS else np.sort(np.random.default_rng(seed).choice(n, TEST_OBJECTS, replace=False))


def normal_scores(values: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return ndtri((rankdata(values) - 0.5) / len(values))


def _smoothed(positions: np.ndarray, fields: np.ndarray, k: int, at: np.ndarray) -> np.ndarray:
    """(len(at), fields): mean over the k nearest objects, itself among them, by weights exp(-d / d_k), d_k the distance of the farthest."""
    from scipy.spatial.distance import cdist

    out = np.empty((len(at), fields.shape[1]))
    step = max(1, CHUNK // len(positions))
    for i in range(0, len(at), step):
        d = cdist(positions[at[i : i + step]], positions)
        far = np.partition(d, k - 1, axis=1)[:, k - 1 : k]
        w = np.where(d <= far, np.exp(-d / np.where(far > 0, far, 1)), 0)
        out[i : i + step] = (w / w.sum(1, keepdims=True)) @ fields
    return out


def _fit(target: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, beta >= 0 of target = alpha + beta * made, and the squared error, for each column of `made`. Least squares of the relative error,
    as is usual of variograms (Cressie 1985, Math Geol 17:563): near pairs, whose values differ least, would else count least."""
    size = np.maximum(target, 1e-6 * target.max(initial=1e-300))
    weight = size**-2 / (size**-2).sum()
    t_mean, m_mean = (weight * target).sum(), (weight * made).sum(0)
    t, m = target - t_mean, made - m_mean
    beta = np.maximum(0, _ratio((weight * t * m).sum(0), (weight * m * m).sum(0)))
    alpha = t_mean - beta * m_mean
    beta = np.where(alpha < 0, _ratio((weight * target * made).sum(0), (weight * made * made).sum(0)), beta)
    alpha = np.maximum(alpha, 0)
    return alpha, beta, (weight * (target - alpha - beta * made) ** 2).sum(0)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(b), where=b > 0)
