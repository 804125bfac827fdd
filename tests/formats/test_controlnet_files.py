"""ControlNets in public folders and in the original authors' files: the same names and bits there and back."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import hwaga
from hwaga.conditioning.controlnet import ControlNetConfig
from hwaga.errors import InputError
from hwaga.formats import controlnet as public
from hwaga.layers.initialise import build_on
from hwaga.networks.text_unet import TextUNetConfig
from hwaga.saving import convert

BASE = TextUNetConfig(
    channels=(32, 64, 64), attention=(True, True, False), depth=(1, 1, 1), heads=(8, 8, 8), blocks=2, text_width=16
)


def network(seed=0, **own):
    net = build_on(ControlNetConfig.of(BASE, **{"hint_channels": (8, 8, 16, 16), **own}))
    net.initialise(torch.Generator().manual_seed(seed))
    tiny.fill_zeros(net, seed)
    return net.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("public") / "controlnet"
    public.write_folder(place, network(), {})
    return place


def test_a_folder_is_read_and_written_the_same(folder, tmp_path):
    model = hwaga.load(folder, device="cpu", dtype="float32")
    assert model.name == "controlnet" and set(model.networks) == {"controlnet"}
    hwaga.export(model, tmp_path / "again", format="diffusers")
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(folder / name), load_file(tmp_path / "again" / name)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (tmp_path / "again" / "config.json").read_text()
    )


def test_alone_it_paints_nothing_and_says_what_to_do(folder):
    with pytest.raises(InputError, match="--component controlnet="):
        hwaga.load(folder, device="cpu").sample(control=torch.zeros(3, 64, 64))


def test_the_original_file_has_the_original_names_and_comes_back(folder, tmp_path):
    file = tmp_path / "control.safetensors"
    convert(folder, file, "single")
    names = load_file(file)
    for name in ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
                 "input_hint_block.0.weight", "input_hint_block.12.weight", "input_hint_block.14.bias", "zero_convs.0.0.weight",
                 "zero_convs.8.0.bias", "middle_block.1.proj_in.weight", "middle_block_out.0.weight"):  # fmt: skip
        assert f"control_model.{name}" in names, name
    again = hwaga.load(file, device="cpu", dtype="float32").networks["controlnet"]
    own = hwaga.load(folder, device="cpu", dtype="float32").networks["controlnet"].state_dict()
    assert all(torch.equal(value, own[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("form", ["no header", "no prefix", "pickle", "half"])
def test_what_a_file_does_not_say_is_read_off_its_shapes(form, folder, tmp_path):
    convert(folder, tmp_path / "control.safetensors", "single")
    tensors = load_file(tmp_path / "control.safetensors")
    if form == "no prefix":
        tensors = {name.removeprefix("control_model."): value for name, value in tensors.items()}
    if form == "half":
        tensors = {name: value.half() for name, value in tensors.items()}
    file = tmp_path / ("plain.pth" if form == "pickle" else "plain.safetensors")
    torch.save(tensors, file) if form == "pickle" else save_file(tensors, file)
    model = hwaga.load(file, device="cpu", dtype="float32")
    before = network().config
    assert model.networks["controlnet"].config == before
    hwaga.export(model, tmp_path / "again.safetensors", format="single")
    after = load_file(tmp_path / "again.safetensors")
    assert after.keys() == tensors.keys() and all(torch.equal(after[k], tensors[k]) for k in after)


def test_a_converted_file_with_a_folders_names_is_read_too(folder, tmp_path):
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file(tensors, tmp_path / "converted.safetensors")
    net = hwaga.load(tmp_path / "converted.safetensors", device="cpu", dtype="float32").networks["controlnet"]
    assert net.config == network().config and all(torch.equal(v, tensors[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("control_model.zero_convs.3.0.weight"), "control_model.zero_convs.3.0.weight"),
        (lambda t: t.update({"control_model.extra": torch.zeros(1)}), "control_model.extra"),
        (lambda t: t.pop("control_model.input_hint_block.0.weight"), "input_hint_block.0.weight"),
    ],
)
def test_a_tensor_too_many_or_too_few_is_named(change, words, folder, tmp_path):
    convert(folder, tmp_path / "control.safetensors", "single")
    tensors = load_file(tmp_path / "control.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(InputError) as error:
        hwaga.load(tmp_path / "broken.safetensors", device="cpu")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"speed": 3}, "speed is no field of ControlNetModel"),
        ({"controlnet_conditioning_channel_order": "gbr"}, "'gbr'"),
        ({"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 3}, "SimpleCrossAttnDownBlock2D"),
        ({"attention_head_dim": 7}, "heads"),
    ],
)
def test_a_config_that_cannot_be_done_is_refused(change, words, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text()) | change
    with pytest.raises(InputError) as error:
        public.network_config(config, "config.json")
    assert words in str(error.value)


def test_the_public_fields_that_matter_survive(tmp_path):
    config = network(bgr=True, pooled=True, map_channels=1).config
    assert public.network_config(public.public_config(config), "here") == config


@pytest.mark.parity
def test_the_public_library_opens_what_was_written(folder):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.ControlNetModel.from_pretrained(folder)
    own = network().state_dict()
    assert all(torch.equal(value, own[name]) for name, value in peer.state_dict().items())
