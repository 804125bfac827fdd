"""The condition-following score: what agrees, what a floor and a ceiling are."""

import numpy as np
import pytest

from hwaga.errors import InputError
from hwaga.evaluation.following import edge_f1, following, measure_of, overlap


def blank():
    return np.zeros((16, 16), bool)


def line(column):
    mask = blank()
    mask[:, column] = True
    return mask


def test_edges_agree_within_one_pixel_and_not_beyond():
    assert edge_f1(line(5), line(5)) == 1 and edge_f1(line(5), line(6)) == 1 and edge_f1(line(5), line(7)) == 0
    assert edge_f1(blank(), blank()) == 1 and edge_f1(blank(), line(5)) == 0


def test_edges_are_scored_by_precision_and_recall():
    half = line(5)
    half[8:] = False  # all of it is right, half of the other is found (and one more pixel by the tolerance)
    recall = 9 / 16
    assert edge_f1(half, line(5)) == pytest.approx(2 * recall / (1 + recall))
    assert edge_f1(line(5) | line(12), line(5)) == pytest.approx(2 * 0.5 / 1.5)


def test_areas_are_scored_by_their_intersection_over_their_union():
    left, whole = blank(), ~blank()
    left[:, :4] = True
    assert overlap(left, whole) == 0.25 and overlap(whole, whole) == 1 and overlap(blank(), blank()) == 1


def pictures(n=8, seed=0):
    """A dark square somewhere on white, uint8 (n, 3, 32, 32)."""
    rng, made = np.random.default_rng(seed), np.full((n, 3, 32, 32), 255, np.uint8)
    for i, (y, x) in enumerate(rng.integers(1, 18, (n, 2))):
        made[i, :, y : y + 12, x : x + 12] = 40
    return made


@pytest.mark.parametrize("measure", ["edges", "silhouette"])
def test_following_all_is_one_and_none_is_zero(measure):
    real = pictures()
    every = following(real, real, real, measure)
    assert every.score.value == pytest.approx(1) and every.given == 1 and every.ceiling == 1 and every.follows
    other = following(np.roll(real, -4, axis=0), real, real, measure)  # each is another's
    assert other.given < 0.6 and other.score.value < 0.2
    blind = following(np.repeat(real[:1], 8, axis=0), real, real, measure)  # always the same picture
    assert blind.score.value == pytest.approx(0, abs=1e-9) and not blind.follows


def test_a_painter_is_not_asked_for_more_than_its_autoencoder_can():
    real = pictures()
    soft = np.where(real > 200, 255, 200).astype(np.uint8)  # edges that Canny sees no more
    half = real.copy()
    half[::2] = soft[::2]
    found = following(half, real, half, "edges")
    assert found.ceiling == found.given and found.score.value == pytest.approx(1)


def test_the_interval_is_of_whole_clusters_and_holds_the_value():
    real, painted = pictures(24), pictures(24)
    painted[::3] = np.roll(painted[::3], 9, axis=3)
    found = following(painted, real, real, "edges", clusters=np.arange(24) // 4)
    assert found.score.low < found.score.value < found.score.high
    assert found == following(painted, real, real, "edges", clusters=np.arange(24) // 4)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        following(pictures(1), pictures(1), pictures(1))
    with pytest.raises(InputError, match="8 paintings of 4 pictures"):
        following(pictures(8), pictures(4), pictures(4))


def test_outlines_are_judged_by_edges_and_areas_by_overlap():
    assert measure_of("silhouette") == "silhouette" and measure_of("lines") == measure_of("canny") == "edges"
