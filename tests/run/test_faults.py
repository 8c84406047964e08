"""The fault matrix, as a user meets it: each fault is one clear line on the command line that says what, where and what to do, an exit code
that means it, nothing lost and the input untouched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cc3d
import numpy as np
import pytest
import yaml
from conftest import SHAPE, store

import vemray
from vemray.run.status import read_status

RECIPE = {
    "vemray": 1,
    "name": "faults",
    "inputs": {"em": {}},
    "steps": {
        "mask": {"op": "threshold", "image": "em", "value": 128},
        "objects": {"op": "connected_components", "mask": "mask", "connectivity": 26},
        "table": {"op": "measure", "labels": "objects", "image": "em"},
    },
}


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, SHAPE).astype(np.uint8)


@pytest.fixture
def em_url(tmp_path, grey):
    store(tmp_path / "em.zarr", grey, "image")
    return str(tmp_path / "em.zarr")


@pytest.fixture
def recipe_file(tmp_path):
    def write(**steps) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, "steps": {**RECIPE["steps"], **steps}}))
        return str(path)

    return write


@pytest.fixture
def vemray_cli(monkeypatch, capsys):
    """vemray_cli(*arguments) -> (exit code, stdout, stderr), in this process."""

    def call(*args) -> tuple[int, str, str]:
        from vemray import cli

        monkeypatch.setattr(sys, "argv", ["vemray", *map(str, args)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        return (code, *capsys.readouterr())

    return call


def run_arguments(recipe, volume, out, *more):
    return ["run", recipe, "--volume", volume, "--out", out, "--runner", "serial", "--block", "32", "--chunk", "32", "--no-report", *more]


def contents(folder) -> dict:
    return {str(p): (p.read_bytes() if p.is_file() else None, p.stat().st_mtime_ns) for p in Path(folder).rglob("*")}


def one_error(err: str) -> str:
    """The last line, which must be the only message, and no traceback."""
    assert "Traceback" not in err, err
    lines = [line for line in err.strip().splitlines() if line.startswith("vemray: ")]
    assert len(lines) == 1, err
    return lines[0]


def test_a_shard_that_was_cut_short(vemray_cli, recipe_file, em_url, tmp_path, grey):
    """Truncated input in mid-run: the block and the file are named; mended, the run resumes to the right values."""
    shard = sorted(p for p in Path(em_url).rglob("0/c/*/*/*") if p.is_file())[-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    before = contents(em_url)
    code, _, err = vemray_cli(*run_arguments(recipe_file(), em_url, tmp_path / "out"))
    said = one_error(err)
    assert code == 6 and "truncated or corrupt" in said and em_url in said and "block" in said and "Copy or compute it again" in said
    assert contents(em_url) == before and read_status(str(tmp_path / "out"))["state"] == "failed"
    shard.write_bytes(whole)
    assert vemray_cli(*run_arguments(recipe_file(), em_url, tmp_path / "out"))[0] == 0
    np.testing.assert_array_equal(vemray.Results(tmp_path / "out").labels["objects"].values, cc3d.connected_components(grey >= 128, connectivity=26))


def test_no_voxel_size(vemray_cli, recipe_file, tmp_path, grey):
    np.save(tmp_path / "plain.npy", grey)
    code, _, err = vemray_cli("import", tmp_path / "plain.npy", tmp_path / "plain.zarr")
    assert code == 2 and "voxel size" in one_error(err) and "--voxel-size" in err
    assert not (tmp_path / "plain.zarr").exists()
    import zarr

    zarr.save_array(str(tmp_path / "bare.zarr"), grey)
    code, _, err = vemray_cli(*run_arguments(recipe_file(), tmp_path / "bare.zarr", tmp_path / "out"))
    assert code == 2 and "voxel size unknown" in one_error(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "args, says",
    [
        (["--set", "steps.objects.conectivity=6"], "Did you mean 'connectivity'"),
        (["--set", "steps.object.connectivity=6"], "Did you mean 'objects'"),
        (["--block", "48"], "multiple of the chunk"),
        (["--memory", "0.00001"], "MB"),
        (["--runner", "dask"], "choose 'ray' or 'serial'"),
    ],
)
def test_mistakes_before_anything_runs(vemray_cli, recipe_file, em_url, tmp_path, args, says):
    code, _, err = vemray_cli(*run_arguments(recipe_file(), em_url, tmp_path / "out", *args))
    assert code in (2, 3) and says in one_error(err)
    assert not (tmp_path / "out" / "volumes").exists()


def test_a_model_of_other_channels_or_voxels(vemray_cli, recipe_file, em_url, tmp_path):
    from networks_for_tests import small_model

    def probability(name):
        return recipe_file(probability={"op": "infer", "image": "em", "model": str(tmp_path / name)})

    small_model(tmp_path / "rgb.vemray", channels=3)
    code, _, err = vemray_cli(*run_arguments(probability("rgb.vemray"), em_url, tmp_path / "out"))
    assert code == 2 and "takes 3 channels, as colour images have; the volume is grey and has one" in one_error(err) and "rgb.vemray" in err
    small_model(tmp_path / "coarse.vemray", voxel_nm=(32.0, 32.0, 32.0))
    code, _, err = vemray_cli(*run_arguments(probability("coarse.vemray"), em_url, tmp_path / "out"))
    assert code == 2 and "trained on voxels of 32 x 32 x 32 nm" in one_error(err)
    (tmp_path / "cut.vemray").write_bytes((tmp_path / "rgb.vemray").read_bytes()[:300])
    code, _, err = vemray_cli(*run_arguments(probability("cut.vemray"), em_url, tmp_path / "out"))
    assert code == 2 and "may be truncated" in one_error(err)
    assert not (tmp_path / "out" / "volumes").exists()


def test_a_full_disk_in_mid_run(vemray_cli, recipe_file, em_url, tmp_path, grey):
    """A real one, where one can be mounted. What was finished is kept: with room made, the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        (disk / "ballast").write_bytes(bytes(5_400_000))
        before = contents(em_url)
        code, _, err = vemray_cli(*run_arguments(recipe_file(), em_url, disk / "out"))
        assert code == 4 and "no space left" in one_error(err) and str(disk) in err and "finished blocks are kept" in err
        assert contents(em_url) == before
        (disk / "ballast").unlink()
        assert vemray_cli(*run_arguments(recipe_file(), em_url, disk / "out"))[0] == 0
        np.testing.assert_array_equal(vemray.Results(disk / "out").labels["objects"].values, cc3d.connected_components(grey >= 128, connectivity=26))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(vemray_cli, recipe_file, em_url, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, _, err = vemray_cli(*run_arguments(recipe_file(), em_url, tmp_path / "file" / "out"))
    assert code == 4 and "is a file, not a folder" in one_error(err)


def test_outputs_that_vanished_are_made_again(vemray_cli, recipe_file, em_url, tmp_path, grey):
    arguments = run_arguments(recipe_file(), em_url, tmp_path / "out")
    assert vemray_cli(*arguments)[0] == 0
    shutil.rmtree(tmp_path / "out" / "volumes")
    assert vemray_cli(*arguments)[0] == 0
    np.testing.assert_array_equal(vemray.Results(tmp_path / "out").labels["objects"].values, cc3d.connected_components(grey >= 128, connectivity=26))


def test_status_of_what_is_no_run(vemray_cli, tmp_path):
    code, _, err = vemray_cli("status", tmp_path)
    assert code == 2 and "not the output of a run" in one_error(err)
    assert os.listdir(tmp_path) == []
