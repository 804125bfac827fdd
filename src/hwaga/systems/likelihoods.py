"""How likely a denoising system finds pictures, in bits a dimension.

    a table of steps      the variational bound, term by term          objectives/variational.py (Ho et al. 2020, eq. 5)
    any other process     the probability-flow ODE, of pictures on     objectives/likelihood.py (Song et al. 2021, eq. 39)
                          which uniform noise of one grey value lies

Both bound the likelihood of 8-bit pictures from the same side (the second one as far as its divergence is estimated).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..interfaces import Batch
from ..objectives.likelihood import Likelihood, dequantised, likelihood
from ..objectives.variational import Bound, bound
from ..processes.gaussian import GaussianDiffusion
from ..samplers.denoiser import denoiser
from ..samplers.noise import from_seed
from .pictures import to_inside

if TYPE_CHECKING:
    from .diffusion import Diffusion


def told(system: Diffusion) -> bool:
    """Whether a likelihood of pictures follows from the model: of latents or of a few-step student none does."""
    return system.config.autoencoder is None and getattr(system.config, "student", None) is None


@torch.no_grad()
def bits(
    system: Diffusion, image: Tensor, label: Tensor | None, seed: int, count: int | None, progress: Any
) -> tuple[Bound | Likelihood, int]:
    """Of pictures in [0, 1], and at how many indices of the table, or by how many evaluations, it was taken.

    count: about so many indices, log-spaced, as the terms are largest at little noise; None: all of them.
    """
    if not told(system):
        raise InputError(
            "the likelihood of pictures does not follow from this model, which denoises latents or is a student"
        )
    conditions = system.conditions(Batch(image, torch.arange(len(image)), label))
    denoise = denoiser(system.compute, system.process, conditions)
    noise = from_seed(seed, range(len(image)), system.device)
    x0 = to_inside(image).to(system.device)
    if not isinstance(system.process, GaussianDiffusion):
        found = likelihood(denoise, system.process, dequantised(x0, noise), noise, rtol=1e-3, atol=1e-3)
        return found, found.evaluations
    total, spaced = system.process.config.timesteps, None
    if count is not None and count < total - 1:
        spaced = sorted({int(k) for k in torch.logspace(0, math.log10(total - 1), count).round()})
    say = (lambda done, of: progress(done, of, "likelihood")) if progress else None
    terms = bound(denoise, system.process, x0, noise, indices=spaced, callback=say)
    return terms, len(terms.indices)
