"""Stable Diffusion: words become pictures in a small space (Rombach et al. 2022; SD XL: Podell et al. 2023).

An autoencoder makes a picture 48 times smaller; a diffusion works there, with a U-Net that looks at the words of a prompt at every
resolution; guidance pushes what it says of the noise away from what it says without the words.

    z = scale (E(x) - shift), x = D(z)                      section 3.1   networks/autoencoder.py, systems/latents.py
    E || eps - eps_theta(z_t, t, tau(y)) ||^2               eq. 3         objectives/denoising.py
    tau(y): the states of a text encoder                    section 3.3   conditioning/text_encoders.py, conditioning/prompts.py
    softmax(Q K^T / sqrt(d)) V, Q of z, K and V of tau(y)   section 3.3   layers/spatial.py, networks/text_unet.py
    uncond + s (cond - uncond)                              Ho and Salimans 2022   samplers/guidance.py
    repaint: [z_t, mask, E(what is outside it)]             section 4.5   systems/words.py: beside
    what a network is told: text, pooled, ids, beside                     conditioning/words.py

One class for 1.x, 2.x (v-prediction; the depth model's fifth channel), XL (two encoders, a pooled text and six sizes, `ids`) and
latent consistency models: what a model is told follows from its network's config. Conditions are `text` (n, l, d) and, where the
network asks for them, `pooled` (n, p), `ids` (n, 6 or 5) and `beside` (n, c, y, x), channels that are laid beside z_t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..conditioning.reading import OWN as WORDS
from ..conditioning.text_encoders import ENCODERS, TextEncoderConfig
from ..conditioning.words import Words
from ..errors import InputError
from ..formats import ldm, ldm_file
from ..formats import lora as files
from ..formats import stable_diffusion as public
from ..formats.lora import Spelled
from ..networks.autoencoder import AutoencoderKLConfig
from ..networks.text_unet import TextUNetConfig
from ..processes import ProcessConfig
from ..processes.gaussian import GaussianConfig
from . import latents, passes, students
from .base import About, Request
from .diffusion import Diffusion, DiffusionConfig
from .inversion import check_inversion_prompt
from .words import CHECKS, Told
from .words import OWN as BESIDE

TIME_SCALE = 1000.0  # of networks that are fed a time in [0, 1]: the sinusoid's frequencies are made for 0 ... 1000
STRENGTH = 0.8  # of the published pipeline, where a picture is given and nothing is said
BETAS = GaussianConfig(schedule="scaled-linear", beta_start=0.00085, beta_end=0.012)


class StableDiffusionConfig(DiffusionConfig, frozen=True, extra="forbid"):
    network: TextUNetConfig = TextUNetConfig()
    teacher: TextUNetConfig | None = Field(None, description="of components.teacher, where a student learns from one")
    text_encoder: TextEncoderConfig | None = Field(None, description="that of components.text_encoder")
    text_encoder_2: TextEncoderConfig | None = Field(
        None, description="a second one, whose states stand beside the first's"
    )
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of training pictures whose words are hidden")
    examples: tuple[str, ...] = Field(
        (), description="prompts that sample grids show; in a recipe left out: some captions"
    )
    zeros_for_empty: bool = Field(False, description="no negative prompt is zeros, not the states of no words (SD XL)")
    process: ProcessConfig = BETAS

    @property
    def encoders(self) -> dict[str, TextEncoderConfig]:
        both = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: config for name, config in both.items() if config is not None}

    @model_validator(mode="after")
    def _agrees(self) -> StableDiffusionConfig:
        channels = 3 if self.autoencoder is None else self.autoencoder.latent_channels
        if self.network.in_channels not in (channels, channels + 1, 2 * channels + 1):
            what = "pixels" if self.autoencoder is None else "latents of this autoencoder"
            raise ValueError(
                f"network.in_channels={self.network.in_channels}: {what} have {channels} (with a depth {channels + 1}, with a mask "
                f"and what is outside it {2 * channels + 1})"
            )
        wanted = channels * (2 if self.process.learns_variance else 1)
        if self.network.out_channels != wanted:
            raise ValueError(f"network.out_channels={self.network.out_channels} with this process: {wanted} are needed")
        if self.network.classes:
            raise ValueError(f"network.classes={self.network.classes}: words are what this system is told; 0 is needed")
        width = sum(config.width for config in self.encoders.values())
        if self.encoders and width != self.network.text_width:
            raise ValueError(f"network.text_width={self.network.text_width}: these text encoders give {width}")
        if len({config.length for config in self.encoders.values()}) > 1:
            raise ValueError("text_encoder and text_encoder_2 differ in length; their states must stand side by side")
        return self


class StableDiffusion(Told, Words, Diffusion):
    """Networks: `network`, a TextUNet; `autoencoder`, `text_encoder` and, in XL, `text_encoder_2`, which are frozen."""

    name, title, year = "stable-diffusion", "Stable Diffusion", 2021
    paper = "High-Resolution Image Synthesis with Latent Diffusion Models (arXiv:2112.10752)"
    formats: ClassVar[tuple[str, ...]] = ("diffusers", "single")
    may_lack: ClassVar[tuple[str, ...]] = ("autoencoder", "text_encoder", "text_encoder_2")
    grows: ClassVar[Mapping[str, str]] = {"controlnet": "controlnet"}
    takes: ClassVar[tuple[str, ...]] = (
        "prompt", "negative_prompt", "steps", "sampler", "sampler_options", "guidance_scale", "image", "mask", "strength",
        "fit_image", "keep_unmasked",
    )  # fmt: skip
    own: ClassVar[Mapping[str, str]] = {**Diffusion.own, **WORDS, **BESIDE, **passes.OWN}
    ways = {**Diffusion.ways, **passes.WAYS}
    size_of_image = True
    more_checks = {**CHECKS, **passes.CHECKS, "inversion_prompt": check_inversion_prompt}
    Config = StableDiffusionConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: StableDiffusionConfig) -> dict[str, Any]:
        return {**super().network_configs(config), **config.encoders}

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        config = students.completed(config, guided=config.get("text_dropout", 0.1) > 0)
        network, process = dict(config.get("network", {})), config.get("process", {})
        codec = AutoencoderKLConfig(**config["autoencoder"]) if config.get("autoencoder") else None
        channels = 3 if codec is None else codec.latent_channels
        told = [TextEncoderConfig(**config[name]) for name in ENCODERS if config.get(name)]
        if not told:
            raise InputError(
                "stable-diffusion reads captions by a trained text encoder; name it: components.text_encoder=openmoji/clip"
            )
        network.setdefault("in_channels", channels)
        network.setdefault("out_channels", channels)
        network.setdefault("text_width", sum(encoder.width for encoder in told))
        if process.get("kind", "gaussian") != "gaussian":
            network.setdefault("time_scale", TIME_SCALE)
        plain: dict[str, Any] = {} if codec is None else {"clip": None}
        if process.get("kind", "gaussian") == "gaussian":
            plain["offset"] = 1  # as published pipelines walk a table, whatever a folder says
        sampling = {**plain, **config.get("sampling", {})}
        return {**config, "network": network, "sampling": sampling}

    @classmethod
    def check_data(cls, config: StableDiffusionConfig, size: tuple[int, int]) -> None:
        if config.autoencoder is not None:
            latents.check_data(config.autoencoder, 1, size)

    def take(self, part: str, network: Any, source: str) -> None:
        """Another autoencoder or text encoder may have another config, where its latents, or its states, are as wide."""
        if part == "autoencoder":
            latents.take(self, network, source)
        elif part in ENCODERS:
            self.take_encoder(part, network, source)
        else:
            super().take(part, network, source)

    # ------------------------------------------------------------------------------------------------------ public folders

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> StableDiffusion:
        """A pipeline's folder; what it looked like is kept, so that it is saved again the same."""
        return cls.of_parts(public.read(path), dtype, device)

    @classmethod
    def of_parts(cls, parts: public.Parts, dtype: torch.dtype, device: torch.device) -> StableDiffusion:
        """The model of what a folder or a file holds. XL's autoencoder is float32 where others are float16, as published."""
        (process, sampling), network = parts.process(), parts.network.config
        codec = AutoencoderKLConfig() if parts.codec is None else parts.codec.config
        exact = dtype == torch.float16 and network.added_width > 0
        networks: dict[str, nn.Module] = {"network": parts.network.network(dtype, device)}
        if parts.codec is not None:
            networks["autoencoder"] = parts.codec.network(torch.float32 if exact else dtype, device)
        networks |= {name: found.network(dtype, device) for name, found in parts.encoders.items()}
        config = cls.checked({
            "network": network, "process": process, "sampling": sampling, "autoencoder": codec,
            "student": students.LatentConsistencyConfig() if network.guidance_width else None,
            "zeros_for_empty": parts.empty_is_zeros,
            **{name: found.config for name, found in parts.encoders.items()},
        })  # fmt: skip
        side = parts.network.size or ((128, 128) if network.added_width else (64, 64))
        size = tuple(n * codec.factor for n in side)
        return cls(config, networks, About(size=(size[0], size[1]), layout=parts.layout))

    def to_diffusers(self, folder: Path) -> None:
        """Writes the public layout into an empty folder: as it was loaded, if it was."""
        if self.config.autoencoder is None:
            raise InputError("a model on pixels has no public folder, which always has an autoencoder")
        side = self.shape(self.about.size)[1:]
        public.write(folder, self, (side[0], side[1]))

    # ------------------------------------------------------------------------------------------------------- single files

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> StableDiffusion:  # fmt: skip
        """A file with all networks under the original names; tokenizers are in none and come from `components`."""
        return cls.of_parts(ldm_file.read_file(path, tensors), dtype, device)

    def to_file(self, path: Path) -> None:
        ldm_file.write_file(path, self)

    def spellings(self) -> Mapping[str, Sequence[Spelled]]:
        """A LoRA names the weights as the public folder does, or the original file; kohya's trainers for XL the second."""
        own = super().spellings()["peft"]
        if "network" not in self.networks:  # a part that waits for its base
            return {"peft": own, "kohya": own}
        original = [ldm.spelled(self.network), *files.of_others(own)]
        return {"peft": own, "kohya": original if self.config.network.added_width else own, "original": original}

    # -------------------------------------------------------------------------------------------------------- how it paints

    def strength(self, request: Request) -> float:
        return float(request.inputs.get("strength", 1.0 if "mask" in request.inputs else STRENGTH))

    def begins_at_noise(self, request: Request) -> bool:
        return self.told_mask and self.strength(request) == 1

    def source(self, request: Request) -> Tensor:
        """Latents of the picture of `image`, sampled of their posterior as published, for all pictures of the part."""
        if self.config.autoencoder is None:
            return super().source(request)
        return latents.drawn(self.autoencoder, self.picture(request), request.source(), self.place(request))

    def place(self, request: Request) -> tuple[int, ...]:
        return (len(request), *self.shape(request.size))
