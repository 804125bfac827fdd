"""From the words of a command line to values: numbers, sizes, NAME=VALUE pairs. All refuse with one clear sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown


def value(text: str) -> Any:
    """The value of a NAME=VALUE pair, as a recipe would read it: numbers, true/false, null, [lists], else the text."""
    from ..recipes import parsed

    return parsed(text)


def pairs(option: str, texts: Sequence[str] | None, read: Callable[[str], Any] = value) -> dict[str, Any]:
    """{name: value} of an option that is given as NAME=VALUE, any number of times."""
    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, rest = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"{option} {text!r} is not of the form NAME=VALUE")
        if name.strip() in found:
            raise InputError(f"{option} gives {name.strip()} twice; give it once")
        found[name.strip()] = read(rest.strip())
    return found


def size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "64" or "64x48" (height first)."""
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--size {text!r} is not a size; give HEIGHTxWIDTH in pixels or one number, as 64x48 or 64")
    height, width = int(parts[0]), int(parts[-1])
    return height, width


def by_stage(option: str, text: str | None, kind: type[int] | type[float]) -> Any:
    """A number, or {stage: number} of "prior=50,decoder=20"."""
    if text is None:
        return None
    if "=" in text:
        return pairs(option, text.split(","), lambda part: _number(option, part, kind))
    return _number(option, text, kind)


def _number(option: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{option} {text!r} is not {what}") from None


def one_or_many(texts: Sequence[Any] | None) -> Any:
    """None, the one value, or the list of several."""
    if not texts:
        return None
    return texts[0] if len(texts) == 1 else list(texts)


def labels(texts: Sequence[str] | None) -> Any:
    """A label is a number or the name of a class; a list has one a picture."""
    return one_or_many([int(text) if text.isdecimal() else text for text in texts or ()])


def loras(texts: Sequence[str] | None) -> list[tuple[str, float]]:
    """(file, scale) of each FILE[:SCALE]."""
    found = []
    for text in texts or ():
        file, colon, scale = text.rpartition(":")
        if not colon or Path(text).exists():
            file, scale = text, "1"
        found.append((file, float(_number(f"--lora {text}: the scale", scale, float))))
    return found


def metrics(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list, each of which there must be."""
    from ..evaluation import METRICS

    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise InputError("--metrics is empty; give names such as fid,kid,prdc")
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    return names


def new_file(option: str, path: Path | None, suffix: str) -> Path | None:
    """The path as it is; InputError where a file of that name cannot be written there."""
    if path is None:
        return None
    if path.suffix.lower() != suffix:
        raise InputError(f"{option} {path} must end in {suffix}")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")
    above = path.parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise InputError(f"{option} {path} cannot be made: {above} is a file, not a folder")
    return path
