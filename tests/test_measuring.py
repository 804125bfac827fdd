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
