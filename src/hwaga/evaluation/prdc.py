"""Precision, recall, density and coverage of one set of features against another.

A ball stands around each picture of a set and reaches to its k-th nearest neighbour in that set. With balls around the
*reference*: precision is the share of samples that lie in one; density counts them all (1 where the sets are alike,
above it where samples sit in the reference's dense parts); coverage is the share of balls that hold a sample. Recall is
the share of the reference that lies in a ball around a *sample*.

Sources: Kynkaanniemi et al. 2019, eqs. 1 to 3 (precision, recall; arXiv:1904.06991); Naeem et al. 2020, eqs. 4 to 6
(density, coverage; arXiv:2002.09797). A point on a ball's edge counts for precision and recall, as in the first; not
for density and coverage, as in the code of the second: so a set against itself has all four at exactly 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .arrays import Array, as_pair, squared_distances

_EDGE = 1e-9  # relative: distances this close are equal but for rounding
_BLOCK = 1024


class PRDC(NamedTuple):
    precision: float
    recall: float
    density: float
    coverage: float


def prdc(samples: Array, reference: Array, *, k: int = 5) -> PRDC:
    """The four of features `samples` (n, d) and `reference` (m, d); both need more than k pictures (InputError).

    Pictures that occur more than k times have balls of radius 0, which hold their own copies. Memory: a block of 1024
    rows of distances at a time.
    """
    first, second = as_pair(samples, reference)
    least = min(len(first), len(second))
    if not 1 <= k < least:
        raise InputError(f"k={k}: want 1 to {least - 1}, as the smaller set has {least} pictures")
    sample_radii, reference_radii = _radii(first, k), _radii(second, k)
    precise = np.zeros(len(first), bool)
    counted = 0
    recalled = np.zeros(len(second), bool)
    covered = np.zeros(len(second), bool)
    for start in range(0, len(first), _BLOCK):
        part = slice(start, start + _BLOCK)
        distances = squared_distances(first[part], second)
        precise[part] = (distances <= reference_radii * (1 + _EDGE)).any(1)
        inside = (distances < reference_radii * (1 - _EDGE)) | (distances == 0)
        counted += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (distances <= sample_radii[part, None] * (1 + _EDGE)).any(0)
    density = counted / (k * len(first))
    return PRDC(float(precise.mean()), float(recalled.mean()), float(density), float(covered.mean()))


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance (n,) of each picture to its k-th nearest neighbour among the others."""
    radii = np.empty(len(features))
    for start in range(0, len(features), _BLOCK):
        distances = squared_distances(features[start : start + _BLOCK], features)
        own = np.arange(len(distances))
        distances[own, start + own] = -1  # the picture itself comes first, whatever its copies
        radii[start : start + _BLOCK] = np.partition(distances, k, axis=1)[:, k]
    return radii
