"""Volumes as lazy xarray DataArrays: an index reads the box it needs, nothing else."""

from __future__ import annotations

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from vemray.geometry import Box


class _Voxels(BackendArray):
    """A volume as xarray's backends see it; basic indexing only (xarray does the rest on what was read)."""

    def __init__(self, volume):
        self.volume = volume
        self.shape = volume.shape
        self.dtype = np.dtype(volume.dtype)

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key):
        start, stop, then = [], [], []
        for k, n in zip(key, self.shape):
            at = range(*k.indices(n)) if isinstance(k, slice) else range(int(k) % n, int(k) % n + 1)
            start.append(min(at[0], at[-1]) if at else 0)
            stop.append(max(at[0], at[-1]) + 1 if at else 0)
            then.append(slice(None, None, at.step) if isinstance(k, slice) else 0)
        box = Box(tuple(start), tuple(stop))
        if box.size == 0:
            return np.empty([len(range(*k.indices(n))) for k, n in zip(key, self.shape) if isinstance(k, slice)], self.dtype)
        return self.volume.read(box)[tuple(then)]


def to_xarray(volume) -> xarray.DataArray:
    """(z, y, x) with the centres of voxels in nm as coordinates."""
    coords = {
        a: xarray.Variable(a, o + np.arange(n) * s, {"units": "nm"}) for a, o, n, s in zip("zyx", volume.origin_nm, volume.shape, volume.spacing.zyx)
    }
    data = indexing.LazilyIndexedArray(_Voxels(volume))
    attrs = {"kind": volume.kind, "spacing_nm": volume.spacing.zyx, "url": volume.where}
    return xarray.DataArray(xarray.Variable(("z", "y", "x"), data, attrs), coords=coords, name=volume.name or None)
