"""Students of few steps: what they learn, from whom, and how they paint."""

import warnings

import pytest
import tiny
import torch

import hwaga
from hwaga.data.order import Order
from hwaga.errors import InputError
from hwaga.recipes import load_recipe
from hwaga.saving import save
from hwaga.systems import find, students
from hwaga.training.config import TrainingConfig
from hwaga.training.loop import Trainer

COSINE = {"timesteps": 50, "schedule": "cosine", "predicts": "v"}
CONSISTENT = {
    "student": {"kind": "latent-consistency", "places": 10, "scales": [1.0, 4.0]},
    "sampling": {"sampler": "lcm"},
}
TUNED = {"student": {"kind": "consistency-tuning", "every": 2}, "sampling": {"sampler": "lcm"}}
FLOWING = {"student": {"kind": "mean-flow", "omega": 2.0, "kappa": 0.3}, "sampling": {"sampler": "flow-euler"}}


def teacher(make, process):
    """A denoiser of some kind, its network filled, and the same network as a frozen part."""
    model = make(process=process)
    tiny.fill_zeros(model.network)
    return model


def student(make, process, **model):
    """A student that begins as its teacher."""
    old = teacher(make, process)
    new = make(process=process, **model)
    own = new.network.state_dict()
    new.network.load_state_dict({**own, **old.network.state_dict()})
    new.networks["teacher"] = old.network.requires_grad_(False).eval()
    return new


def all_kinds():
    flow = {"kind": "flow"}
    return {
        "ddpm, latent consistency": lambda: student(tiny.ddpm, COSINE, **CONSISTENT),
        "dit, latent consistency": lambda: student(tiny.dit, COSINE, **CONSISTENT),
        "dit of a flow, latent consistency": lambda: student(tiny.dit, flow, **CONSISTENT),
        "ddpm, tuned": lambda: student(tiny.ddpm, COSINE, **TUNED),
        "dit, mean flow": lambda: student(tiny.dit, flow, **FLOWING),
    }


KINDS = all_kinds()


def trainer(system, steps=20, accumulation=1, learning_rate=2e-3):
    config = TrainingConfig(
        steps=steps, batch_size=8, dtype="float32", learning_rate=learning_rate, accumulation=accumulation
    )
    return Trainer(system.stages()[0], config, tiny.Pictures(), Order(8, 8, seed=0))


def paint(model, **call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model.sample(**{"output": "tensor", "progress": False, "seed": 5, "label": 1, **call})


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter_and_the_teacher_stays_bit_identical(kind):
    system = KINDS[kind]()
    before = {name: value.clone() for name, value in system.networks["teacher"].state_dict().items()}
    work = trainer(system, steps=3)
    start = {name: value.clone() for name, value in system.network.state_dict().items()}
    for _ in range(3):
        work.step()
    still = [name for name, value in system.network.state_dict().items() if torch.equal(value, start[name])]
    assert still == []
    assert all(torch.equal(value, before[name]) for name, value in system.networks["teacher"].state_dict().items())


@pytest.mark.parametrize("kind", ["ddpm, latent consistency", "dit, mean flow"])
def test_a_step_is_the_same_in_parts_as_in_one(kind):
    """The target moves once a step, whatever the number of parts."""
    ends = []
    for accumulation in (1, 4):
        system = KINDS[kind]()
        work = trainer(system, accumulation=accumulation, learning_rate=1e-3)
        for _ in range(3):
            work.step()
        ends.append(
            torch.cat([p.detach().flatten() for p in work.stage.networks[list(work.stage.networks)[-1]].parameters()])
        )
    assert (ends[0] - ends[1]).abs().max() < 3e-5


def test_the_student_learns_its_teachers_step():
    """Loss on fixed draws falls to a fraction within some steps."""
    system = student(tiny.ddpm, COSINE, **CONSISTENT)
    stage, batch = system.stages()[0], tiny.batch(4)
    optimizer = torch.optim.AdamW(system.network.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        loss = stage.objectives[0].loss(batch, tiny.Draw(0))["consistency"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_it_paints_in_one_to_eight_steps_and_is_the_same_when_loaded_again(kind, tmp_path):
    system = KINDS[kind]()
    tiny.fill_zeros(system.network)
    scale = {"guidance_scale": 2.0} if system.config.network.guidance_width else {}
    one, four = paint(system, n=2, steps=1, **scale), paint(system, n=2, steps=4, **scale)
    assert one.shape == (2, 3, 16, 16) and not torch.equal(one, four)
    assert (paint(system, n=1, steps=4, **scale) - four[:1]).abs().max() < 1e-5
    save(system, tmp_path / "model")
    again = hwaga.load(tmp_path / "model", device="cpu", dtype="float32")
    assert torch.equal(paint(again, n=2, steps=4, **scale), four)


def test_a_step_costs_one_evaluation_whatever_the_guidance():
    system, calls = student(tiny.ddpm, COSINE, **CONSISTENT), []
    system.network.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[0]))
    paint(system, n=2, steps=3, guidance_scale=3.0)
    assert calls == [2, 2, 2]


def test_the_scale_is_told_to_the_network_and_changes_the_picture():
    system = student(tiny.ddpm, COSINE, **CONSISTENT)
    tiny.fill_zeros(system.network)
    assert not torch.equal(paint(system, steps=2, guidance_scale=1.5), paint(system, steps=2, guidance_scale=3.5))


def test_a_mean_flow_that_has_learned_nothing_yet_is_its_flow():
    old = teacher(tiny.dit, {"kind": "flow"})
    new = student(tiny.dit, {"kind": "flow"}, **FLOWING)
    assert torch.allclose(paint(old, steps=4, sampler="flow-euler"), paint(new, steps=4), atol=1e-6)


def test_mean_flow_looks_at_where_a_step_leads():
    system = student(tiny.dit, {"kind": "flow"}, **FLOWING)
    tiny.fill_zeros(system.network)
    spans = []
    system.network.register_forward_pre_hook(
        lambda m, args, kwargs: spans.append(kwargs["span"][0].item()), with_kwargs=True
    )
    paint(system, steps=2)
    assert spans == [0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "call", "words"),
    [
        (lambda: student(tiny.dit, {"kind": "flow"}, **FLOWING), {"guidance_scale": 3.0}, "guidance inside"),
        (lambda: student(tiny.ddpm, COSINE, **CONSISTENT),
         {"guidance_scale": 2.0, "guidance_interval": [0.2, 0.8]}, "leave it out"),
        (lambda: student(tiny.ddpm, COSINE, **CONSISTENT), {"guidance_scale": 2.0, "steps": 11}, "knows 10 steps"),
        (lambda: student(tiny.ddpm, COSINE, **CONSISTENT),
         {"guidance_scale": 2.0, "image": torch.zeros(3, 16, 16), "inversion": True, "sampler": "ddim"}, "ask its teacher"),
    ],
)  # fmt: skip
def test_what_a_student_cannot_do_is_refused(make, call, words):
    with pytest.raises(InputError, match=words):
        paint(make(), **call)


def test_a_scale_that_was_never_learned_is_warned_of():
    with pytest.warns(UserWarning, match="from 1 to 4"):
        student(tiny.ddpm, COSINE, **CONSISTENT).sample(steps=1, guidance_scale=9.0, output="tensor", progress=False)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"student": {"kind": "mean-flow"}}, "a flow that predicts velocity"),
        ({"student": {"kind": "latent-consistency", "places": 7}}, "does not divide"),
        ({"student": {"kind": "latent-consistency", "scales": [4, 1]}}, "rise"),
        ({"student": {"kind": "mean-flo"}}, "student"),
        ({"student": {"kind": "mean-flow", "apartt": 1}}, "student.apartt"),
    ],
)
def test_a_student_that_cannot_be_is_refused_by_key(model, words):
    with pytest.raises(InputError) as error:
        tiny.ddpm(process=COSINE, **model)
    assert words in str(error.value)


def test_without_a_teacher_there_is_nothing_to_distil():
    with pytest.raises(InputError, match=r"components\.teacher"):
        tiny.ddpm(process=COSINE, **CONSISTENT).stages()


def recipe(**sections):
    network = {"channels": [8, 16], "attention": [False, False], "groups": 4, "blocks": 1}
    training = {
        "batch_size": 4,
        "checkpoint_every": 2,
        "sample_every": 0,
        "held_out_every": 2,
        "seed": 3,
        "dtype": "float32",
    }
    base = {
        "system": "ddpm", "model": {"labels": True, "network": network, "process": COSINE},
        "data": {"source": "digits", "size": 8}, "training": {**training, "steps": 2},
    }  # fmt: skip
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return base


def test_a_run_distils_from_a_run_and_resumes_to_the_same_bits(tmp_path):
    hwaga.train(recipe(), out=tmp_path / "teacher", progress=False)
    source = str(tmp_path / "teacher")
    told = {"components": {"teacher": source}, "model": CONSISTENT}
    whole = recipe(**told, training={"steps": 4, "start_from": source})
    hwaga.train(whole, out=tmp_path / "whole", progress=False)
    hwaga.train({**whole, "training": {**whole["training"], "steps": 2}}, out=tmp_path / "parts", progress=False)
    hwaga.resume(tmp_path / "parts", {"training.steps": 4}, progress=False)
    files = [tmp_path / name / "model" / "network" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    mine = (tmp_path / "whole" / "model" / "teacher" / "model.safetensors").read_bytes()
    assert mine == (tmp_path / "teacher" / "model" / "network" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"schedule='cosine'"):
        other = {**whole, "model": {**whole["model"], "process": {**COSINE, "schedule": "linear"}}}
        hwaga.train(other, out=tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_the_recipes_of_students_are_whole():
    for name, kind in (("openmoji/ddpm-lcm", "latent-consistency"), ("openmoji/dit-meanflow", "mean-flow")):
        one = load_recipe(name)
        assert one.model["student"]["kind"] == kind and one.training.start_from.startswith("openmoji/")


# ------------------------------------------------------------------------------------------------------------- LCM-LoRA


def beside(make=None, **model):
    """A student that is small matrices beside its teacher."""
    base = teacher(tiny.stable_diffusion if make is None else make, COSINE)
    parts = {name: part for name, part in base.networks.items() if name != "lora"}
    words = {} if make is None else {"labels": True}
    config = {"process": COSINE, **CONSISTENT, "lora": {"rank": 2, "targets": ["all"]}, **words, **model}
    system = find(base.name).create(
        {**config, "network": base.config.network.model_dump()}, size=(16, 16), components=parts,
        classes=base.about.classes, label_counts=base.about.label_counts,
    )  # fmt: skip
    tiny.fill_zeros(system.networks["lora"])
    return system


@pytest.mark.parametrize("make", [None, tiny.dit, tiny.ddpm], ids=["stable diffusion", "dit", "ddpm"])
def test_of_an_lcm_lora_the_matrices_alone_learn(make):
    system = beside(make)
    before = {name: value.clone() for name, value in system.network.state_dict().items()}
    (stage,) = system.stages()
    assert stage.averaged == ("lora",) and set(stage.networks) == {"lora"}
    batch = tiny.captions(4) if make is None else tiny.batch(4)
    sum(stage.objectives[0].loss(batch, tiny.Draw(0)).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in system.networks["lora"].parameters())
    assert all(p.grad is None for p in system.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in system.network.state_dict().items())


@torch.no_grad()
def test_its_teacher_is_the_base_even_where_a_layer_keeps_what_it_made_of_the_text():
    system, batch = beside(), tiny.captions(4)
    told, x, time = system.conditions(batch), torch.randn(4, 4, 8, 8), torch.full((4,), 20.0)
    student, base = system.compute(x, time, **told), students._base(system)(x, time, **told)
    again = system.compute(x, time, **told)
    system.networks["lora"].scale = 0.0
    alone = system.compute(x, time, **{name: value.clone() for name, value in told.items()})
    assert torch.equal(base, alone) and torch.equal(student, again) and not torch.allclose(student, base, atol=1e-3)


def test_an_lcm_lora_paints_in_few_steps_and_has_its_guidance_inside():
    system = beside()
    assert paint_words(system, steps=2).shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="guidance inside; use 1"):
        paint_words(system, steps=2, guidance_scale=3.0)


def test_a_mean_flow_is_no_lora():
    with pytest.raises(InputError, match="which a frozen network is not"):
        find("dit").checked({"process": {"kind": "flow"}, "lora": {"rank": 2}, **FLOWING})


def paint_words(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, "prompt": "a red circle", **call})
