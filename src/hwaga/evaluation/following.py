"""Does a painting follow its control? The condition is extracted again from what was painted and held against the real one.

    edges        F1 of Canny edges, an edge pixel counting as found where the other has one at most 1 pixel away
    silhouette   intersection over union of what stands before the background

    score = (given - floor) / (ceiling - floor)

given: paintings against the pictures whose control they were given; floor: the same paintings against other pictures'
(a control that was shuffled); ceiling: what the model's own autoencoder makes of the pictures, against the pictures. So 0 is a
model that does not look at its control, 1 one that could not follow it better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..conditioning.control.edges import edges
from ..conditioning.control.regions import foreground
from ..errors import InputError
from .intervals import Interval, Resamples, interval

LOW, HIGH = 100.0, 200.0  # Canny's thresholds, fixed, so that scores can be compared
TOLERANCE = 24.0  # levels: how far from the border's colour is still background
RESAMPLES = 500


class Following(NamedTuple):
    """A condition-following score and what it is made of, each a mean over pictures in [0, 1]."""

    score: Interval  # with a 95 % interval from resampling whole clusters of near-duplicates
    given: float
    floor: float
    ceiling: float

    @property
    def follows(self) -> bool:
        """Whether the given control does better than a shuffled one at all."""
        return self.given > self.floor


def edge_f1(a: np.ndarray, b: np.ndarray) -> float:
    """F1 of two edge maps, bool (h, w), with a tolerance of 1 pixel in every direction; two empty ones agree."""
    if not a.any() and not b.any():
        return 1.0
    if not a.any() or not b.any():
        return 0.0
    precision, recall = (a & _grown(b)).sum() / a.sum(), (b & _grown(a)).sum() / b.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two areas, bool (h, w); two empty ones agree."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask and all its neighbours, of eight."""
    around = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([around[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


class _Measure(NamedTuple):
    extract: Callable[[np.ndarray], np.ndarray]  # uint8 (h, w, 3) -> bool (h, w)
    agree: Callable[[np.ndarray, np.ndarray], float]


MEASURES = {
    "edges": _Measure(lambda levels: edges(levels, LOW, HIGH), edge_f1),
    "silhouette": _Measure(lambda levels: foreground(levels, TOLERANCE), overlap),
}


def measure_of(kind: str) -> str:
    """What a control kind is judged by: outlines by their edges, areas by their overlap."""
    return "silhouette" if kind == "silhouette" else "edges"


def following(
    painted: np.ndarray, real: np.ndarray, reconstructed: np.ndarray, measure: str = "edges",
    clusters: np.ndarray | None = None, seed: int = 0,
) -> Following:  # fmt: skip
    """The score of n paintings, uint8 (n, 3, h, w), that were given the controls of n real pictures, in their order.

    reconstructed: the real pictures encoded and decoded; clusters: (n,) of the real pictures. InputError for fewer than
    two pictures, of which one cannot be another's.
    """
    if len(painted) != len(real) or len(real) != len(reconstructed) or len(real) < 2:
        raise InputError(
            f"control: {len(painted)} paintings of {len(real)} pictures; as many of both, at least 2, are needed"
        )
    how = MEASURES[measure]
    ours, theirs, best = ([how.extract(p.transpose(1, 2, 0)) for p in many] for many in (painted, real, reconstructed))
    other = np.roll(np.arange(len(real)), -(len(real) // 2))  # far away: neighbours are often variants of one thing
    given = np.array([how.agree(a, b) for a, b in zip(ours, theirs, strict=True)])
    floor = np.array([how.agree(a, theirs[j]) for a, j in zip(ours, other, strict=True)])
    ceiling = np.array([how.agree(a, b) for a, b in zip(best, theirs, strict=True)])
    rows = np.stack([given, floor, ceiling])
    drawn = _resampled(rows, clusters, seed)
    value = _score(rows.mean(1))
    return Following(interval(value, drawn), *(float(part) for part in rows.mean(1)))


def _score(means: np.ndarray) -> float:
    given, floor, ceiling = means.tolist()
    return (given - floor) / max(ceiling - floor, 1e-6)


def _resampled(rows: np.ndarray, clusters: np.ndarray | None, seed: int) -> np.ndarray:
    """The score of RESAMPLES draws of whole clusters, with replacement."""
    draw, rng = Resamples(clusters, rows.shape[1], "control"), np.random.default_rng([seed, 7])
    return np.array([_score(np.average(rows, axis=1, weights=draw.next(rng))) for _ in range(RESAMPLES)])
