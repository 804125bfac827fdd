"""DiT as a system: pixels and latents, diffusion and flow, public weights, what it refuses."""

import argparse
import json
import math

import pytest
import tiny
import torch
import truths
from safetensors.torch import load_file

import hwaga
from hwaga import running
from hwaga.data import DataConfig, open_data
from hwaga.data.beside import with_beside
from hwaga.errors import InputError
from hwaga.preparing import start_from
from hwaga.processes.spacing import Spaced
from hwaga.recipes import load_recipe, shipped_recipes
from hwaga.samplers.denoiser import denoiser
from hwaga.samplers.noise import from_seed
from hwaga.saving import convert, save
from hwaga.systems import find, latents

KINDS = {
    "diffusion": {},
    "learned variance": {"process": {"timesteps": 50, "variance": "learned-range"}},
    "flow": {"process": {"kind": "flow", "times": {"kind": "logit-normal"}}, "sampling": {"sampler": "flow-euler"}},
}


def filled(system):
    tiny.fill_zeros(system.network)
    return system


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, "steps": 4, **call})


@pytest.fixture(scope="module")
def pixels():
    return filled(tiny.dit())


@pytest.fixture(scope="module")
def latent():
    return filled(tiny.latent_dit())


# ------------------------------------------------------------------------------------------------------- how it learns


HOW = [*((kind, "adaln-zero") for kind in KINDS), *(("flow", c) for c in ("adaln", "cross-attention", "in-context"))]


@pytest.mark.parametrize(("kind", "conditioning"), HOW)
def test_overfits_one_batch_however_it_is_told(kind, conditioning):
    """Squared error on fixed draws falls below 5 % of the first."""
    predicts = {} if kind == "flow" else {"predicts": "x0"}
    model = {**KINDS[kind], "process": {"timesteps": 50, **KINDS[kind].get("process", {}), **predicts}}
    if kind == "flow":
        model["process"].pop("timesteps")
    system, batch = tiny.dit(network={"conditioning": conditioning}, **model), tiny.batch(2)
    truths.overfits(system, batch, 160)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_loss_reaches_every_parameter(kind):
    system = filled(tiny.dit(label_dropout=0.5, **KINDS[kind]))
    sum(system.loss(tiny.batch(16), tiny.Draw()).values()).backward()
    assert [n for n, p in system.network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_loss_of_latents_is_that_of_their_posteriors_samples(latent):
    batch = tiny.batch()
    kept = latent.precomputed()[latents.MOMENTS].compute(batch.image)
    assert kept.shape[1:] == latent.precomputed()[latents.MOMENTS].shape
    known = tiny.batch()
    object.__setattr__(known, "extra", {latents.MOMENTS: kept})
    one, two = (latent.loss(b, tiny.Draw(1))["denoising"] for b in (batch, known))
    assert (one - two).abs() < 1e-6
    seen = latent.seen(batch, tiny.Draw(1))
    assert seen.shape == (8, 4, 8, 8) and not torch.equal(seen, latent.autoencoder.encode(batch.image))


def test_only_the_transformer_is_trained(latent):
    (stage,) = latent.stages()
    assert set(stage.networks) == {"network"} and stage.objectives[0].networks == ("network",)


def test_hidden_labels_train_the_null_label():
    system = filled(tiny.dit(label_dropout=1.0))
    sum(system.loss(tiny.batch(), tiny.Draw()).values()).backward()
    rows = system.network.labels.weight.grad.abs().sum(1)
    assert rows[3] > 0 and (rows[:3] == 0).all()


def test_held_out_losses_are_by_time_and_of_each_picture():
    system = filled(tiny.dit())
    found = system.held_out(tiny.batch(), tiny.Draw())
    assert set(found) >= {"loss", "loss t 0.0-0.2"} and all(value.shape == (8,) for value in found.values())


RUN = {
    "system": "dit",
    "data": {"source": "digits", "size": 16, "flip": True},
    "training": {
        "steps": 4, "batch_size": 4, "checkpoint_every": 2, "dtype": "float32", "sample_every": 0, "held_out_pictures": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "vae-kl"
    save(tiny.vae_kl(), folder)
    return folder


def recipe(codec, **model):
    values = {"labels": True, "network": {"width": 32, "depth": 2, "heads": 2, "patch": 2}, **model}
    return {**RUN, "model": values, "components": {"autoencoder": str(codec)}}


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_a_resumed_run_of_latents_equals_the_uninterrupted(kind, codec, tmp_path):
    process = {"kind": "flow"} if kind == "flow" else {"timesteps": 50, "variance": "learned-range"}
    full = recipe(codec, process=process)
    whole = running.train(full, out=tmp_path / "whole", progress=False)
    part = running.train(full, out=tmp_path / "part", overrides={"training.steps": 2}, progress=False)
    again = running.resume(part.folder, {"training.steps": 4}, progress=False)
    weights = [load_file(run.folder / "model" / "network" / "model.safetensors") for run in (whole, again)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    model = again.load()
    assert paint(model, steps=2).shape == (1, 3, 16, 16) and model.config.autoencoder is not None
    assert (tmp_path / "whole" / "model" / "autoencoder" / "model.safetensors").is_file()


def test_weights_that_are_given_away_name_a_shipped_autoencoder_and_do_not_copy_it(tmp_path, monkeypatch):
    monkeypatch.setattr("hwaga.loading.SHIPPED", tmp_path / "shipped")
    place = tmp_path / "shipped" / "openmoji" / "vae-kl"
    save(tiny.vae_kl(), place, dtype=torch.float16)
    full = {**recipe("openmoji/vae-kl"), "components": {"autoencoder": "openmoji/vae-kl"}}
    run = running.train(full, out=tmp_path / "run", overrides={"training.steps": 2}, progress=False)
    assert (run.folder / "model" / "autoencoder").is_dir()  # a run is whole
    convert(run.folder, tmp_path / "given", "hwaga", dtype="float16")
    card = json.loads((tmp_path / "given" / "model.json").read_text())
    assert card["components"]["autoencoder"]["source"] == "openmoji/vae-kl"
    assert not (tmp_path / "given" / "autoencoder").exists()
    found, copied = (hwaga.load(f, device="cpu", dtype="float32") for f in (tmp_path / "given", run.folder))
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.encode(picture), copied.encode(picture))
    save(found, tmp_path / "whole")  # and written out again where it is saved
    assert (tmp_path / "whole" / "autoencoder" / "model.safetensors").is_file()
    copied.autoencoder.scale.mul_(2)
    save(copied, tmp_path / "other", dtype=torch.float16, refer=True)
    assert (tmp_path / "other" / "autoencoder").is_dir()  # it is that autoencoder no more


def test_another_autoencoder_is_another_run(codec, tmp_path):
    run = running.train(recipe(codec), out=tmp_path / "run", overrides={"training.steps": 2}, progress=False)
    save(tiny.vae_kl(seed=9), codec, replace=True)
    with pytest.raises(InputError, match="another data"):
        running.resume(run.folder, {"training.steps": 4}, progress=False)
    save(tiny.vae_kl(), codec, replace=True)


def test_the_plan_of_latents_counts_the_autoencoder_and_needs_no_pass_through_it(codec):
    plan = running.plan(recipe(codec), timed=False)
    (stage,) = plan.stages
    frozen = sum(p.numel() * 4 for p in tiny.vae_kl().autoencoder.parameters())
    own = plan.parameters["network"] * 4
    assert abs(stage.memory.parameters - frozen - own) < 1024


def test_data_whose_latents_no_patch_divides_are_refused(codec, tmp_path):
    with pytest.raises(InputError, match="multiples of 4"):
        running.train(recipe(codec), overrides={"data.size": 18}, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_with_other_classes_keeps_all_but_the_label_embedding(tmp_path):
    old = filled(tiny.latent_dit(network={"width": 64, "heads": 1, "time_scale": 1.0}))
    hwaga.export(old, tmp_path / "DiT-tiny.safetensors", format="single")
    new, said = tiny.latent_dit(seed=1, network={"width": 64, "heads": 1, "classes": 8}), []
    codec = new.autoencoder.state_dict()
    start_from(new, str(tmp_path / "DiT-tiny.safetensors"), said.append, given=("autoencoder",))
    assert len(said) == 1 and said[0].endswith("new: labels.weight")
    assert torch.equal(new.network.blocks[1].mlp.up.weight, old.network.blocks[1].mlp.up.weight)
    assert new.network.labels.weight.shape[0] == 8
    assert all(torch.equal(value, codec[name]) for name, value in new.autoencoder.state_dict().items())


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if "/dit" in name or "/sit" in name])
def test_a_recipe_makes_the_network_that_it_names(name):
    recipe = load_recipe(name)
    latent = (
        {"autoencoder": {"latent_channels": 4, "channels": [16, 32, 64], "groups": 16}} if recipe.components else {}
    )
    cls, size = find("dit"), recipe.data.shape
    config = cls.checked(cls.complete({**recipe.model, **latent}, size, [str(i) for i in range(5)]))
    cls.check_data(config, size)
    assert config.network.classes == 6 and config.sampling.guidance_scale >= 1
    assert config.process.build().grid(3, Spaced())[-1].sigma == 0
    assert config.sampling.sampler.startswith("flow") == (config.process.kind == "flow")


def test_flips_are_seen_through_the_autoencoder(latent):
    data = open_data(DataConfig(source="digits", size=16, flip=True))
    held, _ = with_beside(data, latent.precomputed())
    at = list(range(12))
    batch = held.batch(at, [1] * 12)
    fresh = latents.moments(latent.autoencoder, batch.image)
    assert (batch.extra[latents.MOMENTS] - fresh).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------------------ how it paints


@pytest.mark.parametrize("name", ["pixels", "latent"])
def test_picture_is_the_same_whatever_the_number_and_the_batches(name, request, monkeypatch):
    model = request.getfixturevalue(name)
    truths.pictures_stand_alone(lambda n: paint(model, n=n, sampler="ddpm"), monkeypatch)


def test_recorded_noise_is_that_of_latents(latent):
    start = from_seed(5, [0, 1])("noise", (2, 4, 8, 8))
    replayed = paint(latent, n=2, label=1, sampler="ddim", noise={"noise": start}, seed=99)
    assert torch.equal(replayed, paint(latent, n=2, label=1, sampler="ddim"))


def test_guidance_acts_on_the_channels_that_the_config_says():
    """Of four channels three: as the published code does (its fourth follows the label alone)."""
    some, every = filled(tiny.latent_dit(guided_channels=3)), filled(tiny.latent_dit())
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    at, to = every.process.grid(2)[:2]

    def x0(system, scale):
        conditions = {"label": torch.tensor([1])}
        guide = system._guided(scale, {"label": torch.tensor([system.label_count()])}, {})
        return denoiser(system.compute, system.process, conditions, guide)(x, at, to).x0

    plain, guided, partly = x0(every, 1.0), x0(every, 3.0), x0(some, 3.0)
    assert (partly[:, :3] - guided[:, :3]).abs().max() < 1e-5 and (partly[:, 3:] - plain[:, 3:]).abs().max() < 1e-5
    assert (plain - guided).abs().amax((0, 2, 3)).min() > 1e-3


def test_a_call_may_guide_other_channels_than_the_config_says(latent):
    call = {"label": 1, "guidance_scale": 3.0}
    part = filled(tiny.latent_dit(guided_channels=3))
    assert torch.equal(paint(latent, **call, guided_channels=3), paint(part, **call))
    assert torch.equal(paint(part, **call, guided_channels=4), paint(latent, **call))
    for value, words in ((5, "1 to 4"), (True, "1 to 4")):
        with pytest.raises(InputError, match=words):
            paint(latent, **call, guided_channels=value)
    with pytest.raises(InputError, match="guidance_scale=1"):
        paint(latent, label=1, guided_channels=3)


def test_any_size_of_the_factor_is_painted(pixels, latent):
    assert paint(pixels, size=(8, 24)).shape == (1, 3, 8, 24)
    assert paint(latent, size=(24, 8)).shape == (1, 3, 24, 8)
    with pytest.raises(InputError, match="nearest that work: 16 and 20"):
        paint(latent, size=(18, 16))


def test_a_flow_in_one_step_is_the_mean_that_it_sees():
    system = filled(tiny.dit(**KINDS["flow"]))
    x = from_seed(5, [0])("noise", (1, 3, 16, 16))
    with torch.no_grad():
        velocity = system.network(x, torch.ones(1), torch.tensor([2]))
    wanted = ((x - velocity) / 2 + 0.5).clamp(0, 1)
    assert (paint(system, steps=1, label=2) - wanted).abs().max() < 1e-6


def test_latents_are_encoded_and_decoded_as_the_autoencoder_does(latent):
    picture = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    z = latent.encode(picture)
    assert torch.equal(z, latent.autoencoder.encode(picture * 2 - 1))
    assert latent.decode(z).shape == picture.shape
    with pytest.raises(InputError, match=r"\(n, 4, y, x\)"):
        latent.decode(torch.zeros(1, 3, 8, 8))


def test_an_image_is_painted_on_in_the_small_space(latent):
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(16, 16)
    mask[:, 8:] = 1
    painted = paint(latent, image=picture, mask=mask, strength=0.75)
    assert torch.equal(painted[0, :, :, :8], picture[:, :, :8]) and not torch.equal(
        painted[0, :, :, 8:], picture[:, :, 8:]
    )
    back = paint(latent, image=picture, strength=0.0)
    assert (back - latent.decode(latent.encode(picture[None]))).abs().max() < 1e-5


def test_non_finite_numbers_stop_the_painting():
    broken = tiny.dit()
    with torch.no_grad():
        broken.network.out.linear.bias.fill_(math.nan)
    with pytest.raises(hwaga.errors.WorkError, match="after step 1 of 4"):
        paint(broken)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"label": 3}, "0 to 2"),
        ({"label": "stat"}, "did you mean 'star'"),
        ({"size": (16, 18)}, "nearest that work: 16 and 20"),
        ({"steps": 51}, "trained with 50"),
        ({"prompt": "a cat"}, "prompt= given to DiT"),
        ({"sampler": "flow-euller"}, "did you mean 'flow-euler'"),
        ({"noise": {"noise": torch.zeros(1, 4, 8, 8)}}, "shape"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(pixels, call, words):
    with pytest.raises(InputError) as error:
        paint(pixels, **call)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"network": {"conditioning": "adaLN"}}, "model.network.conditioning='adaLN'"),
        ({"network": {"in_channels": 4}}, "pixels have 3"),
        ({"network": {"out_channels": 6}}, "3 are needed"),
        ({"network": {"heads": 3}}, "heads=3 does not divide"),
        ({"process": {"kind": "flo"}}, "flo"),
        ({"guided_channels": 0}, "guided_channels"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(model, words):
    with pytest.raises(InputError) as error:
        tiny.dit(**model)
    assert words in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ public folders and files


def test_our_own_folder_gives_the_same_bits(latent, tmp_path):
    save(latent, tmp_path / "model")
    again = hwaga.load(tmp_path / "model", device="cpu", dtype="float32")
    assert torch.equal(paint(again, label=1), paint(latent, label=1))


def test_a_trained_latent_dit_goes_to_a_public_folder_and_back(tmp_path):
    """With the public layout's own numbers, the folder that other programs load paints the same."""
    network = {"frequency_shift": 1.0, "mlp_eps": 1e-5}
    model = filled(
        tiny.latent_dit(network=network, process={"timesteps": 50}, sampling={"sampler": "ddim", "clip": None})
    )
    hwaga.export(model, tmp_path / "folder")
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == "DiTPipeline" and index["id2label"]["2"] == "star"
    again = hwaga.load(tmp_path / "folder", device="cpu", dtype="float32")
    call = {"label": ["star", 0], "guidance_scale": 2.0}
    assert (paint(again, **call) - paint(model, **call)).abs().max() < 1e-6
    hwaga.export(again, tmp_path / "again")
    for file in (tmp_path / "folder").rglob("*"):
        if file.is_file():
            other = tmp_path / "again" / file.relative_to(tmp_path / "folder")
            assert file.read_bytes() == other.read_bytes(), file


def test_a_transformer_folder_alone_takes_an_autoencoder_beside_it(tmp_path):
    network = {"frequency_shift": 1.0, "mlp_eps": 1e-5}
    model = filled(tiny.latent_dit(network=network, sampling={"sampler": "ddim", "clip": None}))
    hwaga.export(model, tmp_path / "whole")
    alone = hwaga.load(tmp_path / "whole" / "transformer", device="cpu", dtype="float32")
    with pytest.raises(InputError, match="components="):
        paint(alone)
    with pytest.raises(InputError, match="came without"):
        alone.decode(torch.zeros(1, 4, 8, 8))
    given = {"autoencoder": tmp_path / "whole" / "vae"}
    both = hwaga.load(tmp_path / "whole" / "transformer", device="cpu", dtype="float32", components=given)
    whole = hwaga.load(tmp_path / "whole", device="cpu", dtype="float32")
    call = {"label": 1, "sampler": "ddim", "sampler_options": {"clip": None}}
    options = {"noise": {"noise": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}}
    assert both.about.size == whole.about.size == (16, 16)
    one = both.process.config.model_copy(update={"timesteps": 50})
    both.process = one.build()
    whole.process = one.build()
    assert torch.equal(paint(both, **call, **options), paint(whole, **call, **options))


def test_of_a_trainings_checkpoint_the_averaged_weights_are_taken_and_that_is_said(tmp_path):
    models = [filled(tiny.latent_dit(seed=s, network={"width": 64, "heads": 1, "time_scale": 1.0})) for s in (1, 2)]
    parts = []
    for k, model in enumerate(models):
        hwaga.export(model, tmp_path / f"DiT-{k}.safetensors", format="single")
        parts.append(load_file(tmp_path / f"DiT-{k}.safetensors"))
    torch.save(
        {"model": parts[0], "ema": parts[1], "opt": {}, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "DiT.pt"
    )
    with pytest.warns(UserWarning, match="ema was taken"):
        loaded = hwaga.load(tmp_path / "DiT.pt", device="cpu", dtype="float32")
    raw = hwaga.load(tmp_path / "DiT.pt", device="cpu", dtype="float32", weights="raw")
    for found, wanted in ((loaded, models[1]), (raw, models[0])):
        assert torch.equal(found.network.out.linear.weight, wanted.network.out.linear.weight)
    torch.save({"ema": parts[1]}, tmp_path / "DiT-ema.pt")
    with pytest.raises(InputError, match="holds ema weights alone"):
        hwaga.load(tmp_path / "DiT-ema.pt", device="cpu", dtype="float32", weights="raw")


def test_a_label_is_known_by_any_of_its_names(latent, monkeypatch):
    monkeypatch.setattr(latent.about, "classes", ("tench, Tinca tinca", "goldfish", "great white shark, white shark"))
    assert torch.equal(paint(latent, label="white shark"), paint(latent, label=2))
    with pytest.raises(InputError, match="did you mean"):
        paint(latent, label="white shrak")


@pytest.mark.parametrize("name", ["DiT-tiny", "SiT-tiny"])
def test_an_original_file_paints_with_an_autoencoder_given_beside_it(name, tmp_path):
    network = {"width": 64, "heads": 1}
    flow = name.startswith("SiT")
    model = filled(tiny.latent_dit(**({"process": {"kind": "flow"}} if flow else {}), network={
        **network, **({"time_scale": -1.0, "time_offset": 1.0} if flow else {"time_scale": 1.0}),
    }))  # fmt: skip
    hwaga.export(model, tmp_path / f"{name}.safetensors", format="single")
    save(tiny.vae_kl(), tmp_path / "codec")
    alone = hwaga.load(tmp_path / f"{name}.safetensors", device="cpu", dtype="float32")
    with pytest.raises(InputError, match="components="):
        paint(alone)
    whole = hwaga.load(
        tmp_path / f"{name}.safetensors", device="cpu", dtype="float32", components={"autoencoder": tmp_path / "codec"}
    )
    assert whole.about.size == (16, 16) and whole.config.guided_channels == 3
    assert whole.defaults().guidance_scale == 4.0
    call = {"sampler": "flow-euler" if flow else "ddim", "label": 1, "guidance_scale": 1.0}
    options = {} if flow else {"sampler_options": {"clip": None, "spacing": "leading"}}
    ours = paint(model, **call, **({} if flow else {"sampler_options": {"clip": None}}))
    if flow:
        assert (paint(whole, **call, **options) - ours).abs().max() < 1e-5
    else:  # a table of 1000 steps is the published one, the tiny one has 50
        assert paint(whole, **call, **options).shape == ours.shape
