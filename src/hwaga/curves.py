"""Score against network evaluations: what `hwaga curve` measures, keeps and compares.

A row is one model, one sampler, one number of steps: its score with interval and card, the evaluations a picture that were counted
while painting, and the features that the score was made of, so that rows can be compared in pairs afterwards. Each row is two
files of its own, written whole: a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, unknown
from .evaluation.intervals import Interval
from .evaluation.protocol import Scores, compare
from .files import read_json, write_json, write_tensors
from .measuring import measure
from .samplers import SAMPLERS

if TYPE_CHECKING:
    from .systems.base import System

RESAMPLES = 200  # for the interval of a ratio
SCORE = "fid_over_floor"


@dataclass(frozen=True)
class Asked:
    """What all rows of a curve have in common."""

    data: str
    split: str = "held-out"
    n: int = 500
    seed: int = 0
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Walk:
    """One point of a curve before it is measured."""

    model: str  # a short name
    system: System
    sampler: str
    steps: int


@dataclass(frozen=True)
class Row:
    """One point of a curve."""

    model: str
    sampler: str
    steps: int
    evaluations: float  # of the network, a picture: guidance in one batch counts twice
    scores: Scores

    @property
    def score(self) -> float:
        """Frechet distance over floor; over nothing where there is no floor."""
        values = self.scores.values
        return values.get(SCORE, values["fid"])

    @property
    def ends(self) -> tuple[float, float]:
        ends = self.scores.intervals
        return ends.get(SCORE, ends.get("fid", (self.score, self.score)))


def walks(models: Mapping[str, System], samplers: Sequence[str] | None, evaluations: Sequence[int]) -> list[Walk]:
    """What is to be measured: each sampler that a model can use (of `samplers`, or all), with as many steps as each number of
    evaluations allows. InputError for a sampler that no model has."""
    found, known = [], dict.fromkeys(name for system in models.values() for name in system.samplers())
    for name in samplers or ():
        if name not in known:
            raise unknown("sampler", name, known)
    for model, system in models.items():
        if not system.samplers():
            raise InputError(f"{model}: {system.title} paints in one go, so there are no steps to count")
        for sampler in samplers or usual(system):
            if sampler not in system.samplers():
                continue
            table = getattr(system.config.process, "timesteps", None)  # type: ignore[attr-defined]
            counts = dict.fromkeys(steps_for(sampler, budget) for budget in evaluations)
            found += [Walk(model, system, sampler, s) for s in counts if s and (table is None or s <= table)]
    return found


def usual(system: System) -> list[str]:
    """The samplers that are compared where none are named: of a student its own, of others all but a student's."""
    if getattr(system.config, "student", None) is not None:  # type: ignore[attr-defined]
        return [system.defaults().sampler]
    return [name for name in system.samplers() if SAMPLERS[name].rule != "student"]


def steps_for(sampler: str, budget: int) -> int:
    """How many steps a sampler takes with so many evaluations; 0 if it needs more for one. The last step of a method of several
    stages ends at the data, where there is no slope to ask for: it has one evaluation."""
    one = SAMPLERS[sampler]
    if one.stochastic == "yes":
        return (budget - one.extra_evaluations) // one.evaluations
    return (budget - one.extra_evaluations - 1) // one.evaluations + 1


# -------------------------------------------------------------------------------------------------------------- measuring


def measured(walk: Walk, asked: Asked, folder: Path, progress: Callable[[int, int, str], None] | None = None) -> Row:
    """The row of a walk: from the folder if it is there, else measured and written into it."""
    place = folder / "rows" / f"{key(walk, asked)}.json"
    if place.is_file() and place.with_suffix(".safetensors").is_file():
        return read(place)
    sampling: dict[str, Any] = {"sampler": walk.sampler, "steps": walk.steps}
    if asked.guidance_scale is not None:
        sampling["guidance_scale"] = asked.guidance_scale
    with counted(walk.system) as count:
        scores = measure(
            walk.system, asked.data, asked.split, asked.n, asked.seed, ("fid",), None, sampling, None, progress
        )  # fmt: skip
    row = Row(walk.model, walk.sampler, walk.steps, count[0] / asked.n, scores)
    write(row, place)
    return row


def key(walk: Walk, asked: Asked) -> str:
    """A file's name, of all that a row depends on."""
    told = {"weights": walk.system.about.sha256, "model": walk.model, **vars(asked)}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    name = "".join(c if c.isalnum() else "-" for c in walk.model)
    return f"{name}--{walk.sampler}--{walk.steps}--{digest}"


@contextmanager
def counted(system: System) -> Iterator[list[int]]:
    """Counts the pictures that go through the network inside."""
    count = [0]

    def see(module: Any, given: Any) -> None:
        count[0] += len(given[0])

    handle = system.networks["network"].register_forward_pre_hook(see)
    try:
        yield count
    finally:
        handle.remove()


def write(row: Row, place: Path) -> None:
    """The features first: a row that has its JSON is whole."""
    import torch

    assert row.scores._witness is not None
    mine, reference, clusters = row.scores._witness
    place.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"samples": torch.from_numpy(mine), "reference": torch.from_numpy(reference)}
    if clusters is not None:
        tensors["clusters"] = torch.from_numpy(np.asarray(clusters))
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    write_tensors(place.with_suffix(".safetensors"), tensors)
    told = {"model": row.model, "sampler": row.sampler, "steps": row.steps, "evaluations": row.evaluations}
    write_json(place, {**told, **row.scores.to_json()})


def read(place: Path) -> Row:
    """A row as it was written."""
    from safetensors.numpy import load_file

    told = read_json(place)
    tensors = load_file(place.with_suffix(".safetensors"))
    scores = Scores.read(place)
    witness = tensors["samples"].astype(np.float64), tensors["reference"].astype(np.float64), tensors.get("clusters")
    scores._witness = witness
    return Row(told["model"], told["sampler"], told["steps"], told["evaluations"], scores)


def kept(folder: Path, like: Row | None) -> list[Row]:
    """All rows of a folder that were measured as `like` was (number, seed, reference, features), in a steady order."""
    found = [
        read(place) for place in sorted((folder / "rows").glob("*.json")) if place.with_suffix(".safetensors").is_file()
    ]
    if like is not None:
        same = ("n", "seed", "features", "reference")
        found = [row for row in found if all(row.scores.card.get(k) == like.scores.card.get(k) for k in same)]
    return sorted(found, key=lambda row: (row.model, row.sampler, row.evaluations))


# -------------------------------------------------------------------------------------------------------------- comparing


def over(row: Row, best: Row, resamples: int = RESAMPLES) -> Interval:
    """The score of a row over that of another one, in pairs from the same seeds."""
    if row is best:
        return Interval(1.0, 1.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sampler and steps differ: that is what is compared
        return compare(row.scores, best.scores, resamples=resamples)


def table(rows: Sequence[Row], resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """Of each row: model, sampler, steps, evaluations, score, its interval, and both over the best of its model and of all."""
    whole = min(rows, key=lambda row: row.score)
    bests = {
        model: min((r for r in rows if r.model == model), key=lambda row: row.score)
        for model in {r.model for r in rows}
    }
    found = []
    for row in rows:
        own = over(row, bests[row.model], resamples)
        among_all = own if bests[row.model] is whole else over(row, whole, resamples)
        found.append({
            "model": row.model, "sampler": row.sampler, "steps": row.steps, "evaluations": row.evaluations,
            "score": row.score, "interval": list(row.ends), "over_best_of_model": list(own),
            "over_best_of_all": list(among_all), "seconds_a_picture": row.scores.values.get("seconds_a_picture"),
        })  # fmt: skip
    return found


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    lines = [
        "| model | sampler | steps | evaluations | score (95 %) | over the best of the model | over the best of all |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        score = f"{row['score']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})"
        ratios = (
            f"{v:.2f} ({low:.2f} to {high:.2f})"
            for v, low, high in (row["over_best_of_model"], row["over_best_of_all"])
        )
        lines.append(
            f"| {row['model']} | {row['sampler']} | {row['steps']} | {row['evaluations']:g} | {score} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], file: Path) -> None:
    """Score against evaluations, both on logarithmic axes: a line a model and sampler, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    models = list(dict.fromkeys(row.model for row in rows))
    names = list(dict.fromkeys(row.sampler for row in rows))
    colours, dashes = plt.get_cmap("tab20"), ("-", "--", ":", "-.")
    figure, axis = plt.subplots(figsize=(8, 5))
    for i, model in enumerate(models):
        for j, name in enumerate(names):
            own = [row for row in rows if row.model == model and row.sampler == name]
            if not own:
                continue
            x, y = [row.evaluations for row in own], [row.score for row in own]
            reach = [[max(0.0, r.score - r.ends[0]) for r in own], [max(0.0, r.ends[1] - r.score) for r in own]]
            label = name if len(models) == 1 else f"{model}: {name}"
            axis.errorbar(
                x, y, reach, label=label, color=colours(j % 20), ls=dashes[i % 4], marker="o", ms=3, lw=1.2, elinewidth=0.5
            )  # fmt: skip
    best = min(row.score for row in rows)
    axis.axhline(1.1 * best, color="#bdc3c7", lw=0.8, zorder=0)
    side = axis.get_yaxis_transform()
    axis.text(0.005, 1.1 * best, "1.1 x the best", fontsize=7, color="#7f8c8d", va="bottom", transform=side)
    axis.set(
        xscale="log", yscale="log", xlabel="network evaluations a picture", ylabel="distance over floor (1 is real)"
    )
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(ScalarFormatter())
    axis.set_xticks(sorted({round(row.evaluations) for row in rows}))
    low, high = axis.get_ylim()
    axis.set_yticks([m * 10.0**e for e in range(-3, 5) for m in (1, 1.5, 2, 3, 5, 7) if low <= m * 10.0**e <= high])
    axis.minorticks_off()
    axis.grid(alpha=0.2)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)
