"""What moves weights once the gradients are there: the learning rate of a step, the optimizers, the moving averages.

The rate is a function of the step and the recipe alone, so that nothing of it needs storing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..interfaces import Objective, Stage
from .config import EmaConfig, TrainingConfig
from .distributed import fill


def rate(config: TrainingConfig, step: int) -> float:
    """The share of `learning_rate` that step `step` (the first is 0) has.

    Warm-up: (step + 1) / warmup, reaching 1 at step warmup - 1. After it, with p the share of the remaining steps that
    is done: cosine (1 + cos pi p) / 2, linear 1 - p, both from 1 to `final_rate`, reached at the end of the last step;
    inverse-sqrt: sqrt(warmup / (step + 1)) (Vaswani et al. 2017, eq. 3), with a warm-up of at least 1.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "inverse-sqrt":
        return math.sqrt(max(config.warmup, 1) / (step + 1))
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    shape = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.final_rate + (1 - config.final_rate) * shape


_OWN = ("learning_rate", "betas", "eps", "weight_decay")


class StageOptimizer:
    """An AdamW over some networks, shared by the objectives that name it.

    Rule for shared optimizers (Karras et al. 2020, StyleGAN2, appendix B): let e be the smallest `every` among the
    objectives of an optimizer, m the number of them that are due every e steps, and c = m / sum(e / every). Where some
    are lazier than others there are 1 / c times as many moves as the recipe counts, so learning rate and betas become
    lr c and beta^c, and the loss of a lazy one is weighted by every / e, so that its strength does not depend on its
    laziness.
    Objectives that are all due equally often are left as they are: c = 1, weights 1.
    """

    def __init__(self, name: str, stage: Stage, config: TrainingConfig) -> None:
        self.name = name
        self.config = config
        objectives = [o for o in stage.objectives if o.optimizer == name]
        moved = {tuple(sorted(o.networks)) for o in objectives}
        if len(moved) > 1:
            raise ValueError(f"stage {stage.name!r}: objectives of optimizer {name!r} move different networks: {moved}")
        own = dict(stage.optimizers.get(name, {}))
        if odd := sorted(set(own) - set(_OWN)):
            raise ValueError(f"stage {stage.name!r}: optimizer {name!r} has {odd}; known are {', '.join(_OWN)}")
        self.correction, self.weights = laziness(objectives)
        values = {"learning_rate": config.learning_rate, **config.optimizer.model_dump(exclude={"name"}), **own}
        self.learning_rate = float(values["learning_rate"]) * self.correction
        self.names, self.parameters = _trainable(stage, objectives[0].networks)
        if not self.parameters:
            raise ValueError(f"stage {stage.name!r}: optimizer {name!r} has nothing to move: all parameters are frozen")
        decayed = [p for p in self.parameters if p.ndim >= 2]
        plain = [p for p in self.parameters if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": float(values["weight_decay"])},
            {"params": plain, "weight_decay": 0.0},
        ]
        betas = tuple(float(beta) ** self.correction for beta in values["betas"])
        self.adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.learning_rate, betas=betas, eps=float(values["eps"]), fused=not _sharded(self.parameters),
        )  # fmt: skip

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, schedule and correction included."""
        return self.learning_rate * rate(self.config, step)

    def move(self, step: int) -> None:
        """One move along the gradients that the parameters hold; drops the gradients."""
        for group in self.adam.param_groups:
            group["lr"] = self.rate_at(step)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state by `network.parameter:what` (what: step, exp_avg, exp_avg_sq)."""
        return {
            f"{name}:{what}": value
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for what, value in self.adam.state.get(parameter, {}).items()
        }

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each parameter, by `network.parameter`."""
        return {name: parameter.shape for name, parameter in zip(self.names, self.parameters, strict=True)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes the state that `tensors()` gave, in the memory layout of the parameters (so the bits of a step
        agree).
        """
        for parameter in self.parameters:
            self.adam.state.pop(parameter, None)
        place = dict(zip(self.names, self.parameters, strict=True))
        for key, value in tensors.items():
            name, _, what = key.rpartition(":")
            parameter = place[name]
            if what == "step":
                own = value.to(dtype=torch.float32, device=parameter.device).clone()
            else:
                own = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                fill(own, value)
            self.adam.state[parameter][what] = own


def laziness(objectives: Sequence[Objective]) -> tuple[float, dict[str, float]]:
    """The correction c and the weight of each objective's loss: see StageOptimizer.

    >>> laziness([discriminator, r1_every_16])
    (0.9411764705882353, {"discriminator": 1.0, "r1": 16.0})
    """
    base = min(o.every for o in objectives)
    frequent = sum(o.every == base for o in objectives)
    correction = frequent / sum(base / o.every for o in objectives)
    return correction, {o.name: o.every / base for o in objectives}


def _trainable(stage: Stage, networks: Sequence[str]) -> tuple[list[str], list[nn.Parameter]]:
    names: list[str] = []
    parameters: list[nn.Parameter] = []
    for network in networks:
        if network not in stage.networks:
            raise ValueError(f"stage {stage.name!r} has no network {network!r}; it has {', '.join(stage.networks)}")
        for name, parameter in stage.networks[network].named_parameters():
            if parameter.requires_grad:
                names.append(f"{network}.{name}")
                parameters.append(parameter)
    return names, parameters


def _sharded(parameters: Sequence[Tensor]) -> bool:
    return any(hasattr(p, "full_tensor") for p in parameters)


# ----------------------------------------------------------------------------------------------------- moving averages


def decay(half_life: float, ramp: float | None, batch_size: int, seen: int) -> float:
    """The share of the old average that a step keeps, `seen` pictures having been seen before it.

    With a half-life of h pictures: 0.5 ** (batch_size / h). During warm-up h is at most `ramp` times the pictures seen
    (Karras et al. 2020, StyleGAN2): at the first step h = 0, so the first step copies.
    """
    if seen == 0:
        return 0.0
    life = half_life if ramp is None else min(half_life, ramp * seen)
    return 0.5 ** (batch_size / life)


class Ema:
    """Averages of the networks of a stage: parameters are averaged, buffers copied (a norm's statistics are averages
    already). Averages are float32, or float64 where the weights are."""

    def __init__(self, networks: Mapping[str, nn.Module], config: EmaConfig, batch_size: int) -> None:
        self.config = config
        self.batch_size = batch_size
        self.networks = networks
        self.averages: dict[float, dict[str, dict[str, Tensor]]] = {
            half_life: {name: _copies(network) for name, network in networks.items()}
            for half_life in (config.half_lives if networks else ())
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the averages after step `step` (the first is 0) has moved the weights."""
        for half_life, averages in self.averages.items():
            keep = decay(half_life, self.config.ramp, self.batch_size, step * self.batch_size)
            for name, network in self.networks.items():
                old = averages[name]
                parameters = dict(network.named_parameters())
                if keep == 0.0:
                    for key, value in parameters.items():
                        old[key].copy_(value)
                else:
                    new = [v.detach().to(old[k].dtype) for k, v in parameters.items()]
                    torch._foreach_lerp_([old[k] for k in parameters], new, 1.0 - keep)
                for key, buffer in network.named_buffers():
                    old[key].copy_(buffer)

    def weights(self, half_life: float | None = None) -> dict[str, dict[str, Tensor]]:
        """The averaged state by network and name, of the chosen half-life if None; {} if there is none."""
        chosen = self.config.chosen if half_life is None else half_life
        if chosen is None or chosen not in self.averages:
            return {}
        result: dict[str, dict[str, Tensor]] = {}
        for name, network in self.networks.items():
            average = self.averages[chosen][name]
            result[name] = {key: average.get(key, value) for key, value in network.state_dict().items()}
        return result

    @contextmanager
    def applied(self, half_life: float | None = None) -> Iterator[None]:
        """Inside, the networks have the averaged weights; after it their own again, the very same bits.

        Copied in place rather than traded: what a network derives from its weights and keeps goes by their version.
        """
        weights = self.weights(half_life)
        own = {name: _copies(self.networks[name]) for name in weights}
        try:
            for name, tensors in weights.items():
                _fill(self.networks[name], tensors)
            yield
        finally:
            for name, tensors in own.items():
                _fill(self.networks[name], tensors)

    @torch.no_grad()
    def adopt(self) -> None:
        """The networks take the chosen average for good (at the end of a stage)."""
        for name, tensors in self.weights().items():
            _fill(self.networks[name], tensors)


def _copies(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each in its own memory and in the layout that it has."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    half = (torch.float16, torch.bfloat16)
    return {
        k: v.detach().float().clone() if v.dtype in half and isinstance(v, nn.Parameter) else v.detach().clone()
        for k, v in tensors.items()
    }


def _fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if key in tensors:
            fill(tensor, tensors[key])
