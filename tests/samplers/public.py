"""A public scheduler of diffusers and ours, walked with one network, one start and the same draws."""

from __future__ import annotations

import importlib
import math

import torch

from hwaga.formats import schedulers
from hwaga.processes.spacing import Spaced
from hwaga.samplers import ON_GRID, SAMPLERS
from hwaga.samplers.denoiser import denoiser
from hwaga.systems.diffusion import SamplingConfig

SHAPE = (2, 3, 4, 4)
VE = ("Euler", "LMS", "Heun")  # classes that walk in x / alpha


def network(x, time, **conditions):
    """Smooth, bounded, different at every place and time, so that no error of a step is forgiven."""
    t = time.view(-1, 1, 1, 1) / 500
    row = torch.linspace(0.5, 1.5, x.shape[-1])
    return torch.tanh(0.8 * x * row + 0.5 * torch.sin(3 * t)) + 0.1 * x.roll(1, dims=1)


def draws(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=g) for _ in range(n)]


def theirs(name, steps, config, monkeypatch, **step):
    """The end of the path of a diffusers scheduler (n, c, h, w), in variance preserving form."""
    import diffusers

    recorded = draws(steps * 4 + 2)
    start, rest = recorded[0], iter(recorded[1:])
    cls = getattr(diffusers, name)
    monkeypatch.setattr(
        importlib.import_module(cls.__module__), "randn_tensor", lambda *a, **k: next(rest), raising=False
    )
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    x = start * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else start.clone()
    fed = 1000 if name.startswith("Flow") else 1
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        raw = network(given, torch.full((SHAPE[0],), float(t)) / fed)
        x = scheduler.step(raw, t, x, **step).prev_sample
    if name.startswith(VE):
        x = x / math.sqrt(1 + float(scheduler.sigmas[-1]) ** 2)
    return x


def ours(name, steps, config, **options):
    """The same by the scheduler's config as a public folder holds it."""
    process_config, sampling = schedulers.read({"_class_name": name, **config}, "scheduler_config.json")
    return walked(process_config.build(), SamplingConfig(**sampling), steps, **options)


def walked(process, sampling, steps, name=None, **options):
    name = name or sampling.sampler
    sampler = SAMPLERS[name]
    options = {**sampling.of(name), **options}
    if name == "ddpm":
        options["variance"] = process.config.variance
    how = {k: v for k, v in options.items() if k in ON_GRID}
    how = Spaced(**{"rule": sampler.rule, "ends_at_data": sampler.ends_at_data, **how})
    own = {k: v for k, v in options.items() if k not in ON_GRID}
    if sampler.asks_process:
        own["process"] = process
    recorded = draws(steps * 4 + 2)
    start, rest = recorded[0], iter(recorded[1:])
    grid = process.grid(steps, how)
    x = start * process.start_scale(grid[0], how)
    return sampler.run(denoiser(network, process, {}), x, grid, noise=lambda name, shape: next(rest), **own)
