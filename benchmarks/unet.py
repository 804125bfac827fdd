"""The U-Net of DDPM against diffusers' UNet2DModel with the same weights: forward, sampling, a training step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hwaga
from hwaga.systems.base import System
from hwaga.training import EmaConfig, Trainer, TrainingConfig

from .pairing import Row, compare, gflop
from .peers import CIFAR, NARROW, save_ddim, unet2d, version, walked
from .pictures import InOrder, Pictures, random_pictures

NETWORKS = (("35.7 M", CIFAR, 0.8, 16), ("6.5 M", NARROW, 0.9, 64))  # name, sizes, aim, batch of the training step
STEPS, PICTURES = 50, 16


def rows() -> Iterator[Row]:
    peer = version("diffusers")
    for name, sizes, aim, batch in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            public = unet2d(**sizes)
            save_ddim(Path(folder), public)
            system = hwaga.load(folder)
        public.eval()
        for n in (1, 16):
            yield _forward(f"UNet {name}", peer, system, public, n, aim)
        yield _sampling(f"UNet {name}", peer, system, public, aim)
        yield _training(f"UNet {name}", peer, system, public, batch, aim)


def _given(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 32, 32, generator=generator), torch.randint(0, 1000, (n,), generator=generator)


@torch.no_grad()
def _forward(group: str, peer: str, system: System, public: Any, n: int, aim: float) -> Row:
    x, t = _given(n)
    network, at = system.networks["network"], t.float()
    difference = (network(x, at) - public(x, t).sample).abs().max().item()
    return compare(
        group, f"forward, batch {n}", peer, lambda: network(x, at), lambda: public(x, t).sample, aim=aim,
        gflop=gflop(lambda: public(x, t)), difference=difference,
    )  # fmt: skip


@torch.no_grad()
def _sampling(group: str, peer: str, system: System, public: Any, aim: float) -> Row:
    """DDIM, 50 steps, 16 pictures, from the same noise; no bars, no files.

    The paths of an untrained network are chaotic: each step drives rounding errors apart, by a factor of ten every few
    steps. With a thousandth of the last layer's weights they stay together, and the work is the same.
    """
    from diffusers import DDIMScheduler

    for network in (public, system.networks["network"]):
        network.conv_out.weight.mul_(1e-3)
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    start = torch.randn(PICTURES, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def ours() -> Tensor:
        return system.sample(
            n=PICTURES, steps=STEPS, sampler="ddim", noise={"noise": start}, seed=0, output="tensor", progress=False
        )

    def theirs() -> Tensor:
        return walked(public, scheduler, start, STEPS)

    difference = (ours() - theirs()).abs().max().item()
    work = STEPS * gflop(lambda: public(start, 0))
    return compare(
        group, f"DDIM-{STEPS} of {PICTURES} pictures", peer, ours, theirs, rounds=3, patience=240, aim=aim, gflop=work,
        difference=difference,
    )  # fmt: skip


def _training(group: str, peer: str, system: System, public: Any, batch: int, aim: float) -> Row:
    """One whole step on each side: noising, forward, backward, AdamW, moving average. First the gradients are compared."""
    difference = _gradient_difference(system.networks["network"], public, min(batch, 16))
    pictures = Pictures(random_pictures(batch))
    config = TrainingConfig(
        batch_size=batch, learning_rate=1e-6, ema=EmaConfig(half_lives=(20_000.0,)), dtype="float32"
    )  # the rate is small so that the weights stay what they are; it costs the same
    trainer = Trainer(system.stages()[0], config, pictures, InOrder(batch))
    theirs = _plain_step(public, pictures.image)
    public.train()
    x, t = _given(batch)
    work = gflop(lambda: public(x, t).sample.square().mean().backward())
    public.zero_grad()
    return compare(
        group, f"training step, batch {batch}", peer, trainer.step, theirs, rounds=7, patience=180, aim=aim, gflop=work,
        difference=difference, note="difference: of the whole gradient, relative, by norm",
    )  # fmt: skip


def _gradient_difference(ours: torch.nn.Module, public: torch.nn.Module, n: int) -> float:
    x, t = _given(n)
    names = dict(ours.named_parameters())
    ours(x, t.float()).square().mean().backward()
    public(x, t).sample.square().mean().backward()
    difference, whole = 0.0, 0.0
    for name, parameter in public.named_parameters():
        difference += (names[name].grad - parameter.grad).square().sum().item()
        whole += parameter.grad.square().sum().item()
    for network in (ours, public):
        network.zero_grad()
    return (difference / whole) ** 0.5


def _plain_step(public: Any, images: Tensor) -> Callable[[], None]:
    """The loop of diffusers' unconditional example, less its logging and its accelerator."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(public.parameters(), lr=1e-6)
    average = EMAModel(public.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step() -> None:
        noise = torch.randn(images.shape)
        t = torch.randint(0, 1000, (len(images),))
        loss = F.mse_loss(public(scheduler.add_noise(images, noise, t), t).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(public.parameters())

    return step
