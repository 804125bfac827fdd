"""The house's errors. Each says what was given, what is wrong and what would be right, in one sentence.

The command line prints the sentence and leaves with the error's `exit_status`; a Python user catches `InputError`
as the `ValueError` that it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class HwagaError(Exception):
    """Any error that hwaga raises on purpose."""

    exit_status = 1


class InputError(HwagaError, ValueError):
    """Something that the user gave cannot be used. Nothing has been written."""

    exit_status = 2


class WorkError(HwagaError, RuntimeError):
    """A failure while working (no space, non-finite numbers). The last good state is intact."""

    exit_status = 1


class Interrupted(HwagaError):
    """The user (or the system) stopped the work; what was done so far is kept and can be gone on with."""

    exit_status = 130


def not_finite(stage: str, dtype: str) -> WorkError:
    """The error for numbers that are not finite, by the stage of painting where they were first seen: "after step 3", "in ..."."""
    return WorkError(
        f"non-finite numbers {stage} ({dtype.removeprefix('torch.')}): nothing was painted; try dtype='float32', a lower "
        f"guidance_scale, or check the weights"
    )


class LostWords(UserWarning):
    """A prompt was longer than what reads it takes: the sentence names the words that were cut off."""


def first_mistake(error: ValidationError) -> str:
    """`key=value: what is wrong`, of the first thing that a config's check found."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}={first['input']!r}: {first['msg'].removeprefix('Value error, ')}"


SHOWN = 16
"""Names of a list that a sentence tells; of longer ones only the first, and the nearest."""


def unknown(what: str, value: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not on a list: names the nearest one that is.

    >>> raise unknown("sampler", "dpm", ["ddpm", "ddim"])
    InputError: sampler='dpm' is unknown; choose from: ddim, ddpm; did you mean 'ddpm'?
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return InputError(f"{what}={value!r} is unknown; choose from: {', '.join(names[:SHOWN])}{more}{hint}")
