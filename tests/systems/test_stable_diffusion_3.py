"""Stable Diffusion 3 as a system: three encoders, straight paths, training, folders and files, what it refuses."""

import json
import warnings

import pytest
import tiny
import torch
import truths
from safetensors.torch import load_file, save_file

import hwaga
from hwaga import running
from hwaga.errors import InputError, LostWords
from hwaga.formats import sd3_file
from hwaga.networks.mmdit import MMDiTConfig
from hwaga.recipes import load_recipe, shipped_recipes
from hwaga.saving import convert, save
from hwaga.systems import find
from hwaga.weights.mapped import Mapped

CLIP, T5 = 24, 256  # tokens


def filled(seed=0, **model):
    system = tiny.stable_diffusion_3(seed, **model)
    tiny.fill_zeros(system.network)
    return system


def paint(model, **call):
    return model.sample(
        **{"prompt": "a red circle", "output": "tensor", "progress": False, "seed": 5, "steps": 3, **call}
    )


@pytest.fixture(scope="module")
def model():
    return filled()


# -------------------------------------------------------------------------------------------------------- what it is told


def test_both_clips_stand_side_by_side_above_t5_and_their_pooled_texts_beside_each_other(model):
    told = model.said(["a star"], tiny.captions(1))
    parts = {name: encoder.encode(["a star"]) for name, encoder in model.encoders.items()}
    assert told["text"].shape == (1, CLIP + T5, 40) and told["pooled"].shape == (1, 20)
    assert torch.equal(told["text"][:, :CLIP, :16], parts["text_encoder"].states)
    assert torch.equal(told["text"][:, :CLIP, 16:32], parts["text_encoder_2"].states)
    assert not told["text"][:, :CLIP, 32:].any()
    assert torch.equal(told["text"][:, CLIP:], parts["text_encoder_3"].states)
    assert torch.equal(told["pooled"][:, :8], parts["text_encoder"].pooled)
    assert torch.equal(told["pooled"][:, 8:], parts["text_encoder_2"].pooled)


def test_clips_say_their_last_layer_but_one_without_the_norm(model):
    encoder = model.networks["text_encoder"]
    assert (encoder.config.skip, encoder.config.final_norm, encoder.config.pooled) == (1, False, "projected")
    assert model.networks["text_encoder_3"].config.skip == 0


def test_where_there_is_no_t5_zeros_stand_in_its_place():
    told = filled(third=False, t5_length=T5).said(["a star"], tiny.captions(1))["text"]
    assert told.shape == (1, CLIP + T5, 32) and not told[:, CLIP:].any()


def test_no_negative_prompt_is_the_empty_one(model):
    assert torch.equal(paint(model, guidance_scale=4.0), paint(model, guidance_scale=4.0, negative_prompt=""))
    assert not torch.equal(paint(model, guidance_scale=4.0), paint(model, guidance_scale=4.0, negative_prompt="star"))


def test_every_encoder_is_heard(model):
    before = paint(model)
    for name, encoder in model.networks.items():
        if name.startswith("text_encoder"):
            value = next(iter(encoder.parameters()))
            kept = value.data.clone()
            value.data.mul_(1.5)
            assert not torch.equal(paint(model), before), name
            value.data.copy_(kept)
    assert torch.equal(paint(model), before)


def test_clip_skip_is_counted_in_clips_layers(model):
    assert not torch.equal(paint(model, clip_skip=1), paint(model))
    with pytest.raises(InputError, match="clip_skip=2: a whole number from 0 to 1"):
        paint(model, clip_skip=2)


def test_long_prompts_are_read_in_as_many_pieces_as_each_kind_of_encoder_needs(model):
    words = "a red circle star " * 4
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        short = paint(model, prompt=words)
    assert any(issubclass(w.category, LostWords) and "text_encoder and text_encoder_2" in str(w.message) for w in seen)
    assert not torch.equal(paint(model, prompt=words, long_prompts=True), short)
    assert model._pieces({"prompt": words}, "t5") == 1 and model._pieces({"prompt": words}, "clip") > 1


# --------------------------------------------------------------------------------------------------------- how it learns


def test_overfits_one_batch():
    system, batch = tiny.stable_diffusion_3(third=False, text_dropout=0.0), tiny.captions(2)
    truths.overfits(system, batch, 150)


def test_gradient_of_the_loss_reaches_every_parameter_that_anyone_reads():
    system = filled(third=False, network={"qk_norm": True, "dual": [0]})
    sum(system.loss(tiny.captions(8), tiny.Draw()).values()).backward()
    dead = [n for n, p in system.network.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(n.startswith("transformer_blocks.1.attn.") and ("add_q" in n or "added_q" in n) for n in dead)


def test_times_of_training_are_logit_normal_and_the_loss_is_of_the_velocity(model):
    assert model.config.process.times.kind == "logit-normal" and model.process.config.predicts == "velocity"


def test_each_encoder_is_hidden_by_itself_and_words_altogether():
    system, batch = filled(encoder_dropout=0.5, text_dropout=0.0), tiny.captions(64)
    whole = system.conditions(batch)
    told = system.hidden(whole, batch, tiny.Draw(3))
    first, second = told["text"][:, :CLIP, :16], told["text"][:, :CLIP, 16:32]
    third = told["text"][:, CLIP:]
    silent = torch.stack([~part.flatten(1).any(1) for part in (first, second, third)])
    assert torch.equal(silent[0], ~told["pooled"][:, :8].any(1)) and torch.equal(
        silent[1], ~told["pooled"][:, 8:].any(1)
    )
    assert all(0.3 < share < 0.7 for share in silent.float().mean(1).tolist())
    assert len({tuple(row) for row in silent.T.tolist()}) == 8  # independent: all eight happen
    assert whole["text"][:, :CLIP, :16].flatten(1).any(1).all()  # what is kept of captions is not written to
    none = filled(text_dropout=1.0)
    assert torch.equal(none.hidden(whole, batch, tiny.Draw())["text"][:1], none.said([""], batch)["text"])


@pytest.mark.parametrize("kind", ["latent-consistency", "consistency-tuning", "mean-flow"])
def test_a_student_is_distilled_and_paints_in_few_steps(kind):
    base = filled(third=False)
    parts = {name: part for name, part in base.networks.items() if name != "network"}
    if kind == "latent-consistency":
        parts["teacher"] = base.network
    model = {"network": {"width": 32, "depth": 2, "heads": 2}, "student": {"kind": kind}}
    system = find("stable-diffusion-3").create(model, size=(16, 16), components=parts)
    tiny.fill_zeros(system.network)
    (stage,) = system.stages()
    terms = stage.objectives[0].loss(tiny.captions(4), tiny.Draw(0))
    assert stage.name == "distillation" and all(torch.isfinite(value) for value in terms.values())
    assert system.config.network.guidance_width == (256 if kind == "latent-consistency" else 0)
    guidance = {} if kind == "latent-consistency" else {"guidance_scale": 1.0}
    assert torch.isfinite(paint(system, steps=2, **guidance)).all()


def test_a_lora_is_trained_beside_a_frozen_base():
    base = filled(third=False)
    model = {
        "network": base.config.network.model_dump(),
        "lora": {"rank": 2, "targets": ["to_q", "add_v_proj", "ff_context.net.2"]},
    }
    system = find("stable-diffusion-3").create(model, size=(16, 16), components=dict(base.networks))
    (stage,) = system.stages()
    assert list(stage.networks) == ["lora"]
    sum(system.loss(tiny.captions(4), tiny.Draw()).values()).backward()
    assert any(p.grad is not None and p.grad.any() for p in system.networks["lora"].parameters())


def test_fewer_tokens_of_t5_are_read_where_a_recipe_says_so():
    system = filled(t5_length=8)
    assert system.networks["text_encoder_3"].config.length == 8
    assert system.said(["a star"], tiny.captions(1))["text"].shape[1] == CLIP + 8


RECIPE = {
    "system": "stable-diffusion-3",
    "model": {"network": {"width": 16, "depth": 2, "heads": 2, "qk_norm": True}, "sampling": {"steps": 2}},
    "data": {"source": "FOLDER", "size": 16, "held_out": 0.25},
    "training": {
        "steps": 4,
        "batch_size": 4,
        "checkpoint_every": 2,
        "dtype": "float32",
        "sample_every": 4,
        "preview": 2,
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("sd3")
    (root / "pictures").mkdir()
    for i, image in enumerate(tiny.batch(12).image):
        pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / "pictures" / f"{i}.png")
        (root / "pictures" / f"{i}.txt").write_text(f"a red star {i}")
    donor = tiny.stable_diffusion_3()
    save(donor, root / "donor")
    return root


def test_a_resumed_run_equals_the_uninterrupted_and_paints_as_it_was_trained(folders, tmp_path):
    parts = {name: str(folders / "donor") for name in ("autoencoder", "text_encoder")}
    values = {**RECIPE, "components": parts}
    values["data"] = {**RECIPE["data"], "source": str(folders / "pictures")}
    whole = running.train(values, out=tmp_path / "whole")
    running.train({**values, "training": {**values["training"], "steps": 2}}, out=tmp_path / "cut")
    cut = running.resume(tmp_path / "cut", {"training.steps": 4})
    a, b = (load_file(run.folder / "model" / "network" / "model.safetensors") for run in (whole, cut))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    system = whole.load()
    assert system.config.t5_length == 0 and system.network.config.pooled_width == 8
    assert system.defaults().sampler == "flow-euler"
    assert paint(system, n=2).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", [n for n in shipped_recipes() if "stable-diffusion-3" in n or "/sd3" in n])
def test_a_recipe_makes_the_network_that_it_names(name):
    recipe = load_recipe(name)
    network = MMDiTConfig(**{"text_width": 96, "pooled_width": 96, **recipe.model["network"]})
    with torch.device("meta"):
        built = network.build()
    count = sum(p.numel() for p in built.parameters())
    assert recipe.system == "stable-diffusion-3"
    assert count > 1e9 if name.startswith("paper/") else 1e6 < count < 8e6


# ----------------------------------------------------------------------------------------------------------- how it paints


def test_picture_is_the_same_whatever_the_number_and_the_batches(model, monkeypatch):
    together = paint(model, n=3, guidance_scale=3.0)
    monkeypatch.setattr("hwaga.systems.base.PIXELS_A_BATCH", 16 * 16)
    assert torch.allclose(paint(model, n=2, guidance_scale=3.0), together[:2], atol=1e-5)


def test_the_grid_is_the_public_schedulers(model):
    """As published, of 28 steps at shift 3."""
    asked = model._request(1, None, 0, None, {**dict.fromkeys(
        ("prompt", "negative_prompt", "label", "steps", "sampler", "sampler_options", "guidance_scale", "image")
    )})  # fmt: skip
    grid = [point.sigma for point in model.grid(asked)]
    assert asked.steps == 28 and asked.guidance_scale == 7.0
    assert grid[0] == 1 and grid[-1] == 0 and len(grid) == 29
    assert abs(grid[1] - 0.98738) < 1e-5 and abs(grid[-3] - 0.11091) < 1e-5 and abs(grid[-2] - 0.0089286) < 1e-7


def test_a_second_pass_is_painted_and_what_only_xl_is_told_is_refused(model):
    assert paint(model, second_size=(16, 24)).shape == (1, 3, 16, 24)
    with pytest.raises(InputError, match="original_size"):
        paint(model, original_size=(8, 8))


def test_outside_a_mask_the_picture_stays(model):
    image, mask = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    painted = paint(model, image=image, mask=mask)[0]
    assert torch.equal(painted[:, 8:], image[:, 8:]) and not torch.allclose(painted[:, :8], image[:, :8], atol=0.01)


def test_from_a_picture_as_far_as_strength_says(model):
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    back = paint(model, image=image, strength=0.0)
    assert torch.equal(back, paint(model, image=image, strength=0.0, prompt="a star"))
    near, far = (paint(model, image=image, strength=s, steps=4) for s in (0.25, 1.0))
    assert (near - back).abs().mean() < (far - back).abs().mean()
    assert torch.equal(paint(model, image=image, steps=5), paint(model, image=image, steps=5, strength=0.6))


def test_any_size_that_tokens_make_is_painted_up_to_the_table_of_positions(model):
    assert paint(model, size=(8, 24)).shape == (1, 3, 8, 24)
    with pytest.raises(InputError, match="positions for up to 48 pixels a side"):
        paint(model, size=(8, 52))
    with pytest.raises(InputError, match="height 10 is not a multiple of 4"):
        paint(model, size=(10, 8))


# ------------------------------------------------------------------------------------------------------- folders and files


def test_our_own_folder_gives_the_same_bits(model, tmp_path):
    save(model, tmp_path / "saved")
    assert torch.equal(paint(hwaga.load(tmp_path / "saved")), paint(model))


def test_a_model_made_here_goes_to_a_public_folder_and_back(model, tmp_path):
    hwaga.export(model, tmp_path / "public")
    index = json.loads((tmp_path / "public" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline" and index["text_encoder_3"] == [
        "transformers",
        "T5EncoderModel",
    ]
    again = hwaga.load(tmp_path / "public")
    assert torch.equal(paint(again), paint(model))
    convert(tmp_path / "public", tmp_path / "twice", "diffusers")
    for file in sorted((tmp_path / "public").rglob("*.safetensors")):
        a, b = load_file(file), load_file(tmp_path / "twice" / file.relative_to(tmp_path / "public"))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_public_folder_without_t5_is_painted_with_zeros(model, tmp_path):
    hwaga.export(model, tmp_path / "public")
    for name in ("text_encoder_3", "tokenizer_3"):
        for file in (tmp_path / "public" / name).iterdir():
            file.unlink()
        (tmp_path / "public" / name).rmdir()
    alone = hwaga.load(tmp_path / "public")
    told = alone.said(["a star"], tiny.captions(1))["text"]
    assert told.shape == (1, CLIP + T5, 40) and not told[:, CLIP:].any()
    assert not torch.equal(paint(alone), paint(model))


def test_a_clip_without_projection_goes_to_the_public_folder_with_the_identity(tmp_path):
    """As of single files, whose CLIP-L has none."""
    parts = {**tiny.stable_diffusion_3().networks, "text_encoder": tiny.text_encoder()}
    del parts["network"]
    system = find("stable-diffusion-3").create(
        {"network": {"width": 32, "depth": 2, "heads": 2}}, size=(16, 16), components=parts
    )
    tiny.fill_zeros(system.network)
    assert system.config.text_encoder.pooled == "end" and system.config.network.pooled_width == 28
    hwaga.export(system, tmp_path / "public")
    place = tmp_path / "public" / "text_encoder"
    assert json.loads((place / "config.json").read_text())["architectures"] == ["CLIPTextModelWithProjection"]
    assert torch.equal(load_file(place / "model.safetensors")["text_projection.weight"], torch.eye(16))
    assert torch.allclose(paint(hwaga.load(tmp_path / "public")), paint(system), atol=1e-6)
    hwaga.export(system, tmp_path / "one.safetensors", format="single")
    assert not any("clip_l" in n and "projection" in n for n in load_file(tmp_path / "one.safetensors"))
    again = hwaga.load(tmp_path / "one.safetensors", components=words(system, tmp_path))
    assert torch.allclose(paint(again), paint(system), atol=1e-5)


@pytest.mark.parity
def test_a_public_folder_made_here_paints_the_same_in_diffusers(model, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    hwaga.export(model, tmp_path / "public")
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "public")
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for prompt in ("a red circle", "star"):
        theirs = pipe(
            prompt, height=16, width=16, latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="pt",
            negative_prompt="a", max_sequence_length=256,
        ).images  # fmt: skip
        call = {"steps": 4, "guidance_scale": 3.0, "negative_prompt": "a", "noise": {"noise": noise}}
        assert (paint(model, prompt=prompt, **call) - theirs).abs().max() < 1e-4


def words(model, tmp_path):
    """Folders of the tokenizers, by the component that each is."""
    found = {}
    for part, name in (
        ("text_encoder", "tokenizer"),
        ("text_encoder_2", "tokenizer_2"),
        ("text_encoder_3", "tokenizer_3"),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        for file, content in model.networks[part].files.items():
            (tmp_path / name / file).write_bytes(content)
        found[name] = tmp_path / name
    return found


@pytest.mark.parametrize("network", [{}, {"qk_norm": True, "dual": [0]}], ids=["3", "3.5"])
def test_written_to_one_file_and_loaded_it_paints_the_same_and_the_way_back_gives_the_same_bits(network, tmp_path):
    system = filled(network=network)
    hwaga.export(system, tmp_path / "one.safetensors", format="single")
    with pytest.raises(InputError, match="no tokenizer_2: .*--component tokenizer_2=FOLDER"):
        one = {"tokenizer": words(system, tmp_path)["tokenizer"]}
        paint(hwaga.load(tmp_path / "one.safetensors", components=one))
    again = hwaga.load(tmp_path / "one.safetensors", components=words(system, tmp_path))
    assert torch.allclose(paint(again), paint(system), atol=1e-5)  # a view may lie otherwise in memory
    hwaga.export(again, tmp_path / "two.safetensors", format="single")
    one, two = (Mapped(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert (
        one.metadata == two.metadata and set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    )


def test_in_the_file_a_scale_follows_its_shift_and_queries_keys_and_values_are_one(model, tmp_path):
    hwaga.export(model, tmp_path / "one.safetensors", format="single")
    held, own = load_file(tmp_path / "one.safetensors"), model.network.state_dict()
    lead = sd3_file.LEAD
    scale, shift = own["norm_out.linear.weight"].chunk(2)
    assert torch.equal(held[f"{lead}final_layer.adaLN_modulation.1.weight"], torch.cat([shift, scale]))
    scale, shift = own["transformer_blocks.1.norm1_context.linear.weight"].chunk(2)
    assert torch.equal(held[f"{lead}joint_blocks.1.context_block.adaLN_modulation.1.weight"], torch.cat([shift, scale]))
    name = "transformer_blocks.0.attn.to_"
    joined = torch.cat([own[f"{name}{one}.weight"] for one in "qkv"])
    assert torch.equal(held[f"{lead}joint_blocks.0.x_block.attn.qkv.weight"], joined)


def bare(model, tmp_path, **changed):
    """The transformer alone, as others write it: no header."""
    tensors = sd3_file.public_tensors({"network": model.network}, {})
    save_file({k: v.clone().contiguous() for k, v in {**tensors, **changed}.items()}, tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors"


def test_what_a_file_lacks_comes_from_components(tmp_path):
    system = filled(network={"qk_norm": True})
    file, donor = bare(system, tmp_path), tmp_path / "donor"
    hwaga.export(system, donor)
    parts = {name: donor for name in ("autoencoder", "text_encoder", "text_encoder_2", "text_encoder_3")}
    whole = paint(hwaga.load(file, components=parts), size=16)
    assert torch.allclose(whole, paint(system), atol=1e-5)
    parts.pop("text_encoder_3")  # zeros stand in its place
    assert not torch.allclose(paint(hwaga.load(file, components=parts), size=16), whole, atol=1e-3)
    with pytest.raises(InputError, match="came without the text_encoder_2"):
        paint(hwaga.load(file, components={"autoencoder": donor, "text_encoder": donor}))
    with pytest.raises(InputError, match="text_encoder_3 gives 256 tokens of width 48"):
        hwaga.load(file).take_encoder("text_encoder_3", tiny.t5(width=48), "other")


def test_one_tensor_too_many_or_too_few_is_named(model, tmp_path):
    more = {f"{sd3_file.LEAD}joint_blocks.0.x_block.more": torch.zeros(2)}
    with pytest.raises(InputError, match=r"holds the tensor joint_blocks\.0\.x_block\.more"):
        hwaga.load(bare(model, tmp_path, **more))
    file = bare(model, tmp_path)
    tensors = load_file(file)
    del tensors[f"{sd3_file.LEAD}joint_blocks.1.x_block.mlp.fc1.bias"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"lacks the tensor joint_blocks\.1\.x_block\.mlp\.fc1\.bias"):
        hwaga.load(file)


@pytest.mark.parity
def test_the_public_converter_gives_every_name_and_number_back(tmp_path):
    converters = pytest.importorskip("diffusers.loaders.single_file_utils")
    system = filled(network={"qk_norm": True, "dual": [0]})
    public = converters.convert_sd3_transformer_checkpoint_to_diffusers(
        dict(sd3_file.public_tensors({"network": system.network}, {}))
    )
    own = system.network.state_dict()
    assert public.keys() == own.keys() and all(torch.equal(public[name], own[name]) for name in own)


# ------------------------------------------------------------------------------------------------------------------ LoRA


def low_rank(name, out, width=32, rank=2, seed=0, style="peft"):
    g = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=g) * 0.3, torch.randn(out, rank, generator=g) * 0.3
    ends = ("lora_A", "lora_B") if style == "peft" else ("lora_down", "lora_up")
    return {f"{name}.{ends[0]}.weight": down, f"{name}.{ends[1]}.weight": up}


def test_a_lora_in_the_names_of_the_folder_and_one_of_the_original_file_where_three_are_one(tmp_path):
    system = filled()
    plain = paint(system)
    fused = low_rank("lora_unet_joint_blocks_0_x_block_attn_qkv", 96, style="kohya")
    down, up = fused.values()
    apart = {}
    for one, rows in zip("qkv", up.chunk(3), strict=True):
        name = f"transformer.transformer_blocks.0.attn.to_{one}"
        apart |= {f"{name}.lora_A.weight": down.clone(), f"{name}.lora_B.weight": rows.clone()}
    for name, tensors in (("fused", fused), ("apart", apart)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    assert system.load_lora(tmp_path / "fused.safetensors").changed == 3
    changed = paint(system)
    system.unload_lora()
    assert torch.equal(paint(system), plain) and not torch.allclose(changed, plain, atol=1e-3)
    system.load_lora(tmp_path / "apart.safetensors")
    assert torch.allclose(paint(system), changed, atol=1e-6)


def test_a_lora_of_t5_and_of_both_clips_is_heard(tmp_path):
    system = filled()
    plain = paint(system)
    tensors = {
        **low_rank("lora_te1_text_model_encoder_layers_0_mlp_fc1", 32, 16, style="kohya"),
        **low_rank("lora_te2_text_model_encoder_layers_0_mlp_fc1", 32, 16, style="kohya", seed=1),
        **low_rank("lora_te3_encoder_block_0_layer_1_DenseReluDense_wo", 40, 32, style="kohya", seed=2),
    }
    save_file(tensors, tmp_path / "words.safetensors")
    assert system.load_lora(tmp_path / "words.safetensors").changed == 3
    assert not torch.allclose(paint(system), plain, atol=1e-4)
    system.set_lora("words", 0.0)
    assert torch.equal(paint(system), plain)


# ------------------------------------------------------------------------------------------------------- what it refuses


def test_a_component_of_another_model_is_told_by_the_shape_of_a_tensor(model, tmp_path):
    hwaga.export(model, tmp_path / "public")
    place = tmp_path / "public" / "transformer"
    config = json.loads((place / "config.json").read_text())
    tensors = load_file(place / "diffusion_pytorch_model.safetensors")
    tensors["context_embedder.weight"] = torch.zeros(32, 56)
    save_file(tensors, place / "diffusion_pytorch_model.safetensors")
    (place / "config.json").write_text(json.dumps({**config, "joint_attention_dim": 56}))
    with pytest.raises(InputError, match=r"context_embedder.weight has shape \(32, 56\)"):
        hwaga.load(tmp_path / "public")


@pytest.mark.parametrize(
    ("field", "words"),
    [({"qk_norm": "layer_norm"}, "qk_norm='layer_norm' cannot be loaded"),
     ({"caption_projection_dim": 48}, "caption_projection_dim=48 cannot be loaded; 32 can"),
     ({"num_layers": 0}, "depth"), ({"depth": 3}, "depth is no field of SD3Transformer2DModel"),
     ({"sample_size": [16, 16]}, "whole numbers")],
)  # fmt: skip
def test_a_public_config_that_cannot_be_loaded_is_refused_by_key(model, tmp_path, field, words):
    hwaga.export(model, tmp_path / "public")
    file = tmp_path / "public" / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **field}))
    with pytest.raises(InputError, match=words):
        hwaga.load(tmp_path / "public")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"network": {"text_width": 20}}, "text_width=20"), ({"network": {"pooled_width": 4}}, "pooled_width=4"),
     ({"network": {"in_channels": 3}}, "in_channels=3: latents of this autoencoder have 4"),
     ({"network": {"time_scales": 3}}, "time_scales")],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused_by_key(change, words):
    with pytest.raises(InputError, match=words):
        tiny.stable_diffusion_3(**change)


def test_without_an_encoder_it_says_which_to_name():
    with pytest.raises(InputError, match="components.text_encoder=openmoji/clip"):
        find("stable-diffusion-3").create({}, size=(16, 16))


def test_a_shorter_t5_has_no_public_folder(tmp_path):
    with pytest.raises(InputError, match="t5_length=0"):
        hwaga.export(filled(third=False), tmp_path / "public")
