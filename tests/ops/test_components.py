"""Components: equal to the whole volume's, canonically numbered, however blocks are cut and merged."""

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from tests.ops.blockwise import merge_tree, run, site_of, spec_of
from vemray.geometry import Box, Grid
from vemray.ops.components import ConnectedComponents


def components(mask, connectivity, block, seed=0):
    return run(ConnectedComponents(connectivity), {"mask": mask}, {"mask": spec_of(mask)}, block=block, seed=seed)


def whole_by_cc3d(mask, connectivity):
    return cc3d.connected_components(np.pad(mask, 2), connectivity=connectivity)[2:-2, 2:-2, 2:-2]


def canonical(labels: np.ndarray) -> np.ndarray:
    """Renumber 1..N by the raster order of first voxels, the slow and plain way."""
    values, first = np.unique(labels, return_index=True)
    order = values[np.argsort(first)]
    lut = np.zeros(int(labels.max()) + 1, np.uint64)
    lut[order[order > 0]] = np.arange(1, np.count_nonzero(order) + 1)
    return lut[labels]


SHAPES = [
    ((7, 9, 11), (3, 4, 5)),
    ((1, 20, 17), (1, 6, 5)),
    ((8, 8, 8), (1, 1, 1)),
    ((5, 6, 7), (9, 9, 9)),
    ((12, 5, 9), (1, 5, 2)),
    ((6, 1, 9), (2, 3, 1)),
]


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("shape, block", SHAPES)
def test_blocks_equal_whole(connectivity, shape, block):
    rng = np.random.default_rng(1)
    order = {6: 1, 18: 2, 26: 3}[connectivity]
    for density in (0.08, 0.2, 0.35, 0.6):
        mask = rng.random(shape) < density
        got = components(mask, connectivity, block)
        want, count = ndimage.label(mask, ndimage.generate_binary_structure(3, order))
        assert got.max() == count
        np.testing.assert_array_equal(got, canonical(want))
        np.testing.assert_array_equal(got, canonical(whole_by_cc3d(mask, connectivity)))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_many_random_grids_and_merge_orders(connectivity):
    rng = np.random.default_rng(connectivity)
    for seed in range(60):
        shape = tuple(int(n) for n in rng.integers(1, 9, 3))
        block = tuple(int(n) for n in rng.integers(1, 5, 3))
        mask = rng.random(shape) < rng.uniform(0.05, 0.5)
        got = components(mask, connectivity, block, seed)
        np.testing.assert_array_equal(got, canonical(whole_by_cc3d(mask, connectivity)))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 3), (3, 3, 3), (1, 9, 9), (9, 9, 1), (1, 1, 200), (1, 21, 22), (5, 5, 5), (2, 17, 17)])
def test_as_many_components_as_fit(shape):
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    for connectivity in (6, 18, 26):
        assert components(mask, connectivity, shape).max() == np.count_nonzero(mask)


def test_a_touch_over_an_edge_and_a_corner_where_blocks_meet():
    edge, corner = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    edge[0, 0, 1] = edge[0, 1, 0] = True
    corner[0, 1, 1] = corner[1, 0, 0] = True
    for mask, joins in ((edge, {6: 2, 18: 1, 26: 1}), (corner, {6: 2, 18: 2, 26: 1})):
        for connectivity, count in joins.items():
            for seed in range(6):
                assert components(mask, connectivity, (1, 1, 1), seed).max() == count


@pytest.mark.parametrize("fill", [False, True])
def test_empty_and_full(fill):
    assert (components(np.full((5, 6, 7), fill), 6, (2, 3, 4)) == int(fill)).all()


def test_a_serpent_through_all_blocks_is_one():
    mask = np.zeros((4, 9, 16), bool)
    mask[:, ::2] = True
    mask[:, 1::4, -1] = mask[:, 3::4, 0] = True
    mask[1::2] = False
    mask[1, 0, 0] = True
    for seed in range(5):
        np.testing.assert_array_equal(components(mask, 6, (1, 2, 3), seed), mask.astype(np.uint64))


def test_evidence_of_a_whole_volume_keeps_no_plane():
    rng = np.random.default_rng(2)
    mask = rng.random((8, 8, 8)) < 0.3
    op, grid = ConnectedComponents(), Grid((8, 8, 8), (4, 4, 4))
    sites = [site_of(op, grid, i, (spec_of(mask),)) for i in range(len(grid))]
    root = merge_tree({i: op.label(mask[s.read.slices], site=s).evidence for i, s in enumerate(sites)}, grid, rng)
    assert root.planes.box == Box.of((8, 8, 8)) and not root.planes.faces and not len(root.roots)
