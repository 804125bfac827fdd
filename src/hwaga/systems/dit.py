"""DiT: diffusion with a transformer (Peebles and Xie 2022), and SiT: the same on straight paths (Ma et al. 2024).

The network of a diffusion need not be a U-Net. Cut the noised picture (or its latents) into patches, let a plain transformer
work on all of them, put them together again: the more arithmetic it is given, the better it paints, over three orders of
magnitude. All of diffusion stays as it was; what is new is the network, and how it is told the time and the label.

    tokens = p x p patches + fixed positions                 section 3.2    networks/dit.py: forward
    four ways to be told time and label                      figure 3       networks/dit.py: Block
    E || eps - eps_theta ||^2 + the bound's term for Sigma   section 3.1    objectives/denoising.py
    z = scale (E(x) - shift), x = D(z)                       section 3.1    systems/latents.py, networks/autoencoder.py
    raw = uncond + s (cond - uncond)                         section 3.1    samplers/guidance.py
    E || (eps - x_0) - v_theta ||^2, x = (1-t) x_0 + t eps   SiT, eq. 5     processes/flow.py

`process.kind: gaussian` is DiT's diffusion (with `variance: learned-range`, its learned Sigma), `flow` is SiT. With a component
`autoencoder` it denoises latents, else pixels. The published code guides three channels of four: `guided_channels: 3`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..errors import InputError
from ..files import write_json
from ..formats import autoencoder as public_autoencoder
from ..formats import dit as public
from ..formats import lora as files
from ..formats import schedulers
from ..formats.folders import PublicFolder
from ..formats.lora import Spelled
from ..networks.autoencoder import AutoencoderKLConfig
from ..networks.dit import DiTConfig as NetworkConfig
from ..processes.flow import FlowConfig
from ..processes.gaussian import GaussianConfig
from . import latents, students
from .base import About
from .diffusion import Diffusion, DiffusionConfig

TIME_SCALE = 1000.0  # of networks that are fed a time in [0, 1]: the sinusoid's frequencies are made for 0 ... 1000


class DiTConfig(DiffusionConfig, frozen=True, extra="forbid"):
    network: NetworkConfig = NetworkConfig()
    teacher: NetworkConfig | None = Field(None, description="of components.teacher, where a student learns from one")

    @model_validator(mode="after")
    def _agrees(self) -> DiTConfig:
        channels = 3 if self.autoencoder is None else self.autoencoder.latent_channels
        if self.network.in_channels != channels:
            what = "pixels" if self.autoencoder is None else "latents of this autoencoder"
            raise ValueError(f"network.in_channels={self.network.in_channels}: {what} have {channels}")
        wanted = channels * (2 if self.process.learns_variance else 1)
        spare = 2 * channels if isinstance(self.process, FlowConfig) else wanted  # SiT has channels that say nothing
        if self.network.out_channels not in (wanted, spare):
            raise ValueError(f"network.out_channels={self.network.out_channels} with this process: {wanted} are needed")
        if self.labels != (self.network.classes > 0):
            raise ValueError(f"labels={self.labels} with network.classes={self.network.classes}")
        return self


class DiT(Diffusion):
    """Networks: `network`, a transformer; `autoencoder`, frozen, where it denoises latents."""

    name, title, year = "dit", "DiT", 2022
    paper = "Scalable Diffusion Models with Transformers (arXiv:2212.09748)"
    formats = ("diffusers", "single")
    may_lack = ("autoencoder",)
    lora_lead = "transformer."
    Config = DiTConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        config = students.completed(config)
        network, process = dict(config.get("network", {})), config.get("process", {})
        codec = AutoencoderKLConfig(**config["autoencoder"]) if config.get("autoencoder") else None
        channels, factor = (3, 1) if codec is None else (codec.latent_channels, codec.factor)
        patch = network.get("patch", NetworkConfig().patch)
        network.setdefault("in_channels", channels)
        if config.get("labels"):
            if not classes and "classes" not in network:
                raise InputError("model.labels=true, but the data have no labels; set model.labels=false")
            network.setdefault("classes", len(classes) + 1)
        network.setdefault("out_channels", channels * (2 if "learned" in str(process.get("variance", "")) else 1))
        network.setdefault("grid", [side // (factor * patch) for side in size])
        network.setdefault("time_scale", 1.0 if process.get("kind", "gaussian") == "gaussian" else TIME_SCALE)
        return {**config, "network": network}

    @classmethod
    def check_data(cls, config: DiTConfig, size: tuple[int, int]) -> None:
        patch = config.network.patch
        if config.autoencoder is not None:
            latents.check_data(config.autoencoder, patch, size)
        elif any(side % patch for side in size):
            raise InputError(f"data.size={size}: this network needs multiples of {patch}, its patch")

    def take(self, part: str, network: Any, source: str) -> None:
        """An autoencoder may have another config than the one before it, where its latents have the same channels."""
        if part == "autoencoder":
            latents.take(self, network, source)
        else:
            super().take(part, network, source)

    # ------------------------------------------------------------------------------------------- public folders and files

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> DiT:
        """A DiTPipeline's folder (transformer, vae, scheduler; labels in model_index.json)."""
        folder = PublicFolder(path, "transformer")
        found = public.read_component(folder)
        config, names = found.config, folder.index.get("id2label") or {}
        learned = config.out_channels == 2 * config.in_channels
        process, sampling = schedulers.read(folder.scheduler() or {}, str(path))
        if isinstance(process, GaussianConfig) and learned:  # DDIM and its like have no field for it
            process = process.model_copy(update={"variance": "learned-range"})
        codec = None if folder.flat else public_autoencoder.read_component(folder, "vae")
        factor = AutoencoderKLConfig().factor if codec is None else codec.config.factor
        made = cls.checked({
            "network": config, "process": process, "labels": True,
            "autoencoder": AutoencoderKLConfig() if codec is None else codec.config,
            "sampling": {"steps": 50, "guidance_scale": 4.0, **sampling},  # as the pipeline has them
        })  # fmt: skip
        networks = {"network": found.network(dtype, device)}
        if codec is not None:
            networks["autoencoder"] = codec.network(dtype, device)
        layout = {
            "index": folder.index, "flat": folder.flat, "scheduler": folder.scheduler(), "transformer": found.layout,
            "vae": None if codec is None else codec.layout,
        }  # fmt: skip
        classes = tuple(str(names.get(str(i), i)) for i in range(config.classes - 1)) if names else ()
        size = (found.size[0] * factor, found.size[1] * factor)
        return cls(made, networks, About(size=size, classes=classes, layout=layout))

    def to_diffusers(self, folder: Path) -> None:
        """Writes the public layout into an empty folder: as it was loaded, if it was."""
        layout = self.about.layout
        if self.config.autoencoder is None:
            raise InputError("a DiT on pixels has no public folder, which always has an autoencoder; format single has")
        scheduler = layout.get("scheduler") or schedulers.written(self.config.process, self.config.sampling)
        side = self.shape(self.about.size)[1:]
        flat = bool(layout.get("flat"))
        place = folder if flat else folder / "transformer"
        public.write_folder(place, self.network, (side[0], side[1]), layout.get("transformer") or {})
        if flat:
            return
        codec = folder / "vae"
        codec.mkdir()
        told = layout.get("vae") or {}
        public_autoencoder.write_folder(
            codec, public_autoencoder.shiftless(self.autoencoder, told), self.about.size, told
        )
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        write_json(folder / "model_index.json", layout.get("index") or {
            "_class_name": "DiTPipeline", "id2label": {str(i): name for i, name in enumerate(self.about.classes)},
            "scheduler": ["diffusers", scheduler["_class_name"]], "transformer": ["diffusers", public.CLASSES[1]],
            "vae": ["diffusers", "AutoencoderKL"],
        })  # fmt: skip

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> DiT:  # fmt: skip
        """An original DiT or SiT file; its autoencoder is a component. It samples as the published code does by default:
        DDPM respaced to 250 steps with the learned variance, or, a flow, some 250 evaluations of Heun's method; scale 4, three
        channels guided."""
        found = public.read_file(path, tensors)
        network, codec = found.config, AutoencoderKLConfig(latent_channels=found.config.in_channels)
        process: Any = FlowConfig()
        sampling: dict[str, Any] = {"sampler": "flow-heun", "steps": 125, "guidance_scale": 4.0}
        if not found.flow:
            learned = network.out_channels == 2 * network.in_channels
            process = GaussianConfig(variance="learned-range" if learned else "fixed-large")
            sampling |= {"sampler": "ddpm", "steps": 250, "spacing": "linspace", "clip": None}
        config = cls.checked({
            "network": network, "process": process, "sampling": sampling, "autoencoder": codec, "labels": True,
            "guided_channels": min(3, network.in_channels),
        })  # fmt: skip
        size = (found.size[0] * codec.factor, found.size[1] * codec.factor)
        return cls(config, {"network": found.network(dtype, device)}, About(size=size, layout={"file": found.layout}))

    def spellings(self) -> Mapping[str, Sequence[Spelled]]:
        """A LoRA names the weights as the public folder does, the original file, or this library."""
        own = super().spellings()["peft"]
        try:
            folder, file = (
                public.spelled(self.network, "network", table) for table in (public.FOLDER, public.ORIGINAL)
            )
        except ValueError:  # a network that public layouts have no names for
            return {"peft": own, "kohya": own}
        written = [folder, *files.of_others(own)]
        return {"peft": written, "kohya": written, "original": [file], "own": own}

    def to_file(self, path: Path) -> None:
        public.write_file(
            path, self.network, self.about.layout.get("file") or {}, isinstance(self.config.process, FlowConfig)
        )
