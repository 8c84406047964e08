"""Round trips in a folder and on S3, alignment, kinds, damage, pickling."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from vemray.errors import VolumeError
from vemray.geometry import Box, Grid, Spacing
from vemray.store import access, volume

SHAPE = (70, 90, 130)
SHARD, CHUNK = (32, 64, 32), (16, 16, 16)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def place(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path)
    return access.join(request.getfixturevalue("s3_url"), tmp_path.name)


def grey(shape=SHAPE, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 250, shape).astype(dtype)


def fill(v, a):
    grid = Grid(v.shape, SHARD)
    for i in np.random.default_rng(1).permutation(len(grid)):
        v.write(grid.write_box(int(i)), a[grid.write_box(int(i)).slices])
    for level, grid in v.later_levels:
        for i in range(len(grid)):
            volume.fill_level(v, level, grid.write_box(i))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "uint64"])
def test_round_trip(place, dtype):
    a = grey(dtype=dtype)
    url = access.join(place, "v.zarr")
    made = volume.create(url, SHAPE, dtype, Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    fill(made, a)
    v = volume.open(url)
    assert (v.shape, v.dtype, v.kind, v.spacing, v.shard, v.chunk) == (SHAPE, dtype, "image", Spacing(8, 4, 4), SHARD, CHUNK)
    assert not v.writable and v.levels == made.levels
    for box in (v.box, Box((3, 50, 7), (69, 90, 101)), Box((31, 63, 31), (33, 65, 33)), Box((5, 5, 5), (6, 6, 6)), Box((9, 9, 9), (9, 12, 12))):
        got = v.read(box)
        assert got.dtype == a.dtype and got.flags.c_contiguous and got.flags.writeable and got.flags.owndata
        assert np.array_equal(got, a[box.slices])


def test_kinds_come_back(place):
    labels = np.kron(np.arange(27).reshape(3, 3, 3), np.ones((20, 20, 20))).astype(np.uint64) << 40
    url = access.join(place, "l.zarr")
    v = volume.create(url, labels.shape, np.uint64, Spacing(8, 8, 8), "labels", attributes={"content_key": "abc"})
    v.write(v.box, labels)
    back = volume.open(url)
    assert back.kind == "labels" and np.array_equal(back.read(back.box), labels)
    assert back.attributes["content_key"] == "abc" and back.attributes["kind"] == "labels"

    url = access.join(place, "m.zarr")
    v = volume.create(url, labels.shape, bool, Spacing(8, 8, 8), "mask")
    v.write(v.box, labels > 0)
    back = volume.open(url)
    assert back.kind == "mask" and back.dtype == "bool" and back.spec.dtype == "bool"
    got = back.read(back.box)
    assert got.dtype == bool and np.array_equal(got, labels > 0)
    assert np.array_equal(volume.open(url, kind="labels").read(back.box), (labels > 0).astype(np.uint8))

    url = access.join(place, "p.zarr")
    v = volume.create(url, labels.shape, np.uint8, Spacing(8, 8, 8), "probability")
    assert volume.open(url).kind == "probability"


def test_never_written_is_fill_value(place):
    url = access.join(place, "v.zarr")
    v = volume.create(url, SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    v.write(Box((0, 0, 0), SHARD), np.full(SHARD, 7, np.uint8))
    got = volume.open(url).read(v.box)
    assert (got[Box((0, 0, 0), SHARD).slices] == 7).all() and got.sum() == 7 * np.prod(SHARD)


def test_writing_empty_removes_what_was_there(place):
    url = access.join(place, "v.zarr")
    v = volume.create(url, SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    box = Box((0, 0, 0), SHARD)
    assert v.write(box, np.full(SHARD, 7, np.uint8)) > 0
    assert v.write(box, np.zeros(SHARD, np.uint8)) == 0
    assert not volume.open(url).read(box).any()


def test_unaligned_write_is_refused_and_taught(tmp_path):
    v = volume.create(str(tmp_path / "v.zarr"), SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    with pytest.raises(VolumeError, match=r"\[0:32, 0:64, 32:96\]"):
        v.write(Box((0, 0, 40), (32, 64, 72)), np.zeros((32, 64, 32), np.uint8))
    with pytest.raises(VolumeError, match="whole shards"):
        v.write(Box((0, 0, 0), (32, 64, 16)), np.zeros((32, 64, 16), np.uint8))
    with pytest.raises(VolumeError, match="does not fill"):
        v.write(Box((0, 0, 0), SHARD), np.zeros((32, 64, 31), np.uint8))
    with pytest.raises(VolumeError, match="values would change"):
        v.write(Box((0, 0, 0), SHARD), np.zeros(SHARD, np.uint16))
    with pytest.raises(VolumeError, match="does not lie in"):
        v.write(Box((64, 0, 0), (96, 64, 32)), np.zeros(SHARD, np.uint8))
    v.write(Box((64, 64, 96), SHAPE), np.ones((6, 26, 34), np.uint8))  # the volume's end is whole
    assert not any(f.endswith(".partial") for _, _, fs in os.walk(tmp_path) for f in fs)


def test_opened_to_read_cannot_be_written(tmp_path):
    url = str(tmp_path / "v.zarr")
    volume.create(url, SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    with pytest.raises(VolumeError, match="opened to read"):
        volume.open(url).write(Box((0, 0, 0), SHARD), np.zeros(SHARD, np.uint8))
    again = volume.open(url, writable=True)
    again.write(Box((0, 0, 0), SHARD), np.ones(SHARD, np.uint8))
    assert volume.open(url).read(Box((0, 0, 0), SHARD)).all()


def test_existing_is_left_alone(place):
    url = access.join(place, "v.zarr")
    v = volume.create(url, (20, 20, 20), "uint8", Spacing(1, 1, 1))
    v.write(v.box, np.ones(v.shape, np.uint8))
    with pytest.raises(VolumeError, match="exists already"):
        volume.create(url, (20, 20, 20), "uint8", Spacing(1, 1, 1))
    assert volume.open(url).read(v.box).all()
    other = volume.create(url, (30, 20, 20), "uint16", Spacing(1, 1, 1), overwrite=True)
    assert volume.open(url).shape == (30, 20, 20) and not other.read(other.box).any()


def test_read_outside_is_refused(tmp_path):
    v = volume.create(str(tmp_path / "v.zarr"), (20, 20, 20), "uint8", Spacing(1, 1, 1))
    with pytest.raises(VolumeError, match="Clip it"):
        v.read(Box((0, 0, 0), (21, 20, 20)))
    with pytest.raises(VolumeError, match="Clip it"):
        v.read(Box((-1, 0, 0), (5, 5, 5)))


@pytest.mark.parametrize("shape", [(1, 40, 300), (300, 1, 1), (1, 1, 1), (5, 5, 5), (17, 33, 65)])
def test_thin_and_small_volumes(tmp_path, shape):
    a = grey(shape)
    v = volume.create(str(tmp_path / "v.zarr"), shape, "uint8", Spacing(3, 2, 1), shard=(64, 64, 64), chunk=(32, 32, 32))
    assert all(s % c == 0 for s, c in zip(v.shard, v.chunk))
    grid = Grid(shape, (64, 64, 64))
    for i in range(len(grid)):
        v.write(grid.write_box(i), a[grid.write_box(i).slices])
    assert np.array_equal(volume.open(v.url).read(v.box), a)


def _shard_files(root):
    return [p for p in Path(root, "0").rglob("*") if p.is_file() and p.name != "zarr.json"]


@pytest.mark.parametrize("damage", ["short", "empty", "middle", "index"])
def test_damaged_shard_is_an_error(tmp_path, damage):
    url = str(tmp_path / "v.zarr")
    v = volume.create(url, SHARD, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    v.write(v.box, grey(SHARD))
    (path,) = _shard_files(url)
    data = bytearray(path.read_bytes())
    if damage == "short":
        data = data[:-100]
    elif damage == "empty":
        data = b""
    elif damage == "middle":
        data = data[:1000] + data[5000:]
    else:
        data[-60] ^= 1
    path.write_bytes(data)
    for box in (v.box, Box((0, 0, 20), (32, 64, 30))):
        with pytest.raises(VolumeError, match="truncated or corrupt") as e:
            volume.open(url).read(box)
        assert url in str(e.value) and str(box) in str(e.value)


def test_foreign_reader_damage_is_an_error(tmp_path):
    zarr = pytest.importorskip("zarr")
    url = str(tmp_path / "z.zarr")
    zarr.create_array(url, data=grey((20, 20, 20)), chunks=(10, 10, 10))
    path = next(p for p in Path(url).rglob("*") if p.is_file() and p.name == "0")
    path.write_bytes(path.read_bytes()[:20])
    v = volume.open(url, spacing=Spacing(1, 1, 1))
    with pytest.raises(VolumeError, match="truncated or corrupt"):
        v.read(v.box)


def test_crc32c_and_layout_are_zarrs_own(place):
    """zarr-python reads what we write, and we read what it writes."""
    import zarr

    a = grey()
    url = access.join(place, "v.zarr")
    fill(volume.create(url, SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK), a)
    assert np.array_equal(zarr.open_array(access.array_store(url, read_only=True), path="0", mode="r")[...], a)
    other = access.join(place, "z.zarr")
    for codec in (zarr.codecs.ZstdCodec(level=3), zarr.codecs.BloscCodec(cname="lz4", shuffle="bitshuffle"), zarr.codecs.GzipCodec()):
        z = zarr.create_array(access.array_store(other), shape=SHAPE, dtype="uint16", chunks=CHUNK, shards=SHARD, compressors=codec, overwrite=True)
        z[...] = a
        volume.forget()
        v = volume.open(other, spacing=Spacing(8, 4, 4))
        box = Box((3, 50, 7), (69, 90, 101))
        assert np.array_equal(v.read(box), a[box.slices]) and v.shard == SHARD and v.chunk == CHUNK


def test_xarray_is_lazy_and_in_nm(tmp_path):
    a = grey()
    v = volume.create(str(tmp_path / "v.zarr"), SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK, origin_nm=(100, 0, 0), name="cell")
    fill(v, a)
    x = volume.open(v.url).to_xarray()
    assert x.dims == ("z", "y", "x") and x.name == "cell" and x.z.attrs["units"] == "nm" and x.chunks is None
    assert x.z.values[0] == 100 and x.z.values[1] == 108 and x.x.values[-1] == 129 * 4
    assert not isinstance(x.variable._data, np.ndarray)
    part = x.sel(z=slice(116, 180), y=40).isel(x=slice(20, 3, -3))
    assert np.array_equal(part.values, a[2:11, 10, 20:3:-3])
    assert np.array_equal(x[::7, ::5, 4].values, a[::7, ::5, 4])
    assert np.array_equal(x[[5, 1, 60], :, 3].values, a[[5, 1, 60], :, 3])
    assert x[5:5].shape == (0, *SHAPE[1:]) and x[5:5].values.size == 0
    assert float(x.mean()) == pytest.approx(a.mean())


def _read_in_child(v, box, queue):
    queue.put(int(v.read(box).sum()))


def test_handle_is_small_and_works_elsewhere(place):
    a = grey()
    v = volume.create(access.join(place, "v.zarr"), SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    fill(v, a)
    v.read(v.box)
    assert len(pickle.dumps(v)) < 3000 and pickle.loads(pickle.dumps(v)) == v
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(v, v.box, queue))
    child.start()
    assert queue.get(timeout=120) == int(a.sum())
    child.join()


def test_label_joins_the_list_of_its_image(tmp_path):
    image = str(tmp_path / "i.zarr")
    volume.create(image, (20, 20, 20), "uint8", Spacing(8, 8, 8))
    for name in ("cells", "nuclei"):
        volume.create(f"{image}/labels/{name}", (20, 20, 20), "uint64", Spacing(8, 8, 8), "labels")
    assert json.loads(Path(image, "labels", "zarr.json").read_text())["attributes"]["ome"]["labels"] == ["cells", "nuclei"]
    assert volume.open(f"{image}/labels/nuclei").kind == "labels"
    with pytest.raises(VolumeError, match="cells, nuclei"):
        volume.open(f"{image}/labels")


def test_shard_must_be_whole_chunks(tmp_path):
    with pytest.raises(VolumeError, match=r"Nearest: \(64, 128, 64\)"):
        volume.create(str(tmp_path / "v.zarr"), (500, 500, 500), "uint8", Spacing(8, 8, 8), shard=(60, 130, 70))


def test_made_again_in_another_form(tmp_path):
    """A process that read the old volume reads and writes the new one right, and old handles say what happened."""
    url = str(tmp_path / "v.zarr")
    old = volume.create(url, SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    fill(old, grey())
    old.read(old.box)
    new = volume.create(url, (64, 64, 64), "uint16", Spacing(8, 4, 4), shard=(64, 64, 64), chunk=(32, 32, 32), overwrite=True)
    new.write(new.box, grey((64, 64, 64), np.uint16))
    assert np.array_equal(volume.open(url).read(new.box), grey((64, 64, 64), np.uint16))
    with pytest.raises(VolumeError, match="replaced by another volume"):
        old.read(old.box)


def test_coarser_levels_are_not_written_directly(tmp_path):
    v = volume.create(str(tmp_path / "v.zarr"), SHAPE, "uint8", Spacing(8, 4, 4), shard=SHARD, chunk=CHUNK)
    with pytest.raises(VolumeError, match="follows from level 0"):
        v.at(1).write(v.at(1).box, np.zeros(v.at(1).shape, np.uint8))
