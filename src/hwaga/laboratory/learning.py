"""Learning on points: the objectives, processes and the training loop of the library, with a perceptron as the network.

learn(points("moons"), FlowConfig())      some seconds on one core
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.order import Order
from ..interfaces import Batch, Denoise, Draw, Noise, Objective, Point, Prediction, Stage, Terms
from ..networks.perceptron import Perceptron, PerceptronConfig
from ..objectives.consistency import Target, latent_consistency
from ..objectives.denoising import denoising, mean_terms
from ..objectives.meanflow import mean_flow
from ..processes.flow import RectifiedFlow
from ..processes.process import Process, level_of, score
from ..processes.spacing import Spaced
from ..processes.times import TimesConfig
from ..samplers import SAMPLERS
from ..samplers.denoiser import denoiser
from ..samplers.noise import from_seed, stream
from ..training.config import TrainingConfig
from ..training.loop import Trainer
from .points import Mixture

POINTS = 20_000  # of a training set
Loss = Callable[[Any, Process, Tensor, Draw], Terms]


def by_denoising(network: Any, process: Process, x0: Tensor, draw: Draw) -> Terms:
    """The objective of objectives/denoising.py."""
    return mean_terms(denoising(network, process, x0, {}, draw))


def by_mean_flow(network: Any, process: Process, x0: Tensor, draw: Draw) -> Terms:
    """The objective of objectives/meanflow.py, with as many pairs of two times as of one."""
    assert isinstance(process, RectifiedFlow)
    times = TimesConfig(kind="logit-normal", mean=-0.4)
    return mean_terms(mean_flow(network, process, x0, {}, None, draw, times=times, apart=0.5, least=0.1))


def by_consistency(teacher: Learned) -> Loss:
    """The objective of objectives/consistency.py with a learned teacher; the target is the student's moving average."""
    targets: list[Target] = []

    def loss(network: Any, process: Process, x0: Tensor, draw: Draw) -> Terms:
        if not targets:
            targets.append(Target(network, 0.95))
        target = targets[0].at(draw.step)
        return mean_terms(latent_consistency(
            network, target, teacher.network, process, x0, {}, None, draw, scaling=None, huber=0.02, places=25
        ))  # fmt: skip

    return loss


class _Points:
    """A data source of points, as the training loop asks for it."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        at = torch.as_tensor(indices)
        return Batch(self.values[at], at)


@dataclass(frozen=True)
class Learned:
    """A network that was trained on noised points."""

    network: Perceptron
    process: Process

    def denoiser(self) -> Denoise:
        """denoise(x, at, to) of the network. One that is told spans is told that of the step."""
        if not self.network.config.span:
            return denoiser(self.network, self.process, {})

        def denoise(x: Tensor, at: Point, to: Point) -> Prediction:
            told = {"span": torch.full((len(x),), at.fed - to.fed)}
            return denoiser(self.network, self.process, told)(x, at, to)

        return denoise

    @torch.no_grad()
    def score(self, x: Float[Tensor, "n d"], t: float) -> Float[Tensor, "n d"]:
        """grad log p_t(x), as learned."""
        at = self.process.point(t)
        return score(x, self.denoiser()(x, at, at).x0, level_of(at))


def learn(
    data: Mixture, config: Any, *, steps: int = 1500, batch_size: int = 256, learning_rate: float = 3e-3, width: int = 64,
    seed: int = 0, loss: Loss = by_denoising, span: bool = False, start_from: Perceptron | None = None,
    say: Callable[[int, int], None] | None = None,
) -> Learned:  # fmt: skip
    """Trains a perceptron on points of a process (its config); the averaged weights are returned.

    loss: any objective, given network, process, points and draw. span: the network is told how far a step leads.
    start_from: weights to begin with, where names and shapes agree. say: called with (steps done, steps).
    """
    process = config.build()
    ends = [float(process.fed(torch.tensor(t, dtype=torch.float64))) for t in (0.001, 1.0)]
    scale = 100.0 / abs(ends[1] - ends[0])  # whatever the process feeds, the sines see about 0 ... 100
    network = Perceptron(PerceptronConfig(dimensions=data.means.shape[1], width=width, time_scale=scale, span=span))
    network.initialise(stream(seed, "weights"))
    if start_from is not None:
        network.load_state_dict(start_from.state_dict(), strict=False)
    objective = Objective("points", ("network",), lambda batch, draw: loss(network, process, batch.image, draw))
    stage = Stage("points", {"network": network}, [objective], ("network",))
    training = TrainingConfig.model_validate({
        "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "schedule": "cosine", "final_rate": 0.02,
        "clip_norm": 1.0, "seed": seed, "dtype": "float32", "ema": {"half_lives": [20 * batch_size]},
    })  # fmt: skip
    source = _Points(data.draw(POINTS, stream(seed, "points")))
    trainer = Trainer(stage, training, source, Order(len(source), batch_size, seed=seed))
    for step in range(steps):
        trainer.step()
        if say is not None:
            say(step + 1, steps)
    with trainer.showing():
        averaged = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(averaged)
    return Learned(network.eval().requires_grad_(False), process)


@torch.no_grad()
def sample(
    denoise: Denoise, process: Process, n: int, sampler: str, steps: int, seed: int = 0, dimensions: int = 2,
    callback: Any = None, options: dict[str, Any] | None = None, grid: dict[str, Any] | None = None,
) -> Float[Tensor, "n d"]:  # fmt: skip
    """Points by any sampler of the library, from pure noise. options: the sampler's; grid: those of processes/spacing.py."""
    chosen = SAMPLERS[sampler]
    how = Spaced(**{"rule": chosen.rule, **(grid or {})})
    points = process.grid(steps, how)
    noise = from_seed(seed, range(n))
    start = noise("noise", (n, dimensions)) * process.start_scale(points[0], how)
    own = {"process": process} if chosen.asks_process else {}
    return chosen.run(denoise, start, points, noise=noise, callback=callback, **own, **(options or {}))


@torch.no_grad()
def langevin(
    denoise: Denoise,
    process: Process,
    t: float,
    x: Float[Tensor, "n d"],
    steps: int,
    noise: Noise,
    callback: Any = None,
) -> Float[Tensor, "n d"]:
    """Langevin dynamics at one noise level, t, from x: the library's sampler, which goes through falling levels, kept at
    one. The callback sees every 20th step."""
    at = process.point(t)
    grid = [at] * (steps // 20 + 1)
    return SAMPLERS["langevin"].run(denoise, x, grid, noise=noise, callback=callback, corrections=20)
