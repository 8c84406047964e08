"""How well two labellings agree, from the table of how often each pair of labels meets (`contingency`): voxels, objects, partitions.

`a` is the prediction, `b` the truth, 0 is background in both."""

from __future__ import annotations

import numpy as np

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
    if not len(iou):
        return iou
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, ii = np.unique(i, return_inverse=True)
    cols, jj = np.unique(j, return_inverse=True)
    size = len(rows) + len(cols)
    _, part = connected_components(coo_matrix((np.ones(len(ii)), (ii, jj + len(rows))), shape=(size, size)), directed=False)
    from scipy.optimize import linear_sum_assignment

    order = np.argsort(part[ii], kind="stable")
    out = []
    for group in np.split(order, np.flatnonzero(np.diff(part[ii][order])) + 1):  # small groups, not one matrix of all objects
        r, ri = np.unique(ii[group], return_inverse=True)
        c, ci = np.unique(jj[group], return_inverse=True)
        gain = np.zeros((len(r), len(c)))
        gain[ri, ci] = 1000.0 + iou[group]  # first the number of pairs, then their IoU
        a, b = linear_sum_assignment(gain, maximize=True)
        out.append(gain[a, b][gain[a, b] > 0] - 1000.0)
    return np.concatenate(out)


def objects(o: Overlaps, thresholds=THRESHOLDS) -> list[dict]:
    """Precision, recall, F1 of objects matched one to one, mean IoU of the matched, panoptic quality; a row for each threshold. A pair
    counts when its IoU reaches the threshold (at 0.5: exceeds it, so that it is unique; Kirillov et al. 2019)."""
    na, nb = int((o.labels_a > 0).sum()), int((o.labels_b > 0).sum())
    rows = []
    for t in thresholds:
        iou = matched(o, t)
        tp = len(iou)
        f1 = 2 * tp / (na + nb) if na + nb else 1.0
        mean = float(iou.mean()) if tp else float(na + nb == 0)
        rows.append({
            "iou": t, "precision": tp / na if na else float(nb == 0), "recall": tp / nb if nb else float(na == 0), "f1": f1,
            "mean_iou": mean, "panoptic_quality": mean * f1, "matched": tp, "predicted": na, "true": nb,
        })  # fmt: skip
    return rows


def adapted_rand(o: Overlaps) -> dict:
    """Adapted Rand error, precision and recall over voxels whose true label is not 0 (Arganda-Carreras et al. 2015; as scikit-image)."""
    at = o.b > 0
    n = o.n[at].astype(float)
    a = np.bincount(o.in_a[at], n)
    b = np.bincount(o.in_b[at], n)
    total, both, sum_a, sum_b = n.sum(), (n**2).sum(), (a**2).sum(), (b**2).sum()
    pairs_both, pairs_a, pairs_b = both - total, sum_a - total, sum_b - total
    precision = pairs_both / pairs_a if pairs_a > 0 else 1.0
    recall = pairs_both / pairs_b if pairs_b > 0 else 1.0
    return {"error": float(1 - 2 * precision * recall / (precision + recall)) if precision + recall else 1.0, "precision": float(precision), "recall": float(recall)}


def variation_of_information(o: Overlaps, ignore_background: bool = False) -> dict:
    """Conditional entropies in bits: `split` = H(a | b), the truth broken up; `merge` = H(b | a), truths run together (Meila 2007; as scikit-image).
    With `ignore_background`, voxels whose true label is 0 are left out."""
    at = o.b > 0 if ignore_background else np.ones(len(o.n), bool)
    n = o.n[at].astype(float)
    total = n.sum()
    if not total:
        return {"split": 0.0, "merge": 0.0, "sum": 0.0}
    a, b = np.bincount(o.in_a[at], n), np.bincount(o.in_b[at], n)
    p = n / total
    split = float(-(p * np.log2(n / b[o.in_b[at]])).sum())
    merge = float(-(p * np.log2(n / a[o.in_a[at]])).sum())
    return {"split": split + 0.0, "merge": merge + 0.0, "sum": split + merge + 0.0}


def agreement(pairs, thresholds=THRESHOLDS) -> dict:
    """Everything above as one dict of plain numbers: `voxels`, `objects` (rows by IoU threshold), `adapted_rand`,
    `variation_of_information` (over voxels with a true label)."""
    o = Overlaps(pairs)
    return {
        "voxels": voxels(o),
        "objects": objects(o, thresholds),
        "adapted_rand": adapted_rand(o),
        "variation_of_information": variation_of_information(o, ignore_background=True),
    }
