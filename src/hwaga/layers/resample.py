"""Filtered up- and down-sampling: insert zeros, filter, keep every n-th pixel; in plain PyTorch, fast on a CPU too.

    y = gain * ((x with `up - 1` zeros after each pixel, padded by before and after) * taps)[::down]

in both directions alike; padding is counted at the high rate and may be negative (it then cuts off). It is linear in x,
and any number of derivatives may be taken.

Many channels are convolved each by itself, short taps in both directions at once, in channels_last (on a CPU a fifth of the
time of other layouts); up-sampling is a transposed convolution: no zero is ever multiplied. Few channels of small pictures are
two matrix products instead: 1-D taps are one matrix a direction, rates and padding in it.

    binomial((1, 3, 3, 1))     the low-pass filter of StyleGAN2 (Karras et al. 2020, appendix B)
    kaiser(...), jinc(...)     the windowed sincs of StyleGAN3 and their radial form (Karras et al. 2021, appendix C)
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 8  # channels, below which a direction of a picture of up to SMALL pixels a side is a matrix product
SMALL = 128
SHORT = 4  # taps up to which both directions are done at once


Taps = tuple[float, ...] | Tensor | None


def binomial(weights: tuple[float, ...]) -> tuple[float, ...]:
    """1-D taps that sum to 1: (1, 3, 3, 1) / 8."""
    return tuple(weight / sum(weights) for weight in weights)


def resample(
    x: Tensor, taps: Taps, *, up: int = 1, down: int = 1, before: int = 0, after: int = 0, gain: float = 1.0
) -> Tensor:
    """(n, c, h, w) -> (n, c, h', w') with h' = (h up + before + after - k) // down + 1 for k taps.

    taps: k numbers, a tensor (k,) or (k, k), convolved (not correlated); None is a single 1.
    """
    scale = math.sqrt(gain)
    if isinstance(taps, tuple) and x.shape[1] < FEW and max(x.shape[2:]) * up <= SMALL:
        how = (up, down, before, after, scale, x.dtype, x.device)
        rows, columns = (_matrix(taps, size, *how) for size in x.shape[2:])
        return torch.matmul(rows, torch.matmul(x, columns.t()))
    whole = x.new_tensor((1.0,) if taps is None else taps) if not isinstance(taps, Tensor) else taps.to(x.dtype)
    if whole.dim() == 1 and len(whole) <= SHORT:
        whole = whole[:, None] * whole
    if whole.dim() == 2:
        return _convolved(x, whole * gain, up, down, before, after)
    x = _convolved(x, whole[None, :] * scale, up, down, before, after)
    return _convolved(x, whole[:, None] * scale, up, down, before, after)


def upsample(x: Tensor, taps: tuple[float, ...], factor: int = 2) -> Tensor:
    """`factor` times the size, the same brightness; the picture stays in its place."""
    k = len(taps)
    before, after = (k + factor - 1) // 2, (k - factor) // 2
    return resample(x, taps, up=factor, before=before, after=after, gain=float(factor**2))


def downsample(x: Tensor, taps: tuple[float, ...], factor: int = 2) -> Tensor:
    """1 / `factor` of the size; the picture stays in its place."""
    k = len(taps)
    return resample(x, taps, down=factor, before=(k - factor + 1) // 2, after=(k - factor) // 2)


# -------------------------------------------------------------------------------------------------------- two ways to do it


@lru_cache(maxsize=256)
def _matrix(
    taps: tuple[float, ...], size: int, up: int, down: int, before: int, after: int, scale: float, dtype: torch.dtype,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """(out, size): one direction as a matrix."""
    k = len(taps)
    out = (size * up + before + after - k) // down + 1
    table = [[0.0] * size for _ in range(out)]
    for i in range(out):
        for j in range(k):
            at = i * down - before + j  # place at the high rate, before padding
            if at % up == 0 and 0 <= at // up < size:
                table[i][at // up] += scale * taps[k - 1 - j]
    with torch.inference_mode(False):
        return torch.tensor(table, dtype=dtype, device=device)


def _convolved(x: Tensor, taps: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    """With taps (a, b), either 1 in a direction that is left alone."""
    c = x.shape[1]
    x = x.contiguous(memory_format=torch.channels_last)
    a, b = taps.shape
    across = (a > 1 or b == 1, b > 1 or a == 1)  # which directions are filtered and resampled
    first = [before if on else 0 for on in across]
    last = [after if on else 0 for on in across]
    if up > 1:  # a transposed convolution lays the taps down at every pixel: the same as padding by k - 1 on both sides
        stride = [up if on else 1 for on in across]
        x = F.conv_transpose2d(x, taps.expand(c, 1, a, b), stride=stride, groups=c)
        # it lacks the zeros behind the last pixel, and has k - 1 pixels before the first whole sum
        first = [p - (k - 1) for p, k in zip(first, (a, b), strict=True)]
        last = [p - (k - 1) + (up - 1 if on else 0) for p, k, on in zip(last, (a, b), across, strict=True)]
        x = _padded(x, first, last)
        return x[:, :, :: down if across[0] else 1, :: down if across[1] else 1] if down > 1 else x
    x = _padded(x, first, last)
    stride = [down if on else 1 for on in across]
    return F.conv2d(x, taps.flip(0, 1).expand(c, 1, a, b), stride=stride, groups=c)


def _padded(x: Tensor, first: list[int], last: list[int]) -> Tensor:
    if not any(first) and not any(last):
        return x
    return F.pad(x, (first[1], last[1], first[0], last[0]))


# ------------------------------------------------------------------------------------------------------------ sharp filters


def kaiser(taps: int, cutoff: float, width: float, rate: float) -> Tensor:
    """A windowed sinc (taps,) float32 of sum 1: passes what is below `cutoff`, over a transition of `width`, at a
    sampling `rate` (all in one unit). The window is Kaiser's, as wide a transition as `taps` can make it.

    Source: Karras et al. 2021, appendix C; Kaiser 1974 (the two formulas for beta).
    """
    window = _window(taps, width, rate)
    at = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    response = torch.sinc(2 * cutoff / rate * at) * window
    return (response / response.sum()).float()


def jinc(taps: int, cutoff: float, width: float, rate: float) -> Tensor:
    """The radially symmetric form of `kaiser`, (taps, taps): its sharp edge is a circle of frequencies."""
    window = _window(taps, width, rate)
    at = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    radius = torch.hypot(at[:, None], at[None, :])
    safe = radius.clamp(min=1e-12)
    response = torch.where(
        radius > 0, torch.special.bessel_j1(2 * cutoff * math.pi * safe) / (math.pi * safe), torch.tensor(cutoff)
    )
    response = response * window[:, None] * window[None, :]
    return (response / response.sum()).float()


def _window(taps: int, width: float, rate: float) -> Tensor:
    attenuation = 2.285 * (taps - 1) * math.pi * (width / (rate / 2)) + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    return torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
