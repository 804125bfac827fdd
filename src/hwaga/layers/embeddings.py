"""Numbers as vectors: the sinusoid of a time and the small network behind it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sinusoid(
    time: Float[Tensor, " n"], width: int, *, cosine_first: bool, shift: float, period: float = 10_000.0
) -> Float[Tensor, "n width"]:
    """Sines and cosines of `time` at geometric frequencies, in float32; `width` must be even.

    Frequency i is period^(-i / (width/2 - shift)), i = 0 ... width/2 - 1. Public networks differ in the order of the two
    halves (`cosine_first`) and in `shift` (DDPM: 1, Stable Diffusion: 0); both have no default here for that reason.
    Source: Vaswani et al. 2017, section 3.5.
    """
    half = width // 2
    exponent = -math.log(period) * torch.arange(half, dtype=torch.float32, device=time.device) / (half - shift)
    angle = time.float()[:, None] * exponent.exp()[None, :]
    parts = (angle.cos(), angle.sin()) if cosine_first else (angle.sin(), angle.cos())
    return torch.cat(parts, dim=1)


def guidance_wave(scale: Float[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    """The sinusoid of guidance scales as public latent consistency models have it: of w = scale - 1, times 1000 (Luo et al.
    2023, section 4.2)."""
    return sinusoid((scale - 1) * 1000, width, cosine_first=False, shift=1.0)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear: from a sinusoid (n, in) to the vector (n, out) that every block is given.

    condition_width: a second sinusoid (n, c) is brought to the first one's width and added to it, as networks that are told
    their guidance scale have it (Meng et al. 2023, section 3.2; the public layout of latent consistency models).
    """

    def __init__(self, in_width: int, out_width: int, condition_width: int = 0) -> None:
        super().__init__()
        self.cond_proj = nn.Linear(condition_width, in_width, bias=False) if condition_width else None
        self.linear_1 = nn.Linear(in_width, out_width)
        self.linear_2 = nn.Linear(out_width, out_width)

    def forward(self, x: Float[Tensor, "n i"], condition: Float[Tensor, "n c"] | None = None) -> Float[Tensor, "n o"]:
        if (condition is None) != (self.cond_proj is None):
            raise ValueError("a guidance scale is given exactly to networks that are told one (guidance_width)")
        if self.cond_proj is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(nn.functional.silu(self.linear_1(x)))
