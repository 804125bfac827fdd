"""Text encoders: a prompt becomes states, one a token, that a network attends to, and one vector for the whole of it.

A `TextEncoder` is a text network (networks/clip_text.py), its tokenizer, and how the two are used, which differs from model to
model: which layer's states, with the last norm or without, and which pooled vector.

    Stable Diffusion 1, 2   last layer, normed (2's folders leave the last layer out)       no pooled vector
    Stable Diffusion XL     last layer but one, not normed, of two encoders                 the second one's, projected
    Stable Diffusion 3      so too, and T5's last layer, normed                             both, projected

It is a network among a system's others: its config and weights are saved, loaded, exchanged and changed by LoRA like theirs, and
its tokenizer's files stand beside them (`files`). Weights are frozen but where a stage of training names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from ..networks.clip_text import ClipTextConfig, Read
from ..networks.t5 import T5Config
from .tokenizers import Tokenizer, Tokens

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Names that text encoders have among a system's networks, as in public folders."""
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}


def _kind(value: Any) -> str:
    return str(value.get("kind", "clip") if isinstance(value, dict) else getattr(value, "kind", "clip"))


TextConfig = Annotated[
    Annotated[ClipTextConfig, Tag("clip")] | Annotated[T5Config, Tag("t5")],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="kind is one of clip, t5"),
]
"""Any text network's config, CLIP's where no kind is named."""


class TextEncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """A text network and how it is used."""

    model: TextConfig = ClipTextConfig()
    skip: int = Field(
        0, ge=0, description="layers before the end whose states are taken: 0 the last, 1 the last but one"
    )
    final_norm: bool = Field(True, description="the last norm on the states that are taken")
    pooled: Literal["none", "end", "projected"] = Field("none", description="the vector for the whole text")
    length: int = Field(77, ge=3, description="tokens of a text, begin, end and filling among them")

    @model_validator(mode="after")
    def _fits(self) -> TextEncoderConfig:
        if self.model.positions is not None and self.length > self.model.positions:
            raise ValueError(f"length={self.length}: the network has {self.model.positions} positions")
        if self.skip >= self.model.layers:
            raise ValueError(f"skip={self.skip}: the network has {self.model.layers} layers")
        if self.pooled == "projected" and not self.model.projection:
            raise ValueError("pooled=projected: the network has no projection")
        return self

    @property
    def width(self) -> int:
        """Of the states."""
        return self.model.width

    @property
    def pooled_width(self) -> int:
        """Of the pooled vector; 0 without."""
        return {"none": 0, "end": self.model.width, "projected": self.model.projection}[self.pooled]

    def build(self) -> TextEncoder:
        return TextEncoder(self)


class Encoded(NamedTuple):
    """What an encoder says of n prompts."""

    states: Tensor  # (n, l, d)
    pooled: Tensor | None  # (n, p)
    lost: tuple[str, ...] = ()  # of each prompt the words that were cut off, "" where there are none


class TextEncoder(nn.Module):
    """See the top of this file. Parameters have the names of public folders."""

    streams = True  # see weights/streamed.py

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        network = config.model.build()
        for name, part in network.named_children():
            self.add_module(name, part)
        self._network = (network,)  # in a tuple: its parts are ours, under their own names
        self._tokenizer: Tokenizer | None = None
        self.words: dict[str, Tensor] = {}  # learned words and their vectors (k, width): textual inversion

    @property
    def files(self) -> Mapping[str, bytes]:
        """The tokenizer's files, which stand beside the weights."""
        return {} if self._tokenizer is None else self._tokenizer.files

    @files.setter
    def files(self, files: Mapping[str, bytes]) -> None:
        self._tokenizer = Tokenizer(files) if files else None

    @property
    def tokenizer(self) -> Tokenizer:
        """InputError where it came without one."""
        return Tokenizer({}) if self._tokenizer is None else self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def initialise(self, generator: torch.Generator) -> None:
        self._network[0].initialise(generator)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # ------------------------------------------------------------------------------------------------------------- tokens

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text; a learned word is the numbers after the vocabulary that its vectors have."""
        if not any(word in text for word in self.words):
            return self.tokenizer(text)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for start, word in [*_places(text, self.words), (len(text), "")]:
            found = self.tokenizer(text[at:start])
            ids += found.ids
            spans += [(a + at, b + at) for a, b in found.spans]
            at = start + len(word)
            if word:
                count = len(self.words[word])
                ids += range(self.first_of(word), self.first_of(word) + count)
                spans += [(start, at)] * count
        return Tokens(tuple(ids), tuple(spans))

    def first_of(self, word: str) -> int:
        """The number of a learned word's first vector."""
        before = 0
        for name, vectors in self.words.items():
            if name == word:
                return self.config.model.vocabulary + before
            before += len(vectors)
        raise KeyError(word)

    # ------------------------------------------------------------------------------------------------------------- states

    def read(self, ids: Sequence[Sequence[int]], skip: int | None = None) -> Read:
        """States (n, l, d) and end vectors (n, d) of framed tokens. skip: other than the config's."""
        words = torch.cat([v.to(self.device) for v in self.words.values()]) if self.words else None
        return self._network[0](
            torch.tensor(ids, device=self.device), skip=self.config.skip if skip is None else skip,
            final_norm=self.config.final_norm, words=words,
        )  # fmt: skip

    def pool(self, end: Tensor) -> Tensor | None:
        """The pooled vector of end vectors (n, d), as the config says."""
        if self.config.pooled == "none":
            return None
        projection: Any = self._network[0].text_projection
        return projection(end) if self.config.pooled == "projected" else end

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """States, pooled vectors and lost words of prompts, as published: what does not fit is cut off at the end."""
        from .prompts import encoded

        return encoded(self, prompts)


def _places(text: str, words: Mapping[str, Tensor]) -> list[tuple[int, str]]:
    """Where learned words stand in a text, the longest first where several begin at one place."""
    found, at = [], 0
    while at < len(text):
        here = [word for word in words if text.startswith(word, at)]
        if here:
            word = max(here, key=len)
            found.append((at, word))
            at += len(word)
        else:
            at += 1
    return found
