"""KID, precision and its kin, the Inception score, sharpness, memorisation: closed forms and definitions."""

import numpy as np
import pytest
import torch

from hwaga.errors import InputError
from hwaga.evaluation import high_frequency_energy, inception_score, kernel_distance, memorisation, prdc, sharpness


def normal(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def mmd_by_definition(x, y):
    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * np.mean([[kernel(a, b) for b in y] for a in x])


# ------------------------------------------------------------------------------------------------------------------ KID


def test_kid_is_its_definition():
    x, y = normal(9, 4, 0), normal(7, 4, 1, 0.5)
    assert kernel_distance(x, y).value == pytest.approx(mmd_by_definition(x, y), rel=1e-12)


def test_kid_of_one_distribution_is_zero_on_average_and_its_standard_error_says_how_far():
    found = [kernel_distance(normal(60, 8, 2 * s), normal(50, 8, 2 * s + 1)) for s in range(200)]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert values.std() / 2 < np.mean([one.standard_error for one in found]) < 2 * values.std()


def test_the_standard_error_is_right_where_distributions_differ():
    found = [kernel_distance(normal(80, 6, 2 * s), normal(80, 6, 2 * s + 1, 0.7)) for s in range(200)]
    spread = np.std([one.value for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.2)


def test_kid_over_random_subsets_is_the_mean_of_the_published_draws():
    x, y = normal(40, 5, 3), normal(30, 5, 4, 0.3)
    found = kernel_distance(x, y, subsets=3, subset_size=12, seed=7, draw="random")
    rng = np.random.RandomState(7)
    values = []
    for _ in range(3):
        first, second = rng.choice(40, 12, replace=False), rng.choice(30, 12, replace=False)
        values.append(mmd_by_definition(x[first], y[second]))
    assert found.value == pytest.approx(np.mean(values), rel=1e-10)
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3), rel=1e-8)
    assert found.subsets == 3


def test_kid_over_rounds_is_the_mean_over_pairs_of_disjoint_subsets():
    x, y = normal(20, 5, 3), normal(30, 5, 4, 0.3)
    found = kernel_distance(x, y, subsets=4, subset_size=10, seed=7)
    rng = np.random.default_rng(7)
    first, second = rng.permutation(20), rng.permutation(30)
    halves = x[first[:10]], x[first[10:]]
    parts = y[second[:10]], y[second[10:20]]
    table = np.array([[mmd_by_definition(a, b) for b in parts] for a in halves])
    assert found.value == pytest.approx(table.mean(), rel=1e-10) and found.subsets == 4
    error = table.mean(0).var(ddof=1) / 2 + table.mean(1).var(ddof=1) / 2
    assert found.standard_error == pytest.approx(error**0.5, rel=1e-8)


@pytest.mark.parametrize(("n", "m", "subsets"), [(100, 100, 100), (100, 10, 7), (10, 10, 3), (35, 22, 5)])
def test_rounds_make_at_least_as_many_pairs_as_asked_and_agree_with_all_pairs(n, m, subsets):
    x, y = normal(n, 6, 8), normal(m, 6, 9, 0.5)
    found = kernel_distance(x, y, subsets=subsets, subset_size=10)
    assert subsets <= found.subsets < subsets + 12
    whole = kernel_distance(x, y)
    assert abs(found.value - whole.value) < 5 * whole.standard_error


def test_the_standard_error_over_rounds_is_right_where_distributions_differ():
    found = [
        kernel_distance(normal(80, 6, 2 * s), normal(80, 6, 2 * s + 1, 0.7), subsets=64, subset_size=10)
        for s in range(100)
    ]
    assert np.mean([one.standard_error for one in found]) == pytest.approx(np.std([f.value for f in found]), rel=0.3)


def test_many_dimensions_in_single_precision_agree_with_double():
    x, y = normal(100, 600, 5), normal(120, 600, 6, 0.2)
    inside = (x @ x.T / 600 + 1) ** 3, (y @ y.T / 600 + 1) ** 3, (x @ y.T / 600 + 1) ** 3
    xx = (inside[0].sum() - inside[0].trace()) / (100 * 99)
    yy = (inside[1].sum() - inside[1].trace()) / (120 * 119)
    expected = xx + yy - 2 * inside[2].mean()
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-4)
    assert kernel_distance(x[:100], y[:100], subsets=1, subset_size=100).value == pytest.approx(
        kernel_distance(x[:100], y[:100]).value, rel=1e-4
    )


def test_a_subset_larger_than_a_set_is_refused():
    with pytest.raises(InputError, match="subset_size=1000: the smaller set has 10"):
        kernel_distance(normal(20, 3, 0), normal(10, 3, 1), subsets=100)
    with pytest.raises(InputError, match="at least 2 are needed"):
        kernel_distance(normal(1, 3, 0), normal(10, 3, 1))
    with pytest.raises(InputError, match="draw='round' is unknown"):
        kernel_distance(normal(20, 3, 0), normal(10, 3, 1), draw="round")


# ----------------------------------------------------------------------------------------------------------------- PRDC


def prdc_by_definition(samples, reference, k):
    def distances(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def radii(a):
        return np.sort(distances(a, a), axis=1)[:, k]

    across = distances(samples, reference)
    precision = (across <= radii(reference)[None]).any(1).mean()
    recall = (across <= radii(samples)[:, None]).any(0).mean()
    inside = across < radii(reference)[None]
    return precision, recall, inside.sum() / (k * len(samples)), inside.any(0).mean()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_its_definition(k):
    samples, reference = normal(60, 3, 0, 0.8), normal(50, 3, 1)
    assert tuple(prdc(samples, reference, k=k)) == pytest.approx(prdc_by_definition(samples, reference, k))


def test_a_set_against_itself_has_all_four_at_one():
    features = normal(1500, 16, 2).astype(np.float32) * 100 + 1000  # far from the origin, more than one block
    assert tuple(prdc(features, features)) == (1.0, 1.0, 1.0, 1.0)


def test_constant_pictures_have_low_recall_and_cover_little():
    reference = normal(200, 8, 3)
    found = prdc(np.tile(reference[:1], (100, 1)), reference)
    assert found.precision == 1.0 and found.recall <= 0.01 and found.coverage < 0.1


def test_roles_are_not_swapped():
    """Samples from one of the reference's two modes: all good (precision), half of the reference missed (recall)."""
    modes = np.concatenate([normal(200, 2, 4), normal(200, 2, 5, 50.0)])
    found = prdc(normal(200, 2, 6), modes)
    assert found.precision > 0.95 and found.recall < 0.6 and found.coverage < 0.6
    found = prdc(modes, normal(200, 2, 6))
    assert found.precision < 0.6 and found.recall > 0.95


def test_too_few_pictures_for_k_are_refused():
    with pytest.raises(InputError, match="k=5: want 1 to 4, as the smaller set has 5 pictures"):
        prdc(normal(5, 2, 0), normal(9, 2, 1))


# ------------------------------------------------------------------------------------------------------ Inception score


def test_certain_and_even_predictions_score_the_number_of_classes():
    logits = np.eye(7)[np.arange(70) % 7] * 1000
    assert inception_score(logits, splits=1).mean == pytest.approx(7)


def test_predictions_that_are_all_alike_score_one():
    assert inception_score(np.tile(normal(1, 5, 0), (20, 1)), splits=4) == pytest.approx((1, 0))


def test_the_score_is_its_definition_over_splits():
    logits = normal(40, 6, 1) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in np.split(p, 4)]
    assert inception_score(torch.from_numpy(logits), splits=4) == pytest.approx((np.mean(scores), np.std(scores)))
    with pytest.raises(InputError, match="splits=50"):
        inception_score(logits, splits=50)


# ------------------------------------------------------------------------------------------------------------ sharpness


def wave(cycles, side=32):
    """A cosine with so many half cycles over the side: a single frequency of the mirrored picture."""
    x = np.cos(np.pi * cycles * (np.arange(side) + 0.5) / side)
    return np.broadcast_to(0.5 + 0.5 * x, (1, 3, side, side)).copy()


def test_a_wave_has_its_energy_above_half_nyquist_or_below():
    assert high_frequency_energy(wave(4))[0] == pytest.approx(0, abs=1e-20)
    assert high_frequency_energy(wave(24))[0] == pytest.approx(0.25 / 2, rel=1e-9)  # mean square of 0.5 cos


def test_half_the_contrast_is_a_quarter_of_the_sharpness():
    picture = np.random.default_rng(0).random((4, 3, 20, 24))
    assert sharpness(0.5 * picture + 0.25, picture) == pytest.approx(0.25, rel=1e-9)
    assert sharpness(picture, picture) == 1.0


def test_blur_lowers_and_noise_raises_sharpness():
    rng = np.random.default_rng(1)
    picture = (rng.random((8, 3, 32, 32)) > 0.5).astype(np.float64)
    blurred = (picture + np.roll(picture, 1, 2) + np.roll(picture, 1, 3) + np.roll(picture, (1, 1), (2, 3))) / 4
    assert sharpness(blurred, picture) < 0.5
    smooth = np.repeat(np.repeat(rng.random((8, 3, 4, 4)), 8, 2), 8, 3)
    assert sharpness(np.clip(smooth + 0.2 * rng.standard_normal(smooth.shape), 0, 1), smooth) > 1.5


def test_bytes_and_fractions_have_the_same_sharpness():
    whole = np.random.default_rng(2).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    np.testing.assert_allclose(high_frequency_energy(whole), high_frequency_energy(torch.from_numpy(whole / 255.0)))


def test_pictures_of_two_sizes_or_without_detail_are_refused():
    with pytest.raises(InputError, match="one size"):
        sharpness(np.zeros((2, 3, 8, 8)), np.zeros((2, 3, 16, 16)))
    with pytest.raises(InputError, match="nothing to compare with"):
        sharpness(np.zeros((2, 3, 8, 8)), np.ones((2, 3, 8, 8)))


# --------------------------------------------------------------------------------------------------------- memorisation


def test_copies_of_training_pictures_go_to_one_and_new_pictures_to_zero():
    training = normal(400, 8, 0)
    held_out, new = normal(300, 8, 1), normal(300, 8, 2)
    copied = memorisation(training[:200] + 1e-6, training, held_out)
    assert copied.near_samples == 1.0 and copied.value > 0.85 and copied.low > 0.8
    fresh = memorisation(new, training, held_out)
    assert abs(fresh.value) < 0.06 and fresh.low <= 0.02 and fresh.high >= -0.02
    assert fresh.low <= fresh.value <= fresh.high


def test_the_threshold_is_the_quantile_of_held_out_pictures():
    training = np.zeros((2, 1))
    training[1] = 1000.0
    held_out = np.arange(1, 101, dtype=float)[:, None]  # distances 1 ... 100 to the first
    found = memorisation(np.array([[4.0], [5.0], [6.0], [500.0]]), training, held_out)
    assert found.threshold == 5.0
    assert found.near_samples == 0.25 and found.near_training == 0.0  # nearer than 5, not as near
    assert found.value == 0.25


def test_close_relatives_in_training_are_taken_off():
    """Every training picture has a twin: a painter who makes such twins copies no more than the set itself does."""
    first = normal(100, 4, 3) * 10
    training = np.concatenate([first, first + 0.01])
    found = memorisation(first + 0.005, training, normal(200, 4, 4) * 10)
    assert found.near_samples == 1.0 and found.near_training == 1.0 and found.value == 0.0


def test_identical_training_pictures_count_once_and_copies_are_told():
    training = normal(30, 4, 5)
    doubled = np.concatenate([training, training])
    keys = [bytes([i]) for i in range(30)] * 2
    held_out = normal(50, 4, 6)
    plain = memorisation(held_out, training, held_out)
    assert memorisation(held_out, doubled, held_out, training_keys=keys).near_training == plain.near_training
    assert memorisation(held_out, doubled, held_out).near_training == 1.0  # without keys every copy is a neighbour
    told = memorisation(doubled[:10], doubled, held_out, sample_keys=keys[:10], training_keys=keys)
    assert told.copies == 10 and told.note and "contains its own training pictures" in told.note
    some = memorisation(normal(3, 4, 7), doubled, held_out, sample_keys=[b"x", keys[1], b"y"], training_keys=keys)
    assert some.copies == 1 and some.note == "1 of 3 samples are byte-identical to training pictures"


def test_memorisation_refuses_what_it_cannot_measure():
    with pytest.raises(InputError, match="2 keys for 3 pictures"):
        memorisation(normal(3, 2, 0), normal(5, 2, 1), normal(5, 2, 2), sample_keys=[b"a", b"b"])
    with pytest.raises(InputError, match="byte-identical"):
        memorisation(normal(3, 2, 0), np.zeros((4, 2)), normal(5, 2, 2), training_keys=[b"a"] * 4)
