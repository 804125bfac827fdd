"""LoRA as a change of weights: closed forms, several at once, and the base back bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from hwaga.layers.conv import Conv2d
from hwaga.weights.lora import Change, Hadamard, Loras, LowRank, Place, Whole


def network(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    made = nn.Module()
    made.linear = nn.Linear(12, 18)
    made.conv = Conv2d(6, 10, 3, padding=1)
    made.point = nn.Conv2d(6, 10, 1)
    for p in made.parameters():
        p.data = torch.randn(p.shape, generator=g)
    return made.to(dtype).requires_grad_(False)


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LINEAR, CONV, POINT = (Place("network", f"{name}.weight") for name in ("linear", "conv", "point"))


def low(seed, out=18, into=12, rank=3, **more):
    return Change(LowRank(random(rank, into, seed=seed), random(out, rank, seed=seed + 1), **more))


def test_a_change_is_scale_times_alpha_over_rank_times_up_down():
    made = network()
    base, change = made.linear.weight.clone(), low(1, alpha=6.0)
    Loras({"network": made}).add("a", {LINEAR: change}, 0.5)
    expected = base + 0.5 * (6 / 3) * change.kind.up @ change.kind.down
    torch.testing.assert_close(made.linear.weight, expected)


def test_without_alpha_the_rank_stands_for_it_and_rslora_divides_by_its_root():
    assert low(1).kind.strength == 1
    assert low(1, alpha=6.0).kind.strength == 2
    assert low(1, alpha=6.0, rooted=True).kind.strength == pytest.approx(6 / 3**0.5)


def test_of_a_convolution_it_is_the_two_convolutions_one_after_the_other():
    made, x = network(), random(2, 6, 5, 7, seed=4)
    before = made.conv(x)
    down, up = random(2, 6, 3, 3, seed=5), random(10, 2, 1, 1, seed=6)
    Loras({"network": made}).add("a", {CONV: Change(LowRank(down, up))}, 0.3)
    expected = before + 0.3 * conv2d(conv2d(x, down, padding=1), up)
    torch.testing.assert_close(made.conv(x), expected, atol=1e-4, rtol=1e-4)


def test_with_a_middle_it_is_three_convolutions():
    down, mid, up = random(2, 6, 1, 1), random(2, 2, 3, 3, seed=2), random(10, 2, 1, 1, seed=3)
    x = random(1, 6, 5, 5, seed=4)
    delta = LowRank(down, up, mid).delta()
    torch.testing.assert_close(conv2d(x, delta, padding=1), conv2d(conv2d(conv2d(x, down), mid, padding=1), up))


def test_a_matrix_and_a_one_by_one_convolution_are_the_same():
    assert low(1, out=10, into=6).fits((10, 6, 1, 1))
    assert not low(1, out=10, into=6).fits((10, 6, 3, 3))
    made = network()
    base, change = made.point.weight.clone(), low(1, out=10, into=6)
    Loras({"network": made}).add("a", {POINT: change}, 1.0)
    torch.testing.assert_close(made.point.weight, base + change.kind.delta()[:, :, None, None])


def test_loha_multiplies_two_products():
    parts = [random(*shape, seed=i) for i, shape in enumerate([(18, 3), (18, 3), (3, 12), (3, 12)])]
    kind = Hadamard((parts[0], parts[1]), (parts[2], parts[3]), alpha=1.5)
    torch.testing.assert_close(kind.delta(), 0.5 * (parts[0] @ parts[2]) * (parts[1] @ parts[3]))
    folded = Hadamard((random(10, 2), random(10, 2, seed=2)), (random(2, 54, seed=3), random(2, 54, seed=4)))
    assert Change(folded).fits((10, 6, 3, 3))
    made = network()
    base = made.conv.weight.clone()
    Loras({"network": made}).add("a", {CONV: Change(folded)}, 1.0)
    torch.testing.assert_close(made.conv.weight, base + folded.delta().reshape(10, 6, 3, 3))


@pytest.mark.parametrize("of_outputs", [True, False])
def test_dora_gives_the_rows_or_columns_their_lengths(of_outputs):
    made = network()
    base = made.linear.weight.clone()
    count, axis = (18, 1) if of_outputs else (12, 0)
    magnitude = random(count, seed=7).abs() + 0.5
    change = Change(low(1, alpha=3.0).kind, magnitude, of_outputs)
    held = Loras({"network": made})
    held.add("a", {LINEAR: change}, 1.0)
    torch.testing.assert_close(made.linear.weight.norm(dim=axis), magnitude)
    changed = base + change.kind.delta()
    expected = magnitude.unsqueeze(axis) * changed / changed.norm(dim=axis, keepdim=True)
    torch.testing.assert_close(made.linear.weight, expected)
    held.scale("a", 0.25)
    torch.testing.assert_close(made.linear.weight, base + 0.25 * (expected - base))


def test_a_bias_and_a_whole_difference():
    made = network()
    base, place = made.linear.bias.clone(), Place("network", "linear.bias")
    Loras({"network": made}).add("a", {place: Change(Whole(torch.ones(18)))}, 2.0)
    torch.testing.assert_close(made.linear.bias, base + 2)


def test_the_order_of_loading_plays_no_part():
    changes = {"a": low(1), "b": low(5, rank=2), "c": Change(low(9).kind, random(18).abs())}
    results = []
    for order in itertools.permutations(changes):
        made = network()
        held = Loras({"network": made})
        for name in order:
            held.add(name, {LINEAR: changes[name]}, {"a": 0.5, "b": -1.0, "c": 0.7}[name])
        results.append(made.linear.weight.clone())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scale_0_and_removal_give_the_base_back_bit_for_bit(dtype):
    made = network(dtype)
    base = {name: p.clone() for name, p in made.named_parameters()}
    same = lambda: all(torch.equal(p, base[name]) for name, p in made.named_parameters())  # noqa: E731
    held = Loras({"network": made})
    held.add("a", {LINEAR: low(1), CONV: Change(LowRank(random(2, 6, 3, 3), random(10, 2, 1, 1)))}, 1.0)
    held.add("b", {LINEAR: low(4)}, 0.3)
    assert not same()
    held.scale("a", 0.0)
    assert not same()
    held.scale("b", 0.0)
    assert same()
    held.scale("a", 0.9)
    held.remove("b")
    assert not same()
    held.remove("a")
    assert same() and not held._bases


def test_removing_one_leaves_what_the_other_alone_would_be():
    alone, both = network(), network()
    Loras({"network": alone}).add("b", {LINEAR: low(4)}, 0.3)
    held = Loras({"network": both})
    held.add("a", {LINEAR: low(1)}, 1.0)
    held.add("b", {LINEAR: low(4)}, 0.3)
    held.remove("a")
    assert torch.equal(alone.linear.weight, both.linear.weight)


def test_rows_of_a_weight_are_changed_alone():
    made = network()
    base = made.linear.weight.clone()
    held = Loras({"network": made})
    held.add("a", {Place("network", "linear.weight", (6, 12)): low(1, out=6)}, 1.0)
    assert torch.equal(made.linear.weight[:6], base[:6]) and torch.equal(made.linear.weight[12:], base[12:])
    torch.testing.assert_close(made.linear.weight[6:12], base[6:12] + low(1, out=6).kind.delta())
    held.add("b", {LINEAR: low(4)}, 0.0)
    held.remove("a")
    assert torch.equal(made.linear.weight, base)


def test_a_moved_network_takes_its_base_along():
    made = network()
    base, held = made.linear.weight.clone(), Loras({"network": made})
    held.add("a", {LINEAR: low(1)}, 1.0)
    made.double()
    held.remove("a")
    assert torch.equal(made.linear.weight, base.double())


def test_a_convolution_forgets_the_transform_of_its_old_weights():
    made, x = network(), random(1, 6, 8, 8)
    made.conv.minimal_filtering = 4
    with torch.no_grad():
        before = made.conv(x)
        held = Loras({"network": made})
        held.add("a", {CONV: Change(LowRank(random(2, 6, 3, 3), random(10, 2, 1, 1)))}, 1.0)
        torch.testing.assert_close(
            made.conv(x), conv2d(x, made.conv.weight, made.conv.bias, padding=1), atol=1e-3, rtol=1e-3
        )
        held.remove("a")
        assert torch.equal(made.conv(x), before)


def test_the_relative_change_is_that_of_the_weights_that_are_changed():
    made, change = network(), low(1)
    expected = float(change.kind.delta().norm() / made.linear.weight.norm())
    assert Loras({"network": made}).measure({LINEAR: change}) == pytest.approx(expected, rel=1e-5)
