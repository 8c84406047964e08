"""Gaussian kernel density of objects' centres: all pairs within a radius at which the rest is below rounding."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from vemray.analysis.points import by_dataset, points

#: relative error of the density that leaving out far pairs may make
TAIL = 1e-12
NM3_PER_UM3 = 1e9
#: cells along an axis at most, so that a cell's number fits 63 bits
_CELLS = 1 << 20


def kernel_density(table, bandwidth_nm: float):
    """pyarrow.Table with a row for each row of `table`: `label`; `log_density_per_nm3`, the natural logarithm of the Gaussian kernel density
    at the object's centre, which integrates to 1 over space; `density_per_um3`, the same density; `number_density_per_um3`, that times the number of
    objects; `kernel_sum`, the sum of exp(-d^2 / 2 h^2) over all objects, itself included (1 for one that stands alone). Each data set
    has its own density. Empty for an object without a centre."""
    import pyarrow as pa

    n = table.num_rows
    total, log_density, number = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n)
    for _, rows in by_dataset(table):
        mine = points(table.take(pa.array(rows)))
        at = rows[mine.rows]
        total[at], number[at] = kernel_sums(mine.zyx, bandwidth_nm), len(at)
        if len(at):
            log_density[at] = np.log(total[at]) - math.log(len(at)) - 1.5 * math.log(2 * math.pi) - 3 * math.log(bandwidth_nm)
    none = np.isnan(total)
    density = np.exp(log_density) * NM3_PER_UM3
    out = {
        "label": table.column("label"),
        "log_density_per_nm3": pa.array(log_density, mask=none),
        "density_per_um3": pa.array(density, mask=none),
        "number_density_per_um3": pa.array(density * number, mask=none),
        "kernel_sum": pa.array(total, mask=none),
    }
    if "dataset" in table.column_names:
        out = {"dataset": table.column("dataset"), **out}
    return pa.table(out)


def kernel_sums(zyx: np.ndarray, bandwidth: float) -> np.ndarray:
    """float64 (n,): sum over all n points j of exp(-|x_i - x_j|^2 / 2 h^2).

    Pairs beyond r = h sqrt(2 ln(n / TAIL)) are left out. Each of them adds at most exp(-r^2 / 2 h^2) = TAIL / n, all of a point's together, which
    are fewer than n, less than TAIL; its sum is at least 1, since it is a term of its own. So the relative error is below TAIL, and so is the
    absolute error of the logarithm. The terms are added with compensation (Neumaier 1974), by place, so that the sum neither depends on the order
    of the rows nor loses digits. Points are sorted into cubes of r / 2; memory is that of the points. One search radius for all points makes
    cubes do what a k-d tree would."""
    zyx = np.asarray(zyx, np.float64) + 0.0
    if len(zyx) == 0:
        return np.zeros(0)
    radius = bandwidth * math.sqrt(2 * math.log(len(zyx) / TAIL))
    low = zyx.min(0)
    side = max(radius / 2, float((zyx.max(0) - low).max()) / _CELLS)
    cell = np.minimum(np.floor((zyx - low) / side), _CELLS - 1).astype(np.int64)
    shape = cell.max(0) + 1
    key = (cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]
    order = np.lexsort((zyx[:, 2], zyx[:, 1], zyx[:, 0], key))
    ordered = zyx[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    weight = np.diff(np.append(np.flatnonzero(new), len(order))).astype(np.float64)
    out = np.empty(len(zyx))
    places = np.ascontiguousarray(ordered[new])
    out[order] = _sums(places, weight, key[order][new], shape, radius, 0.5 / bandwidth / bandwidth)[np.cumsum(new) - 1]
    return out


@njit(cache=True, nogil=True)
def _sums(places, weight, key, shape, radius, factor):
    """`key`: the cube of each place, ascending. The two cubes on each side along z and y, and a run of five along x, hold all that is near."""
    n = len(places)
    out = np.empty(n)
    begin, end = np.empty(25, np.int64), np.empty(25, np.int64)
    far = radius * radius
    i = 0
    while i < n:
        k = key[i]
        z, y, x = k // (shape[1] * shape[2]), k // shape[2] % shape[1], k % shape[2]
        runs = 0
        for b in range(max(0, z - 2), min(shape[0], z + 3)):
            for c in range(max(0, y - 2), min(shape[1], y + 3)):
                row = (b * shape[1] + c) * shape[2]
                begin[runs] = np.searchsorted(key, row + max(0, x - 2))
                end[runs] = np.searchsorted(key, row + min(shape[2] - 1, x + 2), side="right")
                runs += end[runs] > begin[runs]
        while i < n and key[i] == k:
            total, lost = 0.0, 0.0
            for r in range(runs):
                for j in range(begin[r], end[r]):
                    dz, dy, dx = places[i, 0] - places[j, 0], places[i, 1] - places[j, 1], places[i, 2] - places[j, 2]
                    d = dz * dz + dy * dy + dx * dx
                    if d <= far:
                        term = weight[j] * np.exp(-d * factor)
                        t = total + term
                        lost += (total - t) + term if total >= term else (term - t) + total
                        total = t
            out[i] = total + lost
            i += 1
    return out
