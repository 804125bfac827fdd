"""Aspect buckets: pictures of other shapes than a square learn in batches of one size each, cut as little as can be.

A picture goes to the size whose aspect is nearest to its own, among those of about the area of `data.size` squared whose sides are
multiples of `data.buckets` (Podell et al. 2023, section 2.3 and appendix I, as NovelAI had it before). Batches hold one size; which
one comes next is drawn anew each epoch. It is a pure function of the step, so that a run resumes at any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .cache import digest
from .dataset import Dataset, Progress
from .order import permutation

if TYPE_CHECKING:
    from ..interfaces import Batch

LONGEST = 4.0  # times as long as high, or as high as long, at most (Podell et al. 2023, appendix I)


def sizes(side: int, step: int) -> list[tuple[int, int]]:
    """(height, width) of all buckets, multiples of `step`: for each height the widest whose area is at most side squared.

    InputError for a step that is larger than the side.
    """
    if step > side:
        raise InputError(f"data.buckets={step}: sides are multiples of it, so it is at most data.size={side}")
    found = []
    for height in range(step, int(side * math.sqrt(LONGEST)) + 1, step):
        width = side * side // height // step * step
        if width and max(height / width, width / height) <= LONGEST:
            found.append((height, width))
    return found


def nearest(shapes: np.ndarray, among: Sequence[tuple[int, int]]) -> np.ndarray:
    """(n,) the place of the size whose aspect is nearest to that of each shape (n, 2), in logarithms; of equals the first."""
    wanted = np.log([height / width for height, width in among])
    aspects = np.log(shapes[:, 0] / shapes[:, 1])
    return np.abs(aspects[:, None] - wanted[None]).round(9).argmin(1)


@dataclass(frozen=True)
class Bucketed:
    """The pictures of a set by size: places 0, 1, ... run through one part after the other."""

    parts: tuple[Dataset, ...]  # each of pictures of one size

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def fingerprint(self) -> str:
        return digest([part.fingerprint for part in self.parts])

    @property
    def text(self) -> str:
        """The sizes and how many pictures have each, in words."""
        told = (f"{height} x {width} ({len(part)})" for part in self.parts for height, width in [part.size])
        return ", ".join(told)

    def batch(self, indices: Sequence[int] | np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """Pictures of one size. ValueError where the places are of several."""
        import torch

        at = np.asarray(indices, dtype=np.int64).reshape(-1)
        ends = np.cumsum([len(part) for part in self.parts])
        place = np.unique(np.searchsorted(ends, at, side="right"))
        if len(place) != 1:
            raise ValueError(f"{len(place)} sizes in one batch")
        part, start = self.parts[int(place[0])], int(ends[place[0]]) - len(self.parts[int(place[0])])
        return replace(part.batch(at - start, epochs), index=torch.from_numpy(at.copy()))

    def order(self, count: int, batch_size: int, seed: int) -> BucketOrder:
        """As `Order(count, batch_size, seed)`, in batches of one size."""
        return BucketOrder(tuple(map(len, self.parts)), batch_size, seed)


@dataclass(frozen=True)
class BucketOrder:
    """Which pictures step k sees: an epoch is all batches of all sizes, in an order of its own. A size's last batch is filled up
    from its first pictures, so that every picture is seen at least once an epoch."""

    lengths: tuple[int, ...]
    batch_size: int
    seed: int

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of step 0, 1, ...: each int64 (batch_size,)."""
        counts = [-(-length // self.batch_size) for length in self.lengths]
        epoch, number = divmod(step, sum(counts))
        batch = int(permutation(sum(counts), self.seed, epoch)[number])
        part = int(np.searchsorted(np.cumsum(counts), batch, side="right"))
        first = (batch - sum(counts[:part])) * self.batch_size
        within = np.arange(first, first + self.batch_size) % self.lengths[part]
        # each part's pictures in an order of their own: the seed is another for each
        places = permutation(self.lengths[part], self.seed + 1 + part, epoch)[within] + sum(self.lengths[:part])
        return places, np.full(self.batch_size, epoch, np.int64)


def bucketed(data: Dataset, step: int, progress: Progress | None = None) -> Bucketed:
    """The pictures of a set, each read again at the size of its bucket. InputError for a source whose pictures are all of one
    shape already, and where windows are cut at random."""
    side = data.config.size
    if data.originals is None or not isinstance(side, int):
        why = (
            f"data.size={side} is no square"
            if data.originals
            else f"all pictures of {data.config.source!r} have one shape"
        )
        raise InputError(f"data.buckets={step}: {why}; leave it out")
    if data.config.random_crop:
        raise InputError(f"data.buckets={step} with data.random_crop=true: one or the other")
    every = sizes(side, step)
    chosen, parts = nearest(np.array(data.originals.shapes), every), []
    for place, size in enumerate(every):
        mine = np.flatnonzero(chosen == place)
        if not len(mine):
            continue
        names = [data.names[i] for i in mine]
        entry = data.originals.read(tuple(names), size, progress)
        parts.append(replace(
            data, config=data.config.model_copy(update={"size": size}), names=names,
            labels=None if data.labels is None else data.labels[mine],
            captions=None if data.captions is None else [data.captions[i] for i in mine],
            wordings=None if data.wordings is None else [data.wordings[i] for i in mine],
            clusters=data.clusters[mine], store=entry.pixels, rows=np.arange(len(mine)), stored=entry.sha256, originals=None,
        ))  # fmt: skip
    return Bucketed(tuple(parts))
