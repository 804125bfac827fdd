"""Students: models that paint in one to eight steps, distilled from a trained one. What every system that denoises shares.

A model's config with a `student` section has another stage of training and is asked in another way; it is loaded, sampled, edited
and measured by the same calls.

    latent-consistency   begins as the teacher, which is a frozen component; told the guidance scale    objectives/consistency.py
                         with `model.lora` small matrices alone learn, and their base is the teacher (LCM-LoRA, Luo et al. 2023b)
    consistency-tuning   begins as a trained diffusion or flow; needs no teacher                       objectives/consistency.py
    mean-flow            begins as a trained flow; told how far a step leads                           objectives/meanflow.py
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter, model_validator
from torch import Tensor, nn

from ..errors import InputError
from ..interfaces import Batch, Denoise, Draw, Objective, Point, Prediction, Stage, Terms
from ..objectives.consistency import Target, consistency_tuning, latent_consistency
from ..objectives.denoising import mean_terms
from ..objectives.meanflow import mean_flow
from ..processes import KIND, ProcessConfig
from ..processes.flow import RectifiedFlow
from ..processes.times import TimesConfig
from ..samplers.denoiser import Conditions, denoiser, unguided

if TYPE_CHECKING:
    from .base import Request, System
    from .diffusion import Diffusion

GUIDANCE_WIDTH = 256  # of the sinusoid of a guidance scale, as public latent consistency models have it


class LatentConsistencyConfig(BaseModel, frozen=True, extra="forbid"):
    """Luo et al. 2023, of latents or pixels."""

    kind: Literal["latent-consistency"] = "latent-consistency"
    places: int = Field(50, ge=1, description="of the grid on which neighbours are compared")
    scales: tuple[float, float] = Field((3.0, 15.0), description="guidance scales that the student learns, from and to")
    target_decay: float = Field(0.95, ge=0, lt=1, description="of the moving average that the student is compared with")
    huber: float = Field(1e-3, gt=0)
    timestep_scaling: float | None = Field(10.0, gt=0, description="of the boundary condition; null: kept by x_0 alone")

    @model_validator(mode="after")
    def _rises(self) -> LatentConsistencyConfig:
        if not 0 <= self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales={list(self.scales)}: two numbers that rise, from 0 on, are needed")
        return self


class ConsistencyTuningConfig(BaseModel, frozen=True, extra="forbid"):
    """Geng et al. 2024."""

    kind: Literal["consistency-tuning"] = "consistency-tuning"
    every: int = Field(1000, ge=1, description="steps after which the neighbour comes nearer")
    doublings: int = Field(8, ge=0, description="how often it does")
    base: float = Field(2.0, gt=1, description="by which factor")
    huber: float = Field(0.06, gt=0)


class MeanFlowConfig(BaseModel, frozen=True, extra="forbid"):
    """Geng et al. 2025; the defaults are those of its table 4 for ImageNet, without guidance."""

    kind: Literal["mean-flow"] = "mean-flow"
    apart: float = Field(0.25, ge=0, le=1, description="share of training with two different times")
    times: TimesConfig = TimesConfig(kind="logit-normal", mean=-0.4, spread=1.0)
    omega: float = Field(1.0, gt=0, description="weight of the plain velocity in the guided one")
    kappa: float = Field(0.0, ge=0, lt=1, description="weight of the network's own conditional velocity in it")
    within: tuple[float, float] = Field((0.0, 1.0), description="times at which the velocity is guided")
    power: float = Field(1.0, ge=0, description="of the adaptive weight")
    least: float = Field(1e-3, gt=0)


def _kind(value: Any) -> str:
    return KIND + str(value.get("kind") if isinstance(value, dict) else value.kind)


StudentConfig = Annotated[
    Annotated[LatentConsistencyConfig, Tag(KIND + "latent-consistency")]
    | Annotated[ConsistencyTuningConfig, Tag(KIND + "consistency-tuning")]
    | Annotated[MeanFlowConfig, Tag(KIND + "mean-flow")],
    Discriminator(_kind),
]


def completed(config: Mapping[str, Any], guided: bool | None = None) -> dict[str, Any]:
    """A recipe's `model:` section with what a student's network and sampling follow from its kind. guided: whether its teacher
    can be guided; None: where it has labels and a null label."""
    student = config.get("student")
    if not isinstance(student, Mapping):
        return dict(config)
    student, network = dict(student), dict(config.get("network", {}))
    sampling = dict(config.get("sampling", {}))
    process = config.get("process", {}).get("kind", "gaussian")
    on_table = process == "gaussian"
    if student.get("kind") == "mean-flow":
        network.setdefault("span", True)
        return {**config, "network": network}
    scaling = None
    if student.get("kind") == "latent-consistency":
        if not on_table:
            student.setdefault("timestep_scaling", None)
        scaling = student.get("timestep_scaling", 10.0)
        alone = config.get("lora") is None  # matrices beside a frozen network: it cannot be told more than it was
        if alone and (guided or guided is None and config.get("labels") and config.get("null_label", True)):
            network.setdefault("guidance_width", GUIDANCE_WIDTH)
    options: dict[str, Any] = {
        "timestep_scaling": scaling,
        **({"student_steps": student["places"]} if "places" in student else {}),
    }
    if process not in ("gaussian", "flow"):  # grids in continuous time end near the data by default: a step lost
        options["spacing"] = "trailing"
    given = sampling.get("options", {})
    sampling["options"] = {**given, "lcm": {**options, **given.get("lcm", {})}}
    return {**config, "student": student, "network": network, "sampling": sampling}


def agrees(config: Any) -> None:
    """ValueError for a config whose student does not go with its process."""
    student, process = config.student, config.process
    if isinstance(student, MeanFlowConfig) and config.lora is not None:
        raise ValueError(
            "student.kind=mean-flow with lora: it is told how far a step leads, which a frozen network is not"
        )
    if isinstance(student, MeanFlowConfig) and (process.kind != "flow" or process.predicts != "velocity"):
        raise ValueError(
            f"student.kind=mean-flow with process.kind={process.kind}: a flow that predicts velocity is needed"
        )
    if isinstance(student, LatentConsistencyConfig) and getattr(process, "timesteps", student.places) % student.places:
        raise ValueError(f"student.places={student.places} does not divide process.timesteps={process.timesteps}")


PATH = (
    "kind", "timesteps", "schedule", "beta_start", "beta_end", "predicts", "zero_terminal_snr", "beta_min", "beta_max",
    "sigma_min", "sigma_max", "fed", "data_deviation",
)  # fmt: skip
"""Fields of a process that say what a network's answer means: a student's are its teacher's."""


def check_path(process: Mapping[str, Any], other: System, name: str = "teacher") -> None:
    """InputError where a model, a recipe's component `name`, denoises on another path than the recipe's."""
    if getattr(other.config, "process", None) is None:
        raise InputError(f"components.{name}: {other.title} denoises nothing; a diffusion or a flow is needed")
    mine = TypeAdapter(ProcessConfig).validate_python(process).model_dump()
    theirs = other.config.process.model_dump()
    for key in PATH:
        if mine.get(key) != theirs.get(key):
            raise InputError(
                f"components.{name}: its process has {key}={theirs.get(key)!r}, the recipe's {mine.get(key)!r}; set "
                f"model.process.{key} to that of the {name}"
            )


# ------------------------------------------------------------------------------------------------------------ how they learn


def stage(system: Diffusion) -> Stage:
    """What is trained in place of denoising."""
    student, adapter = system.config.student, system.networks.get("lora")
    networks = {"network": system.network} if adapter is None else {"lora": adapter}
    if isinstance(student, LatentConsistencyConfig) and adapter is None:
        if "teacher" not in system.networks:
            raise InputError(
                "model.student.kind=latent-consistency learns from a teacher: name it in components.teacher"
            )
        target = Target(system.network, student.target_decay)
        loss: Callable[[Batch, Draw], Terms] = lambda batch, draw: _latent_consistency(  # noqa: E731
            system, batch, draw, _asking(target.at(draw.step))
        )
        held_out = lambda batch, draw: _latent_consistency(system, batch, draw, system.compute)  # noqa: E731
        networks["target"] = target.network
    elif isinstance(student, LatentConsistencyConfig):
        loss = held_out = lambda batch, draw: _latent_consistency(system, batch, draw, system.compute)  # noqa: E731
    else:
        one = _mean_flow if isinstance(student, MeanFlowConfig) else _consistency_tuning
        loss = held_out = lambda batch, draw: one(system, batch, draw)  # noqa: E731
    learns = tuple(networks)[:1]
    objective = Objective("distillation", learns, lambda batch, draw: mean_terms(loss(batch, draw)))
    told = lambda batch, draw: {"loss": next(iter(held_out(batch, draw).values()))}  # noqa: E731
    return Stage("distillation", networks, [objective], learns, told)


def _asking(network: nn.Module) -> Callable[..., Tensor]:
    """The network as an objective calls it: fed in its own dtype."""
    dtype = next(network.parameters()).dtype
    return lambda x, time, **conditions: network(x.to(dtype), time, **conditions)


def _base(system: Diffusion) -> Callable[..., Tensor]:
    """The network without the matrices that are trained beside it, as an objective calls it. Conditions are copied, as layers keep
    what they made of one tensor."""
    adapter: Any = system.networks["lora"]

    def ask(x: Tensor, time: Tensor, **conditions: Tensor) -> Tensor:
        scale, adapter.scale = adapter.scale, 0.0
        try:
            return system.compute(x, time, **{name: value.clone() for name, value in conditions.items()})
        finally:
            adapter.scale = scale

    return ask


def _latent_consistency(system: Diffusion, batch: Batch, draw: Draw, target: Callable[..., Tensor]) -> Terms:
    student, conditions = system.config.student, system.conditions(batch)
    told, beside = bool(system.config.network.guidance_width), "lora" in system.networks
    guided = told or beside and bool(conditions) and system.config.null_label
    return latent_consistency(
        system.compute, target, _base(system) if beside else _asking(system.networks["teacher"]), system.process,
        system.seen(batch, draw), conditions, system.null(conditions, batch) if guided else None, draw, told=told,
        places=student.places, scales=student.scales, huber=student.huber, scaling=student.timestep_scaling,
        clip=system.config.sampling.clip,
    )  # fmt: skip


def _consistency_tuning(system: Diffusion, batch: Batch, draw: Draw) -> Terms:
    student = system.config.student
    conditions = system.hidden(system.conditions(batch), batch, draw)
    doublings = min(draw.step // student.every, student.doublings)
    return consistency_tuning(
        system.compute, system.process, system.seen(batch, draw), conditions, draw, doublings=doublings, base=student.base,
        huber=student.huber,
    )  # fmt: skip


def _mean_flow(system: Diffusion, batch: Batch, draw: Draw) -> Terms:
    student, process, told = system.config.student, system.process, system.conditions(batch)
    assert isinstance(process, RectifiedFlow)
    conditions, null, hidden = system.hidden(told, batch, draw), None, None
    if told and system.config.null_label:
        null = system.null(told, batch)
        hidden = torch.stack([(conditions[name] != told[name]).reshape(len(batch), -1).any(1) for name in told]).any(0)
    return mean_flow(
        system.compute, process, system.seen(batch, draw), conditions, null, draw, hidden=hidden,
        **student.model_dump(exclude={"kind", "times"}), times=student.times,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ how they paint


def asked(system: Diffusion, request: Request, conditions: Conditions) -> Denoise:
    """The denoiser of a request: told the guidance scale, or how far its steps lead, in place of guidance."""
    student = system.config.student
    if isinstance(student, LatentConsistencyConfig) and system.config.network.guidance_width:
        scale = torch.full((len(request),), request.guidance_scale, device=request.device)
        return denoiser(system.compute, system.process, {**conditions, "guidance": scale}, unguided)
    if not isinstance(student, MeanFlowConfig):
        return denoiser(system.compute, system.process, conditions, system.guide(request, conditions))

    def denoise(x: Tensor, at: Point, to: Point) -> Prediction:
        span = torch.full((x.shape[0],), at.fed - to.fed, dtype=torch.float32, device=x.device)
        return denoiser(system.compute, system.process, {**conditions, "span": span}, unguided)(x, at, to)

    return denoise


def check(system: Diffusion, request: Request) -> None:
    """InputError for what a student cannot be asked; a warning for a scale that it never learned."""
    student, scale = system.config.student, request.guidance_scale
    if "inversion" in request.inputs:
        raise InputError(
            "inversion= given to a student of few steps, whose steps are not those of an ODE; ask its teacher"
        )
    if isinstance(student, ConsistencyTuningConfig):
        if scale != 1:
            system.check_guidance(request)
        return
    for name in ("guidance_interval", "guidance_rescale", "guided_channels", "weak", "weak_scale", "attention_scale"):
        if name in request.inputs:
            raise InputError(f"{name}= given to a student that has guidance inside itself; leave it out")
    if not system.config.network.guidance_width:
        if scale != 1:
            raise InputError(f"guidance_scale={scale:g}: this student was distilled with its guidance inside; use 1")
    elif not student.scales[0] <= scale <= student.scales[1]:
        warnings.warn(
            f"guidance_scale={scale:g}: this student learned scales from {student.scales[0]:g} to {student.scales[1]:g}",
            stacklevel=4,
        )
