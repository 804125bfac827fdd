"""Prior preservation (Ruiz et al. 2022, DreamBooth, section 3.3): pictures of what a model could paint before, beside new ones.

Trained further on a handful of pictures of one thing, a model forgets the others of its kind. So as many pictures of the kind,
painted by the model itself before, are learned beside them, their loss weighted:

    E w ||...||^2 over the new pictures (w = 1) and those of before (w = lambda)                     eq. 2

`Joined` is what training sees: an epoch is every new picture once, and as many of the others, which take turns over the epochs.
Everything else (labels, sizes, what is held out, what is measured) is that of the new pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache import digest
from .dataset import Dataset

if TYPE_CHECKING:
    from ..interfaces import Batch

WEIGHT = "weight"
"""Name in a batch's `extra`: (n,) float32, what the loss of each picture is multiplied by."""


@dataclass(frozen=True)
class Joined:
    """2 n pictures for n new ones: place i is a new picture, place n + i one of before."""

    new: Dataset
    before: Dataset
    caption: str | None  # of those of before; None: their own
    weight: float

    def __len__(self) -> int:
        return 2 * len(self.new)

    @property
    def fingerprint(self) -> str:
        """A hash over both and how they are joined."""
        return digest([self.new.fingerprint, self.before.fingerprint, self.caption, self.weight])

    def batch(self, indices: Sequence[int] | np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The pictures at these places; `extra["weight"]` says what each one's loss is multiplied by."""
        at = np.asarray(indices, dtype=np.int64).reshape(-1)
        count = len(self.new)
        first, second = np.flatnonzero(at < count), np.flatnonzero(at >= count)
        turn = (
            np.zeros(len(at), np.int64) if epochs is None else np.broadcast_to(np.asarray(epochs, np.int64), at.shape)
        )
        # over the epochs one after the other, all of those of before take their turns
        others = (turn[second] * count + at[second] - count) % len(self.before)
        parts = [
            self._part(self.new, at[first], None if epochs is None else turn[first], 1.0, None),
            self._part(self.before, others, None if epochs is None else turn[second], self.weight, self.caption),
        ]
        return _in_order([part for part in parts if len(part)], np.argsort(np.concatenate([first, second])), at)

    @staticmethod
    def _part(data: Dataset, at: np.ndarray, epochs: np.ndarray | None, weight: float, caption: str | None) -> Batch:
        import torch

        batch = data.batch(at, epochs)
        said = [caption] * len(at) if caption is not None else batch.caption
        return replace(batch, caption=said, extra={**batch.extra, WEIGHT: torch.full((len(at),), weight)})


def _in_order(parts: list[Batch], order: np.ndarray, indices: np.ndarray) -> Batch:
    """The pictures of the parts, one part after the other, brought into an order. What only one part has is left out."""
    import torch

    places = torch.from_numpy(order)

    def one(values: list[Any]) -> Any:
        return None if any(value is None for value in values) else torch.cat(values)[places]

    captions = [part.caption for part in parts]
    texts = None if any(told is None for told in captions) else [text for told in captions for text in told or ()]
    names = [name for name in parts[0].extra if all(name in part.extra for part in parts)]
    return replace(
        parts[0], image=one([part.image for part in parts]), index=torch.from_numpy(indices.copy()),
        label=one([part.label for part in parts]), caption=None if texts is None else [texts[i] for i in order],
        extra={name: one([part.extra[name] for part in parts]) for name in names}, cluster=None,
    )  # fmt: skip
