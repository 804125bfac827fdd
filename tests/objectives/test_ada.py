"""Adaptive augmentation: what is changed, that it does not leak below the threshold, and that p follows the discriminator."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from hwaga.objectives import ada
from hwaga.objectives.ada import SYMLET, AdaConfig, transformed


def pictures(n=4, size=16, seed=0):
    small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(small, size=size, mode="bicubic")


def test_with_p_0_nothing_is_changed():
    pipe = AdaConfig(groups=("blit", "geometry", "colour", "corrupt")).build()
    x = pictures()
    assert (pipe(x, tiny.Draw(0), "x") - x).abs().max() < 1e-6


def test_the_filter_is_an_orthonormal_wavelets():
    assert abs(sum(SYMLET) - math.sqrt(2)) < 1e-9
    for shift in range(6):
        product = sum(a * b for a, b in zip(SYMLET[2 * shift :], SYMLET, strict=False))
        assert abs(product - (shift == 0)) < 1e-9


def test_a_shift_by_whole_pixels_through_the_filters_moves_a_smooth_picture_so_far():
    x = pictures(2, 32)
    back, offset = torch.eye(2).expand(2, 2, 2), torch.tensor([[3.0, 0.0], [0.0, -2.0]])
    y = transformed(x, back, offset)
    assert (y[0, :, 4:-4, 4:-8] - x[0, :, 4:-4, 7:-5]).abs().max() < 0.02
    assert (y[1, :, 6:-4, 4:-4] - x[1, :, 4:-6, 4:-4]).abs().max() < 0.02


def test_a_quarter_turn_through_the_filters_is_a_quarter_turn():
    x = pictures(1, 32)
    y = transformed(x, ada._turn(torch.tensor([math.pi / 2])), torch.zeros(1, 2))
    assert min((y - x.rot90(k, (2, 3)))[..., 4:-4, 4:-4].abs().max() for k in (1, 3)) < 0.02


def test_reading_at_places_has_two_derivatives():
    x = torch.rand(1, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    grid = torch.rand(1, 4, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 - 1.5
    assert torch.autograd.gradgradcheck(lambda q: ada._Read.apply(q, grid) ** 2, (x,))


def test_the_whole_pipeline_has_a_gradient_and_the_gradients_gradient():
    pipe = AdaConfig(groups=("blit", "geometry", "colour", "corrupt"), start=1.0).build()
    x = pictures().requires_grad_(True)
    y = pipe(x, tiny.Draw(0), "x")
    assert y.shape == x.shape and y.isfinite().all()
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def kinds(pipe, x, upright, rounds, seed=0):
    """How often each of the eight turned and mirrored forms of a picture comes out of x, one of them."""
    forms = torch.stack([f.rot90(k, (1, 2)) for f in (upright, upright.flip(2)) for k in range(4)])
    counts, draw = torch.zeros(8), tiny.Draw(seed)
    for _ in range(rounds):
        y = pipe(x[None].expand(500, -1, -1, -1), draw, "x")
        counts += torch.stack([(y - f).flatten(1).abs().amax(1) < 1e-6 for f in forms]).float().sum(1)
    return counts / counts.sum()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_below_the_threshold_what_generated_pictures_are_can_be_read_off_the_changed_ones_without_bias(p, monkeypatch):
    """Three in four pictures stand upright, one lies: after turns and mirrors with p the shares are A (3/4, 1/4), A known and
    invertible, so that the inverse gives the shares back; and upright stays the most frequent form."""
    monkeypatch.setattr(ada, "_moved", lambda x, by, dim: x)  # turns and mirrors alone, so that forms can be counted
    pipe = AdaConfig(groups=("blit",), start=p).build()
    x = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    upright, lying = kinds(pipe, x, x, 20, seed=1), kinds(pipe, x.rot90(1, (1, 2)), x, 20, seed=2)
    seen = 0.75 * upright + 0.25 * lying
    turn = torch.full((4,), p / 4) + (1 - p) * torch.tensor([1.0, 0, 0, 0])
    mirror = torch.tensor([1 - p / 2, p / 2])
    assert (upright.view(2, 4).sum(1) - mirror).abs().max() < 0.02
    plain = seen[:4] / mirror[0]
    matrix = torch.stack([turn.roll(k) for k in range(4)], dim=1)  # column k: what a picture turned k times becomes
    shares = torch.linalg.solve(matrix, plain)
    assert (shares - torch.tensor([0.75, 0.25, 0, 0])).abs().max() < 0.02 / (1 - p)
    assert seen.argmax() == 0


def test_colours_of_the_grey_axis_keep_their_hue_and_contrast_is_unbiased_in_the_log():
    pipe = AdaConfig(groups=("colour",), start=1.0).build()
    grey = torch.full((2000, 3, 2, 2), 0.3)
    y = pipe(grey, tiny.Draw(0), "x")
    assert (y - y.mean(1, keepdim=True)).abs().max() < 1e-5  # hue and saturation turn about the grey axis
    assert (y.mean() - 0).abs() < 0.05  # as luma is mirrored half the time


def test_p_grows_while_the_discriminator_overfits_and_falls_again_within_its_limit():
    pipe = AdaConfig(pictures=100, interval=2, limit=0.3).build()
    sure = torch.ones(8)
    pipe.follow(sure, 0)
    assert pipe.p == 0
    pipe.follow(sure, 1)
    assert abs(float(pipe.p) - 16 / 100) < 1e-6 and not pipe.signs.any()
    for step in range(2, 12):
        pipe.follow(sure, step)
    assert abs(float(pipe.p) - 0.3) < 1e-6
    for step in range(12, 16):
        pipe.follow(torch.tensor([1.0, -1.0] * 4), step)
    assert abs(float(pipe.p) - 0.0) < 1e-6


def test_alarms_name_what_they_saw_and_the_key_to_change():
    row = {"generator.diversity": 0.5, "discriminator.overfit": 0.4, "discriminator.p": 0.2}
    assert [alarm([row] * 20) for alarm in ada.ALARMS] == [None, None, None]
    bad = {"generator.diversity": 0.01, "discriminator.overfit": 0.99, "discriminator.p": 0.95}
    said = [alarm([bad] * 20) for alarm in ada.ALARMS]
    assert all("model." in sentence for sentence in said)
    assert "model.ada" in ada.discriminator_overfits([{"discriminator.overfit": 0.99}] * 20)
    assert ada.paintings_alike([bad] * 3) is None
