"""`hwaga compare`: models, runs and folders of pictures side by side, in one HTML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from . import options
from .progress import Progress

if TYPE_CHECKING:
    from ..evaluation import Scores
    from ..systems.base import System


@dataclass
class Entry:
    """One of the things that are compared."""

    name: str
    source: str
    run: Path | None = None  # its folder, where it is a run
    system: System | None = None
    files: list[Path] = field(default_factory=list)  # of a folder of pictures
    facts: dict[str, str] = field(default_factory=dict)
    pictures: list[dict[str, str]] = field(default_factory=list)
    scores: Scores | None = None


def compare(
    sources: Annotated[list[str], typer.Argument(metavar="RUN_OR_MODEL_OR_FOLDER…", help="Two or more, or one.")],
    out: Annotated[Path, typer.Option(metavar="REPORT.html", help="The file that is written.")] = Path("report.html"),
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="What is compared with; the models' own data if left out.")
    ] = None,
    split: Annotated[str, typer.Option(help="The part of it: held-out, combinations, train, all.")] = "held-out",
    n: Annotated[int, typer.Option("--n", "-n", min=2, help="Pictures that each model is measured by.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="The seed that all paint from.")] = 0,
    metrics: Annotated[str, typer.Option(help="Names, with commas between.")] = "fid,kid,prdc",
    features: Annotated[str | None, typer.Option(metavar="PATH", help="Another judge, for pictures not emoji.")] = None,
    sampler: Annotated[str | None, typer.Option(help="For all models.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="For all models.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="For all models.")] = None,
    pictures: Annotated[int, typer.Option(min=1, max=64, help="Pictures of each that are shown.")] = 8,
    scores: Annotated[bool, typer.Option("--scores/--no-scores", help="Leave the measuring out.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a bar.")] = False,
) -> None:
    """Set runs, models and folders side by side: scores, pictures by the same seeds, curves, cards."""
    options.new_file("--out", out, ".html")
    wanted = options.metrics(metrics)
    entries = [opened(source, device, dtype) for source in sources]
    for entry, name in zip(entries, distinct([entry.source for entry in entries]), strict=True):
        entry.name = name
    asked = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale}
    sampling = {key: value for key, value in asked.items() if value is not None}
    warnings = []
    if scores:
        known = dict.fromkeys(source for entry in entries if (source := trained_on(entry)))
        if data is None and not known:
            raise InputError("nothing here says what to compare with; name it: --data SOURCE, or leave it: --no-scores")
        if data is None and len(known) > 1:
            warnings.append(
                f"Different data were trained on ({', '.join(known)}); all are measured against {next(iter(known))}."
            )
        reference = data or next(iter(known))
        folders_first = sorted(entries, key=lambda one: one.system is not None)  # what a folder lacks shows at once
        for entry in folders_first:
            entry.scores = scores_of(entry, reference, split, n, seed, wanted, features, sampling, quiet)
    for entry in entries:
        entry.pictures = shown(entry, pictures, seed, sampling)
    write(entries, out, warnings, pictures, seed)
    print(out)


def opened(source: str, device: str = "auto", dtype: str = "auto") -> Entry:
    """A run, a model or a folder of pictures; InputError for what is none of them."""
    path = Path(source).expanduser()
    marks = ("recipe.yaml", "model.json", "model_index.json", "config.json")
    if path.is_dir() and not any((path / mark).exists() for mark in marks):
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        if not files:
            raise InputError(f"{source} is neither a run nor a model, and holds no pictures")
        return Entry(source, source, files=files, facts={"kind": "folder of pictures", "pictures": f"{len(files):,}"})
    from ..loading import load

    system = load(source, device=device, dtype=dtype)
    count = sum(system.parameters_by_network().values())
    facts = {"kind": "model", "system": f"{system.title} ({system.year})", "parameters": f"{count:,}"}
    run = path if (path / "recipe.yaml").is_file() else None
    if run is not None:
        facts |= {"kind": "run"} | trained_how(run)
    height, width = system.about.size
    facts |= {
        "size": f"{height} × {width}",
        "trained on": system.about.data or "–",
        "weights": (system.about.sha256 or "–")[:12],
    }
    return Entry(source, source, run, system, facts=facts)


def trained_how(run: Path) -> dict[str, str]:
    """What the metrics of a run tell of its training."""
    from ..training.metrics import read_rows

    steps = [row["step"] for row in read_rows(run / "metrics.jsonl") if isinstance(row.get("step"), int)]
    return {"steps trained": f"{max(steps):,}"} if steps else {}


def trained_on(entry: Entry) -> str | None:
    return entry.system.about.data if entry.system is not None else None


def distinct(sources: list[str]) -> list[str]:
    """Short names that differ: the last part of a path, with as many before it as are needed."""
    parts = [source.rstrip("/").split("/") for source in sources]
    names = []
    for i, own in enumerate(parts):
        keep = 1
        while keep < len(own) and any(own[-keep:] == p[-keep:] for j, p in enumerate(parts) if j != i):
            keep += 1
        name = "/".join(own[-keep:])
        names.append(name if name not in names else f"{name} ({i + 1})")
    return names


def scores_of(
    entry: Entry,
    reference: Any,
    split: str,
    n: int,
    seed: int,
    metrics: tuple[str, ...],
    features: str | None,
    sampling: dict[str, Any],
    quiet: bool,
) -> Scores:
    """The scores of an entry; folders are measured by the pictures that they have."""
    from .scores import measured

    with Progress(f"measuring {entry.name}", quiet) as bar:
        return measured(
            entry.system if entry.system is not None else entry.source,
            reference,
            split=split,
            n=n if entry.system is not None else None,
            seed=seed,
            metrics=metrics,
            features=features,
            sampling=sampling if entry.system is not None else None,
            progress=bar.update,
        )


def shown(entry: Entry, count: int, seed: int, sampling: dict[str, Any]) -> list[dict[str, str]]:
    """The first pictures of an entry, with captions: painted from the seed, or the first files of the folder."""
    from PIL import Image as pil

    from . import report

    if entry.system is not None:
        painted = entry.system.sample(n=count, seed=seed, progress=False, **{**entry.system.blank(), **sampling})
        return [{"uri": report.picture(one), "caption": f"seed {seed}, picture {i}"} for i, one in enumerate(painted)]
    found = []
    for file in entry.files:
        try:
            with pil.open(file) as one:
                one.thumbnail((512, 512))
                found.append({"uri": report.picture(one), "caption": file.name})
        except (OSError, ValueError, SyntaxError, pil.DecompressionBombError):
            continue  # the measuring names what cannot be read
        if len(found) == count:
            break
    return found


def write(entries: list[Entry], out: Path, warnings: list[str], columns: int, seed: int) -> None:
    """The report."""
    from . import report, scores

    columns_of_facts = list(dict.fromkeys(key for entry in entries for key in entry.facts))
    with_scores = {entry.name: entry.scores for entry in entries if entry.scores is not None}
    cards = {name: one.card for name, one in with_scores.items()}
    models = [entry for entry in entries if entry.system is not None]
    words = (
        f"Each model painted from seed {seed}: those that stand in one column come from the same noise."
        if models
        else ""
    )
    if len(models) < len(entries):
        words += " Of folders, the first files are shown."
    report.render(
        "compare.html.j2",
        out,
        entries=entries,
        lead=f"{len(entries)} side by side, measured alike." if with_scores else f"{len(entries)} side by side.",
        warnings=warnings + list(dict.fromkeys(note for one in with_scores.values() for note in one.notes)),
        differences=report.differing(cards) if len(cards) > 1 else [],
        fact_columns=columns_of_facts,
        table=scores.table(with_scores),
        reading=scores.READING,
        ratios=scores.ratios(with_scores),
        picture_words=words.strip(),
        columns=columns,
        charts=report.curves({entry.name: entry.run for entry in entries if entry.run is not None}),
        cards=[(name, report.card_rows(card)) for name, card in cards.items()],
        closing="; ".join(
            dict.fromkeys(e.system.about.attribution for e in models if e.system and e.system.about.attribution)
        ),
    )
