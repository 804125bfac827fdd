"""`hwaga demo`: the main job on the default data, from looking at pictures to a report that a stranger understands."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import files
from ..errors import InputError
from .progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data import Dataset
    from ..recipes import Recipe
    from ..systems.base import System

MARK = "demo.json"  # what tells a demo's folder, which may be replaced, from any other
SHOWN = 24  # pictures of the data, and half as many again of each painter
MEASURING = 70.0  # seconds that the paintings of one model to be measured may take
BATCH = 16  # pictures a step at most: within minutes many small steps reach more than few large ones
FEWEST, MOST = 50, 500  # paintings to be measured


@dataclass
class Painter:
    """A model with what it painted."""

    system: System
    sampling: dict[str, Any]
    images: list[Image]
    seconds: float  # a picture


def demo(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where everything goes; an older demo is replaced.")
    ] = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.01, max=600, help="How long to train.")] = 2.0,
    model: Annotated[str, typer.Option(help="The trained model that paints.")] = "openmoji/ddpm",
    recipe: Annotated[str, typer.Option(help="What is trained from scratch.")] = "openmoji/ddpm",
    n: Annotated[
        int | None, typer.Option("--n", "-n", min=2, help="Paintings that are measured; as time allows.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed that both paint from.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a bar.")] = False,
) -> None:
    """Look at data, paint, train for two minutes, measure; ends in a report. At most eight minutes on two cores."""
    _is_ours(out)
    begun = time.monotonic()

    from ..data import open_data
    from ..loading import load
    from ..recipes import load_recipe
    from ..running import train

    full = load_recipe(recipe)
    shipped = load(model)
    _fresh(out)

    say(1, f"the data: {full.data.source}")
    with Progress("preparing the pictures", quiet) as bar:
        data, held_out = open_data(full.data, "train", bar.update), open_data(full.data, "held-out")
    look(data, out / "data.png")

    say(2, f"painting with {model}")
    first = paint(shipped, SHOWN, seed, quiet)
    save(first, out / "shipped.png")

    overrides = lengths(full, minutes)
    steps = overrides["training.steps"]
    say(3, f"training the same system from scratch: {steps:,} steps, about {span(minutes)}")
    clock = time.monotonic()
    run = train(full, out=out / "run", overrides=overrides, quiet=quiet)
    trained_for = time.monotonic() - clock
    second = paint(run.load(), SHOWN, seed, quiet)
    save(second, out / "trained.png")

    count = n or max(FEWEST, min(MOST, int(MEASURING / max(first.seconds, second.seconds)) // 10 * 10))
    count = min(count, MOST) if n is None else count
    say(4, f"measuring both by {count} paintings against {len(held_out):,} held-out pictures")
    scores = {name: measure(painter, name, held_out, data, count, seed, quiet) for name, painter in (
        ("the trained model", first), (f"{span(minutes)} of training", second))}  # fmt: skip

    say(5, "the report")
    page = out / "report.html"
    values = {
        "steps": steps,
        "batch": overrides["training.batch_size"],
        "time": trained_for,
        "minutes": minutes,
        "recipe": recipe,
        "folder": run.folder,
        "full": full,
    }
    write(page, data, held_out, first, second, scores, values, model, count, time.monotonic() - begun)
    files.write_json(out / MARK, {"hwaga": "demo", "state": "finished", "seconds": round(time.monotonic() - begun)})
    print(f"\nopen this in a browser: {page}")


def say(number: int, words: str) -> None:
    print(f"[{number}/5] {words}", flush=True)


def _is_ours(out: Path) -> None:
    """InputError where `out` is something that a demo did not make."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise InputError(
            f"--out {out} holds something that is no demo of hwaga; name another folder or remove it first"
        )


def _fresh(out: Path) -> None:
    if out.is_dir():
        shutil.rmtree(out)
    files.write_json(out / MARK, {"hwaga": "demo", "state": "working"})


def look(data: Dataset, path: Path) -> None:
    """Tells of the data and draws a grid of it."""
    from .. import provenance
    from ..data.show import grid, summary, summary_text

    for line in summary_text(summary(data), 3).splitlines():
        print(f"      {line}")
    provenance.save_images([grid(data)], path)
    print(f"      grid: {path}")


def quick(system: System) -> dict[str, Any]:
    """Keywords that keep sampling short: the model's own habit, or 50 steps of DDIM where that has hundreds."""
    usual = system.defaults()
    if usual.steps[usual.sampler] > 100 and "ddim" in system.samplers():
        return {"sampler": "ddim", "steps": min(50, usual.steps["ddim"])}
    return {}


def paint(system: System, n: int, seed: int, quiet: bool) -> Painter:
    """n pictures of a seed, and how long one takes (not counting what is done only once)."""
    sampling = quick(system)
    system.sample(n=1, seed=seed, progress=False, **sampling)
    begun = time.monotonic()
    with Progress(f"painting {n} pictures", quiet) as bar:
        images = system.sample(n=n, seed=seed, progress=False, callback=bar.step, **sampling)
    return Painter(system, sampling, images, (time.monotonic() - begun) / n)


def save(painter: Painter, path: Path) -> None:
    from .. import provenance

    provenance.save_images(painter.images, path)
    print(f"      {len(painter.images)} pictures, {painter.seconds:.2f} s each: {path}")


def lengths(recipe: Recipe, minutes: float) -> dict[str, Any]:
    """What is changed of a recipe so that training takes about so many minutes here: a few steps are timed."""
    from ..data import Order
    from ..preparing import choose, opened
    from ..training.loop import Trainer

    with choose(recipe, lambda line: None) as place:
        prepared = opened(recipe, place, lambda line: None)
        stage = prepared.system.stages()[0]
        config = recipe.training.for_stage(stage.name)
        config = config.model_copy(update={"batch_size": min(BATCH, config.batch_size)})
        order = Order(len(prepared.data), config.batch_size, config.seed)
        trainer = Trainer(stage, config, prepared.data, order, device=place.device, dtype=place.dtype)
        trainer.step()
        begun, count = time.monotonic(), 0
        while count < 3 or (count < 50 and time.monotonic() - begun < 3):
            trainer.step()
            count += 1
    steps = max(4, int(minutes * 60 / ((time.monotonic() - begun) / count)))
    return {
        "training.steps": steps,
        "training.batch_size": config.batch_size,
        "training.warmup": min(recipe.training.warmup, steps // 10),
        "training.log_every": max(1, steps // 100),
        "training.checkpoint_every": steps,
        "training.held_out_every": max(1, steps // 5),
        "training.sample_every": 0,
        "training.evaluate_every": 0,
    }


def measure(painter: Painter, name: str, held_out: Dataset, data: Dataset, n: int, seed: int, quiet: bool) -> Any:
    from .scores import measured

    with Progress(f"measuring {name}", quiet) as bar:
        return measured(
            painter.system, held_out, n=n, seed=seed, sampling=painter.sampling, training=data, progress=bar.update,
            metrics=("fid", "kid", "prdc", "memorisation", "sharpness"),
        )  # fmt: skip


def write(
    page: Path,
    data: Dataset,
    held_out: Dataset,
    first: Painter,
    second: Painter,
    scores: dict[str, Any],
    run: dict[str, Any],
    model: str,
    n: int,
    seconds: float,
) -> None:
    """The report: data, paintings, what two minutes reach, scores in words, what to do next."""
    from ..data.show import chosen
    from ..provenance import to_pil
    from . import report
    from . import scores as told
    from .data import told_of

    indices = chosen(data, SHOWN, 0)
    real = [
        {"uri": report.picture(one), "caption": told_of(data, i)}
        for i, one in zip(indices.tolist(), to_pil((data.batch(indices).image + 1) / 2), strict=True)
    ]
    full: Recipe = run["full"]
    batch, before = run["batch"], first.system.about.trained or {}
    count = sum(first.system.parameters_by_network().values())
    usual = first.system.defaults()
    report.render(
        "demo.html.j2",
        page,
        data={
            "count": f"{len(data):,}",
            "words": words_of(data),
            "height": data.size[0],
            "width": data.size[1],
            "held_out": f"{len(held_out):,}",
            "pictures": real,
            "attribution": data.attribution,
            "licence_words": f"The pictures, and the weights made from them, are under {data.licence}."
            if data.licence
            else "",
        },
        shipped={
            "name": model,
            "title": first.system.title,
            "parameters": f"{count / 1e6:.1f} million",
            "steps": first.sampling.get("steps") or usual.steps[usual.sampler],
            "seconds": spent(first.seconds),
            "pictures": painted(first),
        },
        trained={
            "minutes": span(run["minutes"]),
            "steps": f"{run['steps']:,}",
            "batch": batch,
            "time": report.minutes(run["time"]),
            "pictures": painted(second),
            "share": ratio(before.get("steps", 0) * before.get("batch_size", 0), run["steps"] * batch),
            "folder": run["folder"],
            "recipe": run["recipe"],
            "unlabelled": " --set model.labels=false" if full.model.get("labels") else "",
            "more": max(2000, run["steps"] * 10),
            "thousand": report.minutes(run["time"] / run["steps"] * 1000),
        },
        charts=report.curves({"this run": Path(run["folder"])}),
        verdict=told.verdict(scores),
        table=told.table(scores),
        card=report.card_rows(next(iter(scores.values())).card),
        notes=list(dict.fromkeys(note for one in scores.values() for note in one.notes)),
        n=n,
        total=report.minutes(seconds),
        machine=f"{os.cpu_count()} processor cores ({platform.machine()})",
    )


def painted(painter: Painter) -> list[dict[str, str]]:
    from .. import provenance
    from . import report

    found = []
    for i, image in enumerate(painter.images):
        record = provenance.of(image) or {}
        found.append({"uri": report.picture(image), "caption": str(record.get("label_name") or f"picture {i}")})
    return found


def words_of(data: Dataset) -> str:
    if data.config.source == "openmoji":
        return f"{len(data):,} emoji, drawn by people of the OpenMoji project, with their official names."
    return f"{len(data):,} pictures of {data.config.source}."


def spent(seconds: float) -> str:
    return f"{seconds:.1f} seconds" if seconds >= 1 else f"{seconds * 1000:.0f} milliseconds"


def span(minutes: float) -> str:
    return f"{minutes:g} minutes" if minutes >= 1 else f"{minutes * 60:.0f} seconds"


def ratio(whole: int, part: int) -> str:
    return f"{whole / part:.0f}" if whole >= 2 * part else ""
