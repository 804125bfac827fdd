"""GAN: a generator and a discriminator learn by playing against each other (Goodfellow et al. 2014).

The discriminator D learns to tell real pictures from painted ones; the generator G learns to paint what D takes for real. G
sees no picture: all it learns comes through D's gradient. Where neither can win any more, G's pictures are distributed as
the real ones are.

    min over G, max over D of  E log D(x) + E log(1 - D(G(z)))      eq. 1         objectives/adversarial.py: minimax
    G's second loss, whose slope does not vanish, and the others    section 3     objectives/adversarial.py
    the moves in turn                                               algorithm 1   objectives/game.py
    what keeps the game stable: R1, R2, gradient penalty            R3GAN, eq. 3  objectives/adversarial.py
    D looks through random changes                                  DiffAugment   objectives/diffaugment.py
    z -> picture -> logit                                           DCGAN         networks/dcgan.py
    the same without normalisation                                  R3GAN         networks/residual_gan.py

Painting is one call: z ~ N(0, 1), picture = G(z, label), G with averaged weights. Choices of the same config: DCGAN (Radford
et al. 2015) or R3GAN's networks (Huang et al. 2024), five losses, three penalties at every step or lazily, spectral norm,
class conditions (an embedding in G, projection in D).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from ..errors import InputError
from ..interfaces import Batch, Draw, Stage
from ..networks.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from ..networks.residual_gan import ResidualDiscriminatorConfig, ResidualGeneratorConfig
from ..objectives.adversarial import Kind
from ..objectives.diffaugment import Change
from ..objectives.game import ALARMS, Game
from .base import Request, System, number

Generator = Annotated[ResidualGeneratorConfig | DCGANGeneratorConfig, Field(discriminator="kind")]
Discriminator = Annotated[ResidualDiscriminatorConfig | DCGANDiscriminatorConfig, Field(discriminator="kind")]


class GANConfig(BaseModel, frozen=True, extra="forbid"):
    generator: Generator = ResidualGeneratorConfig()
    discriminator: Discriminator = ResidualDiscriminatorConfig()
    labels: bool = Field(False, description="condition on the data's labels")
    loss: Kind = "relativistic"
    r1: float = Field(0.0, ge=0, description="gamma of the penalty on D's gradient at real pictures")
    r2: float = Field(0.0, ge=0, description="gamma of the penalty on D's gradient at generated pictures")
    gradient_penalty: float = Field(0.0, ge=0, description="lambda of WGAN-GP's; 10 in the paper")
    penalty_every: int = Field(1, ge=1, description="1: with each move of D; k: a move of their own every k steps")
    penalty_anneal: int = Field(0, ge=0, description="steps in which r1 and r2 go down to penalty_final of themselves")
    penalty_final: float = Field(1.0, ge=0, description="share of r1 and r2 that is left after penalty_anneal steps")
    generator_every: int = Field(1, ge=1, description="moves of D for each of G's; 5 in WGAN-GP")
    discriminator_learning_rate: float | None = Field(None, gt=0, description="null: training.learning_rate")
    augmentation: tuple[Change, ...] = Field((), description="DiffAugment: color, translation, cutout")

    @model_validator(mode="before")
    @classmethod
    def _residual_unless_told(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        parts = {k: value[k] for k in ("generator", "discriminator") if isinstance(value.get(k), Mapping)}
        return {**value, **{name: {"kind": "residual", **part} for name, part in parts.items()}}

    @model_validator(mode="after")
    def _agrees(self) -> GANConfig:
        one, other = self.generator, self.discriminator
        if one.size != other.size or one.image_channels != other.image_channels:
            raise ValueError(f"generator paints {one.size}, discriminator looks at {other.size}: let channels agree")
        if one.classes != other.classes or self.labels != (one.classes > 0):
            given = f"generator.classes={one.classes}, discriminator.classes={other.classes}"
            raise ValueError(f"labels={self.labels} with {given}")
        if max(self.r1, self.r2, self.gradient_penalty) > 0 and other.needs_whole_batch:
            raise ValueError(
                "r1, r2 and gradient_penalty look at one picture at a time, which discriminator.norm=batch mixes; "
                "use norm=spectral or norm=none"
            )
        return self


class GAN(System):
    """Pictures in one call. Networks: `generator`, and `discriminator`, which training alone needs."""

    name, title, year = "gan", "GAN", 2014
    paper = "Generative Adversarial Networks (arXiv:1406.2661)"
    stage_names = ("game",)
    takes = ("label",)
    own = {
        "interpolate": "number of pictures: paints a strip that goes from one draw to another",
        "truncation": "1 draws z as in training; below it z is scaled down: more alike, often cleaner; 0 is one picture",
    }
    trains_with = ("discriminator",)
    Config = GANConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: GANConfig) -> dict[str, Any]:
        return {"generator": config.generator, "discriminator": config.discriminator}

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        if not config.get("labels"):
            return config
        if not classes:
            raise InputError("model.labels=true, but the data have no labels; set model.labels=false")
        told = {name: {"classes": len(classes), **config.get(name, {})} for name in ("generator", "discriminator")}
        return {**config, **told}

    @classmethod
    def check_data(cls, config: GANConfig, size: tuple[int, int]) -> None:
        if tuple(size) != config.generator.size:
            raise InputError(
                f"data.size={size}: these networks are for {config.generator.size}; one more entry of channels (in both) "
                "doubles that"
            )

    @property
    def generator(self) -> Any:
        return self.networks["generator"]

    # -------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        config = self.config
        own = (
            {} if config.discriminator_learning_rate is None else {"learning_rate": config.discriminator_learning_rate}
        )
        return [
            Stage(
                name="game",
                networks=self.networks,
                objectives=self.game().objectives(),
                averaged=("generator",),
                held_out=self.held_out,
                optimizers={"discriminator": own},
                alarms=ALARMS,
                game=True,
                batch_statistics=config.generator.needs_whole_batch or config.discriminator.needs_whole_batch,
            )
        ]

    def game(self) -> Game:
        """The two networks and the rules that they play by."""
        config = self.config
        return Game(
            self.generator, self.networks["discriminator"], config.generator.latent, kind=config.loss, r1=config.r1,
            r2=config.r2, gradient_penalty=config.gradient_penalty, penalty_every=config.penalty_every,
            penalty_anneal=config.penalty_anneal, penalty_final=config.penalty_final,
            generator_every=config.generator_every, augmentation=config.augmentation, labels=self.label_count(),
        )  # fmt: skip

    def held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """What the discriminator makes of pictures it never saw, beside the model's own: where `real` falls towards `fake`, it
        has learned its pictures by heart."""
        game, label = self.game(), batch.label if self.config.labels else None
        fake = self.generator(draw.normal("latent", (len(batch), self.config.generator.latent)), label)
        real_logits, fake_logits = (game.discriminator(x, label).float() for x in (batch.image, fake))
        return {"real": real_logits, "fake": fake_logits, "accuracy": game.accuracy(real_logits, fake_logits)}

    # -------------------------------------------------------------------------------------------------------- how it paints

    def paint(self, request: Request) -> Tensor:
        noise, shape = request.source(), (len(request), self.config.generator.latent)
        label = None if request.label is None else request.label.to(request.device)
        truncation, z = request.inputs.get("truncation", 1.0), noise("noise", shape)
        count = request.inputs.get("interpolate")
        if count is None:
            x = self.generate(truncation * z, label)
        else:
            end = noise("end_noise", shape)
            path = [between(z, end, i / (count - 1)) for i in range(count)]
            x = torch.cat([self.generate(truncation * place, label) for place in path], dim=3)
        return request.one_step(x)

    def generate(self, z: Tensor, label: Tensor | None) -> Tensor:
        return self.generator(z.to(self.dtype), label)

    # ---------------------------------------------------------------------------------------------------- what can be asked

    def label_count(self) -> int:
        return int(self.config.generator.classes)

    def factor(self) -> int:
        return int(self.config.generator.size[0])

    def check(self, request: Request) -> None:
        if request.size != self.config.generator.size:
            raise InputError(f"size={request.size}: this generator paints {self.config.generator.size}; leave size out")
        if "truncation" in request.inputs:
            number("truncation", request.inputs["truncation"], 0, 10)
        count = request.inputs.get("interpolate", 2)
        if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= 100:
            raise InputError(f"interpolate={count!r}: a number of pictures from 2 to 100 is needed")


def between(start: Tensor, end: Tensor, share: float) -> Tensor:
    """On the way from one draw (n, z) to another, along the sphere: a straight line would pass through lengths that are
    hardly ever drawn (White 2016). share 0 is the start, 1 the end, to the bit."""
    if share in (0.0, 1.0):
        return end if share else start
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)[:, None]
    angle = cosine.acos()
    return (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin()
