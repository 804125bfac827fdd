"""A user's own pictures, from wherever they lie (a folder, tar shards, a hub's data set), into the packed cache.

A source says what candidates it has, how one is opened, and what is said of it; here each is read, prepared, counted
(found = used + left out) and packed, near-duplicates are clustered, and a split becomes a `Dataset`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..errors import InputError
from .cache import Entry, Writer, cached
from .captions import Said
from .clusters import LEVELS, connected, near_pairs, spread, thumbnails
from .config import DataConfig
from .dataset import Dataset, LeftOut, Originals, Progress
from .pictures import Unusable, quiet, read
from .splits import held_out

VERSION = 1  # part of every cache's key: raise it when pixels or facts would change
_CHUNK = 256


@dataclass(frozen=True)
class Candidates:
    """What a source may have: pictures by name, in order, before any is opened."""

    place: str  # the source, as errors name it
    names: Sequence[str]  # candidates; slashes are folders
    open: Callable[[str], Path | BinaryIO]  # by name; Unusable where it cannot be
    said: Callable[[], Mapping[str, Said]]  # captions and labels by name; read when first needed, may raise InputError
    left_out: Sequence[LeftOut] = field(default_factory=list)  # known already to be no pictures
    threads: int = 32  # how many may be opened at once
    what: str = "this folder"  # for people


def pack(found: Candidates, config: DataConfig, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Reads every candidate into the cache; the facts say what came of it."""
    said = found.said()  # before the long work: it may be refused

    def one(name: str) -> tuple[np.ndarray, tuple[int, int]] | str:
        try:
            return read(found.open(name), config.stored, config.resize)
        except Unusable as reason:
            return str(reason)

    used, sizes, thumbs = [], [], []
    left_out = [list(item) for item in found.left_out]
    with (
        Writer(folder / "pixels.npy", (3, *config.stored)) as writer,
        quiet(),
        ThreadPoolExecutor(min(found.threads, os.cpu_count() or 1)) as pool,
    ):
        for start in range(0, len(found.names), _CHUNK):
            names = found.names[start : start + _CHUNK]
            good = []
            for name, result in zip(names, pool.map(one, names), strict=True):
                if isinstance(result, str):
                    left_out.append([name, result])
                else:
                    good.append(result[0])
                    used.append(name)
                    sizes.append(list(result[1]))
            if good:
                writer.append(np.stack(good))
                thumbs.append(thumbnails(np.stack(good)))
            if progress is not None:
                progress(min(start + _CHUNK, len(found.names)), len(found.names), "reading pictures")
    present = set(used) | {name for name, _ in left_out}
    left_out += [[name, "named in the metadata and not there"] for name in sorted(set(said) - present)]
    if not used:
        _refuse(found, left_out)
    every = np.concatenate(thumbs)
    levels = min(LEVELS, spread(every) / 4)
    pairs = near_pairs(every, levels)
    return {
        "names": used,
        "sizes": sizes,
        "captions": [said[name].caption if name in said else None for name in used],
        "labels": [said[name].label if name in said else None for name in used],
        "left_out": sorted(left_out),
        "clusters": connected(len(used), pairs).tolist(),
        "near": levels,
        "copies": _copies(folder / "pixels.npy"),
    }


def _copies(path: Path) -> int:
    """How many pictures are, as prepared, an earlier one's copy to the byte."""
    pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    return len(pixels) - len({hash(pixels[i].tobytes()) for i in range(len(pixels))})


def _refuse(found: Candidates, left_out: Sequence[Sequence[str]]) -> NoReturn:
    """InputError for a source of which nothing can be used."""
    place = found.place
    if not left_out:
        raise InputError(f"{place}: no pictures in {found.what}; give one that holds PNG, JPEG or WebP files")
    name, reason = min((item[0], item[1]) for item in left_out)
    kinds = Counter("not a picture" if r == "not a picture" else "broken" for _, r in left_out)
    if set(kinds) == {"not a picture"}:
        raise InputError(f"{place}: no pictures among its {len(left_out)} files (first: {name}: {reason})")
    raise InputError(f"{place}: none of its {len(left_out)} files can be used as a picture (first: {name}: {reason})")


def packed(
    found: Candidates, kind: str, key: Mapping[str, Any], config: DataConfig, split: str, progress: Progress | None,
    licence: str | None = None,
) -> Dataset:  # fmt: skip
    """The pictures of `split` ("train", "held-out", "all") of what was found; packed under `key` the first time.

    InputError where nothing can be used, for metadata that cannot be read, and for a split that would be empty.
    """
    if not found.names:
        _refuse(found, [list(item) for item in found.left_out])
    whole = {"version": VERSION, **key, "shape": config.stored, "resize": config.resize}
    entry: Entry = cached(kind, whole, lambda folder: pack(found, config, folder, progress))
    facts = entry.facts
    names: list[str] = facts["names"]
    clusters = np.array(facts["clusters"], dtype=np.int64)
    held = held_out(clusters, names, config.held_out)
    mine = {"train": ~held, "held-out": held, "all": np.ones(len(names), bool)}[split]
    if not mine.any():
        why = "held_out is 0" if config.held_out == 0 else "all its pictures are near-duplicates of each other"
        raise InputError(f"{found.place}: the split {split!r} is empty, as {why}")
    rows = np.flatnonzero(mine)
    values = _classes(names, facts["labels"], config.label)
    classes = tuple(sorted(set(values))) if values else ()
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[value] for value in values], dtype=np.int64) if values else None
    captions: list[str | None] = facts["captions"]
    left_out = [LeftOut(*item) for item in facts["left_out"]]
    return Dataset(
        config=config,
        split=split,
        names=[names[i] for i in rows],
        labels=None if labels is None else labels[rows],
        classes=classes,
        captions=[captions[i] or "" for i in rows] if any(captions) else None,
        clusters=clusters[rows],
        found=len(names) + len(left_out),
        left_out=left_out,
        splits={"train": int((~held).sum()), "held-out": int(held.sum())},
        licence=licence,
        attribution=None,
        store=entry.pixels,
        rows=rows,
        stored=entry.sha256,
        originals=Originals(
            [(s[0], s[1]) for i in rows for s in [facts["sizes"][i]]], partial(_again, found, config, entry)
        ),
        facts={
            "source sizes": _sizes(facts["sizes"]),
            "without a caption": sum(not caption for caption in captions) if any(captions) else 0,
            "copies": facts["copies"],
            "clusters": int(clusters.max()) + 1,
            "near": facts["near"],
        },
    )


def _again(
    found: Candidates, config: DataConfig, entry: Entry, names: tuple[str, ...], shape: tuple[int, int],
    progress: Progress | None = None,
) -> Entry:  # fmt: skip
    """Pictures that were packed already, at another size."""
    key = {"version": VERSION, "of": entry.sha256, "names": list(names), "shape": list(shape), "resize": config.resize}

    def build(folder: Path) -> dict[str, Any]:
        with Writer(folder / "pixels.npy", (3, *shape)) as writer, quiet():
            for done, name in enumerate(names):
                writer.append(read(found.open(name), shape, config.resize)[0][None])
                if progress is not None and done % 32 == 0:
                    progress(done, len(names), f"reading pictures of {shape[0]} x {shape[1]}")
        return {"names": list(names)}

    return cached("bucket", key, build)


def _classes(names: Sequence[str], given: Sequence[str | None], label: str | None) -> list[str] | None:
    """The class of each picture: as the metadata says, else by sub-folder; None where there are neither."""
    if label == "none":
        return None
    if any(value is not None for value in given):
        return [value if value is not None else "unlabelled" for value in given]
    folders = [name.rpartition("/")[0] for name in names]
    if not any(folders):
        return None
    if label != "subgroup":
        folders = [folder.partition("/")[0] for folder in folders]
    return [folder or "unlabelled" for folder in folders]


def _sizes(sizes: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """(height, width) of the smallest, the median and the largest picture by area."""
    ordered = sorted(sizes, key=lambda s: (s[0] * s[1], s[0]))
    return {"smallest": list(ordered[0]), "median": list(ordered[len(ordered) // 2]), "largest": list(ordered[-1])}
