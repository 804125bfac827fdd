"""The game of a generator and a discriminator, as objectives: what each minimises in its turn, and what is watched.

    discriminator   a loss of adversarial.py on D(T(x)) and D(T(G(z))), G fixed, and the penalties on D's gradients
    penalty         the same penalties as a move of their own at every k-th step (lazy: Karras et al. 2020, appendix B)
    generator       a loss of adversarial.py on D(T(G(z))), D fixed

Algorithm 1 of Goodfellow et al. 2014 with one or more of D's moves for each of G's. T is DiffAugment, or nothing.

Watched, whatever the loss: mean logits of real and fake pictures, the discriminator's accuracy, and how far pictures of
fixed latents differ from each other. Collapse is when they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..interfaces import Batch, Draw, Objective, Terms
from ..samplers.noise import from_seed
from .adversarial import Kind, discriminator_loss, full, generator_loss, gradient_penalty, r1_penalty, r2_penalty
from .diffaugment import Change, diff_augment

GROUPS, MEMBERS = 4, 8  # latents of the fixed batch: members of a group share a label
WATCH_EVERY = 10  # steps between two looks at the fixed batch


@dataclass(frozen=True)
class Game:
    """Two networks and the rules that they play by.

    generator: (z (n, latent), label (n,) or None) -> pictures (n, ...). discriminator: (pictures, label) -> logits (n,).
    r1, r2: gamma of the penalties, of which half is taken. gradient_penalty: lambda of WGAN-GP. penalty_every: 1 adds the
    penalties to each of the discriminator's moves. penalty_anneal: steps in which r1 and r2 go down to `penalty_final` of what
    they are, along a cosine (R3GAN, appendix); 0: they stay. generator_every: the discriminator's moves for each of
    the generator's. labels: number of classes; the fixed batch is spread over them.
    """

    generator: Callable[[Tensor, Tensor | None], Tensor]
    discriminator: Callable[[Tensor, Tensor | None], Tensor]
    latent: int
    kind: Kind = "relativistic"
    r1: float = 0.0
    r2: float = 0.0
    gradient_penalty: float = 0.0
    penalty_every: int = 1
    penalty_anneal: int = 0
    penalty_final: float = 1.0
    generator_every: int = 1
    augmentation: Sequence[Change] = ()
    labels: int = 0

    def objectives(self) -> list[Objective]:
        """In the order of a step. Networks and optimizers are called `discriminator` and `generator`."""
        moves = [Objective("discriminator", ("discriminator",), self.discriminator_terms, "discriminator")]
        if self.penalised and self.penalty_every > 1:
            moves.append(
                Objective("penalty", ("discriminator",), self.penalty_terms, "discriminator", every=self.penalty_every)
            )
        last = Objective("generator", ("generator",), self.generator_terms, "generator", every=self.generator_every)
        return [*moves, last]

    @property
    def penalised(self) -> bool:
        return max(self.r1, self.r2, self.gradient_penalty) > 0

    # -------------------------------------------------------------------------------------------------------- the moves

    def discriminator_terms(self, batch: Batch, draw: Draw) -> Terms:
        """The discriminator's move; `batch.image` are the real pictures, the fakes have their labels."""
        together = self.penalised and self.penalty_every == 1
        real, fake = self._pictures(batch, draw, "discriminator", together)
        real_logits = self._judged(real, self._label(batch), draw, "discriminator.real")
        fake_logits = self._judged(fake, self._label(batch), draw, "discriminator.fake")
        terms = {"adversarial": discriminator_loss(self.kind, real_logits, fake_logits)}
        if together:
            terms |= self._penalties(real, fake, real_logits, fake_logits, batch, draw)
        return {**terms, **self._watched(batch, real_logits.detach(), fake_logits.detach(), draw.step)}

    def penalty_terms(self, batch: Batch, draw: Draw) -> Terms:
        """The penalties alone, on pictures of their own; the loop weighs them by how seldom they are due."""
        real, fake = self._pictures(batch, draw, "penalty", True)
        real_logits = self._judged(real, self._label(batch), draw, "penalty.real") if self.r1 else None
        fake_logits = self._judged(fake, self._label(batch), draw, "penalty.fake") if self.r2 else None
        return self._penalties(real, fake, real_logits, fake_logits, batch, draw)

    def generator_terms(self, batch: Batch, draw: Draw) -> Terms:
        """The generator's move; a relativistic one is told what the discriminator makes of real pictures."""
        z = draw.normal("generator.latent", (len(batch), self.latent))
        fake_logits = self._judged(self.generator(z, self._label(batch)), self._label(batch), draw, "generator.fake")
        real_logits = None
        if self.kind == "relativistic":
            with torch.no_grad():
                real_logits = self._judged(batch.image, self._label(batch), draw, "generator.real")
        return {"adversarial": generator_loss(self.kind, fake_logits, real_logits)}

    def _pictures(self, batch: Batch, draw: Draw, name: str, slope: bool) -> tuple[Tensor, Tensor]:
        """Real pictures, and fakes cut off from the generator; with `slope` gradients by them can be taken."""
        with torch.no_grad():
            fake = self.generator(draw.normal(f"{name}.latent", (len(batch), self.latent)), self._label(batch))
        return batch.image.detach().requires_grad_(slope), fake.detach().requires_grad_(slope)

    def _label(self, batch: Batch) -> Tensor | None:
        return batch.label if self.labels else None

    def _judged(self, image: Tensor, label: Tensor | None, draw: Draw, name: str) -> Float[Tensor, " n"]:
        return full(self.discriminator(diff_augment(image, draw, self.augmentation, name), label))

    def _penalties(
        self, real: Tensor, fake: Tensor, real_logits: Tensor | None, fake_logits: Tensor | None, batch: Batch, draw: Draw
    ) -> Terms:  # fmt: skip
        terms: Terms = {}
        left = self._left(draw.step)
        if self.r1 and real_logits is not None:
            terms["r1"] = left * self.r1 / 2 * r1_penalty(real_logits, real)
        if self.r2 and fake_logits is not None:
            terms["r2"] = left * self.r2 / 2 * r2_penalty(fake_logits, fake)
        if self.gradient_penalty:
            mix = draw.uniform("penalty.mix", (len(batch),))

            def judge(between: Tensor) -> Tensor:
                return self._judged(between, self._label(batch), draw, "penalty.between")

            terms["gradient_penalty"] = self.gradient_penalty * gradient_penalty(judge, real, fake, mix)
        return terms

    def _left(self, step: int) -> float:
        """The share of r1 and r2 at a step."""
        if not self.penalty_anneal:
            return 1.0
        done = min(1.0, step / self.penalty_anneal)
        return self.penalty_final + (1 - self.penalty_final) * (1 + math.cos(math.pi * done)) / 2

    # ----------------------------------------------------------------------------------------------------- what is seen

    def _watched(self, batch: Batch, real: Tensor, fake: Tensor, step: int) -> Terms:
        seen = {"_real": real.mean(), "_fake": fake.mean(), "_accuracy": self.accuracy(real, fake).mean()}
        if step % WATCH_EVERY == 0:
            seen["_diversity"] = self.diversity(batch.image.device)
            seen["_diversity_real"] = spread(batch.image.detach()[None])
        return seen

    def accuracy(self, real: Tensor, fake: Tensor) -> Float[Tensor, " n"]:
        """How often the discriminator is right, 0.5 or 1 (n,): about each of the two logits, or, where only their
        difference has a meaning, about which of a pair is the real one. Its mean is 0.5 for one that knows nothing."""
        if self.kind in ("relativistic", "wgan"):
            return (real > fake).float() + (real == fake).float() / 2
        return ((real > 0).float() + (fake < 0).float()) / 2

    @torch.no_grad()
    def diversity(self, device: torch.device) -> Float[Tensor, ""]:
        """How far pictures of fixed latents with the same label differ, a standard deviation of pixels."""
        z = from_seed(0, range(GROUPS * MEMBERS), device)("watched", (GROUPS * MEMBERS, self.latent))
        label = None
        if self.labels:
            label = (torch.arange(GROUPS, device=device) * self.labels // GROUPS).repeat_interleave(MEMBERS)
        return spread(self.generator(z, label).reshape(GROUPS, MEMBERS, -1))


def spread(images: Float[Tensor, "groups members ..."]) -> Float[Tensor, ""]:
    """Root of the mean variance of a pixel among the members of a group."""
    return images.float().var(1, correction=0).mean().sqrt()


# --------------------------------------------------------------------------------------------------------------- alarms

Rows = Sequence[Mapping[str, float]]
SPAN = 100  # steps that an alarm looks back


def generator_collapses(rows: Rows) -> str | None:
    """Pictures of fixed latents that differ by less than a tenth of what real pictures do, for 100 steps."""
    recent = _recent(rows, "discriminator.diversity")
    if not recent:
        return None
    seen, real = (_mean(recent, f"discriminator.{name}") for name in ("diversity", "diversity_real"))
    if not real or seen >= 0.1 * real:
        return None
    return (
        f"the generator collapses: {GROUPS * MEMBERS} fixed latents give pictures that differ by {seen:.3g}, real ones by "
        f"{real:.3g}; the discriminator is right in {_mean(recent, 'discriminator.accuracy'):.0%}; model.loss=relativistic "
        "with model.r1 and model.r2 above 0 holds against it, and a lower training.learning_rate; best/ keeps the best score"
    )


def gradient_vanishes(rows: Rows) -> str | None:
    """A generator's gradient below a hundredth of what it was, while the discriminator is always right."""
    recent = _recent(rows, "generator.gradient")
    if not recent:
        return None
    before = sorted(row["generator.gradient"] for row in rows if "generator.gradient" in row)
    now, high = _mean(recent, "generator.gradient"), before[len(before) * 9 // 10]
    right = _mean(recent, "discriminator.accuracy")
    if right < 0.95 or now >= 0.01 * high:
        return None
    return (
        f"the generator's gradient vanishes: {now:.3g} of once {high:.3g}, the discriminator is right in {right:.0%} (logits "
        f"{_mean(recent, 'discriminator.real'):.3g} real, {_mean(recent, 'discriminator.fake'):.3g} fake); model.loss=minimax "
        "is flat there: non-saturating or relativistic is not, and model.r1 and model.r2 hold the discriminator back"
    )


def game_is_unstable(rows: Rows) -> str | None:
    """Logits of real and fake pictures more than ten times as far apart as they usually were, and by more than 20."""
    gaps = [
        (row["step"], abs(row["discriminator.real"] - row["discriminator.fake"]))
        for row in rows
        if "discriminator.real" in row
    ]
    usual = sorted(gap for step, gap in gaps if step <= gaps[-1][0] - SPAN)
    if len(usual) < 20:
        return None
    recent = [gap for step, gap in gaps if step > gaps[-1][0] - SPAN]
    now, middle = sum(recent) / len(recent), usual[len(usual) // 2]
    if now < 20 or now < 10 * middle:
        return None
    return (
        f"the game is unstable: logits of real and fake pictures are {now:.3g} apart, usually {middle:.3g}; model.r1 and "
        "model.r2 (or model.gradient_penalty) hold them together, a lower training.learning_rate too"
    )


ALARMS = (generator_collapses, gradient_vanishes, game_is_unstable)
"""What the stage of a game is watched by."""


def _recent(rows: Rows, name: str) -> Rows:
    """The rows of the last 100 steps that have a value, or none before so many steps are done."""
    having = [row for row in rows if name in row]
    if not having or having[-1]["step"] < SPAN:
        return []
    return [row for row in having if row["step"] > having[-1]["step"] - SPAN]


def _mean(rows: Rows, name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / max(1, len(values))
