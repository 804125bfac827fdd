"""Likelihood as a metric: a system that has one gives it in bits a dimension, one that has none is refused."""

import pytest
import tiny

import hwaga
from hwaga.errors import InputError


def test_bits_are_the_sum_of_their_terms():
    model = tiny.public_ddpm()
    with pytest.warns(UserWarning, match="openmoji"):
        found = hwaga.evaluate(model, "digits", n=4, metrics=("bits",), sampling={"steps": 2})
    terms = [found.values[f"bits_{name}"] for name in ("prior", "steps", "decoder")]
    assert found.values["bits"] == pytest.approx(sum(terms), rel=1e-5) and found.values["bits"] > 0
    assert found.card["bits"]["pictures"] == 64


def test_bits_of_a_folder_of_pictures_are_refused(tmp_path):
    images = tiny.public_ddpm().sample(n=3, seed=0, steps=2, progress=False)
    hwaga.save_images(images, tmp_path / "pictures")
    with pytest.raises(InputError, match="a folder of pictures has none"):
        hwaga.evaluate(tmp_path / "pictures", "digits", metrics=("fid", "bits"))


def test_painting_tells_how_far_it_is():
    seen = []
    with pytest.warns(UserWarning, match="openmoji"):
        hwaga.evaluate(
            tiny.public_ddpm(), "digits", n=4, metrics=("sharpness",), sampling={"steps": 3},
            progress=lambda done, total, what: seen.append((done, total, what)),
        )  # fmt: skip
    assert [row for row in seen if row[2] == "painting"] == [(1, 3, "painting"), (2, 3, "painting"), (3, 3, "painting")]
