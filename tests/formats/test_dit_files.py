"""DiT's and SiT's public layouts: the folder equals diffusers, the file its own conventions, both come back bit for bit."""

import argparse
import json
import warnings
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from hwaga.errors import InputError
from hwaga.formats import dit, single
from hwaga.formats.folders import PublicFolder
from hwaga.networks.dit import fixed_positions

diffusers = pytest.importorskip("diffusers")
FLOAT, CPU = torch.float32, torch.device("cpu")


def public(heads=2, head=64, depth=2, side=8, seed=0, same=True):
    """diffusers' transformer with random weights, and the same embedder in every block."""
    g = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=head, in_channels=4, out_channels=8, num_layers=depth,
            sample_size=side, patch_size=2, num_embeds_ada_norm=10,
        )  # fmt: skip
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.1))
    if same:
        first = network.transformer_blocks[0].norm1.emb.state_dict()
        for block in network.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
    return network.eval()


def given(side=8):
    g = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, side, side, generator=g), torch.tensor([0, 500, 999]), torch.tensor([0, 7, 10])


def saved(network, tmp_path):
    network.save_pretrained(tmp_path / "transformer")
    return PublicFolder(tmp_path, "transformer")


def as_original(network, side=8):
    """The tensors of a public transformer under the original names."""
    found, new = {}, network.state_dict()
    config = dit.network_config(dict(network.config), "config")
    for row in dit.TABLE:
        for kind in ("weight", "bias"):
            for i in range(config.depth if "{i}" in row.ours else 1):
                fill = {"path": kind, "i": i, "each": 0}
                names = [name.format(**fill) for name in row.folder]
                if all(name in new for name in names):
                    found[row.original.format(**fill)] = torch.cat([new[name] for name in names])
    return {"pos_embed": fixed_positions(config), **found}


@contextmanager
def original_conventions(network):
    """The public class with the original's two other numbers."""
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    yield network


@torch.no_grad()
@pytest.mark.parity
@pytest.mark.parametrize("side", [8, 12])
def test_the_folder_says_what_diffusers_says(side, tmp_path):
    peer = public()
    found = dit.read_component(saved(peer, tmp_path))
    x, t, label = given(side)
    ours = found.network(FLOAT, CPU)(x, t.float(), label)
    assert (ours - peer(x, t, label).sample).abs().max() < 1e-5
    assert found.size == (8, 8)


def test_a_folder_comes_back_with_the_same_names_and_bits(tmp_path):
    found = dit.read_component(saved(public(), tmp_path))
    dit.write_folder(tmp_path / "again", found.network(FLOAT, CPU), found.size, found.layout)
    before, after = (
        load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("transformer", "again")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads(
        (tmp_path / "transformer/config.json").read_text()
    )


@torch.no_grad()
@pytest.mark.parity
def test_the_original_file_differs_from_the_folder_in_two_numbers_and_no_more(tmp_path):
    peer = public()
    save_file(as_original(peer), tmp_path / "DiT-tiny.safetensors")
    tensors = single.read(tmp_path / "DiT-tiny.safetensors")
    found = dit.read_file(tmp_path / "DiT-tiny.safetensors", tensors)
    network, (x, t, label) = found.network(FLOAT, CPU), given()
    plain = peer(x, t, label).sample
    with original_conventions(peer):
        assert (network(x, t.float(), label) - peer(x, t, label).sample).abs().max() < 1e-5
    assert (network(x, t.float(), label) - plain).abs().max() > 1e-3
    assert found.size == (8, 8) and not found.flow


@torch.no_grad()
@pytest.mark.parity
def test_a_sit_is_the_same_network_in_the_other_direction(tmp_path):
    """Fed 1 at the data and saying data - noise: here it is fed 0 there and says noise - data."""
    peer = public()
    save_file(as_original(peer), tmp_path / "SiT-tiny.safetensors")
    found = dit.read_file(tmp_path / "SiT-tiny.safetensors", single.read(tmp_path / "SiT-tiny.safetensors"))
    network, (x, _, label) = found.network(FLOAT, CPU), given()
    time = torch.tensor([0.0, 0.3, 1.0])
    with original_conventions(peer):
        assert (network(x, 1 - time, label) + peer(x, time, label).sample).abs().max() < 1e-5
    assert found.flow


@pytest.mark.parametrize("name", ["DiT-tiny", "SiT-tiny"])
def test_a_file_comes_back_with_the_same_names_and_bits(name, tmp_path):
    before = as_original(public())
    torch.save(before, tmp_path / f"{name}.pt")
    found = dit.read_file(tmp_path / f"{name}.pt", single.read(tmp_path / f"{name}.pt"))
    file = tmp_path / "anything.safetensors"
    dit.write_file(file, found.network(FLOAT, CPU), found.layout, found.flow)
    after = load_file(file)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if found.flow else "ignore")
        assert dit.read_file(file, single.read(file)).flow == found.flow  # a SiT's file says what it is


def test_of_a_trainings_checkpoint_either_weights_are_read_and_its_arguments_tell_a_sit(tmp_path):
    raw, ema = as_original(public(seed=1)), as_original(public(seed=2))
    args = argparse.Namespace(path_type="Linear", prediction="velocity")
    torch.save({"model": raw, "ema": ema, "args": args, "opt": {"state": {}}}, tmp_path / "0100000.pt")
    for kind, wanted in ((None, ema), ("ema", ema), ("raw", raw)):
        tensors = single.read(tmp_path / "0100000.pt", kind)
        assert torch.equal(tensors["final_layer.linear.bias"], wanted["final_layer.linear.bias"])
        assert tensors.kinds[0] == (kind or "ema")
    assert single.recognise(tmp_path / "0100000.pt", tensors).system == "dit"
    assert dit.read_file(tmp_path / "0100000.pt", tensors).flow


def test_what_a_file_is_taken_for_is_said(tmp_path):
    tensors = as_original(public())
    with pytest.warns(UserWarning, match="taken for a DiT"):
        assert not dit.read_file(tmp_path / "weights.pt", tensors).flow


def test_a_path_that_is_not_straight_is_refused(tmp_path):
    found = single.read(_saved_with(tmp_path, path_type="GVP"))
    with pytest.raises(InputError, match="path_type=GVP"):
        dit.read_file(tmp_path / "x.pt", found)


def _saved_with(tmp_path, **args):
    torch.save({"ema": as_original(public()), "args": argparse.Namespace(**args)}, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_one_tensor_too_many_or_too_few_is_named(tmp_path):
    tensors = as_original(public())
    lost = {k: v for k, v in tensors.items() if k != "blocks.1.attn.proj.bias"}
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.proj\.bias"):
        dit.read_file(tmp_path / "DiT.pt", lost)
    with pytest.raises(InputError, match="rotary"):
        dit.read_file(tmp_path / "DiT.pt", {**tensors, "rotary": torch.zeros(2)})
    with pytest.raises(InputError, match="pos_embed"):
        dit.read_file(tmp_path / "DiT.pt", {**tensors, "pos_embed": tensors["pos_embed"] + 1})


def test_embedders_that_differ_from_block_to_block_are_refused(tmp_path):
    found = dit.read_component(saved(public(same=False), tmp_path))
    with pytest.raises(InputError, match="differs from"):
        found.network(FLOAT, CPU)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_type": "ada_norm_single"}, "norm_type='ada_norm_single'"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"sample_size": 9}, "sample_size=9"),
        ({"wings": 2}, "wings is no field"),
        ({"num_layers": 0}, "depth=0"),
    ],
)
def test_a_config_that_is_no_dit_is_refused(change, words):
    with pytest.raises(InputError) as error:
        dit.network_config({**dit.DEFAULTS, **change}, "config.json")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qk_norm": True}, "qk_norm=True"),
        ({"conditioning": "in-context"}, "conditioning=in-context"),
        ({"classes": 0}, "always has labels"),
        ({"time_scale": 1000.0}, "time_scale=1000"),
    ],
)
def test_what_a_public_layout_has_no_field_for_is_not_exported(change, words, tmp_path):
    config = dit.DiTConfig(width=64, heads=1, depth=1, classes=3, grid=(2, 2)).model_copy(update=change)
    with pytest.raises(InputError) as error:
        dit.write_file(tmp_path / "x.safetensors", config.build(), {}, False)
    assert words in str(error.value)
