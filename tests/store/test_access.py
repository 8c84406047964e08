"""Objects in a folder and on S3; errors that say what, where and what to do, and never a secret."""

from __future__ import annotations

import errno
import os
import threading
import traceback

import numpy as np
import pytest

from vemray.errors import StorageError, VolumeError
from vemray.geometry import Box, Spacing
from vemray.store import access, table, volume

SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAWRONGWRONGWRONG", "AWS_SECRET_ACCESS_KEY": "wrongwrongsecretsecret"}


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3), "memory"])
def place(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "x")
    if request.param == "memory":
        return f"memory://{tmp_path.name}/x"
    return access.join(request.getfixturevalue("s3_url"), tmp_path.name)


def test_objects(place):
    url = access.join(place, "a", "b.bin")
    assert not access.exists(url) and not access.exists(place) and access.list_names(place) == []
    with pytest.raises(FileNotFoundError, match=r"b\.bin"):
        access.read_bytes(url)
    with pytest.raises(FileNotFoundError):
        access.object_facts(url)
    access.write_bytes(url, b"0123456789")
    access.write_bytes(url, b"abcdefghij")
    assert access.read_bytes(url) == b"abcdefghij"
    assert access.read_bytes(url, 2, 5) == b"cde" and access.read_bytes(url, -3) == b"hij" and access.read_bytes(url, 4) == b"efghij"
    assert [bytes(b) for b in access.read_ranges(url, [(0, 2), (8, 10)])] == [b"ab", b"ij"]
    with access.open_read(url) as f:
        f.seek(3)
        assert f.read(2) == b"de"
    assert access.object_facts(url)["size"] == 10
    assert access.exists(url) and access.exists(place) and access.is_folder(place) and not access.is_folder(url)
    access.write_json_bytes(access.join(place, "a2"), {"x": 1})
    assert access.list_names(place) == ["a", "a2"] and access.list_names(access.join(place, "a")) == ["b.bin"]
    access.remove(access.join(place, "a"))
    assert access.list_names(place) == ["a2"]
    access.remove_object(access.join(place, "a2"))
    access.remove_object(access.join(place, "a2"))
    access.remove(place)
    assert not access.exists(access.join(place, "a2"))


def test_create_only_has_one_winner(place):
    url = access.join(place, "lease")
    assert access.create_only(url, b"first") and not access.create_only(url, b"second")
    assert access.read_bytes(url) == b"first"
    if place.startswith("memory"):
        return
    wins = []
    url = access.join(place, "race")
    threads = [threading.Thread(target=lambda i=i: wins.append(i) if access.create_only(url, b"%d" % i) else None) for i in range(12)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(wins) == 1 and access.read_bytes(url) == b"%d" % wins[0]
    assert access.list_names(place) == ["lease", "race"]


def test_tables(place):
    import pyarrow as pa

    t = pa.table({"label": pa.array([1, 2], pa.uint64()), "volume_nm3": [1.5, 2.5]})
    table.write_table(access.join(place, "t.parquet"), t)
    assert table.read_table(access.join(place, "t.parquet")).equals(t)
    table.write_json(access.join(place, "r.json"), {"a": [1, 2]})
    assert table.read_json(access.join(place, "r.json")) == {"a": [1, 2]}


def test_join_and_names():
    assert access.join("/", "a") == "/a" and access.join("a/", "/b/", "", "c") == "a/b/c"
    assert access.join("s3://b", "c") == "s3://b/c" and access.join("s3://b/p/", "c") == "s3://b/p/c"
    assert access.scheme("C3://x") == "c3" and access.scheme("/a/b") == "file" and access.scheme("file:///a") == "file"
    assert access.local_path("file:///a%20b") == "/a b"
    assert access.shown("https://me:pw@host/x?X-Amz-Signature=abc") == "https://host/x"
    with pytest.raises(VolumeError, match="must be local"):
        access.local_path("file://other/a")
    with pytest.raises(VolumeError, match="must not carry credentials") as e:
        access.exists("s3://key:secret@bucket/x")
    assert "secret@" not in str(e.value)
    with pytest.raises(VolumeError, match="no bucket"):
        access.exists("s3:///x")
    with pytest.raises(VolumeError, match="whole bucket"):
        access.remove("s3://bucket")
    with pytest.raises((VolumeError, StorageError), match=r"cannot be used|package"):
        access.exists("nosuchscheme://x/y")


def _clean(e, *also):
    """The whole traceback as a log would show it holds no secret."""
    text = "".join(traceback.format_exception(e.value))
    for secret in (*SECRETS.values(), *also):
        assert secret not in text
    return str(e.value)


@pytest.mark.s3
@pytest.mark.parametrize("which", [("AWS_ACCESS_KEY_ID",), ("AWS_SECRET_ACCESS_KEY",), tuple(SECRETS)])
def test_wrong_credentials(s3_url, monkeypatch, which):
    right = os.environ.get("AWS_SECRET_ACCESS_KEY", "-")
    for k in which:
        monkeypatch.setenv(k, SECRETS[k])
    for do in (
        lambda: access.probe(s3_url, write=True),
        lambda: access.probe(s3_url),
        lambda: access.write_bytes(s3_url + "/x", b"1"),
        lambda: volume.open(s3_url + "/x.zarr"),
        lambda: volume.create(s3_url + "/x.zarr", (5, 5, 5), "uint8", Spacing(1, 1, 1)),
    ):
        with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID") as e:
            do()
        assert s3_url in _clean(e, right)


@pytest.mark.s3
def test_missing_bucket(s3_url):
    url = "s3://vemray-there-is-no-such-bucket/x"
    for do in (
        lambda: access.probe(url, write=True),
        lambda: access.probe(url),
        lambda: access.write_bytes(url, b"1"),
        lambda: access.read_bytes(url),
        lambda: access.list_names(url),
        lambda: volume.open(url),
        lambda: volume.create(url, (5, 5, 5), "uint8", Spacing(1, 1, 1)),
    ):
        with pytest.raises(StorageError, match="there is no bucket 'vemray-there-is-no-such-bucket'") as e:
            do()
        _clean(e)


@pytest.mark.s3
def test_missing_bucket_is_not_an_empty_volume(s3_url):
    """A shard that is not there is fill value; a bucket that is not there is an error."""
    from dataclasses import replace

    v = volume.create(s3_url + "/gone.zarr", (20, 20, 20), "uint8", Spacing(1, 1, 1))
    stored = v._stored
    elsewhere = replace(stored, url=stored.url.replace("s3://vemray-test", "s3://vemray-nothing"))
    from vemray.store import shards

    assert not shards.read(stored, v.box).any()
    with pytest.raises(StorageError, match="there is no bucket"):
        shards.read(elsewhere, Box((0, 0, 0), (20, 20, 20)))


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_unreachable_endpoint_fails_soon(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for k, v in SECRETS.items():
        monkeypatch.setenv(k, v)
    for do in (lambda: access.probe("s3://bucket/x", write=True), lambda: volume.open("s3://bucket/x"), lambda: access.probe("s3://bucket/x")):
        with pytest.raises(StorageError, match="cannot be reached") as e:
            do()
        assert endpoint in _clean(e) and "AWS_ENDPOINT_URL" in str(e.value)


def test_bad_profile(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "there-is-no-such-profile")
    with pytest.raises(StorageError, match="AWS_PROFILE"):
        access.exists("s3://bucket/x")


@pytest.mark.s3
def test_profile_file_gives_credentials(s3_url, tmp_path, monkeypatch):
    lines = {"aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
    (tmp_path / "credentials").write_text("[lab]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items()))
    (tmp_path / "config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n")
    for k in [k for k in os.environ if k.startswith("AWS_")]:
        monkeypatch.delenv(k)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    access.write_bytes(s3_url + "/profile", b"1")
    assert access.read_bytes(s3_url + "/profile") == b"1"
    assert access.filesystem(s3_url)[0].exists(s3_url + "/profile")


DISK = [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")]


@pytest.mark.parametrize("number,words", DISK)
def test_disk_errors(tmp_path, monkeypatch, number, words):
    v = volume.create(str(tmp_path / "v.zarr"), (20, 20, 20), "uint8", Spacing(1, 1, 1))

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    for do in (lambda: v.write(v.box, np.ones(v.shape, np.uint8)), lambda: access.write_bytes(str(tmp_path / "a"), b"1")):
        with pytest.raises(StorageError, match=words) as e:
            do()
        assert str(tmp_path) in str(e.value)
    assert not [n for n in os.listdir(tmp_path) if n.endswith(".partial")]


def test_full_disk(tmp_path):
    """A real full disk, where one can be mounted."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        v = volume.create(str(disk / "v.zarr"), (200, 200, 200), "uint8", Spacing(1, 1, 1))
        with pytest.raises(StorageError, match="no space left") as e:
            v.write(v.box, np.random.default_rng(0).integers(0, 255, v.shape).astype(np.uint8))
        assert str(disk) in str(e.value)
        assert not volume.open(v.url).read(v.box).any()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_probe_of_folders(tmp_path):
    access.probe(str(tmp_path / "new" / "deep"), write=True)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("x")
    access.probe(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="is a file, not a folder"):
        access.probe(str(tmp_path / "file" / "out"), write=True)
    with pytest.raises(VolumeError, match="there is nothing at"):
        access.probe(str(tmp_path / "none"))


@pytest.mark.s3
def test_probe_of_s3_leaves_nothing(s3_url):
    access.probe(s3_url + "/probed", write=True)
    access.probe(s3_url)
    assert access.list_names(s3_url + "/probed") == []


@pytest.mark.s3
@pytest.mark.slow
def test_server_killed_in_mid_write(s3_url, s3_server):
    if not s3_server.owned:
        pytest.skip("the server is not ours to kill")
    rng = np.random.default_rng(0)
    a = rng.integers(0, 255, (128, 128, 256)).astype(np.uint8)
    v = volume.create(s3_url + "/killed.zarr", a.shape, "uint8", Spacing(1, 1, 1), shard=(64, 64, 64), chunk=(32, 32, 32))
    from vemray.geometry import Grid

    grid = Grid(a.shape, (64, 64, 64))
    back = threading.Timer(8, s3_server.start)
    for i in range(len(grid)):
        if i == 3:
            s3_server.kill()
            back.start()
        v.write(grid.write_box(i), a[grid.write_box(i).slices])
    back.join()
    assert np.array_equal(volume.open(v.url).read(v.box), a)
