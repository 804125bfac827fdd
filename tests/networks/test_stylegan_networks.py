"""StyleGAN's networks: shapes of every choice, closed forms, and the equivariance that StyleGAN3 is made for."""

from __future__ import annotations

import pytest
import torch

from hwaga.layers.initialise import build_on
from hwaga.layers.modulation import batch_deviation
from hwaga.networks.stylegan import DiscriminatorConfig, GeneratorConfig, shrunk
from hwaga.networks.stylegan3 import AliasFreeConfig, specification

SMALL = {"channels": (16, 16, 8), "z_dim": 8, "w_dim": 8, "mapping": {"layers": 2}}
CHOICES = [
    {}, {"architecture": "resnet"}, {"architecture": "plain"}, {"architecture": "plain", "style": "adain"},
    {"architecture": "plain", "style": "adain", "growing": True}, {"classes": 3}, {"noise": False, "clamp": 2.0},
]  # fmt: skip


def made(config, seed=0):
    network = build_on(config)
    network.initialise(torch.Generator().manual_seed(seed))
    return network


def z(n=4, width=8, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


LABEL = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_paints_and_its_gradient_reaches_every_parameter(choice):
    network = made(GeneratorConfig(**{**SMALL, **choice}))
    drawn = lambda name, shape: torch.randn(shape, generator=torch.Generator().manual_seed(hash(name) % 1000))  # noqa: E731
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "noise_strength" in name:
                p.fill_(0.1)
    picture = network(z(), LABEL if choice.get("classes") else None, drawn)
    assert picture.shape == (4, 3, 16, 16) and picture.isfinite().all()
    (picture * torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    if choice.get("growing"):  # colours of the blocks that have been grown past
        dead = [n for n in dead if not n.startswith(("synthesis.b4.torgb", "synthesis.b8.torgb"))]
    assert dead == []


@pytest.mark.parametrize(
    "choice", [{}, {"architecture": "plain"}, {"classes": 3}, {"deviation_group": 0, "clamp": 1.0}], ids=str
)
def test_the_discriminator_judges_and_its_gradient_reaches_every_parameter(choice):
    network = made(
        DiscriminatorConfig(**{"channels": (16, 16, 8), "mapping": {"layers": 2, "w_avg_beta": None}, **choice})
    )
    picture = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits = network(picture, LABEL if choice.get("classes") else None)
    assert logits.shape == (4,)
    logits.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_truncation_0_is_the_mean_and_the_cutoff_spares_later_layers():
    network = made(GeneratorConfig(**SMALL))
    network.mapping.w_avg.copy_(torch.randn(8, generator=torch.Generator().manual_seed(3)))
    a, b = network(z(seed=1), truncation=0.0), network(z(seed=2), truncation=0.0)
    assert torch.equal(a, b)
    ws = torch.randn(2, 6, 8)
    near = network.mapping.truncate(ws, 0.5, 2)
    assert torch.equal(near[:, 2:], ws[:, 2:])
    assert torch.allclose(near[:, :2], network.mapping.w_avg + 0.5 * (ws[:, :2] - network.mapping.w_avg))
    assert torch.allclose(network.mapping.truncate(ws, 1.0), ws, atol=1e-6)


def test_adain_gives_every_channel_the_mean_and_deviation_of_its_style():
    conv = made(GeneratorConfig(**{**SMALL, "style": "adain", "architecture": "plain"})).synthesis.b8.conv1
    w = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    y = conv(torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)), w, "none")
    scale, shift = conv.affine(w).chunk(2, dim=1)
    assert torch.allclose(y.mean((2, 3)), shift, atol=1e-5)
    assert torch.allclose(y.std((2, 3), correction=0), (1 + scale).abs(), atol=1e-4)


def test_the_deviation_of_equal_pictures_is_nought_and_of_others_theirs():
    same = torch.ones(4, 2, 3, 3)
    assert batch_deviation(same, 4, 1).abs().max() < 1e-3
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(batch_deviation(x, 4, 1), x.std(0, correction=0).mean().expand(4, 1, 3, 3), atol=1e-5)
    pairs = batch_deviation(x, 2, 1)  # pictures 0 and 2, and 1 and 3
    assert torch.equal(pairs[0], pairs[2]) and torch.equal(pairs[1], pairs[3]) and not torch.equal(pairs[0], pairs[1])


def test_growing_begins_where_the_smaller_network_ends():
    """At a whole level the newest block has faded in; just after, it does not show yet."""
    network = made(GeneratorConfig(**{**SMALL, "style": "adain", "architecture": "plain", "growing": True}))
    judge = made(DiscriminatorConfig(channels=(16, 16, 8), architecture="plain", growing=True))
    pictures, logits = {}, {}
    for level in (1.0, 1.0 + 1e-6, 1.5, 2.0):
        network.synthesis.level.fill_(level)
        judge.level.fill_(level)
        pictures[level] = network(z())
        logits[level] = judge(pictures[level])
    assert pictures[1.0].shape[-1] == 8 and pictures[1.5].shape[-1] == pictures[2.0].shape[-1] == 16
    doubled = torch.nn.functional.interpolate(pictures[1.0], scale_factor=2.0)
    assert torch.allclose(pictures[1.0 + 1e-6], doubled, atol=1e-4)
    assert torch.allclose(logits[1.0], logits[1.0 + 1e-6], atol=1e-4)
    assert torch.equal(shrunk(pictures[2.0], 16, 0.0), pictures[2.0]) and shrunk(pictures[2.0], 8, 0.5).shape[-1] == 8


# ------------------------------------------------------------------------------------------------------------- StyleGAN3


def alias_free(**choice):
    network = made(
        AliasFreeConfig(resolution=32, channel_base=256, channel_max=16, z_dim=8, w_dim=8, layers=6, **choice)
    )
    with torch.no_grad():
        network.synthesis.input.affine.weight.zero_()  # upright and in place for every w
    return network.double().eval()


def moved(network, w, x=0.0, y=0.0, quarter=0):
    """Painted under a transform of the input's plane."""
    turn = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter]
    transform = torch.tensor([[turn[0], -turn[1], x], [turn[1], turn[0], y], [0, 0, 1]], dtype=torch.float64)
    network.synthesis.input.transform.copy_(transform)
    with torch.no_grad():
        return network.synthesis(w[:, None].expand(-1, network.config.num_ws, -1))


@pytest.mark.parametrize("choice", [{}, {"kernel": 1, "radial": True}], ids=["T", "R"])
def test_a_shift_of_the_input_shifts_the_picture(choice):
    network = alias_free(**choice)
    w = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    plain, right = moved(network, w), moved(network, w, x=-4 / 32)
    by = min((-4, 4), key=lambda k: float((plain.roll(k, 3) - right)[..., 4:-4].square().mean()))
    error = (plain.roll(by, 3) - right)[..., 4:-4].square().mean() / plain.var()
    assert error < 1e-3 and (plain - right).square().mean() / plain.var() > 10 * error


def test_a_quarter_turn_of_the_input_turns_the_picture_of_r_alone():
    w = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def error(network):
        plain, turned = moved(network, w), moved(network, w, quarter=1)
        return min(float((plain.rot90(k, (2, 3)) - turned).square().mean() / plain.var()) for k in (1, 3))

    assert error(alias_free(kernel=1, radial=True)) < 1e-6
    assert error(alias_free()) > 1e-2


def test_the_bands_are_those_of_the_published_configuration():
    """Karras et al. 2021, figure 4 and appendix F: T at 1024 px."""
    bands = specification(AliasFreeConfig(resolution=1024))
    assert [b.size for b in bands] == [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024]
    assert bands[0].channels == 512 and bands[-1].channels == 3 and bands[-1].cutoff == 512


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"style": "adain"}, "architecture=plain"),
        ({"growing": True}, "architecture=plain"),
        ({"channels": ()}, "channels"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        GeneratorConfig(**config)
