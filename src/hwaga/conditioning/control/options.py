"""Options of control maps: what a map's function says of its keywords is what is checked, shown and refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ...errors import InputError, unknown


class Between(NamedTuple):
    """A number from low to high."""

    low: float
    high: float


class Beside(NamedTuple):
    """Something given beside the picture: a file, an array or a table."""

    what: str


Level = Annotated[float, Between(0, 10_000)]  # of 8-bit levels and of sums of them
Pixels = Annotated[float, Between(0.1, 4096)]
Count = Annotated[int, Between(1, 1_000_000)]
Seed = Annotated[int, Between(0, 2**63 - 1)]
Share = Annotated[float, Between(0, 1)]


@dataclass(frozen=True)
class Option:
    """A keyword of a control map's function."""

    name: str
    kind: Any  # float, int, or a tuple of words
    default: Any
    needed: bool
    limits: Between | None = None
    beside: str | None = None

    @property
    def text(self) -> str:
        """For lists: `low=100 (0 to 10000)`."""
        if self.beside is not None:
            return f"{self.name}={self.beside}" + ("" if self.needed else " (or none)")
        if isinstance(self.kind, tuple):
            return f"{self.name}={self.default} ({', '.join(self.kind)})"
        return f"{self.name}={self.default:g}"

    def check(self, value: Any) -> Any:
        """The value as the function takes it; InputError says what would be right."""
        if self.beside is not None:
            return value
        if isinstance(self.kind, tuple):
            if value not in self.kind:
                raise unknown(self.name, value, self.kind)
            return value
        assert self.limits is not None
        whole = self.kind is int
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not self.limits.low <= value <= self.limits.high:
            what = "a whole number" if whole else "a number"
            raise InputError(
                f"{self.name}={value!r}: {what} from {self.limits.low:g} to {self.limits.high:g} is needed"
            )
        return self.kind(value)


def options_of(make: Callable[..., Any]) -> dict[str, Option]:
    """The keywords of a control map's function, by name."""
    hints, found = get_type_hints(make, include_extras=True), {}
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        hint, needed = hints[name], parameter.default is inspect.Parameter.empty
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        kind = get_args(hint)[0] if marks else hint
        words = get_args(kind) if get_origin(kind) is Literal else kind
        limits = next((mark for mark in marks if isinstance(mark, Between)), None)
        beside = next((mark.what for mark in marks if isinstance(mark, Beside)), None)
        found[name] = Option(name, words, None if needed else parameter.default, needed, limits, beside)
    return found


def checked(kind: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a user gave; InputError names the one that is unknown, missing or out of range."""
    for name in given:
        if name not in known:
            raise (
                unknown(f"option of the control kind {kind}", name, known)
                if known
                else InputError(f"{name}= given to the control kind {kind}, which has no options")
            )
    for name, option in known.items():
        if option.needed and given.get(name) is None:
            raise InputError(f"the control kind {kind} needs {name}=, {option.beside or 'a value'}")
    return {name: known[name].check(value) for name, value in given.items()}
