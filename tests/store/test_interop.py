"""Others read what vemray writes: ome-zarr-models validates it, ngff-zarr and tensorstore read it."""

from __future__ import annotations

import numpy as np
import pytest

from vemray.geometry import Box, Grid, Spacing
from vemray.store import access, volume

SHAPE, SHARD, CHUNK = (50, 90, 70), (32, 64, 32), (16, 16, 16)


@pytest.fixture(params=["image", "labels", "mask"])
def written(request, tmp_path):
    kind = request.param
    a = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint64 if kind == "labels" else np.uint8)
    a = a > 100 if kind == "mask" else a
    v = volume.create(str(tmp_path / "cell.zarr"), SHAPE, a.dtype, Spacing(30, 8, 8), kind, SHARD, CHUNK, origin_nm=(5, 6, 7))
    grid = Grid(SHAPE, SHARD)
    for i in range(len(grid)):
        v.write(grid.write_box(i), a[grid.write_box(i).slices])
    for level, grid in v.later_levels:
        for i in range(len(grid)):
            volume.fill_level(v, level, grid.write_box(i))
    return v, a


def test_ome_zarr_models(written):
    zarr = pytest.importorskip("zarr")
    models = pytest.importorskip("ome_zarr_models.v05")
    v, _ = written
    group = zarr.open_group(access.array_store(v.url, read_only=True), mode="r")
    image = (models.ImageLabel if v.kind != "image" else models.Image).from_zarr(group)
    ms = image.attributes.ome.multiscales[0] if hasattr(image.attributes, "ome") else image.ome_attributes.multiscales[0]
    assert len(ms.datasets) == v.levels
    assert [a.name for a in ms.axes] == ["z", "y", "x"] and {a.unit for a in ms.axes} == {"nanometer"}


def test_ngff_zarr(written):
    ngff = pytest.importorskip("ngff_zarr")
    v, a = written
    ms = ngff.from_ngff_zarr(v.url)
    first = ms.images[0]
    assert len(ms.images) == v.levels and tuple(first.dims) == ("z", "y", "x")
    assert [first.scale[d] for d in "zyx"] == [30, 8, 8] and [first.translation[d] for d in "zyx"] == [5, 6, 7]
    assert np.array_equal(np.asarray(first.data), a)
    for k, image in enumerate(ms.images):
        level = volume.open(v.url, level=k)
        assert tuple(image.data.shape) == level.shape
        assert np.array_equal(np.asarray(image.data), level.read(level.box))
        assert [image.translation[d] for d in "zyx"] == pytest.approx(level.origin_nm)


def test_tensorstore(written):
    tensorstore = pytest.importorskip("tensorstore")
    v, a = written
    t = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{v.url}/0"}}, read=True).result()
    assert np.array_equal(t.read().result(), a)
    box = Box((1, 2, 3), (40, 41, 42))
    assert np.array_equal(t[box.slices].read().result(), a[box.slices])


def test_ngff_zarr_writes_what_we_read(tmp_path):
    ngff = pytest.importorskip("ngff_zarr")
    a = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
    for version in ("0.4", "0.5"):
        image = ngff.to_ngff_image(a, dims=("z", "y", "x"), scale={"z": 0.03, "y": 0.008, "x": 0.008}, axes_units=dict.fromkeys("zyx", "micrometer"))
        url = str(tmp_path / f"{version}.zarr")
        ngff.to_ngff_zarr(url, ngff.to_multiscales(image, scale_factors=[2]), version=version)
        v = volume.open(url)
        assert v.spacing.zyx == pytest.approx((30, 8, 8)) and v.levels == 2 and np.array_equal(v.read(v.box), a)
