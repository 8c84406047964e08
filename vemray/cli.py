"""The small driver's face: parse, call, print. Every command is a call that Python can make too."""

from __future__ import annotations

import math
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


@app.command("run")
def run_(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    volume: Volumes,
    out: Out,
    sets: Sets = [],  # noqa: B006
    runner: RunnerOption = "ray",
    workers: WorkersOption = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; 'auto' finds the one around.")] = None,
    block: BlockOption = "256",
    chunk: ChunkOption = "64",
    memory: MemoryOption = 2.0,
    dataset: DatasetOption = None,
    report: Annotated[bool, typer.Option(help="Write the HTML report at the end.")] = True,
    keep_intermediates: Annotated[
        bool, typer.Option("--keep-intermediates", help="Leave in OUT/scratch what the recipe does not keep: for trying parameters.")
    ] = False,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Keep the output of every step, as `vemray walkthrough` shows them.")] = False,
) -> None:
    """Run a recipe on volumes. Run the same command again to resume, or with changed parameters to redo only what follows."""
    from vemray.plan.recipe import load_recipe
    from vemray.report.walkthrough import everything
    from vemray.run.api import run

    register_operators()
    loaded = load_recipe(recipe, sets)
    results = run(
        everything(loaded) if keep_all else loaded, named(volume), out, runner=runner, workers=workers, address=address, options=options(block, chunk, memory),
        dataset=dataset, listeners=listeners(), report=report, keep_intermediates=keep_intermediates,
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
    dataset: DatasetOption = None,
) -> None:
    """Show what would run: stages, blocks, bytes, requests, memory a task, time. Nothing is run."""
    from vemray.plan.cost import explain
    from vemray.run.api import against, make_plan

    register_operators()
    p = make_plan(recipe, named(volume), options(block, chunk, memory), sets)
    p, done = against(p, out, dataset) if out else (p, set())
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
    kind: Annotated[str | None, typer.Option(help="image, labels, mask or probability (default: what the source says, else image)")] = None,
    block: BlockOption = "256",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the target if it is a volume.")] = False,
) -> None:
    """Bring a volume into sharded OME-Zarr 0.5 with a pyramid. The source is not touched."""
    from vemray.importers import import_volume

    v = import_volume(source, target, voxels(voxel_size), kind=kind, block=triple(block, "--block"), overwrite=overwrite)
    say(f"{v.url}: {v.kind}, {' x '.join(map(str, v.shape))} voxels (z, y, x) of {v.spacing}, {v.dtype}, {v.levels} levels")


@app.command()
def annotate(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of painted planes (plane_0010.tif or .png), or CSV of points: z_nm,y_nm,x_nm (or z,y,x),class[,radius_nm,stroke]."
        ),
    ],
    target: Annotated[str, typer.Argument(help="OME-Zarr of labels to write, folder or s3://.")],
    like: Annotated[str, typer.Option("--like", help="The volume that was annotated.")],
    level: Annotated[int, typer.Option("--level", min=0, help="Its level of the pyramid on which the labels lie.")] = 0,
    classes: Annotated[str, typer.Option("--classes", help="Names of the classes 1, 2, ... with commas between: resin,cell")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the target if it is a volume.")] = False,
) -> None:
    """Make sparse labels of painted planes, points or strokes, for `pixel_classifier` and `train_forest`. 0 is unknown."""
    from vemray.store.volume import open
    from vemray.training.annotation import annotate

    names = [n.strip() for n in classes.split(",") if n.strip()]
    v = annotate(source, target, open(like, level), names, overwrite)
    counts = ", ".join(f"{n:,} {name}" for name, n in v.attributes["annotations"]["voxels"].items())
    say(f"{v.url}: {' x '.join(map(str, v.shape))} voxels (z, y, x) of {v.spacing}; annotated: {counts}")


@app.command()
def ops(name: Annotated[str | None, typer.Argument(help="One operator, in full.")] = None) -> None:
    """Every operator with its parameters, units and contract, printed from the registry."""
    import shutil

    from vemray.ops.describe import describe, table

    register_operators()
    width = shutil.get_terminal_size((120, 40)).columns
    say(describe(name, width) if name else table(width))


@app.command()
def evaluate(
    predicted: Annotated[str, typer.Argument(help="Label or mask volume.")],
    truth: Annotated[str, typer.Argument(help="Label or mask volume of the same shape.")],
    out: Annotated[str | None, typer.Option("--out", help="Also write the figures as JSON here.")] = None,
    of_run: Annotated[str | None, typer.Option("--run", help="Folder of a run whose report shall show the figures.")] = None,
    name: Annotated[str, typer.Option(help="What is judged, as the report names it.")] = "labels",
    within: Annotated[float | None, typer.Option(help="Match objects also by their centroids, up to so many nm apart: for small ones.")] = None,
    workers: WorkersOption = None,
    block: BlockOption = "256",
    runner: RunnerOption = "ray",
) -> None:
    """Compare with the truth: voxel Dice and IoU, object precision, recall and F1 over IoU thresholds, adapted Rand, variation of
    information. Blockwise."""
    from vemray.run.evaluate import check_run, evaluate, lines, record
    from vemray.store import access
    from vemray.store.table import write_json

    if of_run:
        check_run(of_run)
    result = evaluate(predicted, truth, runner=runner, workers=workers, block=triple(block, "--block"), within_nm=within)
    if out:
        write_json(out, result)
    if of_run:
        record(of_run, name, result)
        if access.exists(access.join(of_run, "report", "index.html")):
            from vemray.report import write_report

            sys.stderr.write(f"report: {write_report(of_run)}\n")
    say(lines(result))


@app.command()
def phantom(
    out: Out,
    preset: Annotated[
        str, typer.Option(help="demo: a whole miniature cell; pores: the same with nuclear pores; hela: a cell of natural size.")
    ] = "demo",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    voxel_size: Annotated[str | None, typer.Option("--voxel-size", help="Z,Y,X in nm.")] = None,
    shape: Annotated[str | None, typer.Option(help="Z,Y,X in voxels from the scene's middle (default: the whole scene).")] = None,
    block: BlockOption = "256",
    workers: WorkersOption = None,
    runner: RunnerOption = "ray",
) -> None:
    """A synthetic HeLa FIB-SEM volume with the truth about every object: label volumes and a table."""
    from vemray.run.api import run

    register_operators()
    parameters: dict = {"op": "phantom", "preset": preset, "seed": seed}
    if spacing := voxels(voxel_size):
        parameters["voxel_nm"] = spacing.zyx
    if shape:
        parameters["shape"] = triple(shape, "--shape")
    recipe = {
        "vemray": 1, "name": f"phantom-{preset}-{seed}", "inputs": {},
        "steps": {"phantom": parameters, "objects": {**parameters, "op": "phantom_objects"}},
    }  # fmt: skip
    results = run(recipe, {}, out, runner=runner, workers=workers, options=options(block, "64", 2.0), listeners=listeners(), report=False)
    say(str(results))
    say(f"the EM volume: {results.volumes['phantom.em'].url}")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="TRAIN.yaml")],
    sets: TrainSets = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model if it exists.")] = False,
) -> None:
    """Train a network from sparse annotation."""
    from vemray.training.recipe import load, run

    progress = lambda e: sys.stderr.write(" ".join(f"{k} {v}" for k, v in e.items()) + "\n")  # noqa: E731
    result = run(load(recipe, sets), progress, overwrite)
    say(str(result))


@app.command()
def report(url: Annotated[str, typer.Argument(help="Folder or s3:// of a finished run.")]) -> None:
    """Write the HTML report of a run again."""
    from vemray.report import write_report

    say(write_report(url))


@app.command()
def walkthrough(
    url: Annotated[str, typer.Argument(help="Folder or s3:// of a run, best of one with --keep-all.")],
    to: Annotated[str, typer.Option(help="Folder or s3:// to write walkthrough.md and its pictures to.")],
    at: Annotated[str | None, typer.Option(help="Point z,y,x in nm that the pictures go through. Default: the middle.")] = None,
    side: Annotated[float, typer.Option(help="Side of the detail around it, nm.")] = 1200.0,
) -> None:
    """Every step of a run with its parameters, the reasons for them and a picture of what came out."""
    from vemray.report.walkthrough import stops, write
    from vemray.run.results import Results

    register_operators()
    results = Results(url)
    point = triple(at, "--at", float) if at else None
    recipe = results.run["recipe"]
    say(write(stops(results, point, side), to, recipe["name"], recipe.get("about", "")))


@app.command()
def picture(
    url: Annotated[str, typer.Argument(help="Folder or s3:// of a finished run.")],
    out: Annotated[str, typer.Option("--out", help="PNG to write.")],
    show: Annotated[list[str], typer.Option("--show", help="Label or mask volume: NAME or NAME:OPACITY, such as cell:0.15. Several.")] = [],  # noqa: B006
    points: Annotated[list[str], typer.Option("--points", help="Balls at a table's centroids: TABLE or TABLE:RADIUS_NM.")] = [],  # noqa: B006
    colour: Annotated[
        str | None, typer.Option("--colour", help="TABLE.COLUMN that colours the objects that the table measures, or its points.")
    ] = None,
    limits: Annotated[
        str | None, typer.Option("--range", help="LOW,HIGH of the colour scale, in the unit shown (default: 2nd to 98th per cent).")
    ] = None,
    colours: Annotated[str, typer.Option("--map", help="Colour map of matplotlib.")] = "viridis",
    clip: Annotated[list[str], typer.Option("--clip", help="Cut open: x=0.5 (share of the extent) or x=3200nm; y, z likewise. Several.")] = [],  # noqa: B006
    view: Annotated[str, typer.Option(help="oblique, back, xy, xz or yz")] = "oblique",
    level: Annotated[int | None, typer.Option(min=0, help="Pyramid level (default: the finest of at most 64 million voxels).")] = None,
    size: Annotated[str, typer.Option(help="Width,height in pixels.")] = "1500,1200",
    title: Annotated[str, typer.Option(help="Words above the picture.")] = "",
) -> None:
    """Draw the objects of a run in 3D: coloured by any column, translucent, cut open, with scale bar and colour bar. Needs the extra `pictures`."""
    from vemray.report.objects3d import picture
    from vemray.run.results import Results
    from vemray.store import access

    ends = pair(limits, "--range") if limits else None
    width, height = pair(size, "--size")
    if not 64 <= min(width, height) <= max(width, height) <= 8192:
        raise InputError(f"--size {size}: give 64 to 8192 pixels for each side.")
    png, notes = picture(Results(url), show, colour, points, clip, view, ends, colours, level, (int(width), int(height)), title)
    access.write_bytes(out, png)
    for line in notes:
        sys.stderr.write(line + "\n")
    say(out)


@app.command()
def mesh(
    url: Annotated[str, typer.Argument(help="Folder or s3:// of a finished run.")],
    name: Annotated[str, typer.Argument(help="Label or mask volume of the run.")],
    out: Annotated[str, typer.Option("--out", help="Folder or s3:// for the files.")],
    form: Annotated[str, typer.Option("--format", help="ply or stl: LABEL.ply each; neuroglancer: multi-resolution; neuroglancer-legacy")] = "ply",
    table: Annotated[str | None, typer.Option("--table", help="Table whose numbers Neuroglancer shall list for each object.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Only these, such as 3,17.")] = None,
    keep: Annotated[float, typer.Option(help="Share of the triangles that stays (quadric decimation after smoothing).")] = 0.25,
    smooth: Annotated[float, typer.Option(min=0, max=5, help="Smoothing in units of the coarsest voxel side; 0 leaves voxel faces.")] = 1.75,
    level: Annotated[int | None, typer.Option(min=0, help="Pyramid level (default: the finest of at most 64 million voxels).")] = None,
) -> None:
    """Write meshes of a run's objects: closed, smoothed with their volume kept, in nm. Needs the extra `pictures` unless --keep 1 and ply or stl."""
    from vemray.report.objects3d import write_meshes
    from vemray.run.results import Results

    try:
        chosen = {int(v) for v in labels.split(",")} if labels else None
    except ValueError:
        raise InputError(f"--labels {labels}: give whole numbers with commas between them.") from None
    say(write_meshes(Results(url), name, out, form, table, chosen, keep, smooth, level))


def version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"vemray {version('vemray')}")
        raise typer.Exit


@app.callback()
def all_commands(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=version, is_eager=True)] = False,
) -> None:
    pass


def main() -> None:
    import warnings

    warnings.showwarning = lambda message, *where, **more: sys.stderr.write(f"vemray: warning: {message}\n")
    try:
        code = app(standalone_mode=False) or 0  # typer.Exit comes back as its code
        sys.stdout.flush()
    except VemrayError as e:
        code = _stop(str(e), e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _stop("stopped", 130)
    except typer.BadParameter.__mro__[2] as e:  # click's base of usage errors, which typer does not export
        context = getattr(e, "ctx", None)
        text = e.format_message().rstrip(". ")  # '' after the help that a bare `vemray` shows
        code = _stop(text + (f". See `{context.command_path} --help`." if context else "."), 2) if text else 2
    except BrokenPipeError:  # `vemray ops | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as e:
        code = _stop(_internal(e), 70)
    sys.exit(code)


def _stop(text: str, code: int) -> int:
    sys.stderr.write(f"vemray: {text}\n")
    return code


def _internal(error: Exception) -> str:
    """One line about a mistake of ours; the traceback goes to a file, and to the screen with VEMRAY_DEBUG=1."""
    import tempfile
    import traceback

    trace = "".join(traceback.format_exception(error))
    if os.environ.get("VEMRAY_DEBUG", "0") not in ("", "0"):
        sys.stderr.write(trace)
    what = f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="vemray-error-", suffix=".txt", delete=False) as f:
            f.write(f"vemray {' '.join(sys.argv[1:])}\n\n{trace}")
    except OSError:
        return f"{what}. This is a mistake in vemray: please report it, with what VEMRAY_DEBUG=1 shows."
    return f"{what}. This is a mistake in vemray: please report it with {f.name}, which says where it happened."


if __name__ == "__main__":
    main()
