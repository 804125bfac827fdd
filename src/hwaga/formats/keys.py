"""Key tables: rows (public name, our name), read both ways.

A row is a pair of patterns in which `{path}` stands for any prefix and `{i}` for a number. A table that only spells
some names otherwise leaves all other names as they are.

Where a public file also holds the numbers otherwise, a row is a `Moved`: our name, the public one or ones, and one of a
closed set of moves. `places` says where each of our tensors is, `Assembled` reads them, `taken_apart` writes them again.

    same      the same tensor
    join      several public tensors, one below the other, are one of ours (queries, keys and values)
    repeat    the same tensor stands in each of several places (`{each}` counts them)
    negate    the same with the other sign
    rows      ours is one of several equal parts of a public one, by rows (the way round that `join` is not): a view
    transpose rows and columns exchanged
    swap      the two halves of the rows exchanged (a scale before its shift)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import InputError

Value = TypeVar("Value")
Row = tuple[str, str]
_HOLES = {"path": r"(?P<path>.+)", "i": r"(?P<i>\d+)"}


def renamed(names: Iterable[str], table: Iterable[Row], back: bool = False) -> dict[str, str]:
    """{name: new name} by the first row that fits; names that no row fits stay. `back` goes from ours to the public ones."""
    rules: list[tuple[re.Pattern[str], str]] = []
    for public, ours in table:
        source, goal = (ours, public) if back else (public, ours)
        rules.append((_pattern(source), goal))
    found = {}
    for name in names:
        for rule, goal in rules:
            if match := rule.fullmatch(name):
                found[name] = goal.format(**match.groupdict())
                break
        else:
            found[name] = name
    return found


def _pattern(source: str) -> re.Pattern[str]:
    pattern = re.escape(source)
    for hole, expression in _HOLES.items():
        pattern = pattern.replace(re.escape("{" + hole + "}"), expression, 1)
    return re.compile(pattern)


def rename(tensors: Mapping[str, Value], table: Iterable[Row], back: bool = False) -> dict[str, Value]:
    """The same values under their new names."""
    names = renamed(tensors, table, back)
    return {names[name]: tensors[name] for name in tensors}


# ---------------------------------------------------------------------------------------------------------------- moves

Move = Literal["same", "join", "repeat", "negate", "rows", "transpose", "swap"]


class Moved(NamedTuple):
    """A row of a table that also moves numbers."""

    ours: str
    public: tuple[str, ...]
    move: Move = "same"
    part: tuple[int, int] = (0, 1)  # of `rows`: which of how many


class Place(NamedTuple):
    """Where one of our tensors is in a public file."""

    names: tuple[str, ...]
    move: Move
    part: tuple[int, int] = (0, 1)


def places(ours: Iterable[str], table: Iterable[Moved], each: int = 0) -> dict[str, Place]:
    """{our name: its place}; every name needs a row (ValueError). each: how many places a `repeat` has."""
    rules = [(_pattern(row.ours), row) for row in table]
    found = {}
    for name in ours:
        for rule, row in rules:
            if match := rule.fullmatch(name):
                held = match.groupdict()
                counts = range(each) if row.move == "repeat" else range(1)
                names = tuple(goal.format(**held, each=k) for k in counts for goal in row.public)
                found[name] = Place(names, row.move, row.part)
                break
        else:
            raise ValueError(f"no row of the key table tells of {name!r}")
    return found


class Assembled(Mapping[str, Tensor]):
    """Our tensors out of a public file's, lazily.

    skipped: public names that are known and not needed. InputError for a public tensor that is missing, or that no place
    names; when it is read, for a repeated one that is not everywhere the same.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], where: Mapping[str, Place], file: str, skipped: Sequence[str] = ()
    ) -> None:
        self._tensors, self._where, self._file = tensors, where, file
        known: Mapping[str, tuple[int, ...]] = getattr(tensors, "shapes", None) or {
            name: tuple(value.shape) for name, value in tensors.items()
        }
        needed = {name for place in where.values() for name in place.names}
        if missing := sorted(needed - known.keys()):
            raise InputError(f"{file} lacks {_some(missing)}, which its other tensors ask for")
        if foreign := sorted(known.keys() - needed - set(skipped)):
            raise InputError(f"{file} holds {_some(foreign)}, for which this model has no place")
        kinds: Mapping[str, torch.dtype] | None = getattr(tensors, "dtypes", None)
        if kinds is not None:
            self.dtypes = {ours: kinds[place.names[0]] for ours, place in where.items()}
        self.shapes = {}
        for ours, (names, move, part) in where.items():
            first = known[names[0]]
            if move == "join":
                first = (sum(known[name][0] for name in names), *first[1:])
            elif move == "rows":
                first = (first[0] // part[1], *first[1:])
            self.shapes[ours] = first[::-1] if move == "transpose" else first

    def __getitem__(self, name: str) -> Tensor:
        names, move, part = self._where[name]
        first = self._tensors[names[0]]
        if move == "join":
            return torch.cat([self._tensors[other] for other in names])
        if move == "rows":
            return first.chunk(part[1])[part[0]]
        if move == "transpose":
            return first.t().contiguous()
        if move == "swap":
            return _swapped(first)
        for other in names[1:]:
            if not torch.equal(self._tensors[other], first):
                raise InputError(f"{self._file}: {other} differs from {names[0]}; in this model they are one tensor")
        return -first if move == "negate" else first

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def taken_apart(tensors: Mapping[str, Tensor], where: Mapping[str, Place]) -> dict[str, Tensor]:
    """The public tensors of ours: the way back, bit for bit."""
    public: dict[str, Tensor] = {}
    rows: dict[str, dict[int, Tensor]] = {}
    for ours, (names, move, part) in where.items():
        value = tensors[ours]
        if move == "rows":
            rows.setdefault(names[0], {})[part[0]] = value
            continue
        value = -value if move == "negate" else value.t() if move == "transpose" else value
        value = _swapped(value) if move == "swap" else value
        parts = value.chunk(len(names)) if move == "join" else [value] * len(names)
        public |= dict(zip(names, parts, strict=True))
    return public | {name: torch.cat([parts[k] for k in sorted(parts)]) for name, parts in rows.items()}


def _swapped(value: Tensor) -> Tensor:
    return torch.cat(value.chunk(2)[::-1])


def _some(names: list[str]) -> str:
    return f"the tensor {names[0]}" + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
