from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hwaga import recipes
from hwaga.errors import InputError
from hwaga.recipes import Recipe, differences, find_recipe, load_recipe, parsed, shipped_recipes

PLAIN: dict[str, Any] = {"system": "ddpm"}


def training(**values: object) -> dict[str, Any]:
    return {"system": "ddpm", "training": values}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"system": "ddpn"}, ["system='ddpn' is unknown", "did you mean 'ddpm'?"]),
        ({"systm": "ddpm"}, ["systm is unknown", "did you mean system?"]),
        ({}, ["system is missing", "system: ddpm"]),
        (training(step=3), ["training.step is unknown", "did you mean training.steps?"]),
        (training(steps=-3), ["training.steps=-3", "greater than or equal to 1"]),
        (training(steps=True), ["training.steps=True", "should be a number"]),
        (training(steps="many"), ["training.steps='many'", "integer"]),
        (training(optimizer={"beta": 1}), ["training.optimizer.beta is unknown",
        "did you mean training.optimizer.betas?"]), (training(optimizer={"betas": [0.9]}),
        ["training.optimizer.betas.1 is missing"]), (training(optimizr={"betas": 1}), ["training.optimizr is neither",
        "denoising", "did you mean training.optimizer?"]), (training(denoising={"stps": 3}),
        ["training.denoising.stps is unknown", "training.denoising.steps?"]), (training(denoising={"steps": 0}),
        ["training.denoising.steps=0"]), (training(denoising={"device": "cpu"}), ["training.denoising.device",
        "right would be training.device"]), (training(schedule="cosin"), ["training.schedule='cosin'", "'cosine'"]),
        ({"system": "ddpm", "training": [1]}, ["training=[1]", "mapping"]),
        ({"system": "ddpm", "data": {"size": -1}}, ["data.size=-1"]),
        ({"system": "ddpm", "data": {"size": [32, "a"]}}, ["data.size"]),
        ({"system": "ddpm", "model": {"netwrk": 3}}, ["model.netwrk is unknown", "did you mean model.network?"]),
        ({"system": "ddpm", "model": {"network": {"chanels": [8]}}}, ["model.network.chanels is unknown", "channels?"]),
        ({"system": "ddpm", "evaluation": {"metrics": ["fit"]}}, ["evaluation.metrics", "did you mean 'fid'?"]),
        ({"system": "ddpm", "components": {"autoencoder": 3}}, ["components.autoencoder=3", "string"]),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_recipe_is_told_in_one_sentence(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(values)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_values_that_are_put_in_are_read_as_yaml() -> None:
    recipe = load_recipe(
        PLAIN,
        {
            "training.steps": "10",
            "training.learning_rate": "1e-4",
            "training.ema.half_lives": "[5, 6]",
            "training.clip_norm": "null",
            "data.source": "digits",
            "training.tensorboard": True,
        },
    )
    # fmt: skip
    assert recipe.training.steps == 10 and recipe.training.learning_rate == 1e-4
    assert recipe.training.ema.half_lives == (5.0, 6.0) and recipe.training.clip_norm is None
    assert recipe.data.source == "digits" and recipe.training.tensorboard is True


@pytest.mark.parametrize("key", ["", "training.", ".steps"])
def test_a_key_with_a_hole_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="is no key"):
        load_recipe(PLAIN, {key: 1})


def test_yaml_means_what_people_write() -> None:
    assert parsed("1e-3") == 1e-3 and parsed("-2E5") == -2e5 and parsed("1.5") == 1.5 and parsed("007") == 7
    assert parsed("no") == "no" and parsed("off") == "off" and parsed("true") is True and parsed("null") is None
    assert parsed("a: [") == "a: [" and parsed("[1, b]") == [1, "b"]


def test_a_resolved_recipe_is_read_back_as_it_was(tmp_path: Path) -> None:
    recipe = load_recipe(training(steps=5, denoising={"steps": 7, "ema": {"half_lives": [10, 20], "model": 20}}))
    recipe.save(tmp_path / "recipe.yaml")
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe and again.fingerprint() == recipe.fingerprint()
    assert again.training.for_stage("denoising").ema.chosen == 20
    assert load_recipe(recipe) == recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("system: [", "is not YAML"),
        ("- a\n- b\n", "is no recipe"),
        ("", "is no recipe"),
        ("system: ddpm\nsystem: ddpm\n", "the key 'system' is there twice"),
        ("system: !!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("system: ddpm\ntraining: &a\n  steps: 5\n  more: *a\n", "training.more is (unknown|neither)"),
        ("? [a, b]\n: c\n", "a key must be a word"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_recipe(write(tmp_path / "r.yaml", text))
    assert "r.yaml" in str(caught.value)


def test_a_file_too_large_to_be_a_recipe_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a recipe has at most"):
        load_recipe(write(tmp_path / "r.yaml", "system: ddpm\n" + "#" * 2**20))


def test_a_tower_of_aliases_does_no_harm(tmp_path: Path) -> None:
    lines = ["system: ddpm", "a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(InputError, match="is unknown"):
        load_recipe(write(tmp_path / "r.yaml", "\n".join(lines)))


def test_shipped_recipes_are_found_by_name_and_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names = shipped_recipes()
    assert "openmoji/ddpm" in names and "openmoji/features" not in names
    for name in names:
        assert isinstance(load_recipe(name), Recipe)
    for spelling in ("openmoji/ddpm", "recipes/openmoji/ddpm.yaml", "./recipes/openmoji/ddpm", "openmoji/ddpm.yaml"):
        assert find_recipe(spelling) == recipes.packaged() / "openmoji" / "ddpm.yaml"


@pytest.mark.parametrize("name", ["openmoji/dpm", "../pyproject", "openmoji/../../pyproject", "/nowhere/a.yaml"])
def test_an_unknown_recipe_is_refused_with_those_that_there_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is unknown; choose from: .*openmoji/ddpm"):
        load_recipe(name)


def test_a_run_named_as_a_recipe_is_told_how_to_go_on(tmp_path: Path) -> None:
    write(tmp_path / "recipe.yaml", "system: ddpm\n")
    with pytest.raises(InputError, match=f"hwaga train --resume {tmp_path}"):
        load_recipe(tmp_path)


def test_lengths_and_habits_may_change_and_nothing_else() -> None:
    old = load_recipe(training(steps=5, batch_size=8, denoising={"steps": 7}))
    longer = load_recipe(old, {"training.steps": 9, "training.denoising.steps": 20, "training.log_every": 3,
                               "training.denoising.checkpoint_every": 2, "evaluation.n": 9})  # fmt: skip
    assert differences(old, longer) == [] and old.fingerprint() == longer.fingerprint()
    other = load_recipe(old, {"training.batch_size": 9, "data.size": 16, "training.denoising.learning_rate": 0.5})
    assert differences(old, other) == [
        "data.size: 32 in the run, 16 asked for", "training.batch_size: 8 in the run, 9 asked for",
        "training.denoising.learning_rate: None in the run, 0.5 asked for",
    ]  # fmt: skip
    assert old.fingerprint() != other.fingerprint()


def test_the_resolved_file_is_plain_yaml() -> None:
    values = yaml.safe_load(load_recipe(PLAIN).to_yaml())
    assert list(values) == ["system", "model", "data", "training", "evaluation", "components"]
    assert values["training"]["optimizer"]["eps"] == 1e-8


def test_a_recipe_says_its_difference_from_another(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: openmoji/ddpm\nmodel: {network: {blocks: 2}}\ntraining: {steps: 7}\n")
    base, mine = load_recipe("openmoji/ddpm"), load_recipe(file)
    assert mine.model["network"] == {**base.model["network"], "blocks": 2}
    assert mine.training == base.training.model_copy(update={"steps": 7}) and mine.data == base.data
    assert load_recipe(mine.model_dump(mode="json")) == mine  # what a run writes down is whole


def test_a_mapping_of_another_kind_takes_the_place_of_the_bases(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: openmoji/vae-kl\nmodel: {network: {kind: vector, latents: 9}, beta: 1}\n")
    mine = load_recipe(file)
    assert mine.model["network"] == {"kind": "vector", "latents": 9} and mine.model["scaling"] == "whole"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: openmoji/dppm\n", "did you mean"),
        ("base: [a]\n", "should be the name of a recipe"),
        ("base: LOOP\n", "leads back to itself"),
        ("base: openmoji/ddpm\ntraining: {stepz: 3}\n", "training.stepz"),
    ],
)
def test_a_base_that_cannot_be_is_named(text, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("LOOP", str(file)))
    with pytest.raises(InputError) as error:
        load_recipe(file)
    assert words in str(error.value) and "\n" not in str(error.value)
