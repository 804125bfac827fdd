"""Training a LoRA by recipe: the base stays as it is, the run's model is the LoRA beside it, and off is the base."""

from __future__ import annotations

import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file

import hwaga
from hwaga.errors import InputError
from hwaga.files import read_json
from hwaga.saving import save
from hwaga.systems import find


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A saved DiT without labels."""
    model = tiny.dit(labels=False)
    tiny.fill_zeros(model.network)
    return save(model, tmp_path_factory.mktemp("base") / "model")


def recipe(base, steps=4, **lora):
    process = {"timesteps": 50, "schedule": "cosine"}
    training = {
        "steps": steps, "batch_size": 4, "learning_rate": 0.02, "checkpoint_every": 2, "dtype": "float32", "sample_every": 0,
        "held_out_every": 0, "gradient_checkpointing": True, "threads": 1,
    }  # fmt: skip
    return {
        "system": "dit", "model": {"labels": False, "process": process, "lora": {"rank": 2, "alpha": 4, **lora}},
        "data": {"source": "digits", "size": 16}, "training": training, "components": {"network": str(base)},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return hwaga.train(recipe(base), out=tmp_path_factory.mktemp("run") / "run", progress=False).folder


def painted(model):
    return model.sample(n=2, steps=3, seed=1, output="tensor", progress=False)


def test_off_it_is_the_base_bit_for_bit_and_on_it_is_not(base, run):
    model, expected = hwaga.load(run, device="cpu"), painted(hwaga.load(base, device="cpu"))
    assert model.loras == {"trained": 1.0}
    assert not torch.allclose(painted(model), expected, atol=1e-4)
    model.set_lora("trained", 0)
    assert torch.equal(painted(model), expected)


def test_the_runs_model_holds_the_lora_and_names_its_base(base, run):
    card = read_json(run / "model" / "model.json")
    assert card["components"]["network"]["source"] == str(base)
    assert not (run / "model" / "network").exists() and (run / "model" / "lora" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["lora.safetensors", "lora-kohya.safetensors"])
def test_its_files_in_public_names_paint_the_same_on_the_base(base, run, name):
    model = hwaga.load(base, device="cpu")
    model.load_lora(run / "model" / name)
    torch.testing.assert_close(painted(model), painted(hwaga.load(run, device="cpu")), atol=1e-5, rtol=0)


def test_killed_and_resumed_it_ends_with_the_same_bits(base, run, tmp_path):
    folder = hwaga.train(recipe(base, steps=2), out=tmp_path / "run", progress=False).folder
    hwaga.resume(folder, overrides={"training.steps": 4}, progress=False)
    a, b = (load_file(place / "model" / "lora" / "model.safetensors") for place in (run, folder))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_another_base_than_it_was_trained_beside_is_refused(base, run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    card = (moved / "model" / "model.json").read_text()
    other = save(tiny.dit(labels=False, seed=9), tmp_path / "other")
    (moved / "model" / "model.json").write_text(card.replace(str(base), str(other)))
    with pytest.raises(InputError, match="others than it was trained with"):
        hwaga.load(moved)
    (moved / "model" / "model.json").write_text(card.replace(str(base), str(tmp_path / "gone")))
    with pytest.raises(InputError, match="is a LoRA beside the model .*gone, which cannot be loaded"):
        hwaga.load(moved)


def test_saved_as_a_whole_it_needs_no_base(run, tmp_path):
    model = hwaga.load(run, device="cpu")
    model_again = hwaga.load(save(model, tmp_path / "whole"), device="cpu")
    assert torch.equal(painted(model), painted(model_again))
    hwaga.export(model, tmp_path / "a.safetensors", format="kohya")
    with pytest.raises(InputError, match="0 LoRAs"):
        hwaga.export(tiny.ddpm(), tmp_path / "b.safetensors", format="peft")


def test_exported_it_is_in_the_weights_and_the_model_is_as_before():
    base = tiny.stable_diffusion()
    tiny.fill_zeros(base.network)
    model = find("stable-diffusion").create(
        {"process": {"timesteps": 50}, "lora": {"rank": 2}}, size=(16, 16), components=dict(base.networks)
    )
    with torch.no_grad():
        for _, up in model.networks["lora"].pairs().values():
            up.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    ask = lambda m: m.sample(prompt="a star", steps=2, seed=0, guidance_scale=2.0, output="tensor", progress=False)  # noqa: E731
    before, weight = ask(model), model.network.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.clone()
    with model.merged_lora():
        inside = ask(model)
        assert not torch.equal(model.network.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight, weight)
    torch.testing.assert_close(inside, before, atol=1e-4, rtol=0)
    assert torch.equal(model.network.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight, weight)
    assert torch.equal(ask(model), before)


@pytest.mark.parametrize("make", [tiny.ddpm, tiny.dit, tiny.stable_diffusion])
def test_it_overfits_one_batch_and_moves_no_weight_of_the_base(make):
    base = make()
    tiny.fill_zeros(base.network)
    held = {name: value.clone() for name, value in base.network.state_dict().items()}
    config = {
        **base.config.model_dump(mode="json", exclude={"network", "autoencoder", "text_encoder", "text_encoder_2"})
    }
    classes = {"classes": base.about.classes} if base.about.classes else {}
    model = type(base).create(
        {**config, "lora": {"rank": 8, "targets": ["all"]}}, size=(16, 16), components=dict(base.networks), **classes
    )
    (stage,) = model.stages()
    assert set(stage.networks) == {"lora"} and stage.averaged == ("lora",)
    batch = tiny.captions(4) if make is tiny.stable_diffusion else tiny.batch(4)
    optimizer = torch.optim.Adam(stage.networks["lora"].parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = sum(stage.objectives[0].loss(batch, tiny.Draw(0)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0], losses
    assert all(torch.equal(value, held[name]) for name, value in model.network.state_dict().items())


def test_what_cannot_be_is_told(base, tmp_path):
    for change, says in (
        ({"components": {}}, "components.network=MODEL"),
        ({"model.lora.targets": ["to_x"]}, "model.lora.targets='to_x' is the end of no layer's name"),
        ({"model.lora.rank": 0}, "model.lora.rank=0"),
        ({"model.process.timesteps": 60}, "components.network: its process has timesteps=50, the recipe's 60"),
        ({"model.labels": True}, "labels=True with network.classes=0"),
    ):
        with pytest.raises(InputError, match=says):
            hwaga.train(recipe(base), out=tmp_path / "run", overrides=change, progress=False)


def test_the_plan_counts_what_is_trained_alone(base):
    from hwaga.running import plan

    told = plan(recipe(base), timed=False)
    network = sum(p.numel() for p in hwaga.load(base, device="cpu").network.parameters())
    assert told.parameters["lora"] < network / 5
    memory = told.stages[0].memory
    assert memory.gradients <= 4 * told.parameters["lora"] + 64
