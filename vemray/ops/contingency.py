"""How often each pair of labels of two volumes meets: what every comparison of two labellings is computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vemray.ops.base import ArraySpec, Measure, Port, Site, register


@register("contingency")
@dataclass(frozen=True)
class Contingency(Measure):
    """Number of voxels of every pair (a, b) of labels that meet, 0 included: columns `a`, `b`, `voxels`, ascending."""

    ports = (Port("a", ("labels", "mask")), Port("b", ("labels", "mask")))

    def memory(self, a: ArraySpec, b: ArraySpec) -> float:
        return 96

    def measure(self, a: np.ndarray, b: np.ndarray, *, site: Site) -> Pairs:
        import fastremap

        codes, values = [], []
        for x in (a, b):
            u, inverse = fastremap.unique(x.astype(np.uint8) if x.dtype == np.bool_ else x, return_inverse=True)
            values.append(u.astype(np.uint64))
            codes.append(inverse.ravel())
        joint = codes[0].astype(np.int64)
        joint *= len(values[1])
        joint += codes[1].astype(np.int64)
        pairs, voxels = fastremap.unique(joint, return_counts=True)
        return Pairs(values[0][pairs // len(values[1])], values[1][pairs % len(values[1])], voxels.astype(np.int64))

    def finish(self, partial: Pairs, inputs: tuple[ArraySpec, ...]):
        import pyarrow as pa

        return pa.table({"a": partial.a, "b": partial.b, "voxels": partial.voxels})


@dataclass
class Pairs:
    a: np.ndarray
    b: np.ndarray
    voxels: np.ndarray

    def merge(self, upper: Pairs, axis: int) -> Pairs:
        a, b, n = (np.concatenate([x, y]) for x, y in ((self.a, upper.a), (self.b, upper.b), (self.voxels, upper.voxels)))
        order = np.lexsort((b, a))
        a, b, n = a[order], b[order], n[order]
        starts = np.flatnonzero(np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])]))
        return Pairs(a[starts], b[starts], np.add.reduceat(n, starts))
