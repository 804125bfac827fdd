"""Prompts: weights of single words, texts longer than an encoder takes, and what was cut.

    weighted   a (red:1.4) flower (in a pot) with [leaves]     1.4, 1.1 and 1/1.1; brackets nest; \\( is a bracket itself
               state = empty + w (state - empty), empty being what the encoder says of no words at that place; w = 1 changes
               no bit
    chunked    a text of more tokens than fit is cut into pieces of as many as do; their states stand one after the other,
               and the pooled vector is the first one's

Neither is in the papers: both are customs of the programs that people paint with, so they are options and never defaults.
Without them a long prompt is cut off as in the published code, and its lost words are told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import InputError

if TYPE_CHECKING:
    from .text_encoders import Encoded, TextEncoder

BRACKET = 1.1
"""What a plain pair of brackets multiplies by."""
_MARKS = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*([+-]?\d*\.?\d+)\s*\)|[^\\()\[\]:]+|[:\\]")


class Prompt(NamedTuple):
    """The words that one picture is painted of, and those that it is to avoid; None is not "" (Stable Diffusion XL)."""

    text: str
    negative: str | None


def listed_prompts(prompt: Any, negative: Any, n: int) -> tuple[Prompt, ...]:
    """One pair a picture: n of each prompt, prompt by prompt. No prompt at all is the empty one: an unconditional picture.

    A list of prompts has one negative prompt for all, or a list as long. InputError for anything else.
    """
    texts = [prompt if prompt is not None else ""] if prompt is None or isinstance(prompt, str) else prompt
    texts = list(texts) if isinstance(texts, list | tuple) else [texts]
    if not texts:
        raise InputError("prompt=[]: at least one prompt is needed; prompt='' paints without words")
    against = list(negative) if isinstance(negative, list | tuple) else [negative] * len(texts)
    if len(against) != len(texts):
        raise InputError(
            f"negative_prompt= has {len(against)} entries for {len(texts)} prompts; give one for all, or one for each"
        )
    for name, values, none in (("prompt", texts, False), ("negative_prompt", against, True)):
        for value in values:
            if not isinstance(value, str) and not (none and value is None):
                raise InputError(f"{name}={value!r}: text, or a list of texts, is needed")
    return tuple(Prompt(a, b) for a, b in zip(texts, against, strict=True) for _ in range(n))


class Part(NamedTuple):
    """A piece of a prompt and how much it weighs."""

    text: str
    weight: float


def parts(prompt: str) -> list[Part]:
    """A prompt with weights, as pieces of one weight each. InputError for brackets that do not match."""
    found: list[list[object]] = []  # [text, weight]
    opened: list[tuple[str, int]] = []  # bracket, number of pieces before it
    for match in _MARKS.finditer(prompt):
        mark = match[0]
        if mark in "([":
            opened.append((mark, len(found)))
        elif mark in ")]" or (match[1] is not None and opened and opened[-1][0] == "("):
            if not opened or opened[-1][0] != {")": "(", "]": "["}[mark[-1]]:
                raise InputError(f"prompt={_short(prompt)!r}: {mark[-1]!r} closes nothing; write \\{mark[-1]}")
            bracket, start = opened.pop()
            factor = float(match[1]) if match[1] is not None else BRACKET if bracket == "(" else 1 / BRACKET
            for piece in found[start:]:
                piece[1] = float(piece[1]) * factor  # type: ignore[arg-type]
        else:
            found.append([mark[1:] if len(mark) == 2 and mark[0] == "\\" else mark, 1.0])
    if opened:
        raise InputError(f"prompt={_short(prompt)!r}: {opened[-1][0]!r} is never closed; write \\{opened[-1][0]}")
    joined: list[Part] = []
    for text, weight in found:
        if joined and joined[-1].weight == weight:
            joined[-1] = Part(joined[-1].text + str(text), joined[-1].weight)
        else:
            joined.append(Part(str(text), float(weight)))  # type: ignore[arg-type]
    return joined


class _Cut(NamedTuple):
    """The tokens of a prompt that are used, a chunk at a time, their weights, and the words that are not."""

    chunks: list[list[int]]
    weights: list[list[float]]
    lost: str


def cut(encoder: TextEncoder, prompt: str, weighted: bool = False, chunked: bool = False) -> _Cut:
    """The tokens of a prompt in pieces of as many as the encoder takes; without `chunked` only the first is kept."""
    room = encoder.config.length - encoder.tokenizer.marks
    ids: list[int] = []
    weights: list[float] = []
    places: list[tuple[str, int]] = []  # text and where in it each token begins
    for text, weight in parts(prompt) if weighted else [Part(prompt, 1.0)]:
        tokens = encoder.tokens(text)
        ids += tokens.ids
        weights += [weight] * len(tokens.ids)
        places += [(text, start) for start, _ in tokens.spans]
    pieces = [ids[k : k + room] for k in range(0, len(ids), room)] or [[]]
    weighed = [weights[k : k + room] for k in range(0, len(ids), room)] or [[]]
    if chunked or len(pieces) == 1:
        return _Cut(pieces, weighed, "")
    return _Cut(pieces[:1], weighed[:1], _words_from(places, room))


def _words_from(places: Sequence[tuple[str, int]], first: int) -> str:
    """The words of a text from a token on; one that was cut in its middle is lost whole."""
    text, start = places[first]
    start += len(text[start:]) - len(text[start:].lstrip())  # T5's tokens begin with the space before them
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    following = [text[start:]]
    for later, _ in places[first:]:
        if later is not text:
            following.append(later)
            text = later
    return " ".join(" ".join(following).split())


def encoded(
    encoder: TextEncoder, prompts: Sequence[str], *, weighted: bool = False, chunked: bool = False, skip: int | None = None,
    least: int = 1,
) -> Encoded:  # fmt: skip
    """States (n, l, d), pooled vectors and lost words of n prompts.

    least: chunks that all get at least, filled up with those of no words, so that several calls can be laid together.
    """
    from .text_encoders import Encoded

    length, frame = encoder.config.length, encoder.tokenizer.framed
    found = [cut(encoder, prompt, weighted, chunked) for prompt in prompts]
    count = max(least, *(len(one.chunks) for one in found))
    rows = [frame(chunk, length) for one in found for chunk in _filled(one.chunks, count)]
    read = encoder.read(rows, skip)
    states = read.states
    if any(w != 1.0 for one in found for chunk in one.weights for w in chunk):
        weights = torch.ones(len(rows), length)
        for i, one in enumerate(found):
            for k, chunk in enumerate(one.weights):
                start = encoder.tokenizer.marks - 1
                weights[i * count + k, start : start + len(chunk)] = torch.tensor(chunk)
        empty = encoder.read([frame([], length)], skip).states
        w = weights.to(states)[..., None]
        states = torch.where(w == 1, states, empty + w * (states - empty))
    states = states.reshape(len(prompts), count * length, -1)
    return Encoded(states, encoder.pool(read.end[::count]), tuple(one.lost for one in found))


def chunks_of(encoder: TextEncoder, prompts: Sequence[str], weighted: bool = False) -> int:
    """How many chunks the longest of the prompts has."""
    return max(len(cut(encoder, prompt, weighted, True).chunks) for prompt in prompts)


def _filled(chunks: list[list[int]], count: int) -> list[list[int]]:
    return [*chunks, *[[]] * (count - len(chunks))]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
