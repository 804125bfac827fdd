"""Writing that is whole or not there: every file and folder of hwaga is made under another name and then moved.

A process that is killed at any byte leaves either the old content or the new one, never half of it. What is left of an
interrupted write carries the mark `.part-` in its name and is ignored by every reader.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, WorkError

PART = ".part-"


@contextmanager
def _no_space_is_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise WorkError(f"no space left while writing {path}; what was there before is intact") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving without an error it takes the place of `path` at once."""
    path = Path(path)
    with _no_space_is_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}{PART}", suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
        part = Path(name)
        try:
            yield part
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(part, 0o666 & ~mask)  # mkstemp makes private files
            _sync(part)
            os.replace(part, path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; on leaving without an error it becomes `path`.

    With `replace` an old folder of that name is moved away first and removed last; without, it is an InputError.
    """
    path = Path(path)
    if path.exists() and not replace and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists already; name a new folder or remove it first")
    with _no_space_is_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}{PART}", dir=path.parent))
        old = part.with_name(part.name + "-old")
        try:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(part, 0o777 & ~mask)
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                os.rename(path, old)
            os.rename(part, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; InputError names the file when it is missing or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from None


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: str | Path, name: str) -> Path:
    """`folder / name`, refused (InputError) when it leads out of the folder: names come from files of strangers.

    Judged by the name alone, as a hub's cache keeps links to files elsewhere.
    """
    plain = os.path.normpath(name)
    if os.path.isabs(plain) or plain.split(os.sep)[0] == os.pardir:
        raise InputError(f"{folder}: the path {name!r} leads out of the folder; refused")
    return Path(folder) / plain
