"""The judging network and its training: layout, determinism, learning, damage, the recipe, the saved folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hwaga.data import DataConfig, open_data
from hwaga.errors import InputError
from hwaga.evaluation import judge, load_features
from hwaga.evaluation.augmentation import KINDS, Augmentation, blurred, damage, lesson
from hwaga.networks.features import FeatureNetwork, FeaturesConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "openmoji" / "features.yaml"
SMALL = judge.JudgeNetwork(channels=(8, 16), features=12)


def digits(split="train"):
    data = open_data(DataConfig(source="digits", size=16), split)
    return data.pixels(np.arange(len(data))), np.asarray(data.labels)


@pytest.fixture(scope="module")
def trained():
    pixels, labels = digits()
    training = judge.JudgeTraining(
        steps=200, batch_size=64, learning_rate=5e-3, warmup=10, ema=0.95, seed=1,
        augmentation={"flip": False, "damaged": 0.2},
    )  # fmt: skip
    return judge.train_network(pixels, labels, 10, judge.JudgeNetwork(channels=(16, 32), features=12), training)


def test_the_config_builds_its_network_and_refuses_more_than_64_features():
    network = FeaturesConfig(classes=5, channels=(8, 16), features=7, blocks=2).build()
    judged = network.eval()(torch.zeros(3, 3, 32, 32))
    assert judged.features.shape == (3, 7) and judged.logits.shape == (3, 5)
    with pytest.raises(ValidationError):
        FeaturesConfig(classes=5, features=65)
    with pytest.raises(ValidationError):
        FeaturesConfig(classes=5, colour="red")


def test_every_parameter_has_a_gradient():
    from hwaga.networks.features import initialise

    network = initialise(FeaturesConfig(classes=5, channels=(8, 16)).build(), torch.Generator().manual_seed(0))
    for block in network.blocks:
        torch.nn.init.ones_(block.norm2.weight)  # zero at the start, which would hide the branch
    image = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    network(image).logits.square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_it_learns_the_digits_from_the_training_split(trained):
    found = judge.accuracy(trained, *digits("held-out"))
    assert found["top1"] > 0.8 and found["top5"] > 0.95 and found["n"] > 100


def test_training_is_deterministic_and_depends_on_the_seed():
    pixels, labels = digits()

    def run(seed):
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
        training = judge.JudgeTraining(steps=4, batch_size=32, seed=seed)
        network = judge.train_network(pixels[:200], labels[:200], 10, SMALL, training)
        assert torch.equal(before[0], torch.random.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
        return network.state_dict()

    first, second, other = run(0), run(0), run(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_a_saved_judge_is_loaded_as_features(trained, tmp_path):
    about = {"name": "digits/features", "data": {"config": {"source": "digits"}}}
    judge.save_network(trained, tmp_path / "judge", about)
    features = load_features(tmp_path / "judge")
    assert isinstance(trained, FeatureNetwork) and features.dim == 12
    assert (features.name, features.source) == ("digits/features", "digits")
    pixels = digits("held-out")[0][:20]
    with torch.no_grad():
        expected = trained(torch.from_numpy(pixels).float() / 127.5 - 1)
    torch.testing.assert_close(features(pixels), expected.features, rtol=2e-2, atol=2e-2)  # stored in float16
    with pytest.raises(InputError, match="exists already"):
        judge.save_network(trained, tmp_path / "judge", about)


# ------------------------------------------------------------------------------------------------------- augmentation


def test_lessons_keep_range_and_shares_and_damage_about_the_share_asked():
    n = 400
    image = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    target = torch.eye(4)[torch.arange(n) % 4]
    made = lesson(image, target, Augmentation(), torch.Generator().manual_seed(1))
    assert made.image.shape == image.shape and made.image.abs().max() <= 1
    torch.testing.assert_close(made.target.sum(1), torch.ones(n))
    assert 0.4 < (made.damage > 0).float().mean() < 0.6 and set(made.damage.tolist()) == set(range(len(KINDS)))


def test_undamaged_pictures_are_left_alone_and_damaged_ones_are_not():
    image = torch.rand(200, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    target = torch.eye(200)
    made = damage(image, target, 0.5, torch.Generator().manual_seed(1))
    changed = (made.image != image).flatten(1).any(1)
    assert torch.equal(changed, made.damage > 0)
    mixed = torch.isin(made.damage, torch.tensor([KINDS.index("pieces"), KINDS.index("blend")]))
    assert torch.equal((made.target != target).any(1), mixed)


def test_without_any_bound_a_lesson_changes_nothing():
    still = Augmentation(
        shift=0, scale=0, rotation=0, brightness=0, contrast=0, saturation=0, hue=0, grain=0, flip=False, damaged=0
    )
    image = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = lesson(image, torch.eye(6), still, torch.Generator().manual_seed(1))
    torch.testing.assert_close(made.image, image, rtol=1e-4, atol=1e-4)


def test_blur_keeps_the_mean_and_spreads_by_its_sigma():
    image = torch.zeros(2, 3, 33, 33)
    image[:, :, 16, 16] = 1
    made = blurred(image, torch.tensor([0.8, 1.5]))
    torch.testing.assert_close(made.sum((2, 3)), torch.ones(2, 3))
    x = torch.arange(33.0) - 16
    variance = (made.sum(3)[:, 0] * x**2).sum(1)
    assert variance.sqrt().tolist() == pytest.approx([0.8, 1.5], rel=0.03)


# ------------------------------------------------------------------------------------------------------------- recipe


def test_the_packaged_recipe_is_valid_and_trains_on_the_training_split_alone():
    recipe = judge.load_recipe(RECIPE)
    assert DataConfig.model_validate(recipe.data).split == "train"
    assert Augmentation.model_validate(recipe.training.augmentation).damaged > 0
    assert recipe.network.features <= 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {source: digits}\ntraining: {steps: 0}", "training.steps=0"),
        ("data: {source: digits}\ntraining: {steps: 1, speed: 2}", "training.speed"),
        ("data: {source: digits}", "training"),
        ("data: [", "not readable YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable YAML"),
    ],
)
def test_wrong_recipes_are_refused_by_name(tmp_path, text, words):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        judge.load_recipe(tmp_path / "r.yaml")


def test_the_command_trains_and_saves_and_leaves_with_its_status(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(
        "name: test/digits\ndata: {source: digits, size: 16}\nnetwork: {channels: [8], features: 6}\n"
        "training: {steps: 9, batch_size: 16}\n"
    )
    out = str(tmp_path / "out")
    assert judge.main([str(tmp_path / "r.yaml"), "--out", out, "--steps", "2"]) == 0
    assert "held-out accuracy" in capsys.readouterr().out
    assert load_features(out).name == "test/digits"
    assert judge.main([str(tmp_path / "r.yaml"), "--out", out, "--steps", "2"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert judge.main([str(tmp_path / "none.yaml"), "--out", out]) == 2
    assert judge.main([str(tmp_path / "r.yaml"), "--out", out, "--steps", "0"]) == 2
