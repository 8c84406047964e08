"""Skeletons of bodies whose centre lines are known."""

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vemray.analysis.skeleton import Skeleton, skeleton_of
from vemray.geometry import Spacing

SPACINGS = [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0)]


def tubes(lines, radius: float, spacing) -> np.ndarray:
    """Voxels nearer than `radius` to one of the lines (pairs of points, nm ZYX), in their box with a margin."""
    points = np.concatenate([np.array(line, float) for line in lines])
    low, high = points.min(axis=0) - radius - 3 * np.array(spacing), points.max(axis=0) + radius + 3 * np.array(spacing)
    grid = np.stack(np.meshgrid(*[np.arange(a, b, s) for a, b, s in zip(low, high, spacing)], indexing="ij"), -1)
    mask = np.zeros(grid.shape[:3], bool)
    for a, b in lines:
        a, b = np.array(a, float), np.array(b, float)
        t = np.clip(((grid - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
        mask |= ((grid - a - t[..., None] * (b - a)) ** 2).sum(axis=-1) < radius**2
    return mask


def poses(n: int):
    rng = np.random.default_rng(0)
    return [Rotation.random(random_state=rng).as_matrix() for _ in range(n)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_rod_is_a_line(spacing):
    r = 3 * max(spacing)
    found = [skeleton_of(tubes([(np.zeros(3), turn[0] * 100)], r, spacing), Spacing(*spacing)).features() for turn in poses(6)]
    for f in found:
        assert (f["branch_points"], f["end_points"], f["loops"]) == (0, 2, 0)
        assert f["longest_path_nm"] == pytest.approx(f["length_nm"]) and f["radius_mean_nm"] == pytest.approx(r, rel=0.25)
    assert np.mean([f["length_nm"] for f in found]) == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_three_arms_meet_in_a_branch_point(spacing):
    r = 3 * max(spacing)
    for turn in poses(6):
        arms = [(np.zeros(3), turn @ np.array([0, np.sin(a), np.cos(a)]) * 60) for a in (0, 2.1, 4.2)]
        f = skeleton_of(tubes(arms, r, spacing), Spacing(*spacing)).features()
        assert (f["branch_points"], f["end_points"], f["loops"]) == (1, 3, 0)
        assert f["length_nm"] == pytest.approx(180, rel=0.1) and f["longest_path_nm"] == pytest.approx(120, rel=0.15)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_ring_is_a_loop(spacing):
    around = np.linspace(0, 2 * np.pi, 33)
    lengths = []
    for turn in poses(4):
        circle = np.stack([0 * around, 50 * np.sin(around), 50 * np.cos(around)], axis=1) @ turn.T
        f = skeleton_of(tubes(list(itertools.pairwise(circle)), 3 * max(spacing), spacing), Spacing(*spacing)).features()
        assert (f["branch_points"], f["end_points"], f["loops"]) == (0, 0, 1)
        assert f["longest_path_nm"] == pytest.approx(f["length_nm"] / 2)
        lengths.append(f["length_nm"])
    assert np.mean(lengths) == pytest.approx(2 * np.pi * 50, rel=0.03)


def test_a_ring_with_a_tail_and_two_rings():
    around = np.linspace(0, 2 * np.pi, 33)
    circle = np.stack([0 * around, 40 * np.sin(around), 40 * np.cos(around)], axis=1)
    ring = list(itertools.pairwise(circle))
    f = skeleton_of(tubes([*ring, ((0, 0, 40), (0, 0, 90))], 4, SPACINGS[0]), Spacing(1, 1, 1)).features()
    assert (f["branch_points"], f["end_points"], f["loops"]) == (1, 1, 1)
    assert f["length_nm"] == pytest.approx(2 * np.pi * 40 + 50, rel=0.05)
    far = [(a + [0, 0, 80.0], b + [0, 0, 80.0]) for a, b in ring]
    two = skeleton_of(tubes([*ring, *far], 4, SPACINGS[0]), Spacing(1, 1, 1)).features()
    assert two["loops"] == 2 and two["end_points"] == 0


def test_bumps_are_no_branches_and_a_ball_is_a_point():
    """A bump lower than the radius gives a spur, which is pruned; an arm of three radii is a branch."""
    rod = [((0, 0, 0), (0, 0, 100.0))]
    bump = tubes([*rod, ((0, 0, 50), (0, 5, 50.0))], 8, SPACINGS[0])
    arm = tubes([*rod, ((0, 0, 50), (0, 30, 50.0))], 8, SPACINGS[0])
    assert skeleton_of(bump, Spacing(1, 1, 1)).features()["branch_points"] == 0
    assert skeleton_of(arm, Spacing(1, 1, 1)).features()["branch_points"] == 1
    ball = skeleton_of(tubes([((0, 0, 0), (0, 0, 0.01))], 8, SPACINGS[0]), Spacing(1, 1, 1)).features()
    assert ball["length_nm"] < 8 and ball["branch_points"] == 0 and ball["loops"] == 0
    one = np.zeros((3, 3, 3), bool)
    one[1, 1, 1] = True
    assert skeleton_of(one, Spacing(1, 1, 1)).features()["end_points"] == 1
    nothing = skeleton_of(np.zeros((3, 3, 3), bool), Spacing(1, 1, 1))
    assert nothing == Skeleton() and nothing.features()["length_nm"] == 0


def test_the_box_does_not_matter():
    mask = tubes([((0, 0, 0), (10, 60, 40.0)), ((0, 0, 0), (20, -30, 30.0))], 6, SPACINGS[1])
    wide = np.pad(mask, ((3, 8), (1, 9), (5, 2)))
    assert skeleton_of(mask, Spacing(4, 1, 1)).features() == pytest.approx(skeleton_of(wide, Spacing(4, 1, 1)).features(), rel=1e-12)


def test_lengths_scale_with_the_voxels():
    mask = tubes([((0, 0, 0), (0, 60, 40.0)), ((0, 0, 0), (0, -30, 30.0))], 6, SPACINGS[0])
    small, large = (skeleton_of(mask, Spacing(s, s, s)).features() for s in (1, 7.5))
    assert large["length_nm"] == pytest.approx(7.5 * small["length_nm"]) and large["branch_points"] == small["branch_points"]
