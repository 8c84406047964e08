"""The same runs on a real S3 server: same values, and what happens when it is killed, empty, or refuses."""

import os
import subprocess
import sys
import time
from pathlib import Path

import cc3d
import numpy as np
import pytest
from conftest import store
from test_engine import LABEL, QUIET, SMALL, slow_recipe

import vemray
from vemray.errors import StorageError
from vemray.run.status import read_status
from vemray.store import access

pytestmark = pytest.mark.s3
HERE = Path(__file__).parent


def test_same_values_from_and_to_s3(mask, s3_url, tmp_path):
    volume, out = access.join(s3_url, "mask.zarr"), access.join(s3_url, "out")
    store(volume, mask, "mask")
    r = vemray.run(LABEL, volume, out, runner="serial", options=SMALL, **QUIET)
    np.testing.assert_array_equal(r.labels["objects"].values, cc3d.connected_components(mask, connectivity=26))
    assert read_status(out)["state"] == "done"
    again = vemray.run(LABEL, volume, out, runner="serial", options=SMALL, **QUIET)
    assert sum(s["blocks_run"] for s in again.run["stages"]) == 0


def test_kill_nine_of_the_server_is_carried_through(mask, mask_url, s3_url, s3_server, tmp_path):
    if not s3_server.owned:
        pytest.skip("the S3 server was given by AWS_ENDPOINT_URL: not ours to kill")
    out, f = access.join(s3_url, "killed"), slow_recipe(tmp_path)
    env = {**os.environ, "VEMRAY_PLUGINS": "slow_ops", "PYTHONPATH": str(HERE)}
    p = subprocess.Popen(
        [sys.executable, "-m", "vemray.cli", "run", str(f), "--volume", mask_url, "--out", out, "--runner", "ray", "--workers", "2", "--block", "32", "--chunk", "32", "--no-report"],
        env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.time() + 90
    while time.time() < deadline and p.poll() is None:
        stage = [n for n in access.list_names(access.join(out, "ledger")) if n.startswith("copy-")]
        if stage and any(
            len(access.list_names(access.join(out, "ledger", stage[0], n))) > 1
            for n in access.list_names(access.join(out, "ledger", stage[0]))
            if n.startswith("blocks")
        ):
            break
        time.sleep(0.1)
    assert p.poll() is None, p.stderr.read().decode()
    s3_server.kill()
    time.sleep(10)
    s3_server.start()
    _, err = p.communicate(timeout=240)
    assert p.returncode == 0, err.decode()
    np.testing.assert_array_equal(vemray.Results(out).labels["objects"].values, cc3d.connected_components(mask, connectivity=26))


def test_missing_bucket_and_wrong_credentials_are_said_before_work(mask_url, s3_url, monkeypatch):
    with pytest.raises(StorageError, match="no bucket 'vemray-there-is-none'"):
        vemray.run(LABEL, mask_url, "s3://vemray-there-is-none/out", runner="serial", options=SMALL, **QUIET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StorageError) as e:
        vemray.run(LABEL, mask_url, access.join(s3_url, "out"), runner="serial", options=SMALL, **QUIET)
    assert "credentials" in str(e.value) and "not-the-secret" not in str(e.value)
