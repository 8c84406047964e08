"""Every format becomes the same volume; what cannot be used is refused by name; the source keeps every byte and timestamp."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from vemray.errors import VolumeError
from vemray.geometry import Box, Spacing
from vemray.importers import convert, import_volume
from vemray.store import access, volume

A = np.random.default_rng(0).integers(0, 250, (19, 40, 33)).astype(np.uint8)
S = Spacing(25, 4, 4)
NM = {"PhysicalSizeZ": 25, "PhysicalSizeY": 4, "PhysicalSizeX": 4, **{f"PhysicalSize{a}Unit": "nm" for a in "XYZ"}}
IMAGEJ = {"axes": "ZYX", "spacing": 0.025, "unit": "micron"}
SMALL = dict(block=(8, 16, 16), chunk=(8, 8, 8))


def state(root) -> dict:
    """Bytes and times of everything under `root`."""
    root = Path(root)
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*"))
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_mode, hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "") for p in files}


def stack(root, a=A, name="slice_{}.tif"):
    root.mkdir()
    for i, plane in enumerate(a):
        tifffile.imwrite(root / name.format(i), plane)  # slice_10 sorts before slice_2 as text
    return root


def planes(root, a=A, **how):
    root.mkdir()
    for i, plane in enumerate(a):
        tifffile.imwrite(root / f"z{i:03}.TIFF", plane, **how)


def as_zarr(path, a=A, **more):
    zarr.create_array(str(path), data=a, chunks=(7, 9, 10), **more)


def as_ome(path):
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.create_array("0", data=A, chunks=(7, 9, 10))
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"],
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.025, 0.004, 0.004]}]}],
        }
    ]


def as_ome05(path):
    v = volume.create(str(path), A.shape, "uint8", S, shard=(8, 16, 16), chunk=(8, 8, 8))
    for region in convert._shard_boxes(v.box, v.shard):
        v.write(region, A[region.slices])


FORMATS = {
    "stack": ("stack", stack),
    "stack big endian": ("stack", lambda p: planes(p, A.astype(">u2"), byteorder=">")),
    "stack compressed tiles": ("stack", lambda p: planes(p, tile=(16, 16), compression="zlib")),
    "pages": ("a.tif", lambda p: tifffile.imwrite(p, A)),
    "pages compressed": ("a.tif", lambda p: tifffile.imwrite(p, A, compression="zlib")),
    "pages big endian": ("a.tif", lambda p: tifffile.imwrite(p, A.astype(">u2"), byteorder=">")),
    "bigtiff": ("a.tiff", lambda p: tifffile.imwrite(p, A, bigtiff=True)),
    "imagej": ("a.tif", lambda p: tifffile.imwrite(p, A, imagej=True, resolution=(250, 250), metadata=IMAGEJ)),
    "ome": ("a.ome.tif", lambda p: tifffile.imwrite(p, A, ome=True, metadata={"axes": "ZYX", **NM})),
    "npy": ("a.npy", lambda p: np.save(p, A)),
    "npy fortran": ("a.npy", lambda p: np.save(p, np.asfortranarray(A))),
    "npy big endian": ("a.npy", lambda p: np.save(p, A.astype(">i4"))),
    "npz": ("a.npz", lambda p: np.savez(p, image=A)),
    "npz compressed": ("a.npz", lambda p: np.savez_compressed(p, image=A)),
    "npz fortran": ("a.npz", lambda p: np.savez_compressed(p, image=np.asfortranarray(A))),
    "zarr v2": ("a.zarr", lambda p: as_zarr(p, zarr_format=2)),
    "zarr v3": ("a.zarr", lambda p: as_zarr(p, zarr_format=3)),
    "ome-zarr 0.4": ("a.zarr", as_ome),
    "ome-zarr 0.5": ("a.zarr", as_ome05),
}
KNOWS_SPACING = {"imagej", "ome", "ome-zarr 0.4", "ome-zarr 0.5"}


@pytest.mark.parametrize("form", FORMATS)
def test_formats(tmp_path, form):
    name, write = FORMATS[form]
    src, dst = tmp_path / name, tmp_path / "out.zarr"
    write(src)
    before = state(src)
    if form in KNOWS_SPACING:
        v = import_volume(str(src), str(dst), **SMALL)
    else:
        with pytest.raises(VolumeError, match=r"voxel size unknown.*--voxel-size"):
            import_volume(str(src), str(dst), **SMALL)
        assert not dst.exists()
        v = import_volume(str(src), str(dst), S, **SMALL)
    assert v.shape == A.shape and v.spacing.zyx == pytest.approx(S.zyx) and v.kind == "image" and not v.writable
    got = v.read(v.box)
    assert got.dtype.isnative and np.array_equal(got, A)
    coarse = volume.open(str(dst), level=1)
    assert coarse.read(coarse.box).any()
    assert state(src) == before
    assert v.attributes["imported"]["source"] == str(src)
    with pytest.raises(VolumeError, match="exists already"):
        import_volume(str(src), str(dst), S, **SMALL)
    assert import_volume(str(src), str(dst), Spacing(1, 2, 3), overwrite=True, **SMALL).spacing == Spacing(1, 2, 3)


@pytest.mark.parametrize("form", ["stack", "pages compressed", "npz compressed", "npy", "zarr v2"])
def test_memory_bound_splits_planes(tmp_path, monkeypatch, form):
    name, write = FORMATS[form]
    write(tmp_path / name)
    monkeypatch.setattr(convert, "MEMORY", 3000)
    boxes = list(convert._regions(A.shape, (8, 16, 16), 1))
    assert len(boxes) > 6 and max(b.size for b in boxes) <= 3000 and sum(b.size for b in boxes) == A.size
    calls = []
    v = import_volume(str(tmp_path / name), str(tmp_path / "out.zarr"), S, progress=lambda done, total: calls.append((done, total)), **SMALL)
    assert np.array_equal(v.read(v.box), A)
    assert calls[-1][0] == calls[-1][1] == len(calls) and [c[0] for c in calls] == sorted(c[0] for c in calls)


def test_bad_planes_are_named(tmp_path):
    root = stack(tmp_path / "s")
    tifffile.imwrite(root / "slice_7.tif", A[0][:-1])
    with pytest.raises(VolumeError, match=r"slice_7\.tif is 39 x 33 uint8, slice_0\.tif is 40 x 33 uint8"):
        import_volume(str(root), str(tmp_path / "o.zarr"), S)
    tifffile.imwrite(root / "slice_7.tif", A[0].astype(np.uint16))
    with pytest.raises(VolumeError, match=r"slice_7\.tif is 40 x 33 uint16"):
        import_volume(str(root), str(tmp_path / "o.zarr"), S)
    (root / "slice_7.tif").write_bytes(b"not a tiff")
    with pytest.raises(VolumeError, match=r"plane slice_7\.tif.*not a readable TIFF"):
        import_volume(str(root), str(tmp_path / "o.zarr"), S)
    tifffile.imwrite(root / "slice_7.tif", np.stack([A[0]] * 3, -1))
    with pytest.raises(VolumeError, match=r"slice_7\.tif.*grey planes"):
        import_volume(str(root), str(tmp_path / "o.zarr"), S)
    tifffile.imwrite(root / "slice_7.tif", A[:2])
    with pytest.raises(VolumeError, match=r"slice_7\.tif.*2 pages"):
        import_volume(str(root), str(tmp_path / "o.zarr"), S)
    assert not (tmp_path / "o.zarr").exists()


def test_truncated_plane_fails_and_leaves_nothing(tmp_path):
    root = stack(tmp_path / "s")
    data = (root / "slice_12.tif").read_bytes()
    (root / "slice_12.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(VolumeError, match=r"slice_12\.tif"):
        import_volume(str(root), str(tmp_path / "o.zarr"), S)
    assert not (tmp_path / "o.zarr").exists()


def test_missing_plane_is_warned_of(tmp_path):
    root = stack(tmp_path / "s")
    os.unlink(root / "slice_12.tif")
    with pytest.warns(UserWarning, match=r"between slice_11\.tif and slice_13\.tif"):
        v = import_volume(str(root), str(tmp_path / "o.zarr"), S)
    assert v.shape[0] == len(A) - 1 and np.array_equal(v.read(v.box), np.delete(A, 12, 0))


def test_hidden_files_are_no_planes(tmp_path):
    root = stack(tmp_path / "s")
    (root / "._slice_1.tif").write_bytes(b"x")
    (root / "Thumbs.db").write_bytes(b"x")
    assert import_volume(str(root), str(tmp_path / "o.zarr"), S).shape == A.shape


def test_npz_key_is_chosen(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, image=A, labels=A.astype(np.int32), note=np.array("x"))
    with pytest.raises(VolumeError, match=r"image 19x40x33 uint8, labels 19x40x33 int32"):
        import_volume(str(path), str(tmp_path / "o.zarr"), S)
    with pytest.raises(VolumeError, match="no array 'x'"):
        import_volume(f"{path}#x", str(tmp_path / "o.zarr"), S)
    v = import_volume(f"{path}#labels", str(tmp_path / "o.zarr"), S, kind="labels", **SMALL)
    assert v.kind == "labels" and v.dtype == "uint32" and np.array_equal(v.read(v.box), A)


def test_kinds(tmp_path):
    np.save(tmp_path / "p.npy", (A / 250).astype(np.float32))
    v = import_volume(str(tmp_path / "p.npy"), str(tmp_path / "p.zarr"), S, kind="probability")
    assert v.dtype == "uint8" and np.abs(v.read(v.box) / 255 - A / 250).max() <= 0.5 / 255 + 1e-6
    np.save(tmp_path / "q.npy", A.astype(np.float32))
    with pytest.raises(VolumeError, match=r"outside 0\.\.1"):
        import_volume(str(tmp_path / "q.npy"), str(tmp_path / "q.zarr"), S, kind="probability")
    np.save(tmp_path / "n.npy", A.astype(np.int16) - 9)
    with pytest.raises(VolumeError, match="negative labels"):
        import_volume(str(tmp_path / "n.npy"), str(tmp_path / "n.zarr"), S, kind="labels")
    np.save(tmp_path / "b.npy", A > 100)
    v = import_volume(str(tmp_path / "b.npy"), str(tmp_path / "b.zarr"), S)
    assert v.kind == "mask" and np.array_equal(v.read(v.box), A > 100)


@pytest.mark.parametrize("metadata", [{"axes": "ZYX", "unit": "pixel", "spacing": 1}, {"axes": "ZYX", "unit": "nm"}, {"axes": "ZYX", "spacing": 25}])
def test_untrustworthy_imagej_voxel_size(tmp_path, metadata):
    tifffile.imwrite(tmp_path / "a.tif", A, imagej=True, resolution=(250, 250), metadata=metadata)
    with pytest.raises(VolumeError, match="voxel size unknown"):
        import_volume(str(tmp_path / "a.tif"), str(tmp_path / "o.zarr"))


@pytest.mark.parametrize("unit,nm", [("nm", 1), ("micron", 1000), ("\\u00B5m", 1000)])
def test_imagej_units(tmp_path, unit, nm):
    tifffile.imwrite(tmp_path / "a.tif", A, imagej=True, resolution=(0.25 * nm, 0.5 * nm), metadata={"axes": "ZYX", "unit": unit, "spacing": 25 / nm})
    v = import_volume(str(tmp_path / "a.tif"), str(tmp_path / "o.zarr"), **SMALL)
    assert v.spacing.zyx == pytest.approx((25, 2, 4))


def test_ome_voxel_size(tmp_path):
    def write(**sizes):
        tifffile.imwrite(tmp_path / "a.ome.tif", A, ome=True, metadata={"axes": "ZYX", **sizes})
        return import_volume(str(tmp_path / "a.ome.tif"), str(tmp_path / "o.zarr"), overwrite=True, **SMALL).spacing.zyx

    assert write(PhysicalSizeZ=0.025, PhysicalSizeY=0.004, PhysicalSizeX=0.005) == pytest.approx((25, 4, 5))  # the schema's default: micrometres
    for sizes in ({"PhysicalSizeY": 4, "PhysicalSizeX": 4}, dict.fromkeys(("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ"), 1)):
        with pytest.raises(VolumeError, match="voxel size unknown"):
            write(**sizes)


def test_channels_and_time(tmp_path):
    both = np.stack([A, A[::-1]], 1)
    tifffile.imwrite(tmp_path / "c.tif", both, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(VolumeError, match=r"2 channels.*#c=0"):
        import_volume(str(tmp_path / "c.tif"), str(tmp_path / "o.zarr"), S)
    v = import_volume(f"{tmp_path / 'c.tif'}#c=1", str(tmp_path / "o.zarr"), S, **SMALL)
    assert np.array_equal(v.read(v.box), A[::-1])
    tifffile.imwrite(tmp_path / "t.tif", A, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(VolumeError, match="time series"):
        import_volume(str(tmp_path / "t.tif"), str(tmp_path / "t.zarr"), S)


def test_truncated_files(tmp_path):
    for form in ("pages", "pages compressed", "npy", "npz", "npz compressed"):
        name, write = FORMATS[form]
        path = tmp_path / name
        write(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(VolumeError, match=name):
            import_volume(str(path), str(tmp_path / "o.zarr"), S, **SMALL)
        assert not (tmp_path / "o.zarr").exists(), form
        path.unlink()


def test_unknown_types_are_told_what_is_read(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"something else")
    for bad in (tmp_path / "a.xyz", tmp_path):
        with pytest.raises(VolumeError, match=r"single-plane TIFF.*npy.*npz.*multi-page TIFF"):
            import_volume(str(bad), str(tmp_path.parent / "o.zarr"), S)
    with pytest.raises(VolumeError, match="there is nothing at"):
        import_volume(str(tmp_path / "none"), str(tmp_path / "o.zarr"), S)
    np.save(tmp_path / "a.npy", A[0])
    with pytest.raises(VolumeError, match="three axes"):
        import_volume(str(tmp_path / "a.npy"), str(tmp_path / "o.zarr"), S)


def test_source_and_destination_must_differ(tmp_path):
    as_zarr(tmp_path / "a.zarr")
    before = state(tmp_path / "a.zarr")
    for dst in (tmp_path / "a.zarr", tmp_path / "a.zarr" / "b.zarr", tmp_path):
        with pytest.raises(VolumeError, match="overlap"):
            import_volume(str(tmp_path / "a.zarr"), str(dst), S, overwrite=True)
    assert state(tmp_path / "a.zarr") == before


@pytest.mark.s3
@pytest.mark.parametrize("form", ["stack", "pages compressed", "npy", "npz", "ome-zarr 0.4"])
def test_from_and_to_s3(tmp_path, s3_url, form):
    name, write = FORMATS[form]
    write(tmp_path / name)
    place = access.join(s3_url, tmp_path.name)
    files = [tmp_path / name] if (tmp_path / name).is_file() else [p for p in (tmp_path / name).rglob("*") if p.is_file()]
    for p in files:
        access.write_bytes(access.join(place, str(p.relative_to(tmp_path))), p.read_bytes())
    v = import_volume(access.join(place, name), access.join(place, "out.zarr"), S, **SMALL)
    assert np.array_equal(v.read(Box((1, 2, 3), A.shape)), A[1:, 2:, 3:])


def test_real_fixtures():
    """Small volumes written by other tools, where they are at hand (VEMRAY_TEST_DATA)."""
    data = os.environ.get("VEMRAY_TEST_DATA")
    if not data:
        pytest.skip("VEMRAY_TEST_DATA names no folder of test data")
    found = [p for p in Path(data, "importer_fixtures").glob("simple_zarr*") if p.is_dir()]
    assert found
    for root in found:
        before = state(root)
        arrays = [p.parent for p in root.rglob("zarr.json") if '"array"' in p.read_text()] + [p.parent for p in root.rglob(".zarray")]
        assert arrays
        for path in arrays:
            try:
                v = volume.open(str(path), spacing=S)
            except VolumeError as e:
                assert "channels" in str(e)
                v = volume.open(f"{path}#c=0", spacing=S)
            assert v.read(v.box).shape == v.shape
        assert state(root) == before


def test_overwrite_removes_nothing_but_volumes(tmp_path):
    np.save(tmp_path / "a.npy", A)
    thesis = tmp_path / "work"
    (thesis / "chapter").mkdir(parents=True)
    (thesis / "chapter" / "thesis.tex").write_text("years")
    mixed = tmp_path / "mixed.zarr"
    import_volume(str(tmp_path / "a.npy"), str(mixed), S, **SMALL)
    (mixed / "notes.txt").write_text("mine")
    (tmp_path / "file.zarr").write_text("a file")
    for target in (thesis, mixed, tmp_path / "file.zarr"):
        before = state(target)
        for do in (
            lambda t=target: import_volume(str(tmp_path / "a.npy"), str(t), S, overwrite=True, **SMALL),
            lambda t=target: volume.create(str(t), A.shape, "uint8", S, shard=(8, 16, 16), chunk=(8, 8, 8), overwrite=True),
        ):
            with pytest.raises(VolumeError, match="not overwritten|is a file"):
                do()
        assert state(target) == before
    (tmp_path / "empty").mkdir()
    assert import_volume(str(tmp_path / "a.npy"), str(tmp_path / "empty"), S, overwrite=True, **SMALL).shape == A.shape


def test_overwrite_takes_what_a_killed_run_began(tmp_path):
    v = volume.create(str(tmp_path / "v.zarr"), A.shape, "uint8", S, shard=(8, 16, 16), chunk=(8, 8, 8))
    (tmp_path / "v.zarr" / "zarr.json").unlink()  # it is written last
    v = volume.create(str(tmp_path / "v.zarr"), A.shape, "uint8", S, shard=(8, 16, 16), chunk=(8, 8, 8), overwrite=True)
    assert volume.open(v.url).shape == A.shape
    for other in ("zarr v2", "zarr v3", "ome-zarr 0.4"):
        name, write = FORMATS[other]
        write(tmp_path / other)
        volume.create(str(tmp_path / other), A.shape, "uint8", S, overwrite=True)


def test_a_failed_overwrite_leaves_the_volume_before(tmp_path):
    root, dst = stack(tmp_path / "s"), tmp_path / "o.zarr"
    import_volume(str(root), str(dst), S, **SMALL)
    before = state(dst)
    data = (root / "slice_12.tif").read_bytes()
    (root / "slice_12.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(VolumeError, match=r"slice_12\.tif"):
        import_volume(str(root), str(dst), S, overwrite=True, **SMALL)
    assert state(dst) == before and sorted(p.name for p in tmp_path.iterdir()) == ["o.zarr", "s"]
    (root / "slice_12.tif").write_bytes(data)
    v = import_volume(str(root), str(dst), Spacing(1, 2, 3), overwrite=True, **SMALL)
    assert v.spacing == Spacing(1, 2, 3) and v.name == "o" and np.array_equal(v.read(v.box), A)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.zarr", "s"]


@pytest.mark.s3
def test_overwrite_on_s3(tmp_path, s3_url):
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "n.npy", A.astype(np.int16) - 9)
    dst = access.join(s3_url, tmp_path.name, "over.zarr")
    import_volume(str(tmp_path / "a.npy"), dst, S, **SMALL)
    with pytest.raises(VolumeError, match="negative labels"):
        import_volume(str(tmp_path / "n.npy"), dst, S, kind="labels", overwrite=True, **SMALL)
    v = volume.open(dst)
    assert v.spacing == S and np.array_equal(v.read(v.box), A)
    v = import_volume(str(tmp_path / "a.npy"), dst, Spacing(1, 2, 3), overwrite=True, **SMALL)
    assert v.spacing == Spacing(1, 2, 3) and np.array_equal(v.read(v.box), A)
    assert access.list_names(access.join(s3_url, tmp_path.name)) == ["over.zarr"]
    access.write_bytes(access.join(s3_url, tmp_path.name, "work", "thesis.tex"), b"years")
    with pytest.raises(VolumeError, match="not overwritten"):
        import_volume(str(tmp_path / "a.npy"), access.join(s3_url, tmp_path.name, "work"), S, overwrite=True, **SMALL)


def test_a_picture_that_is_no_plane_is_refused(tmp_path):
    root = stack(tmp_path / "s")
    tifffile.imwrite(root / "average.tif", A[0])
    with pytest.raises(VolumeError, match=r"average\.tif, which does not belong to the series of 19 planes named like slice_0\.tif"):
        import_volume(str(root), str(tmp_path / "o.zarr"), S)
    (root / "average.tif").unlink()
    for i, name in enumerate(("z=-0.5um_1.tif", "z=0um_2.tif", "z=0.5um_3.tif")):
        (tmp_path / "signed").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "signed" / name.replace("0um", "0.0um"), A[i])
    assert import_volume(str(tmp_path / "signed"), str(tmp_path / "signed.zarr"), S, **SMALL).shape[0] == 3
    (tmp_path / "words").mkdir()
    for name in ("bottom.tif", "top.tif"):
        tifffile.imwrite(tmp_path / "words" / name, A[0])
    with pytest.warns(UserWarning, match=r"no numbered series.*bottom\.tif first, top\.tif last"):
        import_volume(str(tmp_path / "words"), str(tmp_path / "words.zarr"), S, **SMALL)


def test_labels_kept_as_floats(tmp_path):
    np.save(tmp_path / "f.npy", A.astype(np.float32))
    v = import_volume(str(tmp_path / "f.npy"), str(tmp_path / "f.zarr"), S, kind="labels", **SMALL)
    assert v.dtype == "uint32" and np.array_equal(v.read(v.box), A)
    np.save(tmp_path / "b.npy", A > 100)
    assert import_volume(str(tmp_path / "b.npy"), str(tmp_path / "b.zarr"), S, kind="labels", **SMALL).dtype == "uint8"
    for bad in (A + np.float32(0.5), np.where(A > 9, A, np.float32(np.nan)), A - np.float32(9), A + np.float32(2**25)):
        np.save(tmp_path / "bad.npy", bad.astype(np.float32))
        with pytest.raises(VolumeError, match=r"bad\.npy holds"):
            import_volume(str(tmp_path / "bad.npy"), str(tmp_path / "bad.zarr"), S, kind="labels", **SMALL)
        assert not (tmp_path / "bad.zarr").exists()


def test_what_cannot_be_meant(tmp_path):
    np.save(tmp_path / "a.npy", A)
    with pytest.raises(VolumeError, match="'#foo' means nothing for a .npy"):
        import_volume(f"{tmp_path / 'a.npy'}#foo", str(tmp_path / "o.zarr"), S)
    with pytest.raises(VolumeError, match="Did you mean 'labels'"):
        import_volume(str(tmp_path / "a.npy"), str(tmp_path / "o.zarr"), S, kind="label")
    with pytest.raises(VolumeError, match="100 voxels is not whole chunks of 64"):
        import_volume(str(tmp_path / "a.npy"), str(tmp_path / "o.zarr"), S, block=(100,) * 3)


def test_a_bad_tiff_logs_nothing(tmp_path):
    import subprocess
    import sys

    (tmp_path / "bad.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff" + bytes(40))
    code = "import sys; from vemray.importers import import_volume; from vemray.geometry import Spacing; import_volume(sys.argv[1], sys.argv[2], Spacing(8, 8, 8))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "bad.tif"), str(tmp_path / "o.zarr")], capture_output=True, text=True)
    assert done.stderr.startswith("Traceback") and "cannot be read as a TIFF" in done.stderr, done.stderr
