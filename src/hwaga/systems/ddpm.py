"""DDPM: denoising diffusion probabilistic models (Ho, Jain and Abbeel 2020), and DDIM (Song, Meng and Ermon 2021).

A picture is drowned in noise in T small steps; a network learns to say, of a noised picture, what the noise was; from pure
noise the steps are then walked back, one Gaussian after the other.

    q(x_t | x_0) = N(alpha x_0, sigma^2)             eq. 4      processes/process.py: noised
    q(x_s | x_t, x_0), mean and variance             eq. 6, 7   processes/process.py: posterior
    E || eps - eps_theta(x_t, t) ||^2                eq. 14     objectives/denoising.py
    x_s = mean + sqrt(variance) z                    alg. 2     samplers/ddpm.py
    x_s = alpha_s x_0 + sigma_s eps                  DDIM, 12   samplers/ddim.py
    L_T + sum L_t + L_0                              eq. 5      objectives/variational.py

What came after it is a choice of the same config: cosine schedule and learned variance (Nichol and Dhariwal 2021), v and x_0
prediction (Salimans and Ho 2022), min-SNR weights (Hang et al. 2023), class labels with classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from ..errors import InputError
from ..files import write_json
from ..formats import schedulers, unet2d
from ..formats.folders import PublicFolder, write_component
from ..formats.stored import as_stored, dtypes_of
from ..networks.autoencoder import AutoencoderKLConfig
from ..networks.unet import UNetConfig
from ..weights.fill import fill
from ..weights.mapped import Renamed
from . import students
from .base import About
from .diffusion import Diffusion, DiffusionConfig

TIME_SCALE = 1000.0  # of networks that are fed a time in [0, 1], not an index: the sinusoid is made for 0 ... 1000


class DDPMConfig(DiffusionConfig, frozen=True, extra="forbid"):
    network: UNetConfig = UNetConfig()
    teacher: UNetConfig | None = Field(None, description="of components.teacher, where a student learns from one")

    @model_validator(mode="after")
    def _agrees(self) -> DDPMConfig:
        wanted = self.network.in_channels * (2 if self.process.learns_variance else 1)
        if self.network.out_channels != wanted:
            given = f"network.out_channels={self.network.out_channels} with this process"
            raise ValueError(f"{given}: {wanted} are needed")
        if self.labels != (self.network.classes > 0):
            raise ValueError(f"labels={self.labels} with network.classes={self.network.classes}")
        return self


class DDPM(Diffusion):
    """Networks: `network`, a UNet; `autoencoder`, frozen, where it denoises latents and not pixels."""

    name, title, year = "ddpm", "DDPM", 2020
    paper = "Denoising Diffusion Probabilistic Models (arXiv:2006.11239)"
    formats = ("diffusers",)
    Config = DDPMConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        config = students.completed(config)
        network, process = dict(config.get("network", {})), config.get("process", {})
        if config.get("labels"):
            if not classes:
                raise InputError("model.labels=true, but the data have no labels; set model.labels=false")
            network.setdefault("classes", len(classes) + 1)
        if config.get("autoencoder"):
            network.setdefault("in_channels", AutoencoderKLConfig(**config["autoencoder"]).latent_channels)
        channels = network.get("in_channels", 3)
        network.setdefault("out_channels", channels * (2 if "learned" in str(process.get("variance", "")) else 1))
        if process.get("kind", "gaussian") != "gaussian":
            network.setdefault("time_scale", TIME_SCALE)
        return {**config, "network": network}

    @classmethod
    def check_data(cls, config: DDPMConfig, size: tuple[int, int]) -> None:
        factor = config.network.factor * (1 if config.autoencoder is None else config.autoencoder.factor)
        if any(side % factor for side in size):
            raise InputError(
                f"data.size={size}: this network needs multiples of {factor}, as it halves the picture that far"
            )

    # ------------------------------------------------------------------------------------------------------ public folders

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> DDPM:
        """A google/ddpm-* folder, flat or not; what it looked like is kept, so that it is saved again the same."""
        folder = PublicFolder(path, "unet")
        public, scheduler = folder.config("unet"), folder.scheduler()
        network_config = unet2d.network_config(public, str(folder.place("unet") / "config.json"))
        process, sampling = schedulers.read(scheduler or {}, str(path))
        tensors = folder.tensors("unet")
        ours = unet2d.renamed(tensors, unet2d.OLD_ATTENTION)
        config = cls.checked({
            "network": network_config, "process": process, "sampling": sampling, "null_label": False,
            "labels": network_config.classes > 0,
        })  # fmt: skip
        network = fill(
            network_config, Renamed(tensors, {new: old for old, new in ours.items()}), str(path), dtype, device
        )
        size = public.get("sample_size") or 32
        layout = {
            "flat": folder.flat, "index": folder.index, "network": public, "scheduler": scheduler,
            "old_attention": any(old != new for old, new in ours.items()),
            "dtypes": dtypes_of(tensors),
        }  # fmt: skip
        pair = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        return cls(config, {"network": network}, About(size=pair, layout=layout))

    def to_diffusers(self, folder: Path) -> None:
        """Writes the public layout into an empty folder: as it was loaded, or with sub-folders."""
        layout = self.about.layout
        network = layout.get("network") or unet2d.public_network_config(self.config.network, self.about.size)
        scheduler = layout.get("scheduler") or schedulers.written(self.config.process, self.config.sampling)
        tensors = self.network.state_dict()
        if layout.get("old_attention"):
            tensors = unet2d.rename(tensors, unet2d.OLD_ATTENTION, back=True)
        tensors = as_stored(tensors, layout.get("dtypes"))
        flat = bool(layout.get("flat"))
        write_component(folder if flat else folder / "unet", network, tensors)
        write_json(
            folder / "scheduler_config.json" if flat else folder / "scheduler" / "scheduler_config.json", scheduler
        )
        pipeline = {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", scheduler.get("_class_name", "DDPMScheduler")],
        }
        write_json(
            folder / "model_index.json", layout.get("index") or {**pipeline, "unet": ["diffusers", "UNet2DModel"]}
        )
