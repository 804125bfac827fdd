"""Which words a picture goes with in an epoch: one of its captions, its parts in some order.

Like flips and windows (`augment.py`) the choice depends on (seed, epoch, index) and on nothing else, so that a run resumes
without state and several processes agree. What is measured goes by the first caption of each picture, as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .augment import uniform

COMMA = ", "


def several(told: Iterable[Sequence[str]], *others: Sequence[Sequence[str]]) -> list[tuple[str, ...]] | None:
    """All different captions of each picture, in order; None where no picture has more than one.

    told: of each picture a caption in each language; others: further lists, of each picture again.
    """
    found = [
        tuple(dict.fromkeys(text for texts in lists for text in texts)) for lists in zip(told, *others, strict=True)
    ]
    return found if any(len(texts) > 1 for texts in found) else None


def one_of(captions: Sequence[Sequence[str]], seed: int, epochs: np.ndarray, indices: np.ndarray) -> list[str]:
    """One of each picture's captions, all equally often over the epochs."""
    draws = uniform("caption", seed, epochs, indices)
    return [texts[int(draw * len(texts))] for texts, draw in zip(captions, draws, strict=True)]


def shuffled(captions: Sequence[str], keep: int, seed: int, epochs: np.ndarray, indices: np.ndarray) -> list[str]:
    """The parts of each caption, which commas divide, in an order of the epoch; the first `keep` stay where they are."""
    found = []
    for text, epoch, index in zip(captions, epochs, indices, strict=True):
        parts = [part.strip() for part in text.split(",")]
        rest = parts[keep:]
        one = np.full(len(rest), index)
        keys = uniform("caption order", seed, np.full(len(rest), epoch), one * 4096 + np.arange(len(rest)))
        found.append(COMMA.join([*parts[:keep], *(rest[i] for i in np.argsort(keys, kind="stable"))]))
    return found
