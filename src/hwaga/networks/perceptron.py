"""A perceptron for points: what the two-dimensional laboratory learns with (hwaga lab).

    h = linear([x, sin(pi x / 2), cos(pi x / 2), sin(pi x), ...])    `waves` octaves, so that fine structure is seen
    h = h + linear(silu(linear(norm(h)) + e))     e: the time, `depth` times
    out = linear(norm(h))

With `span` it is told a second number, how far the step from here leads (mean flows: objectives/meanflow.py), which begins
without effect.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import silu

from ..layers.embeddings import TimeEmbedding, sinusoid
from ..layers.initialise import initialise


class PerceptronConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a perceptron."""

    dimensions: int = Field(2, ge=1, description="of a point")
    width: int = Field(64, ge=2)
    waves: int = Field(3, ge=0, description="octaves of sines and cosines of the point itself")
    depth: int = Field(3, ge=1, description="residual blocks")
    frequencies: int = Field(32, ge=1, description="of the time's sines and cosines")
    time_scale: float = Field(100.0, description="factor of the time that the grid feeds")
    span: bool = Field(False, description="told how far the step leads")

    def build(self) -> Perceptron:
        return Perceptron(self)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "n d"], told: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return h + self.out(silu(self.into(self.norm(h)) + told))


class Perceptron(nn.Module):
    """See the top of this file."""

    def __init__(self, config: PerceptronConfig) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Linear(config.dimensions * (1 + 2 * config.waves), config.width)
        self.time = TimeEmbedding(2 * config.frequencies, config.width)
        self.span = TimeEmbedding(2 * config.frequencies, config.width) if config.span else None
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.leave = nn.Linear(config.width, config.dimensions)

    def initialise(self, generator: torch.Generator) -> None:
        """Uniform by fan in and out; what ends the network, and the span's embedding, 0."""
        zero: list[nn.Module] = [self.leave]
        initialise(self, generator, zero=zero if self.span is None else [*zero, self.span.linear_2])

    def forward(
        self, x: Float[Tensor, "n d"], time: Float[Tensor, " n"], span: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n d"]:
        """The raw prediction at x. `time` is what the grid feeds, `span` time here less time where the step leads;
        ValueError where the network has no use for one, or needs one."""
        if (span is None) != (self.span is None):
            raise ValueError(f"span={'given' if span is not None else None} with span={self.config.span} in the config")
        told = self.time(self._wave(time))
        if self.span is not None and span is not None:
            told = told + self.span(self._wave(span))
        turns = [x * (math.pi / 2 * 2**k) for k in range(self.config.waves)]
        told, h = (
            silu(told),
            self.enter(torch.cat([x, *(wave(t) for t in turns for wave in (torch.sin, torch.cos))], dim=1)),
        )
        for block in self.blocks:
            h = block(h, told)
        return self.leave(self.norm(h))

    def _wave(self, time: Tensor) -> Tensor:
        scaled = time * self.config.time_scale
        return sinusoid(scaled, 2 * self.config.frequencies, cosine_first=True, shift=0.0)
