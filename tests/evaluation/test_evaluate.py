"""`evaluate` from end to end: samples of every form, the floor, intervals, cards, warnings, bad input."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hwaga.data import DataConfig, open_data
from hwaga.errors import InputError
from hwaga.evaluation import (
    METRICS,
    EvaluationConfig,
    Interval,
    Scores,
    cards_differ,
    compare,
    evaluate,
    load_features,
)
from hwaga.evaluation.augmentation import blurred
from hwaga.evaluation.intervals import Resamples, ratio_interval, resampled_distances, whole_clusters

CONFIG = DataConfig(source="openmoji", size=32)


@pytest.fixture(scope="module")
def training():
    return open_data(CONFIG, "train")


@pytest.fixture(scope="module")
def held_out():
    return open_data(CONFIG, "held-out")


@pytest.fixture(scope="module")
def real(training):
    """400 training pictures, uint8, drawn one by one."""
    return training.pixels(np.random.default_rng(0).choice(len(training), 400, replace=False))


def write(folder, pixels):
    folder.mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{i}.png")
    return folder


# --------------------------------------------------------------------------------------------------------------- scores


def test_everything_can_be_measured_and_written(real, held_out, training, tmp_path):
    seen = []
    scores = evaluate(
        real, held_out, training=training, metrics=METRICS, resamples=50,
        settings={"sampler": "ddim", "steps": 50, "seconds_a_picture": 0.5},
        progress=lambda done, total, what: seen.append((done, total)),
    )  # fmt: skip
    assert set(scores.values) == {
        "fid", "fid_floor", "fid_over_floor", "kid", "kid_standard_error", "precision", "recall", "density", "coverage",
        "inception_score", "inception_score_real", "sharpness", "memorisation", "near_samples", "near_training",
        "seconds_a_picture",
    }  # fmt: skip
    assert all(np.isfinite(value) for value in scores.values.values())
    for name, (low, high) in scores.intervals.items():
        assert low <= scores.values[name] <= high
    assert scores.values["fid_over_floor"] < 1.5 and 0.8 < scores.values["sharpness"] < 1.2
    assert scores.values["near_samples"] == 1.0  # they are training pictures, and it is said
    assert any("contains its own training pictures" in note for note in scores.notes)
    done = [d for d, _ in seen]
    assert done == sorted(done) and done[-1] == seen[-1][1]

    card = scores.card
    assert (card["sampler"], card["steps"], card["n"], card["seed"]) == ("ddim", 50, 400, 0)
    assert card["features"]["sha256"] == load_features(None).sha256
    assert card["reference"]["source"] == "openmoji" and card["reference"]["split"] == "held-out"
    assert card["reference"]["size"] == [32, 32] and card["floor"]["n"] == 400 and "torch" in card["versions"]
    scores.save(tmp_path / "scores.json")
    again = Scores.read(tmp_path / "scores.json")
    assert again.values == scores.values and cards_differ(again.card, card) == [] and again.notes == scores.notes


@pytest.mark.parametrize("n", [10, 60])
def test_few_pictures_give_finite_scores(real, held_out, training, n):
    scores = evaluate(real, held_out, training=training, n=n, metrics=METRICS, resamples=20)
    assert scores.card["n"] == n
    assert all(np.isfinite(value) for value in scores.values.values())


def test_real_against_itself_is_perfect(held_out):
    scores = evaluate(held_out, held_out, metrics=("fid", "kid", "prdc", "sharpness"), resamples=0)
    assert scores.values["fid"] == pytest.approx(0, abs=1e-9)
    assert [scores.values[name] for name in ("precision", "recall", "density", "coverage", "sharpness")] == [1.0] * 5
    assert "fid_over_floor" not in scores.values and any("no floor" in note for note in scores.notes)


def test_damage_of_every_kind_raises_the_distance(real, held_out):
    def fid(pictures):
        return evaluate(pictures, held_out, metrics=("fid",), resamples=0).values["fid"]

    plain = fid(real)
    image = torch.from_numpy(real).float() / 255
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    assert fid(blurred(image, torch.full((400,), 0.8))) > 1.5 * plain
    assert fid((image + 0.1 * noise).clamp(0, 1)) > 1.5 * plain
    assert fid(image.mean(1, keepdim=True).expand(-1, 3, -1, -1)) > 1.5 * plain
    assert fid(image[:, [1, 2, 0]]) > 1.5 * plain
    assert fid((image + image.flip(0)) / 2) > 1.5 * plain
    assert fid(image[:20].repeat(20, 1, 1, 1)) > 1.5 * plain  # few modes, repeated


# -------------------------------------------------------------------------------------------------------------- samples


def test_folder_tensor_and_array_of_the_same_pictures_have_the_same_scores(real, held_out, tmp_path):
    few = real[:30]
    folder = write(tmp_path / "samples", few)
    fractions = torch.from_numpy(few).float() / 255
    found = [
        evaluate(form, held_out, resamples=0).values
        for form in (folder, str(folder), few, few.transpose(0, 2, 3, 1), torch.from_numpy(few), fractions)
    ]
    assert all(values == found[0] for values in found)


def test_the_same_call_gives_the_same_scores_and_touches_no_global_generator(real, held_out, training):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = evaluate(real, held_out, training=training, n=50, seed=3, resamples=10)
    assert torch.equal(before[0], torch.random.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    second = evaluate(real, held_out, training=training, n=50, seed=3, resamples=10)
    other = evaluate(real, held_out, training=training, n=50, seed=4, resamples=10)
    assert first.values == second.values and first.intervals == second.intervals
    assert other.values["fid"] != first.values["fid"] and other.values["fid_floor"] == first.values["fid_floor"]


def test_broken_files_are_left_out_and_counted_and_other_sizes_are_fitted(real, held_out, tmp_path):
    folder = write(tmp_path / "samples", real[:12])
    (folder / "broken.png").write_bytes(b"\x89PNG cut")
    Image.fromarray(real[12].transpose(1, 2, 0)).resize((64, 64), 0).save(folder / "large.png")
    scores = evaluate(folder, held_out, resamples=0)
    assert scores.card["n"] == 13 and "Lanczos" in scores.card["resize"]
    assert any(note.startswith("1 files were left out: broken.png") for note in scores.notes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metrics": ("fid", "kidd")}, "metric='kidd' is unknown; .*did you mean 'kid'"),
        ({"metrics": ()}, "metrics is empty"),
        ({"metrics": "fid"}, r"want a tuple of names, such as \('fid',\)"),
        ({"n": 41}, "there are only 40 samples"),
        ({"n": 1}, "n=1: want a whole number"),
        ({"metrics": ("memorisation",)}, "needs the pictures that were trained on"),
        ({"n": 5}, "k=5: .*with 5 pictures k < 5"),
        ({"reference": "openmoji"}, "want a hwaga.data.Dataset"),
        ({"resamples": -1}, "resamples=-1"),
        ({"features": "/no/such/file"}, "no such folder or file"),
        ({"samples": torch.zeros(40, 3, 32, 32) + 2}, r"want \[0, 1\]"),
        ({"samples": "/no/such/folder"}, "no such folder of pictures"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(real, held_out, given, words):
    arguments = {"samples": real[:40], "reference": held_out, **given}
    with pytest.raises(InputError, match=words):
        evaluate(arguments.pop("samples"), arguments.pop("reference"), **arguments)


def test_folders_without_enough_pictures_are_refused(real, held_out, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures in this folder"):
        evaluate(tmp_path / "empty", held_out)
    folder = write(tmp_path / "few", real[:7])
    with pytest.raises(InputError, match="holds only 7 pictures"):
        evaluate(folder, held_out, n=8)
    for file in folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="0 usable pictures .*left out: .*empty file"):
        evaluate(folder, held_out)


# ------------------------------------------------------------------------------------------------------- cards, warnings


def test_emoji_features_on_other_data_warn():
    digits = open_data(DataConfig(source="digits", size=32), "held-out")
    with pytest.warns(UserWarning, match="were made for openmoji and judge 'digits'"):
        scores = evaluate(digits, digits, n=20, resamples=0)
    assert any("judge 'digits'" in note for note in scores.notes)


def test_cards_differ_names_the_fields_but_not_whose_pictures_they_are(real, held_out):
    first = evaluate(real[:20], held_out, metrics=("kid",), settings={"steps": 50, "model": "a"}).card
    second = evaluate(real[20:40], held_out, metrics=("kid",), settings={"steps": 50, "model": "b"}).card
    assert cards_differ(first, second) == []
    third = evaluate(real[:30], held_out, metrics=("kid",), settings={"steps": 20, "sampler": "ddim"}).card
    assert sorted(cards_differ(first, third)) == ["n", "sampler", "steps"]
    other = {**first, "features": {**first["features"], "sha256": "0"}}
    assert cards_differ(first, other) == ["features.sha256"]
    assert cards_differ(first, json.loads(json.dumps(first))) == []


def test_two_models_are_compared_by_the_ratio_inside_each_resample(real, held_out):
    image = torch.from_numpy(real).float() / 255
    good = evaluate(real, held_out, metrics=("fid",), resamples=0)
    bad = evaluate(blurred(image, torch.full((400,), 1.0)), held_out, metrics=("fid",), resamples=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ratio = compare(good, bad, resamples=60)
    assert ratio.value == pytest.approx(good.values["fid"] / bad.values["fid"])
    assert ratio.low <= ratio.value <= ratio.high < 1
    same = compare(good, good, resamples=20)
    assert tuple(same) == pytest.approx((1, 1, 1))  # the same pictures are drawn on both sides
    with pytest.warns(UserWarning, match="cards differ in n"):
        compare(good, evaluate(real[:100], held_out, metrics=("fid",), resamples=0), resamples=10)
    with pytest.raises(InputError, match="come without their features"):
        compare(good, Scores(good.values, {}, good.card))
    with pytest.raises(InputError, match="features.name"):
        card = {**bad.card, "features": {**bad.card["features"], "name": "x"}}
        compare(good, Scores(bad.values, {}, card, [], bad._witness))


def test_a_limit_holds_if_the_interval_is_narrow_and_not_above_it():
    assert Interval(1.0, 0.96, 1.04).holds(1.0)
    assert not Interval(1.0, 0.9, 1.1).holds(1.2)  # too wide to say
    assert not Interval(1.3, 1.28, 1.32).holds(1.2)


def test_a_recipes_section_is_checked():
    assert EvaluationConfig().metrics == ("fid", "kid")
    for wrong in ({"metrics": ["fidd"]}, {"n": 1}, {"every": 0}, {"colour": 1}, {"metrics": []}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EvaluationConfig.model_validate(wrong)


# ------------------------------------------------------------------------------------------------------------ intervals


def test_the_floor_is_made_of_whole_clusters(training):
    places = whole_clusters(training.clusters, 500, 0)
    assert 490 <= len(places) <= 500 and len(set(places)) == len(places)
    taken, rest = set(training.clusters[places]), np.delete(training.clusters, places)
    assert not taken & set(rest)
    assert not np.array_equal(places, whole_clusters(training.clusters, 500, 1))


def test_resamples_draw_whole_clusters():
    clusters = np.array([4, 4, 4, 9, 9, 1])
    rng = np.random.default_rng(0)
    draws = np.array([Resamples(clusters, 6, "x").next(rng) for _ in range(2000)])
    assert (draws[:, :1] == draws[:, 1:3]).all() and (draws[:, 3] == draws[:, 4]).all()
    assert draws.mean(0) == pytest.approx(1, abs=0.1)
    with pytest.raises(InputError, match="2 clusters for 6 pictures"):
        Resamples(np.zeros(2), 6, "x")


def test_the_interval_holds_the_expected_ratio():
    """Samples, reference and floor of known Gaussians: the ratio's mean over many worlds lies inside nearly always."""
    rng = np.random.default_rng(0)
    found = []
    for world in range(30):
        samples, reference = rng.standard_normal((150, 8)) * 1.25, rng.standard_normal((150, 8))
        floor = [rng.standard_normal((150, 8)) for _ in range(4)]
        values, drawn = resampled_distances([samples], reference, floor=floor, resamples=80, seed=world)
        found.append(ratio_interval(0, 1, values, drawn))
    centre = np.mean([one.value for one in found])
    assert sum(one.low <= centre <= one.high for one in found) >= 26
    assert np.mean([one.high - one.low for one in found]) < 12 * np.std([one.value for one in found])


def test_importing_the_room_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, hwaga.evaluation; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
