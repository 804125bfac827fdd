"""Kernel distance between two sets of features (with Inception features, KID): the squared maximum mean discrepancy.

    k(x, y) = (x . y / d + 1)^3
    KID = mean of k over pairs x != x' of one set + the same of the other - 2 mean of k over pairs x, y

An unbiased estimate, so it may be slightly negative where the sets are alike.
Source: Binkowski et al. 2018, "Demystifying MMD GANs", section 4 (arXiv:1801.01401); the estimate: Gretton et al. 2012,
eq. 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .arrays import Array, as_pair

_WIDE = 256  # with more dimensions the products are made in float32: twice as fast, right to some 1e-7 of k


class KernelDistance(NamedTuple):
    """The estimate and its standard error; `subsets` is 0 where all pairs were used."""

    value: float
    standard_error: float
    subsets: int


def kernel_distance(
    samples: Array,
    reference: Array,
    *,
    subsets: int | None = None,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """KID of features (n, d) and (m, d); n, m >= 2.

    Without `subsets` all pairs are used, which has the least variance; the standard error is the jackknife's over
    pictures of both sets. With `subsets` (the papers' 100 of 1,000) the value is the mean over random subsets of
    `subset_size` pictures of each set (drawn as torch-fidelity draws them from the same seed), and the standard error
    that of the mean over subsets; as subsets overlap it is rather too small. InputError when a subset is larger than
    a set.
    """
    first, second = as_pair(samples, reference, least=2)
    if first.shape[1] > _WIDE:
        first, second = first.astype(np.float32), second.astype(np.float32)
    if subsets is None:
        return _all_pairs(first, second)
    if subsets < 1 or subset_size < 2:
        raise InputError(f"subsets={subsets}, subset_size={subset_size}: at least 1 subset of at least 2 pictures")
    least = min(len(first), len(second))
    if subset_size > least:
        raise InputError(f"subset_size={subset_size}: the smaller set has {least} pictures; take that many or fewer")
    rng = np.random.RandomState(seed)
    scratch = np.empty((subset_size, subset_size), first.dtype)
    values = np.empty(subsets)
    for i in range(subsets):
        x = first[rng.choice(len(first), subset_size, replace=False)]
        y = second[rng.choice(len(second), subset_size, replace=False)]
        pairs = subset_size * (subset_size - 1)
        within = _sum_within(x, scratch) + _sum_within(y, scratch)
        values[i] = within / pairs - 2 * _sum_between(x, y, scratch) / subset_size**2
    error = float(values.std(ddof=1) / np.sqrt(subsets)) if subsets > 1 else float("nan")
    return KernelDistance(float(values.mean()), error, subsets)


def _cube_sum(products: np.ndarray, dimensions: int) -> float:
    """Sum of (p / d + 1)^3; `products` is overwritten. Rows are summed in its type, the rows' sums in float64."""
    products /= dimensions
    products += 1
    return float(np.einsum("ij,ij,ij->i", products, products, products).sum(dtype=np.float64))


def _sum_between(x: np.ndarray, y: np.ndarray, scratch: np.ndarray) -> float:
    return _cube_sum(np.matmul(x, y.T, out=scratch), x.shape[1])


def _sum_within(x: np.ndarray, scratch: np.ndarray) -> float:
    """Sum of k over pairs of different rows; numpy makes x x^T at half the price of another product."""
    dimensions = x.shape[1]
    diagonal = (np.einsum("ij,ij->i", x, x).astype(np.float64) / dimensions + 1) ** 3
    return _cube_sum(np.matmul(x, x.T, out=scratch), dimensions) - float(diagonal.sum())


def _all_pairs(x: np.ndarray, y: np.ndarray) -> KernelDistance:
    """The estimate over all pairs and its jackknife (Efron and Stein 1981), from sums of rows in blocks."""
    n, m = len(x), len(y)
    xx, _ = _row_sums(x, x)
    yy, _ = _row_sums(y, y)
    xy, yx = _row_sums(x, y)
    xx, yy = xx - _diagonal(x), yy - _diagonal(y)
    within_x, within_y, between = xx.sum(), yy.sum(), xy.sum()
    value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)
    if n < 3 or m < 3:
        return KernelDistance(float(value), float("nan"), 0)
    # leaving out picture i takes its row and its column (2 xx_i) from the sum over pairs, and its row from the other
    without_x = (within_x - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (between - xy) / ((n - 1) * m)
    without_y = (within_y - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (between - yx) / (n * (m - 1))
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return KernelDistance(float(value), float(np.sqrt(variance)), 0)


def _diagonal(x: np.ndarray) -> np.ndarray:
    return (np.einsum("ij,ij->i", x, x).astype(np.float64) / x.shape[1] + 1) ** 3


def _row_sums(x: np.ndarray, y: np.ndarray, block: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Sums of k(x_i, y_j) over j, and over i, in float64."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for start in range(0, len(x), block):
        kernel = x[start : start + block] @ y.T
        kernel /= x.shape[1]
        kernel += 1
        rows[start : start + block] = np.einsum("ij,ij,ij->i", kernel, kernel, kernel)
        columns += np.einsum("ij,ij,ij->j", kernel, kernel, kernel)
    return rows, columns
