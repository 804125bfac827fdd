"""A budget of memory: half-precision weights stay in their file and are widened a layer at a time; the picture is the same."""

from __future__ import annotations

import pytest
import tiny
import torch

import hwaga
from hwaga.errors import InputError
from hwaga.saving import save
from hwaga.weights import streamed
from hwaga.weights.streamed import private_bytes


@pytest.fixture()
def halved(tmp_path, monkeypatch):
    """A Stable Diffusion saved in half precision, whose matrices of 300 numbers and more count as large."""
    monkeypatch.setattr(streamed, "LEAST", 300)
    model = tiny.stable_diffusion(process={"timesteps": 50})
    tiny.fill_zeros(model.network)
    return save(model, tmp_path / "half", dtype=torch.float16)


def painted(model):
    return model.sample(prompt="a star", steps=2, seed=1, guidance_scale=2.0, output="tensor", progress=False)


def test_under_a_budget_large_weights_stay_in_their_file_and_the_picture_is_the_same(halved):
    whole = hwaga.load(halved, device="cpu")
    tight = hwaga.load(halved, device="cpu", memory="300KB")
    assert {p.dtype for p in whole.network.parameters()} == {torch.float32}
    stored = [name for name, p in tight.network.named_parameters() if p.dtype == torch.float16]
    assert len(stored) > 20 and tight.dtype == torch.float32
    assert private_bytes(tight.network) < private_bytes(whole.network) / 3
    assert torch.equal(painted(tight), painted(whole)) and torch.equal(painted(tight), painted(whole))
    assert [name for name, p in tight.network.named_parameters() if p.dtype == torch.float16] == stored


def test_what_fits_is_widened_at_once(halved):
    model = hwaga.load(halved, device="cpu", memory="1GB")
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}


def test_a_budget_below_what_must_be_in_memory_is_refused(halved):
    with pytest.raises(InputError, match="memory=1KB: the weights alone take"):
        hwaga.load(halved, device="cpu", memory="1KB")


def test_an_error_in_a_layer_leaves_its_weight_in_the_file(halved):
    model = hwaga.load(halved, device="cpu", memory="300KB")
    layer = model.network.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    large = model.network.mid_block.attentions[0].transformer_blocks[0].ff.net[2]
    assert large.weight.dtype == torch.float16 and layer.weight.numel() < 300
    with pytest.raises(RuntimeError):
        large(torch.ones(1, 3))
    assert large.weight.dtype == torch.float16


def test_it_is_saved_as_it_was_stored(halved, tmp_path):
    from safetensors.torch import load_file

    save(hwaga.load(halved, device="cpu", memory="300KB"), tmp_path / "again", dtype=torch.float16)
    a, b = (load_file(place / "network" / "model.safetensors") for place in (halved, tmp_path / "again"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
