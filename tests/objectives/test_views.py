"""Views of a drawing: what changes, what stays, where the draws come from."""

import tiny
import torch

from hwaga.objectives.views import ViewsConfig, view

NONE = ViewsConfig(
    share=1, shift=0, scale=0, rotation=0, brightness=0, contrast=0, saturation=0, hue=0, grain=0, blur=0, hidden=0
)


def picture(n=6):
    return tiny.batch(n).image


def test_without_amounts_a_view_is_the_picture():
    x = picture()
    assert (view(x, tiny.Draw(), NONE) - x).abs().max() < 1e-5
    assert torch.equal(view(x, tiny.Draw(), ViewsConfig(share=0)), x)


def test_every_amount_changes_something_and_stays_in_range():
    x = picture()
    for name in (
        "shift",
        "scale",
        "rotation",
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "grain",
        "blur",
        "hidden",
    ):
        seen = view(x, tiny.Draw(), NONE.model_copy(update={name: 0.1 if name != "rotation" else 8.0}))
        assert (seen - x).abs().max() > 0.01 and seen.abs().max() <= 1, name


def test_what_enters_is_white_and_left_stays_left():
    x = torch.ones(16, 3, 32, 32)
    x[:, :, 12:20, 6:12] = -1  # a block left of the middle
    how = ViewsConfig(share=1, brightness=0, contrast=0, grain=0)
    seen = view(x, tiny.Draw(3), how)
    dark = (1 - seen).sum((1, 2))
    assert (dark[:, :16].sum(1) > dark[:, 16:].sum(1)).all()
    assert (seen[:, :, [0, -1]] > 0.99).all()


def test_the_share_is_kept():
    x = picture(400)
    same = (view(x, tiny.Draw(), ViewsConfig(share=0.25)) == x).flatten(1).all(1)
    assert 0.68 < same.float().mean() < 0.82
