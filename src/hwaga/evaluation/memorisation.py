"""Memorisation: are samples nearer to training pictures than a painter who copies nothing would come?

A sample is near when its distance (in feature space) to the nearest training picture is below that which 5 % of
held-out pictures stay under. Of the share of near samples, the same share of real training pictures, each held against
all the others, is taken off: where many pictures have close relatives, a perfect painter makes relatives too. 0 is
perfect; held-out pictures come to 5 % less that share; copies of training pictures to 1 less that share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .arrays import Array, as_features, nearest_distances
from .intervals import Interval, Resamples, interval

QUANTILE = 0.05


class Memorisation(NamedTuple):
    """The measure with its 95 % interval, and what it is made of."""

    value: float
    low: float
    high: float
    near_samples: float  # share of samples nearer than the threshold
    near_training: float  # share of training pictures nearer than it to another one
    threshold: float  # distance in feature space
    copies: int  # samples that are byte-identical to a training picture
    note: str | None  # what a reader must be told


def memorisation(
    samples: Array,
    training: Array,
    held_out: Array,
    *,
    sample_keys: Sequence[bytes] | None = None,
    training_keys: Sequence[bytes] | None = None,
    sample_clusters: np.ndarray | None = None,
    training_clusters: np.ndarray | None = None,
    held_out_clusters: np.ndarray | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Memorisation:
    """Of features (n, d), (N, d) and (m, d). Keys are digests of the pixels: equal ones are byte-identical pictures.

    Of identical training pictures one is kept. Clusters are numbers of near-duplicates, drawn whole for the interval.
    InputError for fewer than two training pictures, or none of the others.
    """
    first = as_features(samples, "samples")
    second = as_features(training, "training", 2, first.shape[1])
    third = as_features(held_out, "held_out", 1, first.shape[1])
    for keys, features, name in ((sample_keys, first, "samples"), (training_keys, second, "training")):
        if keys is not None and len(keys) != len(features):
            raise InputError(f"{name}: {len(keys)} keys for {len(features)} pictures")
    copies = 0
    if training_keys is not None:
        kept = np.array(sorted({key: place for place, key in reversed(list(enumerate(training_keys)))}.values()))
        second = second[kept]
        training_clusters = None if training_clusters is None else np.asarray(training_clusters)[kept]
        if sample_keys is not None:
            known = set(training_keys)
            copies = sum(key in known for key in sample_keys)
        if len(second) < 2:
            raise InputError("training: all pictures are byte-identical; at least 2 different ones are needed")

    to_samples = nearest_distances(first, second)
    to_training = nearest_distances(second, second, own=True)
    to_held_out = nearest_distances(third, second)
    order = np.argsort(to_held_out)
    to_held_out = to_held_out[order]

    def measure(weights: Sequence[np.ndarray]) -> tuple[float, float, float]:
        reached = np.cumsum(weights[2][order])
        threshold = to_held_out[min(np.searchsorted(reached, QUANTILE * reached[-1]), len(reached) - 1)]
        near = [
            float(weight @ (distance < threshold) / weight.sum())
            for weight, distance in zip(weights, (to_samples, to_training), strict=False)
        ]
        return near[0], near[1], float(threshold)

    near_samples, near_training, threshold = measure([np.ones(len(x)) for x in (first, second, third)])
    draws = [
        Resamples(sample_clusters, len(first), "samples"),
        Resamples(training_clusters, len(second), "training"),
        Resamples(held_out_clusters, len(third), "held_out"),
    ]
    rng = np.random.default_rng([seed, 3])
    values = np.empty(resamples)
    for i in range(resamples):
        ours, theirs, _ = measure([draw.next(rng) for draw in draws])
        values[i] = ours - theirs
    value = near_samples - near_training
    ends = interval(value, values) if resamples else Interval(value, float("nan"), float("nan"))
    note = None
    if copies:
        note = f"{copies} of {len(first)} samples are byte-identical to training pictures"
        if copies == len(first):
            note = f"all {copies} samples are training pictures: this set contains its own training pictures"
    return Memorisation(value, ends.low, ends.high, near_samples, near_training, threshold, copies, note)
