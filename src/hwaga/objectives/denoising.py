"""The objective of diffusion: say what the noise was (Ho et al. 2020, algorithm 1 and eq. 14).

It is one objective under many names. With `predicts: score` and the weight `snr` it is denoising score matching, sigma^2 times the
squared error of the score (Vincent 2011; Song and Ermon 2019, eq. 5 and 6); with a rectified flow, conditional flow matching
(Lipman et al. 2023, eq. 9); with the preconditioning of EDM, the loss of Karras et al. 2022, eq. 8. The process says what
the network is given, what it should answer, which times are drawn and what an error there weighs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..interfaces import Draw, Terms
from ..processes.gaussian import GaussianDiffusion
from ..processes.process import Process, noised, snr
from .variational import step_term


def denoising(
    network: Callable[..., Tensor],
    process: Process,
    x0: Float[Tensor, "n ..."],
    conditions: Mapping[str, Tensor],
    draw: Draw,
    within: tuple[float, float] | None = None,
    uncertainty: Callable[[Tensor], Tensor] | None = None,
) -> Terms:
    """Terms of the loss on x0 (pictures in [-1, 1], latents, points), one value a picture (n,): take the mean.

    `denoising`: weighted squared error of the raw prediction at a time as the process distributes it, or evenly `within` a part.
    uncertainty: u (n,) of log SNR (n,), learned with it: the term is then e^-u times itself, plus u (networks/uncertainty.py).
    `variance`, where the variance is learned: the bound's term at that index in bits a dimension, times T / 1000, with the
    mean held fixed (Nichol and Dhariwal 2021, eq. 16).
    """
    t = process.draw_times(draw, x0.shape[0], within)
    eps = draw.normal("noise", tuple(x0.shape))
    level = process.levels(t, x0)
    x = noised(x0, eps, level)
    raw = network(process.entering(x, level), process.fed(t).float().to(x.device), **conditions).float()
    spread = None
    if process.config.learns_variance:
        raw, spread = raw.chunk(2, dim=1)
    error = (raw - process.target(x0, eps, level)).square().flatten(1).mean(1)
    terms = {"denoising": process.weight(level).flatten() * error}
    if uncertainty is not None:
        u = uncertainty(snr(level).flatten().log())
        terms["denoising"] = terms["denoising"] * (-u).exp() + u
    if spread is not None and isinstance(process, GaussianDiffusion):
        said = process.clean(raw.detach(), x, level)
        index = process.index_at(t).to(x.device)
        terms["variance"] = step_term(process, x0, x, said, spread, index) * process.config.timesteps / 1000
    return terms


def mean_terms(terms: Mapping[str, Tensor], weight: Tensor | None = None) -> Terms:
    """Each term's mean over the batch; weight: (n,) what each picture's is multiplied by before."""
    return {name: (value if weight is None else value * weight.to(value)).mean() for name, value in terms.items()}


def held_out_bins(loss: Callable[[tuple[float, float]], Terms], bins: int = 5) -> dict[str, Tensor]:
    """The first term by equal bins of time, and their mean as `loss`: one value a picture (n,) each."""
    edges = torch.linspace(0, 1, bins + 1).tolist()
    found = {}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        found[f"loss t {low:.1f}-{high:.1f}"] = next(iter(loss((low, high)).values()))
    return {"loss": torch.stack(list(found.values())).mean(0), **found}
