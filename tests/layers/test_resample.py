"""Filtered up- and down-sampling against its definition, and what follows from it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hwaga.layers.modulation import convolve, demodulation, modulated
from hwaga.layers.resample import binomial, downsample, jinc, kaiser, resample, upsample

TAPS = binomial((1, 3, 3, 1))


def plainly(x, taps, up, down, before, after, gain):
    """Zeros, padding, convolution, every n-th: word for word."""
    n, c, h, w = x.shape
    wide = x.new_zeros(n, c, h * up, w * up)
    wide[:, :, ::up, ::up] = x
    wide = F.pad(wide, (before, after, before, after))
    kernel = torch.tensor(taps, dtype=x.dtype)
    kernel = (kernel[:, None] * kernel).flip(0, 1).expand(c, 1, -1, -1) * gain
    return F.conv2d(wide, kernel, groups=c)[:, :, ::down, ::down]


@pytest.mark.parametrize("channels", [3, 9])
@pytest.mark.parametrize("taps", [(0.25, 0.75, 0.5), TAPS, (0.1, 0.2, 0.3, 0.25, 0.1, 0.05)])
@pytest.mark.parametrize(
    ("up", "down", "before", "after"), [(1, 1, 2, 1), (2, 1, 2, 1), (1, 2, 1, 1), (2, 1, -1, 3), (3, 2, 2, 4)]
)
def test_every_way_is_the_definition(channels, taps, up, down, before, after):
    x = torch.randn(2, channels, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = resample(x, taps, up=up, down=down, before=before, after=after, gain=3.0)
    assert torch.allclose(ours, plainly(x, taps, up, down, before, after, 3.0), atol=1e-12)
    tensor = torch.tensor(taps, dtype=torch.float64)
    assert torch.allclose(ours, resample(x, tensor, up=up, down=down, before=before, after=after, gain=3.0), atol=1e-12)
    square = tensor[:, None] * tensor
    assert torch.allclose(ours, resample(x, square, up=up, down=down, before=before, after=after, gain=3.0), atol=1e-12)


@pytest.mark.parametrize("channels", [3, 16])
def test_a_constant_stays_what_it_is_up_and_down(channels):
    x = torch.full((1, channels, 8, 8), 0.7)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(upsample(x, TAPS)[inside], torch.tensor(0.7))
    assert torch.allclose(downsample(upsample(x, TAPS), TAPS)[inside], torch.tensor(0.7))
    assert upsample(x, TAPS).shape == (1, channels, 16, 16) and downsample(x, TAPS).shape == (1, channels, 4, 4)


def test_nothing_moves_when_the_size_changes():
    """The centre of gravity of a spot stays where it is, in shares of the side."""
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 5, 9] = 1
    for y in (upsample(x, TAPS), downsample(x, TAPS)):
        size = y.shape[-1]
        at = (torch.arange(size) + 0.5) / size
        mass = y.sum()
        assert abs(float((y.sum((0, 1, 3)) * at).sum() / mass) - 5.5 / 16) < 0.02
        assert abs(float((y.sum((0, 1, 2)) * at).sum() / mass) - 9.5 / 16) < 0.02


def test_its_derivatives_are_those_of_a_linear_map():
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: resample(q, TAPS, up=2, before=2, after=1), (x,))
    wide = torch.randn(1, 9, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda q: resample(q, TAPS, down=2, before=1, after=1) ** 2, (wide,))


def test_sharp_filters_pass_what_is_below_the_cutoff_and_stop_what_is_above():
    taps = kaiser(48, cutoff=4.0, width=2.0, rate=32.0).double()
    at = torch.arange(48, dtype=torch.float64) / 32

    def response(frequency):
        return abs((taps * torch.exp(-2j * math.pi * frequency * at)).sum())

    assert abs(response(1.0) - 1) < 0.02 and response(8.0) < 0.02 and abs(response(4.0) - 0.5) < 0.05
    square = jinc(48, cutoff=4.0, width=2.0, rate=32.0)
    assert torch.allclose(square, square.T) and torch.allclose(square, square.rot90()) and abs(square.sum() - 1) < 1e-5


def test_one_shared_kernel_equals_a_kernel_for_each_picture():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 8, 6, 6, generator=g), torch.randn(5, 8, 3, 3, generator=g)
    style = torch.randn(3, 8, generator=g)
    own = weight[None] * style[:, None, :, None, None]
    own = own / (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    plain = F.conv2d(x.reshape(1, 24, 6, 6), own.reshape(15, 8, 3, 3), padding=1, groups=3).view(3, 5, 6, 6)
    assert (modulated(x, weight, style) - plain).abs().max() < 1e-5


def test_demodulation_gives_unit_variance_to_unit_noise():
    g = torch.Generator().manual_seed(0)
    weight, style = torch.randn(6, 32, 3, 3, generator=g), torch.rand(4, 32, generator=g) * 5 + 0.1
    norm = (weight[None] * style[:, None, :, None, None] * demodulation(weight, style)[:, :, None, None, None]).square()
    assert torch.allclose(norm.sum((2, 3, 4)), torch.ones(4, 6), atol=1e-5)
    y = modulated(torch.randn(4, 32, 64, 64, generator=g), weight, style)[:, :, 1:-1, 1:-1]
    assert (y.var((2, 3)) - 1).abs().max() < 0.15


def test_a_convolution_that_doubles_is_zeros_between_pixels_a_convolution_and_the_filter():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 3, 5, 5, generator=g), torch.randn(4, 3, 3, 3, generator=g)
    wide = torch.zeros(1, 3, 10, 10)
    wide[:, :, ::2, ::2] = x
    padded = F.pad(wide, (3, 2, 3, 2))
    turned = F.conv2d(padded, weight.flip(2, 3))  # a transposed convolution lays its kernel down unturned
    plain = resample(turned, TAPS, gain=4.0)
    assert torch.allclose(convolve(x, weight, up=2, taps=TAPS), plain, atol=1e-5)
