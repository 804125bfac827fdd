"""Near-duplicates, clusters and the choice of what is held out."""

from __future__ import annotations

import numpy as np
import pytest

from hwaga.data.clusters import connected, near_pairs, spread, thumbnails
from hwaga.data.splits import held_out, stable


def _brute(thumbs: np.ndarray, levels: float) -> set[tuple[int, int]]:
    wide = thumbs.astype(np.int64)
    limit = levels**2 * thumbs.shape[1]
    n = len(thumbs)
    return {(i, k) for i in range(n) for k in range(i + 1, n) if ((wide[i] - wide[k]) ** 2).sum() <= limit}


@pytest.mark.parametrize("n", [2, 40, 700])
def test_near_pairs_are_those_of_comparing_all_with_all(n):
    rng = np.random.default_rng(n)
    centres = rng.integers(0, 256, (max(1, n // 4), 768))
    thumbs = np.clip(centres[rng.integers(0, len(centres), n)] + rng.normal(0, 9, (n, 768)), 0, 255).astype(np.uint8)
    pairs = near_pairs(thumbs, 16.0)
    assert {tuple(pair) for pair in pairs.tolist()} == _brute(thumbs, 16.0) != set()


def test_near_pairs_of_equal_pictures():
    assert len(near_pairs(np.full((30, 768), 9, np.uint8), 0.0)) == 30 * 29 // 2
    assert len(near_pairs(np.full((1, 768), 9, np.uint8))) == 0


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (20, 50), (8, 8)])
def test_thumbnails_keep_the_mean_and_do_not_depend_on_the_picture_size(shape):
    ramp = np.linspace(0, 255, shape[1])[None, None, None].repeat(3, 1).repeat(shape[0], 2).astype(np.uint8)
    thumb = thumbnails(ramp).reshape(3, 16, 16)
    assert abs(thumb.mean() - ramp.mean()) < 1.5
    assert (np.diff(thumb.astype(int), axis=2) >= 0).all() and (thumb[:, 0] == thumb[:, -1]).all()


def test_connected_parts():
    assert connected(6, [(4, 1), (1, 2), (5, 3)]).tolist() == [0, 1, 1, 2, 1, 2]
    assert connected(3, []).tolist() == [0, 1, 2]


def test_spread_is_the_usual_distance():
    thumbs = np.zeros((10, 768), np.uint8)
    thumbs[5:] = 100
    assert spread(thumbs) == 100 and spread(thumbs[:1]) == 0


def test_clusters_are_held_out_whole_and_in_share():
    clusters = np.arange(2000) // 3
    names = [f"p{i}" for i in range(2000)]
    held = held_out(clusters, names, 0.1)
    assert 0.09 < held.mean() <= 0.1
    assert not set(clusters[held].tolist()) & set(clusters[~held].tolist())


def test_the_choice_depends_on_names_and_not_on_their_order():
    clusters = np.arange(300)
    names = [f"p{i}" for i in range(300)]
    held = held_out(clusters, names, 0.2)
    mixed = np.random.default_rng(0).permutation(300)
    again = held_out(clusters[mixed], [names[i] for i in mixed], 0.2)
    assert (again == held[mixed]).all()


def test_a_new_picture_moves_hardly_any_other():
    names = [f"p{i}" for i in range(500)]
    before = held_out(np.arange(500), names, 0.1)
    after = held_out(np.arange(501), [*names, "new"], 0.1)
    assert (before != after[:500]).sum() <= 1


def test_a_cluster_that_would_fill_the_share_stays_in_training():
    clusters = np.array([0] * 50 + list(range(1, 51)))
    held = held_out(clusters, [f"p{i}" for i in range(100)], 0.2)
    assert not held[:50].any() and held.sum() == 20


@pytest.mark.parametrize(("clusters", "count"), [([0], 0), ([0, 0, 0], 0), ([0, 1], 1), ([0, 0, 0, 1], 1)])
def test_small_sets_hold_out_one_where_there_are_two_kinds(clusters, count):
    assert held_out(np.array(clusters), [f"p{i}" for i in range(len(clusters))], 0.1).sum() == count


def test_the_hash_is_uniform_and_fixed():
    values = np.array([stable("x", str(i)) for i in range(4000)])
    assert abs(values.mean() - 0.5) < 0.02 and 0 <= values.min() and values.max() < 1
    assert stable("a", "b") != stable("ab")
    assert round(stable("held-out", "1F436"), 6) == HASH


HASH = 0.256031
