"""Stable Diffusion 3 and 3.5: a straight path from noise to picture, and words that are changed by the picture as it is by them
(Esser et al. 2024).

What differs from Stable Diffusion (stable_diffusion.py), whose calls, edits and training are all as there:

    z_t = (1 - t) z_0 + t eps; the network predicts eps - z_0      section 2, eq. 5    processes/flow.py
    t is drawn by a logit-normal distribution                      section 3.1, eq. 19 processes/times.py
    t' = 3 t / (1 + 2 t), more steps where there is much noise     section 5.3.2, eq. 23   processes/flow.py: grid
    picture and text are two rows of tokens in one attention       section 4           networks/mmdit.py
    three encoders: [CLIP-L, CLIP-G, zeros] above [T5]             section 4           conditioning/three_encoders.py
    each is silent now and then, so that any may be left out       section 5.3.3       the same

Conditions are `text` (n, l + m, d), the states of all encoders, and `pooled` (n, p), the pooled vectors of both CLIPs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..conditioning.text_encoders import ENCODERS, TextEncoder, TextEncoderConfig
from ..conditioning.three_encoders import CLIPS, T5, ThreeEncoders
from ..errors import InputError
from ..formats import lora as files
from ..formats import sd3 as public
from ..formats import sd3_file
from ..formats.keys import places
from ..networks.autoencoder import AutoencoderKLConfig
from ..networks.mmdit import MMDiTConfig
from ..processes import ProcessConfig
from ..processes.flow import FlowConfig
from ..processes.times import TimesConfig
from . import latents, students
from .about import About
from .base import Request, System
from .diffusion import SamplingConfig
from .stable_diffusion import StableDiffusion, StableDiffusionConfig

OF_XL = ("original_size", "crop", "target_size", "aesthetic_score", "depth")  # keywords that this network is not told
STRENGTH = 0.6  # of the published pipeline, where a picture is given and nothing is said


class StableDiffusion3Config(StableDiffusionConfig, frozen=True, extra="forbid"):
    network: MMDiTConfig = MMDiTConfig()  # type: ignore[assignment]
    teacher: MMDiTConfig | None = Field(None, description="of components.teacher")  # type: ignore[assignment]
    text_encoder_3: TextEncoderConfig | None = Field(
        None, description="T5, whose tokens stand below those of the two CLIPs"
    )
    t5_length: int = Field(public.T5_LENGTH, ge=0, description="tokens of T5; where there is none, so many zeros")
    encoder_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of training pictures for which an encoder is hidden, each by itself (paper: 0.463)",
    )
    process: ProcessConfig = FlowConfig(times=TimesConfig(kind="logit-normal"), shift=3.0)
    sampling: SamplingConfig = SamplingConfig(
        sampler="flow-euler", steps=public.USE.steps, clip=None, guidance_scale=public.USE.guidance_scale,
        options={"flow-euler": {"spacing": "linspace"}},
    )  # fmt: skip

    @property
    def encoders(self) -> dict[str, TextEncoderConfig]:
        """Those that the model has, by name."""
        return {name: config for name in ENCODERS if (config := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _agrees(self) -> StableDiffusion3Config:
        channels = 3 if self.autoencoder is None else self.autoencoder.latent_channels
        for key in ("in_channels", "out_channels"):
            if getattr(self.network, key) != channels:
                what = "pixels" if self.autoencoder is None else "latents of this autoencoder"
                raise ValueError(f"network.{key}={getattr(self.network, key)}: {what} have {channels}")
        clips = [getattr(self, name) for name in CLIPS if getattr(self, name) is not None]
        states, pooled = sum(clip.width for clip in clips), sum(clip.pooled_width for clip in clips)
        if states > self.network.text_width:
            raise ValueError(
                f"network.text_width={self.network.text_width}: text_encoder and text_encoder_2 give {states}"
            )
        if pooled > self.network.pooled_width:
            raise ValueError(f"network.pooled_width={self.network.pooled_width}: these text encoders give {pooled}")
        third = self.text_encoder_3
        if third is not None and (third.width, third.length) != (self.network.text_width, self.t5_length):
            raise ValueError(f"text_encoder_3 gives {third.length} tokens of width {third.width}: t5_length={self.t5_length} of "
                             f"network.text_width={self.network.text_width} are needed")  # fmt: skip
        if len({clip.length for clip in clips}) > 1:
            raise ValueError("text_encoder and text_encoder_2 differ in length; their states must stand side by side")
        return self


def used(config: TextEncoderConfig) -> TextEncoderConfig:
    """A text encoder's config, as this system uses it."""
    model = config.model
    if model.kind == "t5":
        return config.model_copy(update={"length": public.T5_LENGTH})
    pooled = "projected" if model.projection else "end"
    return config.model_copy(update={"skip": min(1, model.layers - 1), "final_norm": False, "pooled": pooled})


class StableDiffusion3(ThreeEncoders, StableDiffusion):
    """Networks: `network`, an MMDiT; `autoencoder`, `text_encoder`, `text_encoder_2` and `text_encoder_3`, which are frozen."""

    name, title, year = "stable-diffusion-3", "Stable Diffusion 3", 2024
    paper = "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (arXiv:2403.03206)"
    formats: ClassVar[tuple[str, ...]] = ("diffusers", "single")
    may_lack: ClassVar[tuple[str, ...]] = ("autoencoder", *ENCODERS)
    grows: ClassVar[Mapping[str, str]] = {}
    own: ClassVar[Mapping[str, str]] = {name: line for name, line in StableDiffusion.own.items() if name not in OF_XL}
    lora_lead = "transformer."
    Config = StableDiffusion3Config

    def __init__(self, config: StableDiffusion3Config, networks: Mapping[str, nn.Module], about: About) -> None:
        super().__init__(config, networks, about)
        for name, how in config.encoders.items():
            if isinstance(encoder := self.networks.get(name), TextEncoder):
                encoder.config = how  # one that was trained for another painter is used as this one does

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        fields, process = cls.Config.model_fields, config.get("process", {})
        if process.get("kind", "flow") == "flow":
            process = {**fields["process"].default.model_dump(), **process}
        hides = any(config.get(key, fields[key].default) > 0 for key in ("text_dropout", "encoder_dropout"))
        config = students.completed({**config, "process": process}, guided=hides)
        network = dict(config.get("network", {}))
        codec = AutoencoderKLConfig(**config["autoencoder"]) if config.get("autoencoder") else None
        told = {name: used(TextEncoderConfig.model_validate(config[name])) for name in ENCODERS if config.get(name)}
        clips = [told[name] for name in CLIPS if name in told]
        if not clips:
            raise InputError(
                f"{cls.name} reads captions by trained text encoders; name at least one: components.text_encoder=openmoji/clip"
            )
        channels, factor = (3, 1) if codec is None else (codec.latent_channels, codec.factor)
        width = told[T5].width if T5 in told else sum(clip.width for clip in clips)
        base = max(1, max(size) // (factor * network.get("patch", MMDiTConfig().patch)))
        follows = {
            "in_channels": channels, "out_channels": channels, "text_width": width, "base": base, "table": 3 * base,
            "pooled_width": sum(clip.pooled_width for clip in clips),
        }  # fmt: skip
        tokens = {"t5_length": config.get("t5_length", told[T5].length if T5 in told else 0)}
        if T5 in told:
            told[T5] = told[T5].model_copy(update={"length": tokens["t5_length"]})
        plain, asked = fields["sampling"].default.model_dump(), config.get("sampling", {})
        sampling = {**plain, **asked, "options": {**plain["options"], **asked.get("options", {})}}
        return {**config, **tokens, "network": {**follows, **network}, "sampling": sampling, **told}

    @classmethod
    def check_data(cls, config: Any, size: tuple[int, int]) -> None:
        if config.autoencoder is not None:
            latents.check_data(config.autoencoder, config.network.patch, size)
        elif any(side % config.network.patch for side in size):
            raise InputError(f"data.size={size}: multiples of network.patch={config.network.patch} are needed")

    def take_encoder(self, part: str, encoder: Any, source: str) -> None:
        """Puts a text encoder in place, also where a file came without; InputError where it does not fit."""
        if getattr(self.config, part) is None and isinstance(encoder, TextEncoder):
            encoder.config = used(encoder.config)
        super().take_encoder(part, encoder, source)
        self.config = self.checked(self.config.model_dump())

    # ------------------------------------------------------------------------------------------------------ public folders

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> StableDiffusion3:
        """A pipeline's folder; what it looked like is kept, so that it is saved again the same."""
        return cls.of_parts(public.read(path), dtype, device)

    @classmethod
    def of_parts(cls, parts: Any, dtype: torch.dtype, device: torch.device) -> StableDiffusion3:
        """The model of what a folder or a file holds."""
        (process, sampling), network = parts.process(), parts.network.config
        none = AutoencoderKLConfig(latent_channels=network.in_channels, quant_conv=False, post_quant_conv=False)
        codec = none if parts.codec is None else parts.codec.config
        config = cls.checked({
            "network": network, "process": process, "sampling": sampling, "autoencoder": codec,
            **{name: found.config for name, found in parts.encoders.items()},
        })  # fmt: skip
        networks: dict[str, nn.Module] = {"network": parts.network.network(dtype, device)}
        if parts.codec is not None:
            networks["autoencoder"] = parts.codec.network(dtype, device)
        networks |= {name: found.network(dtype, device) for name, found in parts.encoders.items()}
        size = tuple(n * codec.factor for n in parts.network.size)
        return cls(config, networks, About(size=(size[0], size[1]), layout=parts.layout))

    def to_diffusers(self, folder: Path) -> None:
        """Writes the public layout into an empty folder: as it was loaded, if it was."""
        if self.config.autoencoder is None:
            raise InputError("a model on pixels has no public folder, which always has an autoencoder")
        if self.config.t5_length != public.T5_LENGTH:
            raise InputError(
                f"model.t5_length={self.config.t5_length}: readers of the public folder put {public.T5_LENGTH} tokens below those "
                f"of CLIP; a model trained with {public.T5_LENGTH} can be exported"
            )
        public.write(folder, self)

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> StableDiffusion3:  # fmt: skip
        """A file with the transformer and what else it holds; tokenizers are in none and come from `components`."""
        return cls.of_parts(sd3_file.read_file(path, tensors), dtype, device)

    def to_file(self, path: Path) -> None:
        sd3_file.write_file(path, self)

    def spellings(self) -> Mapping[str, Sequence[files.Spelled]]:
        """A LoRA names the weights as the public folder does, or the original file, where queries, keys and values are one."""
        own = System.spellings(self)["peft"]
        table = places([name for name, _ in self.network.named_parameters()], sd3_file.rows(self.config.network.depth))
        original = files.by_table("network", self.network, table)
        return {"peft": own, "kohya": own, "original": [original, *files.of_others(own)]}

    # -------------------------------------------------------------------------------------------------------- how it paints

    def strength(self, request: Request) -> float:
        return float(request.inputs.get("strength", 1.0 if "mask" in request.inputs else STRENGTH))
