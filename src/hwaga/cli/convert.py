"""`hwaga convert`: a model from one layout to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from . import options


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A run, a saved model, a public folder or file.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The new folder (single: the new .safetensors file).")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="diffusers (the public folder), single (one file), hwaga; peft, kohya (of a model trained as a LoRA, it alone).",
        ),
    ],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16: how our own format stores tensors (as they were).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="ema or raw, of a file that holds both.")] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SOURCE", help="What a single file lacks (tokenizer=FOLDER); repeatable."),
    ] = None,
) -> None:
    """Write a model in another layout; nothing is changed on the way, and the way back gives the same bits."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise InputError(f"{dest} exists already; name a new folder")

    from ..saving import convert as convert_model

    parts = options.pairs("--component", component, str) or None
    convert_model(source, dest, to, dtype, weights=weights, components=parts)
    print(dest)
