"""A folder of pictures: sub-folders are classes, captions lie beside the pictures (`captions.py`).

Everything in it is looked at and counted: found = used + left out, each file that is left out with its reason. Nothing
in the folder is ever written. Links are followed only while they stay inside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from .captions import METADATA, Said, read_metadata, read_text
from .config import DataConfig
from .dataset import Dataset, LeftOut, Progress
from .packing import Candidates, packed


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


def open_folder(config: DataConfig, split: str, progress: Progress | None = None) -> Dataset:
    """The pictures of `split` ("train", "held-out", "all"). InputError for a folder without usable pictures, for
    metadata that cannot be read or lead out of the folder, and for a split that would be empty."""
    root = Path(config.source).expanduser()
    found = scan(root)
    key = {"files": found.stamps, "links": found.left_out, "root": os.path.realpath(root)}
    candidates = Candidates(
        str(root), found.pictures, lambda name: root / name, lambda: _said(root, found), found.left_out
    )
    return packed(candidates, "folder", key, config, split, progress)
