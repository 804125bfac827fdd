"""Minimal filtering: equal to the direct convolution in every derivative, by a rule, with transforms never stale."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hwaga.layers import winograd
from hwaga.layers.conv import Conv2d, choose, convolve3x3, fit_transforms, kept_bytes, transformed_bytes

# channels in, channels out, height, width, batch
SHAPES = [
    (64, 64, 32, 32, 4), (64, 128, 16, 16, 8), (128, 128, 32, 32, 2), (256, 128, 16, 16, 4), (512, 256, 8, 8, 4),
    (256, 256, 4, 4, 3), (320, 320, 64, 64, 1), (640, 320, 32, 32, 2), (1280, 640, 8, 8, 2), (96, 80, 13, 7, 5),
    (48, 112, 1, 3, 2), (16, 8, 130, 66, 1), (5, 3, 6, 10, 1),
]  # fmt: skip


def made(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


def case(c: int, k: int, h: int, w: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = made((n, c, h, w)).contiguous(memory_format=torch.channels_last)
    return x, made((k, c, 3, 3), 1, (9 * c) ** -0.5), made((k,), 2), made((n, k, h, w), 3)


def passes(function, x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output, and the gradients of input, kernel and bias."""
    inputs = [one.clone().requires_grad_() for one in (x, weight, bias)]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, gradient)]


def direct(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def layer_with(**attributes) -> Conv2d:
    layer = Conv2d(64, 64, 3, padding=1)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_the_direct_convolution(shape: tuple[int, ...], m: int) -> None:
    given = case(*shape)
    ours = passes(lambda *a: convolve3x3(*a, force=m), *given)
    for mine, theirs in zip(ours, passes(direct, *given), strict=True):
        assert mine.shape == theirs.shape
        assert relative(mine, theirs) < 1e-5


@pytest.mark.parametrize("m", [2, 4])
def test_blocks_do_not_change_the_result(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(24, 16, 21, 18, 5)
    whole = passes(lambda *a: convolve3x3(*a, force=m), *given)
    for size in (1, 40_000, 200_000, 500_000):  # strips of one row of tiles, strips, single pictures, some pictures
        monkeypatch.setattr(winograd, "BLOCK_BYTES", size)
        for mine, theirs in zip(passes(lambda *a: convolve3x3(*a, force=m), *given), whole, strict=True):
            assert relative(mine, theirs) < 6e-6


def test_blocks_cover_every_tile_once() -> None:
    for n, rows, row_bytes in itertools.product((1, 2, 7), (1, 5, 64), (10, 2**19, 2**22, 2**26)):
        seen = [
            (picture, row)
            for b in winograd._blocks(n, rows, row_bytes)
            for picture in range(b.first, b.first + b.pictures)
            for row in range(b.row, b.row + b.rows)
        ]
        assert sorted(seen) == list(itertools.product(range(n), range(rows)))


@pytest.mark.parametrize("m", [2, 4])
def test_exact_in_float64(m: int) -> None:
    x, weight, bias, gradient = (one.double() for one in case(7, 5, 9, 6, 2))
    ours = passes(lambda *a: convolve3x3(*a, force=m), x, weight, bias, gradient)
    for mine, theirs in zip(ours, passes(direct, x, weight, bias, gradient), strict=True):
        assert relative(mine, theirs) < 1e-13


@pytest.mark.parametrize("m", [0, 2, 4])
def test_first_and_second_derivatives_are_right(m: int) -> None:
    shapes = ((1, 2, 5, 2), (2, 2, 3, 3), (2,))
    inputs = tuple(made(shape, i, dtype=torch.float64).requires_grad_() for i, shape in enumerate(shapes))
    assert torch.autograd.gradcheck(lambda *a: convolve3x3(*a, force=m), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: convolve3x3(*a, force=m), inputs, fast_mode=True)


def test_gradient_penalty_equals_the_direct_ones() -> None:
    x, weight, bias, _ = case(64, 64, 16, 16, 4)

    def penalty(function) -> list[Tensor]:
        inputs = [one.clone().requires_grad_() for one in (x, weight, bias)]
        score = function(F.silu(function(*inputs)), *inputs[1:]).square().sum((1, 2, 3)).sqrt().sum()
        (of_x,) = torch.autograd.grad(score, inputs[0], create_graph=True)
        return list(torch.autograd.grad(of_x.square().sum(), inputs, allow_unused=True))

    for mine, theirs in zip(penalty(lambda *a: convolve3x3(*a, force=4)), penalty(direct), strict=True):
        assert relative(mine, theirs) < 1e-4  # two derivatives of two layers in single precision


def test_layer_is_the_librarys_with_the_same_first_weights() -> None:
    torch_state = torch.random.get_rng_state()
    try:
        for arguments in ((8, 16, 3), (6, 4, 1), (8, 8, 5)):
            torch.manual_seed(3)
            theirs = nn.Conv2d(*arguments, padding=1)
            torch.manual_seed(3)
            ours = Conv2d(*arguments, padding=1)
            assert list(ours.state_dict()) == list(theirs.state_dict())
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.random.set_rng_state(torch_state)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1}, {"kernel_size": 3}, {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "groups": 2}, {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, {"kernel_size": 5, "padding": "same"},
    ],
)  # fmt: skip
def test_other_convolutions_are_the_librarys_own_bits(options: dict) -> None:
    ours = Conv2d(128, 128, **options)
    theirs = nn.Conv2d(128, 128, **options)
    theirs.load_state_dict(ours.state_dict())
    x = made((4, 128, 16, 16))
    assert torch.equal(ours(x), theirs(x))
    assert transformed_bytes(ours) == 0


def test_padding_same_is_padding_one() -> None:
    same, one = Conv2d(128, 128, 3, padding="same"), Conv2d(128, 128, 3, padding=1)
    one.load_state_dict(same.state_dict())
    x = made((4, 128, 16, 16))
    assert same.eligible and torch.equal(same(x), one(x))


def test_rule_pays_attention_to_the_shape_only_and_takes_both_sides() -> None:
    assert choose("anew", 128, 128, 16, 32, 32) == 4
    assert choose("kernel", 128, 128, 16, 32, 32) == 4
    assert choose("cached", 320, 320, 2, 64, 64) == 4
    assert choose("cached", 1280, 1280, 2, 16, 16) == 2  # four times 59 MB would be too much to keep
    assert choose("cached", 3, 128, 16, 32, 32) == 0
    assert choose("cached", 128, 3, 16, 32, 32) == 0
    assert choose("anew", 32, 32, 64, 32, 32) == 0
    assert choose("anew", 1280, 1280, 1, 8, 8) == 0  # the transform alone costs more than the convolution


def test_rule_decides_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    real = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda x, u, m, bias=None: used.append(m) or real(x, u, m, bias))
    layer = Conv2d(128, 128, 3, padding=1)
    with torch.no_grad():
        layer(made((4, 128, 32, 32)))
        assert used == [4]
        layer.minimal_filtering = False
        layer(made((4, 128, 32, 32)))
        assert used == [4]
        layer.minimal_filtering = 2
        layer(made((1, 128, 4, 4)))
        assert used == [4, 2]


def test_same_bits_on_every_call() -> None:
    given = case(128, 96, 18, 16, 6)
    first = passes(lambda *a: convolve3x3(*a, force=4), *given)
    for _ in range(3):
        for again, before in zip(passes(lambda *a: convolve3x3(*a, force=4), *given), first, strict=True):
            assert torch.equal(again, before)


def test_memory_format_follows_the_library() -> None:
    for x_last, weight_last in itertools.product((False, True), repeat=2):
        x, weight, _, _ = case(64, 96, 8, 12, 2)
        x = x.contiguous(memory_format=torch.channels_last if x_last else torch.contiguous_format)
        weight = weight.contiguous(memory_format=torch.channels_last if weight_last else torch.contiguous_format)
        assert convolve3x3(x, weight, force=4).stride() == direct(x, weight).stride()
        weight.requires_grad_()
        convolve3x3(x, weight, force=4).sum().backward()
        assert weight.grad is not None and weight.grad.stride() == weight.stride()


def test_not_contiguous_inputs_and_gradients_are_taken() -> None:
    big = made((2, 64, 20, 40))
    x, weight = big[:, :, 2:18, 1:33:2], made((96, 64, 3, 3), 1)
    assert relative(convolve3x3(x, weight, force=4), direct(x, weight)) < 1e-5
    ours, theirs = (w.clone().requires_grad_() for w in (weight, weight))
    convolve3x3(x, ours, force=4).sum().backward()  # an expanded gradient
    direct(x, theirs).sum().backward()
    assert relative(ours.grad, theirs.grad) < 1e-5


@pytest.mark.parametrize(
    "change", ["in place", "data", "optimizer", "fused optimizer", "load", "replace", "replace often", "double"]
)
def test_kept_transform_is_never_stale(change: str) -> None:
    layer = layer_with(minimal_filtering=4)
    x = made((2, 64, 8, 8))
    with torch.no_grad():
        before = layer(x)
        assert kept_bytes(layer) == 36 * 64 * 64 * 4
    if change == "in place":
        with torch.no_grad():
            layer.weight.mul_(2)
    elif change == "data":
        layer.weight.data.mul_(2)
    elif "optimizer" in change:
        layer(x).sum().backward()
        with torch.no_grad():
            layer(x)  # kept again before the step
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=change.startswith("fused")).step()
    elif change == "load":
        layer.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()})
    elif change == "replace often":  # a new tensor may get the old one's memory
        for factor in (3.0, 2.0):
            fresh = layer.weight.detach() * factor
            with torch.no_grad():
                del layer._parameters["weight"]
                layer.register_parameter("weight", nn.Parameter(fresh))
                layer(x)
    elif change == "replace":
        layer.weight = nn.Parameter(layer.weight.detach() * 2)
    else:
        layer.double()
        x = x.double()
    with torch.no_grad():
        after = layer(x)
    assert change == "double" or relative(after, before) > 0.1
    assert relative(after, direct(x, layer.weight, layer.bias)) < 1e-5


def test_transform_is_kept_only_without_gradients_and_only_where_asked() -> None:
    layer, x = layer_with(minimal_filtering=4), made((2, 64, 8, 8))
    layer(x)
    assert kept_bytes(layer) == 0
    with torch.no_grad():
        kept = layer(x)
        assert kept_bytes(layer) > 0
        layer.train()
        assert kept_bytes(layer) == 0
        layer.cache_transforms = False
        assert torch.equal(layer(x), kept)
        assert kept_bytes(layer) == 0 == transformed_bytes(layer)


def test_copies_and_files_do_not_carry_the_transform() -> None:
    layer, x = layer_with(minimal_filtering=4), made((2, 64, 8, 8))
    with torch.no_grad():
        layer(x)
        twin = copy.deepcopy(layer)
        assert kept_bytes(twin) == 0 and kept_bytes(layer) > 0
        assert list(layer.state_dict()) == ["weight", "bias"]
        assert torch.equal(twin(x), layer(x))


def test_inference_mode_and_training_after_it() -> None:
    layer, x = layer_with(minimal_filtering=4), made((2, 64, 8, 8))
    with torch.inference_mode():
        inside = layer(x).clone()
        born_inside = layer_with(minimal_filtering=4)
        assert relative(born_inside(x), direct(x, born_inside.weight, born_inside.bias)) < 1e-5
    outside = layer(x)
    outside.sum().backward()
    assert torch.equal(inside, outside.detach()) and layer.weight.grad is not None


def test_frozen_weights_pass_gradients_on() -> None:
    layer = layer_with(minimal_filtering=4)
    layer.weight.requires_grad_(False)
    x = made((2, 64, 8, 8)).requires_grad_()
    layer(x).square().sum().backward()
    y = x.detach().clone().requires_grad_()
    direct(y, layer.weight, layer.bias).square().sum().backward()
    assert relative(x.grad, y.grad) < 1e-5
    layer(made((2, 64, 8, 8))).sum().backward()  # only the bias learns
    assert layer.bias.grad is not None


def test_autocast_takes_the_librarys_convolution() -> None:
    layer, x = Conv2d(128, 128, 3, padding=1), made((2, 128, 16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        theirs = direct(x, layer.weight, layer.bias)
    assert y.dtype == torch.bfloat16 and torch.equal(y, theirs)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_checkpointing_gives_the_same_gradients() -> None:
    layer, x = layer_with(minimal_filtering=4), made((2, 64, 12, 8))
    grads = []
    for recompute in (False, True):
        layer.zero_grad()
        y = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        y.square().sum().backward()
        grads.append(layer.weight.grad.clone())
    assert torch.equal(*grads)


def test_odd_inputs_behave_as_the_librarys() -> None:
    layer = Conv2d(128, 128, 3, padding=1)
    assert layer(made((128, 16, 16))).shape == (128, 16, 16)
    assert layer(made((0, 128, 16, 16))).shape == (0, 128, 16, 16)
    with pytest.raises(RuntimeError, match="channels"):
        layer(made((2, 64, 16, 16)))
    empty = made((0, 8, 4, 4)).requires_grad_()
    weight = made((8, 8, 3, 3)).requires_grad_()
    convolve3x3(empty, weight, force=4).sum().backward()
    assert not weight.grad.any()


def test_budget_turns_the_heaviest_layers_off_first() -> None:
    with torch.device("meta"):
        net = nn.ModuleDict(
            {"a": Conv2d(128, 128, 3, padding=1), "b": Conv2d(1280, 1280, 3, padding=1),
             "c": Conv2d(256, 256, 3, padding=1), "d": Conv2d(3, 128, 3, padding=1),
             "e": nn.Conv2d(512, 512, 3, padding=1)}
        )  # fmt: skip
    heavy, middle, light = 16 * 1280**2 * 4, 36 * 256**2 * 4, 36 * 128**2 * 4
    assert transformed_bytes(net) == heavy + middle + light
    assert fit_transforms(net, heavy + middle + light) == []
    assert fit_transforms(net, middle + light) == ["b"]
    assert fit_transforms(net, light) == ["c"]
    assert transformed_bytes(net) == light and net["a"].minimal_filtering is True
    assert fit_transforms(net, 0) == ["a"]


def test_bound_on_kept_bytes_holds() -> None:
    with torch.no_grad():
        for c, k, size, n in (
            (128, 128, 32, 2),
            (256, 128, 16, 2),
            (320, 320, 32, 1),
            (512, 512, 8, 2),
            (64, 32, 64, 1),
        ):
            layer = Conv2d(c, k, 3, padding=1)
            layer(made((n, c, size, size)))
            assert kept_bytes(layer) <= transformed_bytes(layer)


def test_tables_of_the_transforms_satisfy_the_identity() -> None:
    signal, kernel = made((6,), dtype=torch.float64), made((3,), 1, dtype=torch.float64)
    for m in (2, 4):
        bt, g, at = (
            torch.tensor(table[m], dtype=torch.float64)
            for table in (winograd._INPUT, winograd._KERNEL, winograd._OUTPUT)
        )
        y = at @ ((g @ kernel) * (bt @ signal[: m + 2]))
        expected = torch.stack([(signal[i : i + 3] * kernel).sum() for i in range(m)])
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
