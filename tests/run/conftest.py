import sys
from pathlib import Path

import numpy as np
import pytest

from vemray.geometry import Grid, Spacing
from vemray.store.volume import create

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]
import slow_ops  # noqa: E402, F401

SHAPE = (90, 100, 110)


def blobs(shape=SHAPE, seed=0, sigma=3, level=0.02) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma) > level


def store(url, array, kind, spacing=(8, 8, 8), shard=(64, 64, 64), chunk=(32, 32, 32)):
    v = create(str(url), array.shape, array.dtype.name, Spacing(*spacing), kind=kind, shard=shard, chunk=chunk)
    grid = Grid(array.shape, v.shard)
    for i in range(len(grid)):
        v.write(grid.write_box(i), array[grid.write_box(i).slices])
    return v


@pytest.fixture
def mask():
    return blobs()


@pytest.fixture
def mask_url(tmp_path, mask):
    store(tmp_path / "mask.zarr", mask, "mask")
    return str(tmp_path / "mask.zarr")


@pytest.fixture(scope="session")
def ray_runner(request):
    """Two workers, started after the S3 server (where there is one): they inherit its address."""
    import contextlib

    from vemray.run.cluster import RayRunner

    with contextlib.suppress(pytest.skip.Exception):
        request.getfixturevalue("s3_server")
    r = RayRunner(workers=2)
    yield r
    r.close()
