"""The section `evaluation:` of a recipe: what is measured while a model trains, and afterwards."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, Field, field_validator

METRICS = (
    "fid", "kid", "prdc", "inception_score", "sharpness", "memorisation", "bits", "codes", "retrieval", "clip_score",
    "control",
)  # fmt: skip
"""What `evaluate` can measure; `fid` brings its floor and the ratio of both where training pictures are given."""


class EvaluationConfig(BaseModel, frozen=True, extra="forbid"):
    """How many pictures are painted, how, and what is asked of them."""

    n: int = Field(default=500, ge=2, le=1_000_000)  # 500 for quick work, 2,000 for what is published
    metrics: tuple[str, ...] = Field(default=("fid", "kid"), min_length=1)  # the first one leads
    split: str = "held-out"  # of the data: what is compared with
    features: str | None = None  # None: the shipped ones, made for emoji
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    every: int | None = Field(
        default=None, ge=1
    )  # steps of training between two evaluations; None: as `training:` says
    sampler: str | None = None  # these three as in `sample`; None: the model's own
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"metric {name!r} is unknown; choose from: {', '.join(METRICS)}{hint}")
        return value
