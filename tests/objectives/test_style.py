"""Path lengths and R1 against derivatives taken by hand, mixing, perceptual path length."""

from __future__ import annotations

import tiny
import torch

from hwaga.objectives.adversarial import r1_penalty
from hwaga.objectives.style import PathLength, mixed, path_lengths, perceptual_path_length, spherical


def linear(n=3, layers=2, width=4, size=5, seed=0):
    """Pictures that are linear in w: J is known."""
    g = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(layers * width, 3 * size * size, generator=g)
    ws = torch.randn(n, layers, width, generator=g, requires_grad=True)
    picture = (ws.flatten(1) @ jacobian).view(n, 3, size, size)
    y = torch.randn(n, 3, size, size, generator=g)
    return jacobian, ws, picture, y


def test_a_path_length_is_the_norm_of_the_jacobian_times_y():
    jacobian, ws, picture, y = linear()
    by_hand = (y.flatten(1) / 5) @ jacobian.T  # 5: the root of 25 pixels
    expected = by_hand.view(3, 2, 4).square().sum(2).mean(1).sqrt()
    assert torch.allclose(path_lengths(picture, ws, y), expected, rtol=1e-5)


def test_the_penaltys_gradient_is_that_of_the_formula():
    """G(w) = a w^2 elementwise: J^T y = 2 a w y, and the gradient by a follows by hand."""
    a = torch.tensor(1.5, requires_grad=True)
    w = torch.tensor([[[0.5, -1.0, 2.0]]], requires_grad=True)
    y = torch.tensor([[0.3, -0.7, 1.1]]).view(1, 3, 1, 1)
    path = PathLength(decay=0.5)
    penalty, lengths = path((a * w[:, 0].square()).view(1, 3, 1, 1), w, y)
    length = 2 * 1.5 * float((w[0, 0].detach() * y.flatten()).norm())
    mean = 0.5 * length
    assert abs(float(lengths.detach()) - length) < 1e-5 and abs(float(path.mean) - mean) < 1e-5
    penalty.sum().backward()
    assert abs(float(a.grad) - 2 * (length - mean) * length / 1.5) < 1e-4


def test_r1_is_the_squared_slope_of_the_logit_and_so_is_its_gradient():
    """D(x) = v . x + c |x|^2 / 2: the slope is v + c x."""
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    v, c = torch.tensor([0.3, -0.4]), torch.tensor(0.7, requires_grad=True)
    penalty = r1_penalty(x @ v + c * x.square().sum(1) / 2, x)
    slope = v + 0.7 * x.detach()
    assert torch.allclose(penalty, slope.square().sum(1).mean())
    (by_c,) = torch.autograd.grad(penalty, c)
    assert torch.allclose(by_c, (2 * slope * x.detach()).sum(1).mean(), rtol=1e-5)


def test_mixing_takes_the_first_w_below_the_layer_and_the_second_from_there():
    ws = mixed(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1, 4]), 4)
    assert ws[:, :, 0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 0]]


def test_the_great_circle_keeps_its_length_and_its_ends():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 8, generator=g), torch.randn(5, 8, generator=g)
    unit = lambda x: x / x.norm(dim=1, keepdim=True)  # noqa: E731
    assert torch.allclose(spherical(a, b, torch.zeros(5, 1)), unit(a), atol=1e-6)
    assert torch.allclose(spherical(a, b, torch.ones(5, 1)), unit(b), atol=1e-5)
    half = spherical(a, b, torch.full((5, 1), 0.5))
    assert torch.allclose(half, unit(unit(a) + unit(b)), atol=1e-5)


def test_the_perceptual_path_length_of_a_straight_generator_is_known():
    """w = z, picture = k w, distance the squared difference: k^2 |b - a|^2 in w, and in z the squared angle's k^2."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 4, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.rand(6, generator=g, dtype=torch.float64)
    call = {"mapping": lambda z: z, "paint": lambda w: 3 * w, "distance": lambda x, y: (x - y).square().sum(1)}
    in_w = perceptual_path_length(**call, first=a, second=b, t=t, space="w")
    assert torch.allclose(in_w, 9 * (b - a).square().sum(1), rtol=1e-5)
    angle = torch.nn.functional.cosine_similarity(a, b).acos()
    in_z = perceptual_path_length(**call, first=a, second=b, t=t, space="z")
    assert torch.allclose(in_z, 9 * angle.square(), rtol=1e-4)


def test_the_systems_path_regularization_moves_its_mean_and_its_gradient_reaches_the_generator():
    system = tiny.stylegan()
    draw = tiny.Draw(0)
    draw.step = 0
    terms = system.path_length(tiny.batch(), draw)
    assert system.path.mean > 0
    terms["path"].backward()
    assert system.generator.synthesis.b16.conv1.weight.grad.abs().sum() > 0
