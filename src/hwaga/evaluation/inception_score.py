"""Inception score: exp of the mean divergence between each picture's class probabilities and their mean.

High where each picture is plainly of one class and all classes occur; at most the number of classes. It asks nothing of
a reference, so it sees neither copying nor a wrong mix of classes: hold it against the real pictures' own.
Source: Salimans et al. 2016, section 4 (arXiv:1606.03498).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .arrays import Array, as_features


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits (0 for a single one)."""

    mean: float
    deviation: float


def inception_score(logits: Array, *, splits: int = 10) -> InceptionScore:
    """The score of class logits (n, c), in 1 ... c; pictures are split in the order they come in.

    InputError when there are fewer pictures than splits.
    """
    array = as_features(logits, "logits")
    if not 1 <= splits <= len(array):
        raise InputError(f"splits={splits}: want 1 to {len(array)}, the number of pictures")
    log_p = array - array.max(axis=1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, splits):
        mean = np.exp(part).mean(axis=0)
        log_mean = np.log(np.where(mean > 0, mean, 1.0))  # a class of probability 0 everywhere counts nothing
        scores.append(np.exp((np.exp(part) * (part - log_mean)).sum(axis=1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
