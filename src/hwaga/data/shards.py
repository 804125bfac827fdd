"""Tar shards in the WebDataset convention: `000012.png`, `000012.txt`, `000012.cls` and `000012.json` are one sample.

The members of a sample share the path up to the first dot of the last name. A picture has any ending that is not one of
those below; `.txt` or `.caption` is its caption, `.cls` its class, `.json` an object with caption (or text) and label.
A shard is indexed once and its members are read where they lie: nothing is ever unpacked to a disk, whatever paths the
archive names.
"""

from __future__ import annotations

import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import InputError
from .captions import Said, said_by, words
from .config import DataConfig
from .dataset import Dataset, LeftOut, Progress
from .packing import Candidates, packed
from .pictures import Unusable

TEXTS = (".txt", ".caption")
BESIDE = (*TEXTS, ".cls", ".json")
LARGEST_TEXT = 2**20  # bytes of a caption or an object
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class _Member(NamedTuple):
    shard: Path
    start: int
    size: int


def shards(source: str) -> list[Path]:
    """The files of a source, in order. InputError names one that is missing."""
    text = str(Path(source).expanduser())
    ranges = [(first, last) for first, last in _RANGE.findall(text)]
    for first, last in ranges:
        if int(last) < int(first) or int(last) - int(first) >= 10**6:
            raise InputError(f"source {source!r}: {{{first}..{last}}} is no range of shards; {{000..012}} is one")
    spread = [[str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)] for first, last in ranges]
    pieces = _RANGE.split(text)[::3]  # what stands between the ranges
    names = ["".join(chain(*zip(pieces, (*numbers, ""), strict=True))) for numbers in product(*spread)]
    found = [Path(one) for name in names for one in (sorted(glob.glob(name)) if "*" in name else [name])]
    if not found:
        raise InputError(f"source {source!r}: no shard has such a name")
    for path in found:
        if not path.is_file():
            raise InputError(f"source {source!r}: there is no shard {path}")
    return found


def _members(shard: Path) -> Iterator[tuple[str, _Member | str]]:
    """Each member's path with its place, or the reason why it cannot be used. InputError for what is no tar file."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                yield name, _Member(shard, member.offset_data, member.size) if member.isreg() else "not a plain file"
    except (tarfile.TarError, EOFError, OSError) as error:
        if not tarfile.is_tarfile(shard):
            raise InputError(f"{shard} is not a tar file: {error}") from None
        with open(shard, "rb") as file:
            packed_ = file.read(6)
        if packed_[:2] == b"\x1f\x8b" or packed_ in (b"\xfd7zXZ\x00",) or packed_[:3] == b"BZh":
            raise InputError(
                f"{shard} is a compressed tar file; decompress it first, as pictures are already"
            ) from None
        raise InputError(f"{shard} is a damaged tar file: {error}") from None


def _read(member: _Member, most: int | None = None) -> bytes:
    with open(member.shard, "rb") as file:
        file.seek(member.start)
        return file.read(member.size if most is None else min(most, member.size))


def _key(name: str) -> tuple[str, str]:
    """(sample, ending): `a/b.c.png` is ("a/b", ".c.png")."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return folder + slash + stem, (dot + ending).lower()


def _said(beside: dict[str, dict[str, _Member]]) -> dict[str, Said]:
    """What stands beside each sample."""
    found: dict[str, Said] = {}
    for key, parts in beside.items():
        caption = label = None
        if (member := parts.get(".json")) is not None:
            caption, label = _object(key, member)
        for ending in TEXTS:
            if (member := parts.get(ending)) is not None:
                caption = words(_read(member, LARGEST_TEXT).decode("utf-8", "replace")) or caption
        if (member := parts.get(".cls")) is not None:
            label = words(_read(member, LARGEST_TEXT).decode("utf-8", "replace")) or label
        found[key] = Said(caption, label)
    return found


def _object(key: str, member: _Member) -> Said:
    where = f"{member.shard}: {key}.json"
    try:
        row = json.loads(_read(member, LARGEST_TEXT).decode("utf-8", "replace"))
    except (json.JSONDecodeError, RecursionError):
        raise InputError(f"{where} is not JSON of at most a MiB") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object")
    return said_by(row)


def open_shards(config: DataConfig, split: str, progress: Progress | None = None) -> Dataset:
    """The pictures of `split` ("train", "held-out", "all") of tar shards; names are paths within them, without endings.

    InputError for shards that are missing, compressed or damaged, and for those without usable pictures.
    """
    files = shards(config.source)
    pictures: dict[str, _Member] = {}
    beside: dict[str, dict[str, _Member]] = {}
    left_out: list[LeftOut] = []
    for shard in files:
        for name, member in _members(shard):
            key, ending = _key(name)
            if isinstance(member, str):
                left_out.append(LeftOut(name, member))
            elif ending in BESIDE:
                beside.setdefault(key, {})[ending] = member
            elif key in pictures:
                left_out.append(LeftOut(name, f"its sample {key} has a picture already"))
            else:
                pictures[key] = member

    def opened(key: str) -> BinaryIO:
        try:
            return io.BytesIO(_read(pictures[key]))
        except OSError as error:
            raise Unusable(f"cannot be read: {error.strerror}") from None

    stamps = [[os.path.realpath(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    captions = {key: parts for key, parts in beside.items() if key in pictures}
    found = Candidates(
        config.source, sorted(pictures), opened, lambda: _said(captions), left_out, threads=8, what="these shards"
    )
    return packed(found, "shards", {"files": stamps}, config, split, progress)
