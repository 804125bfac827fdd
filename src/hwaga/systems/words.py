"""What Stable Diffusion is told beside words, and the exchange of what reads them.

beside      channels that are laid beside what is denoised: a mask and what is outside it, or a depth
CHECKS      of keywords that only some models are told
take        another text encoder, another tokenizer
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..conditioning.text_encoders import ENCODERS, TOKENIZERS, TextEncoder, TextEncoderConfig
from ..errors import InputError
from ..formats import text_encoders, textual_inversion
from . import latents
from .base import Request, number
from .pictures import to_inside
from .sources import fitted, read_depth, read_mask

OWN = {
    "original_size": "XL: (height, width) that the network is told a picture had before it was brought to its size",
    "crop": "XL: (top, left) in pixels that it is told were cut off",
    "target_size": "XL: (height, width) that it is told is painted; the size itself if left out",
    "aesthetic_score": "XL's refiner: how beautiful it is told pictures are, 0 to 10",
    "textual_inversion": "a file of learned words, or several: each word may then stand in a prompt",
    "inversion_prompt": "with inversion=: the words that the picture is of; left out: the call's own",
    "depth": "the depth model: near is bright; a picture, or numbers of any range; left out: its own estimate of image=",
}


class Told:
    """What StableDiffusion is told beside words; `networks`, `config` and shapes are the system's."""

    networks: dict[str, Any]
    config: Any

    @property
    def told_depth(self) -> bool:
        network = self.config.network
        return bool(network.in_channels == network.out_channels + 1)

    @property
    def told_mask(self) -> bool:
        """Whether the network itself is told a mask and what is outside it."""
        network = self.config.network
        return bool(network.in_channels > network.out_channels + 1)

    def picture(self, request: Request) -> Float[Tensor, "1 3 h w"]:
        """The picture of `image` in [-1, 1]; grey where there is none."""
        if "image" not in request.inputs:
            return torch.zeros(1, 3, *request.size, device=request.device)
        return to_inside(fitted("image", request.inputs["image"], request.size)).to(request.device)

    def has_depth(self, request: Request) -> bool:
        """Whether a call says how near what is, or it can be estimated of its picture."""
        return "depth" in request.inputs or (self.estimator is not None and "image" in request.inputs)

    @property
    def estimator(self) -> str | None:
        """The folder of the depth estimator that a public model came with; it is loaded when it is first needed."""
        found: str | None = (self.about.layout.get("left_out") or {}).get("depth_estimator")  # type: ignore[attr-defined]
        return found

    def depth(self, request: Request) -> Float[Tensor, "1 1 h w"]:
        """How near what is, in numbers of any range: what `depth` says, or what the model's estimator says of the picture."""
        if "depth" in request.inputs:
            return read_depth(request.inputs["depth"], request.size)
        from ..conditioning.control.depth import nearness

        picture = (self.picture(request)[0] / 2 + 0.5).clamp(0, 1)
        return nearness(picture, self.estimator)[None, None]

    def beside(self, given: Any) -> Tensor:
        """What is laid beside the latents, (n, c, y, x): the depth; or the mask, and the latents of what is outside it."""
        if not isinstance(given, Request):
            raise InputError(f"network.in_channels={self.config.network.in_channels}: a network that is told a mask or a depth "
                             f"cannot be trained here; {self.config.network.out_channels} can")  # fmt: skip
        request = given
        n, place = len(request), self.shape(request.size)  # type: ignore[attr-defined]
        if self.told_depth:
            depth = interpolate(self.depth(request), place[1:], mode="bicubic", align_corners=False)
            low, high = depth.aminmax()
            depth = 2 * (depth - low) / (high - low).clamp(min=1e-12) - 1
            return depth.to(request.device).expand(n, -1, -1, -1)
        mask = torch.ones(1, 1, *request.size, dtype=torch.bool)
        if "mask" in request.inputs:
            mask = read_mask(request.inputs["mask"], request.size)
        mask = mask.to(request.device)
        outside = torch.where(mask, torch.zeros(()), self.picture(request))
        known = latents.drawn(self.autoencoder, outside, request.source(), (n, *place))  # type: ignore[attr-defined]
        small = interpolate(mask.float(), place[1:], mode="nearest").expand(n, -1, -1, -1)
        return torch.cat([small, known], dim=1)

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

    def load_textual_inversion(self, file: str | Path, word: str | None = None) -> str:
        """Learned words of a file: the word (the file's own, or `word`) may then stand in any prompt; gives the word back.

        InputError where the vectors are not as wide as the text encoder's. Source: Gal et al. 2022, section 4.1.
        """
        name, vectors = textual_inversion.read(file)
        for part, matrix in vectors.items():
            encoder = self.networks.get(part)
            if not isinstance(encoder, TextEncoder):
                raise InputError(f"{file} holds words of {part}, which this model has not")
            if matrix.shape[1] != encoder.config.width:
                raise InputError(
                    f"{file}: its word {name!r} has vectors of {matrix.shape[1]} numbers, {part}'s have {encoder.config.width}: it "
                    f"was learned for another model"
                )
            encoder.words = {**encoder.words, word or name: matrix}
        return word or name

    def read_part(self, part: str, place: Path, dtype: torch.dtype, device: torch.device) -> bool:
        """A tokenizer, or a text encoder in its public layout, right from its folder (or from the one of that name in it)."""
        inner = place / part if (place / part).is_dir() else place
        if part in TOKENIZERS.values():
            encoder = self.networks.get(part.replace("tokenizer", "text_encoder"))
            if encoder is None:
                raise InputError(f"components[{part!r}]={place}: this model has no encoder for it; name that too")
            encoder.tokenizer = text_encoders.read_tokenizer(inner)
            return True
        here = part in ENCODERS and part in type(self.config).model_fields
        if not here or (place / "model.json").is_file() or not (inner / "config.json").is_file():
            return False
        words = place / TOKENIZERS[part]
        found = text_encoders.read_component(inner, words if words.is_dir() else None)
        self.take_encoder(part, found.network(dtype, device), str(place))
        return True


# ------------------------------------------------------------------------------------------------- checks of what is given


def _refuse(system: Any, name: str, told: bool) -> None:
    if not told:
        raise InputError(f"{name}= given to a model whose network is not told it; leave it out")


def _pair(name: str, six: bool = False) -> Callable[[Any, Request, Any], None]:
    def check(system: Any, request: Request, value: Any) -> None:
        _refuse(system, name, bool(system.config.network.added_width) and (not six or system.id_count == 6))
        whole = isinstance(value, list | tuple) and len(value) == 2
        if not whole or not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 65_536 for v in value):
            raise InputError(f"{name}={value!r}: two whole numbers of pixels are needed")

    return check


def _score(system: Any, request: Request, value: Any) -> None:
    _refuse(system, "aesthetic_score", bool(system.config.network.added_width) and system.id_count == 5)
    number("aesthetic_score", value, 0, 10)


def _depth(system: Any, request: Request, value: Any) -> None:
    _refuse(system, "depth", system.told_depth)
    read_depth(value, request.size)


def _inversions(system: Any, request: Request, value: Any) -> None:
    for file in value if isinstance(value, list | tuple) else [value]:
        system.load_textual_inversion(file)


CHECKS: dict[str, Callable[[Any, Request, Any], None]] = {
    "original_size": _pair("original_size"), "crop": _pair("crop"), "target_size": _pair("target_size", six=True),
    "aesthetic_score": _score, "depth": _depth, "textual_inversion": _inversions,
}  # fmt: skip
