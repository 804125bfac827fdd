"""`hwaga evaluate`: scores of a model or of a folder of pictures, with the card that says how they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import files
from ..errors import InputError
from . import options
from .progress import Progress


def evaluate(
    samples: Annotated[
        str, typer.Argument(metavar="SAMPLES_OR_MODEL", help="A folder of PNGs, or a model or run, which then paints.")
    ],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="The real pictures: openmoji, a folder, …")],
    split: Annotated[str, typer.Option(help="The part of them: held-out, combinations, train, all.")] = "held-out",
    n: Annotated[
        int | None, typer.Option("--n", "-n", min=2, help="Pictures that are measured (a model: 500).")
    ] = None,
    metrics: Annotated[str, typer.Option(help="Names, with commas between.")] = "fid,kid,prdc",
    features: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Another judge, for pictures that are not emoji: a vision encoder."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Another CLIP that says whether prompts were painted (retrieval, clip_score)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="What the model paints from.")] = 0,
    sampler: Annotated[str | None, typer.Option(help="Of the model: ddpm, ddim, …")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the sampler.")] = None,
    sampler_options: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeatable.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 is off.")] = None,
    own: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A keyword of the system's own; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="Write scores and card.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a bar.")] = False,
) -> None:
    """Measure pictures against real ones."""
    options.new_file("--json", json_file, ".json")
    asked = {
        "sampler": sampler,
        "steps": steps,
        "sampler_options": options.pairs("--sampler-options", sampler_options) or None,
        "guidance_scale": guidance_scale,
        **{name.replace("-", "_"): value for name, value in options.pairs("--set", own).items()},
    }
    names = options.metrics(metrics)
    sampling = {name: value for name, value in asked.items() if value is not None}

    from . import scores
    from .compare import opened

    entry = opened(samples, device, dtype)
    if entry.system is None and sampling:
        raise InputError(
            f"--{next(iter(sampling)).replace('_', '-')} given with {samples}, which is a folder of pictures"
        )
    with Progress(f"measuring {samples}", quiet) as bar:
        found = scores.measured(
            samples if entry.system is None or entry.run else entry.system,
            data,
            split=split,
            n=n,
            seed=seed,
            metrics=names,
            features=features,
            clip=clip,
            sampling=sampling,
            progress=bar.update,
        )
    for line in scores.lines(found):
        print(line)
    if json_file is not None:
        files.write_json(json_file, found.to_json())
        print(f"written         {json_file}")
