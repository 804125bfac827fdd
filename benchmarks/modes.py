"""25 Gaussians on a grid: which modes does a generator find? hwaga's losses with small networks on points.

    python -m benchmarks.modes                                  ten seeds of each loss, some minutes on one core
    python -m benchmarks.modes --out docs/images/gan-modes.png  with a picture of the first seed

The centres are at -2, -1, 0, 1, 2 in both directions, the standard deviation is 0.05. A mode is recovered when at least
0.5 % of 10,000 samples lie within three standard deviations of its centre (4 % would be its share). Networks, optimizer,
steps and batches are the same for every loss; they play through the same `Game` and the same training loop as pictures.

R3GAN's gamma goes down along a cosine, as in its paper. A penalised discriminator sees no detail finer than about
2 sqrt(gamma) (R1 turns the logit into that of blurred densities), so the generator first covers the whole, then parts it.

All seeds are trained side by side, in networks whose weights have one more dimension: each has its own weights, points and
noise, and Adam's moves are those of each number alone, so no seed sees another.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from hwaga.data import Order
from hwaga.interfaces import Batch, Stage
from hwaga.objectives.game import Game
from hwaga.samplers.noise import stream
from hwaga.training.config import TrainingConfig
from hwaga.training.loop import Trainer

SIGMA = 0.05
CENTRES = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))  # (25, 2)
SAMPLES, SHARE, RADIUS = 10_000, 0.005, 3 * SIGMA
LATENT, WIDTH, HIDDEN, WAVES = 2, 64, 3, 2
GAMMA = {"r1": 0.5, "r2": 0.5, "penalty_final": 0.02, "anneal": 0.7}  # anneal: over this share of the steps
LOSSES: dict[str, dict[str, Any]] = {
    "R3GAN: relativistic, R1, R2": {"kind": "relativistic", **GAMMA},
    "plain: non-saturating": {"kind": "non-saturating"},
}


class Points:
    """The training sets: 20,000 points of the mixture for each seed, drawn once."""

    def __init__(self, seeds: Sequence[int], count: int = 20_000) -> None:
        every = []
        for seed in seeds:
            g = stream(seed, "points")
            which = torch.randint(len(CENTRES), (count,), generator=g)
            every.append(CENTRES[which] + SIGMA * torch.randn((count, 2), generator=g))
        self.points = torch.stack(every, dim=1)  # (count, seeds, 2)

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        at = torch.as_tensor(indices)
        return Batch(self.points[at], at)


class Perceptrons(nn.Module):
    """A perceptron for each seed: (n, seeds, ins), or (n, seeds * ins), to (n, seeds, outs); without `outs` where it is 1.

    `waves`: how many frequencies of the points are given beside them, the slowest with a period of 5.
    """

    def __init__(self, name: str, seeds: Sequence[int], ins: int, outs: int, waves: int = 0) -> None:
        super().__init__()
        self.seeds, self.waves = len(seeds), waves
        widths = [ins * (1 + 2 * waves), *[WIDTH] * HIDDEN, outs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            std = math.sqrt((2 if i < HIDDEN else 1) / a)
            drawn = [std * torch.randn((a, b), generator=stream(seed, name, "weights", i)) for seed in seeds]
            self.weights.append(nn.Parameter(torch.stack(drawn)))
            self.biases.append(nn.Parameter(torch.zeros(len(seeds), 1, b)))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        x = x.reshape(len(x), self.seeds, -1).transpose(0, 1)
        if self.waves:
            x = x / 2.5
            turns = [x * math.pi * 2**k for k in range(self.waves)]
            x = torch.cat([x, *(wave(turn) for turn in turns for wave in (torch.sin, torch.cos))], dim=2)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if i == 0 else leaky_relu(x, 0.2), weight)
        x = x.transpose(0, 1)
        return x.squeeze(2) if x.shape[2] == 1 else x


@dataclass(frozen=True)
class Found:
    """What the generator of one seed gave."""

    modes: int
    near: float  # share of samples within three standard deviations of any centre
    samples: Tensor


def play(rules: dict[str, Any], seeds: Sequence[int], steps: int, batch_size: int, say: Any = None) -> list[Found]:
    """Trains a generator for each seed and counts its modes."""
    networks = {
        "generator": Perceptrons("generator", seeds, LATENT, 2),
        "discriminator": Perceptrons("discriminator", seeds, 2, 1, WAVES),
    }
    rules = dict(rules)
    rules["penalty_anneal"] = round(steps * rules.pop("anneal", 0))
    for name in ("r1", "r2"):  # a loss is the mean over the seeds, a penalty the sum
        rules[name] = rules.get(name, 0.0) / len(seeds)
    game = Game(networks["generator"], networks["discriminator"], LATENT * len(seeds), **rules)
    stage = Stage("game", networks, game.objectives(), averaged=("generator",), game=True)
    config = TrainingConfig.model_validate({
        "steps": steps, "batch_size": batch_size, "learning_rate": 3e-3, "optimizer": {"betas": (0.0, 0.99)},
        "schedule": "cosine", "final_rate": 0.1, "ema": {"half_lives": (20 * batch_size,)}, "seed": seeds[0],
        "dtype": "float32",
    })  # fmt: skip
    points = Points(seeds)
    trainer = Trainer(stage, config, points, Order(len(points), batch_size, seed=seeds[0]))
    for step in range(1, steps + 1):
        trainer.step()
        if say is not None and step % max(1, steps // 8) == 0:
            say(step, sampled(trainer, networks["generator"], seeds))
    return sampled(trainer, networks["generator"], seeds)


def sampled(trainer: Trainer, generator: nn.Module, seeds: Sequence[int]) -> list[Found]:
    """10,000 samples of each seed's averaged generator, and their modes."""
    with trainer.showing():
        z = torch.stack([torch.randn((SAMPLES, LATENT), generator=stream(seed, "samples")) for seed in seeds], dim=1)
        samples = generator(z).unbind(1)
    return [Found(*counted(each), each) for each in samples]


def counted(samples: Tensor) -> tuple[int, float]:
    """Modes recovered by samples (n, 2), and the share of samples that lie in any."""
    inside = torch.cdist(samples, CENTRES) < RADIUS
    shares = inside.float().mean(0)
    return int((shares >= SHARE).sum()), float(inside.any(1).float().mean())


def draw(found: dict[str, list[Found]], path: str) -> None:
    """The samples of each loss's first seed, beside the mixture itself."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found) + 1, figsize=(4 * (len(found) + 1), 4.7), squeeze=False)
    panels = [("data: 25 modes\n", Points([0], SAMPLES).points[:, 0])]
    panels += [(f"{name}\n{runs[0].modes} of 25 modes", runs[0].samples) for name, runs in found.items()]
    for axis, (title, points) in zip(axes[0], panels, strict=True):
        axis.scatter(points[:, 0], points[:, 1], s=1.5, alpha=0.3, linewidths=0, color="#1f4e79")
        axis.set(title=title, xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
    figure.tight_layout(pad=1.5)
    figure.savefig(path, dpi=90, bbox_inches="tight")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", help="a picture of the first seed's samples")
    parser.add_argument("--json", help="the figures in a file")
    given = parser.parse_args(arguments)
    found: dict[str, list[Found]] = {}
    for name, rules in LOSSES.items():
        began = time.perf_counter()

        def say(step: int, runs: list[Found], name: str = name) -> None:
            print(f"  {name}, step {step}: modes {' '.join(str(run.modes) for run in runs)}", flush=True)

        found[name] = play(rules, range(given.seeds), given.steps, given.batch_size, say)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n| loss | {' | '.join(f'seed {seed}' for seed in range(given.seeds))} | all 25 in | in a mode |")
    print("|---" * (given.seeds + 3) + "|")
    for name, runs in found.items():
        modes, whole = " | ".join(str(run.modes) for run in runs), sum(run.modes == len(CENTRES) for run in runs)
        near = sum(run.near for run in runs) / len(runs)
        print(f"| {name} | {modes} | {whole} of {len(runs)} | {near:.0%} |")
    if given.out:
        draw(found, given.out)
    if given.json:
        rows = {name: [{"modes": r.modes, "near": round(r.near, 4)} for r in runs] for name, runs in found.items()}
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
