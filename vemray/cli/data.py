"""Commands that make volumes, annotations and networks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vemray.cli.options import (
    AddressOption,
    BlockOption,
    Out,
    RunnerOption,
    TrainSets,
    WorkersOption,
    app,
    listeners,
    options,
    pair,
    register_operators,
    say,
    triple,
    voxels,
)
from vemray.errors import InputError


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
    address: AddressOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model if it exists.")] = False,
) -> None:
    """Train a network from sparse annotation: MODEL.vemray, with a log and a page beside it. The same command goes on with one that was interrupted."""
    from vemray.report.training_page import write_training_page
    from vemray.training.recipe import load, run

    progress = lambda e: sys.stderr.write("  ".join(f"{k} {v}" for k, v in e.items()) + "\n")  # noqa: E731
    loaded = load(recipe, sets)
    with _ray_for(loaded.settings.workers * loaded.settings.threads if loaded.settings.workers > 1 else 0, address):
        results = run(loaded, progress, overwrite)
    for result in results:
        say(str(result))
        say(f"page: {write_training_page(result)}")


@contextlib.contextmanager
def _ray_for(cpus: int, address: str | None) -> Iterator[None]:
    """Ray on this machine with so many CPUs, or the cluster at `address`; nothing for 0."""
    if not cpus:
        if address:
            raise InputError("--address is for a training on several workers: --set settings.workers=2.")
        yield
        return
    from vemray.run.cluster import RayRunner

    runner = RayRunner(cpus, address)
    try:
        yield
    finally:
        runner.close()


@app.command("check-model")
def check_model(
    model: Annotated[Path, typer.Argument(help="BioImage.IO package: its folder, .yaml file or .zip.")],
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Run a package's test input and compare with its test output, for each kind of weights. Exit code 2 where they differ."""
    from vemray.models.bioimage_check import check, must_pass

    results = check(model, device)
    for r in results:
        say(str(r))
    must_pass(model, results)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="MODEL.vemray")],
    target: Annotated[Path, typer.Argument(help="OUT.czann (ZEISS), OUT.zip (BioImage.IO) or OUT.onnx.")],
    grey: Annotated[
        str | None,
        typer.Option(
            "--grey",
            help="LOW,HIGH: grey values that are 0 and 1 to a network normalised by each volume's histogram. For .czann; for .zip where it gives an image.",
        ),
    ] = None,
    bits: Annotated[int, typer.Option("--bits", min=8, max=16, help="For .czann and .zip: of the images that it is for, 8 or 16.")] = 8,
    tile: Annotated[int | None, typer.Option("--tile", min=1, help="For .czann: edge of the tile that it takes (default: 1024; 3D: 128).")] = None,
    author: Annotated[list[str] | None, typer.Option("--author", help="For .zip: who made the model; may be given again.")] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="For .zip: under which it may be used, e.g. CC-BY-4.0 (spdx.org/licenses).")
    ] = None,
    description: Annotated[str | None, typer.Option("--description", help="For .zip: what it is for (default: written from its facts).")] = None,
    cite: Annotated[list[str] | None, typer.Option("--cite", help="For .zip: 'DOI-or-URL text' to be cited; may be given again.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the target if it exists.")] = False,
) -> None:
    """A model in another format, for other programs to run."""
    from vemray.errors import InputError
    from vemray.models.files import load, save_bioimage, save_czann, save_onnx

    kind = target.suffix
    if kind not in (".czann", ".onnx", ".zip"):
        raise InputError(f"'{target}': models of type '{kind}' are not written. Known: .czann, .zip (BioImage.IO), .onnx.")
    if kind == ".onnx" and (grey or tile or bits != 8):
        raise InputError(
            "--grey, --bits and --tile are for .czann and .zip: an .onnx keeps the model's own normalisation and takes tiles of any size."
        )
    if kind == ".zip" and tile:
        raise InputError("--tile is for .czann: a BioImage.IO package takes tiles of any size.")
    if kind != ".zip" and (author or license or description is not None or cite):
        raise InputError(f"--author, --license, --description and --cite are for .zip (BioImage.IO): a {kind} has no place for them.")
    if bits not in (8, 16):
        raise InputError(f"--bits {bits}: 8 or 16.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already and is left alone. Choose another, or replace it with --overwrite.")
    network = load(model)
    values = pair(grey, "--grey") if grey else None
    if kind == ".onnx":
        save_onnx(target, network)
    elif kind == ".czann":
        save_czann(target, network, grey=values, bits=bits, tile=tile)
    else:
        about = {"authors": tuple(author or ()), "license": license, "description": description, "cite": tuple(cite or ())}
        save_bioimage(target, network, grey=values, bits=bits, **about)
        if missing := [n for n, given in (("--author", author), ("--license", license), ("--cite", cite)) if not given]:
            say(f"{target} does not say: {', '.join(missing)}. Give them before you share it.")
    say(f"{target}: {', '.join(network.facts.classes)}; {network.facts.dims}D")
