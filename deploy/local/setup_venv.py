"""Make the virtual environment that the Makefile uses: vemray, editable, with its locked dependencies.

usage: python3 deploy/local/setup_venv.py VENV [TORCH_INDEX]

torch comes from TORCH_INDEX (the CPU wheels, a tenth of the CUDA ones) when it can be reached, else from wherever pip looks."""

import subprocess
import sys
import venv
from pathlib import Path

MINIMUM = (3, 11)


def main() -> None:
    if sys.version_info < MINIMUM:
        sys.exit(f"vemray needs Python {'.'.join(map(str, MINIMUM))} or newer; this is {sys.version.split()[0]}. Run: make PYTHON=python3.12 ...")
    where = Path(sys.argv[1])
    index = sys.argv[2] if len(sys.argv) > 2 else ""
    root = Path(__file__).resolve().parents[2]
    venv.create(where, with_pip=True, clear=not (where / "bin" / "python").exists())
    pip = [str(where / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(root / "constraints.txt")]
    torch = next(line.strip() for line in (root / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    if not (
        index and subprocess.run([*pip, torch, "--index-url", index, "--retries", "0", "--timeout", "10"], stderr=subprocess.DEVNULL).returncode == 0
    ):
        subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "-e", f"{root}[torch,train,pictures,test,bench]"], check=True)
    (where / "ready").touch()


if __name__ == "__main__":
    main()
