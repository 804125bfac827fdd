"""LoRA in training: small matrices beside a frozen network."""

from __future__ import annotations

import copy

import pytest
import torch

from hwaga.networks.adapter import AdapterConfig
from hwaga.networks.dit import DiTConfig
from hwaga.networks.unet import UNetConfig
from hwaga.weights.lora import Change, Loras, LowRank, Place

UNET = UNetConfig(channels=(8, 16), attention=(False, True), blocks=1, groups=4)


def made(config=UNET, **options):
    network = config.build()
    network.initialise(torch.Generator().manual_seed(0))
    for p in network.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(1))
    adapter = AdapterConfig(network=config, rank=2, **options).build()
    adapter.initialise(torch.Generator().manual_seed(2))
    return network.eval(), adapter


def turned_on(adapter):
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, up in adapter.pairs().values():
            up.normal_(std=0.1, generator=g)


def asked(network):
    g = torch.Generator().manual_seed(4)
    return network(torch.randn(2, 3, 8, 8, generator=g), torch.tensor([3.0, 7.0]))


@torch.no_grad()
def test_it_begins_at_the_base_and_scale_0_is_the_base_bit_for_bit():
    network, adapter = made()
    base = asked(network)
    adapter.attach(network)
    torch.testing.assert_close(asked(network), base, atol=0, rtol=0)
    turned_on(adapter)
    assert not torch.allclose(asked(network), base, atol=1e-3)
    adapter.scale = 0.0
    assert torch.equal(asked(network), base)
    adapter.scale = 1.0
    adapter.detach_from()
    assert torch.equal(asked(network), base)


@torch.no_grad()
@pytest.mark.parametrize("targets", [("all",), ("to_q", "conv1"), ("downsamplers.0.conv",)])
def test_beside_the_layers_it_is_what_the_merged_weights_are(targets):
    network, adapter = made(targets=targets, alpha=3.0)
    turned_on(adapter)
    merged = copy.deepcopy(network)
    changes = {
        Place("network", f"{name}.weight"): Change(LowRank(down, up, alpha=3.0))
        for name, (down, up) in adapter.pairs().items()
    }
    Loras({"network": merged}).add("a", changes, 0.7)
    adapter.attach(network)
    adapter.scale = 0.7
    torch.testing.assert_close(asked(network), asked(merged), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "config", [UNET, DiTConfig(width=16, depth=1, heads=2, patch=4, in_channels=3, out_channels=3, grid=(2, 2))]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_matrix_and_no_weight_of_the_base(config, checkpointing):
    network, adapter = made(config, targets=("all",))
    turned_on(adapter)
    adapter.attach(network)
    adapter.checkpointing = checkpointing
    assert network.checkpointing is checkpointing
    asked(network).square().sum().backward()
    assert all(p.grad is None for p in network.parameters())
    dead = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == [], dead


def test_its_state_holds_the_small_matrices_alone():
    network, adapter = made()
    names = set(network.state_dict())
    adapter.attach(network)
    assert set(network.state_dict()) == names
    assert all(key.endswith((".down", ".up")) for key in adapter.state_dict())
    assert (
        sum(v.numel() for v in adapter.state_dict().values())
        < sum(v.numel() for v in network.state_dict().values()) / 5
    )


def test_a_target_that_is_no_layers_name_is_told():
    with pytest.raises(ValueError, match="targets='to_x' is the end of no layer"):
        AdapterConfig(network=UNET, targets=("to_q", "to_x")).build()


def test_the_targets_of_the_paper_are_attentions_in_both_kinds_of_network():
    _, adapter = made()
    assert all(name.rpartition("attentions")[1] for name in adapter.pairs())
    dit = AdapterConfig(network=DiTConfig(width=16, depth=1, heads=2, patch=4)).build()
    assert set(dit.pairs()) == {"blocks.0.attention.qkv", "blocks.0.attention.out"}


def test_it_reaches_every_layer_of_a_network_that_reads_words():
    from hwaga.networks.text_unet import TextUNetConfig

    config = TextUNetConfig(
        channels=(8, 8), attention=(True, False), depth=(1, 1), heads=(2, 2), blocks=1, text_width=6, groups=4
    )
    network, adapter = made(config, targets=("all",))
    turned_on(adapter)
    merged = copy.deepcopy(network)
    g = torch.Generator().manual_seed(4)
    told = (torch.randn(2, 4, 8, 8, generator=g), torch.tensor([3.0, 7.0]), torch.randn(2, 5, 6, generator=g))
    with torch.no_grad():
        network(*told)  # keys and values of the text are kept; they are made anew when weights change
        merged(*told)
        pairs = adapter.pairs().items()
        changes = {Place("network", f"{n}.weight"): Change(LowRank(a.detach(), b.detach())) for n, (a, b) in pairs}
        Loras({"network": merged}).add("a", changes, 1.0)
        expected = merged(*told)
    adapter.attach(network)
    network(*told).square().sum().backward()
    dead = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == [], dead
    torch.testing.assert_close(network(*told).detach(), expected, atol=1e-5, rtol=1e-4)
