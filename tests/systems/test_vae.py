"""VAE as a system: what it learns, what it paints, what it refuses."""

import math

import pytest
import tiny
import torch
import truths

from hwaga import running
from hwaga.errors import InputError, WorkError
from hwaga.interfaces import Batch
from hwaga.objectives import elbo
from hwaga.training.metrics import read_rows

ADVERSARY = {"network": {"width": 8, "layers": 1, "norm": "none"}, "begins": 10}


def filled(model):
    tiny.fill_zeros(model.autoencoder)
    return model


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, **call})


def picture(n=1, seed=0):
    return torch.rand((n, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vector():
    return filled(tiny.vae())


@pytest.fixture(scope="module")
def latent_map():
    return filled(tiny.vae_kl())


# ------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "discretised-logistic", "bernoulli"])
def test_the_loss_is_the_negative_bound_a_number(kind):
    model = filled(tiny.vae(labels=False, likelihood={"kind": kind, "deviation": 0.3}))
    batch, draw = tiny.batch(labels=False), tiny.Draw()
    terms = model.loss(batch, draw)
    q = model.autoencoder.posterior(batch.image)
    z = q.sample(tiny.Draw().normal("posterior_noise", tuple(q.mean.shape)))
    nats = elbo.surprise(kind, batch.image, model.autoencoder.decoded(z), model.log_deviation).flatten(1).sum(1)
    prior, own = elbo.log_normal(z, torch.zeros_like(z), torch.zeros_like(z)), elbo.kl_to_prior(*q).sum(1)
    assert torch.allclose(terms["reconstruction"] * 768, nats.mean(), rtol=1e-5) and prior.shape == own.shape
    assert torch.allclose(terms["kl"] * 768, own.mean(), rtol=1e-5)
    assert terms["_active_units"] <= 8 and torch.allclose(terms["_kl_a_dimension"] * 8, own.mean(), rtol=1e-5)


def test_beta_annealing_and_free_bits_weigh_the_kl():
    batch, found = tiny.batch(labels=False), {}
    for name, choice, step in (
        ("plain", {}, 0), ("beta", {"beta": 4.0}, 0), ("half way", {"annealing": {"steps": 10}}, 5),
        ("free", {"free_bits": 100.0}, 0),
    ):  # fmt: skip
        model = filled(tiny.vae(labels=False, **choice))
        found[name] = model.loss(batch, tiny.Draw(step=step))["kl"].item()
        assert model.stages()[0].batch_statistics == (name == "free")
    assert found["beta"] == pytest.approx(4 * found["plain"]) and found["half way"] == pytest.approx(found["plain"] / 2)
    assert found["free"] == pytest.approx(8 * 100 / 768)


def overfitted(model, batch, steps=160, rate=1e-2):
    optimizer = torch.optim.AdamW([p for n in model.networks.values() for p in n.parameters()], rate)
    losses = []
    for _ in range(steps):
        loss = sum(v for k, v in model.loss(batch, tiny.Draw(0)).items() if not k.startswith("_"))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("make", [tiny.vae, tiny.vae_kl])
def test_overfits_one_batch(make):
    """Squared error on fixed draws falls below 5 % of the first."""
    quiet = {"likelihood": {"kind": "gaussian", "deviation": 1.0}, "beta": 1e-4}
    if make is tiny.vae:
        quiet |= {"network": {"channels": (16, 32)}}
    model, batch = make(**quiet), tiny.batch(2)
    constant = 0.5 * math.log(2 * math.pi)
    losses = overfitted(model, batch)
    assert losses[-1] - constant < 0.05 * (losses[0] - constant)


def test_gradient_reaches_every_parameter_but_the_discriminators():
    model = filled(tiny.vae_kl(adversary={**ADVERSARY, "begins": 0}))
    sum(v for k, v in model.loss(tiny.batch(), tiny.Draw()).items() if not k.startswith("_")).backward()
    for name in ("autoencoder", "likelihood"):
        assert [n for n, p in model.networks[name].named_parameters() if p.grad is None or not p.grad.any()] == []
    model.networks["discriminator"].zero_grad()
    model.autoencoder.zero_grad()
    model.judge(tiny.batch(), tiny.Draw())["judging"].backward()
    assert all(p.grad is not None for p in model.networks["discriminator"].parameters())
    assert all(p.grad is None for p in model.autoencoder.parameters())


def test_the_adversary_comes_late_and_is_as_strong_as_reconstruction():
    model, batch = filled(tiny.vae_kl(adversary={**ADVERSARY, "weight": 1.0})), tiny.batch()
    assert "adversary" not in model.loss(batch, tiny.Draw(step=9))
    (stage,) = model.stages()
    assert [o.begins for o in stage.objectives] == [0, 10] and stage.game and stage.batch_statistics
    terms = model.loss(batch, tiny.Draw(step=10))
    layer = model.autoencoder.last_layer
    pulls = [
        torch.autograd.grad(terms[name], layer, retain_graph=True)[0].norm() for name in ("reconstruction", "adversary")
    ]
    assert pulls[0].item() == pytest.approx(pulls[1].item(), rel=1e-2)


def test_hidden_labels_train_the_null_label_and_it_stands_for_all():
    model = filled(tiny.vae(label_dropout=1.0))
    sum(v for k, v in model.loss(tiny.batch(), tiny.Draw()).items() if not k.startswith("_")).backward()
    rows = model.autoencoder.label_embedding.weight.grad.abs().sum(1)
    assert rows[3] > 0 and (rows[:3] == 0).all()
    x = picture(2)
    assert not torch.equal(
        paint(model, reconstruct=True, image=list(x), label=0), paint(model, reconstruct=True, image=list(x))
    )
    assert torch.equal(model.decode(model.encode(x)), paint(model, reconstruct=True, image=list(x)))


@pytest.mark.parametrize("scaling", ["whole", "channel"])
def test_measured_latents_have_deviation_one(scaling):
    model = filled(tiny.vae_kl(scaling=scaling, scaling_pictures=24))
    batches = [tiny.batch(8, seed=seed) for seed in range(3)]
    used = []
    measured = model.stages()[0].measures(used.append(b) or b for b in [*batches, *batches])
    assert len(used) == 3  # as many as are asked for
    for name, value in measured["autoencoder"].items():
        getattr(model.autoencoder, name).copy_(value)
    latents = torch.cat([model.encode(b.image / 2 + 0.5) for b in batches])
    each = latents.transpose(0, 1).flatten(1)
    spread = each.std(1) if scaling == "channel" else each.std()
    assert torch.allclose(spread, torch.ones_like(spread), atol=1e-3) and latents.mean().abs() < 1e-3


def test_a_plain_autoencoder_has_no_kl_and_its_draws_are_scaled_to_its_latents():
    model = filled(tiny.vae(labels=False, posterior="none", scaling="channel"))
    assert not model.config.network.double_z
    terms = model.loss(tiny.batch(labels=False), tiny.Draw())
    assert set(terms) == {"reconstruction"}
    measured = model.stages()[0].measures(iter([tiny.batch(64, labels=False)]))["autoencoder"]
    model.autoencoder.scale.copy_(measured["scale"])
    model.autoencoder.shift.copy_(measured["shift"])
    z = model.autoencoder.unscaled(torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)))
    own = model.autoencoder.posterior(tiny.batch(64).image).mean
    assert torch.allclose(z.std(0), own.std(0), rtol=0.06) and (z.mean(0) - own.mean(0)).abs().max() < 0.1 * own.std()


def test_held_out_losses_are_those_of_each_picture():
    model, batch = filled(tiny.vae()), tiny.batch(6)
    found = model.held_out(batch, tiny.Draw())
    assert all(value.shape == (6,) for value in found.values())
    assert torch.allclose(found["loss"], found["reconstruction"] + found["kl"])


RECIPE = {
    "system": "vae",
    "data": {"source": "digits", "size": 8, "label": "none"},
    "model": {
        "network": {"kind": "map", "channels": [8, 16], "groups": 4, "blocks": 1},
        "likelihood": {"kind": "laplace", "learned": True},
        "beta": 1e-6,
        "scaling": "whole",
        "scaling_pictures": 128,
        "adversary": {"network": {"width": 8, "layers": 1, "norm": "group"}, "begins": 4},
    },
    "training": {
        "steps": 10, "batch_size": 8, "checkpoint_every": 6, "log_every": 3, "held_out_pictures": 16, "preview": 4,
        "threads": 1, "learning_rate": 3e-3, "ema": {"half_lives": [100]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return running.train(RECIPE, out=tmp_path_factory.mktemp("runs") / "whole", progress=False)


def test_a_trained_autoencoder_is_stored_with_its_scale(run):
    from hwaga.data import open_data

    model = run.load()
    assert set(model.networks) == {"autoencoder", "likelihood", "discriminator"}
    data = open_data(run.recipe.data)
    latents = model.encode(torch.from_numpy(data.pixels(list(range(128)))).float() / 255)
    assert abs(latents.std() - 1) < 0.02 and abs(latents.mean()) < 0.02
    rows = read_rows(run.folder / "metrics.jsonl")
    named = {key for row in rows for key in row}
    assert {"elbo.kl_a_dimension", "elbo.active_units", "discriminator.accuracy", "held_out.loss"} <= named
    assert not any("elbo.adversary" in row for row in rows if row["step"] <= 3)


def test_resumed_run_equals_the_uninterrupted(run, tmp_path):
    from safetensors.torch import load_file

    part = running.train(RECIPE, out=tmp_path / "part", overrides={"training.steps": 6}, progress=False)
    again = running.resume(part.folder, {"training.steps": 10}, progress=False)
    for name in ("autoencoder", "likelihood", "discriminator"):
        mine, whole = (load_file(r.folder / "model" / name / "model.safetensors") for r in (again, run))
        assert all(torch.equal(mine[key], whole[key]) for key in whole)


# ------------------------------------------------------------------------------------------------------------- painting


@pytest.mark.parametrize("name", ["vector", "latent_map"])
def test_picture_is_the_same_whatever_the_number_and_the_batches(name, request, monkeypatch):
    model = request.getfixturevalue(name)
    truths.pictures_stand_alone(lambda n: paint(model, n=n), monkeypatch)
    truths.two_calls_are_equal(lambda n: paint(model, n=n))


def test_recorded_noise_repeats_a_call_and_temperature_scales_it(vector):
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    direct = vector.pictures_of(noise, torch.tensor([1, 1])).detach() / 2 + 0.5
    assert torch.allclose(paint(vector, n=2, label=1, noise={"noise": noise}), direct.clamp(0, 1), atol=1e-6)
    assert torch.equal(paint(vector, n=2, label=1, temperature=0), paint(vector, n=2, label=1, temperature=0, seed=9))


def test_a_label_is_obeyed(vector):
    assert torch.equal(paint(vector, label="star"), paint(vector, label=2))
    assert not torch.equal(paint(vector, label=0), paint(vector, label=2))


@pytest.mark.parametrize("name", ["vector", "latent_map"])
def test_a_row_between_two_pictures_begins_and_ends_with_their_reconstructions(name, request):
    model, (a, b) = request.getfixturevalue(name), picture(2)
    row = paint(model, interpolate=4, image=[a, b])
    both = paint(model, reconstruct=True, image=[a, b])
    assert row.shape == (1, 3, 16, 64)
    assert torch.allclose(row[..., :16], both[:1], atol=1e-6) and torch.allclose(row[..., -16:], both[1:], atol=1e-6)


def test_a_row_between_draws_begins_with_the_seeds_picture(vector):
    rows = paint(vector, n=2, interpolate=3, label=0)
    assert rows.shape == (2, 3, 16, 48) and torch.allclose(rows[..., :16], paint(vector, n=2, label=0), atol=1e-6)


def test_the_way_between_draws_keeps_their_length():
    from hwaga.systems.latent_walks import spherical

    a, b = torch.randn(2, 5, 512, generator=torch.Generator().manual_seed(0))
    middle = spherical(a, b, 0.5)
    assert (middle.norm(dim=1) / 512**0.5 - 1).abs().max() < 0.12
    assert torch.allclose(spherical(a, b, 0.0), a, atol=1e-5) and torch.allclose(spherical(a, b, 1.0), b, atol=1e-5)
    assert torch.allclose(spherical(a, a, 0.3), a)


@pytest.mark.parametrize("name", ["vector", "latent_map"])
def test_a_walk_is_a_grid_of_a_row_a_dimension(name, request):
    model = request.getfixturevalue(name)
    grid = paint(model, walk=[0, 2])
    assert grid.shape == (1, 3, 32, 144)
    assert not torch.equal(grid[:, :, :16, :16], grid[:, :, :16, -16:])
    assert torch.equal(paint(model, walk=2)[0], grid[0, :, 16:])
    from_picture = paint(model, walk=1, image=picture())
    assert from_picture.shape == (1, 3, 16, 144)


def test_a_walked_map_goes_through_its_start(latent_map):
    x = picture()
    middle = paint(latent_map, walk=1, image=x)[..., 64:80]
    assert torch.allclose(middle, paint(latent_map, reconstruct=True, image=x), atol=1e-6)


def test_sizes_of_a_map_are_free_and_those_of_a_vector_are_not(latent_map, vector):
    assert paint(latent_map, size=(8, 24)).shape == (1, 3, 8, 24)
    with pytest.raises(InputError, match=r"pictures of \(16, 16\) alone"):
        paint(vector, size=(8, 8))
    with pytest.raises(InputError, match=r"pictures of \(16, 16\) alone"):
        vector.encode(torch.zeros(1, 3, 8, 8))


def test_pil_pictures_carry_their_record_and_a_callback_is_told_once(vector):
    seen = []
    image = vector.sample(n=1, seed=3, label="square", progress=False, callback=seen.append)[0]
    assert len(seen) == 1 and image.size == (16, 16) and '"seed": 3' in image.info["hwaga"]


def test_non_finite_numbers_stop_the_painting():
    broken = tiny.vae()
    with torch.no_grad():
        broken.autoencoder.decoder.conv_out.bias.fill_(math.nan)
    with pytest.raises(WorkError, match="non-finite"):
        paint(broken)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"steps": 3}, "steps= given to VAE"),
        ({"sampler": "ddim"}, "sampler= given to VAE"),
        ({"prompt": "a cat"}, "prompt= given to VAE"),
        ({"label": 3}, "0 to 2"),
        ({"image": "cat.png"}, "without reconstruct="),
        ({"reconstruct": True}, "needs image="),
        ({"reconstruct": 3, "image": "x.png"}, "reconstruct=3"),
        ({"reconstruct": True, "image": "nowhere.png"}, "no such file"),
        ({"reconstruct": True, "walk": 1, "image": "x.png"}, "one at a time"),
        ({"interpolate": 1}, "from 2 to 100"),
        ({"interpolate": 4, "image": torch.zeros(3, 16, 16)}, "with 1 pictures"),
        ({"walk": 8}, "0 to 7"),
        ({"walk": "first"}, "walk='first'"),
        ({"walk": []}, "walk=[]"),
        ({"temperature": -1}, "temperature=-1"),
        ({"wolk": 1}, "did you mean 'walk'"),
        ({"noise": {"noise": torch.zeros(1, 3)}}, "shape"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(vector, call, words):
    with pytest.raises(InputError) as error:
        paint(vector, **call)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "latents",
    [torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.long), torch.zeros(0, 4, 4, 4)],
)
def test_latents_of_a_wrong_size_or_dtype_are_refused(latent_map, latents):
    with pytest.raises(InputError) as error:
        latent_map.decode(latents)
    assert "(n, 4, y, x)" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"network": {"chanels": [8]}}, "chanels"),
        ({"likelihood": {"kind": "poisson"}}, "model.likelihood.kind='poisson'"),
        ({"likelihood": {"kind": "bernoulli", "learned": True}}, "no width to learn"),
        ({"beta": -1}, "model.beta=-1"),
        ({"network": {"kind": "map", "channels": (8, 16), "groups": 4}}, "only a vector is told a label"),
        ({"network": {"channels": (8, 8, 8, 8, 8, 8)}}, "multiple of 64"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(model, words):
    config = {"labels": True, **model, "network": {"groups": 4, "patch": 2, **model.get("network", {})}}
    from hwaga.systems import find

    with pytest.raises(InputError) as error:
        find("vae").create(config, size=(16, 16), classes=tiny.CLASSES, label_counts=(1, 1, 1))
    assert words in str(error.value) and "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- likelihood


def test_bits_are_the_bound_and_importance_samples_come_nearer():
    model = filled(tiny.vae(likelihood={"kind": "discretised-logistic", "deviation": 0.3}))
    label = torch.tensor([0, 1, 2, 0])
    found, samples = model.bits(picture(4), label, seed=0)
    values = found.named()
    assert samples == 16 and all(value.shape == (4,) and torch.isfinite(value).all() for value in values.values())
    assert torch.allclose(values["bits"], values["bits_reconstruction"] + values["bits_kl"])
    assert (values["bits_importance"] < values["bits"] + 0.01).all() and (values["bits_kl"] > 0).all()


def test_bits_are_measured_by_evaluate_and_refused_where_there_are_none(vector):
    from hwaga.data import DataConfig

    data = DataConfig(source="digits", size=16)
    model = filled(tiny.vae(labels=False, likelihood={"kind": "discretised-logistic", "deviation": 0.3}))
    with pytest.warns(UserWarning, match="made for openmoji"):
        scores = running.evaluate(model, data, n=4, metrics=("bits",))
    assert scores.values["bits"] > 0 and scores.card["bits"]["pictures"] == 64
    with pytest.raises(InputError, match="likelihood"):
        running.evaluate(vector, data, n=4, metrics=("bits",))


def test_nothing_in_a_batch_is_needed_but_pictures():
    model = filled(tiny.vae(labels=False))
    terms = model.loss(Batch(tiny.batch().image, torch.arange(8)), tiny.Draw())
    assert torch.isfinite(terms["reconstruction"])
    with pytest.raises(InputError, match="the data have none"):
        tiny.vae().loss(Batch(tiny.batch().image, torch.arange(8)), tiny.Draw())
