"""LoRAs of a model: loaded, several at once, scaled, taken away bit for bit, refused where they are of another base."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from hwaga.errors import InputError


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora_of(model, names, rank=2, seed=0, spelled=lambda name: f"unet.{name}"):
    """Tensors of a LoRA in peft's names of these modules of the network."""
    found = {}
    for i, name in enumerate(names):
        out, into, *kernel = model.network.get_submodule(name).weight.shape
        ones = [1] * len(kernel)
        found[f"{spelled(name)}.lora_A.weight"] = random(rank, into, *kernel, seed=seed + i)
        found[f"{spelled(name)}.lora_B.weight"] = 0.2 * random(out, rank, *ones, seed=seed + i + 100)
    return found


NAMES = ("down_blocks.1.attentions.0.to_q", "mid_block.resnets.0.conv1", "conv_in")


def file(tmp_path, tensors, name="style.safetensors"):
    save_file(tensors, tmp_path / name)
    return tmp_path / name


def weights(model):
    return {f"{part}.{name}": p.clone() for part, net in model.networks.items() for name, p in net.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def painted(model):
    return model.sample(n=2, steps=3, seed=3, output="tensor", progress=False)


def test_a_lora_changes_the_picture_and_off_is_the_base_bit_for_bit(tmp_path):
    model = tiny.ddpm()
    tiny.fill_zeros(model.network)
    base, picture = weights(model), painted(model)
    told = model.load_lora(file(tmp_path, lora_of(model, NAMES)))
    assert told.name == "style" and told.changed == told.held == 3 and 0 < told.relative < 10 and not told.left
    assert not torch.equal(painted(model), picture)
    model.set_lora("style", 0)
    assert same(weights(model), base) and torch.equal(painted(model), picture)
    model.set_lora("style", 0.5)
    assert not same(weights(model), base)
    model.unload_lora("style")
    assert same(weights(model), base) and torch.equal(painted(model), picture) and model.loras == {}


def test_several_at_once_each_with_its_scale(tmp_path):
    model, base = tiny.ddpm(), weights(tiny.ddpm())
    for i, scale in enumerate((0.3, -1.0)):
        model.load_lora(file(tmp_path, lora_of(model, NAMES, seed=7 * i), f"{i}.safetensors"), scale=scale)
    assert model.loras == {"0": 0.3, "1": -1.0}
    both = weights(model)
    expected = base[f"network.{NAMES[0]}.weight"].clone()
    for i, scale in enumerate((0.3, -1.0)):
        tensors = load_file(tmp_path / f"{i}.safetensors")
        expected += scale * tensors[f"unet.{NAMES[0]}.lora_B.weight"] @ tensors[f"unet.{NAMES[0]}.lora_A.weight"]
    torch.testing.assert_close(both[f"network.{NAMES[0]}.weight"], expected)
    model.load_lora(tmp_path / "0.safetensors")
    assert "0-2" in model.loras
    model.unload_lora()
    assert same(weights(model), base)


def test_a_lora_of_another_base_is_refused_with_what_it_was_made_for(tmp_path):
    model, base = tiny.ddpm(), weights(tiny.ddpm())
    foreign = {
        "lora_unet_a_attn2_to_k.lora_down.weight": random(2, 768),
        "lora_unet_a_attn2_to_k.lora_up.weight": random(8, 2),
    }
    with pytest.raises(InputError, match="none of its 1 changes fits this DDPM.*Stable Diffusion 1"):
        model.load_lora(file(tmp_path, foreign))
    wrong = {"unet.conv_in.lora_A.weight": random(2, 99), "unet.conv_in.lora_B.weight": random(8, 2)}
    with pytest.raises(InputError, match="changes a weight of 8 x 99, here it is 16 x 12 x 3 x 3"):
        model.load_lora(file(tmp_path, wrong, "b.safetensors"))
    assert same(weights(model), base) and model.loras == {}


def test_a_lora_that_changes_nothing_is_refused(tmp_path):
    model = tiny.ddpm()
    zero = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in lora_of(model, NAMES).items()}
    with pytest.raises(InputError, match="changes nothing: all of its 3 changes are zero"):
        model.load_lora(file(tmp_path, zero))
    bad = {k: v * float("nan") for k, v in lora_of(model, NAMES).items()}
    with pytest.raises(InputError, match="not finite"):
        model.load_lora(file(tmp_path, bad, "b.safetensors"))


def test_of_one_that_fits_in_part_the_parts_are_counted(tmp_path):
    model = tiny.ddpm()
    extra = {
        "unet.nowhere.lora_A.weight": random(2, 8),
        "unet.nowhere.lora_B.weight": random(8, 2),
        "foo.bar": random(3),
    }
    with pytest.warns(UserWarning, match="3 of its 4 changes fit this DDPM, 2 parts of the file do not"):
        told = model.load_lora(file(tmp_path, {**lora_of(model, NAMES), **extra}))
    assert told.left == ("unet.nowhere", "foo.bar") and "3 of its 4 changes fit" in str(told)


def test_names_and_scales_that_cannot_be_are_told(tmp_path):
    model = tiny.ddpm()
    path = file(tmp_path, lora_of(model, NAMES))
    for scale in ("much", True, float("nan")):
        with pytest.raises(InputError, match="scale=.*a number is needed"):
            model.load_lora(path, scale=scale)
    with pytest.raises(InputError, match="no LoRA is loaded"):
        model.set_lora("style", 1.0)
    model.load_lora(path, name="a")
    with pytest.raises(InputError, match="name='a' is the name of a LoRA that is loaded"):
        model.load_lora(path, name="a")
    with pytest.raises(InputError, match="name='b' is unknown; choose from: a"):
        model.unload_lora("b")


@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_saved_and_loaded_again_the_weights_are_the_same(tmp_path, style):
    model = tiny.ddpm()
    model.load_lora(file(tmp_path, lora_of(model, NAMES)), scale=0.6)
    model.save_lora(tmp_path / "again.safetensors", names=style)
    other = tiny.ddpm()
    other.load_lora(tmp_path / "again.safetensors", scale=0.6)
    assert same(weights(model), weights(other))
    with pytest.raises(InputError, match="exists already"):
        model.save_lora(tmp_path / "again.safetensors")


def test_a_dit_takes_loras_in_the_names_of_folders_of_files_and_its_own(tmp_path):
    def merged(tensors, name):
        model = tiny.dit()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.load_lora(file(tmp_path, tensors, name))
        return model

    down, ups = random(2, 32), [random(32, 2, seed=i) for i in range(3)]
    own = {
        "transformer.blocks.0.attention.qkv.lora_A.weight": down,
        "transformer.blocks.0.attention.qkv.lora_B.weight": torch.cat(ups),
    }
    original = {k.replace("attention.qkv", "attn.qkv"): v for k, v in own.items()}
    folder = {}
    for one, up in zip("qkv", ups, strict=True):
        lead = f"transformer.transformer_blocks.0.attn1.to_{one}"
        folder |= {f"{lead}.lora_A.weight": down.clone(), f"{lead}.lora_B.weight": up}
    models = [merged(t, f"{i}.safetensors") for i, t in enumerate((own, original, folder))]
    for model in models[1:]:
        torch.testing.assert_close(
            model.network.blocks[0].attention.qkv.weight, models[0].network.blocks[0].attention.qkv.weight
        )
    models[0].save_lora(tmp_path / "public.safetensors")
    assert load_file(tmp_path / "public.safetensors").keys() == folder.keys()
    base = weights(tiny.dit())
    for model in models:
        model.unload_lora()
        assert same(weights(model), base)


def test_weights_of_8_bits_take_none(tmp_path):
    from hwaga.weights.quantised import quantise

    model = tiny.dit(network={"width": 64})
    path = file(tmp_path, lora_of(model, ["blocks.0.attention.out"], spelled=lambda name: f"transformer.{name}"))
    assert quantise(model.network, 1)
    with pytest.raises(InputError, match="8 bits"):
        model.load_lora(path)


def test_a_stable_diffusion_takes_loras_in_the_names_of_folders_of_files_and_of_text_encoders(tmp_path):
    inner = "transformer_blocks.0.attn2.to_k"
    lead = {
        "peft": f"unet.down_blocks.0.attentions.0.{inner}",
        "kohya": f"lora_unet_down_blocks_0_attentions_0_{inner.replace('.', '_')}",
        "of XL": f"lora_unet_input_blocks_1_1_{inner.replace('.', '_')}",
    }
    text = "text_model.encoder.layers.1.mlp.fc1"
    heads = {"peft": f"text_encoder.{text}", "kohya": f"lora_te_{text.replace('.', '_')}"}
    models = []
    for kind, name in lead.items():
        sides = ("lora_A", "lora_B") if kind == "peft" else ("lora_down", "lora_up")
        head = heads.get(kind, heads["kohya"])
        tensors = {
            f"{name}.{sides[0]}.weight": random(2, 16), f"{name}.{sides[1]}.weight": random(8, 2, seed=2),
            f"{head}.{sides[0]}.weight": random(2, 16, seed=3), f"{head}.{sides[1]}.weight": random(32, 2, seed=4),
        }  # fmt: skip
        model = tiny.stable_diffusion()
        assert model.load_lora(file(tmp_path, tensors, f"{kind}.safetensors")).changed == 2
        models.append(model)
    for model in models[1:]:
        assert same(weights(models[0]), weights(model))
    models[0].unload_lora()
    assert same(weights(models[0]), weights(tiny.stable_diffusion()))


def test_files_for_stable_diffusion_are_written_in_the_folders_names_and_read_in_the_original_ones():
    model = tiny.stable_diffusion()
    spelled = model.spellings()
    assert any("down_blocks.0.attentions.0.proj_in" in names for names in spelled["kohya"])
    assert any("input_blocks.1.1.proj_in" in names for names in spelled["original"])


def test_queries_keys_and_values_of_one_original_matrix_are_changed_together(tmp_path):
    model = tiny.stable_diffusion_3() if hasattr(tiny, "stable_diffusion_3") else None
    if model is None:
        pytest.skip("no tiny Stable Diffusion 3")
    width = model.config.network.width
    down, up = random(2, width), random(3 * width, 2, seed=2)
    lead = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = {f"{lead}.lora_down.weight": down, f"{lead}.lora_up.weight": up, f"{lead}.alpha": torch.tensor(1.0)}
    base = weights(model)
    assert model.load_lora(file(tmp_path, tensors)).changed == 3
    for k, one in enumerate(("to_q", "to_k", "to_v")):
        name = f"network.transformer_blocks.0.attn.{one}.weight"
        expected = base[name] + 0.5 * up[k * width : (k + 1) * width] @ down
        torch.testing.assert_close(weights(model)[name], expected)
    model.unload_lora()
    assert same(weights(model), base)


def test_a_compiled_model_takes_loras_too(tmp_path):
    model = tiny.ddpm()
    base, path = weights(model), file(tmp_path, lora_of(model, NAMES))
    model.networks["network"] = torch.compile(model.network)
    model.load_lora(path, scale=0.5)
    other = tiny.ddpm()
    other.load_lora(path, scale=0.5)
    inner = {f"network.{n}": p for n, p in model.networks["network"]._orig_mod.named_parameters()}
    assert same(weights(other), inner)
    model.unload_lora()
    assert same(base, inner)


def test_a_picture_tells_which_loras_painted_it(tmp_path):
    from hwaga import provenance

    model = tiny.ddpm()
    paint = lambda: provenance.of(model.sample(n=1, steps=2, seed=0, progress=False)[0])  # noqa: E731
    assert "loras" not in paint()
    model.load_lora(file(tmp_path, lora_of(model, NAMES)), scale=0.5)
    assert paint()["loras"] == {"style": 0.5}


@pytest.mark.parametrize(
    "make", [tiny.vqgan, tiny.vae, tiny.gan, tiny.stylegan, tiny.clip], ids=lambda make: make.__name__
)
def test_every_system_takes_them(tmp_path, make):
    model = make()
    base = weights(model)
    part, network = next(iter(model.networks.items()))
    name, weight = next((n, p) for n, p in network.named_parameters() if n.endswith(".weight") and p.dim() in (2, 4))
    out, into, *kernel = weight.shape
    lead = f"{part}.{name.removesuffix('.weight')}"
    tensors = {
        f"{lead}.lora_A.weight": random(2, into, *kernel),
        f"{lead}.lora_B.weight": random(out, 2, *[1] * len(kernel), seed=2),
    }
    assert model.load_lora(file(tmp_path, tensors), name="a").changed == 1 and not same(weights(model), base)
    model.set_lora("a", 0)
    assert same(weights(model), base)
    model.unload_lora("a")
