"""VQGAN as a system: what its stages learn, what it paints, encodes and re-paints, what it refuses."""

import math
import warnings

import pytest
import tiny
import torch
import truths

from hwaga.data import Order
from hwaga.errors import InputError, Interrupted
from hwaga.objectives.vq import adversary_ruins, code_use, codebook_collapses, next_tokens, perplexity
from hwaga.systems import find
from hwaga.training.config import TrainingConfig
from hwaga.training.loop import Trainer


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, **call})


@pytest.fixture(scope="module")
def model():
    system = tiny.vqgan()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for network in system.networks.values():
            for p in network.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
            network.eval()
    return system


def trainer(system, stage, steps, **config):
    values = {"steps": 99, "batch_size": 4, "learning_rate": 2e-3, "dtype": "float32", **config}
    made = Trainer(system.stages()[stage], TrainingConfig(**values), tiny.Pictures(6), Order(6, 4, seed=0))
    for _ in range(steps):
        made.step()
    return made


# ------------------------------------------------------------------------------------------------------------- learning


def test_the_tokenizer_overfits_one_batch():
    system, batch = tiny.vqgan(discriminator=None, loss={"pixel": "l2"}), tiny.batch(2)
    batch = type(batch)(torch.nn.functional.interpolate(batch.image[:, :, :4, :4], 16), batch.index, batch.label)
    stage = system.stages()[0]
    optimizer = torch.optim.AdamW([p for p in system.tokenizer.parameters() if p.requires_grad], 5e-3)
    losses = []
    for step in range(150):
        terms = stage.objectives[0].loss(batch, tiny.Draw(step, step))
        sum(v for name, v in terms.items() if not name.startswith("_")).backward()
        losses.append(terms["reconstruction"].item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]


def test_the_prior_overfits_one_batch():
    system, batch = tiny.vqgan(), tiny.batch(3)
    tokens = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(0))
    prior = system.networks["prior"]
    optimizer = torch.optim.AdamW(prior.parameters(), 3e-3)
    losses = []
    for _ in range(120):
        loss = next_tokens(prior, system._told(batch), tokens).mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert abs(losses[0] - math.log(32)) < 0.3 and losses[-1] < 0.05 * losses[0]


def test_every_parameter_of_both_stages_gets_a_gradient():
    system = tiny.vqgan(loss={"pixel": "l2"})
    for network in system.networks.values():
        tiny.fill_zeros(network)
    for stage in system.stages():
        for objective in stage.objectives:
            terms = objective.loss(tiny.batch(4), tiny.Draw())
            sum(v for name, v in terms.items() if not name.startswith("_")).backward()
    dead = [
        f"{name}.{key}"
        for name, network in system.networks.items()
        for key, p in network.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any()) and not key.endswith("key.bias")
    ]
    assert dead == []


def test_the_adversary_begins_late_and_is_weighed_by_the_gradients_of_the_last_layer():
    system, batch = tiny.vqgan(adversary={"begins": 3}), tiny.batch(4)
    first, second = system.stages()[0].objectives
    assert second.begins == 3 and "adversarial" not in first.loss(batch, tiny.Draw(step=2))
    losses = system.tokenizing()
    terms = first.loss(batch, tiny.Draw(step=3))
    painted = system.tokenizer(batch.image).image
    wanted = sum(v.mean() for v in losses.distances(batch.image, painted).values())
    against = -system.networks["discriminator"](painted).mean()
    norms = [
        torch.autograd.grad(x, system.tokenizer.last_layer, retain_graph=True)[0].norm() for x in (wanted, against)
    ]
    assert torch.isfinite(terms["adversarial"]) and torch.isfinite(norms[0] / norms[1])
    assert terms["_adaptive_weight"] > 0


def test_without_adversary_and_perceptual_loss_it_is_the_vq_vae():
    system = tiny.vqgan(discriminator=None)
    (tokenizer, prior) = system.stages()
    assert [o.name for o in tokenizer.objectives] == ["autoencoder"] and not tokenizer.game
    assert set(system.networks) == {"autoencoder", "prior"} and prior.name == "prior"
    terms = tokenizer.objectives[0].loss(tiny.batch(), tiny.Draw())
    assert {n for n in terms if not n.startswith("_")} == {"reconstruction", "codebook"}


def test_stages_are_trained_in_turn_and_a_trained_tokenizer_is_taken_as_it_is():
    system = tiny.vqgan()
    assert [s.name for s in system.stages()] == ["tokenizer", "prior"]
    system.tokenizer.requires_grad_(False)
    assert [s.name for s in system.stages()] == ["prior"]
    alone = tiny.vqgan(prior=None, labels=False)
    assert [s.name for s in alone.stages()] == ["tokenizer"]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_resumed_stage_ends_with_the_same_bits(stage, tmp_path):
    from hwaga.training import checkpoint

    def state(made):
        parts = checkpoint.parts(made, {})
        return {f"{file}:{key}": value for file, tensors in parts.items() for key, value in tensors.items()}

    whole = trainer(tiny.vqgan(adversary={"begins": 1}, keep=0.8), stage, 4)
    half = trainer(tiny.vqgan(adversary={"begins": 1}, keep=0.8), stage, 2)
    checkpoint.save(tmp_path, 2, half, {}, {}, 1)
    again = trainer(tiny.vqgan(adversary={"begins": 1}, keep=0.8), stage, 0)
    checkpoint.load(checkpoint.latest(tmp_path), again, {})
    for _ in range(2):
        again.step()
    one, other = state(whole), state(again)
    assert one.keys() == other.keys() and [k for k in one if not torch.equal(one[k], other[k])] == []


def test_codes_in_use_and_perplexity_are_logged_always():
    made = trainer(tiny.vqgan(), 0, 2)
    row = made.metrics()
    assert {"autoencoder.codes", "autoencoder.code_use", "autoencoder.perplexity", "discriminator.accuracy"} <= set(row)
    assert perplexity(torch.ones(7)).item() == pytest.approx(7) and perplexity(torch.eye(7)[0]).item() == 1
    seen = code_use(torch.tensor([[[0, 0], [3, 3]]]), 8)
    assert seen["_codes"] == 2 and seen["_code_use"] == 0.5 and seen["_perplexity"].item() == pytest.approx(2)


def test_a_forced_collapse_of_the_codebook_rings_and_names_the_key():
    one = {f"autoencoder.{k[1:]}": v.item() for k, v in code_use(torch.zeros(4, 8, 8, dtype=torch.int64), 512).items()}
    many = {f"autoencoder.{k[1:]}": v.item() for k, v in code_use(torch.arange(256).view(4, 8, 8), 512).items()}
    assert "model.autoencoder.quantizer.restart" in codebook_collapses([one] * 10)
    assert codebook_collapses([one] * 9) is None and codebook_collapses([many] * 30) is None


def test_reconstructions_that_an_adversary_ruins_ring():
    good = [{"autoencoder.reconstruction": 0.05}] * 20
    bad = [{"autoencoder.reconstruction": 0.2, "autoencoder.adaptive_weight": 3.0}] * 10
    assert "model.adversary" in adversary_ruins(good + bad) and adversary_ruins(good) is None


def test_the_prior_reads_other_codes_where_it_may_not_keep_them():
    system = tiny.vqgan(keep=0.01)
    seen, prior, batch = [], system.networks["prior"], tiny.batch(8)
    prior.register_forward_hook(lambda m, given, said, out: seen.append((given[0], said["before"])), with_kwargs=True)
    system.prior_terms(batch, tiny.Draw())
    (read, before), real = seen[0], system._tokens(batch)
    assert read.shape == real[:, :-1].shape and (read == real[:, :-1]).float().mean() < 0.5
    assert torch.equal(before, prior.before(batch.label[:, None]))


# ------------------------------------------------------------------------------------------------------------- painting


def test_picture_is_the_same_whatever_the_number_and_the_batches(model, monkeypatch):
    assert paint(model, n=5).shape == (5, 3, 16, 16)
    truths.pictures_stand_alone(lambda n: paint(model, n=n), monkeypatch)


def test_two_calls_are_equal_and_touch_no_global_generator(model):
    truths.two_calls_are_equal(lambda n: paint(model, n=n))
    assert not torch.equal(paint(model), paint(model, seed=6))


def test_label_by_name_and_by_number_is_the_same_and_changes_the_picture(model):
    assert torch.equal(paint(model, label="star"), paint(model, label=2))
    assert not torch.equal(paint(model, label=[0] * 6), paint(model, label=[2] * 6))


def test_recorded_noise_is_replayed(model):
    noise = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        paint(model, label=[0, 1], noise={"noise": noise}), paint(model, label=[0, 1], noise={"noise": noise}, seed=8)
    )


def test_temperature_0_draws_nothing(model):
    assert torch.equal(paint(model, label=0, temperature=0), paint(model, label=0, temperature=0, seed=8))
    assert torch.equal(paint(model, label=0, temperature=0), paint(model, label=0, top_k=1))
    assert torch.equal(paint(model, label=0, temperature=0), paint(model, label=0, top_p=1e-6))


def test_a_picture_larger_than_trained_is_painted_through_a_window(model):
    assert paint(model, size=(16, 28)).shape == (1, 3, 16, 28)
    assert paint(model, size=(24, 16)).shape == (1, 3, 24, 16)


def test_codes_and_back(model):
    image = torch.rand((3, 3, 16, 20), generator=torch.Generator().manual_seed(0))
    codes = model.encode(image)
    assert codes.dtype == torch.int64 and codes.shape == (3, 4, 5)
    back = model.decode(codes)
    assert back.shape == image.shape and back.min() >= 0 and back.max() <= 1
    alone = paint(model, image=image[:1], size=(16, 20), reconstruct=True)
    assert (back[:1] - alone).abs().max() < 1e-5
    used = model.codebook_use(image)
    assert used["codes"] == len(codes.unique()) and 1 <= used["codes_perplexity"] <= used["codes"] + 1e-3


def test_codes_under_the_mask_are_painted_anew_and_the_rest_stays_bit_for_bit(model):
    image = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(16, 16)
    mask[8:, 4:9] = 1
    painted = paint(model, n=2, image=image, mask=mask)
    inside = mask.bool().expand(2, 3, -1, -1)
    assert torch.equal(painted[~inside], image.expand(2, -1, -1, -1)[~inside])
    assert not torch.equal(painted[0][inside[0]], painted[1][inside[0]])
    whole = paint(model, n=2, image=image, mask=mask, keep_unmasked=False)
    assert torch.equal(whole[inside], painted[inside]) and not torch.equal(whole[~inside], painted[~inside])
    nothing = paint(model, image=image, mask=torch.zeros(16, 16), keep_unmasked=False)
    assert torch.equal(nothing, model.decode(model.encode(image[None])))


def test_a_picture_of_another_aspect_is_fitted_and_said_so(model):
    wide = torch.rand((3, 20, 40), generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="another aspect"):
        assert paint(model, image=wide, reconstruct=True).shape == (1, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paint(model, image=wide, reconstruct=True, fit_image=False).shape == (1, 3, 20, 40)


def test_the_codebook_is_shown_code_by_code(model):
    sheet = paint(model, codebook=True)
    assert sheet.shape == (1, 3, 6 * 8, 6 * 8)  # 32 codes of 4 x 4 pixels, enlarged
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    part = paint(model, codebook=True, image=image)
    tiles = part[0].unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).flatten(0, 1)[:32]
    white = tiles.eq(1).flatten(1).all(1)
    assert set((~white).nonzero().flatten().tolist()) <= set(model.encode(image).unique().tolist())


def test_saved_and_loaded_it_paints_the_same_bits(model, tmp_path):
    import hwaga
    from hwaga.saving import save

    save(model, tmp_path / "model")
    again = hwaga.load(tmp_path / "model", device="cpu", dtype="float32")
    assert torch.equal(paint(model, n=2), paint(again, n=2))
    save(model, tmp_path / "given", training=False)
    given = hwaga.load(tmp_path / "given", device="cpu", dtype="float32")
    assert "discriminator" not in given.networks and torch.equal(paint(model), paint(given))


# ------------------------------------------------------------------------------------------------------------- refusing


IMAGE = torch.zeros(3, 16, 16)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"steps": 5}, "steps= given to VQGAN"),
        ({"guidance_scale": 2.0}, "guidance_scale= given to VQGAN"),
        ({"label": 3}, "label=3"),
        ({"size": (16, 18)}, "width 18 is not a multiple of 4"),
        ({"size": (8, 16)}, "that or larger"),
        ({"image": IMAGE}, "without mask="),
        ({"mask": IMAGE[0]}, "without image="),
        ({"reconstruct": True}, "reconstruct=true without image="),
        ({"image": IMAGE, "reconstruct": "yes"}, "reconstruct='yes'"),
        ({"image": IMAGE, "reconstruct": True, "mask": IMAGE[0]}, "mask= with reconstruct"),
        ({"image": "nowhere.png", "reconstruct": True}, "nowhere.png"),
        ({"noise": {"noise": torch.zeros(2, 4, 4)}}, "noise['noise'] has shape (2, 4, 4)"),
        ({"wobble": 1}, "wobble"),
    ],
)
def test_what_cannot_be_painted_is_refused_by_name(model, call, words):
    with pytest.raises(InputError) as error:
        paint(model, **call)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (torch.zeros(1, 4, 4), "dtype float32"),
        (torch.zeros(1, 4, 4, dtype=torch.int32), "dtype int32"),
        (torch.full((1, 4, 4), 32), "codes from 32 to 32: this codebook has the codes 0 to 31"),
        (torch.full((1, 4, 4), -1), "codes from -1 to -1"),
        (torch.zeros(4, 4, dtype=torch.int64), "shape (4, 4)"),
        (torch.zeros(0, 4, 4, dtype=torch.int64), "shape (0, 4, 4)"),
        ([[1, 2]], "latents=list"),
    ],
)
def test_codes_that_are_none_are_refused(model, codes, words):
    with pytest.raises(InputError) as error:
        model.decode(codes)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"prior": {"vocabulary": 16}}, "prior.vocabulary=16: 32 are needed"),
        ({"prior": {"length": 8}}, "model.prior.length=8"),
        ({"autoencoder": {"chanels": [8]}}, "model.autoencoder.chanels"),
        ({"loss": {"perceptual": "nowhere"}}, "perceptual='nowhere' does not exist"),
        ({"labels": True}, "the data have no labels"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(config, words):
    with pytest.raises(InputError) as error:
        tiny.vqgan(**{"labels": False, **config}, classes=()).stages()
    assert words in str(error.value)


def test_a_tokenizer_alone_says_that_it_has_no_prior():
    alone = tiny.vqgan(prior=None, labels=False)
    with pytest.raises(InputError, match="tokenizer alone"):
        paint(alone)
    assert paint(alone, image=IMAGE, reconstruct=True).shape == (1, 3, 16, 16)


def test_an_interrupted_picture_ends_at_a_code(model):
    def callback(step):
        if step.index == 3:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        paint(model, callback=callback)


def test_it_is_listed_with_its_stages_and_keywords():
    told = find("vqgan").describe()
    assert told["stages"] == ["tokenizer", "prior"] and {"temperature", "top_k", "top_p", "reconstruct"} <= set(
        told["own"]
    )


def test_a_recipe_trains_both_stages_and_leaves_a_model_that_paints(tmp_path):
    import hwaga

    recipe = {
        "system": "vqgan",
        "model": {
            "labels": True,
            "autoencoder": {
                "channels": [8, 8], "attention": None, "blocks": 1, "groups": 4, "latent_channels": 8, "patch": 2,
                "quantizer": {"codes": 16, "width": 4, "cosine": True, "update": "average", "restart": 0.05},
            },
            "discriminator": {"width": 8, "layers": 1, "norm": "group", "groups": 4},
            "prior": {"width": 16, "heads": 2, "depth": 1},
            "loss": {"perceptual": "openmoji/perceptual"},
            "adversary": {"begins": 1},
        },
        "data": {"source": "digits", "size": 16},
        "training": {
            "batch_size": 4, "preview": 4, "held_out_pictures": 8, "dtype": "float32", "checkpoint_every": 2,
            "tokenizer": {"steps": 2}, "prior": {"steps": 2, "batch_size": 8},
        },
    }  # fmt: skip
    run = hwaga.train(recipe, out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "samples" / "step-2.png").is_file() and (
        tmp_path / "run" / "samples" / "step-4.png"
    ).is_file()
    model = run.load()
    assert paint(model, label=3).shape == (1, 3, 16, 16)
    longer = hwaga.resume(tmp_path / "run", {"training.prior.steps": 3}, progress=False)
    before, after = model.tokenizer.state_dict(), longer.load().tokenizer.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # the first stage is done
    taken = {**recipe, "components": {"autoencoder": str(tmp_path / "run")}}
    again = hwaga.train(taken, out=tmp_path / "again", progress=False, overrides={"training.prior.steps": 1})
    kept = again.load().tokenizer.state_dict()
    assert (
        all(torch.equal(before[k], kept[k]) for k in before)
        and not (tmp_path / "again" / "samples" / "step-2.png").exists()
    )
    assert "autoencoder" in hwaga.running.plan(recipe, timed=False).parameters


def test_the_use_of_codes_is_a_metric_of_tokenizers_alone():
    import hwaga

    with pytest.raises(InputError, match="a folder of pictures has none"):
        hwaga.evaluate(torch.rand(4, 3, 16, 16), "digits", metrics=("codes",))
