"""What StyleGAN's networks are made of: layers whose learning rate is equal whatever their size, and modulated convolutions.

Equalized learning rate (Karras et al. 2018, section 4.1): weights begin as N(0, 1) / m and are multiplied by m / sqrt(fan in)
when they are used, m being the layer's share of the learning rate; an optimizer that divides by the gradient's size
then moves all of them alike.

Weight demodulation (Karras et al. 2020, section 2.2, eq. 1 to 3). A picture's style s scales the input channels of the
kernel, and each output channel's kernel is brought back to unit norm:

    w'_oik = s_i w_oik        w''_oik = w'_oik / sqrt(sum over i, k of w'_oik^2 + eps)

Written so, every picture has kernels of its own: a grouped convolution, which is slow. Since convolving is linear, s may as
well scale the input and the norm divide the output, with one kernel for all: `modulated`. Equal up to rounding.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .conv import convolve3x3
from .resample import resample

SLOPE = 0.2  # of leaky ReLU
Activation = Literal["linear", "lrelu"]


def activate(x: Tensor, how: Activation, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """Leaky ReLU times sqrt(2) (which keeps the variance), or nothing; times `gain`; held to +-clamp * gain."""
    if how == "lrelu":
        x = F.leaky_relu(x, SLOPE)
        gain = gain * math.sqrt(2)
        limit = None if clamp is None else clamp * gain / math.sqrt(2)
    else:
        limit = None if clamp is None else clamp * gain
    if gain != 1:
        x = x * gain
    return x if limit is None else x.clamp(-limit, limit)


class EqualLinear(nn.Module):
    """x W^T m / sqrt(fan in) + b m, then the activation. `rate` is m."""

    def __init__(
        self, inputs: int, outputs: int, *, activation: Activation = "linear", rate: float = 1.0, bias: bool = True,
        weight_init: float = 1.0, bias_init: float | tuple[float, ...] = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.activation: Activation = activation
        self.rate, self.weight_init, self.bias_init = rate, weight_init, bias_init

    def initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.weight.normal_(generator=generator).mul_(self.weight_init / self.rate)
            if self.bias is not None:
                self.bias.copy_(torch.tensor(self.bias_init))

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        weight = self.weight * (self.rate / math.sqrt(self.weight.shape[1]))
        bias = self.bias if self.bias is None or self.rate == 1 else self.bias * self.rate
        return activate(F.linear(x, weight, bias), self.activation)


class EqualConv2d(nn.Module):
    """A convolution (k = 1 or 3) with equalized learning rate, after or before which the size is doubled or halved."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, activation: Activation, bias: bool = True, up: int = 1,
        down: int = 1, taps: tuple[float, ...] = (), clamp: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.activation: Activation = activation
        self.up, self.down, self.taps, self.clamp = up, down, taps, clamp

    def initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.weight.normal_(generator=generator)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Float[Tensor, "n i h w"], gain: float = 1.0) -> Float[Tensor, "n o y x"]:
        weight = self.weight * (1 / math.sqrt(self.weight[0].numel()))
        x = convolve(x, weight, up=self.up, down=self.down, taps=self.taps)
        if self.bias is not None:
            x = x + self.bias[:, None, None].to(x.dtype)
        return activate(x, self.activation, gain, self.clamp)


def convolve(
    x: Tensor, weight: Tensor, *, up: int = 1, down: int = 1, taps: tuple[float, ...] = ()
) -> Float[Tensor, "n o y x"]:
    """A convolution (1 x 1 or 3 x 3, padded so that the size stays) that doubles or halves the size, filtered by `taps`.

    Up: the zeros between the pixels are never multiplied (a transposed convolution), then the filter. Down: the filter, then
    a strided convolution. A 1 x 1 is done where the picture is small. Weights (o, i, k, k) are correlated, as in torch.
    """
    kernel, k = weight.shape[-1], len(taps)
    x = x.contiguous(memory_format=torch.channels_last)
    if up > 1 and kernel == 1:
        return resample(
            F.conv2d(x, weight), taps, up=up, before=(k + up - 1) // 2, after=(k - up) // 2, gain=float(up**2)
        )
    if up > 1:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=up)
        # padding of convolution and filter together, less what a transposed convolution has beside the zeros between
        before = kernel // 2 + (k + up - 1) // 2 - (kernel - 1)
        after = kernel // 2 + (k - up) // 2 - (kernel - up)
        return resample(x, taps, before=before, after=after, gain=float(up**2))
    if down > 1 and kernel == 1:
        return F.conv2d(resample(x, taps, down=down, before=(k - down + 1) // 2, after=(k - down) // 2), weight)
    if down > 1:
        pad = (k - down + 1) // 2 + kernel // 2, (k - down) // 2 + kernel // 2
        return F.conv2d(resample(x, taps, before=pad[0], after=pad[1]), weight, stride=down)
    return convolve3x3(x, weight) if kernel == 3 else F.conv2d(x, weight, padding=kernel // 2)


def demodulation(
    weight: Float[Tensor, "o i a b"], style: Float[Tensor, "n i"], eps: float = 1e-8
) -> Float[Tensor, "n o"]:
    """1 / sqrt(sum over i, k of (s_i w_oik)^2 + eps): what brings every output channel back to unit variance."""
    return torch.rsqrt(F.linear(style.square(), weight.square().sum((2, 3))) + eps)


def modulated(
    x: Float[Tensor, "n i h w"], weight: Float[Tensor, "o i a b"], style: Float[Tensor, "n i"], *, demodulate: bool = True,
    up: int = 1, taps: tuple[float, ...] = (),
) -> Float[Tensor, "n o y x"]:  # fmt: skip
    """A convolution with every picture's own modulated kernel, done with one shared kernel (see above)."""
    x = convolve(x * style[:, :, None, None], weight, up=up, taps=taps)
    return x * demodulation(weight, style)[:, :, None, None] if demodulate else x


def second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Vectors (n, c) brought to unit mean square."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps)


def batch_deviation(x: Float[Tensor, "n c h w"], group: int, channels: int) -> Float[Tensor, "n f h w"]:
    """The standard deviation over a group of pictures, averaged over places and features, as a picture of its own: shows
    D a generator that paints one thing only (Karras et al. 2018, section 3). Picture i is grouped with i + n / group, ..."""
    n, c, h, w = x.shape
    group = next(g for g in range(min(group, n), 0, -1) if n % g == 0)
    y = x.reshape(group, n // group, channels, c // channels, h, w)
    y = (y - y.mean(0)).square().mean(0)
    y = (y + 1e-8).sqrt().mean((2, 3, 4))  # (n / group, channels)
    return y.repeat(group, 1)[:, :, None, None].expand(-1, -1, h, w)
