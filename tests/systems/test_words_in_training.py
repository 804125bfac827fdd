"""Words through training: a painter told by a small CLIP learns from captions by recipe, resumes, is exported."""

import re

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import hwaga
from hwaga import loading, running
from hwaga.errors import InputError
from hwaga.recipes import load_recipe, shipped_recipes
from hwaga.saving import save
from hwaga.systems import find

DIGITS = [f"{phrase} {word}" for phrase in ("a handwritten", "손으로 쓴 숫자") for word in ("zero", "one", "영", "일")]
RECIPE = {
    "system": "stable-diffusion",
    "model": {
        "network": {"channels": [8, 16], "attention": [True, True], "depth": [1, 1], "heads": [1, 2], "blocks": 1, "groups": 4},
        "process": {"kind": "gaussian", "timesteps": 50, "schedule": "cosine", "predicts": "v"},
        "sampling": {"sampler": "ddim", "steps": 3, "guidance_scale": 2.0, "offset": 1},
        "text_dropout": 0.3,
    },
    "data": {"source": "digits", "size": 16, "label": "none", "language": ["en", "ko"], "caption_shuffle": True},
    "training": {
        "steps": 4, "batch_size": 4, "checkpoint_every": 2, "dtype": "float32", "sample_every": 0, "held_out_pictures": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    codec = tiny.vae_kl()
    with torch.no_grad():
        codec.autoencoder.shift.fill_(0.4)
    save(codec, root / "vae-kl")
    save(tiny.clip(captions=DIGITS), root / "clip")
    save(tiny.clip(captions=DIGITS, judge=True), root / "judge")
    return root


def recipe(parts, clip="clip", **changes):
    components = {"autoencoder": str(parts / "vae-kl"), "text_encoder": str(parts / clip)}
    return {**RECIPE, "components": components, **changes}


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    return running.train(recipe(parts), out=tmp_path_factory.mktemp("runs") / "whole", progress=False)


CALL = {"prompt": ["a handwritten one", "손으로 쓴 숫자 일"], "seed": 1, "output": "tensor", "progress": False}


def test_a_resumed_run_equals_the_uninterrupted(run, parts, tmp_path):
    part = running.train(recipe(parts), out=tmp_path / "part", overrides={"training.steps": 2}, progress=False)
    again = running.resume(part.folder, {"training.steps": 4}, progress=False)
    one, two = (load_file(r.folder / "model" / "network" / "model.safetensors") for r in (run, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_words_stay_as_they_were_and_go_with_the_model(run, parts):
    model, clip = run.load(), hwaga.load(parts / "clip")
    own, given = model.networks["text_encoder"].state_dict(), clip.clip.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in own) and len(own) > 20
    assert model.networks["text_encoder"].files == clip.tokenizer.files
    painted = model.sample(**CALL)
    assert painted.shape == (2, 3, 16, 16)
    single = model.sample(**{**CALL, "prompt": CALL["prompt"][0]})
    assert (painted[:1] - single).abs().max() < 1e-5


def test_its_folder_is_one_that_paints_the_same(run, tmp_path):
    model = run.load()
    hwaga.export(model, tmp_path / "public")
    again = hwaga.load(tmp_path / "public")
    assert not again.networks["autoencoder"].shift.any() and model.networks["autoencoder"].shift.any()
    asked = {**CALL, "steps": 3, "guidance_scale": 2.0}  # which a folder does not say
    assert (again.sample(**asked) - model.sample(**asked)).abs().max() < 1e-4


def test_diffusers_paints_the_same_of_the_folder(run, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = run.load()
    hwaga.export(model, tmp_path / "public")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "public", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    ours = model.sample(**CALL, noise={"noise": noise})
    theirs = pipeline(
        prompt=CALL["prompt"],
        num_inference_steps=3,
        guidance_scale=2.0,
        latents=noise,
        height=16,
        width=16,
        output_type="pt",
    ).images
    assert (ours - theirs).abs().max() < 1e-4


def test_one_that_judges_is_no_component(parts, tmp_path):
    with pytest.raises(InputError, match="judges what is painted, so no painter may be told by it"):
        running.train(recipe(parts, "judge"), out=tmp_path / "run", progress=False)


def test_a_part_of_a_shipped_clip_is_named_and_not_copied(run, parts, tmp_path, monkeypatch):
    """`hwaga convert --dtype`: the form in which weights are given away."""
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(loading, "SHIPPED", shipped)
    save(hwaga.load(parts / "clip"), shipped / "openmoji" / "clip")
    model = run.load()
    model.about = model.about.model_copy(update={"components": {"text_encoder": "openmoji/clip"}})
    save(model, tmp_path / "given", refer=True)
    assert not (tmp_path / "given" / "text_encoder").exists()
    again = hwaga.load(tmp_path / "given")
    assert torch.equal(again.sample(**CALL), model.sample(**CALL))
    other = tiny.clip(seed=5, captions=DIGITS)
    save(other, shipped / "openmoji" / "clip", replace=True)
    with pytest.raises(InputError, match="the weights there are others than it was trained with"):
        hwaga.load(tmp_path / "given")


def test_data_without_captions_are_refused_before_anything_is_written(parts, tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(6):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    data = {"source": str(tmp_path / "pictures"), "size": 16, "label": "none"}
    with pytest.raises(InputError, match="learns from captions, but the data have none"):
        running.train(recipe(parts, data=data), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_student_is_told_the_guidance_and_paints_in_few_steps(run, parts, tmp_path):
    model = {
        **RECIPE["model"], "student": {"kind": "latent-consistency", "places": 10, "scales": [1.0, 4.0]},
        "sampling": {"sampler": "lcm", "steps": 2, "guidance_scale": 2.0},
    }  # fmt: skip
    full = recipe(parts, model=model)
    full["components"]["teacher"] = str(run.folder)
    full["training"] = {**RECIPE["training"], "start_from": str(run.folder), "steps": 2}
    student = running.train(full, out=tmp_path / "student", progress=False).load()
    assert (
        student.config.network.guidance_width == 256 and "teacher" not in load_recipe(run.folder / "recipe.yaml").model
    )
    weak, strong = (student.sample(**CALL, guidance_scale=scale) for scale in (1.5, 4.0))
    assert not torch.equal(weak, strong) and weak.shape == (2, 3, 16, 16)


OF_WORDS = [
    n
    for n in shipped_recipes()
    if re.fullmatch(r"\w+/(clip.*|stable-diffusion(-1.5|-2.1|-xl|-small|-lcm|-fine-tune)?)", n)
]


@pytest.mark.parametrize("name", OF_WORDS)
def test_recipes_of_words_fit_their_systems(name):
    """What does not depend on the data and on trained parts."""
    full = load_recipe(name)
    cls = find(full.system)
    model = dict(full.model)
    if full.system == "clip":
        cls.checked(cls.complete({**model, "merges": ()}, full.data.shape, ()))
        return
    network = cls.checked({
        **model, "text_encoder": None, "autoencoder": {"latent_channels": 4},
        "network": {**({"text_width": 128} if name.startswith("openmoji/") else {}), **model["network"]},
    }).network  # fmt: skip
    with torch.device("meta"):
        count = sum(p.numel() for p in network.build().parameters())
    wanted = {"paper/stable-diffusion-1.5": 859_520_964, "paper/stable-diffusion-2.1": 865_910_724,
              "paper/stable-diffusion-xl": 2_567_463_684}  # fmt: skip
    assert count == wanted[name] if name in wanted else count < 8e6
