"""Pyramid levels: blockwise equals whole, exact rounding, ties, spacing and translations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vemray.errors import VolumeError
from vemray.geometry import Box, Grid, Spacing
from vemray.store import pyramid, volume


def by_hand(a, factor, labels):
    out = np.empty([-(-n // f) for n, f in zip(a.shape, factor)], a.dtype)
    for i in np.ndindex(out.shape):
        w = a[tuple(slice(f * j, f * j + f) for j, f in zip(i, factor))].ravel()
        if labels:
            values, counts = np.unique(w, return_counts=True)
            best = values[counts == counts.max()]
            out[i] = best[best > 0][0] if (best > 0).any() else 0
        elif a.dtype.kind == "f":
            out[i] = sum(map(float, w)) / w.size
        else:
            out[i] = (2 * sum(int(v) for v in w) + w.size) // (2 * w.size)
    return out


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 2), (1, 2, 1)])
def test_reduction_by_hand(dtype, factor):
    rng = np.random.default_rng(5)
    for shape in ((5, 6, 7), (1, 5, 4), (3, 1, 1), (4, 4, 4), (1, 1, 1)):
        if dtype[0] == "f":
            a = rng.normal(size=shape).astype(dtype)
        else:
            info = np.iinfo(dtype)
            a = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        assert np.array_equal(pyramid.reduce(a, factor, False), by_hand(a, factor, False))
        if dtype[0] == "u":
            a = rng.integers(0, 4, shape).astype(dtype)
            assert np.array_equal(pyramid.reduce(a, factor, True), by_hand(a, factor, True))


SHARDS = [((32, 32, 32), (16, 16, 16)), ((48, 32, 64), (16, 16, 16)), ((64, 64, 64), (16, 16, 8)), ((256, 256, 256), (64, 64, 64))]


@pytest.mark.parametrize("spacing", [Spacing(8, 8, 8), Spacing(50, 4, 4), Spacing(30, 8, 7)])
@pytest.mark.parametrize("kind", ["image", "labels", "mask", "probability"])
@pytest.mark.parametrize("shard,chunk", SHARDS)
def test_levels_do_not_depend_on_blocks(tmp_path, spacing, kind, shard, chunk):
    rng = np.random.default_rng(3)
    shape = (70, 101, 130)
    coarse = rng.integers(0, 5, (18, 26, 33))
    a = np.kron(coarse, np.ones((4, 4, 4)))[tuple(map(slice, shape))].astype({"labels": np.uint64, "mask": bool}.get(kind, np.uint8))
    if kind in ("image", "probability"):
        a = (a * 40 + rng.integers(0, 30, shape)).astype(np.uint8)
    v = volume.create(str(tmp_path / "v.zarr"), shape, a.dtype, spacing, kind, shard, chunk)
    grid = Grid(shape, shard)
    for i in rng.permutation(len(grid)):
        v.write(grid.write_box(int(i)), a[grid.write_box(int(i)).slices])
    for level, grid in v.later_levels:
        for i in rng.permutation(len(grid)):
            volume.fill_level(v, level, grid.write_box(int(i)))
    whole = a.view(np.uint8) if kind == "mask" else a
    for k, level in enumerate(v.pyramid):
        whole = pyramid.reduce(whole, level.factor, kind in ("labels", "mask"))
        got = volume.open(v.url, level=k)
        assert np.array_equal(got.read(got.box), whole.astype(bool) if kind == "mask" else whole), k
        assert got.spacing == level.spacing and got.origin_nm == level.origin_nm
        assert all(s % c == 0 for s, c in zip(level.shard, level.chunk))


def test_several_shards_in_one_write(tmp_path):
    a = np.random.default_rng(0).integers(0, 255, (64, 64, 100)).astype(np.uint8)
    one = volume.create(str(tmp_path / "a.zarr"), a.shape, "uint8", Spacing(8, 8, 8), shard=(32, 32, 32), chunk=(16, 16, 16))
    one.write(Box.of(a.shape), a)
    assert np.array_equal(one.at(1).read(one.at(1).box), pyramid.reduce(a, (2, 2, 2), False))


def test_anisotropic_levels_become_isotropic_first():
    levels = pyramid.plan_levels((100, 2048, 2048), Spacing(50, 4, 4), (64, 256, 256), (64, 64, 64))
    assert [lv.factor for lv in levels[1:]] == [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert [lv.inline for lv in levels] == [True, True, True, False, False, False]
    assert all(n <= 64 for n in levels[-1].shape) and any(n > 64 for n in levels[-2].shape)


def test_translation_keeps_centres():
    """The centre of a coarse voxel is the mean of the centres of the fine ones it holds."""
    levels = pyramid.plan_levels((64, 64, 64), Spacing(8, 4, 4), (32, 32, 32), (16, 16, 16), origin_nm=(10, 20, 30))
    for k, lv in enumerate(levels):
        n = [round(s / s0) for s, s0 in zip(lv.spacing.zyx, (8, 4, 4))]
        centre = tuple(o + s0 * np.arange(m).mean() for o, s0, m in zip((10, 20, 30), (8, 4, 4), n))
        assert lv.origin_nm == pytest.approx(centre), k


def test_no_shard_has_two_writers():
    """Every inline level's shard lies inside what one level-0 shard determines."""
    shapes = ((70, 300, 500), (40, 1000, 129), (1, 1, 5000))
    shards = ((64, 64, 64), (192, 64, 128), (320, 320, 320))
    spacings = (Spacing(8, 8, 8), Spacing(40, 5, 5), Spacing(5, 5, 40))
    for shape, shard, spacing in itertools.product(shapes, shards, spacings):
        first, *others = pyramid.plan_levels(shape, spacing, shard, (32, 32, 32))
        scale = (1, 1, 1)
        for lv in others:
            scale = tuple(a * b for a, b in zip(scale, lv.factor))
            for s, f, s0, n0, n in zip(lv.shard, scale, first.shard, first.shape, lv.shape):
                if lv.inline:
                    assert s * f == s0 if n0 > s0 else s >= n


def test_fill_level_is_for_later_levels(tmp_path):
    v = volume.create(str(tmp_path / "v.zarr"), (64, 64, 64), "uint8", Spacing(8, 8, 8), shard=(32, 32, 32), chunk=(16, 16, 16))
    with pytest.raises(VolumeError, match="filled by write"):
        volume.fill_level(v, 1, v.at(1).box)
    with pytest.raises(VolumeError, match="no level 9"):
        volume.fill_level(v, 9, v.box)


def test_reopened_for_writing_has_the_same_levels(tmp_path):
    v = volume.create(str(tmp_path / "v.zarr"), (70, 130, 300), "uint8", Spacing(30, 8, 8), shard=(64, 64, 128), chunk=(32, 32, 32))
    assert volume.open(v.url, writable=True).pyramid == v.pyramid
