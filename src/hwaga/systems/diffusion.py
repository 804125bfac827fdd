"""What every system that denoises shares: how it is trained, how it walks from noise to data, and what can be asked of it.

A subclass says how pictures become what is denoised and back (`inward`, `outward`: pixels as they are, or the latents of an
autoencoder); one whose conditions are other than labels says what they are (`conditions`, `null`, `hidden`).

    loss        a picture, a time, noise: what does the network say?     objectives/denoising.py
    denoiser    network + process + conditions + guidance                samplers/denoiser.py, samplers/guidance.py
    grid        which points are walked                                  processes/spacing.py
    walk        one of SAMPLERS                                          samplers/
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from ..errors import InputError
from ..interfaces import Batch, Denoise, Draw, Noise, Objective, Point, Precomputed, Stage, Terms
from ..layers.attention import middle_attention, passing
from ..networks.adapter import LoraConfig
from ..networks.autoencoder import AutoencoderKLConfig
from ..networks.uncertainty import UncertaintyConfig
from ..objectives.denoising import denoising, held_out_bins, mean_terms
from ..processes import ProcessConfig
from ..processes.gaussian import GaussianConfig, GaussianDiffusion, Spacing
from ..processes.process import Process, level_of, noised
from ..processes.spacing import Spaced, given
from ..samplers import FLOW, ON_GRID, SAMPLERS
from ..samplers.denoiser import Conditions, Guide, denoiser, known_outside, unguided
from ..samplers.guidance import autoguided, perturbed, rescaled, within
from . import latents, students
from .base import Defaults, Request, System
from .inversion import OWN, check_inversion, check_inversion_label, inverted, unclipped
from .likelihoods import bits, told
from .lora import adapter_of
from .pictures import to_inside
from .sources import check_mask, fitted, read_mask
from .strips import strip

Given = Batch | Request
"""What conditions are made of: a batch of training, or a call of `sample` (the part of it that is painted at once)."""
ENDS_BY_TABLE = ("ddim", "pndm", "lcm")  # whose public classes have set_alpha_to_one
CLIPS = ("ddpm", "ddim", "lcm", "heun")  # whose public classes have clip_sample
FEW_STEPS = {"lcm": 4}
MANY_STEPS = 50


class SamplingConfig(BaseModel, frozen=True, extra="forbid"):
    """What a call of `sample` that says nothing does."""

    sampler: str = "ddpm"
    steps: int | None = Field(None, ge=1, description="None: all T for ddpm, 4 for lcm, 50 for the others")
    spacing: Spacing | None = Field(None, description="None: as the sampler's public class has it")
    offset: int = Field(0, ge=0)
    ends_at_data: bool | None = Field(None, description="False: DDIM, PNDM and LCM end at the table's lowest noise")
    clip: float | None = Field(
        1.0, gt=0, description="ddpm, ddim, heun, lcm: x_0 is held to [-clip, clip] at each step"
    )
    eta: float = Field(0.0, ge=0, le=1)
    guidance_scale: float = 1.0
    options: dict[str, dict[str, Any]] = Field({}, description="further options, by sampler")

    @model_validator(mode="after")
    def _known(self) -> SamplingConfig:
        for name in (self.sampler, *self.options):
            if name not in SAMPLERS:
                raise ValueError(f"sampler {name!r} is unknown; choose from: {', '.join(sorted(SAMPLERS))}")
        for name, options in self.options.items():
            known = SAMPLERS[name].options
            for key, value in options.items():
                if key not in known:
                    raise ValueError(f"options.{name}.{key} is no option of that sampler: {', '.join(known)}")
                known[key](f"options.{name}.{key}", value)
        return self

    def of(self, name: str) -> dict[str, Any]:
        """The options of a sampler where a call names none."""
        found: dict[str, Any] = {"offset": self.offset} if self.offset else {}
        if self.spacing is not None:
            found["spacing"] = self.spacing
        if name in ENDS_BY_TABLE and self.ends_at_data is not None:
            found["ends_at_data"] = self.ends_at_data
        if name in CLIPS:
            found["clip"] = self.clip
        if name == "ddim":
            found["eta"] = self.eta
        return {**found, **self.options.get(name, {})}


class DiffusionConfig(BaseModel, frozen=True, extra="forbid"):
    """What the configs of these systems have in common."""

    process: ProcessConfig = GaussianConfig()
    sampling: SamplingConfig = SamplingConfig()
    labels: bool = Field(False, description="condition on the data's labels")
    null_label: bool = Field(True, description="the last row of the class embedding means `no label`")
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of training pictures whose label is hidden")
    uncertainty: bool = Field(False, description="learn how hard each noise level is, and weigh the loss by it")
    guided_channels: int | None = Field(None, ge=1, description="guidance acts on the first so many; null: on all")
    autoencoder: AutoencoderKLConfig | None = Field(
        None, description="null: pixels; else that of components.autoencoder"
    )
    latents: Literal["sample", "mean"] = Field("sample", description="what training sees of a picture's posterior")
    student: students.StudentConfig | None = Field(None, description="distilled for few steps; null: a plain denoiser")
    lora: LoraConfig | None = Field(
        None, description="train small matrices beside a frozen components.network; null: all of it"
    )

    @model_validator(mode="after")
    def _student_fits(self) -> DiffusionConfig:
        if self.lora is not None and self.uncertainty:
            raise ValueError("lora with uncertainty=true: the matrices alone are trained; set uncertainty=false")
        students.agrees(self)
        return self


class Diffusion(System):
    """Base of the systems that denoise. Their config is a DiffusionConfig; `network` is one of their networks."""

    process: Process
    stage_names = ("denoising", "distillation")
    trains_with = ("teacher", "uncertainty")
    weighs = True
    stands_for = {"teacher": "network"}
    takes: ClassVar[tuple[str, ...]] = (
        "label", "steps", "sampler", "sampler_options", "guidance_scale", "image", "mask", "strength", "fit_image",
        "keep_unmasked",
    )  # fmt: skip
    more_checks: ClassVar[
        Mapping[str, Callable[[Any, Request, Any], None]]
    ] = {}  # as CHECKS, of a system's own keywords
    ways: ClassVar[Mapping[str, Callable[[Any, Request], Tensor]]] = {
        "strip": strip
    }  # of painting, by what asks for them
    own: ClassVar[Mapping[str, str]] = {
        "guidance_interval": "two times in [0, 1]: guidance only between them",
        "guidance_rescale": "share in which guided predictions get the deviation of unguided ones (0.7 in the paper)",
        "guided_channels": "guidance acts on the first so many channels: 3 of 4 in DiT's published code",
        "weak": "a model to be guided away from: a smaller one, or an earlier one of the same run (autoguidance)",
        "weak_scale": "how far from it: 1 is off, 2 if left out",
        "attention_scale": "how far away from the network without its middle attention (perturbed-attention guidance): 0 is off",
        **OWN,
        "strip": "number of noise levels: paints a strip, the picture of image= (or of a sample) noised above, denoised below",
    }

    def __init__(self, config: Any, networks: Mapping[str, Any], about: Any) -> None:
        super().__init__(config, networks, about)
        self.process = config.process.build()
        self.attach_lora()

    @classmethod
    def check_component(cls, config: Mapping[str, Any], name: str, other: System) -> None:
        if name == "teacher" or (name == "network" and config.get("lora")):
            students.check_path(config.get("process", {}), other, name)

    @property
    def network(self) -> Any:
        return self.networks["network"]

    @property
    def autoencoder(self) -> Any:
        if "autoencoder" not in self.networks:
            raise InputError(
                "this model paints latents and came without the autoencoder that decodes them; name it: "
                "components={'autoencoder': SOURCE} or --component autoencoder=SOURCE"
            )
        return self.networks["autoencoder"]

    @classmethod
    def network_configs(cls, config: Any) -> dict[str, Any]:
        beside = {"teacher": config.teacher, "autoencoder": config.autoencoder}
        beside["uncertainty"] = UncertaintyConfig() if config.uncertainty else None
        if config.lora is not None:
            beside["lora"] = adapter_of(config.network, config.lora)
        return {"network": config.network, **{name: part for name, part in beside.items() if part is not None}}

    # ------------------------------------------------------------------------------------------- what a subclass may say

    def inward(self, pictures: Tensor) -> Tensor:
        """What is denoised, of pictures in [-1, 1]: the pictures, or their latents."""
        return pictures if self.config.autoencoder is None else self.autoencoder.encode(pictures)

    def outward(self, x: Tensor) -> Tensor:
        """Pictures in about [-1, 1] of what was denoised."""
        return x if self.config.autoencoder is None else self.autoencoder.decode(x)

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """(c, h, w) of what is denoised for pictures of (height, width)."""
        codec = self.config.autoencoder
        return (self.config.network.in_channels, *size) if codec is None else codec.latent_shape(size)

    def seen(self, batch: Batch, draw: Draw) -> Tensor:
        """What is denoised, of a batch of training."""
        if self.config.autoencoder is None:
            return batch.image
        return latents.of_batch(self.autoencoder, batch, draw, self.config.latents == "sample")

    def compute(self, x: Tensor, time: Tensor, beside: Tensor | None = None, **conditions: Tensor) -> Tensor:
        """The network's raw prediction for x (n, c, h, w) and the numbers (n,) that it is fed for the time. beside: channels
        that the network is given with x and that are no part of the diffusion, neither noised nor scaled."""
        seen = x if beside is None else torch.cat([x, beside.to(x)], dim=1)
        raw = self.network(seen.to(next(self.network.parameters()).dtype), time, **conditions)
        return raw if self.process.config.learns_variance else raw[:, : x.shape[1]]  # SiT has channels that say nothing

    def conditions(self, given: Given) -> dict[str, Tensor]:
        """What the network is told beside x and time, by the names of its keywords; each (n, ...).

        given: a batch of training, or a call of `sample`; either has what a system may want to tell (labels, words).
        """
        if not self.config.labels:
            return {}
        if given.label is None:
            raise InputError("this model is conditioned on labels, but the data have none")
        return {"label": given.label.to(self.device)}

    def null(self, conditions: Conditions, given: Given) -> dict[str, Tensor]:
        """The same conditions for the unconditional branch of guidance."""
        return {name: torch.full_like(value, self.label_count()) for name, value in conditions.items()}

    def hidden(self, conditions: dict[str, Tensor], given: Batch, draw: Draw) -> dict[str, Tensor]:
        """Conditions of a training step, hidden now and then so that guidance has its other branch."""
        if not conditions or not self.config.null_label:
            return conditions
        hidden = draw.uniform("label_dropout", (len(conditions["label"]),)) < self.config.label_dropout
        return {"label": torch.where(hidden, self.label_count(), conditions["label"])}

    # -------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        if self.config.student is not None:
            return [students.stage(self)]
        names: tuple[str, ...] = ("lora",) if self.config.lora else ("network", "uncertainty")
        trained = {name: self.networks[name] for name in names if name in self.networks}
        objective = Objective("denoising", tuple(trained), self.loss)
        return [Stage("denoising", trained, [objective], names[:1], self.held_out)]

    def loss(self, batch: Batch, draw: Draw) -> Terms:
        """One step of training: algorithm 1, with conditions hidden now and then."""
        conditions = self.hidden(self.conditions(batch), batch, draw)
        x0, uncertainty = self.seen(batch, draw), self.networks.get("uncertainty")
        terms = denoising(self.compute, self.process, x0, conditions, draw, uncertainty=uncertainty)
        return mean_terms(terms, batch.extra.get("weight"))

    def held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """The same loss on pictures never trained on, by time."""
        conditions, x0 = self.conditions(batch), self.seen(batch, draw)
        return held_out_bins(lambda part: denoising(self.compute, self.process, x0, conditions, draw, part))

    def precomputed(self) -> Mapping[str, Precomputed]:
        """The moments of latents, which a frozen autoencoder need make of each picture only once."""
        if self.config.autoencoder is None:
            return {}
        return {latents.MOMENTS: latents.precomputed(self.autoencoder, self.about.size)}

    # -------------------------------------------------------------------------------------------------------- how it paints

    def paint(self, request: Request) -> Tensor:
        way = next((way for name, way in self.ways.items() if name in request.inputs), None)
        return self.outward(self.walked(request, request.source())) if way is None else way(self, request)

    def walked(self, request: Request, noise: Noise) -> Tensor:
        """What was denoised at the end of a call: from pure noise, or from the picture of `image`."""
        grid, denoise = self.grid(request), self.asked(request)
        eps = noise("noise", (len(request), *self.shape(request.size)))
        if "image" in request.inputs and "strip" not in request.inputs and not self.begins_at_noise(request):
            return self._from_picture(denoise, eps, grid, request, noise)
        x = eps * self.process.start_scale(grid[0], self.spaced(request))
        return self.walk(denoise, x, grid, request, noise)

    def _from_picture(self, denoise: Denoise, eps: Tensor, grid: list[Point], request: Request, noise: Noise) -> Tensor:
        """The picture of `image` noised as far as `strength` says, and walked back; outside a mask it stays what it is."""
        source = self.source(request)
        run = int(request.steps * self.strength(request) + 1e-9)
        if run == 0:
            return source
        grid = grid[-run - 1 :]
        if "mask" in request.inputs and not self.told_mask:
            denoise = known_outside(denoise, source, self.mask(request, self.shape(request.size)[-2:]))
        if "inversion" in request.inputs:
            return self.walk(denoise, inverted(self, request, source, grid), grid, unclipped(request), noise)
        return self.walk(denoise, noised(source, eps, level_of(grid[0])), grid, request, noise)

    def walk(self, denoise: Denoise, x: Tensor, grid: list[Point], request: Request, noise: Noise) -> Tensor:
        """The sampler of a request, from x at the start of `grid` to its end."""
        sampler = SAMPLERS[request.sampler]
        options = {name: value for name, value in request.sampler_options.items() if name not in ON_GRID}
        if sampler.asks_process:
            options["process"] = self.process
        return sampler.run(denoise, x, grid, noise=noise, callback=request.callback, **options)

    def spaced(self, request: Request) -> Spaced:
        """How the points of a request's grid lie."""
        sampler = SAMPLERS[request.sampler]
        options = {name: value for name, value in request.sampler_options.items() if name in ON_GRID}
        return Spaced(**{"rule": sampler.rule, "ends_at_data": sampler.ends_at_data, **options})

    def grid(self, request: Request) -> list[Point]:
        how = self.spaced(request)
        written = how.times is not None or how.sigmas is not None
        return given(self.process, how) if written else self.process.grid(request.steps, how)

    def asked(self, request: Request) -> Denoise:
        """The denoiser of a request."""
        conditions = self.conditions(request)
        if self.config.student is not None:
            return students.asked(self, request, conditions)
        return denoiser(self.compute, self.process, conditions, self.guide(request, conditions))

    def guide(self, request: Request, conditions: Conditions) -> Guide:
        """How predictions are guided in a call; what is off costs nothing."""
        scale, inputs = request.guidance_scale, request.inputs
        if scale == 1 and not inputs.keys() & {"weak", "attention_scale"}:
            return unguided
        return self._guided(scale, self.null(conditions, request), inputs)

    def _guided(self, scale: float, null: Conditions, inputs: Mapping[str, Any]) -> Guide:
        channels = inputs.get("guided_channels", self.config.guided_channels)
        guide = rescaled(null, scale, inputs.get("guidance_rescale", 0.0), channels) if scale != 1 else unguided
        if scale != 1 and "guidance_interval" in inputs:
            guide = within(guide, *sorted(inputs["guidance_interval"]))
        if "weak" in inputs:
            guide = autoguided(inputs["weak"].compute, inputs.get("weak_scale", 2.0), guide)
        layers = middle_attention(self.network)
        return perturbed(lambda: passing(layers), inputs.get("attention_scale", 0.0), guide)

    def strength(self, request: Request) -> float:
        """How much of the picture of `image` is painted anew, where a call says nothing: all."""
        return float(request.inputs.get("strength", 1.0))

    def begins_at_noise(self, request: Request) -> bool:
        """Whether a walk begins at pure noise although there is a picture: where the network is told what to keep of it."""
        return False

    def of_region(
        self, request: Request, whole: tuple[int, int], box: tuple[int, int, int, int], size: tuple[int, int]
    ) -> dict[str, Any]:  # fmt: skip
        """What else of a call lies on the picture of `image`, of (height, width) `whole`: cut to (top, left, bottom, right) and
        brought to `size`, for a region that is painted by itself."""
        return {}

    @property
    def told_mask(self) -> bool:
        """Whether the network itself is told a mask, so that nothing need be held outside it."""
        return False

    def source(self, request: Request) -> Tensor:
        """The picture of `image`, as it is denoised, for all pictures of the part."""
        picture = to_inside(fitted("image", request.inputs["image"], request.size)).to(request.device)
        return self.inward(picture).expand(len(request), -1, -1, -1)

    def mask(self, request: Request, size: tuple[int, ...]) -> Tensor:
        """True where x is painted anew; of latents those of which any pixel is."""
        mask = read_mask(request.inputs["mask"], request.size).to(request.device)
        return torch.nn.functional.adaptive_max_pool2d(mask.float(), list(size)) > 0

    @property
    def tells_bits(self) -> bool:
        return told(self)

    def bits(
        self, image: Tensor, label: Tensor | None, seed: int, count: int | None = None, progress: Any = None
    ) -> tuple[Any, int]:
        """Likelihood of pictures in [0, 1], in bits a dimension, and at how many places it was taken (likelihoods.py)."""
        return bits(self, image, label, seed, count, progress)

    def latents_of(self, x: Tensor) -> Tensor:
        return super().latents_of(x) if self.config.autoencoder is None else self.autoencoder.encode(x)

    def pictures_of(self, latent: Tensor) -> Tensor:
        if self.config.autoencoder is None:
            return super().pictures_of(latent)
        latents.check_decodable(self.config.autoencoder, latent, self.title)
        return self.autoencoder.decode(latent)

    # ---------------------------------------------------------------------------------------------------- what can be asked

    def label_count(self) -> int:
        rows = self.config.network.classes
        return rows - 1 if rows and self.config.null_label else rows

    def factor(self) -> int:
        codec = self.config.autoencoder
        return self.config.network.factor * (1 if codec is None else codec.factor)

    def largest(self) -> int | None:
        """The longest side that the network has positions for, in pixels; None where any size has them."""
        most: int | None = getattr(self.config.network, "largest", None)
        return None if most is None else self.factor() // self.config.network.factor * most

    def samplers(self) -> tuple[str, ...]:
        """Those that the process can do: a path that begins at pure noise has no sigma / alpha there."""
        pure = self.process.point(1.0).alpha <= 0
        return tuple(name for name, sampler in SAMPLERS.items() if not (pure and sampler.needs_signal))

    def defaults(self) -> Defaults:
        how, total = self.config.sampling, getattr(self.process.config, "timesteps", MANY_STEPS)
        few = {name: n for name, n in FEW_STEPS.items() if name != how.sampler}
        steps = {name: few.get(name) or min(how.steps or FEW_STEPS.get(name, MANY_STEPS), total) for name in SAMPLERS}
        options = {name: how.of(name) for name in SAMPLERS}
        kind = getattr(self.process.config, "variance", "fixed-small")
        options["ddpm"]["variance"] = "learned" if kind.startswith("learned") else kind
        return Defaults(how.sampler, {**steps, "ddpm": how.steps or total}, how.guidance_scale, options)

    def check(self, request: Request) -> None:
        self._check_options(request)
        if (most := self.largest()) is not None and max(request.size) > most:
            raise InputError(f"size={request.size}: this model has positions for up to {most} pixels a side")
        if self.config.autoencoder is not None:
            _ = self.autoencoder  # InputError where a file did not hold one
        if self.config.student is not None:
            students.check(self, request)
        elif request.guidance_scale != 1:
            self.check_guidance(request)
        for name, check in {**CHECKS, **self.more_checks}.items():
            if name in request.inputs:
                check(self, request, request.inputs[name])

    def _check_options(self, request: Request) -> None:
        options, table = request.sampler_options, isinstance(self.process, GaussianDiffusion)
        if table and request.steps > self.process.config.timesteps:
            total = self.process.config.timesteps
            raise InputError(f"steps={request.steps}: this model was trained with {total}; use 1 to that many")
        if options.get("variance") == "learned" and not self.process.config.learns_variance:
            raise InputError("variance='learned': this network predicts none; use fixed-small or fixed-large")
        if options.get("predicts") == "eps" and options.get("ends_at_data", True):
            raise InputError("predicts='eps' cannot end where no noise is left; add ends_at_data=False")
        no_flow = () if self.process.config.kind == "flow" else FLOW
        for name in options.keys() & {*no_flow, *(() if table else ("offset",))}:
            raise InputError(f"{name}={options[name]!r} has no effect on the process of this model")
        self.grid(request)

    def check_guidance(self, request: Request) -> None:
        """InputError where there is nothing to guide by; a warning where the other branch was never trained."""
        if request.label is None or not self.config.null_label:
            why = "has no labels" if request.label is None else "was trained without a null label"
            raise InputError(
                f"guidance_scale={request.guidance_scale:g}: this model {why}, so there is nothing to guide; use 1"
            )
        if self.config.label_dropout == 0:
            warnings.warn(
                f"guidance_scale={request.guidance_scale:g}: this model was trained with label_dropout=0, so its "
                f"unconditional branch knows nothing; expect poor pictures",
                stacklevel=4,
            )


# ------------------------------------------------------------------------------------------------- checks of what is given


def _unit(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _guides(name: str, request: Request) -> None:
    if request.guidance_scale == 1:
        raise InputError(f"{name}= given with guidance_scale=1, which is off; give a scale")


def _check_interval(system: Diffusion, request: Request, value: Any) -> None:
    _guides("guidance_interval", request)
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(_unit(v) for v in value):
        raise InputError(f"guidance_interval={value!r}: two times from 0 (data) to 1 (noise) are needed")


def _check_rescale(system: Diffusion, request: Request, value: Any) -> None:
    _guides("guidance_rescale", request)
    if not _unit(value):
        raise InputError(f"guidance_rescale={value!r}: a number from 0 to 1 is needed")


def _check_channels(system: Diffusion, request: Request, value: Any) -> None:
    _guides("guided_channels", request)
    count = system.config.network.in_channels
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= count:
        raise InputError(
            f"guided_channels={value!r}: a whole number from 1 to {count} is needed, as many as are denoised"
        )


def _check_weak(system: Diffusion, request: Request, value: Any) -> None:
    if not isinstance(value, type(system)):
        raise InputError(f"weak={value!r}: a loaded {system.title} is needed, as hwaga.load gives it")


def _check_weak_scale(system: Diffusion, request: Request, value: Any) -> None:
    if "weak" not in request.inputs:
        raise InputError("weak_scale= given without weak=; name the model to be guided away from")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"weak_scale={value!r}: a number is needed")


def _check_attention_scale(system: Diffusion, request: Request, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"attention_scale={value!r}: a number is needed; 0 is off")
    if not middle_attention(system.network):
        raise InputError("attention_scale= given, but this network has no attention")


def _check_strength(system: Diffusion, request: Request, value: Any) -> None:
    if not _unit(value):
        raise InputError(f"strength={value!r}: a number from 0 (the input back) to 1 is needed")
    if "image" not in request.inputs:
        raise InputError("strength= given without image=; it says how much of the image is painted anew")


def _check_image(system: Diffusion, request: Request, value: Any) -> None:
    if isinstance(value, list | tuple):
        raise InputError(f"image=[...]: {system.title} starts from one picture; give one")
    fitted("image", value, request.size)


def _check_mask(system: Diffusion, request: Request, value: Any) -> None:
    read_mask(value, request.size)
    if "image" in request.inputs:
        check_mask(value, request.inputs["image"], request.size)


def _check_strip(system: Diffusion, request: Request, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
        raise InputError(f"strip={value!r}: a number of noise levels from 1 to 100 is needed")
    for name in ("strength", "mask"):
        if name in request.inputs:
            raise InputError(f"{name}= given with strip=, which noises and denoises the whole picture")


CHECKS: dict[str, Callable[[Diffusion, Request, Any], None]] = {
    "guidance_interval": _check_interval, "guidance_rescale": _check_rescale, "guided_channels": _check_channels,
    "weak": _check_weak, "weak_scale": _check_weak_scale, "attention_scale": _check_attention_scale,
    "strength": _check_strength, "image": _check_image, "mask": _check_mask, "strip": _check_strip,
    "inversion": check_inversion, "inversion_label": check_inversion_label,
}  # fmt: skip
"""A check of each input that a call may have: InputError in one sentence."""
