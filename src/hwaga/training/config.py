"""The section `training:` of a recipe: what is trained how long, how fast, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]

WHOLE_RUN = ("start_from", "keep_checkpoints", "device", "dtype", "threads", "tensorboard", "timeout", "shard")
"""Keys that hold for a whole run: no stage has its own."""

MAY_CHANGE = (
    "steps", "checkpoint_every", "keep_checkpoints", "sample_every", "preview", "evaluate_every", "held_out_every",
    "log_every", "tensorboard", "device", "threads", "timeout",
)  # fmt: skip
"""Keys that a resume may change: none of them changes what a step computes (device and threads: to rounding)."""


class OptimizerConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW (Loshchilov and Hutter 2019). Weight decay acts on matrices and kernels, not on biases, gains and norms."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[Float, Field(ge=0, lt=1)], Annotated[Float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Float = Field(0.0, ge=0)
    eps: Float = Field(1e-8, gt=0)


class EmaConfig(BaseModel, frozen=True, extra="forbid"):
    """Moving averages of the weights; half-lives count pictures seen, so the batch size does not change them."""

    half_lives: tuple[Annotated[Float, Field(gt=0)], ...] = Field((20_000.0,), description="empty: no average is kept")
    ramp: Float | None = Field(
        0.05, gt=0, description="a half-life is at most this share of the pictures seen so far; null: no warm-up"
    )
    model: Float | Literal["raw"] | None = Field(
        None, description="the half-life whose weights are the model; raw: the trained weights; null: the first one"
    )

    @model_validator(mode="after")
    def _model_is_kept(self) -> EmaConfig:
        if len(set(self.half_lives)) != len(self.half_lives):
            raise ValueError(f"half_lives={list(self.half_lives)} names one twice")
        if isinstance(self.model, float) and self.model not in self.half_lives:
            raise ValueError(f"model={self.model:g} is not among half_lives={[*self.half_lives]}; name one, or raw")
        return self

    @property
    def chosen(self) -> float | None:
        """The half-life whose weights are the model; None: the trained weights themselves."""
        if self.model == "raw" or not self.half_lives:
            return None
        return self.half_lives[0] if self.model is None else float(self.model)


class TrainingConfig(BaseModel, frozen=True, extra="forbid"):
    """`training:` of a recipe. A key that is no field and holds a mapping is a stage's own values:
    `training.prior.steps`.

    A step is one move of the optimizers, whatever the number of processes and of accumulated parts; `batch_size` counts
    the pictures of a step over all of them.
    """

    steps: Int = Field(1000, ge=1, le=1_000_000_000)
    batch_size: Int = Field(64, ge=1, le=1_000_000)
    learning_rate: Float = Field(1e-3, gt=0, le=10)
    optimizer: OptimizerConfig = OptimizerConfig()
    warmup: Int = Field(0, ge=0, description="steps in which the rate rises from 0 in a straight line")
    schedule: Literal["constant", "cosine", "linear", "inverse-sqrt"] = "constant"
    final_rate: Float = Field(0.0, ge=0, le=1, description="where cosine and linear end, as a share of learning_rate")
    clip_norm: Float | None = Field(None, gt=0, description="bound on the norm of an objective's gradient")
    accumulation: Int = Field(1, ge=1, description="parts that a batch is worked off in; the result is the same")
    gradient_checkpointing: bool = False
    ema: EmaConfig = EmaConfig()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Int = Field(0, ge=0, le=2**63 - 1)
    start_from: str | None = Field(None, description="weights to fine-tune: whatever `load` takes")

    checkpoint_every: Int = Field(500, ge=1)
    keep_checkpoints: Int = Field(2, ge=1)
    log_every: Int = Field(10, ge=1)
    sample_every: Int | None = Field(None, ge=0, description="null: with each checkpoint; 0: never")
    preview: Int = Field(16, ge=1, le=256, description="pictures on a sample grid")
    held_out_every: Int | None = Field(None, ge=0, description="null: with each checkpoint; 0: never")
    held_out_pictures: Int = Field(512, ge=1)
    evaluate_every: Int = Field(0, ge=0, description="scores of `evaluation:` during training; 0: never")
    best: str | None = Field(
        None,
        description="what `best/` is chosen by, the lower the better: loss, fid, ...; null: the scores' first, or loss",
    )
    tensorboard: bool = False

    device: str = "auto"
    threads: Int | None = Field(None, ge=1, le=1024)
    timeout: Float = Field(1800.0, gt=0, description="seconds that a process waits for the others")
    shard: bool = Field(False, description="several processes: parameters and optimizers are shared out (FSDP)")

    stages: dict[str, dict[str, Any]] = Field(default_factory=dict, description="not written: see above")

    @model_validator(mode="before")
    @classmethod
    def _stages_are_gathered(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        own = {k: v for k, v in value.items() if k in cls.model_fields and k != "stages"}
        others = {k: v for k, v in value.items() if k not in own}
        stages = {k: dict(v) for k, v in others.items() if isinstance(v, Mapping)}
        unknown = {k: v for k, v in others.items() if k not in stages}  # left in place: refused as unknown keys
        return {**own, **unknown, "stages": stages} if stages else {**own, **unknown}

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        stages = values.pop("stages", {})
        return {**values, **stages}

    def for_stage(self, name: str) -> TrainingConfig:
        """The values that hold in one stage: its own before the common ones. ValidationError if they are not valid."""
        if not self.stages:
            return self
        values = self.model_dump(mode="json")
        for stage in self.stages:
            values.pop(stage)
        return TrainingConfig.model_validate(merged(values, self.stages.get(name, {})))

    def every(self, what: Literal["sample", "held_out"]) -> int:
        """Steps between two sample grids, or two held-out losses; 0: never."""
        value: int | None = getattr(self, f"{what}_every")
        return self.checkpoint_every if value is None else value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
