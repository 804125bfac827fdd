"""VQGAN told words: what its transformer learns of captions, how guidance and caches agree, what it refuses."""

import math

import pytest
import tiny
import torch

import hwaga
from hwaga.errors import InputError, LostWords
from hwaga.objectives.vq import next_tokens
from hwaga.samplers.tokens import guided, reading
from hwaga.saving import save
from hwaga.systems import find


@pytest.fixture(scope="module")
def model():
    system = tiny.vqgan_text()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in system.networks["prior"].parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return system


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, **call})


def test_the_transformer_alone_learns_and_every_parameter_of_it_gets_a_gradient():
    system = tiny.vqgan_text()
    (stage,) = system.stages()
    assert stage.name == "prior" and set(stage.networks) == {"prior"}
    tiny.fill_zeros(system.networks["prior"])
    sum(stage.objectives[0].loss(tiny.captions(4), tiny.Draw(0)).values()).backward()
    missing = [n for n, p in system.networks["prior"].named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    assert all(p.grad is None for name in ("autoencoder", "text_encoder") for p in system.networks[name].parameters())


def test_it_learns_which_picture_belongs_to_which_words():
    system, batch = tiny.vqgan_text(text_dropout=0.0), tiny.captions(4)
    tokens = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))
    prior = system.networks["prior"]
    optimizer = torch.optim.AdamW(prior.parameters(), 3e-3)
    for _ in range(150):
        loss = next_tokens(prior, system._told(batch), tokens).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    right = next_tokens(prior, system._told(batch), tokens)
    wrong = next_tokens(prior, system._told(batch).flip(0), tokens)
    assert right.max() < 0.1 * math.log(32) and wrong.min() > 5 * right.max()


def test_codes_that_lie_beside_pictures_are_those_of_the_tokenizer():
    system, batch = tiny.vqgan_text(), tiny.captions(4)
    (name, made), *rest = system.precomputed().items()
    held = made.compute(batch.image)
    assert not rest and held.shape == (4, *made.shape) and held.dtype == torch.float32
    again = type(batch)(torch.zeros_like(batch.image), batch.index, caption=batch.caption, extra={name: held})
    assert torch.equal(system._tokens(again), system._tokens(batch))
    assert tiny.vqgan().precomputed() == {}  # its tokenizer learns


@torch.no_grad()
def test_states_of_a_text_see_each_other_and_codes_see_what_was_before(model):
    prior = model.networks["prior"]
    states = model.said(["a red circle"], nothing())["text"]
    tokens = torch.randint(32, (1, 15), generator=torch.Generator().manual_seed(0))
    told = states.shape[1]
    plain = prior(tokens, before=prior.before(states))
    assert plain.shape[1] == told + 15
    later = states.clone()
    later[:, told - 1] += 1  # the last state of the text reaches the first place
    assert (prior(tokens, before=prior.before(later))[:, 0] - plain[:, 0]).abs().max() > 1e-3
    other = tokens.clone()
    other[:, 7] = (other[:, 7] + 1) % 32
    changed = (prior(other, before=prior.before(states)) - plain).abs().amax((0, 2))
    assert changed[: told + 7].max() == 0 and changed[told + 7 :].min() > 0


@torch.no_grad()
def test_read_with_a_cache_it_says_what_it_says_of_the_whole_row(model):
    prior = model.networks["prior"]
    states = model.said(["a red circle", "세모"], nothing())["text"]
    tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
    read = reading(prior, states, (4, 4), (4, 4))
    found = torch.stack([read(tokens[:, :place]) for place in range(16)], 1)
    whole = prior(tokens[:, :-1], before=prior.before(states))[:, states.shape[1] - 1 :]
    assert (found - whole).abs().max() < 1e-5


@torch.no_grad()
def test_guidance_pushes_logits_away_from_those_of_no_words(model):
    prior, request = model.networks["prior"], nothing()
    told, none = (model.said([text], request)["text"] for text in ("a red circle", None))
    tokens = torch.randint(32, (1, 3), generator=torch.Generator().manual_seed(0))
    both = guided(reading(prior, torch.cat([none, told]), (4, 4), (4, 4)), 3.0)
    alone = [reading(prior, states, (4, 4), (4, 4)) for states in (none, told)]
    for place in range(4):
        null, cond = (read(tokens[:, :place]) for read in alone)
        assert (both(tokens[:, :place]) - (null + 3 * (cond - null))).abs().max() < 1e-4


def test_words_choose_the_picture_and_a_negative_prompt_that_says_the_same_takes_guidance_away(model):
    plain = paint(model, prompt="a red circle")
    assert torch.equal(plain, paint(model, prompt="a red circle", guidance_scale=1.0))
    assert not torch.equal(plain, paint(model, prompt="a blue square"))
    same = paint(model, prompt="a red circle", negative_prompt="a red circle", guidance_scale=4.0)
    assert torch.equal(plain, same)
    assert not torch.equal(plain, paint(model, prompt="a red circle", guidance_scale=4.0))


def test_a_picture_does_not_depend_on_what_is_painted_beside_it(model):
    several = paint(model, prompt=["a blue square", "a red circle"], n=2)
    assert several.shape == (4, 3, 16, 16)
    assert torch.equal(paint(model, prompt=["a blue square", "세모"], n=2)[:2], several[:2])


def test_a_larger_picture_and_one_that_is_painted_in_part(model):
    assert paint(model, prompt="a star", size=(16, 24)).shape == (1, 3, 16, 24)
    image, mask = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.zeros(16, 16)
    mask[:8] = 1
    found = paint(model, prompt="a star", image=image, mask=mask)
    assert torch.equal(found[0, :, 8:], image[:, 8:])


def test_it_is_saved_with_its_words_and_paints_the_same(model, tmp_path):
    save(model, tmp_path / "m")
    again = hwaga.load(tmp_path / "m")
    assert again.name == "vqgan-text"
    assert torch.equal(paint(again, prompt="a star"), paint(model, prompt="a star"))


def test_the_record_says_the_words(model):
    (picture,) = model.sample(prompt="a star", seed=1, progress=False)
    assert '"prompt": "a star"' in str(picture.info) or "a star" in str(picture.info)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"label": 1}, "label= given to VQGAN told words, which takes prompt="),
        ({"prompt": 3}, "prompt=3: text"),
        ({"prompt": "x", "temperature": -1}, "temperature=-1"),
        ({"prompt": "x", "clip_skip": 9}, "clip_skip=9: a whole number from 0 to 2"),
        ({"prompt": "x", "size": (8, 8)}, "knows pictures of"),
    ],
)
def test_what_it_cannot_do_is_said(model, call, told):
    with pytest.raises(InputError) as error:
        paint(model, **call)
    assert told in str(error.value)


def test_guidance_needs_words_that_were_hidden_in_training():
    with pytest.raises(InputError, match="text_dropout=0"):
        paint(tiny.vqgan_text(text_dropout=0.0), prompt="x", guidance_scale=2.0)


def test_lost_words_are_told(model):
    with pytest.warns(LostWords, match="were lost"):
        paint(model, prompt="a red circle and a blue square beside it")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"coordinates": 4}, "told words alone"),
        ({"prior": None}, "this system has both"),
        ({"prior": {"width": 32, "heads": 2, "depth": 1, "text_width": 5}}, "the text encoder gives 16"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(config, told):
    with pytest.raises(InputError) as error:
        tiny.vqgan_text(**config)
    assert told in str(error.value)


def test_without_a_text_encoder_the_recipe_is_told_to_name_one():
    with pytest.raises(InputError, match=r"components\.text_encoder=openmoji/clip"):
        find("vqgan-text").create({}, size=(16, 16))


def nothing():
    """A call that says nothing: what `said` looks at of one."""
    return tiny.captions(1)
