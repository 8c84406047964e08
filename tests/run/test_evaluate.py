"""What `vemray evaluate` counts, against plain numpy."""

import numpy as np
import pytest

from vemray.errors import VemrayError
from vemray.geometry import Spacing
from vemray.run.evaluate import evaluate
from vemray.store.volume import create


@pytest.fixture
def pair(tmp_path):
    rng = np.random.default_rng(3)
    arrays, urls = [], []
    for name in ("found", "truth"):
        array = np.kron(rng.integers(0, 5, (6, 5, 5)), np.ones((3, 8, 8))).astype(np.uint64)
        made = create(str(tmp_path / f"{name}.zarr"), array.shape, "uint64", Spacing(30, 8, 8), "labels", levels=1, chunk=(16, 16, 16))
        made.write(made.box, array)
        arrays.append(array)
        urls.append(str(tmp_path / f"{name}.zarr"))
    return arrays, urls


def dice(a, b):
    return 2 * np.count_nonzero((a > 0) & (b > 0)) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_a_region_alone_counts(pair):
    (found, truth), urls = pair
    whole = evaluate(*urls, runner="serial")
    part = evaluate(*urls, runner="serial", region=[(13, None), None, (5, 29)])
    cut = (slice(13, None), slice(None), slice(5, 29))
    assert whole["voxels"]["dice"] == pytest.approx(dice(found, truth))
    assert part["voxels"]["dice"] == pytest.approx(dice(found[cut], truth[cut]))
    assert part["voxels"]["dice"] != pytest.approx(whole["voxels"]["dice"], abs=1e-3)


def test_a_region_beyond_the_volume_is_refused(pair):
    with pytest.raises(VemrayError, match="'z' of 'crop' is"):
        evaluate(*pair[1], runner="serial", region=[(13, 40), None, None])
