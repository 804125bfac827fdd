"""What is told and drawn of a data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from hwaga.data import DataConfig, open_data
from hwaga.data import fonts as fonts_module
from hwaga.data.fonts import built_in, font_for, has
from hwaga.data.show import chosen, grid, sheet, summary, summary_text
from hwaga.errors import InputError


def test_the_numbers_add_up_and_are_plain_json():
    facts = summary(open_data(DataConfig(size=32), "train"))
    json.dumps(facts)
    assert facts["found"] == facts["used"] + facts["left out"] == sum(facts["splits"].values()) + facts["left out"]
    assert sum(facts["left out by reason"].values()) == facts["left out"] == len(facts["left_out"])
    assert sum(facts["classes"].values()) == facts["pictures"] == facts["captions"]["with"]
    text = summary_text(facts)
    assert "no official name" in text and "CC BY-SA 4.0" in text and len(text.splitlines()) < 15


def test_bad_files_are_listed_by_name_and_cannot_steer_a_terminal(tmp_path):
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "good.png")
    (tmp_path / "bad\x1b[31m.png").write_bytes(b"")
    (tmp_path / "worse.png").write_text("x")
    facts = summary(open_data(DataConfig(source=str(tmp_path), size=8), "all"))
    text = summary_text(facts)
    assert "left out: worse.png: not a picture" in text and "empty file" in text and "\x1b" not in text
    assert "found 3 = used 1 + left out 2" in text and "9 x 9" in text
    assert "... and 1 more" in summary_text(facts, most=1)


def test_a_grid_shows_pictures_exactly_as_training_sees_them():
    data = open_data(DataConfig(source="digits", size=16, flip=True, random_crop=True))
    picture = np.asarray(grid(data, n=6, seed=2))
    at = chosen(data, 6, 2)
    seen = ((data.batch(at, np.zeros(6, int)).image.numpy() + 1) * 127.5).round().astype(np.uint8)
    cell = picture[8 : 8 + 96 : 6, 8 : 8 + 96 : 6]  # 16 px enlarged 6 times
    assert (cell == seen[0].transpose(1, 2, 0)).all()


def test_captions_are_drawn_and_choices_follow_the_seed():
    data = open_data(DataConfig(source="digits", size=16))
    pixels = data.pixels([0, 1])
    with_text, without = np.asarray(sheet(pixels, ["a three", "b"])), np.asarray(sheet(pixels, ["", ""]))
    assert with_text.shape == without.shape
    below = (with_text != without).any(2)
    assert below[104:].any() and not below[:104].any()
    assert chosen(data, 5, 0).tolist() != chosen(data, 5, 1).tolist()
    assert len(chosen(data, 10**6, 0)) == len(data)
    with pytest.raises(InputError, match="n=0"):
        grid(data, 0)


def test_letters_that_no_font_has_are_said_and_the_name_stands_instead(monkeypatch):
    monkeypatch.setattr(fonts_module, "_system", lambda: ())
    fonts_module._first_with.cache_clear()
    data = open_data(DataConfig(language="ko"), "held-out")
    image = grid(data, 4)
    fonts_module._first_with.cache_clear()
    assert image.info["note"] == "4 captions in letters that no font here has: the names stand instead"


def test_a_font_is_taken_only_if_it_has_every_letter():
    assert has(built_in(11), frozenset("flag: Peru (a dog's)"))
    assert not has(built_in(11), frozenset("강아지"))
    assert font_for("dog face", 11) is built_in(11)
    font = font_for("강아지 얼굴", 11)
    assert font is None or has(font, frozenset("강아지 얼굴"))


def test_very_long_captions_and_words_stay_in_their_cell():
    pixels = np.zeros((2, 3, 8, 8), np.uint8)
    image = np.asarray(sheet(pixels, ["x" * 500 + " y" * 300, ""]))
    right = image[104:, 8 + 96 + 2 :]
    assert (right == 238).all()
