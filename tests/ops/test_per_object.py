"""Skeletons and meshes of objects in a run: the same for every grid, refused with numbers where one is too large."""

import numpy as np
import pytest

import vemray
from tests.ops.blockwise import assert_same
from vemray.analysis.mesh import exposed_faces, mesh_of
from vemray.analysis.skeleton import skeleton_of
from vemray.errors import BlockError
from vemray.geometry import Box, Spacing
from vemray.plan import Options
from vemray.store.volume import create

SPACING = Spacing(16, 8, 8)
RECIPE = {
    "vemray": 1, "name": "alone", "inputs": {"em": {}},
    "steps": {
        "bright": {"op": "threshold", "image": "em", "value": 100}, "objects": {"op": "connected_components", "mask": "bright"},
        "table": {"op": "measure", "labels": "objects"}, "lines": {"op": "skeletons", "labels": "objects", "table": "table"},
        "surfaces": {"op": "measure_meshes", "labels": "objects", "table": "table"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A long rod through many blocks, a Y, a ring and a cut ball."""
    z, y, x = (np.arange(n) * s for n, s in zip((60, 130, 140), SPACING.zyx))
    grid = np.stack(np.meshgrid(z, y, x, indexing="ij"), -1)

    def tube(a, b, r):
        a, b = np.array(a, float), np.array(b, float)
        t = np.clip(((grid - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
        return ((grid - a - t[..., None] * (b - a)) ** 2).sum(-1) < r * r

    mask = tube((150, 150, 150), (800, 150, 1000), 60)
    mask |= tube((200, 500, 150), (200, 800, 200), 50) | tube((200, 800, 200), (600, 950, 100), 50) | tube((200, 800, 200), (200, 950, 500), 50)
    ring = np.hypot(np.hypot(grid[..., 1] - 650, grid[..., 2] - 800) - 180, grid[..., 0] - 500) < 50
    ball = ((grid - np.array([900, 300, 300])) ** 2).sum(-1) < 130**2
    em = create(str(tmp_path_factory.mktemp("objects") / "em.zarr"), mask.shape, "uint8", SPACING, shard=(64, 192, 192), chunk=(32, 32, 32))
    em.write(Box.of(mask.shape), np.where(mask | ring | ball, 200, 10).astype(np.uint8))
    return em.url


def run(scene, out, block=(64, 192, 192), memory=2 << 30, runner="serial", recipe=RECIPE):
    return vemray.run(recipe, scene, out, runner=runner, options=Options(block, (32, 32, 32), memory), listeners=(lambda e: None,), report=False)


def test_the_same_for_every_grid_and_as_on_the_whole(scene, tmp_path):
    whole = run(scene, tmp_path / "whole")
    blocks = run(scene, tmp_path / "blocks", (32, 64, 32))
    for name in ("lines", "surfaces"):
        assert_same(blocks.arrow[name], whole.arrow[name], rtol=0)
        assert whole.arrow[name].num_rows == 4
    labels, lines, surfaces = whole.labels["objects"].values, whole.tables["lines"], whole.tables["surfaces"]
    for i, label in enumerate(lines.label):
        mask = labels == label
        want = skeleton_of(mask, SPACING).features()
        assert {k: lines[k][i] for k in want} == pytest.approx(want)
        assert surfaces.mesh_area_nm2[i] == pytest.approx(mesh_of(exposed_faces(mask)[1], SPACING).area_nm2)
    shape = {(b, e, n) for b, e, n in zip(lines.branch_points, lines.end_points, lines.loops)}
    assert {(0, 2, 0), (1, 3, 0), (0, 0, 1)} <= shape
    cut = whole.tables["table"].touches_border.to_numpy()
    assert np.isnan(surfaces.mesh_volume_nm3.to_numpy()).tolist() == cut.tolist() and cut.sum() == 1
    inside = ~cut
    assert surfaces.mesh_volume_nm3[inside].to_numpy() == pytest.approx(whole.tables["table"].volume_nm3[inside].to_numpy(), rel=1e-4)
    assert surfaces.mesh_area_nm2.to_numpy() == pytest.approx(whole.tables["table"].surface_area_nm2.to_numpy(), rel=0.06)


def test_ray_gives_the_same(scene, tmp_path):
    serial, ray = run(scene, tmp_path / "serial", (32, 64, 64)), run(scene, tmp_path / "ray", (32, 64, 64), runner="ray")
    for name in ("lines", "surfaces"):
        assert_same(serial.arrow[name], ray.arrow[name], rtol=0)


def test_an_object_too_large_is_refused_with_numbers_and_can_be_left_out(scene, tmp_path):
    with pytest.raises(BlockError, match=r"object \d+ in \[.*\] needs \d+ MB, and a task may use 18 MB. Take labels of a coarser level"):
        run(scene, tmp_path / "out", (32, 32, 32), memory=18_000_000)
    steps = {**RECIPE["steps"], "small": {"op": "select_rows", "table": "table", "where": "volume_nm3 < 1.2e7"}}
    steps = {n: {**s, **({"table": "small"} if s["op"] in ("skeletons", "measure_meshes") else {})} for n, s in steps.items()}
    some = run(scene, tmp_path / "some", recipe={**RECIPE, "steps": steps})
    assert 0 < some.arrow["lines"].num_rows < 4 and some.arrow["lines"]["label"].to_pylist() == some.arrow["small"]["label"].to_pylist()


def test_a_table_without_boxes_is_refused(scene, tmp_path):
    steps = {**RECIPE["steps"], "lines": {"op": "skeletons", "labels": "objects", "table": "surfaces"}}
    with pytest.raises(BlockError, match="no column 'bbox_z_min': 'skeletons' takes the table of `measure`"):
        run(scene, tmp_path / "out", recipe={**RECIPE, "steps": steps})
