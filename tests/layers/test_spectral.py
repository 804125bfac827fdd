"""Spectral norm: against the singular value decomposition, and what its buffers do."""

import copy

import pytest
import torch
from torch.nn.functional import conv2d, linear

from hwaga.layers.initialise import build_on, initialise, normal
from hwaga.layers.spectral import SpectralConv2d, SpectralLinear


class Config:
    def __init__(self, make):
        self.build = make


LAYERS = {
    "linear": (lambda: SpectralLinear(12, 7), (4, 12)),
    "3 x 3": (lambda: SpectralConv2d(4, 6, 3, padding=1), (2, 4, 8, 8)),
    "strided": (lambda: SpectralConv2d(4, 6, 4, stride=2, padding=1), (2, 4, 8, 8)),
    "groups": (lambda: SpectralConv2d(4, 6, 3, padding=1, groups=2), (2, 4, 8, 8)),
}


def made(name, seed=0):
    make, shape = LAYERS[name]
    layer = build_on(Config(make))
    initialise(layer, torch.Generator().manual_seed(seed), weight=normal(0.3))
    return layer, torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LAYERS)
def test_it_divides_by_the_largest_singular_value(name):
    layer, x = made(name)
    for _ in range(200):  # each change of the weights is one more power iteration
        with torch.no_grad():
            layer.weight.mul_(1.001)
        layer.divided()
    sigma = torch.linalg.svdvals(layer.weight.flatten(1))[0]
    torch.testing.assert_close(layer.divided(), layer.weight / sigma, rtol=1e-4, atol=1e-5)
    plain = (
        linear(x, layer.weight / sigma, layer.bias)
        if name == "linear"
        else conv2d(x, layer.weight / sigma, layer.bias, layer.stride, layer.padding, 1, layer.groups)
    )
    torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_dividing_by_u_w_v():
    """dL/dW = (G - <G, W / sigma> u v^T) / sigma, with u and v held (Miyato et al. 2018, eq. 12)."""
    layer, x = made("linear")
    layer(x)
    layer.eval()
    layer(x).square().sum().backward()
    weight, u = layer.weight.detach(), layer.u
    v = torch.nn.functional.normalize(weight.T @ u, dim=0)
    sigma = u @ weight @ v
    divided = (weight / sigma).requires_grad_(True)
    linear(x, divided, layer.bias).square().sum().backward()
    by_hand = (divided.grad - (divided.grad * weight / sigma).sum() * torch.outer(u, v)) / sigma
    torch.testing.assert_close(layer.weight.grad, by_hand, rtol=1e-4, atol=1e-4)


def test_u_moves_once_for_each_change_of_the_weights_and_never_in_evaluation():
    layer, x = made("3 x 3")
    layer(x)
    first = layer.u.clone()
    layer(x)
    layer(2 * x)
    assert torch.equal(layer.u, first)
    with torch.no_grad():
        layer.weight[0] += 0.5
    layer.eval()
    layer(x)
    assert torch.equal(layer.u, first)
    layer.train()
    layer(x)
    assert not torch.equal(layer.u, first)


def test_a_state_dict_brings_the_same_bits():
    layer, x = made("3 x 3")
    with torch.no_grad():
        layer.weight[0] += 0.5
    layer(x)
    other, _ = made("3 x 3", seed=5)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert {"u", "seen"} < set(layer.state_dict())
    for _ in range(2):
        for each in (layer, other):
            with torch.no_grad():
                each.weight[1] -= 0.2
        assert torch.equal(layer(x), other(x)) and torch.equal(layer.u, other.u)


def test_every_number_of_a_new_layer_comes_from_the_generator():
    one, _ = made("3 x 3")
    two, _ = made("3 x 3")
    other, _ = made("3 x 3", seed=3)
    for key, value in one.state_dict().items():
        assert torch.isfinite(value).all() and torch.equal(value, two.state_dict()[key])
    assert not torch.equal(one.u, other.u)
