"""Stable Diffusion as a system: words, pictures, masks and depths in; public folders; what it refuses; how it learns."""

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import tiny
import torch
import truths
from PIL import Image
from safetensors.torch import load_file, save_file

import hwaga
from hwaga.cli.main import run
from hwaga.errors import InputError, LostWords, WorkError
from hwaga.saving import save
from hwaga.training.config import TrainingConfig
from hwaga.training.loop import Trainer


def filled(system):
    tiny.fill_zeros(system.network)
    return system


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, "steps": 3, "sampler": "ddim", **call})


@pytest.fixture(scope="module")
def model():
    return filled(tiny.stable_diffusion())


def picture(size=(16, 16), seed=0):
    return torch.rand((3, *size), generator=torch.Generator().manual_seed(seed))


XL = {"added_width": 16 + 6 * 8, "size_width": 8}


def xl(**more):
    """Told two texts and sizes, as XL is."""
    two = tiny.text_encoder(1, projection=16)
    two.config = two.config.model_copy(update={"skip": 1, "final_norm": False, "pooled": "projected"})
    parts = {"autoencoder": tiny.vae_kl().autoencoder, "text_encoder": tiny.text_encoder(), "text_encoder_2": two}
    network = {**tiny.WORDED, **XL, "depth": [2, 1], "linear_projection": True}
    config = {"network": network, "process": {"timesteps": 50}, "zeros_for_empty": True, **more}
    return filled(tiny.find("stable-diffusion").create(config, size=(16, 16), components=parts))


# ------------------------------------------------------------------------------------------------------- what words do


def test_other_words_are_another_picture_and_the_same_the_same(model):
    one, two, again = (paint(model, prompt=p) for p in ("a red circle", "a blue star", "a red circle"))
    assert torch.equal(one, again) and (one - two).abs().max() > 1e-3


def test_a_list_of_prompts_is_painted_prompt_by_prompt_n_of_each(model):
    both = paint(model, prompt=["a circle", "a star"], n=2)
    assert both.shape[0] == 4
    alone = paint(model, prompt="a circle", n=2)
    assert (both[:2] - alone).abs().max() < 1e-5
    assert (
        both[2] - paint(model, prompt="a star", n=3)[2]
    ).abs().max() < 1e-5  # picture 2 of the seed, whatever the call


def test_pictures_of_a_batch_are_those_of_single_calls(model, monkeypatch):
    whole = paint(model, prompt=["a", "b"], n=2, negative_prompt=["x", "y"])
    monkeypatch.setattr("hwaga.systems.base.PIXELS_A_BATCH", 16 * 16)
    assert (paint(model, prompt=["a", "b"], n=2, negative_prompt=["x", "y"]) - whole).abs().max() < 1e-5


def test_a_negative_prompt_is_what_guidance_leads_away_from(model):
    with_it, without = (paint(model, prompt="a star", negative_prompt=n, guidance_scale=4.0) for n in ("blue", None))
    assert (with_it - without).abs().max() > 1e-4
    same = (paint(model, prompt="a star", negative_prompt=n, guidance_scale=1.0) for n in ("blue", None))
    assert torch.equal(*same)


def test_no_negative_prompt_is_the_empty_one_but_zeros_in_xl(model):
    assert torch.equal(*(paint(model, prompt="a star", negative_prompt=n, guidance_scale=3.0) for n in ("", None)))
    two = [paint(xl(), prompt="a star", negative_prompt=n, guidance_scale=3.0) for n in ("", None)]
    assert (two[0] - two[1]).abs().max() > 1e-5


def test_guidance_zero_is_the_negative_branch_alone(model):
    assert torch.allclose(
        paint(model, prompt="a star", negative_prompt="blue", guidance_scale=0.0),
        paint(model, prompt="blue", guidance_scale=1.0),
    )


def test_an_empty_prompt_and_none_are_painted_and_are_the_same(model):
    assert torch.equal(paint(model, prompt=""), paint(model))


def test_keys_and_values_of_the_words_are_made_once_a_call(model, monkeypatch):
    counts = []
    attention = model.network.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    attention.to_k.register_forward_hook(lambda *_: counts.append(1))
    with_guidance = paint(model, prompt="a star", steps=4, guidance_scale=3.0)
    assert len(counts) == 1
    again = paint(model, prompt="a circle", steps=4, guidance_scale=3.0)
    assert len(counts) == 2 and (with_guidance - again).abs().max() > 1e-4


def test_every_part_of_what_xl_is_told_counts():
    model = xl()
    plain = paint(model, prompt="a star")
    for more in ({"original_size": (64, 32)}, {"crop": (8, 0)}, {"target_size": (64, 64)}):
        assert (paint(model, prompt="a star", **more) - plain).abs().max() > 1e-6, more
    assert paint(model, prompt="a star", size=(24, 40)).shape == (1, 3, 24, 40)


@pytest.mark.parametrize("size", [(16, 16), (18, 22), (10, 30)])
def test_any_size_that_the_autoencoder_takes_is_painted(model, size):
    assert paint(model, prompt="a star", size=size).shape == (1, 3, *size)


def test_words_that_are_cut_off_are_told_and_stand_in_the_picture(model):
    text = "a very long prompt of many words indeed"
    with pytest.warns(LostWords, match="24 tokens that text_encoder takes; these words were lost: 'words indeed'"):
        (image,) = model.sample(prompt=text, steps=2, seed=0, progress=False)
    record = json.loads(image.info["hwaga"])
    assert record["lost_words"] == {"text_encoder": "words indeed"} and record["prompt"] == text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paint(model, prompt="a star")
        assert (paint(model, prompt=text, long_prompts=True) - paint(model, prompt=text[:24])).abs().max() > 1e-5


def test_ten_thousand_words_are_read_and_the_warning_stays_short(model):
    with pytest.warns(LostWords) as told:
        paint(model, prompt="word " * 10_000, steps=1)
    assert len(str(told[0].message)) < 400 and "more" in str(told[0].message)


def test_weights_of_one_change_nothing_and_others_do(model):
    plain = paint(model, prompt="a red star")
    assert torch.equal(paint(model, prompt="a (red:1.0) star", prompt_weights=True), plain)
    heavy = paint(model, prompt="a (red:1.5) star", prompt_weights=True)
    assert (heavy - plain).abs().max() > 1e-5


# ----------------------------------------------------------------------------------------------- pictures, masks, depths


def test_strength_zero_is_the_decoded_picture_and_one_keeps_nothing_but_its_noise(model):
    image = picture()
    back = paint(model, image=image, strength=0.0, noise={"posterior_noise": torch.zeros(1, 4, 8, 8)})
    assert (back - model.decode(model.encode(image[None]))).abs().max() < 1e-5
    weak, strong = (paint(model, prompt="a", image=image, strength=s) for s in (0.4, 0.9))
    assert (weak - strong).abs().max() > 1e-4


def test_a_call_with_a_picture_has_its_size(model):
    assert paint(model, image=picture((20, 12))).shape == (1, 3, 20, 12)
    assert paint(model, image=picture((21, 13))).shape == (1, 3, 20, 12)


def test_any_model_repaints_a_mask_and_keeps_the_rest_bit_for_bit(model):
    image, mask = picture(), torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    out = paint(model, prompt="a star", image=image, mask=mask)
    outside = (mask < 0.5).expand(3, -1, -1)
    assert torch.equal(out[0][outside], image[outside]) and (out[0] - image)[~outside].abs().max() > 1e-2


def test_a_model_that_is_told_masks_looks_at_mask_and_picture():
    model = filled(tiny.stable_diffusion(network={"in_channels": 9}))
    image, mask = picture(), torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    call = {"prompt": "a star", "keep_unmasked": False}
    one = paint(model, image=image, mask=mask, **call)
    assert (paint(model, image=image, mask=1 - mask, **call) - one).abs().max() > 1e-4
    assert (paint(model, image=picture(seed=1), mask=mask, **call) - one).abs().max() > 1e-4
    assert paint(model, prompt="a star").shape == one.shape  # without a picture all is painted


def test_a_model_that_is_told_depths_needs_one():
    model = filled(tiny.stable_diffusion(network={"in_channels": 5}))
    near, far = torch.linspace(0, 1, 16).expand(16, 16), torch.linspace(7, 3, 16).expand(16, 16)
    assert (paint(model, prompt="a", depth=near) - paint(model, prompt="a", depth=far)).abs().max() > 1e-4
    assert torch.allclose(paint(model, prompt="a", depth=near), paint(model, prompt="a", depth=5 + 3 * near), atol=1e-5)
    with pytest.raises(InputError, match="told a depth; give it: depth=PICTURE"):
        paint(model, prompt="a")


# ------------------------------------------------------------------------------------------------------- files and parts


def test_a_saved_model_paints_the_same_and_has_its_tokenizer(model, tmp_path):
    save(model, tmp_path / "m")
    again = hwaga.load(tmp_path / "m", device="cpu")
    assert (paint(again, prompt="세모 a star") - paint(model, prompt="세모 a star")).abs().max() < 1e-5
    for name, network in model.networks.items():
        own = again.networks[name].state_dict()
        assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    assert set(again.networks["text_encoder"].files) == set(model.networks["text_encoder"].files)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("public") / "model"
    hwaga.export(model, place, format="diffusers")
    return place


def test_a_trained_model_has_a_public_folder_and_comes_back_the_same(model, folder, tmp_path):
    again = hwaga.load(folder, device="cpu")
    call = {"prompt": "a star", "guidance_scale": 3.0}
    assert (paint(again, **call) - paint(model, **call)).abs().max() < 1e-5
    hwaga.export(again, tmp_path / "again", format="diffusers")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((folder / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_paints_the_same_from_our_folder(model, folder):
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipe("a red star", num_inference_steps=3, guidance_scale=3.0, latents=noise, output_type="pt").images
    ours = paint(hwaga.load(folder, device="cpu"), prompt="a red star", guidance_scale=3.0, noise={"noise": noise})
    assert (ours - theirs).abs().max() < 1e-4


PUBLIC = {
    "XL": (lambda: xl(sampling={"sampler": "euler", "options": {"euler": {"spacing": "leading"}}}), "StableDiffusionXLPipeline"),
    "inpainting": (lambda: filled(tiny.stable_diffusion(network={"in_channels": 9})), "StableDiffusionInpaintPipeline"),
    "v, two blocks": (
        lambda: filled(tiny.stable_diffusion(network={"blocks": 2}, process={"timesteps": 50, "predicts": "v"})),
        "StableDiffusionPipeline",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PUBLIC)
def test_every_kind_that_is_made_here_has_a_public_folder_that_paints_the_same(kind, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    make, name = PUBLIC[kind]
    hwaga.export(make(), tmp_path / "m", format="diffusers")
    assert json.loads((tmp_path / "m" / "model_index.json").read_text())["_class_name"] == name
    more = {} if kind == "XL" else {"safety_checker": None}
    pipe = getattr(diffusers, name).from_pretrained(tmp_path / "m", **more)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = {"noise": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    ours, theirs = {"prompt": "a red star", "guidance_scale": 3.0, "sampler": "euler"}, {}
    if kind == "inpainting":
        mask = torch.zeros(1, 16, 16)
        mask[:, 3:11, 5:9] = 1
        noise["posterior_noise"] = torch.zeros(1, 4, 8, 8)
        ours |= {"image": picture(), "mask": mask, "keep_unmasked": False}
        theirs = {"image": picture()[None], "mask_image": mask[None]}
        pipe.vae.encode = lambda x, encode=pipe.vae.encode: SimpleNamespace(latents=encode(x).latent_dist.mode())
    size = {"height": 16, "width": 16}
    want = pipe(
        "a red star",
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=noise["noise"],
        output_type="pt",
        **size,
        **theirs,
    )
    got = paint(hwaga.load(tmp_path / "m", device="cpu"), noise=noise, **ours)
    assert (got - want.images).abs().max() < 1e-4


def changed(folder, tmp_path, change):
    place = tmp_path / "changed"
    shutil.copytree(folder, place)
    change(place)
    return place


def test_half_precision_old_names_and_matrices_are_read_and_written_as_they_were(folder, tmp_path):
    def older(place):
        unet = load_file(place / "unet" / "diffusion_pytorch_model.safetensors")
        unet = {k: (v.flatten(1) if "proj_in.w" in k else v).half().contiguous() for k, v in unet.items()}
        (place / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        save_file(unet, place / "unet" / "diffusion_pytorch_model.fp16.safetensors")
        text = load_file(place / "text_encoder" / "model.safetensors")
        text = {k.removeprefix("text_model."): v for k, v in text.items()} | {
            "embeddings.position_ids": torch.arange(24)[None]
        }
        save_file(text, place / "text_encoder" / "model.safetensors")
        (place / "safety_checker").mkdir()
        (place / "safety_checker" / "config.json").write_text("{}")

    place = changed(folder, tmp_path, older)
    with pytest.warns(UserWarning, match="its safety checker.* is left out; export copies it"):
        system = hwaga.load(place, device="cpu")
    hwaga.export(system, tmp_path / "out", format="diffusers")
    for part, stem, new in (
        ("unet", "diffusion_pytorch_model.fp16", "diffusion_pytorch_model"),
        ("text_encoder", "model", "model"),
    ):
        before, after = (
            load_file(place / part / f"{stem}.safetensors"),
            load_file(tmp_path / "out" / part / f"{new}.safetensors"),
        )
        assert before.keys() == after.keys()
        assert all(before[k].dtype == after[k].dtype and torch.equal(before[k], after[k]) for k in before)
    assert (tmp_path / "out" / "safety_checker" / "config.json").read_text() == "{}"


def test_a_folder_without_a_tokenizer_says_so_and_takes_one(folder, tmp_path):
    place = changed(folder, tmp_path, lambda place: shutil.rmtree(place / "tokenizer"))
    with pytest.raises(InputError, match=r"no tokenizer: vocab.json with merges.txt.*components="):
        paint(hwaga.load(place, device="cpu"), prompt="a star")
    given = hwaga.load(place, device="cpu", components={"tokenizer": folder / "tokenizer"})
    assert torch.equal(paint(given, prompt="a star"), paint(hwaga.load(folder, device="cpu"), prompt="a star"))


def test_a_component_of_another_model_is_named_by_tensor_and_shape(folder, tmp_path):
    def wider(place):
        config = json.loads((place / "unet" / "config.json").read_text())
        (place / "unet" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 24}))
        tensors = load_file(place / "unet" / "diffusion_pytorch_model.safetensors")
        tensors = {
            k: torch.zeros(v.shape[0], 24) if ("attn2.to_k" in k or "attn2.to_v" in k) else v
            for k, v in tensors.items()
        }
        save_file(tensors, place / "unet" / "diffusion_pytorch_model.safetensors")

    with pytest.raises(InputError, match=r"attn2.to_k.weight has shape \(8, 24\).*final_layer_norm.weight \(16,\)"):
        hwaga.load(changed(folder, tmp_path, wider), device="cpu")

    def wrong_config(place):
        config = json.loads((place / "unet" / "config.json").read_text())
        (place / "unet" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 24}))

    shutil.rmtree(tmp_path / "changed")
    with pytest.raises(InputError, match=r"attn2.to_k.weight has shape \(8, 16\), but its config asks for \(8, 24\)"):
        hwaga.load(changed(folder, tmp_path, wrong_config), device="cpu")


def test_another_text_encoder_may_take_the_place_of_the_models_own(folder, tmp_path):
    other = filled(tiny.stable_diffusion())
    other.networks["text_encoder"] = tiny.text_encoder(seed=9)
    hwaga.export(other, tmp_path / "other", format="diffusers")
    system = hwaga.load(folder, device="cpu", components={"text_encoder": tmp_path / "other"})
    whole = hwaga.load(tmp_path / "other", device="cpu")
    assert torch.equal(paint(system, prompt="a star"), paint(whole, prompt="a star"))


# ---------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": 3}, "prompt=3: text, or a list of texts"),
        ({"prompt": []}, r"prompt=\[\]: at least one prompt"),
        ({"prompt": ["a", "b"], "negative_prompt": ["x"] * 3}, "has 3 entries for 2 prompts"),
        ({"size": (15, 16)}, "height 15 is not a multiple of 2; nearest that work: 14 and 16"),
        ({"image": picture(), "strength": 1.5}, "strength=1.5: a number from 0"),
        ({"strength": 0.5}, "strength= given without image="),
        ({"mask": torch.ones(1, 16, 16)}, "mask= given without image="),
        ({"image": picture(), "mask": torch.ones(1, 8, 8)}, "mask= has 8 x 8 pixels, but image= has 16 x 16"),
        ({"label": 1}, "label= given to Stable Diffusion"),
        ({"crop": (0, 0)}, "crop= given to a model whose network is not told it"),
        ({"depth": torch.ones(16, 16)}, "depth= given to a model whose network is not told it"),
        ({"clip_skip": 3}, "clip_skip=3: a whole number from 0 to 2"),
        ({"prompt_weights": 1}, "prompt_weights=1: true or false"),
        ({"prompt": "(a", "prompt_weights": True}, "is never closed"),
    ],
)
def test_what_cannot_be_painted_is_refused_in_one_sentence(model, call, words):
    with pytest.raises(InputError, match=words):
        paint(model, **call)


@pytest.mark.parametrize(("part", "words"), [
    ("text_encoder", "in what the text encoder says of the prompt"), ("network", "after step 1 of 3 of the denoiser"),
    ("autoencoder", "in what the decoder gave"),
])  # fmt: skip
def test_numbers_that_are_not_finite_name_their_stage(part, words):
    system = filled(tiny.stable_diffusion())
    with torch.no_grad():
        list(system.networks[part].parameters())[-1].fill_(float("nan"))
    with pytest.raises(WorkError, match=f"{words}.*float32.*nothing was painted"):
        paint(system, prompt="a star")


# --------------------------------------------------------------------------------------------------------- command line


def test_the_command_line_paints_what_a_prompt_says(folder, tmp_path, capsys):
    common = ["sample", str(folder), "--device", "cpu", "--steps", "2", "--seed", "0", "--quiet"]
    assert run([*common, "--prompt", "a star", "--prompt", "a circle", "-n", "2", "--out", str(tmp_path / "four")]) == 0
    names = sorted(p.name for p in (tmp_path / "four").iterdir())
    assert names == [f"{i:05d}.png" for i in range(4)]
    again = ["sample", "--from", str(tmp_path / "four" / "00003.png"), "--out", str(tmp_path / "again.png"), "--quiet"]
    assert run(again) == 0
    with Image.open(tmp_path / "four" / "00003.png") as one, Image.open(tmp_path / "again.png") as two:
        assert one.tobytes() == two.tobytes() and json.loads(two.info["hwaga"])["prompt"] == "a circle"
        assert one.info["parameters"].startswith("a circle\n")


def test_words_that_would_be_lost_are_a_note_and_with_strict_exit_2(folder, tmp_path, capsys):
    long = "a very long prompt of many words indeed"
    common = ["sample", str(folder), "--device", "cpu", "--steps", "1", "--quiet", "--prompt", long]
    assert run([*common, "--out", str(tmp_path / "a.png")]) == 0
    assert "hwaga: note: the prompt is longer" in capsys.readouterr().err
    assert run([*common, "--strict", "--out", str(tmp_path / "b.png")]) == 2
    assert "these words were lost: 'words indeed'" in capsys.readouterr().err and not (tmp_path / "b.png").exists()


# ------------------------------------------------------------------------------------------------------- how it learns


def test_overfits_one_batch_of_captioned_pictures():
    """What captions alone can tell apart: two pictures, each with its words, at fixed times and noise."""
    system, batch = (
        tiny.stable_diffusion(process={"timesteps": 50, "predicts": "x0"}, text_dropout=0.0),
        tiny.captions(2),
    )
    truths.overfits(system, batch, 80, rate=5e-3)


@pytest.mark.parametrize("make", [tiny.stable_diffusion, xl])
def test_gradient_of_the_loss_reaches_every_parameter_and_none_of_the_text_encoder(make):
    system = make(text_dropout=0.5)
    tiny.fill_zeros(system.network)
    sum(system.loss(tiny.captions(16), tiny.Draw()).values()).backward()
    assert [n for n, p in system.network.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for p in system.networks["text_encoder"].parameters())
    assert set(system.stages()[0].networks) == {"network"}


def test_hidden_words_are_no_words(model):
    shown, gone = filled(tiny.stable_diffusion(text_dropout=0.0)), filled(tiny.stable_diffusion(text_dropout=1.0))
    batch = tiny.captions(4)
    empty = shown.said([None] * 4, batch)["text"]
    assert torch.equal(gone.hidden(gone.conditions(batch), batch, tiny.Draw())["text"], empty)
    assert not torch.equal(shown.hidden(shown.conditions(batch), batch, tiny.Draw())["text"], empty)


def test_a_caption_has_the_same_states_whatever_batch_it_comes_in(model):
    alone, among = tiny.captions(1), tiny.captions(4)
    assert torch.equal(model.conditions(alone)["text"][0], model.conditions(among)["text"][0])
    fresh = filled(tiny.stable_diffusion())
    assert torch.equal(fresh.conditions(among)["text"], model.conditions(among)["text"])


def test_grids_of_training_show_what_captions_say():
    config = hwaga.systems.find("stable-diffusion").taught({"text_dropout": 0.2}, ["b star", "a star", "a star", "c"])
    assert config == {"examples": ("a star", "b star", "c"), "text_dropout": 0.2}
    system = filled(tiny.stable_diffusion(examples=["a star", "a circle"], sampling={"sampler": "ddim", "steps": 2}))
    shown = system.preview(3, seed=1)
    want = system.sample(prompt=["a star", "a circle", "a star"], seed=1, output="tensor", progress=False)
    assert torch.equal(shown, want)


class Captioned(tiny.Pictures):
    def batch(self, indices, epochs=None):
        every = tiny.captions(8)
        at = torch.as_tensor(indices)
        return hwaga.interfaces.Batch(every.image[at], at, caption=[every.caption[i] for i in at.tolist()])


def test_training_goes_on_with_the_same_bits(tmp_path):
    from hwaga.data import Order

    def trained(steps, state=None):
        system = tiny.stable_diffusion()
        trainer = Trainer(
            system.stages()[0], TrainingConfig(steps=4, batch_size=4, dtype="float32"), Captioned(), Order(8, 4, seed=0)
        )
        for _ in range(steps):
            trainer.step()
        return {k: v.clone() for k, v in system.network.state_dict().items()}

    one, two = trained(4), trained(4)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_recipe_without_text_encoder_or_captions_says_what_is_missing():
    with pytest.raises(InputError, match="components.text_encoder=openmoji/clip"):
        tiny.find("stable-diffusion").create({}, size=(16, 16))
    with pytest.raises(InputError, match="learns from captions, but the data have none"):
        tiny.stable_diffusion().loss(tiny.batch(2, labels=False), tiny.Draw())


# ------------------------------------------------------------------------------------------------------------ customs


def test_a_second_pass_paints_on_at_a_larger_size(model):
    out = paint(model, prompt="a star", second_size=(24, 32))
    assert out.shape == (1, 3, 24, 32)
    assert (paint(model, prompt="a star", second_size=(24, 32), second_strength=0.9) - out).abs().max() > 1e-4
    kept = paint(model, prompt="a star", second_size=(16, 16), second_strength=0.0)
    assert (kept - model.decode(model.encode(paint(model, prompt="a star")))).abs().max() < 1e-4
    with pytest.raises(InputError, match="second_strength= given without second_size="):
        paint(model, second_strength=0.5)


def test_a_masked_region_is_painted_at_full_size_and_laid_back(model):
    image, mask = picture((40, 50)), torch.zeros(1, 40, 50)
    mask[:, 10:14, 20:26] = 1
    out = paint(model, prompt="a star", image=image, mask=mask, masked_margin=3, n=2)
    outside = (mask < 0.5).expand(3, -1, -1)
    assert out.shape == (2, 3, 40, 50) and all(torch.equal(one[outside], image[outside]) for one in out)
    assert (out[0] - image)[~outside].abs().max() > 1e-2 and (out[0] - out[1]).abs().max() > 1e-3
    with pytest.raises(InputError, match="nothing to repaint"):
        paint(model, image=image, mask=torch.zeros(1, 40, 50), masked_margin=3)


def test_learned_words_stand_in_prompts(model, tmp_path):
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    save_file({"<toy>": vectors}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": vectors}, tmp_path / "toy.safetensors")
    torch.save({"string_to_param": {"*": vectors}, "name": "plaything"}, tmp_path / "old.pt")
    mine = filled(tiny.stable_diffusion())
    plain = paint(mine, prompt="a blue <toy>")
    told = paint(mine, prompt="a blue <toy>", textual_inversion=tmp_path / "learned_embeds.safetensors")
    assert (told - plain).abs().max() > 1e-4
    encoder = mine.networks["text_encoder"]
    assert encoder.tokens("a <toy>").ids[-2:] == (514, 515)
    for file, word in (("toy.safetensors", "toy"), ("old.pt", "plaything")):
        assert mine.load_textual_inversion(tmp_path / file) == word
        assert torch.equal(paint(mine, prompt=f"a blue {word}"), told)
    save_file({"<wide>": torch.zeros(24)}, tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match="vectors of 24 numbers, text_encoder's have 16"):
        mine.load_textual_inversion(tmp_path / "wide.safetensors")


def test_a_picture_is_edited_from_its_own_noise(model):
    """Painted again with its own words it is itself; with others, another."""
    image = paint(model, prompt="a red star", steps=2)[0]
    call = {
        "image": image, "inversion": 4, "inversion_prompt": "a red star", "guidance_scale": 1.0, "steps": 20, "strength": 0.5,
        "noise": {"posterior_noise": torch.zeros(1, 4, 8, 8)},
    }  # fmt: skip
    same, other = (paint(model, prompt=p, **call) for p in ("a red star", "a blue circle"))
    through = model.decode(model.encode(image[None]))
    assert (same - through).abs().mean() < 0.2 * (other - through).abs().mean()
    with pytest.raises(InputError, match="inversion_prompt= given without inversion="):
        paint(model, inversion_prompt="a")
