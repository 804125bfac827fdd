"""`hwaga control`: what a model will see of a picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hwaga.conditioning.control import KINDS, make
from hwaga.systems.pictures import read_picture


@pytest.fixture
def drawing(tmp_path):
    canvas = np.full((40, 48, 3), 255, np.uint8)
    canvas[10:30, 12:36] = (200, 40, 30)
    Image.fromarray(canvas).save(tmp_path / "drawing.png")
    return tmp_path / "drawing.png"


def test_it_writes_the_map_that_a_model_sees(ask, drawing, tmp_path):
    answer = ask("control", drawing, "--kind", "canny", "--out", "map.png", "--set", "low=50")
    assert answer.status == 0 and answer.out.strip() == "map.png"
    written = read_picture("map", tmp_path / "map.png")[0]
    assert written.equal(make("canny", read_picture("picture", drawing)[0], low=50)) and written.any()


def test_the_size_is_that_of_the_picture_or_as_asked(ask, drawing, tmp_path):
    assert ask("control", drawing, "--kind", "silhouette", "--size", "20x24", "--out", "map.png").status == 0
    assert read_picture("map", tmp_path / "map.png").shape == (1, 3, 20, 24)


def test_alone_it_lists_the_kinds_and_their_options(ask):
    answer = ask("control")
    assert answer.status == 0 and all(f"{name} " in answer.out for name in KINDS)
    assert "low=100" in answer.out and "keypoints=" in answer.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("PICTURE", "--kind"),
        ("--kind canny", "PICTURE"),
        ("PICTURE --kind cany", "did you mean 'canny'"),
        ("PICTURE --kind canny --set lo=3", "low"),
        ("PICTURE --kind canny --set low=-3", "low=-3"),
        ("PICTURE --kind canny --out map.jpg", ".png"),
        ("PICTURE --kind pose", "keypoints="),
        ("PICTURE --kind depth --set model=nowhere", "nowhere"),
        ("nowhere.png --kind canny", "nowhere.png"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(ask, drawing, tmp_path, words, said):
    before = sorted(tmp_path.iterdir())
    answer = ask("control", *(str(drawing) if word == "PICTURE" else word for word in words.split()))
    assert answer.status == 2 and said in answer.sentence
    assert sorted(tmp_path.iterdir()) == before
