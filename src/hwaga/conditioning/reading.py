"""Words, read by a system's text encoders: what every system that is told words shares.

    texts, negatives   of a batch or a call, the words of each picture
    said               words -> states, and the pooled vector where the network asks for one
    check_words        words that cannot be read, or are cut off, are told before anything is painted

A text encoder is frozen while others learn from it, so what it says of a caption is computed once and kept in memory, each
caption by itself: the same bits whatever batch it came in, which an exact resume needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, LostWords, not_finite
from ..interfaces import Batch
from . import prompts
from .text_encoders import ENCODERS, TOKENIZERS, Encoded, TextEncoder
from .tokenizers import missing

KEPT_BYTES = 2**28  # of captions' states in memory while training
OWN = {
    "prompt_weights": "true: (word:1.2), (word) and [word] in a prompt weigh more or less",
    "long_prompts": "true: a prompt longer than the text encoder takes is read in several pieces, not cut off",
    "clip_skip": "layers before the text encoder's end whose states are taken: 0 is the model's own",
}


class Readers:
    """Stands before a System, at whose `networks` and `config` it looks. `told` names the network that words are told."""

    networks: dict[str, Any]
    config: Any
    told = "network"
    tells_pooled = False  # whether that network is told the pooled text

    @classmethod
    def taught(cls, config: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """With some of the training captions, evenly spaced among all, for the grids that show how training goes."""
        return {"examples": examples_of(captions), **config}

    @property
    def encoders(self) -> dict[str, TextEncoder]:
        """Those that the model has; InputError where one did not come with it, or came without its tokenizer."""
        for name in (names := self.needed_encoders()):
            if name not in self.networks:
                raise InputError(
                    f"this model came without the {name} that reads its prompts; name it: components={{{name!r}: SOURCE}} or "
                    f"--component {name}=SOURCE"
                )
            if not self.networks[name].files:
                raise missing("this model", {}, TOKENIZERS[name])
        return {name: self.networks[name] for name in names}

    def needed_encoders(self) -> Sequence[str]:
        """The names of those that read a prompt."""
        return [name for name in ENCODERS if getattr(self.config, name, None) is not None] or ENCODERS[:1]

    def texts(self, given: Any) -> list[str]:
        """The words of each picture."""
        if not isinstance(given, Batch):
            return [prompt.text for prompt in given.prompts]
        if given.caption is None:
            raise InputError("this model learns from captions, but the data have none; name a source that has")
        return [caption or "" for caption in given.caption]

    def negatives(self, given: Any) -> list[str | None]:
        """What each picture is to avoid; None where nothing is said."""
        if not isinstance(given, Batch):
            return [prompt.negative for prompt in given.prompts]
        return [None] * len(given.index)

    def said(self, texts: Sequence[str | None], given: Any) -> dict[str, Tensor]:
        """`text` (n, l, d) and, where the network asks for it, `pooled` (n, p), of n texts; None is no words."""
        kept = {text: self._kept(text, given) for text in dict.fromkeys(texts)}
        said = {"text": torch.stack([kept[text].states[0] for text in texts])}
        if self.tells_pooled:
            said["pooled"] = torch.stack([kept[text].pooled[0] for text in texts])  # type: ignore[index]
        return said

    def _kept(self, text: str | None, given: Any) -> Encoded:
        if not isinstance(given, Batch):
            return self._encoded(text, given.inputs)
        memory: dict[str | None, Encoded] = self.__dict__.setdefault("_memory", {})
        if text not in memory:
            with torch.no_grad():
                one = self._encoded(text, {})
            if (len(memory) + 1) * one.states.numel() * 4 > KEPT_BYTES:
                memory.clear()
            memory[text] = one
        return memory[text]

    def _encoded(self, text: str | None, inputs: Mapping[str, Any]) -> Encoded:
        """What all encoders say of a text, in the network's dtype."""
        states, pooled = self.joined({name: self._by(one, text or "", inputs) for name, one in self.encoders.items()})
        dtype = next(self.networks[self.told].parameters()).dtype
        states, pooled = states.to(dtype), None if pooled is None else pooled.to(dtype)
        if not bool(torch.isfinite(states).all()):
            raise not_finite("in what the text encoder says of the prompt", str(dtype))
        if text is None and getattr(self.config, "zeros_for_empty", False):
            return Encoded(torch.zeros_like(states), None if pooled is None else torch.zeros_like(pooled))
        return Encoded(states, pooled)

    def joined(self, said: Mapping[str, Encoded]) -> tuple[Tensor, Tensor | None]:
        """The states of all encoders side by side, and the last one's pooled vector."""
        return torch.cat([one.states for one in said.values()], dim=-1), list(said.values())[-1].pooled

    def _by(self, encoder: TextEncoder, text: str, inputs: Mapping[str, Any]) -> Encoded:
        weighted, chunked = inputs.get("prompt_weights", False), inputs.get("long_prompts", False)
        skip = encoder.config.skip + (inputs.get("clip_skip", 0) if encoder.config.model.skippable else 0)
        least = self._pieces(inputs, encoder.config.model.kind) if chunked else 1
        return prompts.encoded(encoder, [text], weighted=weighted, chunked=chunked, skip=skip, least=least)

    def _pieces(self, inputs: Mapping[str, Any], kind: str) -> int:
        """How many pieces the longest prompt of a call is read in, by the encoder of this kind that needs most."""
        texts = [text for name in ("prompt", "negative_prompt") for text in _listed(inputs.get(name)) if text]
        weighted = inputs.get("prompt_weights", False)
        alike = [encoder for encoder in self.encoders.values() if encoder.config.model.kind == kind]
        return max((prompts.chunks_of(e, texts, weighted) for e in alike), default=1) if texts else 1

    # ------------------------------------------------------------------------------------------------- what can be asked

    def check(self, request: Any) -> None:
        """InputError for what this system cannot do; a note of words that are cut off."""
        super().check(request)  # type: ignore[misc]
        self.check_words(request)

    def check_words(self, request: Any) -> None:
        """InputError for words that cannot be read; a warning that names those that are cut off, once for each prompt."""
        for name in ("prompt_weights", "long_prompts"):
            if not isinstance(request.inputs.get(name, False), bool):
                raise InputError(f"{name}={request.inputs[name]!r}: true or false is needed")
        skip = request.inputs.get("clip_skip", 0)
        configs = [encoder.config for encoder in self.encoders.values() if encoder.config.model.skippable]
        least = min((config.model.layers - config.skip for config in configs), default=0)
        if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip <= least:
            raise InputError(f"clip_skip={skip!r}: a whole number from 0 to {least} is needed")
        for text in dict.fromkeys(text for prompt in request.prompts for text in prompt if text):
            lost = self.lost_words(request, text)
            for words in dict.fromkeys(lost.values()):
                by = " and ".join(name for name, other in lost.items() if other == words)
                length = self.networks[next(iter(lost))].config.length
                warnings.warn(
                    f"the prompt is longer than the {length} tokens that {by} takes; these words were lost: "
                    f"{_shortened(words)} (long_prompts=True reads them too)",
                    LostWords, stacklevel=5,
                )  # fmt: skip

    def preview(self, n: int, seed: int = 0) -> Float[Tensor, "n 3 h w"]:
        """Pictures of a fixed seed, in [0, 1], for grids while training: of the config's examples in turn."""
        examples = getattr(self.config, "examples", ()) or ("",)
        told = [examples[i % len(examples)] for i in range(n)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LostWords)
            pictures: Tensor = self.sample(prompt=told, seed=seed, output="tensor", progress=False)  # type: ignore[attr-defined]
        return pictures

    def lost_words(self, request: Any, text: str | None) -> dict[str, str]:
        """By encoder, the words of a text that are cut off."""
        if not text or request.inputs.get("long_prompts"):
            return {}
        weighted = request.inputs.get("prompt_weights", False)
        found = {name: prompts.cut(encoder, text, weighted).lost for name, encoder in self.encoders.items()}
        return {name: lost for name, lost in found.items() if lost}

    def told_of(self, request: Any, i: int) -> dict[str, Any]:
        """What a picture's record says of it alone: its words, and those of them that were lost."""
        lost = self.lost_words(request, request.prompts[i].text)
        return {**super().told_of(request, i), "lost_words": lost or None}  # type: ignore[misc]


def examples_of(captions: Sequence[str], most: int = 16) -> tuple[str, ...]:
    """Some captions, evenly spaced among all different ones by letters."""
    every = sorted(set(captions))
    count = min(most, len(every))
    return tuple(every[i * len(every) // count] for i in range(count))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _shortened(words: str, most: int = 200) -> str:
    """Words for a message: the first of them, and how many more there are."""
    if len(words) <= most:
        return repr(words)
    head = words[:most].rsplit(" ", 1)[0]
    return f"{head!r} and {len(words[len(head) :].split())} more"
