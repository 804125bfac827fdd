"""`hwaga curve`: score against network evaluations, for all samplers of some models, in one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, WorkError
from .progress import Progress


def curve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Models or runs: teachers, students, flows.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Rows are kept there; a stopped run goes on.")] = Path(
        "curve"
    ),
    samplers: Annotated[str | None, typer.Option(help="Names, with commas between; all that fit if left out.")] = None,
    evaluations: Annotated[str, typer.Option(help="Of the network, a picture; with commas between.")] = "4,8,16,32,50",
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Real pictures; the models' own if left out.")
    ] = None,
    split: Annotated[str, typer.Option(help="The part of them: held-out, combinations, train, all.")] = "held-out",
    n: Annotated[int, typer.Option("--n", "-n", min=2, help="Pictures that each row is measured by.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="The seed that all paint from.")] = 0,
    guidance_scale: Annotated[float | None, typer.Option(help="For all; each model's own if left out.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a bar.")] = False,
) -> None:
    """Draw score against network evaluations, with the numbers in a table."""
    from .. import curves, files
    from ..loading import load
    from .compare import distinct

    budgets = numbers(evaluations)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file; name a folder")
    systems = dict(zip(distinct(models), (load(model, device=device, dtype=dtype) for model in models), strict=True))
    source = data or next((one.about.data for one in systems.values() if one.about.data), None)
    if source is None:
        raise InputError("nothing here says what to compare with; name it: --data SOURCE")
    asked = curves.Asked(source, split, n, seed, guidance_scale)
    names = [name.strip() for name in samplers.split(",")] if samplers else None
    todo, newest = curves.walks(systems, names, budgets), None
    if not todo:
        raise InputError(f"--evaluations {evaluations}: none of these models can paint with so many")
    with Progress("measuring", quiet) as bar:
        for i, walk in enumerate(todo):
            what = f"{walk.model}, {walk.sampler}, {walk.steps} steps"
            bar.update(i, len(todo), what)
            try:
                newest = curves.measured(walk, asked, out)
            except WorkError as error:  # a row that breaks is told, and the others are measured
                print(f"{what}: {error}")
        bar.update(len(todo), len(todo), "comparing")
        if newest is None:
            raise WorkError("no row could be measured")
        rows = curves.kept(out, newest)
        found = curves.table(rows)
    text = curves.markdown(found)
    curves.draw(rows, out / "curve.png")
    files.write_text(out / "curve.md", text)
    files.write_json(out / "curve.json", found)
    print(text, end="")
    print(f"written: {out}/curve.png curve.md curve.json, and a card a row in {out}/rows")


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between, each once, rising."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--evaluations {text}: whole numbers above 0 with commas between are needed, such as 4,8,16")
    return sorted({int(part) for part in parts})
