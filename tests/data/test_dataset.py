"""One class for all sources: pixels, batches, augmentation; digits."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hwaga.data import DataConfig, Order, open_data
from hwaga.data.augment import uniform
from hwaga.errors import InputError

DIGITS = DataConfig(source="digits", size=16)


def test_a_batch_holds_pictures_in_minus_one_to_one_and_gives_them_back_exactly():
    data = open_data(DIGITS)
    at = [3, 1, 3]
    batch = data.batch(at)
    assert batch.image.dtype == torch.float32 and batch.image.shape == (3, 3, 16, 16)
    assert batch.image.min() >= -1 and batch.image.max() <= 1
    back = ((batch.image + 1) * 127.5).round().to(torch.uint8).numpy()
    assert (back == data.pixels(at)).all()
    assert batch.index.tolist() == at and batch.label.tolist() == data.labels[at].tolist()
    assert batch.caption == [data.captions[i] for i in at] and len(batch) == 3


def test_without_epochs_nothing_is_augmented_and_with_them_it_depends_on_seed_epoch_and_index_only():
    plain = open_data(DIGITS)
    moved = open_data(DIGITS.model_copy(update={"flip": True, "random_crop": True}))
    at = np.arange(200)
    epochs = np.full(200, 2)
    once = moved.pixels(at, epochs)
    mixed = np.random.default_rng(0).permutation(200)
    assert (moved.pixels(at[mixed], epochs[mixed]) == once[mixed]).all()
    assert (moved.pixels(at[7:8], epochs[7:8]) == once[7:8]).all()
    assert (once != moved.pixels(at, epochs + 1)).any((1, 2, 3)).mean() > 0.8
    other = open_data(DIGITS.model_copy(update={"flip": True, "random_crop": True, "seed": 1}))
    assert (once != other.pixels(at, epochs)).any((1, 2, 3)).mean() > 0.8
    assert (moved.pixels(at) == moved.pixels(at)).all() and moved.pixels(at).shape == plain.pixels(at).shape
    assert (plain.pixels(at, epochs) == plain.pixels(at)).all()


def test_half_of_the_pictures_are_mirrored():
    plain, flipped = open_data(DIGITS), open_data(DIGITS.model_copy(update={"flip": True}))
    at = np.arange(len(plain))
    a, b = plain.pixels(at), flipped.pixels(at, np.zeros(len(at), int))
    same, mirrored = (a == b).all((1, 2, 3)), (a[..., ::-1] == b).all((1, 2, 3))
    assert (same | mirrored).all() and 0.45 < mirrored.mean() < 0.55


def test_random_windows_are_windows_of_the_stored_picture_at_every_place():
    data = open_data(DIGITS.model_copy(update={"random_crop": True}))
    stored = data.store[data.rows[0]]
    assert stored.shape == (3, 18, 18)
    windows = {stored[:, y : y + 16, x : x + 16].tobytes(): (y, x) for y in range(3) for x in range(3)}
    seen = {windows[data.pixels([0], np.array([epoch]))[0].tobytes()] for epoch in range(200)}
    assert seen == set(windows.values()) and data.pixels([0])[0].tobytes() == stored[:, 1:17, 1:17].tobytes()


def test_draws_are_uniform_and_independent():
    n = 20_000
    index, epoch = np.arange(n), np.zeros(n, int)
    draws = [uniform("a", 0, epoch, index), uniform("b", 0, epoch, index), uniform("a", 1, epoch, index),
             uniform("a", 0, epoch + 1, index)]  # fmt: skip
    for draw in draws:
        counts = np.histogram(draw, 20, (0, 1))[0]
        assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 43.8  # chi squared, 19 degrees of freedom, p = 0.001
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.03


def test_global_random_states_are_untouched():
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    data = open_data(DIGITS.model_copy(update={"flip": True}))
    data.batch([0, 1], np.array([0, 5]))
    assert (torch.get_rng_state() == before[0]).all() and (np.random.get_state()[1] == before[1]).all()


def test_places_outside_of_the_set_are_refused():
    data = open_data(DIGITS)
    for at in ([len(data)], [-1]):
        with pytest.raises(IndexError, match="0 to"):
            data.batch(at)
    assert data.pixels([]).shape == (0, 3, 16, 16)


def test_batches_are_quick():
    data = open_data(DataConfig(source="digits", size=32, flip=True, random_crop=True))
    order = Order(len(data), 64, 0)
    times = []
    for step in range(60):
        indices, epochs = order.at(step)
        start = time.perf_counter()
        data.batch(indices, epochs)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.002  # the quickest of many: a busy machine must not fail the test


def test_digits_have_ten_classes_captions_and_splits():
    train, held, everything = (open_data(DIGITS, split) for split in ("train", "held-out", "all"))
    assert everything.classes == tuple("0123456789") and everything.found == everything.used == 1797
    assert len(train) + len(held) == 1797 and 0.08 < len(held) / 1797 < 0.1
    assert (held.label_counts > 12).all()
    assert everything.captions[3] == "a handwritten three" and everything.labels[3] == 3
    assert open_data(DIGITS.model_copy(update={"language": "ko"}), "all").captions[3] == "손으로 쓴 숫자 삼"
    assert open_data(DIGITS.model_copy(update={"label": "none"})).labels is None
    assert everything.licence and everything.attribution
    with pytest.raises(InputError, match="language='fr' is unknown; choose from: en, ko"):
        open_data(DIGITS.model_copy(update={"language": "fr"}))
    with pytest.raises(InputError, match="only the source openmoji has it"):
        train.line_art([0])


def test_digits_look_like_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = open_data(DataConfig(source="digits", size=8), "all")
    assert (data.pixels(np.arange(1797))[:, 0] == np.rint(load_digits().images * 255 / 16)).all()


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": -3}, {"size": (8,)}, {"size": 10**6}, {"resize": "squash"}, {"held_out": 0.9}, {"seed": -1},
     {"source": ""}, {"source": "a\0b"}, {"label": "x"}, {"colour": 1}, {"split": "test"}],
)  # fmt: skip
def test_a_wrong_config_is_refused(wrong):
    with pytest.raises(ValidationError):
        DataConfig(**wrong)


def test_sizes_are_height_and_width():
    data = open_data(DataConfig(source="digits", size=(6, 10), resize="pad"))
    assert data.size == (6, 10) and data.batch([0]).image.shape == (1, 3, 6, 10)
    assert (data.pixels([0])[..., :2] == 255).all()  # padded left and right
