"""`hwaga lab`: the two-dimensional laboratory. Learns points in seconds and draws what was learned."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError, first_mistake
from . import options
from .progress import Progress


def lab(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures are put.")] = Path("lab"),
    points: Annotated[str, typer.Option(help="mixture, moons, spiral.")] = "mixture",
    process: Annotated[str, typer.Option(help="Of the diffusion: vp, sub-vp, ve, gaussian.")] = "vp",
    fields: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A field of the process; repeatable.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Names, with commas between, that are compared.")] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Of the network, by each of them.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 1500,
    few_steps: Annotated[
        bool, typer.Option("--few-steps", help="Students of both too: mean flow, consistency.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a bar.")] = False,
) -> None:
    """Learn a score in two dimensions and draw it: arrows, paths, samplers, Langevin chains."""
    from pydantic import ValidationError

    from .. import files
    from ..laboratory import few, figures, learning
    from ..laboratory.points import points as point_set

    data = point_set(points)
    if process == "flow":
        raise InputError("--process flow: a flow is always there beside the diffusion; name vp, sub-vp, ve or gaussian")
    try:
        config = figures.process_config(process, **options.pairs("--set", fields))
    except ValidationError as error:
        raise InputError(f"--set {first_mistake(error)}") from None
    names = figures.sampler_names([name.strip() for name in sampler.split(",")] if sampler else None)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file; name a folder")
    with Progress("learning", quiet) as bar:
        learned = {
            kind: learning.learn(
                data, own, steps=steps, seed=seed, say=partial(_told, bar, kind)
            )
            for kind, own in (("diffusion", config), ("flow", figures.process_config("flow")))
        }  # fmt: skip
        whole = figures.Lab(data, learned["diffusion"], learned["flow"], seed)
        own = (
            few.students(whole, config, steps, lambda what, done, total: bar.update(done, total, what))
            if few_steps
            else None
        )
    out.mkdir(parents=True, exist_ok=True)
    found = figures.draw(whole, out, names, evaluations)
    if own is not None:
        found["few steps"] = few.few_steps(whole, own, out / "few-steps.png")
    given = {"points": points, "process": config.model_dump(mode="json"), "steps": steps, "seed": seed}
    files.write_json(out / "lab.json", {**given, **found})
    for line in told(found):
        print(line)
    print(f"written         {out}/{' '.join(sorted(file.name for file in out.glob('*.png')))} lab.json")


def _told(bar: Progress, kind: str, done: int, total: int) -> None:
    bar.update(done, total, kind)


def told(found: dict[str, Any]) -> list[str]:
    """The numbers in lines."""
    lines = [f"score           {name}: {v:.4f} to the exact one" for name, v in found["score"].items()]
    lines += [f"path            {name}: curvature {v:.3g}" for name, v in found["paths"].items()]
    lines += [f"samples         {name}: energy distance {v:.5f}" for name, v in found["samplers"].items()]
    lines += [f"few steps       {name}: energy distance {v:.5f}" for name, v in found.get("few steps", {}).items()]
    one = found["langevin"]
    distance, p = one["energy distance"], one["p"]
    return [*lines, f"Langevin        {one['steps']} steps: energy distance {distance:.5f}, p = {p:.3f}"]
