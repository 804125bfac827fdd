"""Writing that is whole or not there: every file and folder of hwaga is made under another name and then moved.

A process that is killed at any byte leaves either the old content or the new one, never half of it. What is left of an
interrupted write carries the mark `.part-` in its name and is ignored by every reader.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, WorkError

if TYPE_CHECKING:
    from torch import Tensor

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


def _shared(path: str | Path, mode: int) -> None:
    """Gives a file or folder the mode that an ordinary one would have, by the user's umask."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, mode & ~mask)


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
            _shared(part, 0o666)  # mkstemp makes private files
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
            _shared(part, 0o777)
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


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file inside a folder that is not yet in use: the same tensors give the same bytes. WorkError when the
    disk is full, which the library reports by an error of its own."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        there = value.detach().to("cpu").contiguous(memory_format=torch.contiguous_format)
        place = there.untyped_storage().data_ptr()  # tied weights share memory, which the format does not allow
        plain[key] = there.clone() if place in seen else there
        seen.add(place)
    try:
        save_file(plain, path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        if re.search(r"os error (28|122|27)\b|No space left|File too large", str(error)):
            raise WorkError(f"no space left while writing {path}; what was there before is intact") from error
        raise
    _shared(path, 0o666)  # the library makes private files


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
