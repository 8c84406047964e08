"""What the commands share: the application, its options, how their texts are read."""

from __future__ import annotations

import math
import sys
from typing import Annotated

import typer

from vemray.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Volume electron microscopy at scale: from FIB-SEM and SBF-SEM volumes to cell profiles.",
)
Volumes = Annotated[
    list[str],
    typer.Option(
        "--volume", "--input", help="URL of the input volume; NAME=URL for a recipe with several inputs, tables (.csv, .parquet) among them."
    ),
]
Out = Annotated[str, typer.Option("--out", help="Folder or s3://bucket/prefix for everything the run makes.")]
Sets = Annotated[list[str], typer.Option("--set", help="steps.NAME.parameter=value")]
TrainSets = Annotated[list[str], typer.Option("--set", help="settings.NAME=value, such as settings.steps=1000; out=PATH")]
BlockOption = Annotated[
    str, typer.Option("--block", help="Block (= shard) in voxels, Z,Y,X or one number; multiples of the chunk. Changes no result.")
]
ChunkOption = Annotated[str, typer.Option("--chunk", help="Inner chunk in voxels, Z,Y,X or one number.")]
MemoryOption = Annotated[float, typer.Option("--memory", help="Most that one task may use, in GB.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Ray workers on this machine (default: its cores).")]
AddressOption = Annotated[str | None, typer.Option("--address", help="Address of a Ray cluster; 'auto' finds the one around.")]


def a_runner(name: str) -> str:
    if name not in ("ray", "serial"):
        raise InputError(f"there is no runner '{name}': choose 'ray' or 'serial'.")
    return name


DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Name of the data set, a key in every table (default: the volume's).")]
RunnerOption = Annotated[str, typer.Option("--runner", help="ray or serial", callback=a_runner)]
#: nm; voxels outside are no electron microscopist's
VOXELS = (0.5, 1000.0)


def register_operators() -> None:
    """Every operator of vemray into the registry: those of ops are there already, models and the phantom lie above it."""
    import vemray.models.infer
    import vemray.phantom.operators  # noqa: F401


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def triple(text: str, what: str, kind=int) -> tuple:
    """'8,8,8' or '8' as three numbers, ZYX."""
    try:
        values = [kind(v) for v in str(text).replace("x", ",").split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or not all(math.isfinite(v) and v > 0 for v in values):
        raise InputError(f"{what} '{text}': give three positive numbers Z,Y,X, or one for all.")
    return tuple(values)


def spans(text: str, what: str) -> list[tuple[int, int | None] | None]:
    """'15:20,:,0:100' as [from, up to) along Z, Y, X; None where nothing is said."""
    out: list[tuple[int, int | None] | None] = []
    for part in text.split(","):
        a, colon, b = part.partition(":")
        if not colon or any(n.strip() and not n.strip().isdigit() for n in (a, b)):
            break
        out.append((int(a or 0), int(b) if b.strip() else None) if a.strip() or b.strip() else None)
    if len(out) != 3 or text.count(",") != 2:
        raise InputError(f"{what} '{text}': give from:up to along Z,Y,X in voxels, such as 15:20,:,0:100; a single colon is all of an axis.")
    return out


def pair(text: str, what: str) -> tuple[float, float]:
    """'0.5,3' as two numbers."""
    try:
        a, b = (float(v) for v in text.split(","))
    except ValueError:
        a = b = math.nan
    if not (math.isfinite(a) and math.isfinite(b)):
        raise InputError(f"{what} {text}: give two numbers with a comma between them.")
    return a, b


def named(volumes: list[str]):
    """'URL' or ['NAME=URL', ...] as vemray.run takes it."""
    if len(volumes) == 1 and "=" not in volumes[0].split("/")[0]:
        return volumes[0]
    pairs = [v.partition("=") for v in volumes]
    if bad := [v for v, eq, _ in pairs if not eq]:
        raise InputError(f"--volume {bad[0]}: with several volumes, name each: --volume NAME=URL.")
    return {n: u for n, _, u in pairs}


def options(block: str, chunk: str, memory: float):
    from vemray.plan import Options

    if not (math.isfinite(memory) and memory > 0):
        raise InputError(f"--memory {memory:g}: give a positive number of GB.")
    return Options(triple(block, "--block"), triple(chunk, "--chunk"), int(memory * 1e9))


def voxels(text: str | None):
    """--voxel-size as a Spacing, None if it was not given."""
    from vemray.geometry import Spacing

    if text is None:
        return None
    size = triple(text, "--voxel-size", float)
    if not all(VOXELS[0] <= v <= VOXELS[1] for v in size):
        meant = f" Did you mean {','.join(f'{1000 * v:g}' for v in size)} nm?" if all(VOXELS[0] <= 1000 * v <= VOXELS[1] for v in size) else ""
        raise InputError(f"--voxel-size {text}: it is given in nm, and {VOXELS[0]:g} to {VOXELS[1]:g} nm are possible.{meant}")
    return Spacing(*size)


def listeners() -> tuple:
    from vemray.run.events import Bars, Lines

    return (Bars() if sys.stderr.isatty() else Lines(),)
