"""Edit pairs: found by structure, within a set, and true of the pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hwaga.data import DataConfig, edit_pairs, edit_pixels, open_data
from hwaga.data.edits import KINDS
from hwaga.data.variants import variants
from hwaga.errors import InputError


@pytest.fixture(scope="module")
def train():
    return open_data(DataConfig(size=32), "train")


def test_every_kind_is_there_and_stays_within_its_set(train):
    kinds = Counter()
    for data in (train, open_data(DataConfig(), "held-out"), open_data(DataConfig(), "combinations")):
        pairs = edit_pairs(data)
        kinds.update(pair.kind for pair in pairs)
        names = set(data.names)
        assert all(pair.source in names and pair.target in names for pair in pairs)
        assert all(pair.english and pair.korean for pair in pairs)
        assert len({(p.kind, p.source, p.target) for p in pairs}) == len(pairs)
    assert set(kinds) == set(KINDS)
    assert kinds["skin tone"] > 5000 and kinds["gender"] > 2000 and kinds["hour"] == 24 * 23


def test_every_structural_pair_is_there_both_ways_and_differs_in_one_thing(train):
    read = dict(zip(train.names, variants(train.names), strict=True))
    pairs = edit_pairs(train, KINDS[:6])
    there = {(p.kind, p.source, p.target) for p in pairs}
    for pair in pairs:
        assert (pair.kind, pair.target, pair.source) in there
        a, b = vars(read[pair.source]), vars(read[pair.target])
        assert sum(a[key] != b[key] for key in a) == 1
        assert train.clusters[train.places[pair.source]] == train.clusters[train.places[pair.target]]


def test_instructions_agree_with_the_official_names(train):
    captions = {name: train.captions[i] for name, i in train.places.items()}
    for pair in edit_pairs(train):
        caption = captions[pair.target]
        if pair.kind == "moon phase":
            assert caption.removesuffix(" moon") in pair.english
        if pair.kind == "hour":
            hour = caption.replace("’", "'")
            thirty = hour.removesuffix("-thirty")
            assert pair.english.endswith(f"half past {thirty}" if thirty != hour else hour)
        if pair.kind == "skin tone" and "yellow" not in pair.english:
            assert f"{pair.english.split()[-1]} skin tone" in caption
        if pair.kind == "gender" and pair.english in ("make it a woman", "make it a girl"):
            assert any(word in caption.lower() for word in ("woman", "girl", "princess", "mrs", "mermaid")), caption
        if pair.kind == "direction" and "face right" in pair.english:
            assert "facing right" in caption
    examples = {p.english: p.korean for p in edit_pairs(train, ["hour", "colour"])}
    assert examples["set the clock to half past three"] == "시계를 3시 반으로 맞춰 주세요"
    assert examples["make the heart red"] == "하트를 빨간색으로 바꿔 주세요"


def test_a_changed_skin_tone_changes_the_skin_and_little_else(train):
    pairs = edit_pairs(train, ["skin tone"])[::40]
    before, after = edit_pixels(train, pairs)
    changed = (np.abs(before.astype(int) - after) > 24).any(1).mean((1, 2))
    assert (changed > 0).all() and np.median(changed) < 0.3


def test_a_heart_is_recoloured_in_place(train):
    pairs = [p for p in edit_pairs(train, ["colour"]) if p.english == "make the heart red"]
    before, after = edit_pixels(train, pairs)
    assert len(pairs) == 11
    inside = after[0].astype(int)
    red = (inside[0] > 150) & (inside[1] < 100)
    assert red.sum() > 200
    assert (after == after[0]).all() and not (before == after).all((1, 2, 3)).any()


def test_line_art_pairs_have_the_lines_on_their_side(train):
    there, back = edit_pairs(train, ["to line art"])[:5], edit_pairs(train, ["from line art"])[:5]
    a, b = edit_pixels(train, there)
    c, d = edit_pixels(train, back)
    at = [train.places[p.source] for p in there]
    assert (a == train.pixels(at)).all() and (b == train.line_art(at)).all()
    assert (c == b).all() and (d == a).all()


def test_what_has_no_pairs_or_is_no_kind_is_refused(train):
    with pytest.raises(InputError, match="only the source openmoji"):
        edit_pairs(open_data(DataConfig(source="digits", size=8)))
    with pytest.raises(InputError, match="did you mean 'gender'"):
        edit_pairs(train, ["gendr"])
