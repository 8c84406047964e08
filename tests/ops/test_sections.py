"""Objects cut by a plane or by points, against the definition and on bodies whose halves are known."""

from dataclasses import replace

import numpy as np
import pytest

from tests.ops.blockwise import run, spec_of
from vemray.errors import RecipeError
from vemray.ops import build
from vemray.ops.base import ArraySpec

ISO, ODD = (8.0, 8.0, 8.0), (50.0, 4.6, 4.6)


def cut(labels: np.ndarray, spacing=ISO, origin=(0.0, 0.0, 0.0), block=(5, 4, 7), **parameters) -> np.ndarray:
    return run(build("sections", parameters), {"labels": labels}, {"labels": replace(spec_of(labels, spacing), origin_nm=origin)}, block=block)


def positions(shape, spacing, origin) -> np.ndarray:
    return np.stack(np.meshgrid(*[o + np.arange(n) * s for n, s, o in zip(shape, spacing, origin)], indexing="ij"), -1)


@pytest.mark.parametrize("spacing", [ISO, ODD])
@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (700.5, -90.0, 1e6)])
def test_by_the_definition(spacing, origin):
    rng = np.random.default_rng(1)
    shape = (9, 13, 15)
    at, size = positions(shape, spacing, origin), np.array(shape) * spacing
    for n in (2, 3, 7):
        labels = rng.choice(np.array([0, 4, 2**63 + 11], np.uint64), shape)
        points = np.array(origin) + rng.random((n, 3)) * (size - spacing)
        got = cut(labels, spacing, origin, points_nm=points.tolist())
        want = np.linalg.norm(at[..., None, :] - points, axis=-1).argmin(-1) + 1
        np.testing.assert_array_equal(got, np.where(labels > 0, want, 0))
        normal = rng.standard_normal(3) * 10 ** rng.uniform(-6, 6)
        got = cut(labels > 0, spacing, origin, point_nm=points[0].tolist(), normal=normal.tolist())
        assert got.dtype == np.uint64
        np.testing.assert_array_equal(got, np.where(labels > 0, np.where((at - points[0]) @ normal > 0, 2, 1), 0))


@pytest.mark.parametrize("spacing", [ISO, ODD, (3.3, 3.3, 3.3)])
def test_what_lies_on_the_cut_is_in_the_first_section(spacing):
    """Whatever its direction, and although most positions are no whole numbers: no ragged cut."""
    labels = np.ones((11, 11, 11), np.uint64)
    step = np.indices(labels.shape) - 5
    middle = 5 * np.array(spacing)
    for way in [(0, 0, 1), (0, -1, 0), (1, 1, 0), (1, -1, 2), (-1, 2, 3)]:
        height = sum(s * w for s, w in zip(step, way))
        want = np.where(height > 0, 2, 1)
        normal = np.array(way) / spacing  # across the lattice plane
        np.testing.assert_array_equal(cut(labels, spacing, point_nm=middle.tolist(), normal=normal.tolist()), want)
        move = normal / np.linalg.norm(normal) * min(spacing) * 2
        np.testing.assert_array_equal(cut(labels, spacing, points_nm=[(middle - move).tolist(), (middle + move).tolist()]), want)
        three = cut(labels, spacing, points_nm=[(middle + move).tolist(), (middle - move).tolist(), (middle + 1.01 * move).tolist()])
        assert (three[height == 0] == 1).all(), "of equally near points the first"


def test_halves_of_a_ball_and_parts_of_objects():
    grid = np.indices((31, 31, 31)) - 15
    ball = (grid**2).sum(0) <= 13.5**2
    labels = np.where(ball, np.where(grid[2] > 6, 8, 5), 0).astype(np.uint64)
    sections = cut(labels, (4, 4, 4), point_nm=[60, 60, 60], normal=[1, 0, 0], block=(8, 31, 9))
    above, on = np.count_nonzero(ball[16:]), np.count_nonzero(ball[15])
    assert [np.count_nonzero(sections == i) for i in (1, 2)] == [above + on, above]
    specs = {"labels": spec_of(labels), "within": spec_of(sections)}
    parts = run(build("label_parts", {}), {"labels": labels, "within": sections}, specs, block=(8, 9, 31))
    assert parts.max() == 4 and len(np.unique(np.stack([labels[ball], sections[ball], parts[ball]]), axis=1).T) == 4


PLANE = {"point_nm": [8, 8, 8], "normal": [0, 0, 1]}
SPEC = ArraySpec((4, 5, 6), "uint64", spec_of(np.zeros((4, 5, 6), np.uint64)).spacing, "labels", (100.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "parameters, says",
    [
        ({}, "one of the two"), ({**PLANE, "points_nm": [[0, 0, 0], [8, 8, 8]]}, "one of the two"), ({"normal": [0, 0, 1]}, "whole"),
        ({"point_nm": [0, 0, 0]}, "whole"), ({**PLANE, "normal": [0, 0, 0]}, "no direction"), ({**PLANE, "normal": [0, float("nan"), 1]}, "no direction"),
        ({"points_nm": []}, "has 0 points"), ({"points_nm": [[8, 8, 8]]}, "has 1 point. It"),
        ({"points_nm": [[100, 1, 2], [100, 3, 4], [100, 1, 2]]}, r"\[100.0, 1.0, 2.0\] stands twice"), (PLANE, "z 96 to 128, y -4 to 36, x -4 to 44 nm"),
        ({"points_nm": [[100, 0, 0], [100, 0, float("nan")]]}, "outside of the volume"), ({"points_nm": [[100, 0, 0], [100, 36.1, 0]]}, "outside of the volume"),
    ],
)  # fmt: skip
def test_cuts_that_make_no_sense(parameters, says):
    with pytest.raises(RecipeError, match=says):
        build("sections", parameters).check(SPEC)


def test_the_border_is_inside():
    build("sections", {"points_nm": [[96, -4, -4], [128, 36, 44]]}).check(SPEC)
