"""The words of a call: what was given as `prompt` and `negative_prompt`, brought to one pair a picture."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import InputError


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
