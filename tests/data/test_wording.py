"""Captions in several wordings: which one an epoch reads, and in which order its parts stand."""

import numpy as np
import pytest

from hwaga.data import DataConfig, open_data
from hwaga.data.wording import one_of, several, shuffled
from hwaga.errors import InputError

BOTH = DataConfig(size=32, language=("en", "ko"))


@pytest.fixture(scope="module")
def both():
    return open_data(BOTH, "held-out")


def test_each_picture_has_a_caption_in_each_language_and_measuring_reads_the_first(both):
    english, korean = (open_data(DataConfig(size=32, language=one), "held-out") for one in ("en", "ko"))
    assert both.captions == english.captions and english.wordings is None
    pairs = list(zip(english.captions, korean.captions, strict=True))
    assert [list(dict.fromkeys(pair)) for pair in pairs] == [list(texts) for texts in both.wordings]
    assert both.batch([3, 5]).caption == [english.captions[3], english.captions[5]]
    assert set(both.every_caption) == set(english.captions) | set(korean.captions)
    assert english.fingerprint != both.fingerprint


def test_epochs_read_every_wording_about_equally_often_and_the_same_again(both):
    at = np.arange(len(both))
    read = [both.batch(at, np.full(len(at), epoch)).caption for epoch in range(6)]
    english = np.mean([a == b for texts in read for a, b in zip(texts, both.captions, strict=True)])
    assert 0.45 < english < 0.56 and read[0] != read[1]
    assert read[4] == both.batch(at, np.full(len(at), 4)).caption
    assert read[4][7] == both.batch([7], np.array([4])).caption[0]  # whatever else is in the batch
    other = open_data(BOTH.model_copy(update={"seed": 1}), "held-out")
    assert other.batch(at, np.full(len(at), 4)).caption != read[4]


def test_other_names_are_read_where_they_are_asked_for():
    named = open_data(DataConfig(size=32, wordings="all"), "all")
    thumb = named.wordings[named.places["1F44D"]]
    assert thumb == ("thumbs up", "thumbsup", "+1")
    assert named.captions[named.places["1F44D"]] == "thumbs up"


def test_digits_have_both_languages():
    data = open_data(DataConfig(source="digits", size=8, language=("ko", "en")), "all")
    assert data.wordings[3] == ("손으로 쓴 숫자 삼", "a handwritten three") and data.captions[3] == data.wordings[3][0]


def test_parts_between_commas_change_places_and_the_first_stay():
    captions, at = ["a, b, c, d, e", "one"] * 2, np.array([0, 1, 2, 3])
    for epoch in range(8):
        found = shuffled(captions, 2, 0, np.full(4, epoch), at)
        assert found[1] == found[3] == "one"
        for text in (found[0], found[2]):
            assert text.split(", ")[:2] == ["a", "b"] and sorted(text.split(", ")) == list("abcde")
    orders = {shuffled(captions[:1], 0, 0, np.array([epoch]), at[:1])[0] for epoch in range(20)}
    assert len(orders) > 10


def test_nothing_has_several_wordings_where_all_are_the_same():
    assert several([("a", "a"), ("b",)]) is None
    assert several([("a", "b"), ("c", "c")], [("d",), ()]) == [("a", "b", "d"), ("c",)]
    assert one_of([("a",), ("b",)], 0, np.zeros(2, int), np.arange(2)) == ["a", "b"]


@pytest.mark.parametrize(
    ("language", "words"), [([], "one language"), (["en", "en"], "different"), ("", "one language")]
)
def test_languages_that_are_none_are_refused(language, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(language=language)


def test_an_unknown_one_of_several_languages_is_refused():
    with pytest.raises(InputError, match="data.language='xx' is unknown"):
        open_data(DataConfig(language=("en", "xx")))
