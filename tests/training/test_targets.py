"""What networks learn from objects, against the definition voxel by voxel; the region kept for validation; thresholds."""

import itertools

import numpy as np
import pytest

from vemray.geometry import Spacing
from vemray.models.files import Normalisation
from vemray.training import split
from vemray.training.source import Array, LabelVolume, Source, painted
from vemray.training.targets import Target, edges
from vemray.training.validation import Scores

FIXED = Normalisation(method="fixed", low=0, high=1)


def labels(shape=(7, 9, 8), seed=0):
    """Unknown 0, background 1, objects 2 to 5, in clumps."""
    coarse = np.random.default_rng(seed).integers(0, 6, [-(-n // 3) for n in shape])
    return np.kron(coarse, np.ones((3,) * len(shape), int))[tuple(slice(n) for n in shape)].astype(np.int32)


def test_affinities():
    a = labels()
    values, known = Target("affinities", ("affinity_z", "affinity_y", "affinity_x"), objects=True).values(a, (1, 1, 1))
    for axis in range(3):
        for at in np.ndindex(a.shape):
            before = tuple(c - (i == axis) for i, c in enumerate(at))
            sure = at[axis] > 0 and a[at] > 0 and a[before] > 0
            assert known[axis][at] == sure
            if sure:
                assert values[axis][at] == (a[at] == a[before] and a[at] > 1)


@pytest.mark.parametrize("width", [1, 2])
def test_boundaries(width):
    a = labels()
    found = edges(a, width)
    near = np.zeros_like(found)
    offsets = [o for o in np.ndindex(3, 3, 3) if sum(abs(c - 1) for c in o) == 1]
    for at in np.ndindex(a.shape):
        for o in offsets:
            other = tuple(c + d - 1 for c, d in zip(at, o))
            if all(0 <= c < n for c, n in zip(other, a.shape)) and a[at] > 0 and a[other] > 0 and a[at] != a[other]:
                near[at] = True
    if width == 2:
        wide = near.copy()
        for axis in range(3):
            here, before = (tuple(s if i == axis else slice(None) for i in range(3)) for s in (slice(1, None), slice(None, -1)))
            wide[here] |= near[before]
            wide[before] |= near[here]
        near = wide & (a > 0)
    np.testing.assert_array_equal(found, near)
    index = Target("boundary", ("background", "inside", "boundary"), objects=True, width=width).indices(a)
    np.testing.assert_array_equal(index == 2, near)
    np.testing.assert_array_equal(index == -1, a == 0)
    np.testing.assert_array_equal(index == 0, (a == 1) & ~near)


def test_distances_in_nm_and_only_where_they_are_sure():
    a = np.ones((1, 30, 30), np.int32)
    a[0, 5:20, 5:20] = 2
    values, known = Target("distance", ("distance",), objects=True, scale_nm=50).values(a[0], (10, 20))
    d = 50 * values[0] / (1 - values[0])
    assert d[12, 5] == pytest.approx(20) and d[5, 12] == pytest.approx(10) and (d[a[0] == 1] == 0).all()
    cut, sure = Target("distance", ("distance",), objects=True, scale_nm=50).values(a[0, 8:14, 8:14], (10, 20))
    assert not sure[0][2, 2], "the object's end may lie anywhere beyond the crop"


def test_one_region_of_neighbouring_planes_is_held_back():
    rng = np.random.default_rng(0)
    a = (1 + (rng.random((40, 32, 32)) > 0.6)).astype(np.uint8)
    image = np.zeros(a.shape, np.float32)
    target = Target("classes", ("a", "b"))
    sparse = painted(image, {z: a[z] for z in range(0, 40, 4)}, Spacing(25, 8, 8), FIXED)
    assert split.hold_back([sparse], target, 2, 0.2)
    z0, z1 = sparse.held.start[0], sparse.held.stop[0]
    assert sum(z0 <= z < z1 for z in range(0, 40, 4)) == 2 and sparse.held.shape[1:] == (32, 32)
    assert sparse.gap.start[0] <= max(0, z0 - 4) and sparse.gap.stop[0] >= min(40, z1 + 4)
    few = painted(image, {z: a[z] for z in (3, 20)}, Spacing(25, 8, 8), FIXED)
    assert split.hold_back([few], target, 2, 0.2) and few.held.shape[0] == 40, "two planes are both trained on, but for one region of each"
    dense = Source("v", Array(image, Spacing(8, 8, 8)), LabelVolume(Array(a, Spacing(8, 8, 8))), FIXED)
    parts = []
    for i in range(4):
        assert split.hold_back([dense], target, 2, 0.2, (i, 4))
        parts.append((dense.held.start[0], dense.held.stop[0]))
        assert dense.gap.start[0] == max(0, parts[-1][0] - 13)
    assert parts[0][0] == 0 and parts[-1][1] == 40 and all(p[1] == q[0] for p, q in itertools.pairwise(parts))


def test_no_class_is_lost_to_validation():
    a = np.ones((10, 16, 16), np.uint8)
    a[4, 3, 3] = 2
    source = painted(np.zeros(a.shape, np.float32), dict(enumerate(a)), Spacing(25, 8, 8), FIXED)
    assert split.hold_back([source], Target("classes", ("a", "b")), 2, 0.3)
    assert not source.held.start[0] <= 4 < source.held.stop[0]


def test_thresholds_are_the_best_of_all():
    rng = np.random.default_rng(1)
    true = rng.random((1, 200, 200)) > 0.8
    p = np.clip(np.where(true, rng.normal(0.7, 0.15, true.shape), rng.normal(0.4, 0.15, true.shape)), 0, 1)
    known = rng.random(true.shape) > 0.3
    scores = Scores(1, False)
    for half in (slice(0, 100), slice(100, 200)):
        scores.add(p[:, half], true[:, half], known[:, half])
    at, dice = scores.thresholds()[0]

    def of(t):
        g, t = (p >= t) & known, true & known
        return 2 * (g & t).sum() / (g.sum() + t.sum())

    best = max(of(i / 256) for i in range(256))
    assert dice == pytest.approx(of(at)) and dice >= best - 0.0021
    assert scores.dice()[0] == pytest.approx(of(0.5))
