"""GAN as a system: what it learns, what it paints, what it refuses, and that a collapse is seen."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import truths
from torch import nn

import hwaga
from hwaga.errors import InputError, Interrupted, WorkError
from hwaga.objectives.game import WATCH_EVERY, generator_collapses
from hwaga.systems import find
from hwaga.systems.gan import between
from hwaga.training import Trainer, TrainingConfig
from hwaga.training.loop import StepDraw
from hwaga.training.memory import predict

HERE = Path(__file__).parent
BOTH = ("residual", "dcgan")


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, **call})


class InTurn:
    def __init__(self, batch_size):
        self.size = batch_size

    def at(self, step):
        place = torch.arange(step * self.size, (step + 1) * self.size).numpy()
        return place % 16, place // 16


def trainer(system, labels=True, **config):
    full = TrainingConfig.model_validate(
        {"steps": 40, "batch_size": 8, "optimizer": {"betas": (0.0, 0.99)}, "dtype": "float32", **config}
    )
    return Trainer(system.stages()[0], full, tiny.Pictures(16, labels), InTurn(full.batch_size))


@pytest.fixture(scope="module")
def model():
    system = tiny.gan()
    for network in system.networks.values():
        tiny.fill_zeros(network)
    return system


# -------------------------------------------------------------------------------------------------------- how it learns


@pytest.mark.parametrize("kind", BOTH)
def test_gradient_reaches_every_parameter(kind):
    system = tiny.gan(kind=kind)
    for network in system.networks.values():
        tiny.fill_zeros(network)
    for objective in system.stages()[0].objectives:
        terms = objective.loss(tiny.batch(6), StepDraw(0, "game", 0, whole=6))
        sum(v for k, v in terms.items() if not k.startswith("_")).backward()
    dead = [
        f"{name}.{key}"
        for name, network in system.networks.items()
        for key, p in network.named_parameters()
        if p.grad is None or not p.grad.any()
    ]
    assert dead == []


@pytest.mark.parametrize("kind", BOTH)
def test_the_discriminator_learns_a_batch_by_heart_and_the_generator_follows(kind):
    """Against a generator that stands still D's loss falls below 5 % of the first; G alone then wins it back."""
    system = tiny.gan(kind=kind, labels=False, augmentation=(), r1=0.0, r2=0.0, loss="non-saturating")
    game, batch = system.game(), tiny.batch(4, labels=False)

    def moved(name, terms, steps):
        optimizer, losses = torch.optim.Adam(system.networks[name].parameters(), 3e-3), []
        for _ in range(steps):
            loss = terms(batch, tiny.Draw(0))["adversarial"]  # the same latents for both
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return losses

    for name, terms in (("discriminator", game.discriminator_terms), ("generator", game.generator_terms)):
        losses = moved(name, terms, 150)
        assert losses[-1] < 0.05 * losses[0], name


def test_resumed_training_is_the_uninterrupted_one_to_the_bit(tmp_path):
    rules = {"penalty_every": 2, "discriminator": {"kind": "dcgan", "channels": (32, 16), "norm": "spectral"}}
    kept = truths.resumes_to_the_bit(lambda seed: trainer(tiny.gan(seed=seed, **rules)), tmp_path, 7, 3)
    assert any(key.endswith("downs.0.u") for tensors in kept.values() for key in tensors)


def test_accumulated_parts_are_the_whole_batch():
    """With spectral norm too, whose vectors move once a step however many parts there are."""
    rules = {"discriminator": {"channels": (32, 16), "blocks": (1, 1), "patch": 2, "spectral": True}}
    found = []
    for parts in (1, 4):
        work = trainer(tiny.gan(**rules), accumulation=parts, learning_rate=1e-4)
        for _ in range(3):
            work.step()
        found.append(work.stage.networks)
    for name in found[0]:
        for (key, one), other in zip(
            found[0][name].state_dict().items(), found[1][name].state_dict().values(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_two_processes_train_as_one(tmp_path):
    """Penalties, augmentation and labels shared out; batch norm, which needs the whole batch, worked off by each."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": os.pathsep.join(sys.path)}
    jobs = [
        subprocess.Popen(
            [sys.executable, str(HERE / "gan_processes.py"), str(tmp_path)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **place, "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for size, rank in ((1, 0), (2, 0), (2, 1))
    ]  # fmt: skip
    for job in jobs:
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0-1", "0-2", "1-2"))
    for each in two:
        for kind in BOTH:
            assert each[kind] == pytest.approx(one[kind], rel=1e-8, abs=1e-10)
    assert two[0]["row"] == pytest.approx(one["row"], rel=1e-6)


def test_the_memory_of_a_step_is_predicted_and_nothing_is_changed():
    for kind in BOTH:
        system = tiny.gan(kind=kind)
        before = {f"{n}.{k}": v.clone() for n, m in system.networks.items() for k, v in m.state_dict().items()}
        stage = system.stages()[0]
        assert predict(stage, TrainingConfig(batch_size=8), tiny.batch).activations > 0
        after = {f"{n}.{k}": v for n, m in system.networks.items() for k, v in m.state_dict().items()}
        changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
        assert all(key.endswith("num_batches_tracked") for key in changed)  # which nothing here looks at


def test_the_model_is_the_averaged_generator(tmp_path):
    work = trainer(tiny.gan(), ema={"half_lives": [200], "ramp": None})
    for _ in range(3):
        work.step()
    raw = {k: v.clone() for k, v in work.stage.networks["generator"].state_dict().items()}
    averaged = work.ema.weights()
    assert set(averaged) == {"generator"}
    assert any(not torch.equal(raw[key], value) for key, value in averaged["generator"].items())
    with work.showing():
        assert torch.equal(
            work.stage.networks["generator"].state_dict()["into.weight"], averaged["generator"]["into.weight"]
        )


# ----------------------------------------------------------------------------------------------------------- what is seen


class Constant(nn.Module):
    """A generator that has collapsed: it looks at neither latent nor label."""

    def __init__(self, generator):
        super().__init__()
        self.config = generator.config
        self.picture = nn.Parameter(torch.zeros(3, 16, 16))

    def forward(self, z, label=None):
        return self.picture.expand(len(z), -1, -1, -1)


def rows_of(work, steps, every=WATCH_EVERY):
    rows = []
    for step in range(1, steps + 1):
        work.step()
        if step % every == 0:
            rows.append({"step": step, **work.metrics()})
    return rows


def test_a_forced_collapse_is_an_alarm_within_500_steps():
    system = tiny.gan(augmentation=(), r1=0.0, r2=0.0)
    system.networks["generator"] = Constant(system.generator)
    work = trainer(system)
    rows = rows_of(work, 120)
    heard = [row["step"] for i, row in enumerate(rows) if generator_collapses(rows[: i + 1])]
    assert heard and heard[0] <= 500
    says = generator_collapses(rows)
    assert "the generator collapses" in says and "differ by 0," in says and "model.loss=relativistic" in says


def test_an_ordinary_start_is_no_collapse():
    rows = rows_of(trainer(tiny.gan()), 120)
    assert generator_collapses(rows) is None


def test_the_alarm_is_written_into_the_metrics_of_a_run(tmp_path):
    from hwaga.training import Session

    system = tiny.gan(augmentation=(), r1=0.0, r2=0.0)
    system.networks["generator"] = Constant(system.generator)
    config = TrainingConfig(steps=110, batch_size=4, checkpoint_every=110, log_every=10, dtype="float32")
    Session(
        folder=tmp_path, stages=system.stages(), config=config, data=tiny.Pictures(16),
        order=lambda length, size, seed: InTurn(size), save=lambda folder, weights, step: None,
    ).run()  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    alarms = {row["alarm"]: row["says"] for row in rows if "alarm" in row}
    assert "generator_collapses" in alarms and "loss_diverges" not in alarms
    assert {"discriminator.real", "discriminator.fake", "discriminator.accuracy", "generator.gradient"} <= set(rows[0])


def test_the_first_losss_vanishing_gradient_is_measured_and_the_seconds_does_not_vanish():
    """A discriminator that is far ahead: G's gradient under each loss, D being the same."""
    gradients = {}
    for kind in ("minimax", "non-saturating"):
        system = tiny.gan(loss=kind, labels=False, r1=0.0, r2=0.0, augmentation=())
        game, batch = system.game(), tiny.batch(8, labels=False)
        optimizer = torch.optim.Adam(system.networks["discriminator"].parameters(), 3e-3)
        for step in range(150):
            loss = game.discriminator_terms(batch, StepDraw(0, "game", step, whole=8))["adversarial"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        work = trainer(system, labels=False, learning_rate=1e-9)
        work.step()
        row = work.metrics()
        gradients[kind] = row["generator.gradient"]
        assert row["discriminator.accuracy"] == 1 and row["discriminator.fake"] < -3
    assert gradients["minimax"] < 0.05 * gradients["non-saturating"]


def test_held_out_pictures_tell_what_the_discriminator_makes_of_them(model):
    told = model.held_out(tiny.batch(5), StepDraw(0, "held-out", 0, whole=5))
    assert set(told) == {"real", "fake", "accuracy"} and all(value.shape == (5,) for value in told.values())


# ---------------------------------------------------------------------------------------------------------- how it paints


def test_picture_is_the_same_whatever_the_number_and_the_batches(model, monkeypatch):
    truths.pictures_stand_alone(lambda n: paint(model, n=n), monkeypatch)


def test_two_calls_are_equal_and_touch_no_global_generator(model):
    truths.two_calls_are_equal(lambda n: paint(model, n=n))


def test_label_by_name_and_by_number_is_the_same_and_changes_the_picture(model):
    assert torch.equal(paint(model, label="star"), paint(model, label=2))
    assert not torch.equal(paint(model, label=0), paint(model, label=2))


def test_recorded_noise_repeats_a_call(model):
    z = torch.randn((2, 8), generator=torch.Generator().manual_seed(0))
    one = paint(model, n=2, label=1, noise={"noise": z}, seed=1)
    assert torch.equal(one, paint(model, n=2, label=1, noise={"noise": z}, seed=2))
    assert torch.equal(one, (model.generate(z, torch.ones(2, dtype=torch.int64)) / 2 + 0.5).clamp(0, 1))


def test_a_strip_begins_at_the_draw_of_the_seed_and_moves_in_small_steps(model):
    strip = paint(model, n=2, interpolate=6)
    assert strip.shape == (2, 3, 16, 96)
    assert torch.equal(strip[..., :16], paint(model, n=2))
    pictures = strip.unflatten(3, (6, 16)).movedim(3, 1)
    steps = (pictures[:, 1:] - pictures[:, :-1]).abs().mean((2, 3, 4))
    assert (steps < (pictures[:, 0] - pictures[:, -1]).abs().mean((1, 2, 3))[:, None]).all() and (steps > 0).all()


def test_the_way_between_two_draws_keeps_to_the_lengths_of_draws():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, 50, 256), generator=g)
    assert torch.equal(between(a, b, 0.0), a) and torch.equal(between(a, b, 1.0), b)
    middle = between(a, b, 0.5).norm(dim=1).mean().item()
    assert middle == pytest.approx(a.norm(dim=1).mean().item(), rel=0.02)
    assert ((a + b) / 2).norm(dim=1).mean() < 0.75 * middle


def test_truncation_one_is_plain_and_zero_is_one_picture_a_label(model):
    assert torch.equal(paint(model, n=3, truncation=1), paint(model, n=3))
    few = paint(model, n=4, label=1, truncation=0)
    assert (few - few[:1]).abs().max() < 1e-6
    spread = [paint(model, n=16, label=1, truncation=t).std(0).mean() for t in (0.5, 1)]
    assert spread[0] < spread[1]


@pytest.mark.parametrize("kind", BOTH)
def test_a_saved_model_paints_the_same_bits_with_and_without_its_discriminator(tmp_path, kind):
    system = tiny.gan(kind=kind)
    tiny.fill_zeros(system.generator)
    from hwaga.saving import save

    save(system, tmp_path / "whole")
    save(system, tmp_path / "given", training=False)
    assert not (tmp_path / "given" / "discriminator").exists()
    for folder in ("whole", "given"):
        assert torch.equal(paint(hwaga.load(tmp_path / folder, device="cpu", dtype="float32"), n=3), paint(system, n=3))


def test_a_call_is_one_step_that_a_callback_sees_and_can_end(model):
    seen = []
    paint(model, callback=seen.append)
    assert [(s.index, s.total) for s in seen] == [(0, 1)]

    def stop(step):
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        paint(model, callback=stop)


def test_a_pil_picture_carries_its_record(model):
    image = model.sample(n=2, seed=3, label="square", truncation=0.7, progress=False)[1]
    record = json.loads(image.info["hwaga"])
    assert image.size == (16, 16) and record["label_name"] == "square" and record["truncation"] == 0.7
    assert "steps" not in record and "sampler" not in record


def test_non_finite_numbers_stop_the_painting():
    broken = tiny.gan()
    with torch.no_grad():
        broken.generator.out.bias.fill_(math.nan)
    with pytest.raises(WorkError, match="non-finite"):
        paint(broken)


# -------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"size": (32, 32)}, "this generator paints (16, 16)"),
        ({"size": (16, 18)}, "width 18"),
        ({"steps": 4}, "steps= given to GAN"),
        ({"sampler": "ddim"}, "sampler= given to GAN"),
        ({"guidance_scale": 2.0}, "guidance_scale= given to GAN"),
        ({"image": "cat.png"}, "image= given to GAN"),
        ({"label": 3}, "0 to 2"),
        ({"label": "stat"}, "did you mean 'star'"),
        ({"truncation": "half"}, "truncation='half'"),
        ({"truncation": -1}, "truncation=-1"),
        ({"truncation": math.nan}, "truncation=nan"),
        ({"interpolate": 1}, "interpolate=1"),
        ({"interpolate": 2.5}, "interpolate=2.5"),
        ({"interpolat": 3}, "did you mean 'interpolate'"),
        ({"noise": {"noise": torch.zeros(1, 9)}}, "shape"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(model, call, words):
    with pytest.raises(InputError) as error:
        paint(model, **call)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"loss": "lsgan"}, "model.loss='lsgan'"),
        ({"augmentation": ("blur",)}, "model.augmentation.0='blur'"),
        ({"discriminator": {"channels": (32, 16, 16), "blocks": (1, 1, 1), "patch": 2}}, "let channels agree"),
        ({"generator": {"kind": "dcgan", "channels": (32, 16), "widths": 3}}, "widths"),
        ({"discriminator": {"kind": "dcgan", "channels": (32, 16)}}, "norm=spectral or norm=none"),
        ({"r1": -1.0}, "model.r1=-1.0"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(model, words):
    with pytest.raises(InputError) as error:
        tiny.gan(**model)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"data.size=\(32, 32\): these networks are for \(16, 16\)"):
        find("gan").check_data(tiny.gan().config, (32, 32))
    with pytest.raises(InputError, match="the data have no labels"):
        find("gan").complete({"labels": True}, (16, 16), ())
    with pytest.raises(InputError, match="without labels"):
        paint(tiny.gan(labels=False), label=0)
