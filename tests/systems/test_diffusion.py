"""What every system that denoises shares, shown on small DDPMs of every process."""

import math

import pytest
import tiny
import torch

from hwaga.errors import InputError
from hwaga.samplers import SAMPLERS

PROCESSES = {
    "gaussian": {"timesteps": 50, "schedule": "cosine"}, "flow": {"kind": "flow", "times": {"kind": "logit-normal"}},
    "vp": {"kind": "vp", "weighting": "min-snr"}, "sub-vp": {"kind": "sub-vp", "predicts": "x0"},
    "edm": {"kind": "ve", "weighting": "edm"}, "ncsn": {"kind": "ve", "predicts": "score", "fed": "log", "weighting": "snr",
                                                        "times": {"kind": "uniform"}, "sigma_min": 0.01, "sigma_max": 50},
}  # fmt: skip
DEFAULT = {
    "gaussian": "ddpm",
    "flow": "flow-euler",
    "vp": "ddim",
    "sub-vp": "ddim",
    "edm": "heun",
    "ncsn": "predictor-corrector",
}


def made(name, seed=0, **model):
    sampling = {"sampler": DEFAULT[name], "clip": None, **model.pop("sampling", {})}
    system = tiny.ddpm(seed, process=PROCESSES[name], sampling=sampling, **model)
    tiny.fill_zeros(system.network)
    return system


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, "steps": 4, "label": 1, **call})


@pytest.fixture(scope="module")
def models():
    return {name: made(name) for name in PROCESSES}


@pytest.mark.parametrize("name", PROCESSES)
def test_it_trains_on_every_process_and_the_gradient_reaches_every_parameter(models, name):
    model = models[name]
    terms = model.loss(tiny.batch(), tiny.Draw())
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    dead = [n for n, p in model.network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    model.network.zero_grad(set_to_none=True)
    assert dead == []
    held = model.held_out(tiny.batch(), tiny.Draw())
    assert {"loss", "loss t 0.0-0.2", "loss t 0.8-1.0"} <= held.keys() and held["loss"].shape == (8,)
    assert torch.isfinite(held["loss"]).all()


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_it_overfits_one_batch(name):
    system, batch, losses = made(name), tiny.batch(2), []
    optimizer = torch.optim.AdamW(system.network.parameters(), 3e-3)
    for _ in range(120):
        loss = sum(system.loss(batch, tiny.Draw(0)).values())
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.15 * losses[0]


@pytest.mark.parametrize("name", PROCESSES)
def test_every_sampler_paints_and_a_picture_is_the_same_in_every_batch(models, name, monkeypatch):
    model = models[name]
    for sampler in model.samplers():
        steps = 6 if sampler == "pndm" else 4
        options = {"corrections": 1} if sampler == "langevin" else {}
        call = {"sampler": sampler, "steps": steps, "sampler_options": options}
        many = paint(model, n=3, **call)
        few = paint(model, n=1, **call)
        monkeypatch.setattr("hwaga.systems.base.PIXELS_A_BATCH", 2 * 256)
        split = paint(model, n=3, **call)
        monkeypatch.undo()
        assert many.shape == (3, 3, 16, 16) and torch.isfinite(many).all(), sampler
        assert (many[:1] - few).abs().max() < 2e-3 and (many - split).abs().max() < 2e-3, sampler


def test_evaluations_are_those_that_are_stated(models):
    model, calls = models["gaussian"], []
    compute = model.compute
    model.compute = lambda x, time, **conditions: calls.append(len(x)) or compute(x, time, **conditions)
    try:
        for name in model.samplers():
            calls.clear()
            paint(model, sampler=name, steps=6)
            sampler = SAMPLERS[name]
            last = {"heun": 1, "flow-heun": 1, "rk4": 3, "predictor-corrector": 1}.get(
                name, 0
            )  # the step to the data has one
            assert len(calls) == 6 * sampler.evaluations - last + sampler.extra_evaluations, name
    finally:
        del model.compute


@pytest.mark.parametrize("name", ["gaussian", "flow", "edm"])
def test_strength_0_gives_the_input_back_and_1_little_of_it(models, name):
    image = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(0))
    far = lambda strength: (paint(models[name], image=image, strength=strength, steps=10) - image).abs().mean()  # noqa: E731
    assert far(0.0) < 1e-6 and far(0.3) < far(1.0)
    assert torch.equal(paint(models[name], image=image), paint(models[name], image=image, strength=1.0))


def test_steps_are_cut_by_strength(models):
    seen = []
    paint(models["flow"], image=torch.rand(3, 16, 16), strength=0.55, steps=10, callback=seen.append)
    assert len(seen) == 5 and seen[0].total == 5 and abs(seen[0].at.t - 0.5) < 1e-9


@pytest.mark.parametrize("name", ["gaussian", "flow"])
def test_a_mask_leaves_the_rest_bit_for_bit(models, name):
    image = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    end = paint(models[name], n=2, image=image, mask=mask, strength=0.8)
    assert torch.equal(end[..., :4, :], image[None, :, :4].expand(2, -1, -1, -1))
    assert (end[..., 4:12, 4:12] - image[:, 4:12, 4:12]).abs().mean() > 0.01
    plain = paint(models[name], n=1, image=image, mask=mask, keep_unmasked=False)
    assert (plain[0, :, :4] - image[:, :4]).abs().max() < 1e-3  # the walk itself ends there


def test_guidance_by_every_means_changes_the_picture(models):
    model = models["flow"]
    plain = paint(model)
    weak = made("flow", seed=1)
    for call in (
        {"guidance_scale": 3.0}, {"guidance_scale": 3.0, "guidance_rescale": 0.7}, {"attention_scale": 2.0},
        {"guidance_scale": 3.0, "guidance_interval": [0.0, 0.5]}, {"weak": weak}, {"weak": weak, "weak_scale": 1.5},
    ):  # fmt: skip
        assert not torch.equal(paint(model, **call), plain), call
    assert torch.equal(paint(model, weak=weak, weak_scale=1.0), plain)
    assert torch.equal(paint(model, attention_scale=0), plain)
    assert torch.equal(paint(model), plain)  # nothing of it stays behind


def test_a_grid_can_be_respaced_and_given(models):
    model = models["gaussian"]
    call = {"sampler": "dpm-solver++", "steps": 5}
    karras = paint(model, **call, sampler_options={"karras": True})
    assert not torch.equal(karras, paint(model, **call))
    seen = []
    paint(model, sampler="ddim", sampler_options={"times": [0.9, 0.4]}, callback=seen.append)
    assert [round(s.at.t, 6) for s in seen] == [0.9, 0.4]


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("flow", {"sampler": "heun"}, "samplers that can: ddpm, ddim, euler"),
        ("flow", {"sampler": "lms"}, "flow-heun"),
        ("flow", {"sampler_options": {"offset": 1}}, "no effect"),
        ("vp", {"sampler": "ddim", "sampler_options": {"shift": 3.0}}, "no effect"),
        ("gaussian", {"steps": 51}, "trained with 50"),
        ("gaussian", {"sampler": "lcm", "steps": 51}, "trained with 50"),
        ("gaussian", {"sampler": "dpm-solver++", "sampler_options": {"order": 4}}, "order=4"),
        ("gaussian", {"sampler": "dpm-solver++", "sampler_options": {"karras": 1}}, "true or false"),
        (
            "gaussian",
            {"sampler": "dpm-solver++", "sampler_options": {"karras": True, "exponential": True}},
            "in one way",
        ),
        (
            "gaussian",
            {"sampler": "ddim", "sampler_options": {"karras": True}},
            "option of sampler ddim='karras' is unknown",
        ),
        ("gaussian", {"sampler": "dpm-solver++", "sampler_options": {"predicts": "eps"}}, "ends_at_data=False"),
        ("gaussian", {"sampler_options": {"times": [0.5, 0.6]}}, "must fall"),
        ("gaussian", {"image": torch.zeros(3, 16, 16), "strength": 1.5}, "from 0 (the input back) to 1"),
        ("gaussian", {"image": [torch.zeros(3, 16, 16)] * 2}, "starts from one picture"),
        ("gaussian", {"weak": "openmoji/ddpm"}, "a loaded DDPM"),
        ("gaussian", {"weak_scale": 2.0}, "without weak="),
        ("gaussian", {"attention_scale": "much"}, "attention_scale='much'"),
        ("gaussian", {"guidance_rescale": 0.7}, "which is off"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(models, name, call, words):
    with pytest.raises(InputError) as error:
        paint(models[name], **call)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_guidance_without_dropped_labels_warns():
    with pytest.warns(UserWarning, match="label_dropout=0"):
        paint(made("flow", label_dropout=0.0), guidance_scale=2.0)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"sampler": "dpm"}, "dpm' is unknown"),
        ({"options": {"ddim": {"order": 2}}}, "no option of that sampler"),
        ({"options": {"unipc": {"order": 5}}}, "order=5"),
    ],
)
def test_a_sampling_config_that_cannot_be_is_refused(sampling, words):
    with pytest.raises(InputError, match="model.sampling") as error:
        tiny.ddpm(sampling=sampling)
    assert words in str(error.value)


def test_a_process_that_cannot_be_is_refused_by_its_own_keys():
    for process, words in (
        ({"kind": "flows"}, "kind is one of gaussian, flow, vp, sub-vp, ve"), ({"kind": "ve", "sigma_max": 0.001}, "is not above"),
        ({"kind": "flow", "times": {"kind": "logit"}}, "model.process.times.kind='logit'"),
        ({"kind": "vp", "beta_max": -1}, "model.process.beta_max=-1"),
    ):  # fmt: skip
        with pytest.raises(InputError) as error:
            tiny.ddpm(process=process)
        assert words in str(error.value) and "kind gaussian" not in str(error.value), str(error.value)


def test_it_is_saved_and_loaded_with_its_process(tmp_path):
    import hwaga
    from hwaga.saving import save

    model = made("edm")
    save(model, tmp_path / "model")
    again = hwaga.load(tmp_path / "model", device="cpu")
    assert again.config == model.config and (paint(again) - paint(model)).abs().max() < 1e-4


def test_latents_are_denoised_in_place_of_pixels():
    """A UNet on the latents of an autoencoder: the latent diffusion of Rombach et al. 2022, without text."""
    from hwaga.systems import find

    codec = tiny.vae_kl(network={"latent_channels": 4}).networks["autoencoder"]
    network = {"channels": (16, 32), "attention": (False, True), "groups": 8, "blocks": 1}
    config = {"network": network, "process": {"kind": "flow"}, "autoencoder": codec.config.model_dump(),
              "sampling": {"sampler": "flow-euler"}}  # fmt: skip
    model = find("ddpm").create(config, size=(16, 16), components={"autoencoder": codec})
    tiny.fill_zeros(model.network)
    assert model.config.network.in_channels == 4
    loss = sum(model.loss(tiny.batch(labels=False), tiny.Draw()).values())
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is None for p in codec.parameters())
    picture = model.sample(n=2, steps=3, seed=0, output="tensor", progress=False)
    assert picture.shape == (2, 3, 16, 16) and math.isfinite(picture.sum())


@pytest.mark.parametrize("name", ["flow", "edm", "vp"])
def test_the_likelihood_of_pictures_is_told_by_the_ode(models, name):
    image = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2])
    assert models[name].tells_bits
    found, evaluations = models[name].bits(image, label, seed=0)
    alone, _ = models[name].bits(image[:1], label[:1], seed=0)
    assert found.named()["bits"].shape == (3,) and torch.isfinite(found.nats).all() and evaluations > 7
    assert abs(found.bits()[0] - alone.bits()[0]) < 0.05  # steps are chosen for a batch, within a tolerance


def test_uncertainty_is_learned_beside_the_network_and_left_out_of_what_is_given_away(tmp_path):
    import hwaga
    from hwaga.saving import save

    system = made("flow", uncertainty=True)
    stage = system.stages()[0]
    assert set(stage.networks) == {"network", "uncertainty"} and stage.objectives[0].networks == (
        "network",
        "uncertainty",
    )
    plain = made("flow")
    same = sum(plain.loss(tiny.batch(), tiny.Draw()).values())
    assert torch.allclose(sum(system.loss(tiny.batch(), tiny.Draw()).values()), same)  # u begins at 0
    optimizer = torch.optim.Adam(system.networks["uncertainty"].parameters(), 0.05)
    for step in range(300):
        optimizer.zero_grad()
        sum(system.loss(tiny.batch(16), tiny.Draw(step)).values()).backward()
        optimizer.step()
    errors = plain.held_out(tiny.batch(64), tiny.Draw(1))
    u = lambda t: system.networks["uncertainty"](torch.tensor([2 * math.log((1 - t) / t)])).item()  # noqa: E731
    for name, t in (("loss t 0.2-0.4", 0.3), ("loss t 0.6-0.8", 0.7)):
        assert abs(math.exp(u(t)) / errors[name].mean().item() - 1) < 0.35  # the error's mean at that level
    save(system, tmp_path / "given", training=False)
    assert set(hwaga.load(tmp_path / "given", device="cpu").networks) == {"network"}
