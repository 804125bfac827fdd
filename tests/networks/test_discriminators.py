"""Generators and discriminators: shapes, published sizes, what each looks at."""

import pytest
import tiny
import torch

from hwaga.layers.initialise import build_on
from hwaga.networks.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from hwaga.networks.discriminators import PatchDiscriminatorConfig
from hwaga.networks.residual_gan import Block, ResidualDiscriminatorConfig, ResidualGeneratorConfig

PATCH_NORMS = ("batch", "group", "none", "spectral")


def made(config, seed=0):
    network = build_on(config)
    network.initialise(torch.Generator().manual_seed(seed))
    return network


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize("norm", PATCH_NORMS)
def test_a_patch_discriminator_gives_a_logit_a_patch_and_every_parameter_learns(norm):
    network = made(PatchDiscriminatorConfig(width=8, layers=2, norm=norm))
    logits = network(tiny.batch(3, (24, 32)).image)
    assert logits.shape == (3, 1, 4, 6)
    logits.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_logit_of_the_paper_sees_70_by_70_pixels():
    network = made(PatchDiscriminatorConfig(width=4, norm="none"))
    image = torch.zeros((1, 3, 128, 128), requires_grad=True)
    network(image)[0, 0, 7, 7].backward()
    seen = image.grad[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_the_patch_discriminator_of_the_paper_has_the_published_names_and_size():
    network = made(PatchDiscriminatorConfig())
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items() if k.endswith("weight")}
    assert shapes["main.0.weight"] == (64, 3, 4, 4) and shapes["main.8.weight"] == (512, 256, 4, 4)
    assert shapes["main.11.weight"] == (1, 512, 4, 4) and "main.2.bias" not in network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 2_765_633


def test_r3gan_at_256_pixels_has_the_papers_number_of_parameters():
    """Huang et al. 2024, table 2, config E: 23.06 M and 23.01 M."""
    shape = {"channels": (768, 768, 768, 768, 384, 192, 96), "blocks": (2,) * 7}
    assert parameters(ResidualGeneratorConfig(**shape)) == 23_057_955
    assert parameters(ResidualDiscriminatorConfig(**shape)) == 23_009_665


def test_dcgan_of_the_paper_has_four_steps_from_1024_channels():
    config = DCGANGeneratorConfig()
    assert config.size == (64, 64) == DCGANDiscriminatorConfig().size
    with torch.device("meta"):
        network = config.build()
    assert [tuple(up.weight.shape) for up in network.ups] == [
        (1024, 512, 5, 5), (512, 256, 5, 5), (256, 128, 5, 5), (128, 3, 5, 5),
    ]  # fmt: skip


@pytest.mark.parametrize("kernel", [4, 5])
@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_dcgan_paints_and_judges_pictures_of_its_size(kernel, norm):
    shape = {"channels": (16, 8), "kernel": kernel}
    generator, discriminator = made(DCGANGeneratorConfig(**shape)), made(DCGANDiscriminatorConfig(**shape, norm=norm))
    image = generator(torch.randn((5, 100), generator=torch.Generator().manual_seed(0)))
    assert image.shape == (5, 3, 16, 16) and image.abs().max() <= 1
    assert discriminator(image).shape == (5,)


def test_a_residual_block_is_the_identity_at_first():
    generator = made(ResidualGeneratorConfig(channels=(32, 16), blocks=(1, 2)))
    x = torch.randn((2, 16, 8, 8), generator=torch.Generator().manual_seed(0))
    blocks = [part for part in generator.modules() if isinstance(part, Block)]
    assert len(blocks) == 3 and torch.equal(blocks[-1](x), x)


def test_the_pixels_of_a_block_begin_alike():
    generator = made(ResidualGeneratorConfig(channels=(32, 16), blocks=(1, 1), patch=2))
    image = generator(torch.randn((2, 64), generator=torch.Generator().manual_seed(0)))
    blocks = torch.nn.functional.pixel_unshuffle(image, 2).unflatten(1, (3, 4))
    assert image.shape == (2, 3, 16, 16) and torch.equal(blocks, blocks[:, :, :1].expand_as(blocks))


def test_the_width_may_change_before_or_after_the_size():
    """What makes the cheap order right: a 1 x 1 convolution and a bilinear resampling commute."""
    x = torch.randn((2, 6, 4, 4), generator=torch.Generator().manual_seed(0))
    conv = torch.nn.utils.skip_init(torch.nn.Conv2d, 6, 3, 1)
    with torch.no_grad():
        conv.weight.normal_(generator=torch.Generator().manual_seed(1))
        conv.bias.zero_()
        up = {"scale_factor": 2.0, "mode": "bilinear", "align_corners": False}
        one, two = torch.nn.functional.interpolate(conv(x), **up), conv(torch.nn.functional.interpolate(x, **up))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", [ResidualDiscriminatorConfig, DCGANDiscriminatorConfig])
def test_a_label_changes_the_logit_by_its_projection(kind):
    """D(x, a) - D(x, b) = <e_a - e_b, features> / sqrt(width): zero embeddings leave the plain logit."""
    more = {"blocks": (1, 1)} if kind is ResidualDiscriminatorConfig else {"norm": "none"}
    network = made(kind(channels=(16, 8), classes=3, **more))
    image = tiny.batch(4, (8, 8) if more.get("blocks") else (16, 16)).image
    a, b = torch.full((4,), 1), torch.full((4,), 2)
    with torch.no_grad():
        assert (network(image, a) != network(image, b)).all()
        network.embedding.weight[2] = network.embedding.weight[1]
        assert torch.equal(network(image, a), network(image, b))
    with pytest.raises(ValueError, match="label=None"):
        network(image)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"blocks": (1, 1)}, "blocks has 2 entries, channels has 3"),
        ({"channels": (10, 10, 10)}, "no multiple of group_width=16"),
        ({"blocks": (0, 0, 0)}, "one at least"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(config, words):
    with pytest.raises(ValueError, match=words):
        ResidualGeneratorConfig(**config)
