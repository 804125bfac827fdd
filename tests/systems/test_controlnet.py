"""ControlNet as a system: a locked base, several maps at once, training, public layouts, what it refuses."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hwaga
from hwaga import running
from hwaga.conditioning import control as maps
from hwaga.errors import InputError
from hwaga.formats import controlnet as public
from hwaga.saving import convert, save
from hwaga.systems import find
from hwaga.systems.controlnet import OTHER, ignored

NET = {"hint_channels": [8, 8]}
RANDOM = torch.Generator().manual_seed(3)
MAPS = torch.rand(2, 3, 16, 16, generator=RANDOM).round()


def create(seed=0, components=None, **model):
    """A ControlNet beside tiny.stable_diffusion, whose weights are not zero where a base begins so."""
    base = tiny.stable_diffusion()
    tiny.fill_zeros(base.network)
    parts = {**base.networks, **(components or {})}
    config = {"process": {"timesteps": 50}, "control": {"kind": "canny"}, **model, "controlnet": NET}
    return find("controlnet").create(config, size=(16, 16), seed=seed, components=parts), base


def filled(seed=0, **model):
    system, base = create(seed, **model)
    tiny.fill_zeros(system.networks["controlnet"], seed)
    return system, base


def near(a, b):
    """The same but for rounding: a loaded network may lie otherwise in memory."""
    return bool((a - b).abs().max() < 1e-5)


def paint(model, **call):
    given = {"output": "tensor", "progress": False, "seed": 5, "steps": 4, "sampler": "ddim", "prompt": "a star"}
    return model.sample(**{**given, **call})


@pytest.fixture(scope="module")
def pair():
    return filled()


@pytest.fixture(scope="module")
def two():
    system, base = filled()
    other = filled(seed=7)[0].networks["controlnet"]
    return find("controlnet").over(
        base, {"controlnet": system.networks["controlnet"], "controlnet_1": other}, {}
    ), system


# ------------------------------------------------------------------------------------------------------ the locked base


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_before_training_it_paints_what_its_base_paints_bit_for_bit(guidance):
    system, base = create()
    assert torch.equal(paint(system, control=MAPS[0], guidance_scale=guidance), paint(base, guidance_scale=guidance))


@pytest.mark.parametrize("how", [{"control_scale": 0}, {"control_start": 0.99, "control_end": 1.0}])
def test_a_control_without_influence_leaves_the_base_bit_for_bit(how, pair):
    system, base = pair
    assert torch.equal(paint(system, control=MAPS[0], **how), paint(base))
    assert not torch.equal(paint(system, control=MAPS[0]), paint(base))


def test_a_weight_of_zero_asks_the_net_nothing(pair, monkeypatch):
    system, _ = pair
    asked = []
    net = system.networks["controlnet"]
    monkeypatch.setattr(net, "down", lambda *a: asked.append(1) or type(net).down(net, *a))
    paint(system, control=MAPS[0], control_scale=0)
    assert not asked
    paint(system, control=MAPS[0])
    assert len(asked) == 4  # one a step


def test_the_hint_is_made_once_a_call(pair, monkeypatch):
    system, _ = pair
    net, made = system.networks["controlnet"], []
    hint = net.hint
    monkeypatch.setattr(net, "hint", lambda control: made.append(1) or hint(control))
    paint(system, control=MAPS[0], guidance_scale=3.0)
    assert len(made) == 1


def test_training_moves_the_control_alone_and_leaves_the_base_bit_for_bit():
    system, _ = create()
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in system.networks.items()}
    (stage,) = system.stages()
    assert set(stage.networks) == {"controlnet"} and stage.objectives[0].networks == ("controlnet",)
    optimizer = torch.optim.AdamW(system.networks["controlnet"].parameters(), 1e-3)
    for step in range(3):
        sum(system.loss(batch(), tiny.Draw(step)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, network in system.networks.items():
        same = all(torch.equal(value, before[name][key]) for key, value in network.state_dict().items())
        assert same == (name != "controlnet"), name
        assert name == "controlnet" or all(p.grad is None for p in network.parameters())


# ------------------------------------------------------------------------------------------------------ how it learns


def batch(n=4, seed=0):
    """Pictures of a square somewhere, with captions."""
    plain = tiny.captions(n, seed=seed)
    image = torch.full_like(plain.image, 1.0)
    for i in range(n):
        image[i, :, 2 + i : 8 + i, 3 : 9 + i] = -0.5
    return replace(plain, image=image)


def test_gradient_of_the_loss_reaches_every_parameter():
    system, _ = filled(text_dropout=0.5)
    system.stages()
    sum(system.loss(batch(8), tiny.Draw()).values()).backward()
    net = system.networks["controlnet"]
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_learns_one_batch_by_its_map_alone_as_far_as_its_locked_base_lets_it():
    """Fixed noise and times, no words: a base of random weights, through which all must go, lets the loss fall by a third."""
    system, _ = create(text_dropout=1.0)
    system.stages()
    optimizer, losses = torch.optim.AdamW(system.networks["controlnet"].parameters(), 1e-2), []
    for _ in range(40):
        terms = system.loss(batch(2), tiny.Draw(0))
        sum(terms.values()).backward()
        losses.append(terms["denoising"].item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_the_maps_of_training_are_those_of_the_kind_made_once_or_at_each_step():
    system, _ = create()
    given = batch()
    made = system.maps(given)
    assert torch.equal(made[1], maps.make("canny", (given.image[1] / 2 + 0.5).clamp(0, 1))) and made.any()
    kept = system.precomputed()["control"]
    assert kept.shape == (1, 16, 16)
    once = replace(given, extra={"control": kept.compute(given.image)})
    assert torch.equal(system.maps(once), made)
    assert kept.key() != create(control={"kind": "canny", "options": {"low": 50}})[0].precomputed()["control"].key()


def test_the_drawings_own_lines_are_white_on_black():
    system, _ = create(control={"kind": "lines"})
    assert system.data_extras() == ("line_art",) and "control" not in system.precomputed()
    lines = torch.ones(4, 3, 16, 16)
    lines[:, :, 5] = 0
    assert torch.equal(system.maps(replace(batch(), extra={"line_art": lines})), 1 - lines)


def test_held_out_tells_what_another_pictures_map_does(pair):
    system, _ = pair
    found = system.held_out(batch(), tiny.Draw())
    assert set(found) >= {"loss", OTHER, "loss t 0.0-0.2"} and found[OTHER].shape == (4,)
    fresh, _ = create()
    one = fresh.held_out(batch(), Fixed())
    assert torch.equal(one["loss"], one[OTHER])  # at first no map is looked at


class Fixed(tiny.Draw):
    """The same draw for the same name, as training has it."""

    def normal(self, name, shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))

    def uniform(self, name, shape):
        return torch.rand(shape, generator=torch.Generator().manual_seed(len(name)))

    def integers(self, name, high, shape):
        return torch.randint(high, shape, generator=torch.Generator().manual_seed(len(name)))


def test_a_control_that_is_not_looked_at_raises_an_alarm():
    row = lambda given, other: {"held_out.loss": given, f"held_out.{OTHER}": other}  # noqa: E731
    assert ignored([]) is None and ignored([row(0.5, 0.5)]) is None  # it is early
    assert "not looked at" in ignored([row(0.5, 0.5)] * 3)
    assert ignored([row(0.5, 0.5), row(0.5, 0.5), row(0.4, 0.45)]) is None
    assert "not followed" in ignored([{"score.control_given": 0.3, "score.control_floor": 0.31}])
    assert ignored([{"score.control_given": 0.5, "score.control_floor": 0.31}]) is None


def test_the_grid_shows_each_map_beside_its_painting(pair):
    system, _ = pair
    shown = system.shown(batch(2))
    assert shown.shape == (4, 3, 16, 16)
    assert torch.equal(shown[0], system.maps(batch(2))[0] * 2 - 1)
    assert system.preview(2).shape == (2, 3, 16, 16)  # where no held-out pictures are, nothing is asked for


RUN = {
    "system": "controlnet",
    "model": {"control": {"kind": "silhouette"}, "controlnet": {"hint_channels": [8, 8]}, "process": {"timesteps": 50},
              "sampling": {"sampler": "ddim", "steps": 2}},
    "data": {"source": "FOLDER", "size": 16, "flip": True, "held_out": 0.25},
    "training": {
        "steps": 4, "batch_size": 4, "checkpoint_every": 2, "dtype": "float32", "sample_every": 4, "preview": 2,
        "held_out_pictures": 4, "held_out_every": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, one in enumerate(batch(16).image):
        pixels = ((one / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(np.roll(pixels, i, axis=1)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red square")
    return folder


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    base = tiny.stable_diffusion()
    tiny.fill_zeros(base.network)
    return save(base, tmp_path_factory.mktemp("base") / "sd")


def recipe(source, base_folder):
    parts = {name: str(base_folder) for name in ("network", "autoencoder", "text_encoder")}
    return {**RUN, "data": {**RUN["data"], "source": str(source)}, "components": parts}


def test_a_resumed_run_equals_the_uninterrupted_and_the_base_is_what_it_was(source, base_folder, tmp_path):
    full = recipe(source, base_folder)
    whole = running.train(full, out=tmp_path / "whole", progress=False)
    part = running.train(full, out=tmp_path / "part", overrides={"training.steps": 2}, progress=False)
    again = running.resume(part.folder, {"training.steps": 4}, progress=False)
    weights = [load_file(run.folder / "model" / "controlnet" / "model.safetensors") for run in (whole, again)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    before = load_file(base_folder / "network" / "model.safetensors")
    after = load_file(whole.folder / "model" / "network" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert (whole.folder / "samples" / "step-4.png").is_file()
    model = again.load(device="cpu")
    assert paint(model, control=MAPS[0], steps=2).shape == (1, 3, 16, 16)
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert any(f"held_out.{OTHER}" in row for row in rows)


def test_the_plan_tells_what_training_takes(source, base_folder):
    plan = running.plan(recipe(source, base_folder), timed=False)
    (stage,) = plan.stages
    assert list(plan.parameters) == ["controlnet"] and stage.memory.total > 0


def test_following_is_measured_against_a_floor_and_a_ceiling(source, base_folder, pair):
    system, _ = pair
    found = hwaga.evaluate(
        system, str(source), split="train", n=6, metrics=("control",), sampling={"steps": 2, "sampler": "ddim"}
    )
    assert list(found.values)[0] == "control_lost"  # the lower, the better: `best/` goes by it
    assert {"control", "control_given", "control_floor", "control_ceiling"} <= set(found.values)
    assert abs(found.values["control_lost"] + found.values["control"] - 1) < 1e-9
    assert found.card["control"]["measure"] == "edges"
    by_call = hwaga.evaluate(
        system, str(source), split="train", n=4, metrics=("control",),
        sampling={"steps": 2, "sampler": "ddim", "control_kind": "silhouette"},
    )  # fmt: skip
    assert by_call.card["control"]["measure"] == "silhouette"
    for metrics, painter, words in (
        (("control",), tiny.dit(), "takes none"),
        (("clip_score",), system, "measure its base"),
    ):
        with pytest.raises(InputError, match=words):
            hwaga.evaluate(painter, str(source), metrics=metrics, n=2)


# ------------------------------------------------------------------------------------------------------ how it paints


def test_pictures_do_not_depend_on_how_many_are_painted_at_once(pair, monkeypatch):
    system, _ = pair
    whole = paint(system, control=MAPS[0], n=3, guidance_scale=3.0)
    monkeypatch.setattr("hwaga.systems.base.PIXELS_A_BATCH", 16 * 16)
    parts = paint(system, control=MAPS[0], n=3, guidance_scale=3.0)
    assert (whole - parts).abs().max() < 1e-4


def test_each_picture_may_have_its_own_map(pair):
    system, _ = pair
    both = paint(system, control=MAPS, prompt=["a star", "a star"])
    assert not torch.equal(both[0], both[1])
    assert (both[0] - paint(system, control=MAPS[0])[0]).abs().max() < 1e-4


def test_what_several_add_is_summed(two):
    system, one = two
    both = paint(system, control=[MAPS[0], MAPS[1]], control_scale=[1.0, 0.0])
    assert torch.equal(both, paint(one, control=MAPS[0]))
    other = paint(system, control=[MAPS[0], MAPS[1]])
    assert not torch.equal(other, both)
    assert torch.equal(other, paint(system, control=[MAPS[0], MAPS[1]], control_scale=1.0))


def test_a_control_speaks_in_its_share_of_the_steps(pair):
    """With 4 steps and an end of 0.5 the first two are controlled: as a walk that changes its model after two."""
    system, base = pair
    seen = []
    compute = type(system).residuals

    def watched(self, x, time, hints, scales, *rest):
        seen.append(bool(scales.any()))
        return compute(self, x, time, hints, scales, *rest)

    type(system).residuals = watched
    try:
        paint(system, control=MAPS[0], control_end=0.5)
        assert seen == [True, True, False, False]
        seen.clear()
        paint(system, control=MAPS[0], control_start=0.3)
        assert seen == [False, False, True, True]
        seen.clear()
        paint(system, control=MAPS[0], control_start=0.5, image=MAPS[1], strength=0.5)
        assert seen == [False, True]  # of the two steps that are run
    finally:
        type(system).residuals = compute


def test_guess_mode_controls_the_conditional_branch_alone(pair):
    system, _ = pair
    rows = []
    compute = type(system).residuals

    def watched(self, x, time, hints, scales, guess, told):
        rows.append((scales[:, 0].tolist(), guess))
        return compute(self, x, time, hints, scales, guess, told)

    type(system).residuals = watched
    try:
        guessed = paint(system, control=MAPS[0], guess_mode=True, guidance_scale=3.0)
        assert rows[0] == ([1.0, 0.0], True)
        plain = paint(system, control=MAPS[0], guidance_scale=3.0)
        assert rows[-1] == ([1.0, 1.0], False)
    finally:
        type(system).residuals = compute
    assert not torch.equal(guessed, plain)


def test_a_map_is_made_of_a_picture_by_its_kind(pair):
    system, _ = pair
    image = batch().image[1] / 2 + 0.5
    by_kind = paint(system, control=image, control_kind="canny", control_options={"low": 50})
    assert torch.equal(by_kind, paint(system, control=maps.make("canny", image, low=50)))


def test_a_map_of_another_size_is_brought_to_the_calls(pair):
    system, _ = pair
    large = torch.nn.functional.interpolate(MAPS[:1], scale_factor=2.0, mode="nearest")
    assert paint(system, control=large).shape == (1, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another aspect
        assert paint(system, control=large, size=(16, 24)).shape == (1, 3, 16, 24)


def test_from_a_picture_and_with_a_mask(pair):
    system, _ = pair
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    image = batch().image[0] / 2 + 0.5
    painted = paint(system, control=MAPS[0], image=image, mask=mask, strength=0.8)
    assert torch.equal(painted[0][:, :4], image[:, :4])


def test_a_region_painted_by_itself_has_its_part_of_the_map(pair):
    """Where the mask with its margin is the whole picture, nothing is cut; elsewhere only the map around the mask counts."""
    system, _ = pair
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask, control = torch.zeros(32, 32), torch.zeros(3, 32, 32)
    mask[4:12, 4:12] = 1
    control[:, 6:10] = 1
    call = {"image": image, "mask": mask, "masked_margin": 4, "strength": 1.0}
    here = paint(system, control=control, **call)
    far = control.clone()
    far[:, 20:] = 1
    assert torch.equal(here, paint(system, control=far, **call))
    assert not torch.equal(here, paint(system, control=torch.zeros(3, 32, 32), **call))
    large = paint(system, control=MAPS[0], second_size=(24, 24))
    assert large.shape == (1, 3, 24, 24)


REFUSED = [
    ({}, ("control= is needed", "control_kind=")),
    ({"control": [MAPS[0], MAPS[1]]}, ("2 maps", "1 ControlNets")),
    ({"control": "nowhere.png"}, ("nowhere.png", "no such file")),
    ({"control": MAPS[0] * 2}, ("outside [0, 1]",)),
    ({"control": torch.zeros(1, 16, 16)}, ("(3, h, w)",)),
    ({"control": MAPS[0], "control_scale": [1.0, 1.0]}, ("control_scale= has 2 values", "1 ControlNets")),
    ({"control": MAPS[0], "control_scale": "much"}, ("control_scale='much'",)),
    ({"control": MAPS[0], "control_start": 1.5}, ("control_start=1.5", "0 to 1")),
    ({"control": MAPS[0], "control_start": 0.6, "control_end": 0.5}, ("not before control_end=0.5",)),
    ({"control": MAPS[0], "guess_mode": 1}, ("guess_mode=1",)),
    ({"control": MAPS[0], "control_kind": "cany"}, ("cany", "canny")),
    ({"control": MAPS[0], "control_kind": "pose"}, ("keypoints=",)),
    ({"control": MAPS[0], "control_options": {"low": 3}}, ("name the kind",)),
    ({"control": MAPS[0], "control_kind": "canny", "control_options": {"lo": 3}}, ("lo", "low")),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_cannot_be_asked_is_refused_in_one_sentence(call, words, pair):
    with pytest.raises(InputError) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paint(pair[0], **call)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_two_nets_need_two_maps(two):
    with pytest.raises(InputError, match="1 maps, but this model has 2 ControlNets"):
        paint(two[0], control=MAPS[0])


def test_a_base_of_another_process_is_refused(source, base_folder):
    full = recipe(source, base_folder)
    with pytest.raises(InputError, match="components.network: its process has timesteps=50, the recipe's 40"):
        running.plan(full, overrides={"model.process.timesteps": 40}, timed=False)


def test_a_recipe_cannot_ask_for_a_kind_that_needs_more_than_pictures():
    with pytest.raises(InputError, match="kind='pose' cannot be made of training pictures alone"):
        create(control={"kind": "pose"})


# ------------------------------------------------------------------------------------------------- folders and components


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """A ControlNet's public folder."""
    place = tmp_path_factory.mktemp("public") / "controlnet"
    public.write_folder(place, filled()[0].networks["controlnet"], {})
    return place


def test_a_stable_diffusion_with_a_controlnet_as_component_is_controlled(base_folder, part, pair):
    model = hwaga.load(base_folder, device="cpu", components={"controlnet": part})
    assert model.name == "controlnet" and "network" in model.networks
    assert near(paint(model, control=MAPS[0]), paint(pair[0], control=MAPS[0]))
    two = hwaga.load(base_folder, device="cpu", components={"controlnet": part, "controlnet_1": part})
    assert list(two.nets) == ["controlnet", "controlnet_1"]
    swapped = hwaga.load(base_folder, device="cpu", components={"controlnet": part})
    swapped.take("controlnet", filled(seed=7)[0].networks["controlnet"], "here")
    assert not torch.equal(paint(swapped, control=MAPS[0]), paint(model, control=MAPS[0]))


def test_a_saved_model_comes_back_with_the_same_bits(two, tmp_path):
    system, _ = two
    save(system, tmp_path / "saved")
    again, once_more = (hwaga.load(tmp_path / "saved", device="cpu", dtype="float32") for _ in range(2))
    for name, network in again.networks.items():
        own = system.networks[name].state_dict()
        assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    both = [paint(model, control=[MAPS[0], MAPS[1]]) for model in (again, once_more, system)]
    assert torch.equal(both[0], both[1]) and near(both[0], both[2])


def test_weights_that_are_given_away_name_the_base_and_do_not_contain_it(source, base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hwaga.loading.SHIPPED", tmp_path / "shipped")
    place = tmp_path / "shipped" / "openmoji" / "stable-diffusion"
    save(hwaga.load(base_folder, device="cpu"), place, dtype=torch.float16)
    full = recipe(source, base_folder)
    full = {**full, "components": dict.fromkeys(full["components"], "openmoji/stable-diffusion")}
    run = running.train(full, out=tmp_path / "run", overrides={"training.steps": 2}, progress=False)
    convert(run.folder, tmp_path / "given", "hwaga", dtype="float16")
    card = json.loads((tmp_path / "given" / "model.json").read_text())
    assert card["components"]["network"]["source"] == "openmoji/stable-diffusion"
    assert sorted(f.name for f in (tmp_path / "given").iterdir() if f.is_dir()) == ["controlnet"]
    found = hwaga.load(tmp_path / "given", device="cpu", dtype="float32")
    assert paint(found, control=MAPS[0], steps=2).shape == (1, 3, 16, 16)


def test_a_file_of_the_first_release_holds_the_base_and_its_controlnet(tmp_path):
    """It paints the same, and is written again with the same names and bits."""
    shape = {"channels": [32, 64], "heads": [8, 8], "groups": 32}  # what a file does not say is as published
    base = tiny.stable_diffusion(network=shape)
    tiny.fill_zeros(base.network)
    config = {"process": {"timesteps": 50}, "controlnet": NET}
    system = find("controlnet").create(config, size=(16, 16), components=base.networks)
    tiny.fill_zeros(system.networks["controlnet"])
    hwaga.export(base, tmp_path / "base.safetensors", format="single")
    with safe_open(tmp_path / "base.safetensors", "pt") as file:
        said = file.metadata()
    whole = load_file(tmp_path / "base.safetensors") | public.file_tensors(system.networks["controlnet"], {})
    save_file(whole, tmp_path / "whole.safetensors", said)
    save(base, tmp_path / "base")
    words = {"tokenizer": tmp_path / "base" / "text_encoder"}
    model = hwaga.load(tmp_path / "whole.safetensors", device="cpu", components=words)
    assert model.name == "controlnet"
    assert near(paint(model, control=MAPS[0], guidance_scale=2.0), paint(system, control=MAPS[0], guidance_scale=2.0))
    hwaga.export(model, tmp_path / "again.safetensors", format="single")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_width": 24}, ("another model", "texts of width 24", "16")),
        ({"channels": (8, 24)}, ("another model", "(8, 24)", "(8, 16)")),
        ({"blocks": 2}, ("another model", "blocks a level: 2")),
    ],
)
def test_a_controlnet_for_another_model_is_refused_by_its_sizes(change, words, base_folder, tmp_path):
    config = create()[0].config.controlnet.model_copy(update=change)
    net = config.build()
    net.initialise(torch.Generator().manual_seed(0))
    public.write_folder(tmp_path / "other", net, {})
    with pytest.raises(InputError) as error:
        hwaga.load(base_folder, device="cpu", components={"controlnet": tmp_path / "other"})
    assert all(word in str(error.value) for word in words)


def test_what_is_no_controlnet_cannot_be_one(base_folder):
    with pytest.raises(InputError, match="it has no controlnet"):
        hwaga.load(base_folder, device="cpu", components={"controlnet": base_folder})
    with pytest.raises(InputError, match="controlnet"):
        hwaga.load(base_folder, device="cpu", components={"controlnets": base_folder})


def test_systems_without_control_name_those_that_have_it():
    with pytest.raises(InputError, match="systems that take control=: .*controlnet"):
        paint(tiny.stable_diffusion(), control=MAPS[0])


@pytest.mark.parity
def test_the_public_pipeline_opens_what_was_exported_and_paints_the_same(two, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    system, one = two
    hwaga.export(system, tmp_path / "two", format="diffusers")
    index = json.loads((tmp_path / "two" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionControlNetPipeline"
    assert index["controlnet"] == ["diffusers", "MultiControlNetModel"]
    again = hwaga.load(tmp_path / "two", device="cpu", dtype="float32")
    both = [paint(model, control=[MAPS[0], MAPS[1]], guidance_scale=2.0) for model in (again, system)]
    assert (both[0] - both[1]).abs().max() < 1e-4
    nets = [
        diffusers.ControlNetModel.from_pretrained(tmp_path / "two" / name) for name in ("controlnet", "controlnet_1")
    ]
    assert all(
        torch.equal(value, mine[name])
        for net, mine in zip(nets, (n.state_dict() for n in system.nets.values()), strict=True)
        for name, value in net.state_dict().items()
    )
    hwaga.export(one, tmp_path / "one", format="diffusers")
    assert json.loads((tmp_path / "one" / "model_index.json").read_text())["controlnet"] == [
        "diffusers",
        "ControlNetModel",
    ]


CALLS = {
    "guided": ({}, {"guidance_scale": 3.0}),
    "guess": ({"guess_mode": True}, {"guidance_scale": 3.0}),
    "guess unguided": ({"guess_mode": True}, {"guidance_scale": 1.0}),
    "start and end": ({"control_guidance_start": 0.2, "control_guidance_end": 0.6}, {"guidance_scale": 3.0}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    base = tiny.stable_diffusion(process={"timesteps": 1000, "schedule": "scaled-linear"})
    tiny.fill_zeros(base.network)
    config = {"process": base.config.process.model_dump(mode="json"), "controlnet": NET}
    system = find("controlnet").create(config, size=(16, 16), components=base.networks)
    tiny.fill_zeros(system.networks["controlnet"])
    return hwaga.export(system, tmp_path_factory.mktemp("pipe") / "model", format="diffusers")


@pytest.mark.parity
@pytest.mark.parametrize("kind", CALLS)
def test_it_paints_what_the_public_pipeline_paints(kind, exported):
    diffusers = pytest.importorskip("diffusers")
    theirs, both = CALLS[kind]
    names = {"control_guidance_start": "control_start", "control_guidance_end": "control_end"}
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(exported, safety_checker=None)
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        image = Image.fromarray((MAPS[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
        peer = pipe(
            "a star",
            image=image,
            num_inference_steps=5,
            height=16,
            width=16,
            latents=noise,
            output_type="pt",
            **theirs,
            **both,
        ).images
    model = hwaga.load(exported, device="cpu", dtype="float32")
    said = {names.get(name, name): value for name, value in theirs.items()}
    ours = paint(model, control=MAPS[0], steps=5, noise={"noise": noise}, **said, **both)
    assert (ours - peer).abs().max() < 1e-4
