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

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from ..errors import InputError
from ..files import write_json
from ..formats import unet2d
from ..formats.folders import PublicFolder, write_component
from ..interfaces import Batch, Denoise, Draw, Noise, Objective, Stage, Terms
from ..networks.unet import UNetConfig
from ..objectives.denoising import denoising, held_out_bins, mean_terms
from ..objectives.variational import Bound, bound
from ..processes.gaussian import GaussianConfig, Spacing
from ..processes.process import Level, noised
from ..samplers import SAMPLERS
from ..samplers.denoiser import Guide, classifier_free, denoiser, unguided
from ..samplers.noise import from_seed
from ..weights.fill import fill
from ..weights.mapped import Renamed
from .base import About, Defaults, Request, System
from .pictures import read_picture, to_inside


class SamplingConfig(BaseModel, frozen=True, extra="forbid"):
    """What a call of `sample` that says nothing does."""

    sampler: Literal["ddpm", "ddim"] = "ddpm"
    steps: int | None = Field(None, ge=1, description="None: all T for ddpm, 50 for ddim")
    spacing: Spacing = "leading"
    offset: int = Field(0, ge=0)
    ends_at_data: bool = Field(True, description="False: DDIM ends at the table's lowest noise")
    clip: float | None = Field(1.0, gt=0, description="x_0 is held to [-clip, clip] at each step")
    eta: float = Field(0.0, ge=0, le=1)
    guidance_scale: float = 1.0


class DDPMConfig(BaseModel, frozen=True, extra="forbid"):
    network: UNetConfig = UNetConfig()
    process: GaussianConfig = GaussianConfig()
    sampling: SamplingConfig = SamplingConfig()
    labels: bool = Field(False, description="condition on the data's labels")
    null_label: bool = Field(True, description="the last row of the class embedding means `no label`")
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of training pictures whose label is hidden")

    @model_validator(mode="after")
    def _agrees(self) -> DDPMConfig:
        wanted = self.network.in_channels * (2 if self.process.learns_variance else 1)
        if self.network.out_channels != wanted:
            given = f"network.out_channels={self.network.out_channels} with process.variance={self.process.variance}"
            raise ValueError(f"{given}: {wanted} are needed")
        if self.labels != (self.network.classes > 0):
            raise ValueError(f"labels={self.labels} with network.classes={self.network.classes}")
        return self


class DDPM(System):
    """Pictures straight from pixels. Networks: `network`, a UNet."""

    name, title, year = "ddpm", "DDPM", 2020
    paper = "Denoising Diffusion Probabilistic Models (arXiv:2006.11239)"
    stage_names = ("denoising",)
    takes = ("label", "steps", "sampler", "sampler_options", "guidance_scale", "image")
    own = {
        "strip": "number of noise levels: paints a strip, the picture of image= (or of a sample) noised above, denoised below",
    }
    formats = ("diffusers",)
    Config = DDPMConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: DDPMConfig) -> dict[str, Any]:
        return {"network": config.network}

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        network, process = dict(config.get("network", {})), config.get("process", {})
        if config.get("labels"):
            if not classes:
                raise InputError("model.labels=true, but the data have no labels; set model.labels=false")
            network.setdefault("classes", len(classes) + 1)
        if str(process.get("variance", "")).startswith("learned"):
            network.setdefault("out_channels", 2 * network.get("in_channels", 3))
        return {**config, "network": network}

    @classmethod
    def check_data(cls, config: DDPMConfig, size: tuple[int, int]) -> None:
        factor = config.network.factor
        if any(side % factor for side in size):
            raise InputError(
                f"data.size={size}: this network needs multiples of {factor}, as it halves the picture that far"
            )

    def __init__(self, config: DDPMConfig, networks: Mapping[str, Any], about: Any) -> None:
        super().__init__(config, networks, about)
        self.process = config.process.build()

    @property
    def network(self) -> Any:
        return self.networks["network"]

    # -------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        return [
            Stage(
                name="denoising",
                networks=self.networks,
                objectives=[Objective("denoising", ("network",), self.loss)],
                averaged=("network",),
                held_out=self.held_out,
            )
        ]

    def loss(self, batch: Batch, draw: Draw) -> Terms:
        """One step of training: algorithm 1, with labels hidden now and then so that guidance has its other branch."""
        conditions = self._conditions(batch.label)
        if conditions and self.config.null_label:
            hidden = draw.uniform("label_dropout", (len(batch),)) < self.config.label_dropout
            conditions = {"label": torch.where(hidden, self.label_count(), conditions["label"])}
        return mean_terms(denoising(self.network, self.process, batch.image, conditions, draw))

    def held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """The same loss on pictures never trained on, by time."""
        conditions = self._conditions(batch.label)
        return held_out_bins(
            lambda within: denoising(self.network, self.process, batch.image, conditions, draw, within)
        )

    # -------------------------------------------------------------------------------------------------------- how it paints

    def denoiser(self, conditions: Mapping[str, Tensor], guidance_scale: float = 1.0) -> Denoise:
        guide: Guide = unguided
        if guidance_scale != 1:
            guide = classifier_free(
                {k: torch.full_like(v, self.label_count()) for k, v in conditions.items()}, guidance_scale
            )
        return denoiser(self._compute, self.process, conditions, guide)

    def paint(self, request: Request) -> Tensor:
        if "strip" in request.inputs:
            return self._strip(request)
        noise = request.source()
        x = noise("noise", (len(request), self.config.network.in_channels, *request.size))
        return self._walk(x, self._grid(request), request, noise)

    def _walk(self, x: Tensor, grid: list[Any], request: Request, noise: Noise) -> Tensor:
        denoise = self.denoiser(self._conditions(request.label), request.guidance_scale)
        run = SAMPLERS[request.sampler].run
        return run(denoise, x, grid, noise=noise, callback=request.callback, **request.sampler_options)

    def _grid(self, request: Request) -> list[Any]:
        how = self.config.sampling
        ends_at_data = how.ends_at_data or request.sampler == "ddpm"
        return self.process.grid(request.steps, how.spacing, how.offset, ends_at_data)

    def _strip(self, request: Request) -> Tensor:
        """Two rows: one picture at growing noise, and below each what the walk back from there gives. One strip a picture."""
        noise, count, (height, width) = request.source(), request.inputs["strip"], request.size
        grid = self._grid(request)
        if "image" in request.inputs:
            picture = to_inside(read_picture("image", request.inputs["image"])).to(request.device)
            x0 = torch.nn.functional.interpolate(picture, (height, width), mode="bilinear", antialias=True)
            x0 = x0.clamp(-1, 1).expand(len(request), -1, -1, -1)
        else:
            x = noise("noise", (len(request), self.config.network.in_channels, height, width))
            x0 = self._walk(x, grid, request, noise).clamp(-1, 1)
        eps = noise("strip_noise", tuple(x0.shape))
        upper, lower = [x0], [x0]
        for k in range(count):
            start = round((len(grid) - 2) * (1 - (k + 1) / count))
            at = grid[start]
            x = noised(x0, eps, Level(at.alpha, at.sigma))
            upper.append(x)
            lower.append(self._walk(x, grid[start:], request, noise))
        return torch.cat([torch.cat(upper, dim=3), torch.cat(lower, dim=3)], dim=2).clamp(-1, 1)

    def _compute(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        return self.network(x.to(self.dtype), time, label)

    def _conditions(self, label: Tensor | None) -> dict[str, Tensor]:
        if not self.config.labels:
            return {}
        if label is None:
            raise InputError("this model is conditioned on labels, but the data have none")
        return {"label": label.to(self.device)}

    # ---------------------------------------------------------------------------------------------------- what can be asked

    def label_count(self) -> int:
        rows = self.config.network.classes
        return rows - 1 if rows and self.config.null_label else rows

    def samplers(self) -> tuple[str, ...]:
        return ("ddpm", "ddim")

    def factor(self) -> int:
        return self.config.network.factor

    def defaults(self) -> Defaults:
        how, total = self.config.sampling, self.process.config.timesteps
        variance = "learned" if self.config.process.learns_variance else self.config.process.variance
        return Defaults(
            sampler=how.sampler,
            steps={"ddpm": how.steps or total, "ddim": how.steps or min(50, total)},
            guidance_scale=how.guidance_scale,
            sampler_options={"variance": variance, "clip": how.clip, "eta": how.eta},
        )

    def check(self, request: Request) -> None:
        if request.steps > self.process.config.timesteps:
            raise InputError(
                f"steps={request.steps}: this model was trained with {self.process.config.timesteps}; use 1 to that many"
            )
        if request.sampler_options.get("variance") == "learned" and not self.config.process.learns_variance:
            raise InputError("variance='learned': this network predicts none; use fixed-small or fixed-large")
        if request.guidance_scale != 1 and (request.label is None or not self.config.null_label):
            why = "has no labels" if request.label is None else "was trained without a null label"
            raise InputError(
                f"guidance_scale={request.guidance_scale:g}: this model {why}, so there is nothing to guide; use 1"
            )
        if "strip" in request.inputs:
            count = request.inputs["strip"]
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 100:
                raise InputError(f"strip={count!r}: a number of noise levels from 1 to 100 is needed")
        elif "image" in request.inputs:
            raise InputError("image= given to DDPM without strip=; it is the picture that a strip noises and denoises")

    # ---------------------------------------------------------------------------------------------------------- likelihood

    @torch.no_grad()
    def bits(
        self, image: Tensor, label: Tensor | None, seed: int, count: int | None = None, progress: Any = None
    ) -> tuple[Bound, int]:
        """The variational bound of pictures in [0, 1], term by term, in bits a dimension, and at how many indices of the
        table it was taken: all of them (count=None) or about `count`, log-spaced, as the terms are largest at little noise."""
        total = self.process.config.timesteps
        spaced = None
        if count is not None and count < total - 1:
            spaced = sorted({int(k) for k in torch.logspace(0, math.log10(total - 1), count).round()})
        denoise = self.denoiser(self._conditions(label))
        noise = from_seed(seed, range(len(image)), self.device)
        say = (lambda done, of: progress(done, of, "likelihood")) if progress else None
        found = bound(denoise, self.process, to_inside(image).to(self.device), noise, indices=spaced, callback=say)
        return found, len(found.indices)

    # ------------------------------------------------------------------------------------------------------ public folders

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> DDPM:
        """A google/ddpm-* folder, flat or not; what it looked like is kept, so that it is saved again the same."""
        folder = PublicFolder(path, "unet")
        public, scheduler = folder.config("unet"), folder.scheduler()
        network_config = unet2d.network_config(public, str(folder.place("unet") / "config.json"))
        process, sampling = unet2d.process_config(scheduler or {}, str(path))
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
        stored = {str(t).removeprefix("torch.") for t in getattr(tensors, "dtypes", {}).values()}
        layout = {
            "flat": folder.flat, "index": folder.index, "network": public, "scheduler": scheduler,
            "old_attention": any(old != new for old, new in ours.items()),
            "dtype": stored.pop() if len(stored) == 1 else None,
        }  # fmt: skip
        pair = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        return cls(config, {"network": network}, About(size=pair, layout=layout))

    def to_diffusers(self, folder: Path) -> None:
        """Writes the public layout into an empty folder: as it was loaded, or with sub-folders."""
        layout = self.about.layout
        network = layout.get("network") or unet2d.public_network_config(self.config.network, self.about.size)
        scheduler = layout.get("scheduler") or unet2d.public_scheduler_config(self.config.process, self.config.sampling)
        tensors = self.network.state_dict()
        if layout.get("old_attention"):
            tensors = unet2d.rename(tensors, unet2d.OLD_ATTENTION, back=True)
        if layout.get("dtype"):
            tensors = {name: value.to(getattr(torch, layout["dtype"])) for name, value in tensors.items()}
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
