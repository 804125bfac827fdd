"""LoRA files: every spelling of one LoRA gives one change; written and read again, nothing moves; what is wrong is told."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hwaga.errors import InputError
from hwaga.formats import lora as files
from hwaga.networks.unet import UNetConfig
from hwaga.weights.lora import Change, Loras, LowRank, Place

CONFIG = UNetConfig(channels=(8, 16), attention=(False, True), blocks=1, groups=4, downsample_padding=1)
ATTENTION, CONV = "down_blocks.1.attentions.0.to_q", "down_blocks.0.resnets.0.conv1"
OUT = "up_blocks.0.attentions.1.to_out.0"


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network():
    made = CONFIG.build()
    made.initialise(torch.Generator().manual_seed(0))
    return made.requires_grad_(False)


def pairs(rank=4):
    """(down, up) of three layers."""
    return {
        ATTENTION: (random(rank, 16, seed=1), random(16, rank, seed=2)),
        OUT: (random(rank, 16, seed=3), random(16, rank, seed=4)),
        CONV: (random(rank, 8, 3, 3, seed=5), random(8, rank, 1, 1, seed=6)),
    }


def peft():
    return {f"unet.{n}.lora_{s}.weight": t for n, (a, b) in pairs().items() for s, t in (("A", a), ("B", b))}


def kohya(alpha=None):
    found = {}
    for name, (down, up) in pairs().items():
        lead = "lora_unet_" + name.replace(".", "_")
        found |= {f"{lead}.lora_down.weight": down, f"{lead}.lora_up.weight": up}
        if alpha is not None:
            found[f"{lead}.alpha"] = torch.tensor(float(alpha))
    return found


def old_diffusers():
    found = {}
    for name, (down, up) in pairs().items():
        module, _, last = name.rpartition(".to_")
        lead = f"unet.{module}.processor.to_{last.removesuffix('.0')}_lora" if module else f"unet.{name}.lora"
        found |= {f"{lead}.down.weight": down, f"{lead}.up.weight": up}
    return found


def read(tmp_path, tensors, header=None, name="a.safetensors"):
    save_file(tensors, tmp_path / name, metadata=header)
    return files.read(tmp_path / name)


def matched(file, made=None):
    parts = {"network": made or network()}
    names = files.looked_up([files.own_names("network", parts["network"])])
    return files.matched(file, names, parts)


def deltas(found):
    return {place.name: change.kind.delta() for place, change in found.changes.items()}


@pytest.mark.parametrize(
    "tensors",
    [peft(), kohya(), kohya(alpha=4), old_diffusers(), {k.removeprefix("unet."): v for k, v in peft().items()},
     {"base_model.model." + k.removeprefix("unet."): v for k, v in peft().items()},
     {k.replace("unet.", "diffusion_model."): v for k, v in peft().items()}],
    ids=["peft", "kohya", "kohya with alpha", "old diffusers", "bare", "raw peft", "comfy"],
)  # fmt: skip
def test_every_spelling_of_one_lora_is_one_change(tmp_path, tensors):
    found = matched(read(tmp_path, tensors))
    assert not found.lost and not found.misshapen
    given = deltas(found)
    assert given.keys() == {f"{name}.weight" for name in pairs()}
    for name, (down, up) in pairs().items():
        expected = (up.flatten(1) @ down.flatten(1)).reshape(given[f"{name}.weight"].shape)
        torch.testing.assert_close(given[f"{name}.weight"], expected)


def test_alpha_over_rank_is_taken_from_the_file_and_from_a_header_by_pattern(tmp_path):
    assert all(c.kind.strength == 0.5 for c in matched(read(tmp_path, kohya(alpha=2))).changes.values())
    header = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {f"^{OUT}": 2, "conv1": 1}}
    found = matched(read(tmp_path, peft(), {"lora_adapter_metadata": json.dumps(header)}))
    strengths = {place.name.removesuffix(".weight"): change.kind.strength for place, change in found.changes.items()}
    assert strengths == {ATTENTION: 2.0, OUT: 0.5, CONV: 0.25}


def test_an_adapter_config_beside_a_file_of_peft_says_alpha(tmp_path):
    read(tmp_path, peft(), name="adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 12, "use_rslora": True}))
    found = matched(files.read(tmp_path))
    assert all(change.kind.strength == 12 / 4**0.5 for change in found.changes.values())


def test_names_of_text_encoders(tmp_path):
    body = torch.nn.Module()
    body.text_model = torch.nn.Module()
    body.text_model.encoder = torch.nn.Module()
    body.text_model.encoder.layers = torch.nn.ModuleList([torch.nn.Module()])
    body.text_model.encoder.layers[0].self_attn = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8)})
    names = files.looked_up([files.own_names("text_encoder", body), files.own_names("text_encoder_2", body)])
    inner = "encoder.layers.0.self_attn.q_proj"
    for key, part in (
        (f"text_encoder.text_model.{inner}", 1), (f"text_encoder.{inner}", 1), (f"text_encoder_2.text_model.{inner}", 2),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1), ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 1),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 2),
    ):  # fmt: skip
        assert names[key] == Place("text_encoder" if part == 1 else "text_encoder_2", f"text_model.{inner}.weight"), key
    old = f"text_encoder.text_model.{inner.replace('q_proj', 'to_q')}_lora.down.weight"
    assert files.named(old) == (f"text_encoder.text_model.{inner}", "down")
    assert files.named("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight").role == "up"


@pytest.mark.parametrize("style", ["peft", "kohya"])
@pytest.mark.parametrize("alpha", [None, 4.0, 6.5])
def test_written_and_read_again_nothing_moves(tmp_path, style, alpha):
    made = network()
    changes = {
        Place("network", f"{n}.weight"): Change(LowRank(a.half(), b.half(), alpha=alpha))
        for n, (a, b) in pairs().items()
    }
    spelled = files.own_names("network", made)
    files.write(tmp_path / "b.safetensors", changes, [spelled], style)
    again = matched(files.read(tmp_path / "b.safetensors"), made).changes
    assert again.keys() == changes.keys()
    for place, change in changes.items():
        kind = again[place].kind
        assert torch.equal(kind.down, change.kind.down) and torch.equal(kind.up, change.kind.up)
        assert kind.strength == change.kind.strength
    other = {"peft": "kohya", "kohya": "peft"}[style]
    files.write(tmp_path / "c.safetensors", again, [spelled], other)
    files.write(
        tmp_path / "d.safetensors", matched(files.read(tmp_path / "c.safetensors"), made).changes, [spelled], style
    )
    first, last = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "d.safetensors")
    assert first.keys() == last.keys() and all(torch.equal(first[k], last[k]) for k in first)


def test_loha_locon_dora_and_whole_differences_are_written_and_read_again(tmp_path):
    made, lead = network(), "lora_unet_" + ATTENTION.replace(".", "_")
    conv, out = "lora_unet_" + CONV.replace(".", "_"), "lora_unet_" + OUT.replace(".", "_")
    given = {
        **{f"{lead}.hada_{k}": random(*s, seed=i) for i, (k, s) in enumerate(
            {"w1_a": (16, 2), "w1_b": (2, 16), "w2_a": (16, 2), "w2_b": (2, 16)}.items())},
        f"{lead}.alpha": torch.tensor(1.0),
        f"{conv}.lora_down.weight": random(2, 8, 1, 1), f"{conv}.lora_mid.weight": random(2, 2, 3, 3),
        f"{conv}.lora_up.weight": random(8, 2, 1, 1), f"{conv}.alpha": torch.tensor(2.0), f"{conv}.diff_b": random(8),
        f"{out}.lora_down.weight": random(2, 16), f"{out}.lora_up.weight": random(16, 2),
        f"{out}.alpha": torch.tensor(2.0), f"{out}.dora_scale": random(16, 1).abs(),
    }  # fmt: skip
    found = matched(read(tmp_path, given), made)
    assert len(found.changes) == 4 and not found.lost and not found.misshapen
    files.write(tmp_path / "again.safetensors", found.changes, [files.own_names("network", made)], "kohya")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == given.keys() and all(torch.equal(again[k], given[k]) for k in given)
    with pytest.raises(InputError, match="kohya's names have it"):
        files.write(tmp_path / "no.safetensors", found.changes, [files.own_names("network", made)], "peft")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a.lokr_w1": torch.ones(2, 2), "a.lokr_w2": torch.ones(2, 2)}, "is a LoKr"),
        ({"conv_in.weight": torch.ones(2, 2)}, "is no LoRA: its 1 tensors"),
        ({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "lacks the other .up."),
        ({"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 3)}, "different ranks"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, tensors, says):
    with pytest.raises(InputError, match=says):
        read(tmp_path, tensors)


def test_a_missing_and_an_empty_file_are_told(tmp_path):
    with pytest.raises(InputError, match="there is no such LoRA file"):
        files.read(tmp_path / "none.safetensors")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(InputError, match="is empty"):
        files.read(tmp_path / "empty.safetensors")
    with pytest.raises(InputError, match="holds no LoRA"):
        files.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "width", "family"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, "Stable Diffusion 1"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v", 1024, "Stable Diffusion 2"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, "Stable Diffusion XL"),
        ("lora_unet_double_blocks_0_img_attn_qkv", 64, "Flux"),
        ("transformer.transformer_blocks.0.attn.add_q_proj", 64, "Stable Diffusion 3"),
        ("diffusion_model.blocks.0.self_attn.q", 64, "Wan"),
    ],
)
def test_what_a_lora_was_made_for_is_told_by_names_and_widths(tmp_path, key, width, family):
    sides = ("lora_down", "lora_up") if key.startswith("lora_") else ("lora_A", "lora_B")
    file = read(
        tmp_path, {f"{key}.{sides[0]}.weight": torch.ones(2, width), f"{key}.{sides[1]}.weight": torch.ones(8, 2)}
    )
    assert files.made_for(file) == family


@pytest.mark.parity
@pytest.mark.parametrize(
    "options", [{"lora_alpha": 8}, {"lora_alpha": 3, "use_rslora": True}, {"lora_alpha": 8, "use_dora": True}]
)
def test_peft_computes_with_its_file_what_the_merged_weights_compute(tmp_path, options):
    peft_library = pytest.importorskip("peft")
    made = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(32, 6)).eval()
    for i, p in enumerate(made.parameters()):
        p.data = random(*p.shape, seed=i)
    base = {name: p.detach().clone() for name, p in made.named_parameters()}
    wrapped = peft_library.get_peft_model(made, peft_library.LoraConfig(r=4, target_modules=["0", "2"], **options))
    for i, (name, p) in enumerate(wrapped.named_parameters()):
        if "lora_A" in name or "lora_B" in name:
            p.data = random(*p.shape, seed=20 + i)
    wrapped.save_pretrained(tmp_path / "adapter")
    x = random(2, 3, 2, 2, seed=9)
    expected = wrapped.eval()(x)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(32, 6)).eval()
    plain.load_state_dict(base)
    plain.requires_grad_(False)
    parts = {"network": plain}
    found = files.matched(files.read(tmp_path / "adapter"), files.looked_up([files.own_names("network", plain)]), parts)
    assert len(found.changes) == 2
    Loras(parts).add("a", found.changes, 1.0)
    torch.testing.assert_close(plain(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_diffusers_loads_what_is_written(tmp_path, style):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        sample_size=8,
    ).eval()  # fmt: skip
    names = files.own_names("network", unet)
    block = "down_blocks.0.attentions.0"
    chosen = (f"{block}.transformer_blocks.0.attn2.to_k", f"{block}.transformer_blocks.0.attn1.to_out.0", f"{block}.proj_in",
              f"{block}.transformer_blocks.0.ff.net.0.proj")  # fmt: skip
    changes = {}
    for i, module in enumerate(chosen):
        k = i % 2 if style == "peft" else 0  # of kohya's names diffusers reads alphas that are all the same
        out, into, *kernel = unet.get_submodule(module).weight.shape
        down, up = random(2 + k, into, *kernel, seed=i), random(out, 2 + k, *[1] * len(kernel), seed=i + 9)
        changes[names[module]] = Change(LowRank(down, up, alpha=[1.0, 3.0][k]))
    files.write(tmp_path / "a.safetensors", changes, [names], style)
    x, t, text = random(1, 4, 8, 8), torch.tensor([5]), random(1, 3, 12)
    ask = lambda: unet(x, t, text).sample  # noqa: E731
    with torch.no_grad():
        held = Loras({"network": unet})
        held.add("a", changes, 1.0)
        merged = ask()
        held.remove("a")
        pipe = diffusers.StableDiffusionPipeline(
            unet=unet, vae=None, text_encoder=None, tokenizer=None, scheduler=None, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
        torch.testing.assert_close(ask(), merged, atol=1e-5, rtol=1e-4)
