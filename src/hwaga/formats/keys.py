"""Key tables: rows (public name, our name), read both ways.

A row is a pair of patterns in which `{path}` stands for any prefix and `{i}` for a number. A table that only spells
some names otherwise leaves all other names as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
Row = tuple[str, str]
_HOLES = {"path": r"(?P<path>.+)", "i": r"(?P<i>\d+)"}


def renamed(names: Iterable[str], table: Iterable[Row], back: bool = False) -> dict[str, str]:
    """{name: new name} by the first row that fits; names that no row fits stay. `back` goes from ours to the public ones."""
    rules: list[tuple[re.Pattern[str], str]] = []
    for public, ours in table:
        source, goal = (ours, public) if back else (public, ours)
        pattern = re.escape(source)
        for hole, expression in _HOLES.items():
            pattern = pattern.replace(re.escape("{" + hole + "}"), expression, 1)
        rules.append((re.compile(pattern), goal))
    found = {}
    for name in names:
        for rule, goal in rules:
            if match := rule.fullmatch(name):
                found[name] = goal.format(**match.groupdict())
                break
        else:
            found[name] = name
    return found


def rename(tensors: Mapping[str, Value], table: Iterable[Row], back: bool = False) -> dict[str, Value]:
    """The same values under their new names."""
    names = renamed(tensors, table, back)
    return {names[name]: tensors[name] for name in tensors}
