"""95 % intervals by resampling whole clusters of near-duplicate pictures.

Pictures of one cluster are no independent witnesses, so a resample draws clusters with replacement and takes all their
pictures. A resample has fewer different pictures, which makes its Frechet distances too large: each is corrected by
its own mean excess before anything is divided (Efron and Tibshirani 1993, section 10.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .arrays import Array, as_features
from .frechet import cholesky, sum_of_singular_values, trace_of_root

_LEVELS = (0.025, 0.975)
_SMALL = 256  # dimensions
_LEAST_SHARE = 1e-3  # a corrected distance is never taken below this share of the distance itself

Progress = Callable[[int, int, str], None]
"""progress(done, total, what)"""


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def holds(self, limit: float) -> bool:
        """A limit holds if the interval does not lie above it and is narrower than 0.05 of the value to each side."""
        return self.low <= limit and (self.high - self.low) / 2 < 0.05 * abs(self.value)


class Resamples:
    """Draws of whole clusters: `next(rng)` gives how often each picture (n,) occurs; n pictures on average."""

    def __init__(self, clusters: Sequence[int] | np.ndarray | None, n: int, name: str) -> None:
        if clusters is None:
            clusters = np.arange(n)
        if len(clusters) != n:
            raise InputError(f"{name}: {len(clusters)} clusters for {n} pictures; want one number a picture")
        _, self._place = np.unique(np.asarray(clusters), return_inverse=True)
        self._count = int(self._place.max()) + 1

    def next(self, rng: np.random.Generator) -> np.ndarray:
        drawn = rng.integers(0, self._count, self._count)
        return np.bincount(drawn, minlength=self._count).astype(np.float64)[self._place]


def whole_clusters(clusters: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Places (about n,) of pictures that are whole clusters, drawn in an order of `seed`, ascending.

    A cluster that would lead beyond n is passed over, so a few are missing at the end where only large ones are left.
    """
    values, place, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    taken = np.zeros(len(values), bool)
    room = n
    for cluster in np.random.default_rng([seed, 1]).permutation(len(values)):
        if sizes[cluster] <= room:
            taken[cluster] = True
            room -= int(sizes[cluster])
    return np.flatnonzero(taken[place])


class _Gaussian(NamedTuple):
    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray | None  # a Cholesky factor of the covariance where it has one

    @classmethod
    def of(cls, features: np.ndarray, weight: np.ndarray | None = None) -> _Gaussian:
        weight = np.ones(len(features)) if weight is None else weight
        kept = weight > 0
        features, weight = features[kept], weight[kept]
        total = weight.sum()
        mean = weight @ features / total
        rows = np.sqrt(weight / (total - 1))[:, None] * (features - mean)
        covariance = rows.T @ rows
        return cls(mean, covariance, cholesky(covariance))


def _distances(sets: Sequence[_Gaussian], other: _Gaussian) -> np.ndarray:
    """FD of each of several Gaussians to one, the regular ones in one batch."""
    result = np.empty(len(sets))
    regular: list[int] = []
    if other.root is not None:
        roots = {i: one.root for i, one in enumerate(sets) if one.root is not None}
        regular = list(roots)
        if roots:
            products = other.root.T @ np.stack(list(roots.values()))
            result[regular] = [sum_of_singular_values(product) for product in products]
    for i in set(range(len(sets))) - set(regular):
        result[i] = trace_of_root(sets[i].covariance, other.covariance)
    for i, one in enumerate(sets):
        gap = one.mean - other.mean
        traces = float(np.trace(one.covariance) + np.trace(other.covariance))
        result[i] = max(0.0, float(gap @ gap) + traces - 2 * result[i])
    return result


def resampled_distances(
    sets: Sequence[Array],
    reference: Array,
    *,
    clusters: Sequence[np.ndarray | None] | None = None,
    reference_clusters: np.ndarray | None = None,
    paired: Sequence[tuple[int, int]] = (),
    floor: Sequence[Array] = (),
    resamples: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """FD of each of s sets of features to one reference: the distances (s,), and corrected ones (resamples, s).

    Each resample has one draw of the reference for all sets. `paired` names pairs of sets whose picture i comes from
    the same seed: the second of a pair takes the first's draw. With `floor` a column is added at the end: the mean
    distance of those sets, which are taken as they are.
    """
    other = as_features(reference, "reference", 2)
    features = [as_features(value, f"set {i}", 2, other.shape[1]) for i, value in enumerate(sets)]
    with _one_thread(other.shape[1]):
        fixed = [_Gaussian.of(as_features(value, "floor", 2, other.shape[1])) for value in floor]
    clusters = clusters or [None] * len(features)
    draws = [Resamples(c, len(f), f"set {i}") for i, (c, f) in enumerate(zip(clusters, features, strict=True))]
    reference_draw = Resamples(reference_clusters, len(other), "reference")
    follows = {second: first for first, second in paired}
    for second, first in follows.items():
        if len(features[first]) != len(features[second]):
            sizes = f"{len(features[first])} and {len(features[second])}"
            raise InputError(f"{sizes} pictures: a comparison by seed needs as many of each")
    rng = np.random.default_rng([seed, 2])

    def measure(weights: Sequence[np.ndarray | None], reference_weight: np.ndarray | None) -> np.ndarray:
        ours = [_Gaussian.of(f, weight) for f, weight in zip(features, weights, strict=True)]
        found = _distances([*ours, *fixed], _Gaussian.of(other, reference_weight))
        return np.append(found[: len(ours)], found[len(ours) :].mean()) if fixed else found

    with _one_thread(other.shape[1]):
        values = measure([None] * len(features), None)
        drawn = np.empty((resamples, len(values)))
        for i in range(resamples):
            weights: list[np.ndarray | None] = []
            for place, draw in enumerate(draws):
                weights.append(weights[follows[place]] if place in follows else _at_least_two(draw, rng))
            drawn[i] = measure(weights, _at_least_two(reference_draw, rng))
            if progress:
                progress(i + 1, resamples, "resampling for the interval")
    corrected = drawn - (drawn.mean(axis=0) - values) if resamples else drawn
    return values, np.maximum(corrected, _LEAST_SHARE * values)


def _one_thread(dimensions: int) -> AbstractContextManager[object]:
    """Small matrices in one thread: on a busy machine several wait for each other, twenty times as long as they work."""
    if dimensions > _SMALL:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def _at_least_two(draw: Resamples, rng: np.random.Generator) -> np.ndarray:
    """A draw with at least two different pictures, without which there is no covariance."""
    for _ in range(100):
        weight = draw.next(rng)
        if (weight > 0).sum() > 1:
            return weight
    return np.ones_like(weight)


def interval(value: float, drawn: np.ndarray) -> Interval:
    """The middle 95 % of resampled values; with the value itself never outside."""
    low, high = np.quantile(drawn, _LEVELS)
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def ratio_interval(numerator: int, denominator: int, values: np.ndarray, drawn: np.ndarray) -> Interval:
    """Interval of the ratio of two of the distances of `resampled_distances`, divided inside each resample."""
    if values[denominator] <= 0:
        raise InputError("the distance below the line is 0 (a set against itself?); no ratio can be made")
    return interval(values[numerator] / values[denominator], drawn[:, numerator] / drawn[:, denominator])
