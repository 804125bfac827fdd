"""`hwaga train`: a recipe, or a run that is gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from . import options


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A shipped recipe (openmoji/ddpm) or a YAML file.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Other data than the recipe's: a folder, openmoji, digits, …")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The run folder; a new one under runs/ if left out.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory, time and what would be written; train nothing.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with this run from its last whole checkpoint.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a bar.")] = False,
) -> None:
    """Train a recipe, or go on with a run that was stopped."""
    overrides = options.pairs("--set", changes, str)  # read as the recipe reads them
    if resume is not None:
        for name, given in (("RECIPE", recipe), ("--data", data), ("--out", out)):
            if given is not None:
                raise InputError(f"--resume {resume} needs no {name}: the run's own recipe.yaml holds it; leave it out")
    elif recipe is None:
        raise InputError("hwaga train needs a RECIPE, such as openmoji/ddpm, or --resume RUN")

    from .. import running

    if resume is not None:
        if dry_run:
            raise InputError(f"--dry-run goes with a RECIPE, not with --resume; try --dry-run {resume}/recipe.yaml")
        run = running.resume(resume, overrides, quiet=quiet)
    else:
        assert recipe is not None
        if dry_run:
            plan = running.plan(recipe, data, out, overrides)
            print(plan.text())
            if not plan.fits:
                raise InputError("this recipe does not fit in memory; a smaller training.batch_size makes it fit")
            return
        run = running.train(recipe, data, out, overrides, quiet=quiet)
    for name, words in (("model", "paint with it: hwaga sample"), ("report.html", "open it in a browser")):
        if (run.folder / name).exists():
            print(f"{run.folder / name}   {words}{f' {run.folder}' if name == 'model' else ''}")
