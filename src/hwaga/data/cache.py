"""The packed cache: pictures prepared once, then mapped into memory by every later process.

An entry is a folder `KIND-DIGEST/` in the user's cache folder ($HWAGA_CACHE, else $XDG_CACHE_HOME/hwaga, else
~/.cache/hwaga) with `index.json` and, where it holds pictures, `pixels.npy` (uint8, n x c x h x w; or float32, what a
frozen network made of each). The digest is over
all that the content depends on, so an entry never goes stale: it is another entry. Entries are made under a lock and
moved into place whole, so that two processes may want the same one at once; a damaged one is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..errors import InputError, WorkError
from ..files import PART, whole_folder

FORMAT = 1
_BLOCK = 1 << 20
_CHECKED = 256  # at most so many blocks (256 MiB) are checked when an entry is opened, spread over the file
_HEADER = 128


class _Damaged(Exception):
    pass


def cache_folder() -> Path:
    """Where packed pictures are kept."""
    own, shared = os.environ.get("HWAGA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(shared).expanduser() if shared else Path("~/.cache").expanduser()) / "hwaga"


def digest(value: Any) -> str:
    """SHA-256 in hex of anything that JSON can hold, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """An opened entry: `pixels` (n, c, h, w), mapped, read-only; `facts` as its builder gave them."""

    pixels: np.ndarray
    facts: dict[str, Any]
    sha256: str  # of the pictures and facts


class Writer:
    """Takes pictures, or other arrays of one shape each, in any number of parts and writes one .npy file."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic] = np.uint8) -> None:
        self.path, self.shape, self.dtype, self.length = path, shape, np.dtype(dtype), 0
        self._file = open(path, "wb")
        self._file.write(self._header())

    def _header(self) -> bytes:
        # numpy's format 1.0, padded to a fixed length so that it can be written again when the length is known
        text = repr({"descr": self.dtype.str, "fortran_order": False, "shape": (self.length, *self.shape)}).encode()
        return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11) + b"\n"

    def append(self, pixels: np.ndarray) -> None:
        """Adds (n, *shape)."""
        if pixels.dtype != self.dtype or pixels.shape[1:] != self.shape:
            raise ValueError(f"{pixels.dtype} {pixels.shape}: the cache takes {self.dtype} (n, {self.shape})")
        self._file.write(np.ascontiguousarray(pixels).tobytes())
        self.length += len(pixels)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(self._header())


def _checksums(path: Path) -> tuple[list[int], str]:
    sums, whole = [], hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            sums.append(zlib.crc32(block))
            whole.update(block)
    return sums, whole.hexdigest()


def _check(path: Path, sums: list[int], length: int) -> None:
    if path.stat().st_size != length or len(sums) != -(-length // _BLOCK):
        raise _Damaged("another length")
    with open(path, "rb") as file:
        for block in range(0, len(sums), max(1, -(-len(sums) // _CHECKED))):
            file.seek(block * _BLOCK)
            if zlib.crc32(file.read(_BLOCK)) != sums[block]:
                raise _Damaged("another content")


def _read(folder: Path) -> Entry:
    try:
        text = (folder / "index.json").read_text(encoding="utf-8")
        stated, body = text.split("\n", 1)
        if hashlib.sha256(body.encode()).hexdigest() != stated:
            raise _Damaged("index")
        index = json.loads(body)
        if index["format"] != FORMAT:
            raise _Damaged("format")
        if index["blocks"] is None:
            pixels = np.zeros((0, 3, 1, 1), np.uint8)
        else:
            _check(folder / "pixels.npy", index["blocks"], index["length"])
            pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        return Entry(pixels, index["facts"], index["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(str(error)) from error


def _write(folder: Path, build: Callable[[Path], Mapping[str, Any]], key: Mapping[str, Any]) -> None:
    facts = dict(build(folder))
    pixels = folder / "pixels.npy"
    blocks, whole = _checksums(pixels) if pixels.exists() else (None, "")
    index = {
        "format": FORMAT,
        "key": dict(key),
        "blocks": blocks,
        "length": pixels.stat().st_size if blocks is not None else 0,
        "sha256": digest([whole, facts]),
        "facts": facts,
    }
    body = json.dumps(index, ensure_ascii=True)
    (folder / "index.json").write_text(hashlib.sha256(body.encode()).hexdigest() + "\n" + body, encoding="utf-8")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder) + ".lock")
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror or error}); "
            "set HWAGA_CACHE to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


def cached(kind: str, key: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]) -> Entry:
    """The entry of `kind` for `key`; if there is none, or a damaged one, `build(folder)` makes it.

    `build` may write `folder/pixels.npy` (with `Writer`) and returns the facts, plain JSON. `key` holds all that the
    content depends on. WorkError when the disk is full, InputError when the cache folder cannot be written.
    """
    folder = cache_folder() / f"{kind}-{digest([FORMAT, kind, key])[:24]}"
    try:
        return _read(folder)
    except _Damaged:
        pass
    with _locked(folder):
        try:
            return _read(folder)  # another process was first
        except _Damaged:
            pass
        for rest in folder.parent.glob(f".{folder.name}{PART}*"):  # of a builder that was killed: we hold its lock
            _remove(rest)
        with whole_folder(folder, replace=True) as part:
            _write(part, build, key)
        try:
            return _read(folder)
        except _Damaged as error:
            raise WorkError(
                f"{folder}: what was just written cannot be read back ({error}); is the disk in order?"
            ) from error


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
