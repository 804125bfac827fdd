"""StyleGAN as a system: how it learns, what it paints and edits, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
import truths

import hwaga
from hwaga.errors import InputError, Interrupted
from hwaga.objectives.style import perceptual_path_length
from hwaga.systems import stylegan_editing as editing
from hwaga.systems.stylegan import GrowingConfig, channels_for
from hwaga.training import Trainer, TrainingConfig
from hwaga.training.loop import StepDraw
from hwaga.training.memory import predict

GROWN = {"growing": {"steady": 2, "fading": 2, "start": 4}, "generator": {"style": "adain"}}
FORMS = [{}, {"generator": {"architecture": "resnet"}}, {"ada": {"start": 0.5}}, GROWN]


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, **call})


class InTurn:
    def at(self, step):
        place = torch.arange(step * 8, (step + 1) * 8).numpy()
        return place % 16, place // 16


def trainer(system, **config):
    full = TrainingConfig.model_validate({"steps": 40, "batch_size": 8, "dtype": "float32", **config})
    return Trainer(system.stages()[0], full, tiny.Pictures(16), InTurn())


@pytest.fixture(scope="module")
def model():
    system = tiny.stylegan()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        system.generator.mapping.w_avg.normal_(std=0.3, generator=g)
        for name, p in system.generator.named_parameters():
            if "noise_strength" in name:
                p.fill_(0.2)
    return system


# -------------------------------------------------------------------------------------------------------- how it learns


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradient_reaches_every_parameter(form):
    system = tiny.stylegan(**form)
    for network in system.networks.values():
        tiny.fill_zeros(network)
    for objective in system.stages()[0].objectives:
        for step in (1, 3, 7) if "growing" in form else (0,):  # all colours have their turn
            terms = objective.loss(tiny.batch(8), StepDraw(0, "adversarial", step, whole=8))
            sum(v for k, v in terms.items() if not k.startswith("_")).backward()
    dead = [
        f"{name}.{key}"
        for name, network in system.networks.items()
        for key, p in network.named_parameters()
        if p.grad is None or not p.grad.any()
    ]
    assert dead == []


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_resumed_training_is_the_uninterrupted_one_to_the_bit(tmp_path, form):
    """With the means of w, of signs and of path lengths, and with p."""
    rules = {"path_every": 2, "r1_every": 2, **form}
    if "ada" in form:
        rules["ada"] = {"interval": 2, "pictures": 200, "start": 0.2}
    kept = truths.resumes_to_the_bit(lambda seed: trainer(tiny.stylegan(seed=seed, **rules)), tmp_path, 6, 3)
    names = {key for tensors in kept.values() for key in tensors}
    assert any(key.endswith("w_avg") for key in names) and ("ada" not in form or any("signs" in key for key in names))


def test_each_network_wins_against_the_other_standing_still():
    system = tiny.stylegan(classes=(), mixing=0.0)
    batch, draw = tiny.batch(4, labels=False), StepDraw(0, "adversarial", 1, whole=4)
    for name, loss, term in (
        ("discriminator", system.telling_apart, "telling apart"), ("generator", system.adversarial, "adversarial"),
    ):  # fmt: skip
        optimizer, losses = torch.optim.Adam(system.networks[name].parameters(), 1e-2, betas=(0.0, 0.99)), []
        for _ in range(60):
            value = loss(batch, draw)[term]
            losses.append(value.item())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert losses[-1] < 0.05 * losses[0], name


def test_lazy_objectives_are_weighed_by_their_laziness_and_share_their_optimizer():
    work = trainer(tiny.stylegan(path_every=4, r1_every=16))
    assert work.optimizers["generator"].weights == {"generator": 1.0, "path": 4.0}
    assert work.optimizers["discriminator"].weights == {"discriminator": 1.0, "r1": 16.0}
    assert work.optimizers["discriminator"].adam.param_groups[0]["betas"] == (0.0, 0.99 ** (16 / 17))
    assert [o.name for o in work.due()] == ["generator", "discriminator", "path", "r1"]


def test_growing_follows_the_schedule_and_the_model_paints_at_its_size_all_along():
    schedule = GrowingConfig(steady=10, fading=5, start=8)
    assert [schedule.level(k, 3) for k in (0, 9, 10, 11, 15, 24, 26, 1000)] == [1, 1, 1, 1.2, 2, 2, 2.2, 3]
    system = tiny.stylegan(**GROWN)
    for step, size in ((0, 4), (3, 8), (100, 16)):
        system.adversarial(tiny.batch(8), StepDraw(0, "adversarial", step, whole=8))
        assert system._seen(tiny.batch(8).image).shape[-1] == size
        assert paint(system).shape == (1, 3, 16, 16)
    assert system.networks["discriminator"].level == 2


def test_memory_is_predicted_and_no_state_of_training_moves_by_it():
    system = tiny.stylegan(ada={"start": 0.3})
    before = [value.clone() for network in system.stages()[0].networks.values() for value in network.buffers()]
    found = predict(system.stages()[0], TrainingConfig(batch_size=8), lambda n: tiny.batch(n), dtype=torch.float32)
    assert found.activations > 0
    after = [value for network in system.stages()[0].networks.values() for value in network.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_published_sizes_have_the_published_widths():
    assert channels_for(32) == [512, 512, 512, 512]
    assert channels_for(256) == [512, 512, 512, 512, 256, 128, 64]
    assert channels_for(1024) == [512, 512, 512, 512, 512, 256, 128, 64, 32]


# -------------------------------------------------------------------------------------------------------- how it paints


def test_a_picture_does_not_depend_on_the_batch_it_is_painted_in(model, monkeypatch):
    for mode in ("const", "random", "none"):
        whole = paint(model, n=5, noise_mode=mode)
        monkeypatch.setattr(hwaga.systems.base, "PIXELS_A_BATCH", 2 * 16 * 16)
        assert (paint(model, n=5, noise_mode=mode) - whole).abs().max() < 1e-5
        monkeypatch.undo()
    assert not torch.equal(paint(model, noise_mode="const"), paint(model, noise_mode="random"))
    assert not torch.equal(paint(model, noise_mode="const"), paint(model, noise_mode="none"))


def test_truncation_0_is_the_mean_picture_and_1_is_as_trained(model):
    a, b = paint(model, seed=1, truncation=0), paint(model, seed=2, truncation=0.0)
    assert torch.equal(a, b) and not torch.equal(paint(model, seed=1), paint(model, seed=2))
    assert torch.equal(paint(model, truncation=1), paint(model))
    spared = paint(model, truncation=0.0, truncation_cutoff=0)
    assert (spared - paint(model)).abs().max() < 1e-6
    part = [paint(model, seed=k, truncation=0.0, truncation_cutoff=2) for k in (1, 2)]
    assert not torch.equal(*part)


def test_recorded_noise_is_replayed(model):
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    a = paint(model, n=2, label=[0, 1], noise={"noise": z}, seed=1)
    assert torch.equal(a, paint(model, n=2, label=[0, 1], noise={"noise": z}, seed=2))
    with torch.no_grad():
        plain = model.generator(z, torch.tensor([0, 1]))
    assert torch.allclose(a, (plain / 2 + 0.5).clamp(0, 1), atol=1e-6)


def test_it_is_saved_and_loaded_with_the_same_bits(model, tmp_path):
    folder = hwaga.export(model, tmp_path / "saved", format="hwaga")
    again = hwaga.load(folder, device="cpu", dtype="float32")
    assert torch.equal(paint(again, n=3, noise_mode="random"), paint(model, n=3, noise_mode="random"))
    assert again.about.classes == tiny.CLASSES


# ---------------------------------------------------------------------------------------------------------- how it edits


def test_layers_are_parted_as_in_the_paper():
    assert [list(editing.layers_of(g, 18)) for g in editing.GROUPS] == [[0, 1, 2, 3], [4, 5, 6, 7], list(range(8, 18))]
    for num_ws in (2, 4, 8, 10, 14, 16, 18):
        parts = [list(editing.layers_of(g, num_ws)) for g in editing.GROUPS]
        assert sum(parts, []) == list(range(num_ws)) == list(editing.layers_of("all", num_ws))


def test_mixing_paints_the_first_the_mixtures_and_the_second(model):
    row = paint(model, n=2, label=1, mix=9)
    assert row.shape == (2, 3, 16, 80)
    first, *mixed, last = row.split(16, dim=3)
    assert torch.allclose(first, paint(model, n=2, label=1), atol=1e-6)
    assert torch.allclose(last, paint(model, n=2, label=1, seed=9), atol=1e-6)
    assert all(not torch.equal(one, first) and not torch.equal(one, last) for one in mixed)


@pytest.mark.parametrize("space", ["w", "z"])
def test_interpolation_ends_at_both_paintings(model, space):
    row = paint(model, label=2, interpolate=4, to=8, space=space)
    first, _, _, last = row.split(16, dim=3)
    assert torch.allclose(first, paint(model, label=2), atol=1e-4)
    assert torch.allclose(last, paint(model, label=2, seed=8), atol=1e-4)


def test_projection_finds_the_w_of_what_was_painted(model):
    z, label = torch.randn(1, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([1])
    with torch.no_grad():
        target, start = (
            model.generator(z, label),
            model.generator.synthesis(editing._many_w(model, label.expand(1024)).mean(0).expand(1, 6, -1)),
        )
    noise = hwaga.samplers.noise.from_seed(0, [0])
    ws = editing.project(model, target, 150, noise=noise, label=label)
    found = model.generator.synthesis(ws)
    assert ws.shape == (1, 6, 8) and torch.equal(ws[:, 0], ws[:, 5]) and not ws.requires_grad
    assert (found - target).square().mean() < 0.02 * (start - target).square().mean()


def test_projection_says_where_it_stands_and_is_the_same_for_the_same_seed(model):
    target, steps = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)), []
    call = {"label": 1, "image": target, "project": 5}
    found = paint(model, **call, callback=lambda step: steps.append((step.index, step.total)))
    assert steps == [(k, 5) for k in range(5)]
    assert torch.equal(found, paint(model, **call)) and not torch.equal(found, paint(model, **call, seed=6))


def test_a_picture_of_another_aspect_is_fitted_and_said_so(model):
    with pytest.warns(UserWarning, match="20 x 32 pixels, another aspect"):
        paint(model, image=torch.rand(3, 20, 32), project=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paint(model, image=torch.rand(3, 32, 32), project=1)


def test_projection_can_be_stopped(model):
    def stop(step):
        if step.index == 2:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        paint(model, image=torch.rand(3, 16, 16), project=10, callback=stop)


def test_factorized_directions_are_orthonormal_and_the_first_changes_styles_most(model):
    along = editing.factorized(model, editing.layers_of("all", 6)).double()
    assert torch.allclose(along @ along.T, torch.eye(8, dtype=torch.float64), atol=1e-5)
    parts = dict(model.generator.synthesis.named_modules())
    weight = torch.cat([p.weight for n, p in parts.items() if n.endswith("affine")]).double()
    change = (weight @ along.T).norm(dim=0)
    assert (change.diff() <= 1e-9).all()
    other = torch.nn.functional.normalize(torch.randn(50, 8, dtype=torch.float64), dim=1)
    assert ((weight @ other.T).norm(dim=0) <= change[0] + 1e-9).all()


def test_a_direction_moves_a_painting_by_its_amount_and_only_in_its_layers(model):
    row = paint(model, direction=0, walk=3, amount=2.0)
    assert torch.allclose(row[..., 16:32], paint(model), atol=1e-6)
    assert torch.allclose(row[..., 32:], paint(model, direction=0, amount=2.0), atol=1e-6)
    coarse = editing._selected(torch.ones(6, 8), "coarse")
    assert coarse[:2].all() and not coarse[2:].any()
    assert not torch.equal(paint(model, direction=0, layers="fine"), paint(model, direction=0, layers="coarse"))


def test_a_direction_between_classes_leads_from_one_mean_to_the_other(model):
    unsaid = dict.fromkeys(("label", "steps", "sampler", "sampler_options", "guidance_scale"))
    request = model._request(1, None, 0, None, {**unsaid, "direction": "circle:star"})
    way = editing.direction(model, request)
    means = [editing._many_w(model, torch.full((1024,), k)).mean(0) for k in (0, 2)]
    assert torch.allclose(way[0], means[1] - means[0], atol=1e-5) and torch.equal(way[0], way[5])
    assert paint(model, direction="circle:star", label="circle").shape == (1, 3, 16, 16)


def test_a_direction_between_folders_of_pictures_is_that_of_their_projections(model, tmp_path, monkeypatch):
    for name, label in (("a", 0), ("b", 2)):
        (tmp_path / name).mkdir()
        model.sample(label=label, seed=1, progress=False)[0].save(tmp_path / name / "x.png")
    monkeypatch.setattr(editing, "PROJECTED", 5)
    both = f"{tmp_path / 'a'}:{tmp_path / 'b'}"
    assert paint(model, direction=both, amount=0.5).shape == (1, 3, 16, 16)
    assert not torch.equal(paint(model, direction=both), paint(model))


def test_a_projected_picture_is_edited_and_its_w_can_be_kept(model):
    target = paint(model, label=1, seed=3)
    ws = editing.project(
        model, target * 2 - 1, 5, noise=hwaga.samplers.noise.from_seed(5, [0]), label=torch.tensor([1])
    )
    assert ws.shape == (1, 6, 8)
    plain = paint(model, label=1, image=target[0], project=5)
    assert torch.allclose(plain, paint(model, w=ws), atol=1e-6)
    edited = paint(model, label=1, image=target[0], project=5, direction=1, amount=2.0)
    assert torch.allclose(edited, paint(model, label=1, w=ws, direction=1, amount=2.0), atol=1e-6)
    assert not torch.equal(edited, plain)
    higher = paint(model, label=1, image=target[0], project=5, space="w+")
    assert higher.shape == plain.shape


def test_path_lengths_in_w_and_z_are_measured_with_a_model(model):
    g = torch.Generator().manual_seed(0)
    first, second, t = torch.randn(4, 8, generator=g), torch.randn(4, 8, generator=g), torch.rand(4, generator=g)
    mapping = lambda z: model.generator.mapping(z, torch.zeros(4, dtype=torch.int64))  # noqa: E731
    draw = lambda w: model.generator.synthesis(w[:, None].expand(-1, 6, -1))  # noqa: E731
    for space in ("w", "z"):
        found = perceptual_path_length(
            mapping, draw, lambda x, y: (x - y).square().mean((1, 2, 3)), first, second, t, space=space, epsilon=1e-2
        )
        assert found.shape == (4,) and (found > 0).all()


# ----------------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"truncation": "much"}, "truncation='much'"),
        ({"truncation": float("nan")}, "truncation=nan"),
        ({"truncation": True}, "truncation=True"),
        ({"truncation_cutoff": 7}, "truncation_cutoff=7"),
        ({"truncation_cutoff": 1.5}, "truncation_cutoff=1.5"),
        ({"noise_mode": "loud"}, "noise_mode='loud'"),
        ({"size": 32}, "paints 16 x 16"),
        ({"size": 20}, "size"),
        ({"label": "triangle"}, "label='triangle'"),
        ({"label": 3}, "label=3"),
        ({"steps": 10}, "steps= given to StyleGAN"),
        ({"guidance_scale": 2.0}, "guidance_scale= given to StyleGAN"),
        ({"prompt": "a cat"}, "prompt= given to StyleGAN"),
        ({"psi": 0.5}, "psi"),
        ({"image": "cat.png"}, "without project="),
        ({"project": 10}, "without image="),
        ({"project": 0, "image": "cat.png"}, "project=0"),
        ({"project": 5, "image": "nowhere.png"}, "nowhere.png"),
        ({"mix": -1}, "mix=-1"),
        ({"mix": 1, "interpolate": 3}, "row of its own"),
        ({"interpolate": 1}, "interpolate=1"),
        ({"to": 3}, "without interpolate="),
        ({"amount": 2.0}, "without direction="),
        ({"space": "z"}, "space='z'"),
        ({"interpolate": 3, "space": "w+"}, "space='w+'"),
        ({"direction": 8}, "0 to 7"),
        ({"direction": "circle"}, "A:B"),
        ({"direction": "circle:moon"}, "'moon'"),
        ({"direction": 0, "layers": "upper"}, "layers='upper'"),
        ({"w": torch.zeros(7)}, "(7,)"),
        ({"w": torch.full((8,), float("inf"))}, "not finite"),
        ({"w": [0.0] * 8}, "list"),
        ({"noise": {"noise": torch.zeros(1, 9)}}, "shape"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(model, call, words):
    with pytest.raises(InputError) as error:
        paint(model, **call)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_section", "words"),
    [
        ({"generator": {"chanels": [8]}}, "model.generator"),
        ({"mixing": 2.0}, "model.mixing"),
        ({"ada": {"target": 0}}, "model.ada.target"),
        ({"ada": {"groups": ["flip"]}}, "model.ada.groups"),
        ({"growing": {"steady": 1, "fading": 0}}, "model.growing.fading"),
        ({"generator": {"style": "adain"}}, "architecture=plain"),
        ({"discriminator": {"channels": [8, 8]}}, "do not belong together"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(model_section, words):
    with pytest.raises(InputError) as error:
        tiny.stylegan(**model_section)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_data_of_another_size_is_refused():
    with pytest.raises(InputError, match="paints 16 x 16"):
        hwaga.systems.find("stylegan").create({"generator": {"channels": [8, 8, 8]}}, size=(24, 24))
