"""Layers whose weights are divided by their largest singular value, so that they stretch nothing (Miyato et al. 2018).

    u <- W v / |W v|,  v = W^T u / |W^T u|       one power iteration (algorithm 1), W as a matrix (out, everything else)
    sigma = u^T W v,   weight used = W / sigma   eq. 8; the gradient goes through sigma by W, u and v are constants

u is a buffer, so checkpoints hold it. It moves in training only, and once for each change of the weights, however often
the layer is called in between: neither accumulated parts nor a second objective changes what a step computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, normalize

from .conv import Conv2d, convolve3x3

_SAMPLE = 64  # numbers of the weights that tell whether they have changed


class _Spectral(nn.Module):
    """What the two layers share. `weight` (out, ...) is the parameter, not divided."""

    weight: Any
    u: Tensor
    seen: Tensor

    def _prepare(self) -> None:
        self.register_buffer("u", torch.zeros(self.weight.shape[0]))
        self.register_buffer("seen", torch.zeros(min(_SAMPLE, self.weight.numel())))

    @torch.no_grad()
    def reset_state(self, generator: torch.Generator, iterations: int = 15) -> None:
        """A start for u, near the first singular vector of the weights as they are."""
        self.u.copy_(normalize(torch.randn(self.u.shape, generator=generator), dim=0))
        self.seen.zero_()
        matrix = self.weight.flatten(1)
        for _ in range(iterations):
            self.u.copy_(normalize(matrix @ normalize(matrix.T @ self.u, dim=0), dim=0))

    def divided(self) -> Tensor:
        """W / sigma (Miyato et al. 2018, eq. 8)."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            here, u = matrix.float(), self.u.float()
            v = normalize(here.T @ u, dim=0)
            if self.training:
                sample = self._sample().float()
                changed = (sample != self.seen).any()
                u = torch.where(changed, normalize(here @ v, dim=0), u)
                v = normalize(here.T @ u, dim=0)
                self.u.copy_(u)
                self.seen.copy_(sample)
        sigma = torch.dot(u.to(matrix.dtype), matrix @ v.to(matrix.dtype))
        return self.weight / sigma.clamp(min=1e-12)  # weights of 0 stay 0

    def _sample(self) -> Tensor:
        """Numbers from all over the weights; the step is odd, so that they are not all of one column."""
        size = self.weight.numel()
        step = max(1, size // _SAMPLE - 1) | 1
        return self.weight.detach().flatten()[::step][: self.seen.numel()]


class SpectralConv2d(_Spectral, Conv2d):
    """`Conv2d` with its weights divided by the largest singular value of the matrix (out, in h w)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.divided()
        if self.eligible and self.minimal_filtering is True:
            return convolve3x3(x, weight, self.bias)
        return conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SpectralLinear(_Spectral, nn.Linear):
    """`nn.Linear` with its weights divided by their largest singular value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.divided(), self.bias)
