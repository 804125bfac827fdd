"""AutoencoderKL's folders and single files: read, decoded as the public program does, written again with the same bits."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import hwaga
from hwaga.errors import InputError
from hwaga.formats import autoencoder as public
from hwaga.formats.keys import rename
from hwaga.formats.unet2d import OLD_ATTENTION
from hwaga.saving import convert, export, save

VARIANTS = {
    "sd": {"channels": (8, 16, 16), "blocks": 2},
    "flux": {"latent_channels": 16, "quant_conv": False, "post_quant_conv": False},
    "plain middle": {"middle_attention": False},
}


def made(variant="sd", scale=0.5, shift=0.1):
    model = tiny.vae_kl(network=VARIANTS[variant])
    tiny.fill_zeros(model.autoencoder)
    model.autoencoder.scale.fill_(scale)
    model.autoencoder.shift.fill_(shift)
    return model


def picture(seed=0):
    return torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


def plain(model):
    return {k: v for k, v in model.autoencoder.state_dict().items() if k not in ("shift", "scale")}


def same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_is_the_public_classes_and_comes_back_bit_for_bit(tmp_path, variant):
    diffusers = pytest.importorskip("diffusers")
    model = made(variant)
    export(model, tmp_path / "public")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "public")
    assert theirs.config.scaling_factor == pytest.approx(0.5) and theirs.config.shift_factor == pytest.approx(0.1)
    x = picture()
    with torch.no_grad():
        mean = theirs.encode(x * 2 - 1).latent_dist.mean
        decoded = theirs.decode(mean).sample
    assert (model.encode(x) - (mean - 0.1) * 0.5).abs().max() < 1e-5
    loaded = hwaga.load(tmp_path / "public")
    assert torch.equal(loaded.encode(x), model.encode(x))
    assert (loaded.decode(loaded.encode(x)) - (decoded / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-5
    export(loaded, tmp_path / "again")
    file = "diffusion_pytorch_model.safetensors"
    same(load_file(tmp_path / "public" / file), load_file(tmp_path / "again" / file))
    assert json.loads((tmp_path / "public" / "config.json").read_text()) == json.loads(
        (tmp_path / "again" / "config.json").read_text()
    )


def test_old_names_half_precision_and_fields_that_old_configs_lack(tmp_path):
    model = made()
    folder = export(model, tmp_path / "vae")
    file = folder / "diffusion_pytorch_model.safetensors"
    old = {k: v.half() for k, v in rename(load_file(file), OLD_ATTENTION, back=True).items()}
    assert any(".query." in name for name in old)
    save_file(old, file)
    config = json.loads((folder / "config.json").read_text())
    for key in (
        "scaling_factor",
        "shift_factor",
        "use_quant_conv",
        "use_post_quant_conv",
        "latents_mean",
        "latents_std",
    ):
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = hwaga.load(folder, device="cpu", dtype="bfloat16")
    assert loaded.autoencoder.scale.dtype == torch.float32  # 0.18215 in bf16 would be another number
    assert torch.allclose(loaded.autoencoder.scale, torch.tensor(0.18215)) and not loaded.autoencoder.shift.any()
    same(old, load_file(export(hwaga.load(folder), tmp_path / "again") / file.name))


def test_mean_and_deviation_of_each_channel_are_read_and_written(tmp_path):
    model = made(scale=1.0)
    model.autoencoder.scale.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    model.autoencoder.shift.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    folder = export(model, tmp_path / "public")
    config = json.loads((folder / "config.json").read_text())
    assert config["latents_std"] == [2.0, 1.0, 0.5, 0.25] and config["latents_mean"] == [0.0, 1.0, -1.0, 0.5]
    assert torch.allclose(hwaga.load(folder).encode(picture()), model.encode(picture()), atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_file_has_the_original_names_and_comes_back_bit_for_bit(tmp_path, variant, prefix):
    model = made(variant)
    file = export(model, tmp_path / "ae.safetensors", format="single")
    tensors = {prefix + name: value for name, value in load_file(file).items()}
    assert f"{prefix}decoder.up.0.block.0.norm1.weight" in tensors
    if variant != "plain middle":
        assert tensors[f"{prefix}encoder.mid.attn_1.q.weight"].dim() == 4
    save_file(tensors, tmp_path / "given.safetensors")
    loaded = hwaga.load(tmp_path / "given.safetensors")
    groups = {"groups": loaded.config.network.groups}
    assert loaded.config.network == model.config.network.model_copy(update=groups)  # no file says how many groups
    same(plain(loaded), plain(model))
    same(tensors, load_file(export(loaded, tmp_path / "again.safetensors", format="single")))
    convert(tmp_path / "given.safetensors", tmp_path / "folder", "diffusers")
    same(plain(hwaga.load(tmp_path / "folder")), plain(model))


@pytest.mark.parametrize("variant", ["sd", "flux"])
def test_the_original_names_are_those_that_the_public_converter_reads(variant):
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    model = made(variant)
    levels = len(model.config.network.channels)
    config = {
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": model.config.network.blocks,
    }  # fmt: skip
    theirs = single.convert_ldm_vae_checkpoint(public.to_ldm(plain(model), levels), config)
    same(theirs, plain(model))


def test_attention_inside_levels_has_original_names_too():
    model = tiny.vae_kl(network={"attention": (False, True)})
    names = public.to_ldm(plain(model), 2)
    assert "encoder.down.1.attn.0.proj_out.weight" in names and "decoder.up.1.attn.1.norm.bias" in names
    back = public.from_ldm(names)
    same({name: back[name] for name in back}, plain(model))
    assert public.config_of(back, "file").attention == (False, True)


def test_what_is_known_of_scales_follows_channels_and_prefix(tmp_path):
    for prefix, factor, shift in (("", 0.3611, 0.1159), ("first_stage_model.", 1.5305, 0.0609)):
        tensors = {prefix + k: v for k, v in public.to_ldm(plain(made("flux")), 2).items()}
        save_file(tensors, tmp_path / "f.safetensors")
        found = hwaga.load(tmp_path / "f.safetensors").autoencoder
        assert found.scale[0] == pytest.approx(factor) and found.shift[0] == pytest.approx(shift)


def test_what_training_left_in_a_file_is_passed_over(tmp_path):
    tensors = public.to_ldm(plain(made()), 3) | {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.ones(2),
    }
    torch.save({"state_dict": tensors}, tmp_path / "vae.ckpt")
    same(plain(hwaga.load(tmp_path / "vae.ckpt")), plain(made()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 3}, "CrossAttnDownBlock2D"),
        ({"norm_num_groups": 5}, "groups=5"),
        ({"latent_channels": 5}, "shape"),
        ({"colour": True}, "colour is no field"),
        ({"out_channels": 4}, "differ"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(tmp_path, change, words):
    folder = export(made(), tmp_path / "public")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError) as error:
        hwaga.load(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_missing_and_a_foreign_tensor_are_named(tmp_path):
    folder = export(made(), tmp_path / "public")
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "quant_conv.bias"}, file)
    with pytest.raises(InputError, match=r"lacks the tensor quant_conv\.bias"):
        hwaga.load(folder)
    save_file({**tensors, "more": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="the tensor more"):
        hwaga.load(folder)
    ldm = public.to_ldm(plain(made()), 3)
    del ldm["decoder.up.0.block.0.conv1.weight"]
    save_file(ldm, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"lacks the tensor decoder\.up_blocks\.2\.resnets\.0\.conv1\.weight"):
        hwaga.load(tmp_path / "part.safetensors")


@pytest.mark.parametrize(
    ("network", "words"), [({"patch": 2, "channels": (8,)}, "network.patch=2"), ({"eps": 1e-5}, "network.eps=1e-05")]
)
def test_what_has_no_public_layout_is_not_exported(tmp_path, network, words):
    for format, name in (("diffusers", "folder"), ("single", "file.safetensors")):
        with pytest.raises(InputError) as error:
            export(tiny.vae_kl(network=network), tmp_path / name, format)
        assert words in str(error.value) and not (tmp_path / name).exists()
    with pytest.raises(InputError, match="vector"):
        export(tiny.vae(), tmp_path / "folder")


def test_single_files_are_named_so_and_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="ends in .safetensors"):
        export(made(), tmp_path / "folder", "single")
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        export(made(), tmp_path / "x.safetensors", "single")
    assert (tmp_path / "x.safetensors").read_bytes() == b"mine"


def test_our_own_folder_keeps_the_scale_and_gives_no_discriminator_away(tmp_path):
    model = tiny.vae_kl(adversary={"network": {"width": 4, "layers": 1, "norm": "none"}})
    model.autoencoder.scale.fill_(1.2345678)
    whole = hwaga.load(save(model, tmp_path / "whole"))
    assert set(whole.networks) == {"autoencoder", "likelihood", "discriminator"}
    given = hwaga.load(convert(tmp_path / "whole", tmp_path / "given", "hwaga", "float16"), device="cpu")
    assert set(given.networks) == {"autoencoder", "likelihood"} and given.config == model.config
    assert torch.equal(given.autoencoder.scale, model.autoencoder.scale)
    with pytest.raises(InputError, match="likelihood"):
        (tmp_path / "given" / "model.json").write_text(
            (tmp_path / "given" / "model.json")
            .read_text()
            .replace('"likelihood": {\n      "files"', '"other": {\n      "files"')
        )
        hwaga.load(tmp_path / "given")


def test_a_shift_is_taken_into_the_convolutions_where_a_pipeline_knows_none():
    network = tiny.vae_kl().autoencoder
    with torch.no_grad():
        network.shift.copy_(torch.tensor([0.3, -0.7, 0.1, 2.0]))
        network.scale.copy_(torch.tensor([2.0] * 4))
    plain, image = public.shiftless(network, {}), tiny.batch(2).image
    assert not plain.shift.any() and network.shift.any() and torch.equal(plain.scale, network.scale)
    with torch.no_grad():
        latents = network.encode(image)
        assert (plain.encode(image) - latents).abs().max() < 1e-5
        assert (plain.decode(latents) - network.decode(latents)).abs().max() < 1e-5
    assert public.public_config(plain, (16, 16))["shift_factor"] is None
    assert public.shiftless(network, {"config": {"shift_factor": 0.3}}) is network
