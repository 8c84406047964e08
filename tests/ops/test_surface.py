"""Surface area and Euler number on shapes whose values are known."""

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.spatial.transform import Rotation
from skimage.measure import euler_number

from tests.ops.blockwise import assert_same, run, spec_of
from vemray.ops.measure import MeasureObjects
from vemray.ops.surface import DIRECTION_OF, DIRECTIONS, plane_bias, weights

SPACINGS = [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 2.0, 4.0)]


def measured(mask: np.ndarray, spacing, block=None) -> dict:
    labels = mask.astype(np.uint64)
    table = run(MeasureObjects(), {"labels": labels}, {"labels": spec_of(labels, spacing)}, block=block)
    return {name: table[name][0].as_py() for name in table.column_names}


def drawn(inside, reach: float, spacing, rng) -> np.ndarray:
    """Voxels whose centres lie in a shape, given by a function of points (.., 3), turned and shifted at random."""
    turn, centre = Rotation.random(random_state=rng).as_matrix(), rng.random(3) * np.array(spacing)
    axes = [np.arange(-int(reach / s) - 2, int(reach / s) + 3) * s - c for s, c in zip(spacing, centre)]
    return inside(np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ turn.T)


def ellipsoid_area(a: float, b: float, c: float) -> float:
    def f(t, p):
        return np.sin(t) * np.sqrt((b * c * np.sin(t) * np.cos(p)) ** 2 + (a * c * np.sin(t) * np.sin(p)) ** 2 + (a * b * np.cos(t)) ** 2)

    return dblquad(f, 0, 2 * np.pi, 0, np.pi)[0]


def shapes(r: float) -> dict:
    """name -> (points inside, reach from the centre, area, allowed mean error, Euler number)."""
    return {
        "sphere": (lambda p: (p**2).sum(-1) <= r * r, r, 4 * np.pi * r * r, 0.02, 1),
        "ellipsoid": (lambda p: ((p / [1.5 * r, r, 1.2 * r]) ** 2).sum(-1) <= 1, 1.5 * r, ellipsoid_area(1.5 * r, r, 1.2 * r), 0.02, 1),
        "torus": (lambda p: (np.hypot(p[..., 0], p[..., 1]) - 2 * r) ** 2 + p[..., 2] ** 2 <= r * r, 3 * r, 8 * np.pi**2 * r * r, 0.02, 0),
        "cylinder": (lambda p: (np.hypot(p[..., 0], p[..., 1]) <= r) & (abs(p[..., 2]) <= 1.5 * r), 2 * r, 8 * np.pi * r * r, 0.05, 1),
    }


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", ["sphere", "ellipsoid", "torus", "cylinder"])
def test_area_of_known_shapes(shape, spacing):
    """Radius 5 of the coarsest voxel; mean over poses and centres."""
    rng = np.random.default_rng(7)
    inside, reach, area, allowed, euler = shapes(5 * max(spacing))[shape]
    found = [measured(drawn(inside, reach, spacing, rng), spacing) for _ in range(8)]
    error = np.array([f["surface_area_nm2"] / area - 1 for f in found])
    assert abs(error.mean()) < allowed, f"mean error {error.mean():.3f}, each {np.round(error, 3)}"
    assert {f["euler_number"] for f in found} == {euler}
    if shape == "sphere":
        assert np.mean([f["sphericity"] for f in found]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("spacing", [*SPACINGS, (50.0, 4.6, 4.6)])
def test_weights(spacing):
    """The shares of the directions fill the sphere; equivalent directions weigh the same."""
    w = weights(spacing)
    lengths = np.linalg.norm(DIRECTIONS * np.array(spacing), axis=1)
    assert (w * lengths).sum() == pytest.approx(2 * np.prod(spacing))
    for k, d in enumerate(DIRECTIONS):
        mirrored = DIRECTION_OF[d[0] + 1, 1 - d[1], d[2] + 1]
        assert w[k] == pytest.approx(w[mirrored]) and DIRECTION_OF[tuple(1 - d)] == k


def test_isotropic_shares_are_the_published_ones():
    """Voronoi areas of the 13 directions (Legland, Kieu and Devaux 2007; Ohser and Muecklich)."""
    w = weights((1.0, 1.0, 1.0)) / 2
    steps = np.abs(DIRECTIONS).sum(1)
    for n, share in ((1, 0.0915559), (2, 0.0739613), (3, 0.0703913)):  # 2 * c of +-d, by the number of steps
        assert w[steps == n] * np.sqrt(n) == pytest.approx(np.full((steps == n).sum(), share), abs=2e-6)


def test_bias_of_a_plane():
    low, high = plane_bias((1.0, 1.0, 1.0))
    assert -0.08 < low < 0 < high < 0.03
    slab = np.zeros((12, 40, 40), bool)
    slab[4:8] = True  # cut by the volume's border all around: two planes
    got = measured(slab, (1, 1, 1))
    assert got["touches_border"]
    rim = 2 * 40 * 40
    assert low - 0.05 < got["surface_area_nm2"] / rim - 1 < high, "nothing is added where the border cuts"


def test_no_surface_on_the_cut():
    """Half a ball at the border has the area of half a sphere."""
    r = 12.0
    z, y, x = np.ogrid[0:15, -15:16, -15:16]
    half = measured((z + 0.5) ** 2 + (y - 0.3) ** 2 + x**2 <= r * r, (1, 1, 1))
    assert half["touches_border"]
    assert half["surface_area_nm2"] == pytest.approx(2 * np.pi * r * r, rel=0.03)
    full = measured(np.ones((6, 7, 8)), (1, 1, 1))
    assert full["surface_area_nm2"] == 0 and np.isnan(full["sphericity"]) and full["euler_number"] == 1


@pytest.mark.parametrize("seed", range(4))
def test_euler_number_against_scikit_image(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 10, 11)) < [0.3, 0.5, 0.7, 0.9][seed]
    for block in (None, (4, 3, 5), (1, 1, 1), (9, 1, 2)):
        assert measured(mask, (1, 1, 1), block)["euler_number"] == euler_number(mask, connectivity=1)


@pytest.mark.parametrize("shape", [(6, 7, 8), (1, 9, 8), (7, 1, 6), (5, 6, 1), (1, 1, 9), (2, 2, 2)])
def test_every_neighbourhood_counts_once(shape):
    """Noise of three labels, in any blocks and any merge tree: the same integers as on the whole."""
    rng = np.random.default_rng(sum(shape))
    labels = rng.choice(np.array([0, 5, 6, 2**63], np.uint64), shape)
    specs = {"labels": spec_of(labels, (7.0, 3.0, 5.0))}
    whole = run(MeasureObjects(), {"labels": labels}, specs)
    for seed in range(12):
        block = tuple(int(rng.integers(1, n + 2)) for n in shape)
        assert_same(whole, run(MeasureObjects(), {"labels": labels}, specs, block=block, seed=seed), rtol=0)
    w = weights((7.0, 3.0, 5.0))
    for row in whole.to_pylist():
        mine, area = np.pad(labels == np.uint64(row["label"]), 1), 0.0
        inside = np.pad(np.ones(shape, bool), 1)
        for k, d in enumerate(DIRECTIONS):
            moved, there = (np.roll(a, tuple(d), (0, 1, 2)) for a in (mine, inside))
            area += w[k] * np.count_nonzero((mine != moved) & inside & there)
        assert row["surface_area_nm2"] == pytest.approx(area, rel=1e-12)
