"""What VQGAN's two stages minimise, and what is watched of a codebook.

tokenizer   |x - x'| + perceptual(x, x') + codebook + lambda adversarial(x')       Esser et al. 2021, eq. 4 to 7
adversary   hinge of a patch discriminator, which comes late                       eq. 5, appendix
prior       -log p(s_i | s_<i, c), a mean over places                              eq. 8
perplexity  exp of the entropy of how often each code is used
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..interfaces import Batch, Draw, Terms
from .adversarial import Kind, adaptive_weight, discriminator_loss, generator_loss

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Tokenizing:
    """The losses of a tokenizer. network: `networks.vq.VQModel`; perceptual: (x, y) -> (n,), or None;
    discriminator: pictures -> logits of patches, or None (the VQ-VAE)."""

    network: Any
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    discriminator: Callable[[Tensor], Tensor] | None = None
    pixel: Literal["l1", "l2"] = "l1"
    perceptual_weight: float = 1.0
    codebook_weight: float = 1.0
    adversarial: Kind = "hinge"
    adversarial_weight: float = 0.8
    adaptive: bool = True
    begins: int = 0  # steps before the adversary plays

    def terms(self, batch: Batch, draw: Draw) -> Terms:
        """The autoencoder's move; then the codebook's own."""
        told = self.network(batch.image, self._draws(batch, draw))
        found = {name: value.mean() for name, value in self.distances(batch.image, told.image).items()}
        terms = {**found, "codebook": self.codebook_weight * told.loss.mean()}
        if self.discriminator is not None and draw.step >= self.begins:
            terms |= self._against(told.image, sum(found.values(), torch.zeros(())))
        n, y, x = told.codes.shape
        self.network.quantize.learn(told.z.detach(), told.codes, draw.uniform("restart", (n, y * x)))
        return {**terms, **code_use(told.codes, self.network.config.quantizer.codes)}

    def discriminator_terms(self, batch: Batch, draw: Draw) -> Terms:
        """The discriminator's move, against pictures that are cut off from the autoencoder."""
        assert self.discriminator is not None
        with torch.no_grad():
            painted = self.network(batch.image, self._draws(batch, draw)).image
        real, fake = self.discriminator(batch.image).float(), self.discriminator(painted).float()
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        loss = discriminator_loss(self.adversarial, real, fake)
        return {"adversarial": loss, "_real": real.mean(), "_fake": fake.mean(), "_accuracy": right}

    def distances(self, image: Float[Tensor, "n 3 h w"], painted: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """How far each painted picture is from the real one, by name (n,)."""
        away = painted.float() - image.float()
        pixels = away.abs() if self.pixel == "l1" else away.square()
        found = {"reconstruction": pixels.flatten(1).mean(1)}
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual_weight * self.perceptual(image, painted).float()
        return found

    def _against(self, painted: Tensor, wanted: Tensor) -> Terms:
        assert self.discriminator is not None
        loss = generator_loss(self.adversarial, self.discriminator(painted).float())
        weight = torch.ones(())
        if self.adaptive and torch.is_grad_enabled():
            weight = adaptive_weight(wanted, loss, self.network.last_layer)
        return {"adversarial": self.adversarial_weight * weight * loss, "_adaptive_weight": weight}

    def _draws(self, batch: Batch, draw: Draw) -> Tensor | None:
        """What a Gumbel codebook draws in training; the others draw nothing."""
        config = self.network.config
        if config.quantizer.kind != "gumbel":
            return None
        places = (batch.image.shape[2] // config.factor) * (batch.image.shape[3] // config.factor)
        return draw.uniform("gumbel", (len(batch), places, config.quantizer.codes))


def next_tokens(
    prior: Any,
    prefix: Tensor,
    tokens: Int[Tensor, "n l"],
    read: Tensor | None = None,
) -> Float[Tensor, " n"]:
    """-log p of each row's tokens in nats, a mean over its places. `read`: what the prior reads in their place (some of them
    others, say). The prefix, tokens (n, p) or states (n, p, d) of a text, is read and not predicted."""
    seen = (tokens if read is None else read)[:, :-1]
    logits = prior(seen, before=prior.before(prefix))[:, prefix.shape[1] - 1 :].float()
    return cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1)


# -------------------------------------------------------------------------------------------------- what is watched


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of how often each code was used: K where all are used evenly, 1 where one is."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return (-(shares * shares.clamp(min=1e-12).log()).sum()).exp()


def counted(codes: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs."""
    flat = codes.flatten()
    return torch.zeros(size, device=codes.device).index_add_(0, flat, torch.ones(len(flat), device=codes.device))


@torch.no_grad()
def code_use(codes: Int[Tensor, "n y x"], size: int) -> Terms:
    """Of a batch: different codes in it, as a share of those that it could have, and the perplexity. Only logged."""
    counts = counted(codes, size)
    different = (counts > 0).float().sum()
    return {
        "_codes": different,
        "_code_use": different / min(size, codes.numel()),
        "_perplexity": perplexity(counts).float(),
    }


def codebook_collapses(rows: Rows) -> str | None:
    """A batch's vectors share less than a tenth of the codes that they could have, over the last 10 rows."""
    recent = [row for row in rows if "autoencoder.code_use" in row][-10:]
    if len(recent) < 10 or _mean(recent, "code_use") >= 0.1:
        return None
    return (
        f"the codebook collapses: {_mean(recent, 'codes'):.0f} codes are in use in a batch ({_mean(recent, 'code_use'):.1%} of "
        f"what it could use, perplexity {_mean(recent, 'perplexity'):.1f}); model.autoencoder.quantizer.restart (0.05, say) "
        "puts idle codes where vectors are, update: average follows them, cosine: true compares directions alone"
    )


def adversary_ruins(rows: Rows) -> str | None:
    """Reconstructions twice as far off as at their best since the adversary began to play."""
    values = [row["autoencoder.reconstruction"] for row in rows if "autoencoder.reconstruction" in row]
    if "autoencoder.adaptive_weight" not in (rows[-1] if rows else {}) or len(values) < 20:
        return None
    means = [sum(values[i : i + 10]) / 10 for i in range(len(values) - 9)]
    if means[-1] <= 2 * min(means):
        return None
    return (
        f"reconstructions get worse under the adversary: {means[-1]:.3g} a pixel, {min(means):.3g} at their best; a lower "
        "model.adversary.weight, a later model.adversary.begins, or a smaller model.discriminator.width may help"
    )


ALARMS = (codebook_collapses, adversary_ruins)
"""What the tokenizer's stage is watched by."""


def _mean(rows: Rows, name: str) -> float:
    return sum(row[f"autoencoder.{name}"] for row in rows) / len(rows)
