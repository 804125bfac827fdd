"""What stands beside pictures in a folder: name.txt, metadata.jsonl, metadata.csv (the ImageFolder convention)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import InputError
from ..files import inside

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption")


class Said(NamedTuple):
    """What a row says of a picture; None where it says nothing."""

    caption: str | None
    label: str | None


def words(text: str) -> str:
    """A caption on one line, without the spaces around it and without characters that no text has."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())


def said_by(row: Mapping[str, Any], captions: Sequence[str] = CAPTION_COLUMNS) -> Said:
    """What a row of columns says: the first caption column that holds words, and `label`, text or a whole number."""
    texts = (words(row[column]) for column in captions if isinstance(row.get(column), str))
    return Said(next((text for text in texts if text), None), plain_label(row.get("label")))


def plain_label(value: Any) -> str | None:
    """A class as it is written, of text or a whole number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return words(str(value)) or None


def read_text(path: Path) -> str | None:
    """The caption in name.txt, None if it is empty. Bytes that are not UTF-8 are replaced."""
    return words(path.read_text(encoding="utf-8-sig", errors="replace")) or None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                if "file_name" not in (reader.fieldnames or ()):
                    raise InputError(f"{path}: the first line has no column file_name")
                for row in reader:
                    yield reader.line_num, {key: value for key, value in row.items() if key is not None}
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path}, line {number}: not a JSON object")
                    yield number, row
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not JSON ({error.msg}); one object a line is right") from None
    except RecursionError:
        raise InputError(f"{path}, line {number}: JSON nested too deep") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not readable as {path.suffix[1:]} in UTF-8: {error}") from None


def read_metadata(path: Path, root: Path) -> dict[str, Said]:
    """What a metadata file says, by path relative to `root` with forward slashes. `path` lies in `root` or below.

    InputError, with the line, for rows that cannot be read, lack a file_name, or whose file_name leads out of the
    folder that the file lies in.
    """
    base = PurePosixPath(path.parent.relative_to(root).as_posix())
    said: dict[str, Said] = {}
    for number, row in _rows(path):
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise InputError(f"{path}, line {number}: file_name is missing or not text")
        name = name.strip().replace("\\", "/")
        try:
            inside(path.parent, name)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        if PurePosixPath(name).is_absolute() or (len(name) > 1 and name[1] == ":"):
            raise InputError(f"{path}, line {number}: file_name={name!r} leads out of the folder; refused")
        said[_normal(base / name)] = said_by(row)
    return said


def _normal(path: PurePosixPath) -> str:
    """Without `.` and `..` (which `inside` found to stay within)."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part not in (".", ".."):
            parts.append(part)
    return "/".join(parts)
