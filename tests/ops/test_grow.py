"""Region growing: against a plain Dijkstra, and against components."""

import heapq
import itertools

import numpy as np
import pytest
from scipy import ndimage

from tests.ops.test_combine import apply
from tests.ops.test_objects_morphology import SPACINGS, scene
from vemray.errors import RecipeError
from vemray.ops.grow import RegionGrow


def by_dijkstra(labels, free, spacing, most_nm):
    """Smallest (picometres, label) of all paths over 26 neighbours through free voxels."""
    steps = [(d, round(1000 * sum((c * s) ** 2 for c, s in zip(d, spacing)) ** 0.5)) for d in itertools.product((-1, 0, 1), repeat=3) if any(d)]
    best = {tuple(int(c) for c in v): (0, int(labels[tuple(v)])) for v in np.argwhere(labels)}
    queue = [(0, label, v) for v, (_, label) in best.items()]
    heapq.heapify(queue)
    while queue:
        length, label, v = heapq.heappop(queue)
        if best[v] < (length, label):
            continue
        for d, step in steps:
            w = tuple(a + b for a, b in zip(v, d))
            if all(0 <= c < n for c, n in zip(w, labels.shape)) and free[w] and labels[w] == 0 and length + step <= 1000 * most_nm * (1 + 1e-6):
                if (length + step, label) < best.get(w, (1 << 62, 0)):
                    best[w] = (length + step, label)
                    heapq.heappush(queue, (length + step, label, w))
    out = np.zeros_like(labels)
    for v, (_, label) in best.items():
        out[v] = label
    return out


@pytest.mark.parametrize("spacing", SPACINGS)
def test_bounded_growth_is_the_shortest_path(spacing):
    rng = np.random.default_rng(1)
    for seed in range(14):
        shape = tuple(int(n) for n in rng.integers(1, 14, 3))
        block = tuple(int(n) for n in rng.integers(1, 8, 3))
        labels = scene(rng, shape, "noise") * (rng.random(shape) < 0.1)
        image = (rng.random(shape) * 200).astype(rng.choice(["uint8", "float32"]))
        low, high = float(rng.integers(0, 80)), float(rng.integers(90, 200))
        free = (image >= low) & (image <= high)
        values = {"labels": labels, "image": image}
        if seed % 2:
            values["mask"] = rng.random(shape) < 0.8
            free &= values["mask"]
        r = float(rng.choice([8.0, 17.0, 40.0, 90.0, 300.0]))
        got = apply("region_grow", block, seed, spacing, values, low=low, high=high, max_distance_nm=r)
        np.testing.assert_array_equal(got, by_dijkstra(labels, free, spacing, r))


def test_a_serpent_is_followed_to_its_end():
    mask = np.zeros((5, 9, 12), bool)
    mask[::2, ::2] = True
    mask[::2, 1::4, -1] = mask[::2, 3::4, 0] = True
    mask[1, 8, 11] = mask[3, 0, 0] = True
    labels = np.zeros(mask.shape, np.uint64)
    labels[4, 8, 11] = 2**63 + 5
    want = by_dijkstra(labels, mask, (8, 8, 8), 1e5)
    assert (want > 0).sum() == mask.sum()
    for block in ((5, 9, 12), (2, 3, 5)):
        np.testing.assert_array_equal(apply("region_grow", block, 0, (8, 8, 8), {"labels": labels, "mask": mask}, max_distance_nm=1e5), want)


def test_unbounded_growth_takes_whole_parts():
    rng = np.random.default_rng(2)
    for seed in range(14):
        shape = tuple(int(n) for n in rng.integers(1, 12, 3))
        block = tuple(int(n) for n in rng.integers(1, 7, 3))
        labels = scene(rng, shape, "noise") * (rng.random(shape) < 0.1)
        image = ndimage.gaussian_filter(rng.standard_normal(shape), 0.7).astype(np.float32)
        free = (image >= 0.1) & (labels == 0)
        parts, n = ndimage.label(free, np.ones((3, 3, 3)))
        want = labels.copy()
        for part in range(1, n + 1):
            around = np.unique(labels[ndimage.binary_dilation(parts == part, np.ones((3, 3, 3)))])
            around = around[around > 0]
            want[parts == part] = around.min() if len(around) else 0
        got = apply("region_grow", block, seed, (16, 8, 4), {"labels": labels, "image": image}, low=0.1)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "parameters, inputs, said",
    [
        ({"low": 1.0}, ["labels"], "Give an image"),
        ({}, ["labels", "image"], "needs 'low', 'high'"),
        ({"low": 3.0, "high": 1.0}, ["labels", "image"], "is above"),
        ({}, ["labels"], "nothing bounds"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters, inputs, said):
    with pytest.raises(RecipeError, match=said):
        RegionGrow(**parameters).expand({k: k for k in inputs})
