"""A run: the stages of a system trained in order in one folder, and all that hangs on the loop.

    after each step      the bar; every `log_every` a row of metrics, and the alarms are asked
    then, when due       a checkpoint (and `model/` with it); held-out losses; scores; `best/`; a sample grid; the
    report at a signal          a checkpoint, and `Interrupted`

What comes after a checkpoint is done once for its step: a run that was killed in between does what is missing when it
resumes. None of it changes a weight, a moment or a draw of training.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import HwagaError, InputError, Interrupted, WorkError
from ..files import write_json
from ..interfaces import Stage
from . import checkpoint as checkpoints
from .config import TrainingConfig
from .distributed import World, whole
from .grid import write_grid
from .loop import Order, Pictures, Trainer, check, on
from .metrics import ALARMS, GAME_ALARMS, Metrics
from .progress import Progress
from .signals import Stop, stoppable
from .watching import held_out

Weights = dict[str, dict[str, Tensor]]
STATUS = "status.json"


@dataclass
class Session:
    """What a run needs; `run()` trains it to its end. Everything of a system is handed in."""

    folder: Path
    stages: Sequence[Stage]
    config: TrainingConfig
    data: Pictures
    order: Callable[[int, int, int], Order]  # (pictures, batch size, seed)
    save: Callable[[Path, Weights, int], None]  # writes a model folder with these weights of this step of the run
    held_out: Pictures | None = None
    preview: Callable[[int, int], Tensor] | None = None  # (n, seed) -> (n, 3, h, w) in [0, 1]
    score: Callable[[], Mapping[str, float]] | None = None  # measures the model as it stands; the first value leads
    report: Callable[[], None] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)  # goes into each checkpoint: fingerprints, versions
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    world: World = field(default_factory=World)
    progress: Progress = field(default_factory=lambda: Progress(silent=True))
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.configs = {stage.name: self.config.for_stage(stage.name) for stage in self.stages}
        for stage in self.stages:
            check(stage, self.configs[stage.name], self.world)
        if self.config.tensorboard and find_spec("tensorboard") is None:
            raise InputError(
                "training.tensorboard=true needs the tensorboard package: pip install 'hwaga[tensorboard]'"
            )
        self.total = sum(config.steps for config in self.configs.values())
        self.root = self.folder / "checkpoints"
        self.finished: dict[str, nn.Module] = {}  # networks of the stages that are done, with their model's weights
        self.before = 0  # steps of the stages that are done
        self.metrics: Metrics | None = None
        self.board: Any = None

    # ------------------------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """Trains from the newest whole checkpoint, or from the start, to the end.

        Interrupted after a signal (a checkpoint was made), WorkError for non-finite numbers or a full disk: the last
        checkpoint is then intact.
        """
        try:
            with stoppable(self.stop), self.progress:
                self._run()
        except BaseException as error:
            ended = isinstance(error, (Interrupted, KeyboardInterrupt))
            self._status("interrupted" if ended else "failed", str(error))
            raise
        finally:
            if self.metrics is not None:
                self.metrics.close()
            if self.board is not None:
                self.board.close()

    def _run(self) -> None:
        start = self._start()
        self.metrics = Metrics(self.folder / "metrics.jsonl", start.step if start else 0) if self.world.main else None
        if self.config.tensorboard and self.world.main:
            self.board = _board(self.folder / "tensorboard", start.step if start else 0)
        self._status("training")
        for stage in self.stages:
            for network in stage.networks.values():
                network.to(self.device)
        reached = start is None
        for stage in self.stages:
            config = self.configs[stage.name]
            if not reached and start is not None and start.stage != stage.name:  # done: its weights come with the next
                self.finished |= stage.networks
                self.before += config.steps
                continue
            order = self.order(len(self.data), config.batch_size, config.seed)
            trainer = Trainer(stage, config, self.data, order, device=self.device, dtype=self.dtype, world=self.world)
            if not reached and start is not None:
                checkpoints.load(start, trainer, self._others(stage))
                reached = True
                self._ring(trainer, silent=True)
                self._after(trainer)
            self._train(trainer)
            trainer.ema.adopt()
            self._put(trainer, self._measures(trainer))
            self.finished |= stage.networks
            self.before += config.steps
        self._finish()

    def _train(self, trainer: Trainer) -> None:
        config, name = trainer.config, trainer.stage.name
        self.progress.stage(name, trainer.done, config.steps)
        losses: dict[str, float] = {}
        while trainer.done < config.steps:
            trainer.step()
            last = trainer.done == config.steps
            if last or trainer.done % config.log_every == 0:
                losses = self._log(trainer)
            self.progress.step(trainer.done, config.steps, config.batch_size, losses)
            stop = self.world.any(self.stop.asked, trainer.done)
            if last or stop or trainer.done % config.checkpoint_every == 0:
                self._checkpoint(trainer)
            if stop and not (last and self.before + config.steps == self.total):
                raise Interrupted(
                    f"interrupted after step {self.step(trainer)} of {self.total}; go on with: "
                    f"hwaga train --resume {self.folder}"
                )
            self._after(trainer)

    def step(self, trainer: Trainer) -> int:
        """Finished steps of the run, over all stages."""
        return self.before + trainer.done

    # ------------------------------------------------------------------------------------------- what hangs on the loop

    def _start(self) -> checkpoints.Checkpoint | None:
        """The checkpoint to go on from: the same in every process."""
        found = None
        if self.world.main:
            checkpoints.clear_parts(self.root)
            checkpoints.clear_parts(self.folder)
            found = checkpoints.latest(self.root, self.progress.say)
        folder = self.world.from_main(str(found.folder) if found else None)
        if folder is None:
            return None
        found = found or checkpoints.read(Path(folder))
        for key in ("recipe", "data"):
            if found.state.get(key) != self.about.get(key):
                raise InputError(
                    f"{found.folder} was made with another {key} than this run's now is ({found.state.get(key)}, now "
                    f"{self.about.get(key)}); put the {key} back as it was, or start a new run"
                )
        names = [stage.name for stage in self.stages]
        if found.stage not in names:
            raise InputError(f"{found.folder} belongs to a stage {found.stage!r}; this recipe has {', '.join(names)}")
        if self.about.get("threads") != found.state.get("threads"):
            self.progress.say(
                f"checkpoint made with {found.state.get('threads')} threads, now {self.about.get('threads')}: "
                "the result will agree to rounding, not to the bit"
            )
        self.progress.say(f"going on from step {found.step} of {self.total}")
        return found

    def _others(self, stage: Stage) -> dict[str, nn.Module]:
        """Networks of finished stages that the stage does not train further."""
        return {name: network for name, network in self.finished.items() if name not in stage.networks}

    def _log(self, trainer: Trainer) -> dict[str, float]:
        values = trainer.metrics()
        if self.metrics is None:
            return values
        speed = {"pictures_a_second": round(self.progress.pictures_a_second, 3)}
        self._row(trainer, {**values, **speed})
        self._ring(trainer)
        return {k: v for k, v in values.items() if k.endswith(".loss")}

    def _row(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        assert self.metrics is not None
        step = self.step(trainer)
        self.metrics.write({"step": step, "stage": trainer.stage.name, **values})
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{trainer.stage.name}/{name}", value, step)

    def _ring(self, trainer: Trainer, silent: bool = False) -> None:
        if self.metrics is not None:
            alarms = [*(GAME_ALARMS if trainer.stage.game else ALARMS), *trainer.stage.alarms]
            for says in self.metrics.ring(self.step(trainer), trainer.stage.name, alarms, silent):
                self.progress.say(f"alarm: {says}")

    def _checkpoint(self, trainer: Trainer) -> None:
        with self.progress.doing("saving"):
            if self.metrics is not None:
                self.metrics.sync()
            place = {"place": trainer.done * trainer.config.batch_size, "pictures": len(self.data)}
            checkpoints.save(
                self.root, self.step(trainer), trainer, self._others(trainer.stage),
                {**self.about, "data_order": place}, self.config.keep_checkpoints,
            )  # fmt: skip
            self._save_model(trainer, self.folder / "model")
            self._status("training")

    def _save_model(self, trainer: Trainer, folder: Path) -> None:
        if not (self.world.main or trainer.sharded):
            return
        raw = {name: network.state_dict() for name, network in trainer.stage.networks.items()}
        weights = {n: {k: whole(t) for k, t in w.items()} for n, w in {**raw, **trainer.ema.weights()}.items()}
        for name, buffers in self._measures(trainer).items():
            weights[name] |= buffers
        if self.world.main:
            self.save(folder, weights, self.step(trainer))

    def _measures(self, trainer: Trainer) -> Mapping[str, Mapping[str, Tensor]]:
        """What the stage measures of its model over the training pictures."""
        if trainer.stage.measures is None:
            return {}
        size = max(1, trainer.config.batch_size // trainer.config.accumulation)
        starts = range(0, len(self.data), size)
        pictures = (np.arange(start, min(start + size, len(self.data))) for start in starts)
        with trainer.showing():
            return trainer.stage.measures(on(self.data.batch(some, None), trainer.device) for some in pictures)

    @staticmethod
    @torch.no_grad()
    def _put(trainer: Trainer, measured: Mapping[str, Mapping[str, Tensor]]) -> None:
        for network, buffers in measured.items():
            own = dict(trainer.stage.networks[network].named_buffers())
            for name, value in buffers.items():
                own[name].copy_(value)

    def _after(self, trainer: Trainer) -> None:
        """Held-out losses, scores, `best/`, a grid and the report, where they are due and not there yet."""
        if not trainer.done or not (self.world.main or trainer.sharded):
            return
        config, step = trainer.config, self.step(trainer)
        last = trainer.done == config.steps
        picture = self.folder / "samples" / f"step-{step}.png"
        todo = None
        if self.metrics is not None:
            there = {key for row in self.metrics.rows[-200:] if row["step"] == step for key in row}
            final = last and step == self.total
            todo = {
                "held_out": self.held_out is not None and _due(config.every("held_out"), trainer.done, last)
                and not any(key.startswith("held_out.") for key in there),
                "score": self.score is not None and _due(config.evaluate_every, trainer.done, final)
                and not any(key.startswith("score.") for key in there),
                "sample": self.preview is not None and _due(config.every("sample"), trainer.done, last)
                and not picture.exists(),
                "report": self.report is not None and _due(config.checkpoint_every, trainer.done, last),
            }  # fmt: skip
        todo = self.world.from_main(todo) if trainer.sharded else todo
        assert todo is not None
        if todo["held_out"] and self.held_out is not None:
            with self.progress.doing("held-out loss"):
                self._measured(trainer, "held_out.", held_out(trainer, self.held_out, config.held_out_pictures))
        if todo["score"] and self.score is not None:
            with self.progress.doing("scores"), trainer.showing():
                values = dict(self.score())
            self._measured(trainer, "score.", values)
        if todo["sample"] and self.preview is not None:
            with self.progress.doing("painting samples"), trainer.showing():
                images = self._pictures(trainer, self.preview)
            if self.world.main:
                write_grid(picture, images, {"step": step, "seed": config.seed, **self.about})
        if todo["report"] and self.report is not None and self.world.main:
            self.report()

    def _pictures(self, trainer: Trainer, preview: Callable[[int, int], Tensor]) -> Tensor:
        """What a sample grid shows, in [0, 1]."""
        config, shows = trainer.config, trainer.stage.shows
        if shows is None or self.held_out is None:
            return preview(config.preview, config.seed)
        batch = self.held_out.batch(np.arange(min(config.preview, len(self.held_out))), None)
        return (shows(on(batch, trainer.device)).float().cpu() / 2 + 0.5).clamp(0, 1)

    def _measured(self, trainer: Trainer, kind: str, values: Mapping[str, float]) -> None:
        """Writes a row of held-out losses or scores; before it `best/`, if the leading value is the lowest so far."""
        if not values:
            return
        if kind == "held_out." and not all(math.isfinite(value) for value in values.values()):
            raise WorkError(
                f"stage {trainer.stage.name!r}, step {self.step(trainer)}: a held-out loss is not finite "
                f"({dict(values)}); "
                "the last checkpoint is intact"
            )
        named = {kind + name: value for name, value in values.items()}
        leading, better = self._leading(trainer, named), False
        if leading is not None and self.metrics is not None:
            old = [row[leading] for row in self.metrics.of_stage(trainer.stage.name) if leading in row]
            better = math.isfinite(named[leading]) and (not old or named[leading] < min(old))
        if self.world.from_main(better) if trainer.sharded else better:
            with self.progress.doing("saving the best"):
                self._save_model(trainer, self.folder / "best")
        if self.metrics is not None:
            self._row(trainer, named)
            self._ring(trainer)

    def _leading(self, trainer: Trainer, named: Mapping[str, float]) -> str | None:
        """Which of these values `best/` goes by, or None if it goes by those of the other kind."""
        wanted = trainer.config.best
        if wanted is not None:
            return next((key for key in (f"score.{wanted}", f"held_out.{wanted}") if key in named), None)
        if trainer.config.evaluate_every and self.score is not None:
            return next((key for key in named if key.startswith("score.")), None)
        return "held_out.loss" if "held_out.loss" in named else None

    def _finish(self) -> None:
        if self.report is not None and self.world.main:
            self.report()
        self._status("finished")

    def _status(self, state: str, says: str = "") -> None:
        """`status.json`: what a run that nobody watches was doing when it was last heard of."""
        if self.world.main:
            done = checkpoints.steps(self.root)
            value = {"state": state, "checkpoint": done[-1] if done else 0, "steps": self.total, "pid": os.getpid()}
            try:
                write_json(self.folder / STATUS, {**value, "says": says})
            except HwagaError:
                if state == "training":
                    raise  # on the way out, the first error is the one to tell


def _due(every: int, step: int, last: bool) -> bool:
    return every > 0 and (last or step % every == 0)


def _board(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)
