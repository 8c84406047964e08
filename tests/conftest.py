"""The S3 server the tests run on: the one AWS_ENDPOINT_URL names, or one started here for the session; without one they are skipped."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "deploy" / "local" / "s3-server.sh"


class S3Server:
    """`owned`: started by these tests, so that they may kill and start it."""

    def __init__(self, folder: Path | None, port: int = 0):
        self.folder = folder
        self.owned = folder is not None
        self.environment = {"VEMRAY_S3_DIR": str(folder), "VEMRAY_S3_PORT": str(port), "VEMRAY_S3_BYTES": str(16 << 30)} if folder else {}

    def script(self, command: str, **extra: str) -> subprocess.CompletedProcess:
        base = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        environment = {**base, "VEMRAY_S3_INSTALL": os.environ.get("VEMRAY_S3_INSTALL", "0"), **self.environment, **extra}
        return subprocess.run([str(SCRIPT), command], env=environment, capture_output=True, text=True, timeout=300)

    def kill(self) -> None:
        """kill -9 of every process of the server."""
        self.script("stop", SIG="KILL")

    def start(self) -> None:
        """Start it again with what it held, and wait until it answers."""
        done = self.script("start")
        assert done.returncode == 0, done.stderr


def _free_port() -> int:
    """A port that is free together with the two after it, below those the system gives to outgoing connections.

    Out of that range, because a client that tries a killed server's port again and again can be given the same port as its own, is
    then connected to itself, and the server cannot come back."""
    for _ in range(100):
        port = random.randrange(20000, 32000)
        try:
            for p in (port, port + 1, port + 2):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", p))
            return port
        except OSError:
            continue
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def s3_server():
    """A running S3 server; its endpoint and credentials are in the environment."""
    if os.environ.get("AWS_ENDPOINT_URL"):
        yield S3Server(None)
        return
    folder = Path(tempfile.mkdtemp(prefix="vs3-"))  # short: a socket's path is limited
    server = S3Server(folder, _free_port())
    done = server.script("init")
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no S3 server: {(done.stderr.strip().splitlines() or ['the set-up failed'])[-1]}")
    before = dict(os.environ)
    os.environ.update(word.split("=", 1) for word in done.stdout.split() if "=" in word)
    try:
        yield server
    finally:
        server.script("stop")
        for key in [k for k in os.environ if k.startswith("AWS_")]:
            if key in before:
                os.environ[key] = before[key]
            else:
                del os.environ[key]
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_url(s3_server):
    """s3://bucket/prefix of a fresh place on the server, removed at the end."""
    from vemray.store import access

    bucket = f"vemray-test-{uuid.uuid4().hex[:8]}"
    fs, _ = access.filesystem(f"s3://{bucket}")
    fs.mkdir(bucket)
    yield f"s3://{bucket}/t"
    if not s3_server.owned:  # our own goes as a whole
        access.remove(f"s3://{bucket}/t")
        fs, _ = access.filesystem(f"s3://{bucket}")
        fs.rmdir(bucket)
