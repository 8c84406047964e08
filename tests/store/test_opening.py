"""What is read: OME-Zarr 0.4 and 0.5, plain Zarr of every layout, units; and what is refused, with the reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from vemray.errors import VolumeError
from vemray.geometry import Box, Spacing
from vemray.store import access, volume

A = np.random.default_rng(0).integers(0, 1000, (12, 20, 31)).astype(np.uint16)
S = Spacing(8, 4, 4)


def ome(root, data, axes, scale, version="0.4", translation=None, name="x", **extra):
    """An OME-Zarr image of one level, written by zarr-python."""
    old = version != "0.5"
    group = zarr.open_group(str(root), mode="w", zarr_format=2 if old else 3)
    group.create_array("0", data=data, chunks=tuple(min(n, 8) for n in data.shape), **({} if old else {"dimension_names": [a["name"] for a in axes]}))
    dataset = {"path": "0"}
    if scale is not None:
        dataset["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
        if translation:
            dataset["coordinateTransformations"].append({"type": "translation", "translation": translation})
    entry = {"axes": axes, "datasets": [dataset], "name": name, **extra}
    group.attrs.update({"multiscales": [{**entry, "version": "0.4"}]} if old else {"ome": {"version": "0.5", "multiscales": [entry]}})
    return str(root)


def space(unit, names="zyx"):
    return [{"name": n, "type": "space", **({"unit": unit} if unit else {})} for n in names]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, version):
    v = volume.open(ome(tmp_path / "a.zarr", A, space("nanometer"), [8, 4, 4], version, translation=[1, 2, 3]))
    assert v.spacing == S and v.origin_nm == (1, 2, 3) and v.kind == "image" and v.shape == A.shape
    assert np.array_equal(v.read(v.box), A)


UNITS = [("micrometer", 1e3), ("nanometer", 1), ("angstrom", 0.1), ("meter", 1e9), ("millimeter", 1e6), ("µm", 1e3), ("um", 1e3), ("picometer", 1e-3)]


@pytest.mark.parametrize("unit,nm", UNITS)
def test_units(tmp_path, unit, nm):
    v = volume.open(ome(tmp_path / "a.zarr", A, space(unit), [8, 4, 4.24]))
    assert v.spacing.zyx == pytest.approx((8 * nm, 4 * nm, 4.24 * nm))


UNKNOWN = [
    (space(None), [1, 1, 1], "no unit"),
    (space("parsec"), [8, 4, 4], "parsec"),
    (space("nanometer"), None, "no scale"),
    (space("nanometer"), [8, 0, 4], "positive"),
]


@pytest.mark.parametrize("axes,scale,why", UNKNOWN)
def test_voxel_size_unknown(tmp_path, axes, scale, why):
    url = ome(tmp_path / "a.zarr", A, axes, scale)
    with pytest.raises(VolumeError, match="voxel size unknown") as e:
        volume.open(url)
    assert why in str(e.value) and "--voxel-size" in str(e.value) and url in str(e.value)
    assert volume.open(url, spacing=S).spacing == S


def test_scale_of_the_whole_multiscale_counts(tmp_path):
    url = ome(tmp_path / "a.zarr", A, space("nanometer"), [2, 1, 1], coordinateTransformations=[{"type": "scale", "scale": [4, 4, 4]}])
    assert volume.open(url).spacing == S


def test_leading_axes(tmp_path):
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *space("micrometer")]
    one = volume.open(ome(tmp_path / "one.zarr", A[None, None], axes, [1, 1, 0.008, 0.004, 0.004]))
    assert one.spacing.zyx == pytest.approx(S.zyx) and np.array_equal(one.read(Box((1, 2, 3), (9, 9, 30))), A[1:9, 2:9, 3:30])
    two = ome(tmp_path / "two.zarr", np.stack([A, A + 1])[None], axes, [1, 1, 0.008, 0.004, 0.004])
    with pytest.raises(VolumeError, match=r"2 channels.*#c=0"):
        volume.open(two)
    v = volume.open(two + "#c=1")
    assert np.array_equal(v.read(v.box), A + 1)
    with pytest.raises(VolumeError, match="no channel 7"):
        volume.open(two + "#c=7")
    with pytest.raises(VolumeError, match="not understood"):
        volume.open(two + "#d=7")
    times = ome(tmp_path / "t.zarr", np.stack([A, A])[:, None], axes, [1, 1, 0.008, 0.004, 0.004])
    with pytest.raises(VolumeError, match="axis 't'"):
        volume.open(times)


def test_other_axis_order(tmp_path):
    v = volume.open(ome(tmp_path / "a.zarr", np.ascontiguousarray(A.T), space("nanometer", "xyz"), [4, 4, 8], translation=[3, 2, 1]))
    assert v.shape == A.shape and v.spacing == S and v.origin_nm == (1, 2, 3)
    assert np.array_equal(v.read(Box((1, 2, 3), (9, 9, 30))), A[1:9, 2:9, 3:30]) and v.read(v.box).flags.c_contiguous


def test_two_dimensions_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="without z"):
        volume.open(ome(tmp_path / "a.zarr", A[0], space("nanometer", "yx"), [4, 4]))


def test_label_group_inside_an_image(tmp_path):
    image = ome(tmp_path / "a.zarr", A, space("nanometer"), [8, 4, 4])
    zarr.open_group(image + "/labels", mode="w", zarr_format=2).attrs["labels"] = ["cells"]
    inside = ome(tmp_path / "a.zarr" / "labels" / "cells", A.astype(np.int64), space("nanometer"), [8, 4, 4])
    zarr.open_group(inside, mode="a").attrs["image-label"] = {"version": "0.4"}
    v = volume.open(image + "/labels/cells")
    assert v.kind == "labels" and v.dtype == "uint64" and np.array_equal(v.read(v.box), A)
    with pytest.raises(VolumeError, match=r"labels/cells"):
        volume.open(image + "/labels")


def test_negative_labels_are_refused(tmp_path):
    url = ome(tmp_path / "a.zarr", A.astype(np.int32) - 5, space("nanometer"), [8, 4, 4])
    v = volume.open(url, kind="labels")
    with pytest.raises(VolumeError, match="negative labels"):
        v.read(v.box)
    with pytest.raises(VolumeError, match="whole numbers"):
        volume.open(ome(tmp_path / "f.zarr", A.astype(np.float32), space("nanometer"), [8, 4, 4]), kind="labels")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", ">f4", "<i8", "|u1"])
@pytest.mark.parametrize("separator", [".", "/"])
def test_plain_zarr_v2(tmp_path, order, dtype, separator):
    a = A.astype(dtype)
    keys = {"name": "v2", "separator": separator}
    z = zarr.create_array(str(tmp_path / "a.zarr"), shape=a.shape, dtype=dtype, chunks=(5, 8, 8), zarr_format=2, order=order, chunk_key_encoding=keys)
    z[...] = a
    v = volume.open(str(tmp_path / "a.zarr"), spacing=S)
    got = v.read(Box((1, 2, 3), (9, 9, 30)))
    assert v.dtype == np.dtype(dtype).newbyteorder("=").name == got.dtype.name
    assert got.dtype.isnative and got.flags.c_contiguous and got.flags.owndata and np.array_equal(got, a[1:9, 2:9, 3:30])


@pytest.mark.parametrize("fill", [None, 0, 7])
def test_missing_chunks_and_fill_values(tmp_path, fill):
    root = tmp_path / "a.zarr"
    z = zarr.create_array(str(root), shape=A.shape, dtype="u2", chunks=(5, 8, 8), zarr_format=2, fill_value=fill or 0)
    z[:5, :8, :8] = 3
    meta = json.loads((root / ".zarray").read_text())
    meta["fill_value"] = fill
    (root / ".zarray").write_text(json.dumps(meta))
    v = volume.open(str(root), spacing=S)
    got = v.read(v.box)
    assert (got[:5, :8, :8] == 3).all() and (got[5:] == (fill or 0)).all()


def test_plain_zarr_v3(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=A, chunks=(5, 8, 8), dimension_names=["z", "y", "x"])
    with pytest.raises(VolumeError, match=r"voxel size unknown.*--voxel-size"):
        volume.open(str(tmp_path / "a.zarr"))
    v = volume.open(str(tmp_path / "a.zarr"), spacing=S)
    assert np.array_equal(v.read(v.box), A)
    zarr.create_array(str(tmp_path / "c.zarr"), data=np.stack([A, A + 1]), chunks=(1, 5, 8, 8))
    with pytest.raises(VolumeError, match="2 channels"):
        volume.open(str(tmp_path / "c.zarr"), spacing=S)
    v = volume.open(str(tmp_path / "c.zarr") + "#c=1", spacing=S)
    assert np.array_equal(v.read(v.box), A + 1)


def test_boolean_array_is_a_mask(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=A > 500, chunks=(5, 8, 8), zarr_format=2)
    v = volume.open(str(tmp_path / "a.zarr"), spacing=S)
    assert v.kind == "mask" and np.array_equal(v.read(v.box), A > 500)


def test_levels_of_a_foreign_pyramid(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    sets = []
    for k in range(3):
        group.create_array(f"s{k}", data=A[:: 2**k, :: 2**k, :: 2**k], chunks=(8, 8, 8))
        sets.append({"path": f"s{k}", "coordinateTransformations": [{"type": "scale", "scale": [8.0 * 2**k, 4.0 * 2**k, 4.0 * 2**k]}]})
    group.attrs["multiscales"] = [{"version": "0.4", "axes": space("nanometer"), "datasets": sets}]
    v = volume.open(str(tmp_path / "a.zarr"), level=2)
    assert v.levels == 3 and v.spacing == Spacing(32, 16, 16) and np.array_equal(v.read(v.box), A[::4, ::4, ::4])
    assert volume.open(str(tmp_path / "a.zarr"), level=1, spacing=Spacing(10, 5, 5)).spacing == Spacing(20, 10, 10)
    with pytest.raises(VolumeError, match="levels are 0 to 2"):
        volume.open(str(tmp_path / "a.zarr"), level=3)
    with pytest.raises(VolumeError, match="not written by vemray"):
        volume.open(str(tmp_path / "a.zarr"), writable=True)


def test_what_is_no_volume(tmp_path):
    with pytest.raises(VolumeError, match="there is nothing at"):
        volume.open(str(tmp_path / "none.zarr"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(VolumeError, match="vemray import"):
        volume.open(str(tmp_path / "a.txt"))
    volume.create(str(tmp_path / "set" / "cell.zarr"), (5, 5, 5), "uint8", S)
    with pytest.raises(VolumeError, match=r"holds cell.zarr"):
        volume.open(str(tmp_path / "set"))
    broken = tmp_path / "broken.zarr"
    broken.mkdir()
    (broken / "zarr.json").write_text("{")
    with pytest.raises(VolumeError, match="not valid JSON"):
        volume.open(str(broken))
    group = ome(tmp_path / "gone.zarr", A, space("nanometer"), [8, 4, 4])
    access.remove(group + "/0")
    with pytest.raises(VolumeError, match="incomplete"):
        volume.open(group)


def test_other_axis_order_in_shards(tmp_path):
    root = tmp_path / "a.zarr"
    a = np.ascontiguousarray(np.pad(A, ((0, 4), (0, 4), (0, 1))).T)
    zarr.create_array(str(root), data=a, chunks=(8, 8, 8), shards=(16, 16, 16), compressors=zarr.codecs.ZstdCodec(), dimension_names=["x", "y", "z"])
    v = volume.open(str(root), spacing=S)
    assert v.shape == (16, 24, 32) and v.shard == (16, 16, 16)
    assert np.array_equal(v.read(Box((1, 2, 3), (9, 9, 30))), A[1:9, 2:9, 3:30])
