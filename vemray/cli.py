"""The small driver's face: parse, call, print. Every command is a call that Python can make too."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vemray.errors import InputError, VemrayError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Volume electron microscopy at scale: from FIB-SEM and SBF-SEM volumes to cell profiles.",
)

Volumes = Annotated[list[str], typer.Option("--volume", help="URL of the input volume; NAME=URL for a recipe with several inputs.")]
Out = Annotated[str, typer.Option("--out", help="Folder or s3://bucket/prefix for everything the run makes.")]
Sets = Annotated[list[str], typer.Option("--set", help="steps.NAME.parameter=value")]
BlockOption = Annotated[
    str, typer.Option("--block", help="Block (= shard) in voxels, Z,Y,X or one number; multiples of the chunk. Changes no result.")
]
ChunkOption = Annotated[str, typer.Option("--chunk", help="Inner chunk in voxels, Z,Y,X or one number.")]
MemoryOption = Annotated[float, typer.Option("--memory", help="Most that one task may use, in GB.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Ray workers on this machine (default: its cores).")]


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
    if len(values) != 3 or any(v <= 0 for v in values):
        raise InputError(f"{what} '{text}': give three positive numbers Z,Y,X, or one for all.")
    return tuple(values)


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

    return Options(triple(block, "--block"), triple(chunk, "--chunk"), int(memory * 1e9))


def listeners() -> tuple:
    from vemray.run.events import Bars, Lines

    return (Bars() if sys.stderr.isatty() else Lines(),)


@app.command("run")
def run_(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    volume: Volumes,
    out: Out,
    sets: Sets = [],  # noqa: B006
    runner: Annotated[str, typer.Option(help="ray or serial")] = "ray",
    workers: WorkersOption = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; 'auto' finds the one around.")] = None,
    block: BlockOption = "256",
    chunk: ChunkOption = "64",
    memory: MemoryOption = 2.0,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set, a key in every table (default: the volume's).")] = None,
    report: Annotated[bool, typer.Option(help="Write the HTML report at the end.")] = True,
) -> None:
    """Run a recipe on volumes. Run the same command again to resume, or with changed parameters to redo only what follows."""
    from vemray.run.api import run

    results = run(
        recipe, named(volume), out, runner=runner, workers=workers, address=address, options=options(block, chunk, memory), sets=sets,
        dataset=dataset, listeners=listeners(), report=report,
    )  # fmt: skip
    say(str(results))


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    volume: Volumes,
    out: Annotated[str | None, typer.Option("--out", help="Where it would go: stages that lie there complete are shown as such.")] = None,
    sets: Sets = [],  # noqa: B006
    workers: WorkersOption = None,
    block: BlockOption = "256",
    chunk: ChunkOption = "64",
    memory: MemoryOption = 2.0,
) -> None:
    """Show what would run: stages, blocks, bytes, requests, memory a task, time. Nothing is run."""
    from vemray.plan.cost import explain
    from vemray.run.api import complete_stages, make_plan

    p = make_plan(recipe, named(volume), options(block, chunk, memory), sets)
    done = complete_stages(p, out) if out else set()
    say(explain(p, workers or os.cpu_count() or 1, done))


@app.command()
def status(url: Annotated[str, typer.Argument(help="Folder or s3:// of a run.")]) -> None:
    """Where a run stands, from any machine, while it runs and after."""
    from vemray.run.status import describe

    text, code = describe(url)
    say(text)
    raise typer.Exit(code)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="TIFF stack folder, TIFF, npy, npz (file.npz#key), Zarr, OME-Zarr.")],
    target: Annotated[str, typer.Argument(help="OME-Zarr to write, folder or s3://.")],
    voxel_size: Annotated[str | None, typer.Option("--voxel-size", help="Z,Y,X in nm; needed when the source does not say.")] = None,
    kind: Annotated[str, typer.Option(help="image, labels, mask or probability")] = "image",
    block: BlockOption = "256",
    overwrite: Annotated[bool, typer.Option(help="Replace the target if it exists.")] = False,
) -> None:
    """Bring a volume into sharded OME-Zarr 0.5 with a pyramid. The source is not touched."""
    from vemray.geometry import Spacing
    from vemray.importers import import_volume

    spacing = Spacing(*triple(voxel_size, "--voxel-size", float)) if voxel_size else None
    v = import_volume(source, target, spacing, kind=kind, block=triple(block, "--block"), overwrite=overwrite)
    say(f"{v.url}: {v.kind}, {' x '.join(map(str, v.shape))} voxels (z, y, x) of {v.spacing}, {v.dtype}, {v.levels} levels")


@app.command()
def ops(name: Annotated[str | None, typer.Argument(help="One operator, in full.")] = None) -> None:
    """Every operator with its parameters, units and contract, printed from the registry."""
    from vemray.ops.describe import describe, table

    say(describe(name) if name else table())


@app.command()
def evaluate(
    predicted: Annotated[str, typer.Argument(help="Label or mask volume.")],
    truth: Annotated[str, typer.Argument(help="Label or mask volume of the same shape.")],
    out: Annotated[str | None, typer.Option("--out", help="Also write the figures as JSON here.")] = None,
    of_run: Annotated[str | None, typer.Option("--run", help="Folder of a run whose report shall show the figures.")] = None,
    name: Annotated[str, typer.Option(help="What is judged, as the report names it.")] = "labels",
    workers: WorkersOption = None,
    block: BlockOption = "256",
    runner: Annotated[str, typer.Option(help="ray or serial")] = "ray",
) -> None:
    """Compare with the truth: voxel Dice and IoU, object precision, recall and F1 over IoU thresholds, adapted Rand, variation of
    information. Blockwise."""
    from vemray.run.evaluate import evaluate, lines, record
    from vemray.store.table import write_json

    result = evaluate(predicted, truth, runner=runner, workers=workers, block=triple(block, "--block"))
    if out:
        write_json(out, result)
    if of_run:
        record(of_run, name, result)
    say(lines(result))


@app.command()
def phantom(
    out: Out,
    preset: Annotated[str, typer.Option(help="demo: a whole miniature cell; hela: a cell of natural size.")] = "demo",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    voxel_size: Annotated[str | None, typer.Option("--voxel-size", help="Z,Y,X in nm.")] = None,
    shape: Annotated[str | None, typer.Option(help="Z,Y,X in voxels from the scene's middle (default: the whole scene).")] = None,
    block: BlockOption = "256",
    workers: WorkersOption = None,
    runner: Annotated[str, typer.Option(help="ray or serial")] = "ray",
) -> None:
    """A synthetic HeLa FIB-SEM volume with the truth about every object: label volumes and a table."""
    from vemray.run.api import run

    parameters: dict = {"op": "phantom", "preset": preset, "seed": seed}
    if voxel_size:
        parameters["voxel_nm"] = triple(voxel_size, "--voxel-size", float)
    if shape:
        parameters["shape"] = triple(shape, "--shape")
    recipe = {
        "vemray": 1, "name": f"phantom-{preset}-{seed}", "inputs": {},
        "steps": {"phantom": parameters, "objects": {**parameters, "op": "phantom_objects"}},
    }  # fmt: skip
    results = run(recipe, {}, out, runner=runner, workers=workers, options=options(block, "64", 2.0), listeners=listeners(), report=False)
    say(str(results))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="TRAIN.yaml")],
    sets: Sets = [],  # noqa: B006
) -> None:
    """Train a network from sparse annotation."""
    from vemray.training.recipe import load, run

    result = run(load(recipe, sets), progress=lambda e: sys.stderr.write(" ".join(f"{k} {v}" for k, v in e.items()) + "\n"))
    say(str(result))


@app.command()
def report(url: Annotated[str, typer.Argument(help="Folder or s3:// of a finished run.")]) -> None:
    """Write the HTML report of a run again."""
    from vemray.report import write_report

    say(write_report(url))


def main() -> None:
    try:
        app(standalone_mode=False)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except VemrayError as e:
        sys.stderr.write(f"vemray: {e}\n")
        sys.exit(e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("vemray: stopped\n")
        sys.exit(130)
    except typer.BadParameter.__mro__[2] as e:  # click's base of usage errors, which typer does not export
        e.show()
        sys.exit(2)


if __name__ == "__main__":
    main()
