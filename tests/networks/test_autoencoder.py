"""Encoder and decoder against the public class with the same weights; pictures in parts against pictures at once."""

import pytest
import tiny
import torch

from hwaga.networks.autoencoder import AutoencoderKLConfig
from hwaga.networks.tiling import Tiling
from hwaga.networks.vae import ConvVAEConfig
from hwaga.samplers.noise import stream


def made(seed=0, **config):
    network = AutoencoderKLConfig(**{"channels": (8, 16), "groups": 4, "blocks": 1, **config}).build()
    network.initialise(stream(seed, "weights"))
    tiny.fill_zeros(network, seed)
    return network.eval()


def pictures(n, height, width, seed=0):
    return torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def peer(network):
    diffusers = pytest.importorskip("diffusers")
    config = network.config
    levels = len(config.channels)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=config.channels, layers_per_block=config.blocks, norm_num_groups=config.groups,
        latent_channels=config.latent_channels, use_quant_conv=config.quant_conv, use_post_quant_conv=config.post_quant_conv,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels, sample_size=32,
        mid_block_add_attention=config.middle_attention,
    )  # fmt: skip
    own = {k: v for k, v in network.state_dict().items() if k not in ("shift", "scale")}
    theirs.load_state_dict(own)
    return theirs.eval()


@pytest.mark.parametrize("config", [
    {}, {"channels": (8, 16, 16), "blocks": 2}, {"quant_conv": False, "post_quant_conv": False, "latent_channels": 16},
    {"middle_attention": False},
])  # fmt: skip
@torch.no_grad()
def test_it_is_the_public_autoencoder(config):
    network, x = made(**config), pictures(2, 24, 32)
    theirs = peer(network)
    ours, other = network.posterior(x), theirs.encode(x).latent_dist
    assert (ours.mean - other.mean).abs().max() < 1e-5 and (ours.log_variance - other.logvar).abs().max() < 1e-5
    eps = torch.randn(ours.mean.shape, generator=torch.Generator().manual_seed(1))
    z = ours.sample(eps)
    assert (z - (other.mean + other.std * eps)).abs().max() < 1e-5
    assert (network.decoded(z) - theirs.decode(z).sample).abs().max() < 1e-5


@torch.no_grad()
def test_latents_are_shifted_and_scaled_and_decode_takes_them():
    network, x = made(), pictures(2, 16, 16)
    plain = network.decoded(network.posterior(x).mean)
    network.shift.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    network.scale.fill_(0.18215)
    latents = network.encode(x)
    assert torch.allclose(latents, (network.posterior(x).mean - network.shift.view(-1, 1, 1)) * 0.18215, atol=1e-6)
    assert (network.decode(latents) - plain).abs().max() < 1e-5


@pytest.mark.parametrize("config", [
    {}, {"channels": (8, 16, 16), "blocks": 2}, {"patch": 2}, {"attention": (False, True)}, {"channels": (16, 8)},
])  # fmt: skip
@pytest.mark.parametrize("held", [0, 2**28])
@torch.no_grad()
def test_strips_give_the_picture_that_all_at_once_gives(config, held, monkeypatch):
    monkeypatch.setattr("hwaga.networks.tiling.HELD", held)  # 0: inner maps are made twice
    monkeypatch.setattr("hwaga.networks.tiling.STRIP", 4 * 16 * 40 * 4)  # a few rows at a time
    monkeypatch.setattr("hwaga.networks.tiling.SMALL", 0)
    monkeypatch.setattr("hwaga.networks.tiling._Raised.PIECE", 3)
    network, x = made(**config), pictures(2, 72, 40)
    whole = network.posterior(x)
    picture = network.decoded(whole.mean)
    network.tiling = Tiling("exact")
    parts = network.posterior(x)
    assert (parts.mean - whole.mean).abs().max() < 2e-5 * whole.mean.abs().max()
    assert (network.decoded(whole.mean) - picture).abs().max() < 2e-5 * picture.abs().max()


@pytest.mark.parametrize("size", [(64, 64), (80, 56), (32, 100)])
@torch.no_grad()
def test_blended_tiles_are_those_of_the_public_program(size):
    network, x = made(channels=(8, 16, 16)), pictures(1, *size)
    theirs = peer(network)
    theirs.enable_tiling()
    network.tiling = Tiling("blended", tile=32)
    mean = network.posterior(x).mean
    assert (mean - theirs.encode(x).latent_dist.mean).abs().max() < 1e-5
    assert (network.decoded(mean) - theirs.decode(mean).sample).abs().max() < 1e-5


def test_which_way_is_a_rule_on_the_shape_and_training_is_whole():
    config, how = AutoencoderKLConfig(), Tiling()
    assert how.choose(config, 1, 512, 512) == "whole" and how.choose(config, 4, 512, 512) == "exact"
    assert how.choose(config, 1, 1024, 1024) == "exact" and how.choose(config, 1, 4096, 4096) == "blended"
    network, x = made(), pictures(1, 16, 16)
    with torch.no_grad():
        before = network.posterior(x).mean
    network.tiling = Tiling("blended", tile=8)
    assert torch.equal(network.posterior(x).mean.detach(), before)


@torch.no_grad()
def test_strips_keep_no_transformed_weights():
    from hwaga.layers.conv import Conv2d, kept_bytes

    network = made(channels=(64, 64), groups=32)
    network.tiling = Tiling("exact")
    network.decoded(torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert kept_bytes(network) == 0
    assert all(part.cache_transforms for part in network.modules() if isinstance(part, Conv2d))


@pytest.mark.parametrize("config", [
    AutoencoderKLConfig(channels=(8, 16), groups=4, blocks=1, attention=(True, False)),
    AutoencoderKLConfig(channels=(8, 16), groups=4, blocks=1, patch=2, double_z=False),
    ConvVAEConfig(channels=(8, 16), groups=4, latent_channels=4, latents=5, size=(16, 16), classes=4, label_width=3),
])  # fmt: skip
def test_gradient_reaches_every_parameter(config):
    network = config.build()
    network.initialise(stream(0, "weights"))
    tiny.fill_zeros(network)
    x, label = pictures(3, 16, 16), torch.tensor([0, 1, 3]) if getattr(config, "classes", 0) else None
    q = network.posterior(x, label)
    z = q.sample(torch.randn(q.mean.shape, generator=torch.Generator().manual_seed(0)))
    (network.decoded(z, label) * pictures(3, 16, 16, seed=1)).sum().backward()
    # with one place alone in the middle map q and k would have none: here there are several
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_recomputing_levels_in_the_backward_pass_changes_no_gradient():
    network, x = made(), pictures(1, 16, 16)
    found = []
    for again in (False, True):
        network.zero_grad()
        network.checkpointing = again
        network.decoded(network.posterior(x).mean).square().sum().backward()
        found.append(network.encoder.conv_in.weight.grad.clone())
    assert torch.allclose(*found, rtol=1e-5)
    assert network.encoder.checkpointing and network.decoder.checkpointing


def test_a_label_is_given_exactly_when_there_are_classes():
    plain = made()
    with pytest.raises(ValueError, match="label"):
        plain.posterior(pictures(1, 16, 16), torch.zeros(1, dtype=torch.long))
    told = ConvVAEConfig(channels=(8,), groups=4, size=(4, 4), classes=2).build()
    with pytest.raises(ValueError, match="classes=2"):
        told.posterior(pictures(1, 4, 4))
