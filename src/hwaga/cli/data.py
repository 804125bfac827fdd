"""`hwaga data show`: what is in a source, and how training sees it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from . import options

if TYPE_CHECKING:
    from ..data import Dataset

app = typer.Typer(help="Look at data.", no_args_is_help=False, invoke_without_command=True)


@app.callback()
def _root(context: typer.Context) -> None:
    """Look at data."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def show(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="openmoji, digits, a folder, tar shards, hf:NAME.")],
    out: Annotated[Path | None, typer.Option(metavar="GRID.png", help="Draw pictures, as training sees them.")] = None,
    size: Annotated[str, typer.Option(metavar="HxW", help="Height and width in pixels, or one number.")] = "32",
    split: Annotated[str, typer.Option(help="train, held-out, combinations or all.")] = "train",
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=2500, help="Pictures on the grid.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Which pictures: 0 is one choice, 1 another.")] = 0,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Other values of a recipe's data section; repeatable."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Name every file that was left out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a bar.")] = False,
) -> None:
    """Tell what is in a source: counts, sizes, classes, captions, and what was left out and why."""
    options.new_file("--out", out, ".png")
    data = open_source(source, options.size(size), split, options.pairs("--set", changes), quiet)

    from .. import provenance
    from ..data.show import grid, summary, summary_text

    print(summary_text(summary(data), None if every else 20))
    if out is not None:
        provenance.save_images([grid(data, n, seed)], out)
        print(f"grid: {out}")


def open_source(
    source: str, size: tuple[int, int] | None, split: str, changes: dict[str, Any] | None = None, quiet: bool = False
) -> Dataset:
    """A data set by its source's name, with the values of a recipe's `data:` section that are given."""
    from pydantic import ValidationError

    from ..data import DataConfig, open_data
    from .progress import Progress

    for name in ("source", "size", "split"):
        if changes and name in changes:
            raise InputError(f"--set {name}=…: give it as {'the SOURCE' if name == 'source' else '--' + name}")
    side = size[0] if size is not None and size[0] == size[1] else size
    values = {"source": source, "size": side} | (changes or {})
    try:
        config = DataConfig.model_validate(values)
    except ValidationError as error:
        from ..recipes import sentence

        raise InputError(sentence(error.errors()[0], DataConfig, values, "data")) from None
    with Progress(f"preparing {source}", quiet) as bar:
        return open_data(config, split, bar.update)


def told_of(data: Dataset, index: int) -> str:
    """What is known of a picture in words: its caption, else its class, else its name."""
    if data.captions is not None and data.captions[index]:
        return str(data.captions[index])
    if data.labels is not None:
        return str(data.classes[int(data.labels[index])])
    return str(data.names[index])
