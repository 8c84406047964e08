"""Commands on the results of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vemray.cli.options import BlockOption, RunnerOption, WorkersOption, app, pair, register_operators, say, spans, triple
from vemray.errors import InputError


@app.command()
def evaluate(
    predicted: Annotated[str, typer.Argument(help="Label or mask volume.")],
    truth: Annotated[str, typer.Argument(help="Label or mask volume of the same shape.")],
    out: Annotated[str | None, typer.Option("--out", help="Also write the figures as JSON here.")] = None,
    of_run: Annotated[str | None, typer.Option("--run", help="Folder of a run whose report shall show the figures.")] = None,
    name: Annotated[str, typer.Option(help="What is judged, as the report names it.")] = "labels",
    within: Annotated[float | None, typer.Option(help="Match objects also by their centroids, up to so many nm apart: for small ones.")] = None,
    region: Annotated[
        str | None, typer.Option(help="Look at this part alone: from:up to along Z,Y,X in voxels, such as 15:20,:,: for planes 15 to 19.")
    ] = None,
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
    part = spans(region, "--region") if region else None
    result = evaluate(predicted, truth, runner=runner, workers=workers, block=triple(block, "--block"), within_nm=within, region=part)
    if out:
        write_json(out, result)
    if of_run:
        record(of_run, name, result)
        if access.exists(access.join(of_run, "report", "index.html")):
            from vemray.report import write_report

            sys.stderr.write(f"report: {write_report(of_run)}\n")
    say(lines(result))


@app.command()
def report(
    url: Annotated[str, typer.Argument(help="Folder or s3:// of a finished run.")],
    to: Annotated[str | None, typer.Option(help="Folder or s3:// to write it to. Default: OUT/report.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe whose `report:` says what is shown, instead of the one that was run.")] = None,
) -> None:
    """Write the HTML report of a run again, its plots and pictures in 3D also as files beside it."""
    from vemray.plan.recipe import load_recipe
    from vemray.report import write_report

    say(write_report(url, to, load_recipe(recipe).report if recipe else None))


@app.command()
def walkthrough(
    url: Annotated[str, typer.Argument(help="Folder or s3:// of a run, best of one with --keep-all.")],
    to: Annotated[str, typer.Option(help="Folder or s3:// to write the page and its pictures to.")],
    page: Annotated[str, typer.Option(help="Name of the page (Markdown).")] = "walkthrough.md",
    pictures: Annotated[str, typer.Option(help="Folder of its pictures, seen from the page.")] = "pictures",
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe whose words (chapters, reasons, scenes) are shown, instead of those of the one that was run.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Point z,y,x in nm that the pictures go through. Default: the middle.")] = None,
    side: Annotated[float, typer.Option(help="Side of the detail around it, nm.")] = 1200.0,
) -> None:
    """Every step of a run with its parameters, the reasons for them and a picture of what came out, in the chapters of the recipe's comments."""
    from vemray.plan.recipe import load_recipe
    from vemray.report.walkthrough import reworded, write_page
    from vemray.run.results import Results

    register_operators()
    results = Results(url)
    if recipe:
        reworded(results, load_recipe(recipe))
    say(write_page(results, to, page, pictures, triple(at, "--at", float) if at else None, side))


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
    clip: Annotated[
        list[str],
        typer.Option("--clip", help="Cut open: x=0.5 (share of the extent) or x=3200nm; y, z likewise; NAME:x=0.5 cuts one volume. Several."),
    ] = [],  # noqa: B006
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
