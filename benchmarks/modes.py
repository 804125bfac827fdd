"""25 Gaussians on a grid: which modes does a generator find? hwaga's losses with small networks on points.

    python -m benchmarks.modes                              ten seeds of each loss, some minutes on one core
    python -m benchmarks.modes --out docs/images/gan-modes.png

The centres are at -4, -2, 0, 2, 4 in both directions, the standard deviation is 0.05. A mode is recovered when at least
0.5 % of 10,000 samples lie within three standard deviations of its centre (4 % would be its share). Networks, optimizer,
steps and batches are the same for every loss; they play through the same `Game` and the same training loop as pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwaga.data import Order
from hwaga.interfaces import Batch, Stage
from hwaga.layers.initialise import initialise, variance_scaling
from hwaga.objectives.game import Game
from hwaga.samplers.noise import stream
from hwaga.training.config import TrainingConfig
from hwaga.training.loop import Trainer

SIGMA = 0.05
CENTRES = torch.cartesian_prod(torch.arange(-4.0, 5.0, 2.0), torch.arange(-4.0, 5.0, 2.0))  # (25, 2)
SAMPLES, SHARE, RADIUS = 10_000, 0.005, 3 * SIGMA
LATENT, WIDTH = 16, 128
LOSSES: dict[str, dict[str, Any]] = {
    "R3GAN: relativistic, R1, R2": {"kind": "relativistic", "r1": 0.1, "r2": 0.1},
    "plain: non-saturating": {"kind": "non-saturating"},
}


class Points:
    """The training set: 100,000 points of the mixture, drawn once."""

    def __init__(self, seed: int, count: int = 100_000) -> None:
        g = stream(seed, "points")
        which = torch.randint(len(CENTRES), (count,), generator=g)
        self.points = CENTRES[which] + SIGMA * torch.randn((count, 2), generator=g)

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        at = torch.as_tensor(indices)
        return Batch(self.points[at], at)


class Perceptron(nn.Module):
    """Three hidden layers; `squeeze` takes the last dimension away."""

    def __init__(self, ins: int, outs: int, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        widths = [ins, WIDTH, WIDTH, WIDTH]
        layers: list[nn.Module] = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, outs))
        self.scale = scale
        initialise(self, stream(seed, "weights", ins, outs), lambda w, g: variance_scaling(w, g, 2.0, "in"))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        out: Tensor = self.layers(x * self.scale)
        return out.squeeze(1) if out.shape[1] == 1 else out


@dataclass(frozen=True)
class Found:
    """What a trained generator gave."""

    modes: int
    near: float  # share of samples within three standard deviations of any centre
    samples: Tensor
    seconds: float


def play(rules: dict[str, Any], seed: int, steps: int, batch_size: int) -> Found:
    """Trains one generator and counts its modes."""
    began = time.perf_counter()
    networks = {"generator": Perceptron(LATENT, 2, seed), "discriminator": Perceptron(2, 1, seed, scale=0.25)}
    game = Game(networks["generator"], networks["discriminator"], LATENT, **rules)
    stage = Stage("game", networks, game.objectives(), averaged=("generator",), game=True)
    config = TrainingConfig.model_validate({
        "steps": steps, "batch_size": batch_size, "learning_rate": 1e-3, "optimizer": {"betas": (0.0, 0.99)},
        "schedule": "cosine", "final_rate": 0.05, "ema": {"half_lives": (20 * batch_size,)}, "seed": seed,
        "dtype": "float32",
    })  # fmt: skip
    points = Points(seed)
    trainer = Trainer(stage, config, points, Order(len(points), batch_size, seed=seed))
    for _ in range(steps):
        trainer.step()
    with trainer.showing():
        z = torch.randn((SAMPLES, LATENT), generator=stream(seed, "samples"))
        samples = networks["generator"](z)
    return Found(*counted(samples), samples, time.perf_counter() - began)


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

    figure, axes = plt.subplots(1, len(found) + 1, figsize=(4 * (len(found) + 1), 4.3), squeeze=False)
    truth = Points(0, SAMPLES).points
    panels = [("data: 25 modes", truth), *((name, runs[0].samples) for name, runs in found.items())]
    for axis, (name, points) in zip(axes[0], panels, strict=True):
        axis.scatter(points[:, 0], points[:, 1], s=1, alpha=0.25, linewidths=0, color="#1f4e79")
        modes = f"\n{found[name][0].modes} of 25 modes" if name in found else "\n"
        axis.set(title=name + modes, xlim=(-5, 5), ylim=(-5, 5), xticks=[], yticks=[], aspect="equal")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", help="a picture of the first seed's samples")
    parser.add_argument("--json", help="the figures, for docs")
    given = parser.parse_args(arguments)
    found: dict[str, list[Found]] = {name: [] for name in LOSSES}
    print(f"{'loss':<30} {'seed':>4} {'modes':>6} {'in a mode':>10} {'seconds':>8}")
    for seed in range(given.seeds):
        for name, rules in LOSSES.items():
            one = play(rules, seed, given.steps, given.batch_size)
            found[name].append(one)
            print(f"{name:<30} {seed:>4} {one.modes:>6} {one.near:>9.1%} {one.seconds:>8.1f}", flush=True)
    print()
    for name, runs in found.items():
        modes = sorted(run.modes for run in runs)
        whole = sum(count == len(CENTRES) for count in modes)
        print(
            f"{name:<30} all {len(CENTRES)} modes in {whole} of {len(runs)} seeds; fewest {modes[0]}, most {modes[-1]}"
        )
    if given.out:
        draw(found, given.out)
    if given.json:
        rows = {name: [{"modes": r.modes, "near": round(r.near, 4)} for r in runs] for name, runs in found.items()}
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
