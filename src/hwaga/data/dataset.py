"""A set of pictures with what is known of them: one class, which every source fills."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InputError
from .augment import augment, centre, mirrored
from .cache import Entry, digest
from .config import DataConfig
from .wording import one_of, shuffled

if TYPE_CHECKING:
    from ..interfaces import Batch

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): told while pictures are prepared for the first time."""


class LeftOut(NamedTuple):
    """A file of the source that no picture is taken from."""

    name: str
    reason: str


class Beside(NamedTuple):
    """What a frozen network made of each picture of a store, rows as there: see `beside.py`."""

    key: str  # a hash of all that the values depend on beside the pictures
    values: np.ndarray  # (m, ...) float32, mapped
    mirrored: np.ndarray | None  # the same of mirrored pictures, where training mirrors some


EXTRAS = ("line_art",)
"""What a source may have beside a picture, for each batch's `extra`: the lines of a drawing, black on white, (n, 3, h, w) in
[0, 1]."""


class Originals(NamedTuple):
    """The pictures of a set as their source has them."""

    shapes: list[tuple[int, int]]  # (height, width) of each
    read: Callable[
        [tuple[str, ...], tuple[int, int], Progress | None], Entry
    ]  # those of these names at another size, packed


@dataclass(frozen=True, eq=False)
class Dataset:
    """n pictures of one split. Of the source: `found` = `used` + len(`left_out`); `used` counts all splits."""

    config: DataConfig
    split: str
    names: list[str]  # of the pictures: file names without OpenMoji's ending, paths within a folder
    labels: np.ndarray | None  # (n,) int64 in 0 ... len(classes) - 1
    classes: tuple[str, ...]  # the same for every split
    captions: list[str] | None
    clusters: np.ndarray  # (n,) int64: number of the near-duplicate cluster, over all splits
    found: int
    left_out: list[LeftOut]
    splits: dict[str, int]  # pictures in each split there is ("all" apart)
    licence: str | None
    attribution: str | None
    store: np.ndarray = field(repr=False)  # (m, 3, H, W) uint8: the source's pictures, mapped
    rows: np.ndarray = field(repr=False)  # (n,) int64: which of them are ours
    stored: str = field(repr=False)  # hash of the store and its facts
    wordings: list[tuple[str, ...]] | None = field(
        default=None, repr=False
    )  # all captions of each, where some have several
    originals: Originals | None = field(default=None, repr=False)  # where a source has pictures of several shapes
    facts: dict[str, Any] = field(default_factory=dict, repr=False)  # what else a summary tells
    lines: Callable[[], np.ndarray] | None = field(default=None, repr=False)  # opens the line art, rows as `store`
    beside: Mapping[str, Beside] = field(default_factory=dict, repr=False)  # given with each batch by name, in `extra`
    extras: tuple[str, ...] = ()  # of EXTRAS: what of the source's own comes with each batch as well

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a picture."""
        return self.config.shape

    @property
    def used(self) -> int:
        """Pictures taken from the source, over all splits."""
        return self.found - len(self.left_out)

    @cached_property
    def label_counts(self) -> np.ndarray | None:
        """(classes,) int64: pictures of each class in this split."""
        return None if self.labels is None else np.bincount(self.labels, minlength=len(self.classes))

    @cached_property
    def fingerprint(self) -> str:
        """A hash over pictures, order, labels, captions and preparation: equal where training sees the same."""
        config = self.config
        prepared = [config.shape, config.resize, config.flip, config.random_crop, config.seed]
        labels = None if self.labels is None else self.labels.tolist()
        beside = [[name, held.key] for name, held in sorted(self.beside.items())]
        seen = [1, self.stored, self.rows.tolist(), self.names, labels, self.classes, self.captions, prepared]
        read = [self.wordings, config.caption_keep if config.caption_shuffle else None]
        more: list[Any] = [beside] if beside else []
        more += [read] if any(r is not None for r in read) else []
        return digest([*seen, *more, *([self.extras] if self.extras else [])])

    def with_extras(self, names: tuple[str, ...]) -> Dataset:
        """The same pictures, with what the source has beside them in each batch. InputError where it has none of a name."""
        for name in names:
            if name not in EXTRAS:
                raise ValueError(f"{name}: a source may have {', '.join(EXTRAS)} beside its pictures")
            if self.lines is None:
                raise InputError(
                    f"line art of {self.config.source!r}: only the source openmoji has it; take a control kind that is made "
                    "from pictures, such as model.control.kind=canny"
                )
        return replace(self, extras=names) if names != self.extras else self

    @cached_property
    def every_caption(self) -> list[str]:
        """All captions that training may read, each once, in order; empty without captions."""
        read = [(text,) for text in self.captions or ()] if self.wordings is None else self.wordings
        return list(dict.fromkeys(text for texts in read for text in texts))

    @cached_property
    def places(self) -> dict[str, int]:
        """Where a name stands."""
        return {name: i for i, name in enumerate(self.names)}

    def _at(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        at = np.asarray(indices, dtype=np.int64).reshape(-1)
        if at.size and (at.min() < 0 or at.max() >= len(self)):
            raise IndexError(
                f"index {at.min() if at.min() < 0 else at.max()}: this set has pictures 0 to {len(self) - 1}"
            )
        return at

    def _take(self, store: np.ndarray, indices: Sequence[int] | np.ndarray, epochs: np.ndarray | None) -> np.ndarray:
        at = self._at(indices)
        pixels = np.asarray(store[self.rows[at]])
        config = self.config
        if epochs is None or not (config.flip or config.random_crop):
            return np.ascontiguousarray(centre(pixels, config.shape))
        epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), at.shape)
        out = augment(
            pixels, config.shape, flip=config.flip, crop=config.random_crop, seed=config.seed, epochs=epochs, indices=at
        )
        return np.ascontiguousarray(out)

    def pixels(self, indices: Sequence[int] | np.ndarray, epochs: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, 3, h, w), RGB; without `epochs` as stored, with them flipped and cut as that epoch sees them."""
        return self._take(self.store, indices, epochs)

    def line_art(self, indices: Sequence[int] | np.ndarray, epochs: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, 3, h, w): the black lines of the drawings on white, flipped and cut as `pixels` is.

        InputError where the source has none (only OpenMoji's drawings have).
        """
        if self.lines is None:
            raise InputError(
                f"line art of {self.config.source!r}: only the source openmoji has it; extract edges instead"
            )
        return self._take(self._lines, indices, epochs)

    @cached_property
    def _lines(self) -> np.ndarray:
        assert self.lines is not None
        return self.lines()

    def batch(self, indices: Sequence[int] | np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """Pictures in [-1, 1] with what is known of them; `epochs` (n,) asks for each one's augmentation."""
        import torch

        from ..interfaces import Batch

        at = self._at(indices)
        image = self.pixels(at, epochs).astype(np.float32)  # in numpy: torch's threads cost more than they bring here
        image /= np.float32(127.5)
        image -= np.float32(1.0)
        return Batch(
            image=torch.from_numpy(image),
            index=torch.from_numpy(at.copy()),
            label=None if self.labels is None else torch.from_numpy(self.labels[at]),
            caption=self.said(at, epochs),
            cluster=torch.from_numpy(self.clusters[at]),
            extra={
                **{name: torch.from_numpy(self._beside(held, at, epochs)) for name, held in self.beside.items()},
                **{name: torch.from_numpy(self.line_art(at, epochs)).float() / 255 for name in self.extras},
            },
        )

    def said(self, indices: Sequence[int] | np.ndarray, epochs: np.ndarray | None = None) -> list[str] | None:
        """The caption of each picture; with `epochs` one of its wordings as that epoch reads it. None without captions."""
        at, config = self._at(indices), self.config
        if self.captions is None:
            return None
        several = [(self.captions[i],) if self.wordings is None else self.wordings[i] for i in at]
        if epochs is None:
            return [self.captions[i] for i in at]
        epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), at.shape)
        chosen = one_of(several, config.seed, epochs, at)
        return shuffled(chosen, config.caption_keep, config.seed, epochs, at) if config.caption_shuffle else chosen

    def _beside(self, held: Beside, at: np.ndarray, epochs: np.ndarray | None) -> np.ndarray:
        values = np.array(held.values[self.rows[at]])
        if epochs is not None and self.config.flip and held.mirrored is not None:
            turned = mirrored(self.config.seed, np.broadcast_to(np.asarray(epochs, dtype=np.int64), at.shape), at)
            values[turned] = held.mirrored[self.rows[at][turned]]
        return values
