"""Was painted what was asked for? By a CLIP that never told the painter anything (evaluation/clip.py).

    retrieval     the share of pictures that are nearer to their own words than to 49 others'
    clip_score    the mean of 100 max(cos(picture, words), 0) (Hessel et al. 2021, eq. 1, without the factor 2.5)

The 49 others are words of 49 other clusters of near-duplicates: the same thing in another skin tone is no wrong answer. Each
score stands between the real pictures' own (the ceiling) and that of pictures with other pictures' words (the floor); a
concept that was never trained on cannot be known, so words are asked of the training split and of its held-out combinations.
A CLIP itself is measured by `recalls`: how often the right one is first, among the first five and ten, of all concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .clip import ClipJudge, Progress
from .intervals import Interval, Resamples, interval

CANDIDATES = 50
RANKS = (1, 5, 10)
_RESAMPLES = 500


class Words(NamedTuple):
    """m captions, each with the number of its cluster: those that a right one is to be told from."""

    texts: Sequence[str]
    clusters: np.ndarray  # (m,) int64


class Asked(NamedTuple):
    """What a painter was asked for, and what real pictures answer."""

    name: str  # of this set: "" for the training captions, "combinations"
    texts: list[str]  # n
    clusters: np.ndarray  # (n,) int64
    real: np.ndarray  # (n, 3, h, w) uint8


class Measured(NamedTuple):
    """Numbers by name, and the intervals of some."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def candidates(asked: Asked, words: Words, seed: int, count: int = CANDIDATES) -> np.ndarray:
    """(n, count - 1): for each text the places of wrong ones among `words`, all of different clusters and none of its own.

    They depend on the seed and on the place of the text. InputError where there are not enough clusters.
    """
    order = np.unique(words.clusters)
    if len(order) < count:
        raise InputError(
            f"metric 'retrieval': {len(order)} concepts in the captions, {count} are needed to choose among"
        )
    places = {cluster: np.flatnonzero(words.clusters == cluster) for cluster in order.tolist()}
    found = np.empty((len(asked.texts), count - 1), np.int64)
    for i, (text, own) in enumerate(zip(asked.texts, asked.clusters.tolist(), strict=True)):
        rng, chosen = np.random.default_rng([seed, 3, i]), 0
        for cluster in rng.permutation(order).tolist():
            place = int(rng.choice(places[cluster]))
            if cluster == own or words.texts[place] == text:
                continue
            found[i, chosen] = place
            chosen += 1
            if chosen == count - 1:
                break
        else:
            raise InputError(f"metric 'retrieval': fewer than {count} captions to choose among")
    return found


def judged(
    judge: ClipJudge, pictures: np.ndarray, asked: Asked, words: Words, metrics: Sequence[str], seed: int = 0,
    resamples: int = _RESAMPLES, progress: Progress | None = None,
) -> Measured:  # fmt: skip
    """`retrieval` and `clip_score` of pictures (n, 3, h, w) uint8, one a text that was asked for, with `_real` (ceiling),
    `_shuffled` (floor) and, of retrieval, `_over_real`. The name of the set stands behind: `retrieval_combinations_real`."""
    ours, real = judge.pictures(pictures, progress), judge.pictures(asked.real, progress)
    told = judge.texts(asked.texts, progress)
    other = _others(asked.clusters, seed)
    draws = Resamples(asked.clusters, len(told), "prompts")
    rng = np.random.default_rng([seed, 4])
    weights = np.stack([draws.next(rng) for _ in range(resamples)]) if resamples else np.empty((0, len(told)))
    found = Measured({}, {})
    end = f"_{asked.name}" if asked.name else ""
    if "retrieval" in metrics:
        wrong = judge.texts(list(words.texts), progress)
        among = candidates(asked, words, seed)
        hits = {"": _hits(ours, told, wrong, among), "_real": _hits(real, told, wrong, among)}
        hits["_shuffled"] = _hits(ours[other], told, wrong, among)
        _note(found, f"retrieval{end}", hits, weights)
        if hits["_real"].any():
            mean = hits[""].mean() / hits["_real"].mean()
            below = weights @ hits["_real"]
            drawn = (weights @ hits[""])[below > 0] / below[below > 0]
            _put(found, f"retrieval{end}_over_real", mean, drawn)
    if "clip_score" in metrics:
        near = {"": ours, "_real": real, "_shuffled": ours[other]}
        likeness = {name: 100 * np.maximum((vectors * told).sum(1), 0) for name, vectors in near.items()}
        _note(found, f"clip_score{end}", likeness, weights)
    return found


def _hits(pictures: np.ndarray, told: np.ndarray, wrong: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(n,) 1.0 where a picture is nearer to its own words than to all others, 0.0 where one is as near."""
    own = (pictures * told).sum(1)
    best = np.einsum("nd,ncd->nc", pictures, wrong[among]).max(1)
    return (own > best).astype(np.float64)


def _others(clusters: np.ndarray, seed: int) -> np.ndarray:
    """(n,) for each text the place of a picture of another cluster, where there is one."""
    rng, n = np.random.default_rng([seed, 5]), len(clusters)
    order = rng.permutation(n)
    found = np.empty(n, np.int64)
    for i in range(n):
        turned = np.roll(order, -i)
        strange = turned[clusters[turned] != clusters[i]]
        found[i] = strange[0] if len(strange) else (i + 1) % n
    return found


def _note(found: Measured, name: str, values: dict[str, np.ndarray], weights: np.ndarray) -> None:
    for end, each in values.items():
        _put(found, name + end, float(each.mean()), weights @ each / weights.sum(1))


def _put(found: Measured, name: str, value: float, drawn: np.ndarray) -> None:
    found.values[name] = float(value)
    if len(drawn):
        ends: Interval = interval(value, drawn)
        found.intervals[name] = (ends.low, ends.high)


def recalls(judge: ClipJudge, asked: Asked, progress: Progress | None = None) -> Measured:
    """Of a CLIP: how often the right one is among the first 1, 5, 10, of one picture a cluster: `picture_to_text_1`, ...

    Where several texts are as near, the right one counts as the last of them.
    """
    _, first = np.unique(asked.clusters, return_index=True)
    first = np.sort(first)
    near = judge.pictures(asked.real[first], progress) @ judge.texts([asked.texts[i] for i in first], progress).T
    own, end = near.diagonal(), f"_{asked.name}" if asked.name else ""
    values = {f"concepts{end}": float(len(first))}
    for way, better in (("picture_to_text", (near >= own[:, None]).sum(1)), ("text_to_picture", (near >= own).sum(0))):
        values |= {f"{way}_{k}{end}": float((better <= k).mean()) for k in RANKS}
    return Measured(values, {})
