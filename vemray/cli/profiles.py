"""Commands that run recipes and say how it goes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from vemray.cli.options import (
    AddressOption,
    BlockOption,
    ChunkOption,
    DatasetOption,
    MemoryOption,
    Out,
    RunnerOption,
    Sets,
    Volumes,
    WorkersOption,
    app,
    listeners,
    named,
    options,
    register_operators,
    say,
)


@app.command("run")
def run_(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    volume: Volumes,
    out: Out,
    sets: Sets = [],  # noqa: B006
    runner: RunnerOption = "ray",
    workers: WorkersOption = None,
    address: AddressOption = None,
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


@app.command()
def ops(name: Annotated[str | None, typer.Argument(help="One operator, in full.")] = None) -> None:
    """Every operator with its parameters, units and contract, printed from the registry."""

    from vemray.ops.describe import describe, table

    register_operators()
    width = shutil.get_terminal_size((120, 40)).columns
    say(describe(name, width) if name else table(width))
