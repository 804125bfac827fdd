"""Single files of Stable Diffusion: names as the original authors have them, both ways; what a file does not say."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import hwaga
from hwaga.errors import InputError
from hwaga.formats import ldm, ldm_file, single
from hwaga.networks.text_unet import TextUNetConfig

FULL = {
    "1": TextUNetConfig(),
    "2": TextUNetConfig(heads=(5, 10, 20, 20), text_width=1024, linear_projection=True),
    "xl": TextUNetConfig(
        channels=(320, 640, 1280), attention=(False, True, True), depth=(1, 2, 10), heads=(5, 10, 20), text_width=2048,
        linear_projection=True, added_width=2816,
    ),
}  # fmt: skip
COUNTS = {"1": 686, "2": 686, "xl": 1680}
WIDE = {"channels": [32, 64], "attention": [True, False], "depth": [1, 1], "heads": [8, 8], "blocks": 1, "groups": 32}


def meta_names(config):
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in config.build().state_dict().items()}


@pytest.fixture(scope="module")
def model():
    """A Stable Diffusion whose sizes a file tells: 32 groups, 8 heads."""
    made = tiny.stable_diffusion(network=WIDE)
    tiny.fill_zeros(made.network)
    return made


@pytest.fixture()
def plain(model, tmp_path):
    """Its single file as the original authors' programs write one: nothing in the header."""
    codec = tiny.vae_kl(network={"channels": (32, 32), "groups": 32, "blocks": 1}).autoencoder
    networks = {**model.networks, "autoencoder": codec}
    save_file(
        {k: v.clone().contiguous() for k, v in ldm_file.public_tensors(networks, "1", {}).items()},
        tmp_path / "plain.safetensors",
    )
    return tmp_path / "plain.safetensors"


def tokens(model, tmp_path):
    folder = tmp_path / "words"
    folder.mkdir(exist_ok=True)
    for name, content in model.networks["text_encoder"].files.items():
        (folder / name).write_bytes(content)
    return {"tokenizer": folder}


def painted(model, **more):
    return model.sample(prompt="a red circle", steps=3, seed=1, output="tensor", progress=False, **more)


@pytest.mark.parametrize("family", FULL)
def test_published_networks_have_as_many_names_as_published_and_their_shapes_say_their_config(family):
    config = FULL[family]
    shapes = meta_names(config)
    names = ldm.unet_names(shapes, config)
    assert len(names) == len(set(names.values())) == COUNTS[family]
    said = {old: shapes[ours] for ours, old in names.items()}
    assert ldm.unet_config(said, family, ldm.Said(), "file") == config


@pytest.mark.parity
@pytest.mark.parametrize("family", FULL)
def test_the_public_converter_gives_every_name_back(family):
    converters = pytest.importorskip("diffusers.loaders.single_file_utils")
    config = FULL[family]
    names = ldm.unet_names(meta_names(config), config)
    fake = {ldm.UNET + old: torch.tensor(float(i)) for i, old in enumerate(names.values())}
    public = {"layers_per_block": config.blocks}
    if config.added_width:
        public["addition_embed_type"] = "text_time"
    back = converters.convert_ldm_unet_checkpoint(dict(fake), public)
    assert {ours: float(fake[ldm.UNET + old]) for ours, old in names.items()} == {k: float(v) for k, v in back.items()}


def test_open_clip_is_taken_apart_and_put_together_again():
    from hwaga.formats.keys import Assembled, places, taken_apart
    from hwaga.networks.clip_text import ClipTextConfig

    config = ClipTextConfig(width=8, layers=2, heads=2, hidden=16, vocabulary=20, positions=6, projection=5)
    own = {name: torch.randn(value.shape) for name, value in config.build().state_dict().items()}
    spots = places(own, ldm.OPEN_CLIP)
    public = taken_apart(own, spots)
    assert public["transformer.resblocks.1.attn.in_proj_weight"].shape == (24, 8) and public[
        "text_projection"
    ].shape == (8, 5)
    again = Assembled(public, spots, "file")
    assert set(again) == set(own) and all(
        torch.equal(again[k], own[k]) and again.shapes[k] == own[k].shape for k in own
    )


def test_written_and_loaded_a_file_paints_the_same_and_the_way_back_gives_the_same_bits(model, tmp_path):
    hwaga.export(model, tmp_path / "a.safetensors", format="single")
    loaded = hwaga.load(tmp_path / "a.safetensors", device="cpu", components=tokens(model, tmp_path))
    assert loaded.config.network == model.config.network and loaded.config.text_encoder == model.config.text_encoder
    torch.testing.assert_close(
        painted(loaded, guidance_scale=3.0), painted(model, guidance_scale=3.0), atol=1e-6, rtol=0
    )
    hwaga.export(loaded, tmp_path / "folder", format="diffusers")
    hwaga.export(hwaga.load(tmp_path / "folder", device="cpu"), tmp_path / "b.safetensors", format="single")
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_a_header_does_not_say_is_read_off_the_tensors(plain, model):
    loaded = hwaga.load(plain, device="cpu")
    assert loaded.config.network == model.config.network
    assert loaded.config.process.predicts == "eps" and loaded.config.process.schedule == "scaled-linear"
    assert loaded.config.sampling.sampler == "pndm" and loaded.config.sampling.offset == 1
    with pytest.raises(InputError, match="tokenizer"):
        painted(loaded)


def test_a_checkpoint_in_a_pickle_is_the_same_model(plain, tmp_path):
    tensors = load_file(plain)
    torch.save({"state_dict": tensors, "global_step": 3, "callbacks": {}}, tmp_path / "a.ckpt")
    a, b = hwaga.load(plain, device="cpu"), hwaga.load(tmp_path / "a.ckpt", device="cpu")
    for name, network in a.networks.items():
        other = b.networks[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in network.state_dict().items())


def test_a_file_of_half_precision_is_written_in_half_precision(plain, tmp_path):
    save_file({k: v.half() for k, v in load_file(plain).items()}, tmp_path / "half.safetensors")
    loaded = hwaga.load(tmp_path / "half.safetensors", device="cpu")
    assert loaded.dtype == torch.float32
    hwaga.export(loaded, tmp_path / "again.safetensors", format="single")
    a, b = load_file(tmp_path / "half.safetensors"), load_file(tmp_path / "again.safetensors")
    assert a.keys() == b.keys() and all(b[k].dtype == torch.float16 and torch.equal(a[k], b[k]) for k in a)


def with_averages(plain, path, **more):
    tensors = load_file(plain)
    averages = {
        ldm.EMA + k.removeprefix("model.").replace(".", ""): v + 1 for k, v in tensors.items() if k.startswith(ldm.UNET)
    }
    save_file({**tensors, **averages, "model_ema.decay": torch.tensor(0.9999), "betas": torch.ones(1000), **more}, path)
    return path


def first_weight(model):
    return float(model.network.conv_in.weight.detach().flatten()[0])


def test_raw_or_averaged_weights_as_asked_as_a_yaml_says_or_raw_and_it_is_told(plain, tmp_path):
    file = with_averages(plain, tmp_path / "both.safetensors")
    raw = float(load_file(plain)[ldm.FIRST].flatten()[0])
    with pytest.warns(UserWarning, match="holds raw and ema weights; raw was taken"):
        assert first_weight(hwaga.load(file, device="cpu")) == raw
    assert first_weight(hwaga.load(file, device="cpu", weights="ema")) == pytest.approx(raw + 1)
    older = "ldm.models.diffusion.ddpm.LatentDiffusion"
    for target, use_ema, averaged in ((older, None, True), (older, False, False), ("x.Engine", None, False)):
        said = "" if use_ema is None else f"\n    use_ema: {use_ema}"
        file.with_suffix(".yaml").write_text(f"model:\n  target: {target}\n  params:\n    timesteps: 1000{said}\n")
        with pytest.warns(UserWarning, match="ema was taken" if averaged else "raw was taken"):
            assert first_weight(hwaga.load(file, device="cpu")) == pytest.approx(raw + averaged)
    with pytest.raises(InputError, match="holds one set of weights alone"):
        hwaga.load(plain, device="cpu", weights="ema")


def test_a_yaml_beside_a_file_says_heads_prediction_and_betas(plain):
    plain.with_suffix(".yaml").write_text(
        "model:\n  target: ldm.x\n  params:\n    parameterization: v\n    linear_start: 0.001\n    scale_factor: 0.5\n"
        "    unet_config:\n      params: {num_heads: 4}\n"
    )
    loaded = hwaga.load(plain, device="cpu")
    assert loaded.config.network.heads == (4, 4) and loaded.config.process.predicts == "v"
    assert loaded.config.process.beta_start == 0.001 and float(loaded.autoencoder.scale[0]) == 0.5
    plain.with_suffix(".yaml").write_text("model: [1, 2]\n")
    with pytest.raises(InputError, match="is no config of Stable Diffusion"):
        hwaga.load(plain, device="cpu")


@pytest.mark.parametrize(
    ("family", "header", "told", "channels", "expected"),
    [
        ("1", {}, {}, 4, "eps"), ("2", {}, {}, 4, "v"), ("2", {"global_step": 875_000}, {}, 4, "eps"), ("xl", {}, {}, 4, "eps"),
        ("2", {}, {}, 9, "eps"), ("2", {"modelspec.predict_key": "epsilon"}, {}, 4, "eps"), ("xl", {"v_pred": 1}, {}, 4, "v"),
        ("1", {"modelspec.prediction_type": "v"}, {}, 4, "v"), ("2", {}, {"predicts": "eps"}, 4, "eps"),
    ],
)  # fmt: skip
def test_what_is_predicted_is_told_as_public_converters_tell_it(family, header, told, channels, expected):
    class Tensors(dict):
        metadata = header

    assert ldm.predicts(family, ldm.Said(**told), Tensors(header), channels) == expected


def test_one_tensor_too_many_or_too_few_is_named(plain, tmp_path):
    tensors = load_file(plain)
    for change, says in (
        ({"model.diffusion_model.extra.weight": torch.ones(1)}, "holds the tensor model.diffusion_model.extra.weight"),
        ({"strange": torch.ones(1)}, "holds the tensor strange"),
        ({"cond_stage_model.transformer.text_model.x": torch.ones(1)}, "holds the tensor .*text_model.x"),
        ({"model.diffusion_model.out.2.bias": None}, "lacks the tensor model.diffusion_model.out.2.bias"),
        ({"first_stage_model.decoder.conv_out.bias": None}, "lacks the tensor decoder.conv_out.bias"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        save_file(changed, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match=says):
            hwaga.load(tmp_path / "x.safetensors", device="cpu")


def test_a_file_without_autoencoder_takes_one_as_a_component(plain, model, tmp_path):
    tensors = load_file(plain)
    save_file({k: v for k, v in tensors.items() if not k.startswith(ldm.CODEC)}, tmp_path / "no.safetensors")
    codec = {k.removeprefix(ldm.CODEC): v for k, v in tensors.items() if k.startswith(ldm.CODEC)}
    save_file(codec, tmp_path / "codec.safetensors")
    with pytest.raises(InputError, match="came without the autoencoder"):
        painted(hwaga.load(tmp_path / "no.safetensors", device="cpu", components=tokens(model, tmp_path)))
    loaded = hwaga.load(
        tmp_path / "no.safetensors", device="cpu", components={"autoencoder": tmp_path / "codec.safetensors"}
    )
    assert "autoencoder" in loaded.networks


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("blocks.0.self_attn.norm_q.weight", "Wan"),
        ("lora_unet_a.lora_down.weight", "is a LoRA, a change of a model"),
        ("conditioner.embedders.0.model.positional_embedding", "refiner"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder alone"),
        ("something.else", "are of no model that is known as a single file"),
    ],
)
def test_a_file_of_an_unknown_family_is_refused_with_what_it_looks_like(tmp_path, name, says):
    save_file({name: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=says):
        hwaga.load(tmp_path / "x.safetensors", device="cpu")


def test_a_network_that_no_original_file_holds_is_refused(tmp_path):
    model = tiny.stable_diffusion(network={"time_scale": 1000.0})
    with pytest.raises(InputError, match="no Stable Diffusion of the original authors"):
        hwaga.export(model, tmp_path / "a.safetensors", format="single")


def test_kohyas_names_of_xl_are_the_original_authors_names(model):
    names = ldm.spelled(model.network)
    assert names["input_blocks.1.1.transformer_blocks.0.attn2.to_k"].name == (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    )
    assert names["output_blocks.3.1.proj_in"].name == "up_blocks.1.attentions.1.proj_in.weight"
    assert names["time_embed.0"].name == "time_embedding.linear_1.weight"
    assert names["input_blocks.1.0.emb_layers.1"].name == "down_blocks.0.resnets.0.time_emb_proj.weight"


def test_the_rule_is_by_content_and_a_header_that_is_no_table_is_told(plain, tmp_path):
    assert single.recognise(plain, single.read(plain)).system == "stable-diffusion"
    save_file(load_file(plain), tmp_path / "x.safetensors", metadata={ldm.HEADER: json.dumps([1])})
    with pytest.raises(InputError, match="is not a table of settings"):
        hwaga.load(tmp_path / "x.safetensors", device="cpu")
