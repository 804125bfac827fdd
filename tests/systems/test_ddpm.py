"""DDPM as a system: what it learns, what it paints, what it refuses."""

import json
import math

import pytest
import tiny
import torch
import truths

from hwaga.errors import InputError, Interrupted, WorkError
from hwaga.samplers.noise import from_seed


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, "steps": 4, **call})


@pytest.fixture(scope="module")
def model():
    system = tiny.ddpm()
    tiny.fill_zeros(system.network)
    return system


def test_overfits_one_batch():
    """Loss on fixed draws falls below 5 % of the first."""
    system, batch = tiny.ddpm(process={"timesteps": 50, "schedule": "cosine", "predicts": "x0"}), tiny.batch(2)
    truths.overfits(system, batch, 250)


def test_picture_is_the_same_whatever_the_number_and_the_batches(model, monkeypatch):
    truths.pictures_stand_alone(lambda n: paint(model, n=n, sampler="ddpm"), monkeypatch)


def test_two_calls_are_equal_and_touch_no_global_generator(model):
    truths.two_calls_are_equal(lambda n: paint(model, n=n))


def test_label_by_name_and_by_number_is_the_same_and_none_is_drawn_by_frequency(model):
    assert torch.equal(paint(model, label="star"), paint(model, label=2))
    assert torch.equal(
        paint(model, label=[0, "star"]), torch.cat([paint(model, n=2, label=0)[:1], paint(model, n=2, label=2)[1:]])
    )
    request = model._request(
        400, None, 1, None, dict.fromkeys(("label", "sampler", "guidance_scale", "sampler_options", "steps"))
    )
    share = torch.bincount(request.label, minlength=3) / 400
    assert (share - torch.tensor([1 / 8, 2 / 8, 5 / 8])).abs().max() < 0.08


def test_guidance_zero_forgets_the_label_and_one_is_off(model):
    assert torch.equal(paint(model, label=0, guidance_scale=0.0), paint(model, label=2, guidance_scale=0.0))
    assert torch.equal(paint(model, label=0, guidance_scale=1.0), paint(model, label=0))
    assert not torch.equal(paint(model, label=0, guidance_scale=3.0), paint(model, label=0))


def test_recorded_noise_repeats_a_call(model):
    noise = from_seed(5, [0, 1])
    recorded = {"noise": noise("noise", (2, 3, 16, 16))}
    recorded["step_noise"] = torch.stack([noise("step_noise", (2, 3, 16, 16)) for _ in range(3)])
    replayed = paint(model, n=2, label=1, sampler="ddpm", noise=recorded, seed=99)
    assert torch.equal(replayed, paint(model, n=2, label=1, sampler="ddpm"))


def test_every_step_is_told_and_can_end_the_call(model):
    seen = []
    paint(model, steps=4, callback=seen.append)
    assert [s.index for s in seen] == [0, 1, 2, 3] and seen[0].total == 4

    def stop(step):
        if step.index == 1:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        paint(model, callback=stop)


def test_a_pil_picture_carries_its_record(model):
    image = model.sample(n=2, seed=3, label="square", steps=3, progress=False)[1]
    record = json.loads(image.info["hwaga"])
    assert image.size == (16, 16) and record["seed"] == 3 and record["index"] == 1 and record["label_name"] == "square"


def test_a_strip_begins_with_the_picture_and_returns_to_it_from_little_noise(model):
    strip = paint(model, strip=3, steps=10)
    assert strip.shape == (1, 3, 32, 64)
    assert torch.equal(strip[..., :16, :16], strip[..., 16:, :16])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"n": 0}, "n=0"),
        ({"n": True}, "n=True"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 51}, "trained with 50"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"size": (-16, 16)}, "height -16"),
        ({"size": (16, 18)}, "nearest that work: 16 and 20"),
        ({"size": "big"}, "size='big'"),
        ({"sampler": "ddmp"}, "did you mean 'ddpm'"),
        ({"sampler": "ddim", "sampler_options": {"eta": 2}}, "eta=2"),
        ({"sampler": "ddim", "sampler_options": {"etta": 1}}, "did you mean 'eta'"),
        ({"sampler": "ddpm", "sampler_options": {"variance": "learned"}}, "predicts none"),
        ({"label": 3}, "0 to 2"),
        ({"label": "stat"}, "did you mean 'star'"),
        ({"label": [0, 1], "n": 3}, "leave n out"),
        ({"guidance_scale": "high"}, "guidance_scale='high'"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"prompt": "a cat"}, "prompt= given to DDPM"),
        ({"control": "x.png"}, "control= given to DDPM"),
        ({"truncation": 0.5}, "truncation"),
        ({"output": "jpeg"}, "output='jpeg'"),
        ({"strip": 0}, "strip=0"),
        ({"image": "cat.png"}, "there is no such file"),
        ({"strength": 0.5}, "without image="),
        ({"mask": "m.png"}, "without image="),
        ({"guidance_interval": [0.2, 0.8]}, "which is off"),
        ({"guidance_scale": 2.0, "guidance_interval": [0.2, 1.8]}, "two times from 0"),
        ({"sampler_options": {"times": [0.2, 0.9]}}, "must fall"),
        ({"sampler_options": {"shift": 3.0}}, "no effect"),
        ({"noise": {"noise": torch.zeros(1, 3, 8, 8)}}, "shape"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(model, call, words):
    with pytest.raises(InputError) as error:
        paint(model, **call)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_model_without_labels_takes_none_and_cannot_be_guided():
    plain = tiny.public_ddpm()
    with pytest.raises(InputError, match="without labels"):
        paint(plain, label=0)
    with pytest.raises(InputError, match="nothing to guide"):
        paint(plain, guidance_scale=2.0)


def test_non_finite_numbers_stop_the_painting():
    broken = tiny.ddpm()
    with torch.no_grad():
        broken.network.conv_out.bias.fill_(math.nan)
    with pytest.raises(WorkError, match="after step 1 of 4"):
        paint(broken)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"network": {"chanels": [16]}}, "model.network.chanels"),
        ({"process": {"schedule": "cosin"}}, "model.process.schedule='cosin'"),
        ({"process": {"beta_start": 0.5, "beta_end": 0.1}}, "below beta_start"),
        ({"labels": "perhaps"}, "model.labels"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(model, words):
    with pytest.raises(InputError) as error:
        tiny.ddpm(**model)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned-range"])
def test_the_bound_is_finite_and_fewer_indices_stand_for_all(variance):
    system = (
        tiny.public_ddpm()
        if variance == "fixed-large"
        else tiny.ddpm(labels=False, process={"timesteps": 50, "variance": variance})
    )
    image = torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    whole, _ = system.bits(image, None, seed=0)
    part, count = system.bits(image, None, seed=0, count=30)
    assert count < 30
    assert torch.isfinite(whole.total).all() and whole.steps.shape == (4, 49)
    assert (whole.prior >= 0).all() and (whole.steps > -1e-6).all()
    assert (part.total / whole.total - 1).abs().max() < 0.2


def test_learned_variance_trains_by_the_bound_and_leaves_the_mean_alone():
    system = tiny.ddpm(process={"timesteps": 50, "variance": "learned-range"})
    tiny.fill_zeros(system.network)
    terms = system.loss(tiny.batch(), tiny.Draw())
    assert set(terms) == {"denoising", "variance"}
    terms["variance"].backward()
    mean, spread = system.network.conv_out.weight.grad.view(6, 4, -1).abs().sum(dim=(1, 2)).split(3)
    assert (mean == 0).all() and (spread > 0).all()


def test_hidden_labels_train_the_null_label():
    system = tiny.ddpm(label_dropout=1.0)
    tiny.fill_zeros(system.network)
    sum(system.loss(tiny.batch(), tiny.Draw()).values()).backward()
    rows = system.network.class_embedding.weight.grad.abs().sum(1)
    assert rows[3] > 0 and (rows[:3] == 0).all()
