"""The evidence lower bound of a variational autoencoder, its two terms seen apart (Kingma and Welling 2013, eq. 3).

    log p(x)  >=  E_q(z|x) log p(x | z)  -  KL( q(z | x) || p(z) )

    reconstruction   -log p(x | z) at a sample of z                        `surprise`
    kl               between the encoder's Gaussian and N(0, I), closed    `kl_to_prior`        appendix B
    beta             a weight on kl                                        Higgins et al. 2017, eq. 4
    free bits        no dimension is pressed below so many nats            Kingma et al. 2016, eq. 15  `with_free_bits`
    annealing        kl comes in slowly, once or in cycles                 Bowman et al. 2016; Fu et al. 2019  `annealed`
    importance       log p(x) itself, from below, the nearer the more samples   Burda et al. 2016, eq. 8  `importance_bound`

Everything is in nats. `surprise` is per number of the picture, so that sums over it are nats of the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

BITS = 1 / math.log(2)
Kind = Literal["bernoulli", "gaussian", "laplace", "discretised-logistic"]


class LikelihoodConfig(BaseModel, frozen=True, extra="forbid"):
    """p(x | z) of a picture's numbers, each by itself, around what the decoder says."""

    kind: Kind = Field("gaussian", description="bernoulli takes the decoder's numbers as logits")
    deviation: float = Field(0.1, gt=0, description="width in units of [-1, 1]; where it is learned, at the start")
    learned: bool = Field(False, description="one width for all, learned (Rybkin et al. 2021); not for bernoulli")

    def build(self) -> Likelihood:
        return Likelihood(self)


class Likelihood(nn.Module):
    """The one number that a learned likelihood has: the log of its width."""

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__()
        self.config = config
        self.log_deviation = nn.Parameter(torch.empty(1))

    def initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.log_deviation.fill_(math.log(self.config.deviation))


def surprise(kind: Kind, x: Tensor, decoded: Tensor, log_deviation: Tensor) -> Tensor:
    """-log p(x | z) of each number of pictures x in [-1, 1], in nats, the shape of x.

    `decoded` is what the decoder said: the centre of the distribution, or, for bernoulli, its logits. Gaussian and Laplace
    are densities (nats of a continuous picture); the logistic is the mass of one of 256 grey values (Salimans et al. 2017,
    eq. 2), so that it can be told in bits.
    """
    if kind == "bernoulli":
        return binary_cross_entropy_with_logits(decoded, (x + 1) / 2, reduction="none")
    apart = x - decoded
    if kind == "gaussian":
        return 0.5 * (apart.square() * (-2 * log_deviation).exp() + math.log(2 * math.pi)) + log_deviation
    if kind == "laplace":
        return apart.abs() * (-log_deviation).exp() + math.log(2) + log_deviation
    upper = (apart + 1 / 255) * (-log_deviation).exp()
    lower = (apart - 1 / 255) * (-log_deviation).exp()
    # s(u) - s(l) = s(u) s(-l) (1 - e^(l - u)) with s the logistic function: no difference of near numbers
    inside = logsigmoid(upper) + logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
    return -torch.where(x > 1 - 1 / 255, logsigmoid(-lower), torch.where(x < -1 + 1 / 255, logsigmoid(upper), inside))


def centre(kind: Kind, decoded: Tensor) -> Tensor:
    """The picture in about [-1, 1] that a decoder's numbers stand for: the mean of p(x | z)."""
    return torch.tanh(decoded / 2) if kind == "bernoulli" else decoded


def kl_to_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL( N(mean, variance) || N(0, 1) ) of each number, in nats (Kingma and Welling 2013, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def with_free_bits(kl: Float[Tensor, "n d"], free: float) -> Float[Tensor, ""]:
    """The sum over dimensions of max(free, mean KL of the batch): what is below costs nothing more, so nothing presses it
    to 0. It is a mean of the whole batch, which the stage must see at once. Source: Kingma et al. 2016, eq. 15."""
    return kl.mean(0).clamp(min=free).sum()


def annealed(step: int, steps: int, cycles: int = 1) -> float:
    """The share of the KL's weight at a step: from 0 to 1 in a straight line over `steps`, then 1.

    With several cycles each is `steps` / `cycles` long, rises in its first half and stays at 1 in its second (Fu et al.
    2019, eq. 6).
    """
    if steps == 0 or step >= steps:
        return 1.0
    if cycles == 1:
        return step / steps
    length = steps / cycles
    return min(1.0, 2 * (step % length) / length)


def importance_bound(log_weights: Float[Tensor, "k n"]) -> Float[Tensor, " n"]:
    """log (1/k) sum of p(x, z_i) / q(z_i | x) for k samples a picture: the ELBO for k = 1, log p(x) for k without end."""
    return torch.logsumexp(log_weights, dim=0) - math.log(log_weights.shape[0])


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Float[Tensor, " n"]:
    """log N(z; mean, variance), summed over all but the first dimension."""
    apart = (z - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
    return -0.5 * apart.flatten(1).sum(1)


@dataclass(frozen=True)
class Evidence:
    """The bound of each picture (n,) in bits a number of the picture, its two terms, and the importance bound."""

    reconstruction: Tensor
    kl: Tensor
    importance: Tensor

    @property
    def total(self) -> Tensor:
        return self.reconstruction + self.kl

    def named(self) -> dict[str, Tensor]:
        """By the names that scores have."""
        parts = {"bits_reconstruction": self.reconstruction, "bits_kl": self.kl, "bits_importance": self.importance}
        return {"bits": self.total, **parts}


def health(mean: Tensor, kl: Float[Tensor, "n d"]) -> dict[str, Tensor]:
    """What posterior collapse shows in, of a batch: the KL a dimension, and how many are in use at all.

    A dimension is active where its mean varies over pictures by more than 0.01 (Burda et al. 2016, section 5.2).
    """
    each = kl.mean(0)
    found = {"kl_a_dimension": each.mean(), "kl_largest": each.max()}
    if len(mean) > 1:  # one picture alone varies in nothing
        active = (mean.flatten(1).float().var(0, correction=0) > 0.01).float()
        found |= {"active_units": active.sum(), "active_share": active.mean()}
    return found


def collapsed(rows: Sequence[Mapping[str, float]]) -> str | None:
    """An alarm: nearly no dimension of z says anything of the picture any more."""
    told = [row for row in rows[-20:] if any(key.endswith(".active_share") for key in row)][-5:]
    if len(told) < 5:
        return None
    name = next(key for key in told[-1] if key.endswith(".active_share"))
    shares = [row.get(name, 1.0) for row in told]
    if max(shares) >= 0.05:
        return None
    nats = told[-1].get(name.replace("active_share", "kl_a_dimension"), math.nan)
    return (
        f"posterior collapse: {max(shares):.1%} of the latent dimensions are in use and their KL is {nats:.2g} nats each, so "
        "the decoder paints without looking at z; lower model.beta, or set model.free_bits or model.annealing.steps"
    )
