"""CLIP: which caption belongs to which picture? (Radford et al. 2021). It paints nothing: it is eye and ear of those that do.

Two transformers, one for pictures and one for words, are trained together until a picture and its caption point the same way
and all others do not. Its text half then tells a painter what to paint (`components.text_encoder`), and another one, of another
seed and other sizes, says whether it was painted (`evaluation/clip.py`); one that judges is never one that tells.

    u = W_i ViT(x),  v = W_t T(words)                                figure 3      networks/clip.py
    loss = 1/2 (CE over rows + CE over columns) of s cos(u_i, v_j)   section 2.3   objectives/contrastive.py
    words cut into byte pairs that the captions themselves teach     section 2.4   conditioning/bpe.py
    pictures shifted, scaled, recoloured, never mirrored                           objectives/views.py

One of a picture's captions, in one of the languages of `data.language`, is read in each epoch (`data/wording.py`). It is one
of the systems' parts, not one of the eleven: trained by `hwaga train`, measured by `hwaga evaluate`, loaded by `load`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ..conditioning import bpe
from ..conditioning.text_encoders import TextEncoderConfig
from ..conditioning.tokenizers import Tokenizer
from ..errors import InputError
from ..files import write_tensors
from ..formats import clip as public
from ..interfaces import Batch, Draw, Objective, Stage, Terms
from ..networks.clip import Clip, ClipConfig
from ..objectives.contrastive import Everyone, contrastive, ranks
from ..objectives.views import ViewsConfig, view
from .base import System

NO_CAPTIONS = "clip learns from captions, and the data have none; name a source that has"


class CLIPConfig(BaseModel, frozen=True, extra="forbid"):
    network: ClipConfig = ClipConfig()
    words: int = Field(2048, ge=0, description="merges of byte pairs that are learned of the captions, at most")
    merges: tuple[str, ...] = Field((), description="these merges; in a recipe left out: they are learned")
    views: ViewsConfig = ViewsConfig()
    relatives: Literal["wrong", "spared"] = Field(
        "wrong",
        description="near relatives (a concept in another skin tone) in one batch: wrong answers, or left out of the loss",
    )
    judge: bool = Field(
        False, description="it measures what is painted, so that no painter may be told or taught by it"
    )


class CLIP(System):
    """Networks: `clip`, both halves."""

    name, title, year = "clip", "CLIP", 2021
    paper = "Learning Transferable Visual Models From Natural Language Supervision (arXiv:2103.00020)"
    stage_names = ("contrast",)
    takes: ClassVar[tuple[str, ...]] = ()
    paints = False
    flat = True
    formats = ("diffusers",)
    Config = CLIPConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: CLIPConfig) -> dict[str, Any]:
        return {"clip": config.network}

    @classmethod
    def taught(cls, config: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """With the tokenizer's merges, which the training captions teach; those that the recipe names stay."""
        if not captions:
            raise InputError(NO_CAPTIONS)
        words = config.get("words", CLIPConfig.model_fields["words"].default)
        return {"merges": bpe.learned(captions, words), **config}

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        network = dict(config.get("network", {}))
        image, text = ({**network.get(half, {})} for half in ("image", "text"))
        for half in (image, text):
            if "width" in half:
                half.setdefault("hidden", 4 * half["width"])
        image.setdefault("size", min(size))
        numbers = bpe.vocabulary(tuple(config.get("merges", ())))
        text |= {"vocabulary": len(numbers), "end": numbers[bpe.END]}
        return {**config, "network": {**network, "image": image, "text": text}}

    @classmethod
    def check_data(cls, config: CLIPConfig, size: tuple[int, int]) -> None:
        """Pictures of any size are brought to the network's."""

    @property
    def clip(self) -> Clip:
        network = self.networks["clip"]
        assert isinstance(network, Clip)
        return network

    def factor(self) -> int:
        return 1

    def lends(self, part: str) -> nn.Module | None:
        """Its text half, as a text encoder that a painter is told by: the last layer's states, normed. InputError where it
        judges what painters do."""
        if part != "text_encoder":
            return super().lends(part)
        if self.config.judge:
            raise InputError(
                f"{self.about.name or 'this CLIP'} judges what is painted, so no painter may be told by it"
            )
        text = self.clip.config.text.model_copy(update={"projection": 0})  # painters look at the states
        encoder = TextEncoderConfig(model=text, length=text.positions).build()
        own = self.clip.words.state_dict()
        encoder.load_state_dict({name: own[name] for name in encoder.state_dict()}, assign=True)
        encoder.files = bpe.files(self.config.merges, text.positions)
        return encoder.eval()

    def write_beside(self, part: str, folder: Path) -> None:
        """The files that make the model's folder one that transformers loads."""
        public.write_beside(self.clip.config, self.config.merges, folder)

    def to_diffusers(self, folder: Path) -> None:
        """Writes transformers' folder: what a saved model is, without model.json."""
        self.write_beside("clip", folder)
        write_tensors(folder / "model.safetensors", self.clip.state_dict(), {"format": "pt"})

    # -------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        objective = Objective("contrast", ("clip",), self.loss)
        return [Stage("contrast", self.networks, [objective], ("clip",), self.held_out, gathers=True)]

    def loss(self, batch: Batch, draw: Draw) -> Terms:
        """The symmetric cross-entropy of views of the pictures and one caption of each, and how sharp the answers are."""
        images = self.clip.image_features(view(batch.image, draw, self.config.views))
        texts = self.clip.text_features(self.tokens(captions_of(batch)))
        scale, meaning = self.clip.logit_scale, self.meaning(batch)
        losses = contrastive(images, texts, scale, meaning, Everyone.of(images))
        return {"contrast": losses.mean(), "_scale": scale.detach().float().exp()}

    def held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """The loss on pictures never trained on, and the share of them that are not found among those of other concepts."""
        images = self.clip.image_features(batch.image)
        texts = self.clip.text_features(self.tokens(captions_of(batch)))
        other = ranks(images, texts, self.meaning(batch, spared=True))
        missed = torch.stack([(rank > 0).float() for rank in other]).mean(0)
        return {"loss": contrastive(images, texts, self.clip.logit_scale, self.meaning(batch)), "missed": missed}

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Numbers (n, l) of captions, on the network's device."""
        room = self.config.network.text.positions - 2
        rows = [self._numbers(text)[:room] for text in captions]
        longest = max(map(len, rows))  # what stands after the first end is never looked at
        return torch.tensor([self.tokenizer.framed(row, longest + 2) for row in rows], device=self.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(bpe.files(self.config.merges, self.config.network.text.positions))

    @cached_property
    def _numbers(self) -> Callable[[str], tuple[int, ...]]:
        """Tokens of a caption without start and end; those of thousands of captions are kept."""
        return lru_cache(maxsize=65_536)(lambda text: self.tokenizer(text).ids)

    def meaning(self, batch: Batch, spared: bool = False) -> Tensor:
        """Numbers (n, k) of what each pair means: that of its caption, and that of its near relatives where they are spared."""
        digests = (hashlib.sha256(text.lower().encode()).digest() for text in captions_of(batch))
        numbers = torch.tensor([int.from_bytes(digest[:7], "big") for digest in digests], device=batch.image.device)
        if batch.cluster is None or not (spared or self.config.relatives == "spared"):
            return numbers[:, None]
        return torch.stack([numbers, batch.cluster], dim=1)

    # ------------------------------------------------------------------------------------------------------- what it is asked

    def sample(self, *_: Any, **__: Any) -> Any:
        raise InputError(
            "CLIP paints nothing: it tells a painter what to paint (components.text_encoder) and judges (hwaga evaluate)"
        )


def captions_of(batch: Batch) -> Sequence[str]:
    """InputError where the pictures have none."""
    if batch.caption is None:
        raise InputError(NO_CAPTIONS)
    return batch.caption
