"""How well two labellings agree, from the counts of their label pairs (`contingency`: columns `a` predicted, `b` truth, `voxels`).

Label 0 is background. A figure that is not defined (nothing to compare) is None, so that every result can be written as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

#: IoU thresholds reported unless others are given
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@dataclass(frozen=True)
class Overlap:
    """A contingency table as arrays: `voxels[k]` voxels have label `a[k]` in the prediction and `b[k]` in the truth; and the sizes of all
    labels of either, background left out."""

    a: np.ndarray  # uint64 (pairs,)
    b: np.ndarray  # uint64 (pairs,)
    voxels: np.ndarray  # int64 (pairs,)
    a_labels: np.ndarray  # uint64, ascending
    a_sizes: np.ndarray  # int64
    b_labels: np.ndarray
    b_sizes: np.ndarray

    @classmethod
    def of(cls, table) -> Overlap:
        a, b = (table.column(n).to_numpy().astype(np.uint64) for n in "ab")
        voxels = table.column("voxels").to_numpy().astype(np.int64)
        return cls(a, b, voxels, *_sizes(a, voxels), *_sizes(b, voxels))

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of objects that overlap: places in `a_labels` and `b_labels`, voxels in common, IoU."""
        both = (self.a > 0) & (self.b > 0)
        i, j, n = np.searchsorted(self.a_labels, self.a[both]), np.searchsorted(self.b_labels, self.b[both]), self.voxels[both]
        return i, j, n, n / (self.a_sizes[i] + self.b_sizes[j] - n)


def _sizes(labels: np.ndarray, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ids, where = np.unique(labels, return_inverse=True)
    n = np.zeros(len(ids), np.int64)
    np.add.at(n, where, voxels)
    return ids[ids > 0], n[ids > 0]


def agreement(table, thresholds: Iterable[float] = THRESHOLDS, ignore_truth: Iterable[int] = (0,)) -> dict:
    """Every figure of `vemray evaluate`, JSON-able, of a contingency table.

    `voxels`: Dice, IoU, precision, recall of the foreground. `objects`: numbers of objects, and the matching at the first threshold.
    `matching`: one entry for each threshold (see `matching`). `partition`: adapted Rand error and variation of information, leaving out
    voxels whose true label is one of `ignore_truth`."""
    overlap = Overlap.of(table)
    matched = [matching(overlap, t) for t in thresholds]
    objects = {"predicted": len(overlap.a_labels), "truth": len(overlap.b_labels), **(matched[0] if matched else {})}
    partition = {**adapted_rand(overlap, ignore_truth), **variation_of_information(overlap, ignore_truth)}
    return {"voxels": foreground(overlap), "objects": objects, "partition": partition, "matching": matched}


def foreground(overlap: Overlap) -> dict:
    """Voxels that are some object in both, against those that are one in either."""
    in_a, in_b = overlap.a > 0, overlap.b > 0
    a, b, both = (int(overlap.voxels[m].sum()) for m in (in_a, in_b, in_a & in_b))
    return {
        "dice": _over(2 * both, a + b), "iou": _over(both, a + b - both), "precision": _over(both, a), "recall": _over(both, b),
        "predicted_voxels": a, "truth_voxels": b,
    }  # fmt: skip


def matching(overlap: Overlap, threshold: float) -> dict:
    """Objects matched one to one where IoU >= threshold: as many pairs as can be, of these the largest total IoU.

    `threshold`, `matched`, `precision`, `recall`, `f1`; `mean_matched_iou` of the pairs; `panoptic_quality`, sum of their IoU over
    matched + half of the unmatched (Kirillov et al., CVPR 2019)."""
    if not 0 < threshold <= 1:
        from vemray.errors import RecipeError

        raise RecipeError(f"an IoU threshold lies above 0 and at most at 1, not at {threshold}.")
    iou = matched_pairs(overlap, threshold)[2]
    n, n_a, n_b = len(iou), len(overlap.a_labels), len(overlap.b_labels)
    total = float(iou.sum())
    return {
        "threshold": float(threshold), "matched": n, "precision": _over(n, n_a), "recall": _over(n, n_b), "f1": _over(2 * n, n_a + n_b),
        "mean_matched_iou": _over(total, n), "panoptic_quality": _over(2 * total, n_a + n_b),
    }  # fmt: skip


def matched_pairs(overlap: Overlap, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(predicted labels, true labels, IoU) of the matching, by ascending predicted label."""
    i, j, _, iou = overlap.pairs()
    good = iou >= threshold
    i, j, iou = i[good], j[good], iou[good]
    # an object meets at most 1 / threshold others this well, so groups that compete for partners are small
    alone = (np.bincount(i, minlength=1)[i] == 1) & (np.bincount(j, minlength=1)[j] == 1)
    chosen = alone.copy()
    if not alone.all():
        chosen[~alone] = _assign(i[~alone], j[~alone], iou[~alone])
    order = np.argsort(i[chosen], kind="stable")
    return overlap.a_labels[i[chosen]][order], overlap.b_labels[j[chosen]][order], iou[chosen][order]


def _assign(i: np.ndarray, j: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Which of the candidate pairs a maximum matching of largest total IoU takes, by groups that share objects."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, ri = np.unique(i, return_inverse=True)
    cols, cj = np.unique(j, return_inverse=True)
    graph = coo_array((np.ones(len(i)), (ri, len(rows) + cj)), shape=(len(rows) + len(cols),) * 2)
    group = connected_components(graph, directed=False)[1][ri]
    chosen = np.zeros(len(i), bool)
    order = np.argsort(group, kind="stable")
    for k in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        r, ri_k = np.unique(i[k], return_inverse=True)
        c, cj_k = np.unique(j[k], return_inverse=True)
        place = np.full((len(r), len(c)), -1, np.int64)
        place[ri_k, cj_k] = k
        # one more pair outweighs any gain of IoU
        worth = np.where(place >= 0, min(len(r), len(c)) + iou[place], 0.0)
        taken = place[linear_sum_assignment(worth, maximize=True)]
        chosen[taken[taken >= 0]] = True
    return chosen


def adapted_rand(overlap: Overlap, ignore_truth: Iterable[int] = (0,)) -> dict:
    """Adapted Rand error of SNEMI3D (Arganda-Carreras et al., Front Neuroanat 2015), over pairs of voxels that are together: precision is
    the share of pairs together in the prediction that are so in the truth, recall the other way round; error = 1 - F1.

    The error equals scikit-image's; precision and recall are as defined here (scikit-image 0.25 returns them the other way round)."""
    a, b, n = _kept(overlap, ignore_truth)
    total = int(n.sum())
    together, in_a, in_b = (_squares(v) - total for v in (n, _by(a, n), _by(b, n)))
    f1 = _over(2 * together, in_a + in_b)
    return {
        "adapted_rand_error": None if f1 is None else 1 - f1,
        "adapted_rand_precision": _over(together, in_a),
        "adapted_rand_recall": _over(together, in_b),
    }


def variation_of_information(overlap: Overlap, ignore_truth: Iterable[int] = (0,)) -> dict:
    """Variation of information in bits (Meila, J Multivar Anal 2007): `voi_split` = H(prediction | truth), grows as true objects are cut;
    `voi_merge` = H(truth | prediction), grows as they are joined. Equals scikit-image's with `ignore_labels=ignore_truth`."""
    a, b, n = _kept(overlap, ignore_truth)
    total = float(n.sum())
    if not total:
        return {"voi_split": None, "voi_merge": None, "voi": None}
    joint, h_a, h_b = (_entropy(v / total) for v in (n, _by(a, n), _by(b, n)))
    split, merge = max(0.0, joint - h_b), max(0.0, joint - h_a)
    return {"voi_split": split, "voi_merge": merge, "voi": split + merge}


def agreement_tables(table) -> dict:
    """Two pyarrow tables, `predicted` and `truth`, one row for each object of that side: `label`, `voxels`, `partner` (the object of the
    other side with the largest IoU, the lowest label of equal ones; 0 without any overlap), `iou`, `shared_voxels` with that partner,
    `partners` (objects of the other side that overlap), `background_voxels` (that are background on the other side)."""
    import pyarrow as pa

    overlap = Overlap.of(table)
    i, j, n, iou = overlap.pairs()
    out = {}
    for name, mine, its, labels, sizes, others, from_, to in (
        ("predicted", i, j, overlap.a_labels, overlap.a_sizes, overlap.b_labels, overlap.a, overlap.b),
        ("truth", j, i, overlap.b_labels, overlap.b_sizes, overlap.a_labels, overlap.b, overlap.a),
    ):
        order = np.lexsort((its, -iou, mine))
        first = order[np.flatnonzero(np.diff(mine[order], prepend=-1))]
        partner, best, shared = np.zeros(len(labels), np.uint64), np.zeros(len(labels)), np.zeros(len(labels), np.int64)
        partner[mine[first]], best[mine[first]], shared[mine[first]] = others[its[first]], iou[first], n[first]
        outside = np.zeros(len(labels), np.int64)
        alone = (from_ > 0) & (to == 0)
        outside[np.searchsorted(labels, from_[alone])] = overlap.voxels[alone]
        columns = {"label": labels, "voxels": sizes, "partner": partner, "iou": best, "shared_voxels": shared}
        out[name] = pa.table({**columns, "partners": np.bincount(mine, minlength=len(labels)).astype(np.int64), "background_voxels": outside})
    return out


def _kept(overlap: Overlap, ignore_truth: Iterable[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keep = ~np.isin(overlap.b, np.array(list(ignore_truth), np.uint64))
    return overlap.a[keep], overlap.b[keep], overlap.voxels[keep]


def _by(labels: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Voxels of each label."""
    where = np.unique(labels, return_inverse=True)[1]
    out = np.zeros(int(where.max(initial=-1)) + 1, np.int64)
    np.add.at(out, where, voxels)
    return out


def _squares(n: np.ndarray) -> int:
    """Sum of squares as a Python integer: squared voxel counts of a whole cell overflow 64 bits."""
    small = n < 1 << 20  # their squares add up within 64 bits, over up to 2^23 of them at once
    total = sum(int(np.square(part).sum()) for part in np.array_split(n[small], 1 + len(n) // (1 << 22)))
    return total + sum(int(v) ** 2 for v in n[~small])


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def _over(a: float, b: float) -> float | None:
    return a / b if b else None
