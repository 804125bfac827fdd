"""The one training loop. `Trainer.step` is all that a training step is; everything else hangs on it (see session.py).

for each objective that is due               a GAN has two, its lazy R1 a third; a VAE or a diffusion model one
    for each part of the batch               one, unless gradients are accumulated
        loss on the part, weighted by its share of the whole batch; gradients add up
    the gradients of all processes are summed, checked, clipped; the optimizer moves
the moving averages follow
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..allocation import keep_freed_memory
from ..errors import InputError, WorkError
from ..interfaces import Batch, Objective, Stage, Terms
from .config import TrainingConfig
from .distributed import World, gather_no_more, shard
from .moves import Ema, StageOptimizer


class Order(Protocol):
    """Which pictures a step sees: `hwaga.data.Order`."""

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]: ...


class Pictures(Protocol):
    """What training asks of a data set: `hwaga.data.Dataset`."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch: ...


class Trainer:
    """One stage in training: its networks, optimizers, averages and the number of steps done.

    `order` is a pure function of the step, and all randomness is drawn from (seed, stage, step), so that what the next
    step does depends on nothing but the weights, the averages, the optimizers' state and `done`.
    """

    def __init__(
        self, stage: Stage, config: TrainingConfig, data: Pictures, order: Order, *, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32, world: World | None = None,
    ) -> None:  # fmt: skip
        self.stage = stage
        self.config = config
        self.data = data
        self.order = order
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = dtype
        self.world = world or World()
        self.done = 0
        check(stage, config, self.world)
        self.sharded = config.shard and self.world.size > 1
        for network in stage.networks.values():
            network.to(self.device)
            if hasattr(network, "checkpointing"):
                network.checkpointing = config.gradient_checkpointing  # type: ignore[assignment]
            if self.sharded:
                shard(network)
        self.trainable = {
            name: [p for p in network.parameters() if p.requires_grad] for name, network in stage.networks.items()
        }
        names = dict.fromkeys(o.optimizer for o in stage.objectives)
        self.optimizers = {name: StageOptimizer(name, stage, config) for name in names}
        self.ema = Ema({name: stage.networks[name] for name in stage.averaged}, config.ema, config.batch_size)
        self.sums: dict[str, tuple[float, float]] = {}  # sum and weight of each logged value since the last row

    # ------------------------------------------------------------------------------------------------------- the step

    def step(self) -> None:
        """Moves every network once by each objective that is due, and the averages after them.

        WorkError at the first loss or gradient that is not finite: it names the objective, the term or the layer, the
        step and the pictures, and no weight has taken it.
        """
        indices, epochs = self.order.at(self.done)
        with self.training():
            for objective in self.due():
                with self.moving(objective):
                    for batch, draw, share in self.parts(indices, epochs):
                        with self.autocast():
                            terms = objective.loss(batch, draw)
                        self.note(objective, terms, share, batch)
                        (self.total(objective, terms) * share).backward()
                    self.update(objective, indices)
        self.ema.update(self.done)
        self.done += 1

    def due(self) -> list[Objective]:
        return [o for o in self.stage.objectives if self.done >= o.begins and self.done % o.every == 0]

    def parts(self, indices: np.ndarray, epochs: np.ndarray) -> Iterator[tuple[Batch, StepDraw, float]]:
        """This process's pictures of the step in `accumulation` parts: batch, draw, share of the whole batch."""
        whole, shares = len(indices), self.world.size
        start, count = part(whole, shares, self.world.rank)
        if self.stage.batch_statistics:  # every process works off the whole batch, and its sum is their mean
            start, count = 0, whole
        pieces = min(self.config.accumulation, whole // shares)  # as many in every process
        for piece in range(pieces):
            first, length = part(count, pieces, piece)
            here = slice(start + first, start + first + length)
            batch = on(self.data.batch(indices[here], epochs[here]), self.device)
            at = (self.config.seed, self.stage.name, self.done)
            draw = StepDraw(*at, whole=whole, start=here.start, count=length, device=self.device)
            yield batch, draw, length / whole if not self.stage.batch_statistics else 1 / shares

    def total(self, objective: Objective, terms: Terms) -> Tensor:
        """What is minimised: the sum of the terms, float32, weighted where the objective is a lazy one."""
        weight = self.optimizers[objective.optimizer].weights[objective.name]
        if self.sharded:  # sharded gradients come as means over the processes
            weight *= self.world.size
        return weight * sum((_full(t) for name, t in terms.items() if not name.startswith("_")), start=torch.zeros(()))

    def update(self, objective: Objective, indices: np.ndarray) -> None:
        """Sums the gradients over the processes, refuses non-finite ones, clips, moves."""
        optimizer = self.optimizers[objective.optimizer]
        if self.world.size > 1 and not self.sharded:
            self.world.sum_gradients(optimizer.parameters, self.done)
        norm = self.norm(optimizer)
        if not np.isfinite(norm):
            raise WorkError(self._gradient_trouble(objective, optimizer, indices))
        limit = self.config.clip_norm
        if limit is not None and norm > limit:
            gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)
        self.add(f"{objective.name}.gradient", norm, 1.0 / self.world.size)
        optimizer.move(self.done)

    # -------------------------------------------------------------------------------------------- what it is made of

    @contextmanager
    def training(self) -> Iterator[None]:
        """Networks in training mode; dropout and its like drawn from this step's seed."""
        for network in self.stage.networks.values():
            network.train()
        with own_randomness(seed_of(self.config.seed, self.stage.name, self.done, self.world.rank), self.device):
            yield

    @contextmanager
    def moving(self, objective: Objective) -> Iterator[None]:
        """Inside, only the parameters of the objective's networks need gradients."""
        for name, parameters in self.trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(name in objective.networks)
        try:
            yield
        finally:
            for parameters in self.trainable.values():
                for parameter in parameters:
                    parameter.requires_grad_(True)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def norm(self, optimizer: StageOptimizer) -> float:
        """The Euclidean norm of all gradients of an optimizer's networks, in float32 at least."""
        gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
        if not gradients:
            return 0.0
        norm = torch.nn.utils.get_total_norm(gradients)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def note(self, objective: Objective, terms: Terms, share: float, batch: Batch) -> None:
        """Adds the terms to the next row of metrics; stops all processes at the first that is not finite."""
        values = torch.stack([_full(t.detach()) for t in terms.values()]).tolist()
        bad = [name for name, value in zip(terms, values, strict=True) if not np.isfinite(value)]
        if bad if self.world.size == 1 else self.world.any(bool(bad), self.done):
            raise WorkError(self._loss_trouble(objective, dict(zip(terms, values, strict=True)), bad, batch))
        minimised = sum(v for name, v in zip(terms, values, strict=True) if not name.startswith("_"))
        named = {name.removeprefix("_"): v for name, v in zip(terms, values, strict=True)}
        for name, value in {**named, "loss": minimised}.items():
            self.add(f"{objective.name}.{name}", value, share)

    def add(self, name: str, value: float, weight: float) -> None:
        total, weights = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (total + value * weight, weights + weight)

    def _loss_trouble(self, objective: Objective, values: dict[str, float], bad: list[str], batch: Batch) -> str:
        where = f"stage {self.stage.name!r}, objective {objective.name!r}, step {self.done + 1}"
        if not bad:
            return f"{where}: a term of the loss is not finite in another process; nothing was saved after it"
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        pictures = ", ".join(map(str, batch.index.tolist()[:64]))
        return (
            f"{where}: the term {bad[0]!r} is not finite ({given}); pictures of the batch: {pictures}; the last "
            "checkpoint is intact; a lower training.learning_rate, training.clip_norm or dtype float32 may help"
        )

    def _gradient_trouble(self, objective: Objective, optimizer: StageOptimizer, indices: np.ndarray) -> str:
        bad = [
            name
            for name, p in zip(optimizer.names, optimizer.parameters, strict=True)
            if p.grad is not None and not torch.isfinite(p.grad).all()
        ]
        layers = f"{bad[0]!r}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "") if bad else "the norm of all"
        return (
            f"stage {self.stage.name!r}, objective {objective.name!r}, step {self.done + 1}: the gradient of {layers} "
            f"is not finite; pictures of the batch: {', '.join(map(str, indices.tolist()[:64]))}; the last checkpoint "
            "is intact; "
            "a lower training.learning_rate, training.clip_norm or dtype float32 may help"
        )

    # -------------------------------------------------------------------------------------------------- around the step

    def metrics(self) -> dict[str, float]:
        """Means of what was logged since the last call, over pictures and processes, and the newest rates."""
        names = sorted(self.sums)
        values = torch.tensor([self.sums[n] for n in names], dtype=torch.float64).reshape(len(names), 2)
        values = self.world.all_sum(values, self.done)
        self.sums.clear()
        row = {name: total / weight for name, (total, weight) in zip(names, values.tolist(), strict=True)}
        rates = {f"rate.{n}": o.rate_at(max(0, self.done - 1)) for n, o in self.optimizers.items()}
        return {**row, **rates}

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Inside, the networks are the model: averaged weights, evaluation mode, no gradients; after it, as they were.

        What is painted or measured here changes no weight and no random state of training.
        """
        modes = {name: network.training for name, network in self.stage.networks.items()}
        for network in self.stage.networks.values():
            network.eval()
        try:
            with torch.no_grad(), own_randomness(0, self.device), self.ema.applied():
                try:
                    yield
                finally:
                    for network in self.stage.networks.values() if self.sharded else ():
                        gather_no_more(network)
        finally:
            for name, network in self.stage.networks.items():
                network.train(modes[name])


def on(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    if device.type == "cpu":
        return batch

    def move(value: Any) -> Any:
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return replace(
        batch, image=move(batch.image), index=move(batch.index), label=move(batch.label),
        extra={name: move(value) for name, value in batch.extra.items()}, cluster=move(batch.cluster),
    )  # fmt: skip


def part(whole: int, parts: int, index: int) -> tuple[int, int]:
    """Start and length of part `index` of `whole` things in `parts` parts that differ by at most one."""
    start = whole * index // parts
    return start, whole * (index + 1) // parts - start


# ----------------------------------------------------------------------------------------------------------- randomness


def seed_of(*key: object) -> int:
    """A 64-bit seed from a key: the first 8 bytes of the SHA-256 of its parts (63 bits, as generators take them)."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class StepDraw:
    """The `interfaces.Draw` of one step, for the pictures `start` ... `start + count - 1` of a whole batch of `whole`.

    `done`: what it says of the steps that are done, where that is not `step`. ValueError if `shape[0]` is not `count`.
    One name gives one tensor: two uses need two names.
    """

    def __init__(
        self, seed: int, stage: str, step: int | str, *, whole: int, start: int = 0, count: int | None = None,
        device: torch.device | str = "cpu", done: int | None = None,
    ) -> None:  # fmt: skip
        self.key = (seed, stage, step)
        self.step = int(step) if done is None else done
        self.whole = whole
        self.start = start
        self.count = whole - start if count is None else count
        self.device = device

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 on the device of training; shape[0] is the length of the local batch."""
        return self._part(name, shape, lambda full, g: torch.randn(full, generator=g))

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform float32 in [0, 1)."""
        return self._part(name, shape, lambda full, g: torch.rand(full, generator=g))

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform int64 in 0 ... high - 1."""
        return self._part(name, shape, lambda full, g: torch.randint(high, full, generator=g))

    def _part(
        self, name: str, shape: tuple[int, ...], draw: Callable[[tuple[int, ...], torch.Generator], Tensor]
    ) -> Tensor:
        if not shape or shape[0] != self.count:
            raise ValueError(f"draw {name!r} of shape {tuple(shape)}: the first size must be the batch's, {self.count}")
        generator = torch.Generator().manual_seed(seed_of(*self.key, name))
        full = draw((self.whole, *shape[1:]), generator)
        return full[self.start : self.start + self.count].to(self.device)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators (dropout's, say) start from `seed`; outside they are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def check(stage: Stage, config: TrainingConfig, world: World) -> None:
    """InputError for values that do not go together; ValueError where a stage contradicts itself."""
    names = [o.name for o in stage.objectives]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"stage {stage.name!r}: objectives must be one or more with names of their own, not {names}")
    if odd := sorted(set(stage.averaged) - set(stage.networks)):
        raise ValueError(f"stage {stage.name!r}: averaged names {odd}, which are not among its networks")
    if config.batch_size < world.size:
        raise InputError(
            f"training.batch_size={config.batch_size} is less than the {world.size} processes; right would be a "
            f"multiple of them"
        )
    if config.accumulation > config.batch_size:
        raise InputError(
            f"training.accumulation={config.accumulation} is more than training.batch_size={config.batch_size}: "
            "a part needs a picture"
        )
    if (stage.batch_statistics or stage.gathers) and config.accumulation > 1:
        raise InputError(
            f"training.accumulation={config.accumulation}: stage {stage.name!r} has a loss over the whole batch, "
            "which cannot be worked off in parts; right would be 1"
        )
