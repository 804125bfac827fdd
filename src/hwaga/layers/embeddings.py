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


class TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear: from a sinusoid (n, in) to the vector (n, out) that every block is given."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, out_width)
        self.linear_2 = nn.Linear(out_width, out_width)

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        return self.linear_2(nn.functional.silu(self.linear_1(x)))
