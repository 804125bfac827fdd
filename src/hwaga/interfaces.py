"""The words of the house as types: what the rooms hand to each other. No behaviour of any one system lives here.

network     an nn.Module with a frozen `config`; tensors in, tensors out
process     noising: alpha and sigma at a time, conversions between what networks predict
Point       where a sample stands on its way from noise to data
Denoise     the one signature that samplers see
Noise       the source that all randomness of sampling is asked of
Batch       what a data source gives and an objective takes
Draw        the source that all randomness of training is asked of
Objective   some networks, a loss on a batch, an optimizer, and how often it is due
Stage       networks and objectives that are trained together
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

# ------------------------------------------------------------------------------------------------------------ sampling


class Point(NamedTuple):
    """A place on the way from noise (t = 1) to data (t = 0): x_t = alpha x_0 + sigma eps.

    `fed` is the number that the network is given here (for a table of 1000 its index, say): public samplers round it
    in different places, so it belongs to the grid. The last point of a grid is never fed.
    """

    t: float
    alpha: float
    sigma: float
    fed: float


class Prediction(NamedTuple):
    """What a denoiser says of x: the clean picture (n, ...), not clipped, and, where the network learned it, the log of
    the variance of the step from `at` to `to` (n, ...), in natural logarithm."""

    x0: Tensor
    log_variance: Tensor | None = None


Denoise = Callable[[Tensor, Point, Point], Prediction]
"""denoise(x, at, to): x (n, ...) float32 standing at `at`; the step goes to `to`."""

Noise = Callable[[str, tuple[int, ...]], Tensor]
"""noise(name, shape): standard normal float32 of that shape; `shape[0]` is the number of pictures."""


class Step(NamedTuple):
    """What a callback is given after each step of a sampler. Raising `errors.Interrupted` in it ends the sampling."""

    index: int  # type: ignore[assignment]  # 0 ... total - 1
    total: int
    at: Point
    to: Point
    x: Tensor  # (n, ...) where the step has led, at `to`
    x0: Tensor  # (n, ...) what the denoiser took for the clean picture


Callback = Callable[[Step], None]

# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Batch:
    """n pictures with all that is known of them. Only what a source has is there."""

    image: Tensor  # (n, 3, h, w) float32 in [-1, 1]
    index: Tensor  # (n,) int64: the places in the data set
    label: Tensor | None = None  # (n,) int64 in 0 ... classes - 1
    caption: Sequence[str] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # control maps, edit sources, ...: first dimension n
    cluster: Tensor | None = None  # (n,) int64: pictures that show nearly the same have one number

    def __len__(self) -> int:
        return self.image.shape[0]


@dataclass(frozen=True)
class Precomputed:
    """What of each picture is computed once and kept beside it, as it never changes: latents of a frozen autoencoder."""

    key: Callable[[], str]  # a hash of what the values depend on beside the picture: the network's weights and config
    shape: tuple[int, ...]  # of one picture's values
    compute: Callable[[Tensor], Tensor]  # pictures (n, 3, h, w) in [-1, 1] -> (n, *shape) float32


class Draw(Protocol):
    """All randomness of one training step. It depends on (seed, stage, step, name) and on the place of a picture in the
    whole batch of that step, never on the number of processes or of accumulated parts."""

    step: int
    """Steps of the stage that are done: 0 at the first. For what begins late or grows (an adversary, a weight)."""

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32, on the device of training; `shape[0]` is the length of the local batch."""
        ...

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform float32 in [0, 1)."""
        ...

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform int64 in 0 ... high - 1."""
        ...


Terms = dict[str, Tensor]
"""Named parts of a loss, each a scalar, a mean over the batch; their sum is minimised. A name that starts with `_` is
only logged (without the `_`) and not minimised."""


@dataclass(frozen=True)
class Objective:
    """Some networks, a loss on a batch, an optimizer, and how often it is due.

    A diffusion model's stage has one, a GAN's two; StyleGAN's lazy R1 is a third, due every 16 steps, that shares the
    discriminator's optimizer. While an objective works only the parameters of `networks` need gradients.
    """

    name: str  # "denoising", "generator", "discriminator", "r1"
    networks: tuple[str, ...]  # names among the stage's networks: whose parameters it moves
    loss: Callable[[Batch, Draw], Terms]
    optimizer: str = "main"  # objectives that name the same one share it (and must move the same networks)
    every: int = 1  # due at the steps that this divides
    begins: int = 0  # and not before so many steps are done (an adversary that comes late)


@dataclass(frozen=True)
class Stage:
    """Networks and objectives that are trained together."""

    name: str
    networks: Mapping[str, nn.Module]  # all that a checkpoint must hold, frozen ones left out
    objectives: Sequence[Objective]  # worked off in this order at each step
    averaged: tuple[str, ...] = ()  # which of `networks` keep an exponential moving average
    held_out: Callable[[Batch, Draw], Mapping[str, Tensor]] | None = None
    # losses on held-out pictures with fixed draws, one value a picture (n,), by name ("loss", "loss t 0.2-0.4", ...)
    optimizers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # what an optimizer has other than the recipe says: {"discriminator": {"learning_rate": 1e-4, "betas": (0.0, 0.99)}}
    alarms: Sequence[Callable[[Sequence[Mapping[str, float]]], str | None]] = ()
    # functions of the rows of metrics so far, newest last: a sentence when something is wrong, else None
    game: bool = False
    # True where objectives play against each other: a loss that rises or stands still is then no sign of trouble
    shows: Callable[[Batch], Tensor] | None = None
    # what a sample grid shows of held-out pictures ((n, 3, h, w) in about [-1, 1], reconstructions say), where a stage
    # trains what does not paint yet; None: pictures that the system paints
    measures: Callable[[Iterator[Batch]], Mapping[str, Mapping[str, Tensor]]] | None = None
    # buffers that are measured over training pictures whenever the model is saved, {network: {name: value}} (the scale of
    # latents): given the pictures of the split in batches, as many as it wants; no step of training looks at them
    batch_statistics: bool = False  # True where a loss needs the whole batch at once (minibatch deviation)
    gathers: bool = False  # True where a loss compares the pictures of a batch and asks other processes for theirs
