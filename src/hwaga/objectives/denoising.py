"""The objective of diffusion: say what the noise was (Ho et al. 2020, algorithm 1 and eq. 14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..interfaces import Draw, Terms
from ..processes.gaussian import GaussianDiffusion
from ..processes.process import clean, noised, target
from .variational import step_term


def denoising(
    network: Callable[..., Tensor],
    process: GaussianDiffusion,
    x0: Float[Tensor, "n c h w"],
    conditions: Mapping[str, Tensor],
    draw: Draw,
    within: tuple[float, float] = (0.0, 1.0),
) -> Terms:
    """Terms of the loss on pictures in [-1, 1], one value a picture (n,): take the mean.

    `denoising`: weighted squared error of the raw prediction at a uniform index of the table, of the part `within` of it.
    `variance`, where the variance is learned: the bound's term at that index in bits a dimension, times T / 1000, with the
    mean held fixed (Nichol and Dhariwal 2021, eq. 16).
    """
    n, total = x0.shape[0], process.config.timesteps
    low, high = within
    place = low + (high - low) * draw.uniform("time", (n,))
    index = (place * total).long().clamp(0, total - 1)
    eps = draw.normal("noise", tuple(x0.shape))
    level = process.levels(index, x0)
    x = noised(x0, eps, level)
    raw = network(x, index.float(), **conditions).float()
    spread = None
    if process.config.learns_variance:
        raw, spread = raw.chunk(2, dim=1)
    error = (raw - target(process.config.predicts, x0, eps, level)).square().flatten(1).mean(1)
    terms = {"denoising": process.weight(level).flatten() * error}
    if spread is not None:
        said = clean(process.config.predicts, raw.detach(), x, level)
        terms["variance"] = step_term(process, x0, x, said, spread, index) * total / 1000
    return terms


def mean_terms(terms: Mapping[str, Tensor]) -> Terms:
    """Each term's mean over the batch."""
    return {name: value.mean() for name, value in terms.items()}


def held_out_bins(loss: Callable[[tuple[float, float]], Terms], bins: int = 5) -> dict[str, Tensor]:
    """The first term by equal bins of time, and their mean as `loss`: one value a picture (n,) each."""
    edges = torch.linspace(0, 1, bins + 1).tolist()
    found = {}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        found[f"loss t {low:.1f}-{high:.1f}"] = next(iter(loss((low, high)).values()))
    return {"loss": torch.stack(list(found.values())).mean(0), **found}
