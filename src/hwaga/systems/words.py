"""Words and what else a text-to-picture network is told: from a call, or from the captions of a batch, to tensors.

    said      prompts -> states, and the pooled vector where the network asks for one
    ids       the sizes that Stable Diffusion XL is told (Podell et al. 2023, section 2.2)
    beside    channels that are laid beside what is denoised: a mask and what is outside it, or a depth

A text encoder is frozen while others learn from it, so what it says of a caption is computed once and kept in memory, each
caption by itself: the same bits whatever batch it came in, which an exact resume needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..conditioning import prompts
from ..conditioning.text_encoders import Encoded, TextEncoder, TextEncoderConfig
from ..errors import InputError, LostWords
from ..formats import text_encoders
from ..formats.stable_diffusion import ENCODERS, TOKENIZERS
from ..interfaces import Batch
from . import latents
from .base import Request, number
from .pictures import to_inside
from .sources import fitted, read_depth, read_mask

KEPT_BYTES = 2**28  # of captions' states in memory while training
AESTHETIC = (6.0, 2.5)  # what XL's refiner is told of prompt and negative prompt, where nothing is said


class Words:
    """What systems that are told words share; beside a Diffusion, whose `networks`, `config` and shapes it looks at."""

    networks: dict[str, Any]
    config: Any
    words_own: ClassVar[Mapping[str, str]] = {
        "prompt_weights": "true: (word:1.2), (word) and [word] in a prompt weigh more or less",
        "long_prompts": "true: a prompt longer than the text encoder takes is read in several pieces, not cut off",
        "clip_skip": "layers before the text encoder's end whose states are taken: 0 is the model's own",
        "original_size": "XL: (height, width) that the network is told a picture had before it was brought to its size",
        "crop": "XL: (top, left) in pixels that it is told were cut off",
        "target_size": "XL: (height, width) that it is told is painted; the size itself if left out",
        "aesthetic_score": "XL's refiner: how beautiful it is told pictures are, 1 to 10",
        "depth": "the depth model: near is bright; a picture, or numbers of any range, brought to the size",
    }

    # ---------------------------------------------------------------------------------------------------------- encoders

    @property
    def encoders(self) -> dict[str, TextEncoder]:
        """Those that the model has; InputError where one did not come with it, or came without its tokenizer."""
        for name in self.config.encoders or ENCODERS[:1]:
            if name not in self.networks:
                raise InputError(
                    f"this model came without the {name} that reads its prompts; name it: components={{{name!r}: SOURCE}} or "
                    f"--component {name}=SOURCE"
                )
            _ = self.networks[name].tokenizer
        return {name: self.networks[name] for name in self.config.encoders}

    def take_encoder(self, part: str, encoder: Any, source: str) -> None:
        """Puts another text encoder in place, used as the one before it was; InputError where it does not fit."""
        if not isinstance(encoder, TextEncoder):
            raise InputError(f"components[{part!r}]={source}: its {part} reads no prompts; a text encoder is needed")
        before: TextEncoderConfig | None = getattr(self.config, part)
        if before is not None:
            use = before.model_dump(include={"skip", "final_norm", "pooled"})
            config = encoder.config.model_copy(update=use)
            for what in ("width", "pooled_width"):
                if getattr(config, what) != getattr(before, what):
                    raise InputError(
                        f"components[{part!r}]={source}: text_model.final_layer_norm.weight has shape "
                        f"{(encoder.config.width,)} and its {what} is {getattr(config, what)}; this model takes "
                        f"{getattr(before, what)}"
                    )
            encoder.config = config
        self.config = self.config.model_copy(update={part: encoder.config})
        self.networks[part] = encoder

    def read_part(self, part: str, place: Path, dtype: torch.dtype, device: torch.device) -> bool:
        """A tokenizer, or a text encoder in its public layout, right from its folder (or from the one of that name in it)."""
        inner = place / part if (place / part).is_dir() else place
        if part in TOKENIZERS.values():
            encoder = self.networks.get(part.replace("tokenizer", "text_encoder"))
            if encoder is None:
                raise InputError(f"components[{part!r}]={place}: this model has no encoder for it; name that too")
            encoder.tokenizer = text_encoders.read_tokenizer(inner)
            return True
        if part not in ENCODERS or (place / "model.json").is_file() or not (inner / "config.json").is_file():
            return False
        words = place / TOKENIZERS[part]
        found = text_encoders.read_component(inner, words if words.is_dir() else None)
        self.take_encoder(part, found.network(dtype, device), str(place))
        return True

    # -------------------------------------------------------------------------------------------------------------- words

    def texts(self, given: Batch | Request) -> list[str]:
        """The words of each picture."""
        if isinstance(given, Request):
            return [prompt.text for prompt in given.prompts]
        if given.caption is None:
            raise InputError("this model learns from captions, but the data have none; name a source that has")
        return [caption or "" for caption in given.caption]

    def negatives(self, given: Batch | Request) -> list[str | None]:
        """What each picture is to avoid; None where nothing is said."""
        if isinstance(given, Request):
            return [prompt.negative for prompt in given.prompts]
        return [None] * len(given)

    def said(self, texts: Sequence[str | None], given: Batch | Request) -> dict[str, Tensor]:
        """`text` (n, l, d) and, where the network asks for it, `pooled` (n, p), of n texts; None is no words."""
        kept = {text: self._kept(text, given) for text in dict.fromkeys(texts)}
        said = {"text": torch.stack([kept[text].states[0] for text in texts])}
        if self.config.network.added_width:
            said["pooled"] = torch.stack([kept[text].pooled[0] for text in texts])  # type: ignore[index]
        return said

    def _kept(self, text: str | None, given: Batch | Request) -> Encoded:
        if isinstance(given, Request):
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
        """The states of all encoders side by side, and the last one's pooled vector, in the network's dtype."""
        said = [self._by(encoder, text or "", inputs) for encoder in self.encoders.values()]
        dtype = next(self.networks["network"].parameters()).dtype
        states = torch.cat([one.states for one in said], dim=-1).to(dtype)
        pooled = None if said[-1].pooled is None else said[-1].pooled.to(dtype)
        if text is None and self.config.zeros_for_empty:
            return Encoded(torch.zeros_like(states), None if pooled is None else torch.zeros_like(pooled))
        return Encoded(states, pooled)

    def _by(self, encoder: TextEncoder, text: str, inputs: Mapping[str, Any]) -> Encoded:
        weighted, chunked = inputs.get("prompt_weights", False), inputs.get("long_prompts", False)
        skip = encoder.config.skip + inputs.get("clip_skip", 0)
        return prompts.encoded(
            encoder, [text], weighted=weighted, chunked=chunked, skip=skip, least=self._pieces(inputs) if chunked else 1
        )

    def _pieces(self, inputs: Mapping[str, Any]) -> int:
        """How many pieces the longest prompt of a call is read in, by the encoder that needs most."""
        texts = [text for name in ("prompt", "negative_prompt") for text in _listed(inputs.get(name)) if text]
        weighted = inputs.get("prompt_weights", False)
        return max((prompts.chunks_of(e, texts, weighted) for e in self.encoders.values()), default=1) if texts else 1

    def lost_words(self, request: Request, text: str | None) -> dict[str, str]:
        """By encoder, the words of a text that are cut off."""
        if not text or request.inputs.get("long_prompts"):
            return {}
        weighted = request.inputs.get("prompt_weights", False)
        found = {name: prompts.cut(encoder, text, weighted).lost for name, encoder in self.encoders.items()}
        return {name: lost for name, lost in found.items() if lost}

    def check_words(self, request: Request) -> None:
        """InputError for words that cannot be read; a warning that names those that are cut off, once for each prompt."""
        for name in ("prompt_weights", "long_prompts"):
            if not isinstance(request.inputs.get(name, False), bool):
                raise InputError(f"{name}={request.inputs[name]!r}: true or false is needed")
        skip = request.inputs.get("clip_skip", 0)
        least = min((c.model.layers - c.skip for c in self.config.encoders.values()), default=1)
        if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip < least:
            raise InputError(f"clip_skip={skip!r}: a whole number from 0 to {least - 1} is needed")
        self.check_told(request)
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

    def told_of(self, request: Request, i: int) -> dict[str, Any]:
        """What a picture's record says of it alone: its words, and those of them that were lost."""
        lost = self.lost_words(request, request.prompts[i].text)
        return {**super().told_of(request, i), "lost_words": lost or None}  # type: ignore[misc]

    # -------------------------------------------------------------------------------------------------- sizes, as numbers

    def ids(self, given: Batch | Request, n: int, negative: bool = False) -> Float[Tensor, "n k"]:
        """(original height, width, top, left, height, width), or with a score in place of the last two (the refiner's)."""
        inputs: Mapping[str, Any] = given.inputs if isinstance(given, Request) else {}
        size = given.size if isinstance(given, Request) else tuple(given.image.shape[2:])
        numbers = [*inputs.get("original_size", size), *inputs.get("crop", (0, 0))]
        if self.id_count == 6:
            numbers += inputs.get("target_size", size)
        else:
            numbers.append(AESTHETIC[1] if negative else inputs.get("aesthetic_score", AESTHETIC[0]))
        place = self.networks["network"].conv_in.weight.device
        return torch.tensor([numbers], dtype=torch.float32, device=place).expand(n, -1)

    @property
    def id_count(self) -> int:
        network = self.config.network
        pooled = next((c.pooled_width for c in reversed(self.config.encoders.values()) if c.pooled_width), 0)
        return (network.added_width - pooled) // network.size_width

    def check_told(self, request: Request) -> None:
        """InputError for keywords that this model's network is not told, or that are no sizes."""
        xl, six = bool(self.config.network.added_width), self.config.network.added_width and self.id_count == 6
        told = {
            "original_size": xl,
            "crop": xl,
            "target_size": six,
            "aesthetic_score": xl and not six,
            "depth": self.told_depth,
        }
        for name in told.keys() & request.inputs.keys():
            value = request.inputs[name]
            if not told[name]:
                raise InputError(f"{name}= given to a model whose network is not told it; leave it out")
            if name == "depth":
                read_depth(value, request.size)
            elif name == "aesthetic_score":
                number(name, value, 0, 10)
            elif not _is_pair(value):
                raise InputError(f"{name}={value!r}: two whole numbers of pixels are needed")
        if self.told_depth and "depth" not in request.inputs:
            raise InputError(
                "this model is told a depth; give it: depth=PICTURE, near is bright (hwaga control PICTURE --kind depth makes one)"
            )

    # ----------------------------------------------------------------------------------------- channels beside what is painted

    @property
    def told_depth(self) -> bool:
        return bool(self.config.network.in_channels == self.config.network.out_channels + 1)

    def picture(self, request: Request) -> Float[Tensor, "1 3 h w"]:
        """The picture of `image` in [-1, 1]; grey where there is none."""
        if "image" not in request.inputs:
            return torch.zeros(1, 3, *request.size, device=request.device)
        return to_inside(fitted("image", request.inputs["image"], request.size)).to(request.device)

    def beside(self, request: Request) -> Tensor | None:
        """What is laid beside the latents, (n, c, y, x): the depth; or the mask, and the latents of what is outside it."""
        n, place = len(request), self.shape(request.size)  # type: ignore[attr-defined]
        if self.told_depth:
            depth = read_depth(request.inputs["depth"], request.size)
            depth = interpolate(depth, place[1:], mode="bicubic", align_corners=False)
            low, high = depth.aminmax()
            depth = 2 * (depth - low) / (high - low).clamp(min=1e-12) - 1
            return depth.to(request.device).expand(n, -1, -1, -1)
        if not self.told_mask:  # type: ignore[attr-defined]
            return None
        mask = torch.ones(1, 1, *request.size, dtype=torch.bool)
        if "mask" in request.inputs:
            mask = read_mask(request.inputs["mask"], request.size)
        mask = mask.to(request.device)
        outside = torch.where(mask, torch.zeros(()), self.picture(request))
        known = latents.drawn(self.autoencoder, outside, request.source(), (n, *place))  # type: ignore[attr-defined]
        small = interpolate(mask.float(), place[1:], mode="nearest").expand(n, -1, -1, -1)
        return torch.cat([small, known], dim=1)


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 65_536 for v in value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _shortened(words: str, most: int = 200) -> str:
    """Words for a message: the first of them, and how many more there are."""
    if len(words) <= most:
        return repr(words)
    head = words[:most].rsplit(" ", 1)[0]
    return f"{head!r} and {len(words[len(head) :].split())} more"
