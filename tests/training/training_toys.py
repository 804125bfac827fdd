"""Small systems and data that the tests of training work on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hwaga.interfaces import Batch, Draw, Objective, Stage, Terms
from hwaga.training import Progress, Session, Trainer, TrainingConfig


class Pictures:
    """n pictures (3, 8, 8) of coloured stripes in [-1, 1]."""

    def __init__(self, n: int = 20) -> None:
        generator = torch.Generator().manual_seed(7)
        colour = torch.rand(n, 3, 1, 1, generator=generator)
        stripes = (torch.arange(8) % 2).view(1, 1, 1, 8) * torch.rand(n, 1, 1, 1, generator=generator)
        self.image = ((colour + stripes).clamp(0, 1) * 2 - 1).expand(n, 3, 8, 8).contiguous()
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        self.asked.append(list(map(int, indices)))
        at = torch.as_tensor(indices)
        return Batch(image=self.image[at], index=at, label=at % 3)


class InTurn:
    """Picture after picture, epoch after epoch."""

    def __init__(self, length: int, batch_size: int, seed: int = 0) -> None:
        self.length, self.batch_size = length, batch_size

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        sample = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return sample % self.length, sample // self.length


def seeded(build: Any, seed: int = 0) -> Any:
    """A module with weights drawn from a seed, the global generator left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


class Net(nn.Module):
    """A denoiser with all that makes a resume hard: dropout, a buffer that training moves, weights that are tied."""

    def __init__(self, width: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.again = self.middle
        self.drop = nn.Dropout(dropout)
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.into(x)))
        return self.out(self.drop(torch.relu(self.again(torch.relu(self.middle(x))))))


def plain_net(width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
        nn.Conv2d(width, 3, 3, padding=1),
    )  # fmt: skip


def denoising_stage(network: nn.Module | None = None, name: str = "denoising", **more: Any) -> Stage:
    """One objective: the noise of a noised picture."""
    net = network if network is not None else seeded(Net)

    def errors(batch: Batch, draw: Draw) -> Tensor:
        noise = draw.normal("noise", tuple(batch.image.shape))
        t = draw.uniform("time", (len(batch),)).view(-1, 1, 1, 1)
        return (net(((1 - t) * batch.image + t * noise).to(next(net.parameters()).dtype)) - noise).square()

    def loss(batch: Batch, draw: Draw) -> Terms:
        return {"error": errors(batch, draw).mean(), "_watched": batch.image.mean()}

    def held_out(batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        each = errors(batch, draw).flatten(1).mean(1)
        t = draw.uniform("time", (len(batch),))
        return {"loss": each, "loss t 0.0-0.5": torch.where(t < 0.5, each, torch.nan)}

    values = {"averaged": ("network",), "held_out": held_out, **more}
    return Stage(name, {"network": net}, [Objective("denoise", ("network",), loss)], **values)


def gan_stage(every: int = 4) -> Stage:
    """Three objectives and two optimizers: generator, discriminator, and a lazy R1 that shares the discriminator's."""
    g = seeded(lambda: nn.Sequential(nn.Linear(8, 3 * 64), nn.Tanh()), 1)
    d = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.SiLU(), nn.Linear(16, 1)), 2)

    def fake(batch: Batch, draw: Draw, name: str) -> Tensor:
        return g(draw.normal(name, (len(batch), 8))).view(-1, 3, 8, 8)

    def generator(batch: Batch, draw: Draw) -> Terms:
        return {"adversarial": nn.functional.softplus(-d(fake(batch, draw, "z_generator"))).mean()}

    def discriminator(batch: Batch, draw: Draw) -> Terms:
        with torch.no_grad():
            painted = fake(batch, draw, "z_discriminator")
        real, false = d(batch.image), d(painted)
        return {
            "real": nn.functional.softplus(-real).mean(), "fake": nn.functional.softplus(false).mean(),
            "_accuracy": ((real > 0).float().mean() + (false < 0).float().mean()) / 2,
        }  # fmt: skip

    def r1(batch: Batch, draw: Draw) -> Terms:
        image = batch.image.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(d(image).sum(), image, create_graph=True)
        return {"penalty": 0.5 * slope.square().flatten(1).sum(1).mean()}

    return Stage(
        "gan", {"generator": g, "discriminator": d},
        [
            Objective("generator", ("generator",), generator, optimizer="generator"),
            Objective("discriminator", ("discriminator",), discriminator, optimizer="discriminator"),
            Objective("r1", ("discriminator",), r1, optimizer="discriminator", every=every),
        ],
        averaged=("generator",), optimizers={"discriminator": {"betas": (0.0, 0.99), "learning_rate": 2e-3}},
    )  # fmt: skip


def trainer(stage: Stage | None = None, data: Pictures | None = None, **config: Any) -> Trainer:
    """A Trainer on the toy data, float32."""
    data = data or Pictures()
    full = TrainingConfig(**{"steps": 50, "batch_size": 6, "dtype": "float32", **config})
    return Trainer(stage or denoising_stage(), full, data, InTurn(len(data), full.batch_size))


def session(folder: Path, stages: list[Stage] | None = None, **config: Any) -> Session:
    """A Session that saves the networks of its stages to model folders, and paints with the last one."""
    stages = stages if stages is not None else [denoising_stage()]
    networks = {name: network for stage in stages for name, network in stage.networks.items()}
    values = {"steps": 12, "batch_size": 6, "dtype": "float32", "checkpoint_every": 4, "log_every": 2, "preview": 2}

    def save(place: Path, weights: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name, network in networks.items():
            tensors = weights.get(name) or network.state_dict()
            save_file({k: v.detach().clone() for k, v in tensors.items()}, place / f"{name}.safetensors")

    def preview(n: int, seed: int) -> Tensor:
        noise = torch.randn(n, 3, 8, 8)  # the global generator, on purpose: it must not reach training
        return (stages[-1].networks["network"](noise) if "network" in stages[-1].networks else noise).clamp(0, 1)

    return Session(
        folder=folder, stages=stages, config=TrainingConfig(**{**values, **config}), data=Pictures(), order=InTurn,
        save=save, held_out=Pictures(9), preview=preview, about={"recipe": "r", "data": "d", "threads": 1},
        progress=Progress(silent=True),
    )  # fmt: skip


def final_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint and of the model of a run folder."""
    newest = max((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    files = [*sorted(newest.glob("*.safetensors")), *sorted((folder / "model").rglob("*.safetensors"))]
    return {f"{file.parent.name}/{file.name}:{key}": value for file in files for key, value in load_file(file).items()}


def assert_same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert different == []
