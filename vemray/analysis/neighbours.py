"""Nearest neighbours of objects, centre to centre."""

from __future__ import annotations

import numpy as np

from vemray.analysis.points import Points, by_dataset, points

#: distances that differ by less, relative, are equal: centres of a grid in nm are rounded (4.6 * 3 - 4.6 * 2 is not 4.6)
EQUAL = 1e-9
#: distances held at a time
CHUNK = 1 << 22


def neighbours(table, others=None, k: int = 8, radius_nm: float | None = None):
    """pyarrow.Table with a row for each row of `table`: `label`, `neighbours` (how many the mean is of: k, or all there are),
    `mean_neighbour_distance_nm`, `nearest_distance_nm`, `nearest_label`, and with a radius `neighbours_within_radius`. Neighbours are the
    other objects of `table`, or the objects of `others`. Objects of other data sets are no neighbours. Empty where there is none."""
    import pyarrow as pa

    n = table.num_rows
    used, within, nearest = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.uint64)
    mean, first = np.full(n, np.nan), np.full(n, np.nan)
    placed = np.zeros(n, bool)
    other_rows = None if others is None else dict(by_dataset(others))
    for name, rows in by_dataset(table):
        mine = points(table.take(pa.array(rows)))
        at = rows[mine.rows]
        if others is None:
            theirs = mine
        else:
            theirs = points(others.take(pa.array(other_rows.get(name, other_rows.get(None, np.zeros(0, np.int64))))))
        used[at], mean[at], first[at], nearest[at], counted = _of_points(mine, theirs, others is None, k, radius_nm)
        within[at], placed[at] = counted, True
    none = used == 0
    out = {
        "label": table.column("label"),
        "neighbours": pa.array(used, mask=~placed),
        "mean_neighbour_distance_nm": pa.array(mean, mask=none),
        "nearest_distance_nm": pa.array(first, mask=none),
        "nearest_label": pa.array(nearest, mask=none),
    }
    if radius_nm is not None:
        out["neighbours_within_radius"] = pa.array(within, mask=~placed)
    if "dataset" in table.column_names:
        out = {"dataset": table.column("dataset"), **out}
    return pa.table(out)


def _of_points(mine: Points, theirs: Points, same: bool, k: int, radius: float | None):
    """(used, mean, first, nearest, within) of each of `mine`; `same`: an object is not its own neighbour."""
    from scipy.spatial import cKDTree

    n, there = len(mine.labels), len(theirs.labels) - same
    used, within, nearest = np.full(n, max(0, min(k, there))), np.zeros(n, np.int64), np.zeros(n, np.uint64)
    mean, first = np.full(n, np.nan), np.full(n, np.nan)
    if n == 0 or there < 1:
        return used, mean, first, nearest, within
    tree = cKDTree(theirs.zyx)
    ask = min(k, there)
    step = max(1, CHUNK // (ask + same))
    for i in range(0, n, step):
        # which of several objects at distance 0 is the object itself does not matter to the distances
        d = tree.query(mine.zyx[i : i + step], k=np.arange(1, ask + same + 1))[0][:, int(same) :]
        mean[i : i + step], first[i : i + step] = d.mean(1), d[:, 0]
        if radius is not None:
            within[i : i + step] = tree.query_ball_point(mine.zyx[i : i + step], radius, return_length=True) - same
    return used, mean, first, _nearest_labels(mine, theirs, same), within


def _nearest_labels(mine: Points, theirs: Points, same: bool) -> np.ndarray:
    """The label of the nearest, the smallest of those at the same distance. Works on places, so that many objects at one place cost no more:
    of distinct places at most 12 others have a given one as their nearest."""
    from scipy.spatial import cKDTree

    order = np.argsort(theirs.labels, kind="stable")
    places, at_first, of, count = np.unique(theirs.zyx[order], axis=0, return_index=True, return_inverse=True, return_counts=True)
    smallest = theirs.labels[order][at_first]
    tree = cKDTree(places)
    out = np.zeros(len(mine.labels), np.uint64)
    if same:
        place = np.empty(len(order), np.int64)
        place[order] = of.ravel()
        second = smallest.copy()
        later = np.setdiff1d(np.arange(len(order)), at_first)[::-1]  # of a place the second in order is written last
        second[of.ravel()[later]] = theirs.labels[order][later]
        shared = count[place] > 1
        is_first = np.zeros(len(order), bool)
        is_first[order[at_first]] = True
        out[shared] = np.where(is_first, second[place], smallest[place])[shared]
        ask = np.flatnonzero(~shared)
    else:
        ask = np.arange(len(out))
    if len(ask) == 0:
        return out
    d, i = tree.query(mine.zyx[ask], k=np.arange(1 + same, 3 + same))  # beyond the last place: infinity
    out[ask] = smallest[i[:, 0]]
    tied = np.flatnonzero(d[:, 1] <= d[:, 0] * (1 + EQUAL))
    for row, close in zip(ask[tied], tree.query_ball_point(mine.zyx[ask[tied]], d[tied, 0] * (1 + EQUAL))):
        out[row] = min(smallest[j] for j in close if not (same and j == place[row]))
    return out
