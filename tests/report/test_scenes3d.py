"""Pictures in 3D: true to scale, coloured as the scale says, cut where asked, and the same every time."""

import io

import numpy as np
import pytest

from vemray.analysis.mesh import exposed_faces, mesh_of
from vemray.errors import InputError
from vemray.geometry import Spacing
from vemray.report.quantities import quantity
from vemray.report.scenes3d import Cut, Layer, Points, Scale, _lid, draw, render

pytest.importorskip("pyvista")
RADIUS = 1000.0
SIZE = (300, 240)


def ball(centre=(0.0, 0.0, 0.0), radius=RADIUS):
    z, y, x = np.mgrid[-22:23, -22:23, -22:23] * 50.0
    return mesh_of(exposed_faces(z**2 + y**2 + x**2 < radius**2)[1], Spacing(50, 50, 50), origin_nm=tuple(c - 22 * 50 for c in centre))


def painted(drawn) -> np.ndarray:
    return (drawn.pixels < 250).any(axis=2)


@pytest.mark.parametrize("view", ["oblique", "xy", "xz", "yz", "back"])
def test_a_ball_is_as_large_as_the_scale_bar_says(view):
    seen = painted(draw([Layer("ball", {1: ball()})], None, (), view, SIZE))
    drawn = draw([Layer("ball", {1: ball()})], None, (), view, SIZE)
    for axis in (0, 1):
        assert np.count_nonzero(seen.any(axis=axis)) * drawn.pixel_nm == pytest.approx(2 * RADIUS, rel=0.03)


@pytest.mark.parametrize("view, right, down", [("xy", "x", "y"), ("xz", "x", "z"), ("yz", "y", "z")])
def test_views_look_like_planes_of_the_stack(view, right, down):
    """A small ball at the large end of an axis is to the right, or below, of a large one, as in the pictures of planes."""
    for axis, sign in ((right, 1), (down, 0)):
        centre = np.zeros(3)
        centre["zyx".index(axis)] = 4000
        layers = [Layer("large", {1: ball()}, colour=(255, 0, 0)), Layer("small", {1: ball(tuple(centre), 400)}, colour=(0, 0, 255))]
        pixels = draw(layers, None, (), view, SIZE).pixels.astype(int)
        red, blue = (np.argwhere(pixels[..., a] - pixels[..., b] > 60).mean(axis=0) for a, b in ((0, 2), (2, 0)))
        assert blue[sign] > red[sign] + 30 and abs(blue[1 - sign] - red[1 - sign]) < 5


def test_colours_come_from_the_scale():
    """Of two balls the one with the larger value has the upper colour; one without a value is grey."""
    balls = {n: ball((0.0, 0.0, 2500.0 * n)) for n in range(3)}
    drawn = draw([Layer("balls", balls, values={0: 1.0, 1: 3.0})], Scale("value", low=1, high=3), (), "xy", (600, 200))
    assert drawn.ends == (1, 3) and not drawn.legend
    low, high, none = (drawn.pixels[100, x].astype(int) for x in (110, 300, 490))
    assert high[0] > high[2] + 60 and high[1] > high[2] + 60, "yellow"
    assert low[2] > low[1] + 15, "violet"
    assert np.ptp(none) < 12, "grey"


def test_a_cut_takes_what_lies_before_it_and_fills_what_it_opens():
    layers = [Layer("ball", {1: ball()}, colour=(200, 80, 80)), Layer("core", {1: ball(radius=400)}, colour=(0, 0, 255))]
    for capped in (True, False):
        outer = Layer("ball", layers[0].meshes, colour=(200, 80, 80), capped=capped)
        pixels = draw([outer, layers[1]], None, [Cut("x", 0.0)], "yz", SIZE).pixels.astype(int)
        centre, beside = pixels[SIZE[1] // 2, SIZE[0] // 2], pixels[SIZE[1] // 2 - 35 : SIZE[1] // 2 + 35, SIZE[0] // 2 + 65]
        assert centre[2] > centre[0] + 60, "the core's cap lies before the ball's"
        assert (beside[:, 0] > beside[:, 2] + 30).all()
        assert np.ptp(beside[:, 0]) <= 2 if capped else np.ptp(beside[:, 0]) > 10, "a cap is flat"
    whole, half = (np.count_nonzero(painted(draw(layers, None, c, "xy", SIZE))) for c in ((), [Cut("x", 0.0, keep_below=True)]))
    assert half == pytest.approx(whole / 2, rel=0.03)
    with pytest.raises(InputError, match="nothing to draw"):
        draw(layers, None, [Cut("z", 5000.0)], "xy", SIZE)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_caps_fill_the_outline(axis):
    """Of a ring cut across and along; and of noise, whose outline touches itself everywhere: the area of the voxels of that plane."""
    fine = 2.0
    z, y, x = np.mgrid[-12:13, -40:41, -40:41]
    ring = np.moveaxis((np.hypot(x, y) - 28) ** 2 + z**2 < 9**2, 0, axis)
    noise = np.random.default_rng(0).random((12, 13, 14)) < 0.5
    for mask, index in ((ring, ring.shape[2 - axis] // 2), (noise, 6)):
        mesh = mesh_of(exposed_faces(mask, closed=True)[1], Spacing(50, 50, 50), smooth=0)
        points, triangles = _lid(mesh.vertices[:, ::-1], mesh.triangles, axis, index * 50.0 + 3, fine)
        p = points[triangles]
        area = np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1).sum() / 2
        assert area == pytest.approx(np.count_nonzero(mask.take(index, axis=2 - axis)) * 2500, rel=1e-6)
        assert (points[:, axis] == index * 50.0 + 3).all()


def test_two_cuts_leave_a_quarter():
    layer = Layer("ball", {1: ball()}, colour=(200, 80, 80))
    drawn = draw([layer], None, [Cut("x", 0.0), Cut("y", 0.0, keep_below=True)], "xy", SIZE)
    assert np.count_nonzero(painted(drawn)) * drawn.pixel_nm**2 == pytest.approx(np.pi * RADIUS**2 / 4, rel=0.03)


def test_points_are_cut_and_coloured():
    points = Points("pores", np.array([[0.0, 0.0, -3000.0], [0.0, 0.0, 3000.0]]), 300.0, values=np.array([0.0, 1.0]))
    drawn = draw([points], Scale("density"), (), "xy", SIZE)
    assert drawn.ends == pytest.approx((0.02, 0.98))
    one = draw([points], Scale("density", low=0, high=1), [Cut("x", 0.0)], "xy", SIZE)
    shown = one.pixels[painted(one)].astype(int).mean(axis=0)
    assert shown[0] > shown[2] + 40, "only the one with the high value"


def test_the_picture_is_the_same_every_time_and_has_a_colour_bar():
    from PIL import Image

    layers = [Layer("cell", {1: ball(radius=1050)}, opacity=0.3), Layer("ball", {1: ball(radius=600)}, values={1: 2.0})]
    first, second = (render(layers, Scale("surface to volume (1/µm)"), size=SIZE, title="A cell") for _ in range(2))
    assert first == second
    picture = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
    assert picture.shape[1] > SIZE[0] * 1.1 and picture.shape[0] > SIZE[1] * 1.05
    assert (picture[:, int(SIZE[0] * 1.02) :] < 200).any(), "the colour bar"


def test_unknown_views_and_axes_are_named():
    with pytest.raises(InputError, match="no view 'xz2'. Did you mean 'xz'"):
        draw([Layer("ball", {1: ball()})], None, (), "xz2", SIZE)
    with pytest.raises(InputError, match="across x, y or z"):
        Cut("w", 0.0)


@pytest.mark.parametrize(
    "column, label, factor",
    [("surface_to_volume_per_nm", "surface to volume (1/µm)", 1e3), ("volume_nm3", "volume (µm³)", 1e-9), ("sphericity", "sphericity", 1.0)],
)
def test_columns_have_units(column, label, factor):
    q = quantity(column)
    assert (q.label, q.factor) == (label, factor)
