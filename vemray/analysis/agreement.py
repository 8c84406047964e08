"""How well two labellings agree, from the table of how often each pair of labels meets (`contingency`): voxels, objects, partitions.

`a` is the prediction, `b` the truth, 0 is background in both."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vemray.errors import RecipeError

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


class Overlaps:
    """The contingency table as arrays. `pairs`: a pyarrow.Table or a mapping with `a`, `b`, `voxels`."""

    def __init__(self, pairs):
        def column(name):
            return np.asarray(pairs.column(name).to_numpy() if hasattr(pairs, "column") else pairs[name])

        self.a, self.b, self.n = column("a").astype(np.uint64), column("b").astype(np.uint64), column("voxels").astype(np.int64)
        self.labels_a, self.in_a = np.unique(self.a, return_inverse=True)
        self.labels_b, self.in_b = np.unique(self.b, return_inverse=True)
        self.size_a = np.bincount(self.in_a, self.n, len(self.labels_a)).astype(np.int64)
        self.size_b = np.bincount(self.in_b, self.n, len(self.labels_b)).astype(np.int64)


def voxels(o: Overlaps) -> dict:
    """Foreground against foreground: Dice, IoU, precision, recall. Two empty volumes agree (1.0)."""
    both = int(o.n[(o.a > 0) & (o.b > 0)].sum())
    a, b = int(o.n[o.a > 0].sum()), int(o.n[o.b > 0].sum())
    return {
        "dice": 2 * both / (a + b) if a + b else 1.0,
        "iou": both / (a + b - both) if a + b else 1.0,
        "precision": both / a if a else float(b == 0),
        "recall": both / b if b else float(a == 0),
        "predicted_voxels": a,
        "true_voxels": b,
    }


def matches(o: Overlaps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(index into labels_a, index into labels_b, IoU) of every pair of objects that overlap."""
    at = (o.a > 0) & (o.b > 0)
    i, j, n = o.in_a[at], o.in_b[at], o.n[at]
    return i, j, n / (o.size_a[i] + o.size_b[j] - n)


def matched(o: Overlaps, threshold: float) -> np.ndarray:
    """IoUs of the best one-to-one matching of objects whose IoU reaches `threshold`: as many pairs as possible, of these the largest sum of
    IoU. From 0.5 on a pair is unique, so no search is needed."""
    i, j, iou = matches(o)
    good = iou > 0.5 if threshold == 0.5 else iou >= threshold
    if threshold >= 0.5:
        return iou[good]
    i, j, iou = i[good], j[good], iou[good]
    return iou[_one_to_one(i, j, iou)]


def _one_to_one(i: np.ndarray, j: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Positions of the pairs (i, j) of the best matching: as many as possible, of these the largest sum of `gain` (0..1)."""
    if not len(i):
        return np.zeros(0, np.int64)
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, ii = np.unique(i, return_inverse=True)
    cols, jj = np.unique(j, return_inverse=True)
    size = len(rows) + len(cols)
    _, part = connected_components(coo_matrix((np.ones(len(ii)), (ii, jj + len(rows))), shape=(size, size)), directed=False)
    order = np.argsort(part[ii], kind="stable")
    out = []
    for group in np.split(order, np.flatnonzero(np.diff(part[ii][order])) + 1):  # small groups, not one matrix of all objects
        r, ri = np.unique(ii[group], return_inverse=True)
        c, ci = np.unique(jj[group], return_inverse=True)
        table, at = np.zeros((len(r), len(c))), np.full((len(r), len(c)), -1)
        table[ri, ci] = 1000.0 + gain[group]  # first the number of pairs, then their gain
        at[ri, ci] = group
        chosen = at[linear_sum_assignment(table, maximize=True)]
        out.append(chosen[chosen >= 0])
    return np.concatenate(out)


def match_points(a_nm: np.ndarray, b_nm: np.ndarray, within_nm: float) -> np.ndarray:
    """Pairs (n, 2) of rows of two sets of points (., 3) matched one to one, none farther apart than `within_nm`: as many as possible, of these
    the nearest (least sum of distances). By row of the first."""
    from scipy.spatial import cKDTree

    if not len(a_nm) or not len(b_nm):
        return np.zeros((0, 2), np.int64)
    near = cKDTree(a_nm).sparse_distance_matrix(cKDTree(b_nm), within_nm * (1 + 1e-9), output_type="ndarray")
    order = np.lexsort((near["j"], near["i"]))
    i, j, distance = near["i"][order], near["j"][order], near["v"][order]
    chosen = np.sort(_one_to_one(i, j, 1 - distance / within_nm))
    return np.stack([i[chosen], j[chosen]], 1)


def centroids(a_nm: np.ndarray, b_nm: np.ndarray, within_nm: float) -> dict:
    """Precision, recall and F1 of objects matched one to one by their centroids (prediction `a_nm`, truth `b_nm`: (., 3) in nm), and the median
    distance of the matched (nm)."""
    pairs = match_points(a_nm, b_nm, within_nm)
    na, nb, tp = len(a_nm), len(b_nm), len(pairs)
    apart = np.linalg.norm(a_nm[pairs[:, 0]] - b_nm[pairs[:, 1]], axis=1)
    return {
        "within_nm": within_nm, "precision": tp / na if na else float(nb == 0), "recall": tp / nb if nb else float(na == 0),
        "f1": 2 * tp / (na + nb) if na + nb else 1.0, "median_distance_nm": float(np.median(apart)) if tp else None,
        "matched": tp, "predicted": na, "true": nb,
    }  # fmt: skip


def objects(o: Overlaps, thresholds: Iterable[float] = THRESHOLDS) -> list[dict]:
    """Precision, recall, F1 of objects matched one to one, mean IoU of the matched, panoptic quality; a row for each threshold. A pair
    counts when its IoU reaches the threshold (at 0.5: exceeds it, so that it is unique; Kirillov et al. 2019)."""
    na, nb = int((o.labels_a > 0).sum()), int((o.labels_b > 0).sum())
    rows = []
    for t in thresholds:
        if not 0 < t <= 1:
            raise RecipeError(f"an IoU threshold lies above 0 and at most at 1, not at {t}.")
        iou = matched(o, t)
        tp = len(iou)
        f1 = 2 * tp / (na + nb) if na + nb else 1.0
        mean = float(iou.mean()) if tp else float(na + nb == 0)
        rows.append({
            "iou": t, "precision": tp / na if na else float(nb == 0), "recall": tp / nb if nb else float(na == 0), "f1": f1,
            "mean_iou": mean, "panoptic_quality": mean * f1, "matched": tp, "predicted": na, "true": nb,
        })  # fmt: skip
    return rows


def adapted_rand(o: Overlaps, ignore_truth: Iterable[int] = (0,)) -> dict:
    """Adapted Rand error, precision and recall over voxels whose true label is none of `ignore_truth` (Arganda-Carreras et al., Front
    Neuroanat 2015). Of all pairs of voxels together in the prediction, precision is the share that is together in the truth; recall the
    other way round. The error equals scikit-image's; some versions of it give precision and recall the other way round."""
    n, in_a, in_b = _kept(o, ignore_truth)
    total = int(n.sum())
    both, pairs_a, pairs_b = (_squares(v) - total for v in (n, _sizes(in_a, n), _sizes(in_b, n)))
    return {
        "error": 1 - 2 * both / (pairs_a + pairs_b) if pairs_a + pairs_b else 0.0,
        "precision": both / pairs_a if pairs_a else 1.0,
        "recall": both / pairs_b if pairs_b else 1.0,
    }


def variation_of_information(o: Overlaps, ignore_truth: Iterable[int] = ()) -> dict:
    """Conditional entropies in bits: `split` = H(a | b), the truth broken up; `merge` = H(b | a), truths run together (Meila 2007; as
    scikit-image). Voxels whose true label is one of `ignore_truth` are left out."""
    n, in_a, in_b = _kept(o, ignore_truth)
    total = float(n.sum())
    if not total:
        return {"split": 0.0, "merge": 0.0, "sum": 0.0}
    split, merge = (float((n / total * np.log2(_sizes(side, n)[side] / n)).sum()) for side in (in_b, in_a))
    return {"split": split, "merge": merge, "sum": split + merge}


def _kept(o: Overlaps, ignore_truth: Iterable[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    at = ~np.isin(o.b, np.array(list(ignore_truth), np.uint64))
    return o.n[at], o.in_a[at], o.in_b[at]


def _sizes(where: np.ndarray, n: np.ndarray) -> np.ndarray:
    out = np.zeros(int(where.max(initial=-1)) + 1, np.int64)
    np.add.at(out, where, n)
    return out


def _squares(n: np.ndarray) -> int:
    """Sum of squares as a Python integer: squared voxel counts of a whole cell overflow 64 bits."""
    small = n < 1 << 20  # the squares of 2^22 of them add up within 64 bits
    total = sum(int(np.square(part).sum()) for part in np.array_split(n[small], 1 + len(n) // (1 << 22)))
    return total + sum(int(v) ** 2 for v in n[~small])


def agreement(pairs, thresholds: Iterable[float] = THRESHOLDS, ignore_truth: Iterable[int] = (0,)) -> dict:
    """Everything above as one dict of plain numbers: `voxels`, `objects` (rows by IoU threshold), `adapted_rand` and
    `variation_of_information` (both over voxels whose true label is none of `ignore_truth`)."""
    o = Overlaps(pairs)
    return {
        "voxels": voxels(o),
        "objects": objects(o, thresholds),
        "adapted_rand": adapted_rand(o, ignore_truth),
        "variation_of_information": variation_of_information(o, ignore_truth),
    }


def agreement_tables(pairs) -> dict:
    """Two pyarrow tables, `predicted` and `truth`, one row for each object of that side: `label`, `voxels`, `partner` (the object of the
    other side with the largest IoU, the lowest label of equal ones; 0 without any overlap), `iou`, `shared_voxels` with that partner,
    `partners` (objects of the other side that overlap), `background_voxels` (that are background on the other side)."""
    import pyarrow as pa

    o = Overlaps(pairs)
    i, j, iou = matches(o)
    shared = o.n[(o.a > 0) & (o.b > 0)]
    out = {}
    for name, mine, its, labels, sizes, others, side, alone in (
        ("predicted", i, j, o.labels_a, o.size_a, o.labels_b, o.in_a, o.b == 0),
        ("truth", j, i, o.labels_b, o.size_b, o.labels_a, o.in_b, o.a == 0),
    ):
        order = np.lexsort((its, -iou, mine))
        first = order[np.flatnonzero(np.diff(mine[order], prepend=-1))]
        at = mine[first]
        columns = {"label": labels, "voxels": sizes, "partner": np.zeros(len(labels), np.uint64), "iou": np.zeros(len(labels))}
        columns |= {k: np.zeros(len(labels), np.int64) for k in ("shared_voxels", "partners", "background_voxels")}
        columns["partner"][at], columns["iou"][at], columns["shared_voxels"][at] = others[its[first]], iou[first], shared[first]
        np.add.at(columns["partners"], mine, 1)
        np.add.at(columns["background_voxels"], side[alone], o.n[alone])
        out[name] = pa.table({k: v[labels > 0] for k, v in columns.items()})
    return out
