"""Nuclear pores, their pockets, and the relations that the phantom plants: drawn where the truth says, and each can be switched off."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from scipy.ndimage import center_of_mass
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from tests.ops.blockwise import SurfaceOf, spec_of
from tests.ops.blockwise import run as run_op
from vemray.analysis.correlation import correlate
from vemray.errors import InputError
from vemray.geometry import Box, Grid
from vemray.ops.faces import SurfaceFaces
from vemray.ops.placement import RandomPlacement
from vemray.phantom import Scene, contrast_to_noise, membrane_and_cytosol, object_planes, planted, render, truth_table
from vemray.phantom.operators import Phantom
from vemray.phantom.organelles import _radius, tube
from vemray.phantom.pores import DENSER, HARD_CORE
from vemray.phantom.surfaces import lobe_of, nucleus_distance, onto
from vemray.plan import Options
from vemray.run.api import run

SEEDS = range(1, 7)


@pytest.fixture(scope="module")
def part():
    """A part of the smaller lobe's envelope, at 16 nm."""
    scene = Scene.make("pores", 1, None, (44, 110, 110), "envelope")
    return scene, render(scene, Box.of(scene.shape))


@pytest.fixture(scope="module")
def tables():
    """Label-only scenes of several seeds with everything planted and with nothing."""
    out = {}
    for relations in (None, ()):
        scenes = [Scene.make("pores", seed, relations=relations) for seed in SEEDS]
        out[relations] = [(scene, table, planted(scene, table)) for scene, table in ((s, truth_table(s)) for s in scenes)]
    return out


def rows(table, kind):
    frame = table.to_pandas()
    return frame[frame["class"] == kind].reset_index(drop=True)


def centres(frame):
    return frame[["centre_z_nm", "centre_y_nm", "centre_x_nm"]].to_numpy()


def test_the_demo_is_what_it_was():
    """Its figures are in the docs. Sums of what was drawn before there were pores."""
    cases = [
        (("demo", 1), Box((60, 70, 60), (90, 150, 150)), "9a3cdcd48d5601ad"),
        (("demo", 2, (16.0, 16.0, 16.0)), Box((160, 180, 180), (176, 260, 300)), "21cf5ac8eb58619e"),
    ]
    for scene, box, digest in cases:
        drawn = render(Scene.make(*scene), box)
        assert list(drawn) == ["em", "cell", "nucleus", "mitochondria", "lysosomes"]
        assert hashlib.sha256(b"".join(a.tobytes() for a in drawn.values())).hexdigest()[:16] == digest


def test_any_box_equals_the_whole(part):
    scene, whole = part
    area = Box((5, 20, 10), (40, 93, 101))
    for i in range(len(grid := Grid(area.shape, (13, 37, 50)))):
        box = grid.write_box(i).shift(area.start)
        for name, array in render(scene, box).items():
            np.testing.assert_array_equal(array, whole[name][box.slices], err_msg=name)


def test_operator_writes_pores_blockwise(tmp_path):
    op = {"op": "phantom", "preset": "pores", "shape": [9, 60, 60], "around": "envelope"}
    recipe = {"vemray": 1, "name": "pores", "inputs": {}, "steps": {"phantom": op, "objects": {**op, "op": "phantom_objects"}}}
    results = run(recipe, {}, tmp_path, runner="serial", options=Options((32,) * 3, (32,) * 3), report=False, listeners=(lambda e: None,))
    whole = render(Phantom(preset="pores", shape=(9, 60, 60), around="envelope").scene, Box.of((9, 60, 60)))
    assert len(whole) == 7 and (whole["pockets"] > 0).any() and (whole["pores"] > 0).any()
    for name, array in whole.items():
        np.testing.assert_array_equal(results.volumes[f"phantom.{name}"].read(Box.of(array.shape)), array)


def test_pores_and_pockets_are_drawn_where_the_truth_says(part):
    scene, whole = part
    table = truth_table(scene)
    pore, pocket = rows(table, "pore"), rows(table, "pocket")
    assert list(pore.label) == list(pocket.label) == list(range(1, len(pore) + 1)), "pore i has pocket i"
    for frame, labels in ((pore, whole["pores"]), (pocket, whole["pockets"])):
        at = centres(frame)
        inside = frame.label[((at > 150) & (at < np.array(scene.shape) * 16.0 - 150)).all(1)].to_numpy()
        assert len(inside) >= 4
        found = np.array(center_of_mass(labels > 0, labels, inside)) * 16.0
        assert np.linalg.norm(found - at[inside - 1], axis=1).max() < 8.0
        volume = np.bincount(labels.ravel().astype(int), minlength=len(frame) + 1)[inside] * 16.0**3
        assert (volume / frame.volume_nm3[inside - 1]).to_numpy() == pytest.approx(1.0, abs=0.12)
        assert volume.sum() == pytest.approx(frame.volume_nm3[inside - 1].sum(), rel=0.02)
    assert whole["nucleus"][whole["pockets"] > 0].all(), "pockets lie in the nucleus"
    # the pocket lies under its pore, against the normal, and nothing else is that near
    normal = pore[["normal_z", "normal_y", "normal_x"]].to_numpy()
    below = ((centres(pore) - centres(pocket)) * normal).sum(1)
    assert (below > 80).all() and (below < 200).all()
    assert np.linalg.norm(centres(pore) - below[:, None] * normal - centres(pocket), axis=1).max() < 1e-6
    assert (cKDTree(centres(pocket)).query(centres(pore))[1] == np.arange(len(pore))).all()


def test_sizes_are_those_of_the_study(tables):
    """At 16 nm: pores of 100 to 150 voxels, pockets of 400 to 2000; 5 to 8 pores per um2."""
    for _, table, facts in tables[None]:
        pore, pocket = rows(table, "pore").volume_nm3 / 4096, rows(table, "pocket").volume_nm3 / 4096
        assert 100 < pore.median() < 150 and pocket.min() > 380 and pocket.max() < 2000
        assert 4 < facts["pores_per_um2_larger"] < 8 and 4 < facts["pores_per_um2_smaller"] < 10


def test_pores_keep_apart_on_the_envelope(tables):
    for scene, table, _ in tables[None][:3]:
        real = scene.pores[scene.pores[:, 10] > 0]
        assert np.abs(scene.envelope.level(real[:, 4:7])).max() < 0.1
        apart = cKDTree(real[:, 4:7]).query(real[:, 4:7], 2)[0][:, 1]
        assert apart.min() >= HARD_CORE and apart.min() < 1.1 * HARD_CORE
        assert (rows(table, "pore").lobe.to_numpy() == lobe_of(real[:, 4:7], scene.lobes)).all()


def test_a_pocket_is_light_and_a_pore_dark(part):
    scene, whole = part
    em, lining = whole["em"].astype(float), whole["nucleus"] & (whole["pockets"] == 0)
    depth = np.zeros(scene.shape)
    grid = np.argwhere(lining)
    depth[lining] = scene.envelope.near(grid * 16.0 - scene.centre)
    lining &= (depth > 80) & (depth < 130)
    pockets, around = em[whole["pockets"] > 0].mean(), em[lining].mean()
    assert pockets > around + 20, "low density: bright in raw FIB-SEM"
    assert np.mean(em[whole["pores"] > 0]) < around


def test_density_ratio_is_planted_and_can_be_switched_off(tables):
    for relations, ratio in ((None, DENSER), ((), 1.0)):
        logs = np.log([facts["pore_density_ratio"] for _, _, facts in tables[relations]])
        assert {facts["pore_density_ratio_planted"] for _, _, facts in tables[relations]} == {ratio}
        half = 2.57 * logs.std(ddof=1) / np.sqrt(len(logs))  # t, 5 degrees of freedom
        assert abs(logs.mean() - np.log(ratio)) < half < 0.15


def test_form_of_mitochondria_is_planted_and_can_be_switched_off(tables):
    r = {k: np.array([facts["mitochondria_rank_correlation"] for *_, facts in tables[k]]) for k in tables}
    assert r[None].max() < -0.35 and -0.85 < r[None].mean() < -0.5
    assert abs(r[()].mean()) < 2.57 * r[()].std(ddof=1) / np.sqrt(len(SEEDS))
    scene, table, facts = tables[None][0]
    mito = rows(table, "mitochondrion")
    assert (mito.to_nearest_membrane_nm == np.minimum(mito.to_nucleus_nm, mito.to_plasma_membrane_nm)).all()
    assert facts["mitochondria_rank_correlation"] == pytest.approx(spearmanr(mito.area_nm2 / mito.volume_nm3, mito.to_nearest_membrane_nm)[0])


def form_test(table, seed=0, order=None, bootstraps=0):
    """`correlate` on the exact table; `order`: forms dealt out anew."""
    mito = rows(table, "mitochondrion")
    form = mito.surface_to_volume_per_nm.to_numpy()
    at = {f"centroid_{a}_nm": mito[f"centre_{a}_nm"] for a in "zyx"}
    t = pa.table({"form": form if order is None else form[order], "far": mito.to_nearest_membrane_nm, **at})
    return correlate(t, "far", "form", permutations=199, bootstraps=bootstraps, seed=seed).to_pylist()[0]


def density_test(scene, voxel=64.0):
    """`random_placement` of the pores on the two lobes of the nucleus, labelled on a coarse grid."""
    low = scene.envelope.points.min(0) - 3 * voxel
    shape = np.ceil((scene.envelope.points.max(0) - low) / voxel).astype(int) + 3
    grid = low + voxel * np.indices(shape).reshape(3, -1).T
    inside = nucleus_distance(grid, scene.lobes, scene.waves_nucleus) < 0
    labels = np.where(inside, 3 - lobe_of(grid, scene.lobes), 0).reshape(shape).astype(np.uint64)  # 1: the smaller lobe
    surface = SurfaceOf(labels, spec_of(labels, (voxel,) * 3), SurfaceFaces("background"))
    at = scene.pores[scene.pores[:, 10] > 0, 4:7] - low
    values = {"objects": pa.table({"label": np.arange(len(at)), **{f"centroid_{a}_nm": at[:, i] for i, a in enumerate("zyx")}}), "surface": surface}
    found = run_op(RandomPlacement(minimum_nm=HARD_CORE), values, {"surface": surface.surface_spec}).to_pylist()
    return next(r for r in found if r["statistic"] == "density_ratio")


def test_what_is_not_planted_is_not_found(tables):
    """Of 6 cells at most one by each test; and of 150 in which forms are dealt out anew, 1 in 20."""
    p = np.array([(form_test(table)["spearman_p_spatial"], density_test(scene)["p"]) for scene, table, _ in tables[()]])
    assert ((p <= 0.05).sum(0) <= 1).all(), p
    rng = np.random.default_rng(3)
    dealt = [form_test(t, i, rng.permutation(len(rows(t, "mitochondrion"))))["spearman_p_spatial"] for _, t, _ in tables[()] for i in range(25)]
    assert 2 <= (np.array(dealt) <= 0.05).sum() <= 13 and 0.42 < np.mean(dealt) < 0.6


def test_what_is_planted_is_found(tables):
    """Intervals of 95 % hold what is planted: the ratio, and the mean correlation of many cells (docs/phantom.md)."""
    form = [form_test(table, bootstraps=500) for _, table, _ in tables[None]]
    density = [density_test(scene) for scene, _, _ in tables[None]]
    assert sum(r["spearman_p_spatial"] <= 0.05 for r in form) >= 5 and sum(r["p"] <= 0.05 for r in density) >= 5
    assert sum(r["spearman_low"] <= -0.58 <= r["spearman_high"] for r in form) >= 5
    assert sum(r["interval_low"] <= DENSER <= r["interval_high"] for r in density) >= 5
    for r, (_, _, facts) in zip(density, tables[None]):
        assert r["observed"] == pytest.approx(facts["pore_density_ratio"], rel=0.08)


def test_one_relation_at_a_time():
    both, density, form = (Scene.make("pores", 3, relations=r) for r in (None, ["pore_density"], ["mitochondria_form"]))
    np.testing.assert_array_equal(both.pores, density.pores)
    np.testing.assert_array_equal(both.segments, form.segments)
    assert both.segments.shape != density.segments.shape and not np.array_equal(both.pores, form.pores)


def test_without_pores_it_is_the_same_cell():
    bare, coarse = Scene.make("pores", 1, pores=False), Scene.make("pores", 1, (32.0, 32.0, 32.0))
    for name in ("segments", "spheres", "fingers", "lobes", "waves_nucleus"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(Scene.make("pores", 1), name))
    assert len(bare.pores) == len(coarse.pores) == 0
    assert not {"pore", "pocket"} & set(truth_table(coarse).to_pandas()["class"])


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="16 nm or less"):
        Scene.make("pores", 1, (32.0, 16.0, 16.0), pores=True)
    with pytest.raises(InputError, match="'demo' has no nuclear pores"):
        Scene.make("demo", 1, (16.0, 16.0, 16.0), pores=True)
    with pytest.raises(InputError, match="'demo' has no relation pore_density"):
        Scene.make("demo", 1, relations=["pore_density"])
    with pytest.raises(InputError, match="around"):
        Scene.make("pores", 1, around="nucleolus")


@pytest.mark.parametrize("name", ["envelope", "plasma_membrane"])
def test_distances_to_the_membranes_are_exact(name):
    """Against the nearest of thousands of places on the surface near by: never farther, and at most by what their spacing explains nearer."""
    scene = Scene.make("pores", 2)
    surface = getattr(scene, name)
    rng = np.random.default_rng(0)
    p = rng.uniform(-0.8, 0.8, (12, 3)) * scene.half_axes
    found = surface.distance(p)
    for q, d in zip(p, found):
        at = surface.points[np.linalg.norm(surface.points - q, axis=1) < d + 8.0]
        at = np.repeat(at, max(1, 3000 // len(at)), axis=0)
        at = onto(surface.level, at + rng.normal(0, 20, at.shape), 8)
        good = np.abs(surface.level(at)) < 1e-3
        assert good.sum() > 100
        best = np.linalg.norm(at[good] - q, axis=1).min()
        assert -0.6 < d - best < 0.1


def test_volumes_agree_with_the_drawn():
    scene = Scene.make("pores", 1, (40.0, 40.0, 40.0))
    drawn, table = render(scene, Box.of(scene.shape)), truth_table(scene)
    for name, kind in (("cell", "cell"), ("nucleus", "nucleus")):
        assert drawn[name].sum() * 40.0**3 == pytest.approx(rows(table, kind).volume_nm3[0], rel=0.004)
    mito = rows(table, "mitochondrion")
    volume = np.bincount(drawn["mitochondria"].ravel().astype(int))[1:] * 40.0**3
    assert (volume / mito.volume_nm3).to_numpy() == pytest.approx(1.0, abs=0.03)
    found = np.array(center_of_mass(drawn["mitochondria"] > 0, drawn["mitochondria"], mito.label.to_numpy())) * 40.0
    assert np.linalg.norm(found - centres(mito), axis=1).max() < 8.0
    assert (mito.surface_to_nucleus_nm > 0).all() and (mito.surface_to_plasma_membrane_nm > 0).all()
    assert (mito.surface_to_nucleus_nm < mito.to_nucleus_nm).all()


def test_tube_in_closed_form():
    line = np.array([[0.0, 0, 0], [0, 0, 100.0], [0, 0, 500.0]])
    volume, area, centre = tube(line, 60.0)
    assert volume == pytest.approx(np.pi * 60**2 * 500 + 4 / 3 * np.pi * 60**3) and area == pytest.approx(2 * np.pi * 60 * 500 + 4 * np.pi * 60**2)
    assert centre == pytest.approx([0, 0, 250.0])
    ratio = area / volume
    assert _radius(ratio, 500.0) == pytest.approx(60.0)
    # half a torus: Pappus, and its centroid
    turn = np.linspace(0, np.pi, 200)
    bow = 400.0 * np.stack([0 * turn, np.sin(turn), np.cos(turn)], 1)
    volume, area, centre = tube(bow, 150.0)
    assert volume == pytest.approx(np.pi * 150**2 * np.pi * 400 + 4 / 3 * np.pi * 150**3, rel=1e-3)
    assert area == pytest.approx(2 * np.pi * 150 * np.pi * 400 + 4 * np.pi * 150**2, rel=1e-3)


def test_contrast_to_noise_is_that_of_the_real_volume():
    """As in test_phantom.py, with pores and the heterochromatin around their pockets."""
    scene = Scene.make("pores", 1, (10.0, 10.0, 10.0), (20, 500, 500))
    r = render(scene, Box.of(scene.shape))
    bodies = r["cell"].astype(int) + 2 * r["nucleus"] + 4 * (r["mitochondria"] > 0) + 8 * r["mitochondria"].astype(int)
    membrane, clear = membrane_and_cytosol(bodies, (10, 10, 10), 60)
    cytosol = clear & r["cell"] & ~r["nucleus"] & (r["mitochondria"] == 0)
    cytosol &= r["em"] > 0.9 * np.median(r["em"][cytosol])
    assert contrast_to_noise(r["em"], membrane, cytosol) == pytest.approx(13.8, rel=0.2)


def test_planes_of_pores(part):
    _, whole = part
    planes = object_planes(whole["pores"], every=5)
    assert planes and all(z % 5 == 2 for z in planes)
    for z, plane in planes.items():
        np.testing.assert_array_equal(plane == 2, whole["pores"][z] > 0)
        assert set(np.unique(plane)) == {1, 2}
