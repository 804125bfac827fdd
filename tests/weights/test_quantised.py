"""Linear layers of 8 bits: how near they come, what they are asked for, what cannot be done with them."""

import json

import pytest
import tiny
import torch
from torch import nn

import hwaga
from hwaga.errors import InputError
from hwaga.networks.dit import DiTConfig
from hwaga.saving import save
from hwaga.weights.quantised import Int8Linear, is_quantised, quantise


def layer(ins=256, outs=192, bias=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    linear = nn.Linear(ins, outs, bias=bias)
    with torch.no_grad():
        for p in linear.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return linear, torch.randn(3, 20, ins, generator=g)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_near_the_exact_one(bias):
    linear, x = layer(bias=bias)
    exact, near = linear(x), Int8Linear(linear)(x)
    assert near.shape == exact.shape and (near - exact).norm() < 0.015 * exact.norm()


@torch.no_grad()
def test_scales_are_a_rows_own():
    """A token or an output that is a thousand times another's is as exact as that."""
    linear, x = layer(bias=False)
    linear.weight[0] *= 1000
    x[:, 1] *= 1000
    exact, near = linear(x), Int8Linear(linear)(x)
    for part in ((..., 0), (..., 5), (slice(None), 1)):
        assert (near[part] - exact[part]).norm() < 0.02 * exact[part].norm()
    assert torch.equal(Int8Linear(linear)(torch.zeros_like(x)), torch.zeros_like(exact))


@torch.no_grad()
def test_a_transformer_is_near_the_exact_one_in_a_quarter_of_the_place():
    with torch.device("cpu"):
        network = DiTConfig(width=256, depth=3, heads=4, classes=4).build()
    network.initialise(torch.Generator().manual_seed(0))
    tiny.fill_zeros(network)
    g = torch.Generator().manual_seed(1)
    given = torch.randn(2, 4, 16, 16, generator=g), torch.tensor([3.0, 700.0]), torch.tensor([0, 3])
    exact = network(*given)
    before = sum(p.numel() * p.element_size() for p in network.parameters())
    assert quantise(network) > 10 and is_quantised(network)
    assert (network(*given) - exact).norm() < 0.03 * exact.norm()
    after = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    assert after < 0.3 * before


def test_a_model_is_loaded_so_when_asked_and_is_not_saved_again(tmp_path):
    system = tiny.dit(network={"width": 128, "heads": 2})
    tiny.fill_zeros(system.network)
    save(system, tmp_path / "model")
    call = {"seed": 1, "steps": 3, "sampler": "ddim", "output": "tensor", "progress": False}
    rounded = hwaga.load(tmp_path / "model", device="cpu", dtype="int8")
    near, exact = rounded.sample(**call), system.sample(**call)
    assert 0 < (near - exact).abs().max() < 0.1
    picture = rounded.sample(**{**call, "output": "pil"})[0]
    assert json.loads(picture.info["hwaga"])["dtype"] == "int8"  # so that `--from` paints it again
    for write in (lambda f: save(rounded, f), lambda f: hwaga.export(rounded, f, "single")):
        with pytest.raises(InputError, match="rounded"):
            write(tmp_path / "again")


def test_what_has_no_large_layers_is_refused(tmp_path):
    save(tiny.public_ddpm(), tmp_path / "model")
    with pytest.raises(InputError, match="no linear layers large enough"):
        hwaga.load(tmp_path / "model", device="cpu", dtype="int8")
