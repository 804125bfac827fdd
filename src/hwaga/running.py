"""Runs: training a recipe in a folder, going on with it, planning it; and measuring what a model paints.

run = hwaga.train("openmoji/ddpm", out="runs/first", overrides={"training.steps": 2000})
run = hwaga.resume("runs/first")
model = run.load()
scores = hwaga.evaluate(model, "openmoji")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .files import read_json
from .preparing import Prepared, choose, opened, planned
from .recipes import Recipe, differences, load_recipe
from .training import checkpoint as checkpoints
from .training.config import TrainingConfig
from .training.distributed import World, world
from .training.lock import locked
from .training.memory import Memory, available_memory, shown
from .training.progress import Progress
from .training.report import write_report
from .training.session import STATUS, Session, Weights

if TYPE_CHECKING:
    from .evaluation import Scores
    from .systems.base import System

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Run:
    """The folder that training a recipe leaves (DESIGN: `recipe.yaml`, `model/`, `checkpoints/`, `samples/`, ...)."""

    folder: Path

    def load(self, best: bool = False, **options: Any) -> System:
        """The trained model; with `best` the one of the lowest held-out score. Options are those of `hwaga.load`."""
        from .loading import load

        return load(self.folder / ("best" if best else "model"), **options)

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.folder / RECIPE)


# ------------------------------------------------------------------------------------------------------------- training


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    quiet: bool = False,
    progress: bool = True,
) -> Run:
    """Trains a recipe from its start in a new run folder.

    recipe: a shipped name, a YAML file, a mapping. data: another source than the recipe's. out: the run folder, new or
    without a run in it; None: a new one under `runs/`. overrides: {"training.steps": 10}. quiet: plain lines instead of
    a bar. progress: False says nothing at all.

    InputError (nothing is written) for a recipe, data or folder that cannot be used, and for what would not fit in
    memory; WorkError for non-finite numbers or a full disk; Interrupted after Ctrl-C or SIGTERM, with a checkpoint to
    go on from.
    """
    full = _absolute(load_recipe(recipe, _with_data(overrides, data)))
    with world(full.training.timeout, full.training.device) as processes:
        folder = Path(processes.from_main(str(_new_folder(out, recipe, full))))
        with Progress(plain=quiet, silent=not (progress and processes.main)) as shown_progress:
            with _prepared(full, shown_progress) as prepared:
                session = _session(folder, full, prepared, processes, shown_progress)
                folder.mkdir(parents=True, exist_ok=True)
                with _held(folder, processes):
                    if processes.main:
                        _is_no_run(folder)
                        full.save(folder / RECIPE)
                    session.run()
    return Run(folder)


def resume(
    folder: str | Path, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False, progress: bool = True
) -> Run:
    """Goes on with a run from its newest whole checkpoint, or from its start if it has none.

    overrides: what may change is how long, and how often something is written or measured (`training.steps` makes a
    finished run longer). InputError, with the difference, for anything else. A finished run is returned at once.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        raise InputError(f"{folder} is no run: it has no {RECIPE}; start one with: hwaga train RECIPE --out {folder}")
    old = load_recipe(folder / RECIPE)
    full = load_recipe(old, overrides)
    if changes := differences(old, full):
        raise InputError(
            f"{folder} cannot go on with another recipe: {'; '.join(changes[:5])}; a resume may change training.steps "
            "and how often something is written or measured, the rest needs a new run"
        )
    if _finished(folder, full) and full == old:
        return Run(folder)
    with world(full.training.timeout, full.training.device) as processes:
        with (
            Progress(plain=quiet, silent=not (progress and processes.main)) as shown_progress,
            _held(folder, processes),
        ):
            with _prepared(full, shown_progress) as prepared:
                session = _session(folder, full, prepared, processes, shown_progress)
                _not_shorter(folder, session)
                if processes.main and full != old:
                    full.save(folder / RECIPE)
                session.run()
    return Run(folder)


@contextmanager
def _prepared(recipe: Recipe, progress: Progress) -> Iterator[Prepared]:
    """Data, system and device of a recipe. What there is to tell of them is told once all is found to be good: a refusal
    is one sentence and nothing beside it."""
    said: list[str] = []
    with choose(recipe, said.append) as chosen:
        prepared = opened(recipe, chosen, said.append, progress.doing)
        for line in said:
            progress.say(line)
        yield prepared


def _session(folder: Path, recipe: Recipe, prepared: Prepared, processes: World, progress: Progress) -> Session:
    from .saving import save

    system = prepared.system

    def keep(place: Path, weights: Weights, step: int) -> None:
        pictures = {"steps": step, "batch_size": recipe.training.batch_size}
        system.about.trained = {**pictures, "recipe": recipe.fingerprint()}
        save(system, place, weights, replace=True, base=False)

    def report() -> None:
        write_report(folder, f"{system.title}: {folder.name}", prepared.facts(), recipe.to_yaml(), prepared.notes())

    return Session(
        folder=folder, stages=system.stages(), config=_training(recipe), data=prepared.pictures, order=prepared.order, save=keep,
        held_out=prepared.held_out, preview=system.preview if system.paints else None,
        score=_score(recipe, prepared), report=report,
        about={"recipe": recipe.fingerprint(), "data": prepared.pictures.fingerprint, **prepared.machine()},
        device=prepared.chosen.device, dtype=prepared.chosen.dtype, world=processes, progress=progress,
    )  # fmt: skip


def _score(recipe: Recipe, prepared: Prepared) -> Callable[[], Mapping[str, float]] | None:
    """What `training.evaluate_every` measures: the model as it stands against held-out pictures."""
    if not _training(recipe).evaluate_every:
        return None
    wanted = recipe.evaluation

    def score() -> Mapping[str, float]:
        values = evaluate(
            prepared.system, prepared.reference(wanted.split), split=wanted.split, n=wanted.n, seed=wanted.seed,
            metrics=wanted.metrics, features=wanted.features, sampling=_sampling(recipe), training=prepared.data,
        ).values  # fmt: skip
        return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}

    return score


def _training(recipe: Recipe) -> TrainingConfig:
    """`training:`, with `evaluation.every` in the place of its `evaluate_every` where it is given."""
    every = recipe.evaluation.every
    return recipe.training if every is None else recipe.training.model_copy(update={"evaluate_every": every})


def _sampling(recipe: Recipe) -> dict[str, Any]:
    values = recipe.evaluation.model_dump(include={"sampler", "steps", "guidance_scale"})
    return {name: value for name, value in values.items() if value is not None}


def _with_data(overrides: Mapping[str, Any] | None, data: str | Path | None) -> dict[str, Any]:
    return {**(overrides or {}), **({"data.source": str(data)} if data is not None else {})}


def _absolute(recipe: Recipe) -> Recipe:
    """Local paths in full, so that the run goes on from any folder."""

    def full(source: str) -> str:
        path = Path(source).expanduser()
        return str(path.resolve()) if path.exists() and not re.fullmatch(r"[\w-]+", source) else source

    changed: dict[str, Any] = {f"components.{name}": full(source) for name, source in recipe.components.items()}
    changed["data.source"] = full(recipe.data.source)
    if recipe.training.start_from is not None:
        changed["training.start_from"] = full(recipe.training.start_from)
    values = recipe.model_dump(mode="json")
    if recipe.data.prior is not None:
        values["data"]["prior"]["source"] = full(recipe.data.prior.source)
    for key, value in changed.items():
        section, name = key.split(".", 1)
        values[section][name] = value
    return load_recipe(values)


def _new_folder(out: str | Path | None, source: Any, recipe: Recipe) -> Path:
    if out is not None:
        folder = Path(out).expanduser()
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder for the run")
        _is_no_run(folder)
        return folder
    name = Path(str(source)).stem if isinstance(source, (str, Path)) else recipe.system
    number = 1
    while (folder := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def _is_no_run(folder: Path) -> None:
    if (folder / RECIPE).exists():
        raise InputError(
            f"{folder} holds another run; name a new folder, or go on with it: hwaga train --resume {folder}"
        )


@contextmanager
def _held(folder: Path, processes: World) -> Iterator[None]:
    with locked(folder) if processes.main else nullcontext():
        yield


def _finished(folder: Path, recipe: Recipe) -> bool:
    """Whether a run has come to the end that its recipe asks for."""
    if not ((folder / STATUS).is_file() and (folder / "model" / "model.json").is_file()):
        return False
    try:
        status = read_json(folder / STATUS)
    except InputError:  # a status is a courtesy; the checkpoints decide
        return False
    newest = (checkpoints.steps(folder / "checkpoints") or [0])[-1]
    return status.get("state") == "finished" and status.get("steps") == newest


def _not_shorter(folder: Path, session: Session) -> None:
    done = (checkpoints.steps(folder / "checkpoints") or [0])[-1]
    if session.total < done:
        raise InputError(
            f"training.steps: {session.total} asked for, but {folder} has done {done}; name at least that many"
        )


# ------------------------------------------------------------------------------------------------------------- planning


@dataclass(frozen=True)
class StagePlan:
    """What a stage of a plan takes."""

    name: str
    steps: int
    memory: Memory
    largest_batch: int  # the most pictures a step (or a part, where gradients are accumulated) that fit
    seconds: float | None  # a step, measured on a few pictures; None if it was not


@dataclass(frozen=True)
class Plan:
    """What training a recipe would take and leave: `hwaga train --dry-run`."""

    recipe: Recipe
    parameters: Mapping[str, int]
    stages: tuple[StagePlan, ...]
    available: int  # bytes free on the device
    device: str
    dtype: str
    data: tuple[str, ...]  # lines about the data
    writes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return all(stage.memory.total - stage.memory.process <= self.available for stage in self.stages)

    def text(self) -> str:
        """The plan in lines."""
        lines = [f"system      {self.recipe.system} on {self.device}, {self.dtype}", *self.data]
        lines += [f"parameters  {name}: {count:,}" for name, count in self.parameters.items()]
        for stage in self.stages:
            memory = stage.memory
            lines += [
                f"stage       {stage.name}: {stage.steps:,} steps of "
                f"{self.recipe.training.for_stage(stage.name).batch_size} "
                "pictures" + (f", about {_duration(stage.seconds * stage.steps)}" if stage.seconds else ""),
                f"  memory    {shown(memory.total)}: parameters {shown(memory.parameters)}, gradients "
                f"{shown(memory.gradients)}, optimizer {shown(memory.optimizer)}, averages {shown(memory.averages)}, "
                f"activations {shown(memory.activations)}, allocator {shown(memory.allocator)}, process "
                f"{shown(memory.process)}",
                f"  fits      batches of up to {stage.largest_batch} pictures in the {shown(self.available)} that "
                f"are free",
            ]
        if not self.fits:
            lines.append("this does not fit in memory: training would be refused")
        return "\n".join([*lines, f"writes      {', '.join(self.writes)}"])


def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    timed: bool = True,
) -> Plan:
    """What `train` with the same arguments would take: parameters, memory, time, what is written. Nothing is written.

    timed: a step on a few pictures is measured where it fits in memory. Errors as in `train`, but that what does not
    fit is told in the plan.
    """
    full = load_recipe(recipe, _with_data(overrides, data))
    folder = _new_folder(out, recipe, full)
    with choose(full, lambda line: None) as chosen:
        found = planned(full, chosen, timed)
    stages = tuple(StagePlan(*values) for values in found.stages)
    writes = f"{RECIPE} checkpoints/ model/ best/ samples/ metrics.jsonl report.html {STATUS}".split()
    return Plan(
        full, found.parameters, stages, available_memory(chosen.device), str(chosen.device),
        str(chosen.dtype).split(".")[1], found.data, tuple(str(folder / name) for name in writes),
    )  # fmt: skip


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


# ------------------------------------------------------------------------------------------------------------ measuring


def evaluate(
    samples: Any,
    reference: Any,
    split: str = "held-out",
    n: int | None = None,
    seed: int = 0,
    metrics: tuple[str, ...] = ("fid", "kid", "prdc"),
    features: Any = None,
    *,
    clip: Any = None,
    sampling: Mapping[str, Any] | None = None,
    training: Any = None,
    progress: Any = None,
) -> Scores:
    """Measures pictures against real ones, with the card that says how.

    samples: a System, whatever `load` takes (a run, a model, a shipped name), a folder of PNGs, or a tensor (n, 3, h,
    w) in [0, 1]; a model paints n pictures (500 if None) from `seed`, with `sampling` as keywords of `sample`.
    reference: a source of data ("openmoji", a folder), a DataConfig or a Dataset; `split` is the part of it that is
    compared with. training: the Dataset that memorisation is measured against; None: the train split of the reference.
    clip: who judges `retrieval` and `clip_score` of a model that takes prompts, which is then asked for what captions of the
    training pictures say: a shipped name, a folder that transformers loads; None: openmoji/clip-judge.
    """
    from .measuring import measure

    return measure(
        samples, reference, split, n, seed, tuple(metrics), features, sampling or {}, training, progress, clip
    )
