"""A folder of pictures: sub-folders are classes, captions lie beside the pictures (`captions.py`).

Everything in it is looked at and counted: found = used + left out, each file that is left out with its reason. Nothing
in the folder is ever written. Links are followed only while they stay inside.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..errors import InputError
from .cache import Entry, Writer, cached
from .captions import METADATA, Said, read_metadata, read_text
from .clusters import LEVELS, connected, near_pairs, spread, thumbnails
from .config import DataConfig
from .dataset import Dataset, LeftOut, Progress
from .pictures import Unusable, quiet, read
from .splits import held_out

_VERSION = 1  # part of the cache's key: raise it when pixels or facts would change
_CHUNK = 256


class Scan(NamedTuple):
    """What is in a folder, before any picture is opened. Paths are relative, with forward slashes, sorted."""

    pictures: list[str]  # candidates, whatever their ending
    texts: dict[str, str]  # picture -> its name.txt
    metadata: list[str]
    left_out: list[LeftOut]
    stamps: list[list[Any]]  # [path, size, time of change in ns] of all files that the result depends on


def _entries(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry below, hidden ones apart; linked folders are given and not entered."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(root / below) as entries:
                here = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            raise InputError(f"{root / below} cannot be read: {error.strerror}") from None
        for entry in here:
            if entry.name.startswith("."):
                continue
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                yield path, entry


def scan(root: Path) -> Scan:
    """Lists a folder. InputError when it cannot be read."""
    real = Path(os.path.realpath(root))
    files: dict[str, os.stat_result] = {}
    left_out = []
    for path, entry in _entries(root):
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not target.is_relative_to(real):
                left_out.append(LeftOut(path, "a link that leads out of the folder"))
                continue
            if target.is_dir():
                left_out.append(LeftOut(path, "a link to a folder"))
                continue
        try:
            status = entry.stat()
        except OSError as error:
            left_out.append(
                LeftOut(path, "a link to nothing" if entry.is_symlink() else f"cannot be read: {error.strerror}")
            )
            continue
        if stat.S_ISREG(status.st_mode):
            files[path] = status
        else:
            left_out.append(LeftOut(path, "not a plain file"))
    stems = {path.rpartition(".")[0] for path in files if not path.endswith(".txt")}
    metadata = sorted(p for p in files if p.rpartition("/")[2] in METADATA)
    captions = {p for p in files if p.endswith(".txt") and p[:-4] in stems}
    pictures = sorted(p for p in files if p not in captions and p not in set(metadata))
    texts = {p: t for p in pictures if (t := p.rpartition(".")[0] + ".txt") in captions}
    stamps = [[path, s.st_size, s.st_mtime_ns] for path, s in sorted(files.items())]
    return Scan(pictures, texts, metadata, left_out, stamps)


def _said(root: Path, found: Scan) -> dict[str, Said]:
    said: dict[str, Said] = {}
    for path in found.metadata:
        said.update(read_metadata(root / path, root))
    for picture, path in found.texts.items():
        before = said.get(picture, Said(None, None))
        said[picture] = before._replace(caption=before.caption or read_text(root / path))
    return said


def _pack(root: Path, found: Scan, config: DataConfig, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Reads every candidate into the cache; the facts say what came of it."""
    said = _said(root, found)  # before the long work: it may be refused

    def one(path: str) -> tuple[np.ndarray, tuple[int, int]] | str:
        try:
            return read(root / path, config.stored, config.resize)
        except Unusable as reason:
            return str(reason)

    used, sizes, thumbs = [], [], []
    left_out = [list(item) for item in found.left_out]
    with (
        Writer(folder / "pixels.npy", (3, *config.stored)) as writer,
        quiet(),
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
    ):
        for start in range(0, len(found.pictures), _CHUNK):
            names = found.pictures[start : start + _CHUNK]
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
                progress(min(start + _CHUNK, len(found.pictures)), len(found.pictures), "reading pictures")
    present = set(used) | {name for name, _ in left_out}
    left_out += [[name, "named in the metadata and not there"] for name in sorted(set(said) - present)]
    if not used:
        _refuse(root, left_out)
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


def _refuse(root: Path, left_out: Sequence[Sequence[str]]) -> NoReturn:
    if not left_out:
        raise InputError(f"{root}: no pictures in this folder; give one that holds PNG, JPEG or WebP files")
    name, reason = min((item[0], item[1]) for item in left_out)
    kinds = Counter("not a picture" if r == "not a picture" else "broken" for _, r in left_out)
    if set(kinds) == {"not a picture"}:
        raise InputError(f"{root}: no pictures among its {len(left_out)} files (first: {name}: {reason})")
    raise InputError(f"{root}: none of its {len(left_out)} files can be used as a picture (first: {name}: {reason})")


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


def open_folder(config: DataConfig, split: str, progress: Progress | None = None) -> Dataset:
    """The pictures of `split` ("train", "held-out", "all"). InputError for a folder without usable pictures, for
    metadata that cannot be read or lead out of the folder, and for a split that would be empty."""
    root = Path(config.source).expanduser()
    found = scan(root)
    if not found.pictures:
        _refuse(root, [list(item) for item in found.left_out])
    key = {"version": _VERSION, "files": found.stamps, "links": found.left_out, "shape": config.stored,
           "resize": config.resize, "root": os.path.realpath(root)}  # fmt: skip
    entry: Entry = cached("folder", key, lambda folder: _pack(root, found, config, folder, progress))
    facts = entry.facts
    names: list[str] = facts["names"]
    clusters = np.array(facts["clusters"], dtype=np.int64)
    held = held_out(clusters, names, config.held_out)
    mine = {"train": ~held, "held-out": held, "all": np.ones(len(names), bool)}[split]
    if not mine.any():
        why = "held_out is 0" if config.held_out == 0 else "all its pictures are near-duplicates of each other"
        raise InputError(f"{root}: the split {split!r} is empty, as {why}")
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
        licence=None,
        attribution=None,
        store=entry.pixels,
        rows=rows,
        stored=entry.sha256,
        facts={
            "source sizes": _sizes(facts["sizes"]),
            "without a caption": sum(not caption for caption in captions) if any(captions) else 0,
            "copies": facts["copies"],
            "clusters": int(clusters.max()) + 1,
            "near": facts["near"],
        },
    )


def _sizes(sizes: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """(height, width) of the smallest, the median and the largest picture by area."""
    ordered = sorted(sizes, key=lambda s: (s[0] * s[1], s[0]))
    return {"smallest": list(ordered[0]), "median": list(ordered[len(ordered) // 2]), "largest": list(ordered[-1])}
