"""Retrieval and CLIP score: their closed forms, ceiling and floor, what they are asked of, which CLIP may judge."""

import json

import numpy as np
import pytest
import tiny
import torch

import hwaga
from hwaga.data import DataConfig, open_data
from hwaga.errors import InputError
from hwaga.evaluation.clip import ClipJudge, load_clip, of_system
from hwaga.evaluation.retrieval import Asked, Words, candidates, judged, recalls
from hwaga.measuring import clip_judge
from hwaga.saving import save

KINDS = 64
BOTH = ("retrieval", "clip_score")


def one_hot_judge():
    """A judge that sees a picture's number (its first pixel) and reads it off "thing 17"."""

    def see(images):
        return torch.nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 256).float()

    def read(texts):
        return torch.nn.functional.one_hot(torch.tensor([int(text.split()[1]) for text in texts]), 256).float()

    return ClipJudge("one-hot", None, see, read)


def numbered(numbers):
    return np.repeat(np.asarray(numbers, np.uint8), 3 * 4 * 4).reshape(-1, 3, 4, 4)


WORDS = Words([f"thing {k}" for k in range(KINDS)], np.arange(KINDS))


def asked(n=200, name=""):
    kinds = np.arange(n) % KINDS
    return Asked(name, [f"thing {k}" for k in kinds], kinds, numbered(kinds))


def test_the_wrong_answers_are_of_fifty_other_concepts_whatever_else_is_asked():
    found = candidates(asked(), WORDS, 0)
    assert found.shape == (200, 49)
    for i, row in enumerate(found):
        assert len(set(WORDS.clusters[row])) == 49 and i % KINDS not in WORDS.clusters[row]
    assert np.array_equal(candidates(asked(20), WORDS, 0), found[:20])
    assert not np.array_equal(candidates(asked(20), WORDS, 1), found[:20])


def test_relatives_and_the_same_words_are_no_wrong_answers():
    words = Words([*WORDS.texts, "thing 3", "thing 80"], np.array([*WORDS.clusters, 70, 3]))
    for row, text in zip(candidates(asked(64), words, 0), asked(64).texts, strict=True):
        assert text not in [words.texts[k] for k in row]
    assert 65 not in candidates(asked(4), words, 0)[3]  # of the cluster of "thing 3"


def test_what_was_asked_for_is_found_and_something_else_is_not():
    one = asked()
    right = judged(one_hot_judge(), one.real, one, WORDS, BOTH)
    assert right.values["retrieval"] == right.values["retrieval_real"] == right.values["retrieval_over_real"] == 1
    assert right.values["retrieval_shuffled"] == 0 and right.values["clip_score"] == pytest.approx(100)
    wrong = judged(one_hot_judge(), numbered((np.arange(200) + 1) % KINDS), one, WORDS, BOTH)
    assert wrong.values["retrieval"] == 0 and wrong.values["clip_score"] == 0 and wrong.values["clip_score_real"] == 100
    half = np.where(np.arange(200) % 2, np.arange(200) % KINDS, 200)
    mixed = judged(one_hot_judge(), numbered(half), one, WORDS, BOTH)
    assert mixed.values["retrieval"] == 0.5 and mixed.values["clip_score"] == pytest.approx(50)
    low, high = mixed.intervals["retrieval_over_real"]
    assert 0.3 < low < 0.5 < high < 0.7


def test_a_judge_that_sees_nothing_finds_nothing():
    blind = ClipJudge("blind", None, lambda x: torch.ones(len(x), 4), lambda texts: torch.ones(len(texts), 4))
    found = judged(blind, asked().real, asked(), WORDS, BOTH)
    assert found.values["retrieval"] == 0 and "retrieval_over_real" not in found.values
    assert recalls(blind, asked(64)).values["picture_to_text_10"] == 0


def test_intervals_are_wider_where_prompts_are_relatives():
    rng, one = np.random.default_rng(0), asked()
    seen = np.where(rng.random(KINDS)[np.arange(200) % KINDS] < 0.5, np.arange(200) % KINDS, 200)
    wide = judged(one_hot_judge(), numbered(seen), one, WORDS, ("retrieval",)).intervals["retrieval"]
    apart = one._replace(clusters=np.arange(200) + 1000)
    narrow = judged(one_hot_judge(), numbered(seen), apart, WORDS, ("retrieval",)).intervals["retrieval"]
    assert wide[1] - wide[0] > 1.4 * (narrow[1] - narrow[0])


def test_a_set_has_its_name_and_few_concepts_are_refused():
    found = judged(one_hot_judge(), asked(50).real, asked(50, "combinations"), WORDS, BOTH).values
    assert {
        "retrieval_combinations",
        "retrieval_combinations_over_real",
        "clip_score_combinations_real",
    } <= found.keys()
    with pytest.raises(InputError, match="30 concepts in the captions, 50 are needed"):
        candidates(asked(4), Words(WORDS.texts[:30], WORDS.clusters[:30]), 0)


def test_recalls_count_one_picture_a_concept():
    found = recalls(one_hot_judge(), asked()).values
    assert found["concepts"] == KINDS and found["picture_to_text_1"] == found["text_to_picture_10"] == 1
    turned = recalls(one_hot_judge(), asked()._replace(real=numbered((np.arange(200) + 1) % KINDS))).values
    assert turned["picture_to_text_1"] == 0


# -------------------------------------------------------------------------------------------------------- who judges


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A CLIP of ours, and the same as transformers' folder."""
    root, model = tmp_path_factory.mktemp("clips"), tiny.clip()
    save(model, root / "own")
    hwaga.export(hwaga.load(root / "own"), root / "public")
    return root


def test_ours_and_the_same_read_by_transformers_judge_alike(folders):
    pictures = (tiny.captioned().image / 2 + 0.5).numpy()
    mine, theirs = clip_judge(folders / "own"), clip_judge(folders / "public")
    assert np.abs(mine.pictures(pictures) - theirs.pictures(pictures)).max() < 1e-5
    assert np.abs(mine.texts(tiny.CAPTIONS) - theirs.texts(tiny.CAPTIONS)).max() < 1e-5
    assert np.abs(np.linalg.norm(mine.texts(["one", "two"]), axis=1) - 1).max() < 1e-6
    assert theirs.sha256 and theirs.name == "public"


def test_what_cannot_judge_is_refused(folders, tmp_path):
    save(tiny.ddpm(), tmp_path / "ddpm")
    with pytest.raises(InputError, match="is a DDPM; a CLIP is needed"):
        clip_judge(tmp_path / "ddpm")
    with pytest.raises(InputError, match="preprocessor_config.json is missing"):
        load_clip(tmp_path / "ddpm")
    half = tmp_path / "vision"
    half.mkdir()
    for file in (folders / "public").iterdir():
        (half / file.name).write_bytes(file.read_bytes())
    config = json.loads((half / "config.json").read_text())
    vision = {**config["vision_config"], "architectures": ["CLIPVisionModel"]}
    (half / "config.json").write_text(json.dumps(vision))
    with pytest.raises(InputError, match="want a network that reads pictures and words"):
        load_clip(half)


# ------------------------------------------------------------------------------------------------------- who is asked


class Painter:
    """Paints the picture of the caption that it is asked for, or another one's; takes prompts as a system does."""

    name, title, paints, own, tells_bits = "stub", "Stub", True, {}, False
    takes = ("prompt", "seed")
    networks: dict = {}

    def __init__(self, right=True):
        from hwaga.systems.base import About

        self.about, self.calls, self.right = About(size=(32, 32), name="stub"), [], right
        every = open_data(DataConfig(size=32), "all")
        self.of = {caption: i for i, caption in enumerate(every.captions)}
        self.every = every

    def sample(self, *, prompt=None, seed, output, progress):
        self.calls.append(prompt)
        at = [self.of[text] if self.right else (self.of[text] + 1777) % len(self.every) for text in prompt]
        return torch.from_numpy(self.every.pixels(at)).float() / 255


def pixel_judge():
    """Reads a caption as the thumbnail of its picture: what is asked for is the only thing that looks like it."""
    every = open_data(DataConfig(size=32), "all")
    of = {caption: i for i, caption in enumerate(every.captions)}

    def see(images):
        return torch.nn.functional.avg_pool2d(images, 4).flatten(1) - 0.7

    def read(texts):
        return see(torch.from_numpy(every.pixels([of[text] for text in texts])).float() / 255)

    return ClipJudge("pixels", None, see, read)


def test_a_painter_is_asked_for_training_captions_and_for_combinations_never_trained():
    painter = Painter()
    found = hwaga.evaluate(painter, "openmoji", n=40, metrics=BOTH, clip=pixel_judge())
    train, combined = (open_data(DataConfig(size=32), split) for split in ("train", "combinations"))
    asked_for, others = painter.calls
    assert len(asked_for) == 40 and set(asked_for) <= set(train.captions) and set(others) <= set(combined.captions)
    for name in ("retrieval", "retrieval_combinations"):
        assert found.values[name] == found.values[f"{name}_real"] and found.values[f"{name}_over_real"] == 1
        assert found.values[f"{name}_shuffled"] < 0.2
    assert found.card["clip"] == {"name": "pixels", "sha256": None, "candidates": 50} and found.card["n"] == 40
    wrong = hwaga.evaluate(Painter(False), "openmoji", n=40, metrics=("retrieval",), clip=pixel_judge())
    assert wrong.values["retrieval_over_real"] < 0.3


def test_distances_of_a_painter_of_words_are_of_what_it_was_asked_for():
    painter = Painter()
    found = hwaga.evaluate(painter, "openmoji", n=12, metrics=("kid", "retrieval"), clip=pixel_judge())
    assert len(painter.calls) == 2 and {"kid", "retrieval"} <= found.values.keys()
    assert "features" in found.card and "clip" in found.card
    hwaga.evaluate(painter, "openmoji", n=12, metrics=("kid",))
    assert len(painter.calls) == 3  # combinations are asked for where words are judged


def test_who_takes_no_prompt_cannot_be_asked(tmp_path):
    with pytest.raises(
        InputError, match="metric 'retrieval' asks a painter for what captions say; DDPM takes no prompt"
    ):
        hwaga.evaluate(tiny.ddpm(), "openmoji", metrics=("retrieval",))
    pictures = torch.rand(8, 3, 32, 32)
    with pytest.raises(InputError, match="a folder of pictures takes no prompt"):
        hwaga.evaluate(pictures, "openmoji", metrics=("clip_score",))
    with pytest.raises(InputError, match="metric='retreival' is unknown"):
        hwaga.evaluate(pictures, "openmoji", metrics=("retreival",))


def test_scores_of_words_are_told_in_lines():
    from hwaga.cli.scores import lines

    found = hwaga.evaluate(Painter(), "openmoji", n=10, metrics=BOTH, clip=pixel_judge())
    text = "\n".join(lines(found))
    assert "retrieval " in text and "CLIP score" in text and "by the CLIP pixels" in text and "real pictures" in text


def test_a_clip_is_a_judge_of_its_own(folders):
    model = hwaga.load(folders / "own")
    assert of_system(model).name == str((folders / "own").resolve())
