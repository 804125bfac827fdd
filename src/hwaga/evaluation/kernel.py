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

from ..errors import InputError, unknown
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
    draw: str = "rounds",
) -> KernelDistance:
    """KID of features (n, d) and (m, d); n, m >= 2.

    Without `subsets` all pairs are used, which has the least variance; the standard error is the jackknife's over
    pictures of both sets. With `subsets` (the papers' 100 of 1,000) the value is the mean over pairs of random subsets
    of `subset_size` pictures of each set:

    draw="rounds"  both sets are cut into disjoint subsets at random, and each of one is paired with each of the other,
                   round after round: every picture counts equally, and a subset's own pairs are worked out once
    draw="random"  new subsets for every pair, the very ones that torch-fidelity draws from the same seed; about twice
                   the work

    InputError when a subset is larger than a set.
    """
    first, second = as_pair(samples, reference, least=2, single=True)
    kind = np.float32 if first.shape[1] > _WIDE else np.float64
    first, second = first.astype(kind, copy=False), second.astype(kind, copy=False)
    if draw not in ("rounds", "random"):
        raise unknown("draw", draw, ("rounds", "random"))
    if subsets is None:
        return _all_pairs(first, second)
    if subsets < 1 or subset_size < 2:
        raise InputError(f"subsets={subsets}, subset_size={subset_size}: at least 1 subset of at least 2 pictures")
    least = min(len(first), len(second))
    if subset_size > least:
        raise InputError(f"subset_size={subset_size}: the smaller set has {least} pictures; take that many or fewer")
    if draw == "random":
        return _random_subsets(first, second, subsets, subset_size, seed)
    return _rounds(first, second, subsets, subset_size, seed)


def _random_subsets(first: np.ndarray, second: np.ndarray, subsets: int, size: int, seed: int) -> KernelDistance:
    """Standard error: that of the mean over subsets; rather too small, as subsets overlap."""
    rng = np.random.RandomState(seed)
    scratch = np.empty((size, size), first.dtype)
    values = np.empty(subsets)
    for i in range(subsets):
        x = first[rng.choice(len(first), size, replace=False)]
        y = second[rng.choice(len(second), size, replace=False)]
        within = _sum_within(x, scratch) + _sum_within(y, scratch)
        values[i] = within / (size * (size - 1)) - 2 * _sum_between(x, y, scratch) / size**2
    error = float(values.std(ddof=1) / np.sqrt(subsets)) if subsets > 1 else float("nan")
    return KernelDistance(float(values.mean()), error, subsets)


def _rounds(first: np.ndarray, second: np.ndarray, subsets: int, size: int, seed: int) -> KernelDistance:
    """Standard error: from the means over either side's disjoint subsets, in the rounds that have two of both."""
    rng = np.random.default_rng(seed)
    scratch = np.empty((size, size), first.dtype)
    side = int(np.ceil(np.sqrt(subsets)))
    values: list[float] = []
    variances: list[float] = []
    while len(values) < subsets:
        x = _cut(first, size, side, rng)
        rest = -(-(subsets - len(values)) // len(x))
        y = _cut(second, size, min(rest, max(side, 2)), rng)
        pairs = size * (size - 1)
        inside_x = np.array([_sum_within(part, scratch) for part in x]) / pairs
        inside_y = np.array([_sum_within(part, scratch) for part in y]) / pairs
        between = np.array([[_sum_between(a, b, scratch) for b in y] for a in x]) / size**2
        table = inside_x[:, None] + inside_y[None, :] - 2 * between
        if min(table.shape) > 1:
            variances.append(float(sum(table.mean(k).var(ddof=1) / table.shape[1 - k] for k in (0, 1))))
        values += table.ravel().tolist()
    error = float(np.sqrt(np.mean(variances))) if variances else float("nan")
    return KernelDistance(float(np.mean(values)), error, len(values))


def _cut(features: np.ndarray, size: int, most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """At most so many disjoint random subsets."""
    order = rng.permutation(len(features))
    return [features[order[i * size : (i + 1) * size]] for i in range(max(1, min(most, len(features) // size)))]


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
