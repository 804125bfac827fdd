"""DiffAugment: what each change does, that gradients pass it, and where its draws come from."""

import pytest
import torch

from hwaga.objectives.diffaugment import CHANGES, color, cut, diff_augment, translated
from hwaga.training.loop import StepDraw

IMAGE = torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1


def draw(step=0, **part):
    return StepDraw(0, "game", step, **{"whole": 4, **part})


@pytest.mark.parametrize("change", CHANGES)
def test_the_gradient_passes_each_change_and_is_the_derivative(change):
    image = IMAGE[:, :, :6, :6].double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, draw(), [change], "t"), image, atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda x: diff_augment(x, draw(), [change], "t").square(), image, atol=1e-6)


def test_draws_depend_on_step_and_name_alone_and_no_global_generator_is_touched():
    before = torch.random.get_rng_state()
    one = diff_augment(IMAGE, draw(), CHANGES, "real")
    assert torch.equal(one, diff_augment(IMAGE, draw(), CHANGES, "real"))
    assert not torch.equal(one, diff_augment(IMAGE, draw(), CHANGES, "fake"))
    assert not torch.equal(one, diff_augment(IMAGE, draw(1), CHANGES, "real"))
    assert torch.equal(before, torch.random.get_rng_state())
    half = diff_augment(IMAGE[2:], draw(start=2, count=2), CHANGES, "real")
    torch.testing.assert_close(half, one[2:])


def test_the_middle_of_each_colour_draw_changes_nothing_and_saturation_zero_is_grey():
    half = torch.full((4,), 0.5)
    torch.testing.assert_close(color(IMAGE, half, half, half), IMAGE)
    grey = color(IMAGE, half, 0 * half, half)
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(grey.mean(1), IMAGE.mean(1))
    brighter = color(IMAGE, half + 0.25, half, half)
    torch.testing.assert_close(brighter, IMAGE + 0.25)
    flat = color(IMAGE, half, half, half - 0.5)
    torch.testing.assert_close(flat.var((1, 2, 3)) / IMAGE.var((1, 2, 3)), torch.full((4,), 0.25))


def test_a_translation_moves_by_whole_pixels_and_fills_with_zeros():
    moved = translated(IMAGE, torch.tensor([[0.0, 0.5], [0.999, 0.5], [0.5, 0.0], [0.5, 0.5]]))
    assert torch.equal(moved[0, :, :14], IMAGE[0, :, 2:]) and (moved[0, :, 14:] == 0).all()  # up by an eighth
    assert torch.equal(moved[1, :, 2:], IMAGE[1, :, :14]) and (moved[1, :, :2] == 0).all()
    assert torch.equal(moved[2, :, :, :14], IMAGE[2, :, :, 2:])
    assert torch.equal(moved[3], IMAGE[3])


def test_half_precision_around_it_leaves_the_pixels_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(diff_augment(IMAGE, draw(), CHANGES, "t"), diff_augment(IMAGE.clone(), draw(), CHANGES, "t"))
        moved = translated(IMAGE, torch.full((4, 2), 0.5))
    assert moved.dtype == torch.float32 and torch.equal(moved, IMAGE)


def test_a_cutout_is_a_square_of_half_the_size_and_leaves_the_rest():
    middle = cut(IMAGE, torch.full((4, 2), 0.5))
    assert (middle[:, :, 4:12, 4:12] == 0).all()
    assert torch.equal(middle[:, :, :4], IMAGE[:, :, :4]) and torch.equal(middle[..., 12:], IMAGE[..., 12:])
    corner = cut(IMAGE, torch.zeros((4, 2)))
    assert (corner[:, :, :4, :4] == 0).all() and torch.equal(corner[:, :, 4:], IMAGE[:, :, 4:])


def test_an_unknown_change_is_refused_by_name():
    with pytest.raises(ValueError, match="policy names 'blur'; known are color, translation, cutout"):
        diff_augment(IMAGE, draw(), ["blur"], "t")
