"""The Frechet distance: closed forms, scipy's root, few samples, files, bad input."""

import numpy as np
import pytest
import torch

from hwaga.errors import InputError
from hwaga.evaluation import (
    frechet_distance,
    frechet_distance_of_features,
    load_statistics,
    save_statistics,
    statistics,
)


def gaussians(d, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) / np.sqrt(d)
    return rng.standard_normal(d) * scale, mixing @ mixing.T + 0.1 * np.eye(d)


def by_scipy(mean_a, cov_a, mean_b, cov_b):
    from scipy.linalg import sqrtm

    root = sqrtm(cov_a @ cov_b)
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(np.real(root)))


@pytest.mark.parametrize("d", [1, 2, 7, 64, 200])
def test_equals_scipys_root_on_full_rank_covariances(d):
    a, b = gaussians(d, 1), gaussians(d, 2)
    assert frechet_distance(*a, *b) == pytest.approx(by_scipy(*a, *b), rel=1e-6)


def test_commuting_gaussians_have_their_closed_form():
    a, b = np.array([4.0, 1.0, 9.0]), np.array([1.0, 1.0, 16.0])
    mean_a, mean_b = np.array([0.0, 2.0, 0.0]), np.array([1.0, 0.0, 0.0])
    expected = 1 + 4 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mean_a, np.diag(a), mean_b, np.diag(b)) == pytest.approx(expected, rel=1e-12)


def test_one_dimension_may_be_given_as_plain_numbers():
    assert frechet_distance(1.0, 4.0, 3.0, 9.0) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


def test_a_shift_alone_gives_its_squared_length():
    mean, cov = gaussians(32, 3)
    assert frechet_distance(mean, cov, mean + 0.5, cov) == pytest.approx(32 * 0.25, rel=1e-9)


def test_a_gaussian_against_itself_gives_zero():
    mean, cov = gaussians(100, 4)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-10


def test_it_is_symmetric_and_does_not_care_for_a_rotation():
    a, b = gaussians(24, 5), gaussians(24, 6)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
    expected = frechet_distance(*a, *b)
    assert frechet_distance(*b, *a) == pytest.approx(expected, rel=1e-10)
    turned = [(turn @ m, turn @ c @ turn.T) for m, c in (a, b)]
    assert frechet_distance(*turned[0], *turned[1]) == pytest.approx(expected, rel=1e-10)


def test_tensors_of_any_float_type_are_taken():
    a, b = gaussians(8, 7), gaussians(8, 8)
    expected = frechet_distance(*a, *b)
    tensors = [torch.from_numpy(value).float() for value in (*a, *b)]
    assert frechet_distance(*tensors) == pytest.approx(expected, rel=1e-5)


def test_singular_covariances_have_their_closed_form():
    a, b = np.zeros((6, 6)), np.zeros((6, 6))
    a[0, 0], a[1, 1] = 4, 1  # the planes share one direction
    b[1, 1], b[2, 2] = 9, 25
    assert frechet_distance(np.zeros(6), a, np.zeros(6), b) == pytest.approx(5 + 34 - 2 * 3, rel=1e-12)
    assert frechet_distance(np.zeros(6), np.zeros((6, 6)), np.ones(6), b) == pytest.approx(6 + 34, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(2, 3, 10), (10, 2000, 64), (40, 300, 128), (65, 64, 64), (500, 700, 32)])
def test_features_themselves_give_the_distance_of_their_statistics_even_when_few(n, m, d):
    rng = np.random.default_rng(n)
    first, second = rng.standard_normal((n, d)), rng.standard_normal((m, d)) * 1.3 + 0.2
    result = frechet_distance_of_features(first, second)
    assert np.isfinite(result)
    assert result == pytest.approx(frechet_distance(*statistics(first), *statistics(second)), rel=1e-9)
    if n > d and m > d:
        assert result == pytest.approx(by_scipy(*statistics(first), *statistics(second)), rel=1e-6)


def test_few_pictures_of_two_lines_have_their_closed_form():
    """Sets on one line each, at an angle: rank 1, so the trace of the root is std_a std_b |cos|."""
    rng = np.random.default_rng(0)
    u, v = np.eye(50)[0], np.eye(50)[0] * 0.6 + np.eye(50)[1] * 0.8
    a, b = rng.standard_normal(9), rng.standard_normal(7) * 2
    shift = np.linalg.norm(a.mean() * u - b.mean() * v) ** 2
    expected = shift + a.var(ddof=1) + b.var(ddof=1) - 2 * a.std(ddof=1) * b.std(ddof=1) * 0.6
    assert frechet_distance_of_features(np.outer(a, u), np.outer(b, v)) == pytest.approx(expected, rel=1e-10)


def test_the_same_few_pictures_are_at_distance_zero():
    features = np.random.default_rng(0).standard_normal((20, 512))
    assert frechet_distance_of_features(features, features[::-1]) < 1e-9


def test_statistics_are_numpys():
    features = np.random.default_rng(1).standard_normal((50, 6)).astype(np.float32)
    mean, covariance = statistics(torch.from_numpy(features))
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-14)


def test_statistics_survive_a_file_in_the_public_layout(tmp_path):
    mean, covariance = gaussians(5, 9)
    save_statistics(tmp_path / "real.npz", mean, covariance)
    with np.load(tmp_path / "real.npz", allow_pickle=False) as file:
        assert sorted(file) == ["mu", "sigma"]
    again = load_statistics(tmp_path / "real.npz")
    assert np.array_equal(again.mean, mean) and np.array_equal(again.covariance, covariance)


def test_a_pickle_in_a_statistics_file_is_not_loaded(tmp_path):
    np.savez(tmp_path / "bad.npz", mu=np.array([print], dtype=object), sigma=np.eye(1))
    with pytest.raises(InputError, match="is not an .npz with the arrays mu and sigma"):
        load_statistics(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04cut short"])
def test_a_broken_statistics_file_is_named(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match="x.npz"):
        load_statistics(tmp_path / "x.npz")


def test_missing_files_and_arrays_are_named(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        load_statistics(tmp_path / "none.npz")
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    with pytest.raises(InputError, match="no 'sigma'"):
        load_statistics(tmp_path / "half.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(InputError, match=r"want \(d,\) and \(d, d\)"):
        load_statistics(tmp_path / "odd.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros(3), np.eye(3), np.zeros(2), np.eye(2)), "3 dimensions, b has 2"),
        ((np.zeros(3), np.eye(2), np.zeros(3), np.eye(3)), r"want \(d,\) and \(d, d\)"),
        ((np.zeros((1, 3)), np.eye(3), np.zeros(3), np.eye(3)), r"mean \(1, 3\)"),
        ((np.full(3, np.nan), np.eye(3), np.zeros(3), np.eye(3)), "3 of 3 numbers are not finite"),
        ((np.zeros(3), np.full((3, 3), np.inf), np.zeros(3), np.eye(3)), "not finite"),
        ((np.zeros(2), np.array([[1.0, 2.0], [0.0, 1.0]]), np.zeros(2), np.eye(2)), "not symmetric"),
        ((np.zeros(2), -np.eye(2), np.zeros(2), np.eye(2)), "none below 0"),
        ((["a"], [["b"]], [0.0], [[1.0]]), "not an array of real numbers"),
        ((np.zeros(2) * 1j, np.eye(2), np.zeros(2), np.eye(2)), "not an array of real numbers"),
    ],
)
def test_bad_moments_are_refused_in_one_sentence(arguments, words):
    with pytest.raises(InputError, match=words):
        frechet_distance(*arguments)


def test_bad_features_are_refused():
    with pytest.raises(InputError, match="at least 2 are needed"):
        statistics(np.zeros((1, 4)))
    with pytest.raises(InputError, match=r"want \(n, d\)"):
        statistics(np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match="use the same features for both"):
        frechet_distance_of_features(np.zeros((4, 3)), np.zeros((4, 2)))


def test_two_thousand_dimensions_are_done_with_few_pictures():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((60, 2048)), rng.standard_normal((80, 2048))
    product = first - first.mean(0), second - second.mean(0)
    root = np.linalg.svd(product[0] @ product[1].T, compute_uv=False).sum() / np.sqrt(59 * 79)
    traces = (product[0] ** 2).sum() / 59 + (product[1] ** 2).sum() / 79
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + traces - 2 * root
    assert frechet_distance_of_features(first, second) == pytest.approx(expected, rel=1e-9)
