"""The losses of the game against their formulas, and the penalties against derivatives by hand."""

import math

import pytest
import tiny
import torch

from hwaga.objectives.adversarial import (
    KINDS,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    r1_penalty,
    r2_penalty,
)

R = torch.tensor([1.5, -0.3, 0.2], dtype=torch.float64)
F = torch.tensor([-0.7, 0.9, -2.0], dtype=torch.float64)


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


def mean(values):
    return sum(values) / len(values)


PAIRS = list(zip(R.tolist(), F.tolist(), strict=True))
FORMULAS = {  # kind: (discriminator, generator), as the papers write them
    "minimax": (
        mean([-math.log(sigmoid(r)) - math.log(1 - sigmoid(f)) for r, f in PAIRS]),
        mean([math.log(1 - sigmoid(f)) for _, f in PAIRS]),
    ),
    "non-saturating": (
        mean([-math.log(sigmoid(r)) - math.log(1 - sigmoid(f)) for r, f in PAIRS]),
        mean([-math.log(sigmoid(f)) for _, f in PAIRS]),
    ),
    "hinge": (mean([max(0, 1 - r) + max(0, 1 + f) for r, f in PAIRS]), mean([-f for _, f in PAIRS])),
    "wgan": (mean([f - r for r, f in PAIRS]), mean([-f for _, f in PAIRS])),
    "relativistic": (
        mean([-math.log(sigmoid(r - f)) for r, f in PAIRS]),
        mean([-math.log(sigmoid(f - r)) for r, f in PAIRS]),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_is_its_formula(kind):
    of_d, of_g = FORMULAS[kind]
    assert math.isclose(discriminator_loss(kind, R, F).item(), of_d, rel_tol=1e-12)
    assert math.isclose(generator_loss(kind, F, R).item(), of_g, rel_tol=1e-12)


SLOPES = {  # of the generator's loss by one fake logit f, r being the real one
    "minimax": lambda f, r: -sigmoid(f),
    "non-saturating": lambda f, r: -sigmoid(-f),
    "hinge": lambda f, r: -1.0,
    "wgan": lambda f, r: -1.0,
    "relativistic": lambda f, r: -sigmoid(r - f),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_generator_slope_is_the_derivative_by_hand(kind):
    f = F.clone().requires_grad_(True)
    generator_loss(kind, f, R).backward()
    by_hand = torch.tensor([SLOPES[kind](b, a) / 3 for a, b in PAIRS], dtype=torch.float64)
    torch.testing.assert_close(f.grad, by_hand)


@pytest.mark.parametrize("kind", KINDS)
def test_no_loss_overflows_at_large_logits(kind):
    high = torch.tensor([500.0, -500.0])
    assert torch.isfinite(discriminator_loss(kind, high, -high)) and torch.isfinite(generator_loss(kind, high, -high))


def test_the_first_loss_has_no_slope_where_the_discriminator_is_sure_and_the_second_has():
    slopes = {}
    for kind in ("minimax", "non-saturating"):
        f = torch.tensor([-12.0], requires_grad=True)
        generator_loss(kind, f).backward()
        slopes[kind] = abs(f.grad.item())
    assert slopes["minimax"] < 1e-5 and slopes["non-saturating"] > 0.99


def test_the_relativistic_loss_knows_differences_alone_and_both_players_slopes_are_opposite():
    shifted = discriminator_loss("relativistic", R + 5, F + 5)
    torch.testing.assert_close(shifted, discriminator_loss("relativistic", R, F))
    torch.testing.assert_close(discriminator_loss("relativistic", R, F), generator_loss("relativistic", R, F))
    r, f = R.clone().requires_grad_(True), F.clone().requires_grad_(True)
    discriminator_loss("relativistic", r, f).backward()
    torch.testing.assert_close(r.grad, -f.grad)


def test_what_no_loss_can_do_is_refused():
    with pytest.raises(ValueError, match="real_logits are needed"):
        generator_loss("relativistic", F)
    for loss in (lambda: generator_loss("lsgan", F), lambda: discriminator_loss("lsgan", R, F)):
        with pytest.raises(ValueError, match="kind='lsgan': one of minimax"):
            loss()


# ------------------------------------------------------------------------------------------------------------ penalties


def test_r1_and_its_derivative_are_those_by_hand():
    """D(x) = w (x . x) / 2 has the gradient w x, so the penalty is w^2 E|x|^2 and its derivative by w 2 w E|x|^2."""
    x = torch.randn((5, 3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    w = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    for penalty in (r1_penalty, r2_penalty):
        w.grad = None
        value = penalty(w * x.square().flatten(1).sum(1) / 2, x)
        value.backward()
        squares = x.detach().square().flatten(1).sum(1).mean().item()
        assert math.isclose(value.item(), 1.7**2 * squares, rel_tol=1e-6)
        assert math.isclose(w.grad.item(), 2 * 1.7 * squares, rel_tol=1e-6)


def test_r1_counts_every_patch_of_a_logit_map():
    x = torch.ones((2, 1, 2, 2), requires_grad=True)
    assert r1_penalty(3 * x, x).item() == pytest.approx(4 * 9)


def test_the_gradient_penalty_is_zero_for_a_slope_of_one_and_its_derivative_is_that_by_hand():
    """D(x) = w a . x with |a| = 1 has a gradient of length |w| everywhere: (|w| - 1)^2, derivative 2 (w - 1)."""
    g = torch.Generator().manual_seed(1)
    real, fake = torch.randn((2, 4, 6), generator=g, dtype=torch.float64)
    a = torch.nn.functional.normalize(torch.randn(6, generator=g, dtype=torch.float64), dim=0)
    mix = torch.rand(4, generator=g, dtype=torch.float64)
    for value in (1.0, 3.0):
        w = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        penalty = gradient_penalty(lambda x, w=w: w * (x @ a), real, fake, mix)
        penalty.backward()
        assert penalty.item() == pytest.approx((value - 1) ** 2, abs=1e-6)
        assert w.grad.item() == pytest.approx(2 * (value - 1), abs=1e-5)


def test_the_gradient_penalty_looks_between_the_two_pictures():
    seen = []

    def discriminator(x):
        seen.append(x.detach())
        return x.sum((1, 2, 3))

    real, fake = torch.ones((2, 1, 2, 2)), torch.zeros((2, 1, 2, 2))
    gradient_penalty(discriminator, real, fake, torch.tensor([0.25, 0.75]))
    assert torch.equal(seen[0][:, 0, 0, 0], torch.tensor([0.25, 0.75]))


def test_the_gradient_penalty_of_a_constant_discriminator_has_finite_slopes():
    w = torch.zeros(4, requires_grad=True)
    gradient_penalty(lambda x: x @ w, torch.ones((3, 4)), torch.zeros((3, 4)), torch.full((3,), 0.5)).backward()
    assert torch.isfinite(w.grad).all()


def test_penalties_of_a_network_agree_with_differences():
    """The derivative of R1 by a weight of a real discriminator, against a central difference in float64."""
    network = tiny.gan(labels=False).networks["discriminator"].double()
    tiny.fill_zeros(network)
    x = tiny.batch(2).image.double()

    def penalty():
        leaf = x.clone().requires_grad_(True)
        return r1_penalty(network(leaf), leaf)

    weight = network.stages[0][0].mix.weight
    penalty().backward()
    found, step = weight.grad.flatten()[3].item(), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.view(-1)[3] += sign * step
        values.append(penalty().item())
        with torch.no_grad():
            weight.view(-1)[3] -= sign * step
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_and_a_constant():
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    weight = adaptive_weight((6 * layer).sum(), (2 * layer).sum(), layer)
    assert weight.item() == pytest.approx(3.0, rel=1e-5) and not weight.requires_grad
    assert adaptive_weight(layer.sum(), (0 * layer).sum(), layer).item() == 1e4
