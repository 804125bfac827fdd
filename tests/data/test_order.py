"""The order of samples: pure, complete, resumable."""

from __future__ import annotations

import numpy as np
import pytest

from hwaga.data import Order
from hwaga.errors import InputError


def _stream(length: int, batch: int, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    order = Order(length, batch, seed)
    steps = [order.at(step) for step in range(-(-samples // batch))]
    return np.concatenate([i for i, _ in steps])[:samples], np.concatenate([e for _, e in steps])[:samples]


@pytest.mark.parametrize("batch", [1, 3, 7, 10, 64])
def test_every_picture_is_seen_once_an_epoch_at_every_batch_size(batch):
    indices, epochs = _stream(10, batch, 40)
    assert epochs.tolist() == [k // 10 for k in range(40)]
    for epoch in range(4):
        assert sorted(indices[epochs == epoch]) == list(range(10))


def test_sample_k_is_the_same_at_every_batch_size_and_in_any_sequence_of_calls():
    reference = _stream(23, 1, 200, seed=5)
    for batch in (2, 9, 50):
        assert (_stream(23, batch, 200, seed=5)[0] == reference[0]).all()
    order = Order(23, 9, 5)
    backwards = [order.at(step)[0] for step in reversed(range(20))][::-1]
    assert (np.concatenate(backwards)[:180] == reference[0][:180]).all()


def test_epochs_and_seeds_differ():
    indices, epochs = _stream(100, 20, 300)
    assert (indices[:100] != indices[100:200]).any()
    assert (indices != _stream(100, 20, 300, seed=1)[0]).any()
    assert indices.dtype == epochs.dtype == np.int64


def test_the_order_never_changes_between_versions():
    assert Order(8, 8, 0).at(0)[0].tolist() == FIRST
    assert Order(8, 8, 0).at(10**9)[1].tolist() == [10**9] * 8


FIRST = [3, 2, 1, 6, 0, 7, 4, 5]


def test_places_are_uniform():
    first = np.array([Order(10, 10, seed).at(0)[0][0] for seed in range(2000)])
    counts = np.bincount(first, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi squared, 9 degrees of freedom, p = 0.001


def test_global_random_state_is_untouched():
    before = np.random.get_state()[1].copy()
    Order(100, 7, 3).at(12)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_orders_are_refused(arguments):
    with pytest.raises(InputError):
        Order(*arguments)
    with pytest.raises(InputError):
        Order(1, 1, 0).at(-1)
