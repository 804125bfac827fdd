"""Samplers against diffusers' schedulers: their own arithmetic, and DPM-Solver++ of 20 steps end to end with a UNet.

A sampler's own arithmetic is what a call costs beside the network: both sides walk 20 steps with a network that costs nothing. The
note says what share of a step of the 6.5 M UNet that is (aim: 2 %).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hwaga
from hwaga.formats import schedulers
from hwaga.processes.spacing import Spaced
from hwaga.samplers import ON_GRID, SAMPLERS
from hwaga.samplers.denoiser import denoiser
from hwaga.systems.base import System
from hwaga.systems.diffusion import SamplingConfig

from .pairing import Row, compare, gflop, timed
from .peers import CIFAR, NARROW, hide_torchvision, save_ddim, unet2d, version, walked

GROUP, STEPS, PICTURES = "samplers", 20, 16
CLASSES = (
    "DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
    "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
PLAIN = {"PNDMScheduler": {"skip_prk_steps": True}}


@torch.no_grad()
def rows() -> Iterator[Row]:
    hide_torchvision()
    peer = version("diffusers")
    system, public = _pair(NARROW)
    x, at = torch.randn(PICTURES, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(PICTURES)
    network = system.networks["network"]
    network(x, at)
    step = min(timed(lambda: network(x, at)) for _ in range(3))
    for name in CLASSES:
        yield _arithmetic(name, peer, x, step)
    yield _whole("UNet 6.5 M", peer, system, public, 0.9)
    yield _whole("UNet 35.7 M", peer, *_pair(CIFAR), 0.8)


def _pair(sizes: Any) -> tuple[System, Any]:
    with tempfile.TemporaryDirectory() as folder:
        public = unet2d(**sizes)
        save_ddim(Path(folder), public)
        return hwaga.load(folder), public.eval()


def _arithmetic(name: str, peer: str, start: Tensor, step: float) -> Row:
    """20 steps around a network that gives half of what it is given."""
    import diffusers

    config = {"_class_name": name, "clip_sample": False, **PLAIN.get(name, {})}
    process_config, sampling = schedulers.read(config, name)
    process, chosen = process_config.build(), SamplingConfig(**sampling)
    sampler, options = SAMPLERS[chosen.sampler], chosen.of(chosen.sampler)
    how = {key: value for key, value in options.items() if key in ON_GRID}
    how = Spaced(**{"rule": sampler.rule, "ends_at_data": sampler.ends_at_data, **how})
    own = {key: value for key, value in options.items() if key not in ON_GRID}
    if sampler.asks_process:
        own["process"] = process
    denoise = denoiser(lambda x, time: x * 0.5, process, {})
    theirs_config = {key: value for key, value in config.items() if key in schedulers.DEFAULTS[name]}
    scheduler = getattr(diffusers, name)(**theirs_config)

    def no_noise(kind: str, shape: tuple[int, ...]) -> Tensor:
        raise AssertionError(f"{kind} drawn by a deterministic sampler")

    def ours() -> Tensor:
        grid = process.grid(STEPS, how)
        return sampler.run(denoise, start * process.start_scale(grid[0], how), grid, noise=no_noise, **own)

    def theirs() -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = start * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t) * 0.5, t, x).prev_sample
        return x

    difference = (ours() - theirs()).abs().max().item()
    share = min(timed(ours) for _ in range(3)) / (STEPS * sampler.evaluations * step)
    note = f"{share:.1%} of what the 6.5 M UNet takes for the same steps"
    return compare(
        GROUP, f"own arithmetic of {chosen.sampler}, {STEPS} steps of {PICTURES} pictures", peer, ours, theirs,
        difference=difference, note=note,
    )  # fmt: skip


def _whole(name: str, peer: str, system: System, public: Any, aim: float) -> Row:
    """From the same noise to pictures; no bars, no files. Last layers are scaled down, as paths of an untrained network drive
    rounding errors apart (benchmarks/unet.py)."""
    from diffusers import DPMSolverMultistepScheduler

    for network in (public, system.networks["network"]):
        network.conv_out.weight.mul_(1e-3)
    scheduler = DPMSolverMultistepScheduler()
    start = torch.randn(PICTURES, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def ours() -> Tensor:
        return system.sample(
            n=PICTURES, steps=STEPS, sampler="dpm-solver++", sampler_options={"spacing": "linspace"},
            noise={"noise": start}, seed=0, output="tensor", progress=False,
        )  # fmt: skip

    def theirs() -> Tensor:
        return walked(public, scheduler, start, STEPS)

    difference = (ours() - theirs()).abs().max().item()
    return compare(
        GROUP, f"DPM-Solver++-{STEPS} of {PICTURES} pictures, {name}", peer, ours, theirs, rounds=3, patience=240, aim=aim,
        gflop=STEPS * gflop(lambda: public(start, 0)), difference=difference,
    )  # fmt: skip
