"""The U-Net: its public layout, its shapes, its gradients."""

import pytest
import torch
from pydantic import ValidationError
from tiny import fill_zeros

from hwaga.layers.initialise import build_on
from hwaga.networks.unet import UNet, UNetConfig

SMALL = {"channels": (16, 32, 32), "attention": (False, True, False), "groups": 8, "blocks": 1}


def made(**changes):
    network = build_on(UNetConfig(**{**SMALL, **changes}))
    network.initialise(torch.Generator().manual_seed(0))
    fill_zeros(network)
    return network


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(config).parameters())


def test_public_networks_have_their_published_number_of_parameters():
    assert parameters(UNetConfig()) == 35_746_307
    wide = UNetConfig(channels=(128, 128, 256, 256, 512, 512), attention=(False, False, False, False, True, False))
    assert parameters(wide) == 113_673_219


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
@pytest.mark.parametrize("patch", [1, 2])
def test_prediction_has_the_shape_of_the_picture(size, patch):
    network = made(patch=patch, out_channels=6)
    assert network(torch.zeros(2, 3, *size), torch.zeros(2)).shape == (2, 6, *size)


@pytest.mark.parametrize("changes", [{}, {"classes": 4, "scale_shift": True, "head_width": 8, "patch": 2}])
def test_gradient_reaches_every_parameter(changes):
    network = made(**changes)
    label = torch.tensor([0, 1, 2, 3]) if network.config.classes else None
    x = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    network(x, torch.tensor([0.0, 10.0, 500.0, 999.0]), label).square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a key's bias shifts all logits of a query alike, so softmax does not see it: its gradient is rounding
    assert dead == []


def test_recomputing_in_the_backward_pass_changes_no_gradient():
    x, time = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 700.0])
    gradients = []
    for checkpointing in (False, True):
        network = made()
        network.checkpointing = checkpointing
        network(x, time).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_label_is_needed_exactly_where_there_are_classes():
    with pytest.raises(ValueError, match="label"):
        made()(torch.zeros(1, 3, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="label"):
        made(classes=3)(torch.zeros(1, 3, 16, 16), torch.zeros(1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": (16, 30, 32)}, "multiple of groups"),
        ({"attention": (True,)}, "attention has 1 entries"),
        ({"head_width": 12}, "multiple of head_width"),
        ({"widths": 3}, "widths"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        UNetConfig(**{**SMALL, **changes})


@pytest.mark.parity
@pytest.mark.parametrize(
    "changes",
    [{}, {"classes": 5}, {"scale_shift": True, "head_width": 8}, {"scale_shift": True, "middle_norm": False}],
)
def test_same_weights_give_the_public_networks_prediction(changes):
    diffusers = pytest.importorskip("diffusers")
    from hwaga.formats.unet2d import public_network_config

    network = made(**changes)
    public = public_network_config(network.config, (16, 16))
    peer = diffusers.UNet2DModel(**{k: v for k, v in public.items() if not k.startswith("_")})
    peer.load_state_dict(network.state_dict())
    x = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(2))
    time = torch.tensor([3.0, 800.0])
    label = torch.tensor([1, 4]) if network.config.classes else None
    with torch.no_grad():
        assert (network(x, time, label) - peer(x, time, class_labels=label).sample).abs().max() < 1e-5
