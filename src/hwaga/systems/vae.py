"""VAE: the variational autoencoder (Kingma and Welling 2013), and the KL autoencoder that latent diffusion begins with.

An encoder says of a picture where in a small space it lies, as a Gaussian and not as a point; a decoder paints the picture
from a sample of it. A second term holds all those Gaussians near one standard normal, the prior, so that a draw from the
prior lies where pictures lie, and decoding it paints a new one. Averages of many pictures that fit a draw are blurred.

    z = mean + sigma eps                                  section 2.4      networks/autoencoder.py: Gaussian.sample
    -log p(x | z)                                         eq. 10, 1st      objectives/elbo.py: surprise
    KL( q(z | x) || N(0, I) )                             appendix B       objectives/elbo.py: kl_to_prior
    loss = reconstruction + beta KL                       eq. 3; beta-VAE  VAE.loss
    log p(x) from below, in bits                          Burda 2016       VAE.bits

Choices of the same config: a vector z with a prior to sample (`network.kind: vector`), told a label or not (Sohn et al.
2015), or a map of z in the public layout (`map`: AutoencoderKL, Rombach et al. 2022) with perceptual loss and a patch
adversary that comes late, and a measured scale; `posterior: none` is the plain autoencoder, whose space has holes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, Discriminator, Field, Tag, model_validator
from torch import Tensor

from ..errors import InputError
from ..formats import autoencoder as public
from ..interfaces import Batch, Draw, Objective, Stage, Terms
from ..networks.autoencoder import AutoencoderKLConfig, Gaussian
from ..networks.discriminators import PatchDiscriminatorConfig
from ..networks.vae import ConvVAEConfig
from ..objectives import elbo
from ..objectives.adversarial import Kind as Game
from ..objectives.adversarial import adaptive_weight, discriminator_loss, generator_loss
from ..samplers.noise import from_seed
from . import latent_walks as walks
from .base import About, Request, System
from .pictures import to_inside


class AnnealingConfig(BaseModel, frozen=True, extra="forbid"):
    """How the KL's weight comes in: from 0 to beta over so many steps, once or in cycles."""

    steps: int = Field(0, ge=0)
    cycles: int = Field(1, ge=1)


class PerceptualConfig(BaseModel, frozen=True, extra="forbid"):
    """A distance by the features of a network that has learned to see, beside that of pixels."""

    weight: float = Field(1.0, gt=0)
    network: str = Field("openmoji/perceptual", description="a shipped name, a folder, or LPIPS's own files")


class AdversaryConfig(BaseModel, frozen=True, extra="forbid"):
    """A discriminator of patches that makes reconstructions sharp (Esser et al. 2021, section 3.1)."""

    network: PatchDiscriminatorConfig = PatchDiscriminatorConfig()
    kind: Game = "hinge"
    weight: float = Field(0.5, gt=0, description="beside reconstruction's pull, if adaptive; else as it is")
    adaptive: bool = Field(True, description="as strong as reconstruction at the last layer (eq. 7)")
    begins: int = Field(0, ge=0, description="steps before it begins to judge and to be heard")
    learning_rate: float | None = Field(None, gt=0, description="null: as the autoencoder's")


def _kind(network: Any) -> str:
    return str(network.get("kind", "vector") if isinstance(network, Mapping) else network.kind)


class VAEConfig(BaseModel, frozen=True, extra="forbid"):
    network: Annotated[
        Annotated[ConvVAEConfig, Tag("vector")] | Annotated[AutoencoderKLConfig, Tag("map")], Discriminator(_kind)
    ] = ConvVAEConfig()
    posterior: Literal["gaussian", "none"] = Field("gaussian", description="none: a plain autoencoder, without a prior")
    likelihood: elbo.LikelihoodConfig = elbo.LikelihoodConfig()
    beta: float = Field(1.0, ge=0, description="weight of the KL; 1: the bound itself")
    free_bits: float = Field(0.0, ge=0, description="nats a dimension that cost nothing")
    annealing: AnnealingConfig = AnnealingConfig()
    labels: bool = Field(False, description="condition on the data's labels (vector only)")
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of training pictures whose label is hidden")
    scaling: Literal["none", "whole", "channel"] = Field(
        "none",
        description="latents are shifted and scaled to mean 0 and deviation 1: all alike, or each channel by itself",
    )
    scaling_pictures: int = Field(2048, ge=2, description="training pictures that they are measured over")
    perceptual: PerceptualConfig | None = None
    adversary: AdversaryConfig | None = None

    @model_validator(mode="after")
    def _agrees(self) -> VAEConfig:
        if self.network.double_z != (self.posterior == "gaussian"):
            raise ValueError(f"posterior={self.posterior} with network.double_z={self.network.double_z}")
        rows = self.network.classes if isinstance(self.network, ConvVAEConfig) else 0
        if self.labels != (rows > 0):
            raise ValueError(f"labels={self.labels} with {rows} rows of network.classes (a map has none)")
        if self.likelihood.learned and self.likelihood.kind == "bernoulli":
            raise ValueError("likelihood.learned=true with kind=bernoulli, which has no width to learn")
        return self


class VAE(System):
    """Networks: `autoencoder`; `likelihood` where its width is learned; `discriminator` where there is an adversary."""

    name, title, year = "vae", "VAE", 2013
    paper = "Auto-Encoding Variational Bayes (arXiv:1312.6114)"
    stage_names = ("autoencoder",)
    takes = ("label", "image", "fit_image")
    own = {
        "reconstruct": "true: paints what the autoencoder makes of each image=",
        "interpolate": "number of pictures between two image=s, or between two draws: paints them as a row",
        "walk": "latent dimension (a channel of a map), or a list of them: paints a row each, from -3 to 3 deviations",
        "temperature": "deviation of the draws from the prior; 1 is the prior itself, 0 its middle",
    }
    trains_with = ("discriminator",)
    formats = ("diffusers", "single")
    Config = VAEConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: VAEConfig) -> dict[str, Any]:
        found: dict[str, Any] = {"autoencoder": config.network}
        if config.likelihood.learned:
            found["likelihood"] = config.likelihood
        if config.adversary is not None:
            found["discriminator"] = config.adversary.network
        return found

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        network = {"kind": "vector", **config.get("network", {})}
        network.setdefault("double_z", config.get("posterior", "gaussian") == "gaussian")
        if network["kind"] == "vector":
            network.setdefault("size", size)
        if config.get("labels"):
            if not classes:
                raise InputError("model.labels=true, but the data have no labels; set model.labels=false")
            if network["kind"] != "vector":
                raise InputError("model.labels=true with model.network.kind=map: only a vector is told a label")
            network.setdefault("classes", len(classes) + 1)
        return {**config, "network": network}

    @classmethod
    def check_data(cls, config: VAEConfig, size: tuple[int, int]) -> None:
        if any(side % config.network.factor for side in size):
            raise InputError(
                f"data.size={size}: this network needs multiples of {config.network.factor}, as it halves pictures that far"
            )
        if isinstance(config.network, ConvVAEConfig) and tuple(size) != tuple(config.network.size):
            raise InputError(f"data.size={size}: this network was made for {tuple(config.network.size)} alone")

    @property
    def autoencoder(self) -> Any:
        return self.networks["autoencoder"]

    @property
    def log_deviation(self) -> Tensor:
        """Of the likelihood's width in units of [-1, 1], on the device."""
        if "likelihood" in self.networks:
            learned: Any = self.networks["likelihood"]
            return learned.log_deviation
        return torch.tensor([self.config.likelihood.deviation], device=self.device).log()

    # -------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        config, adversary = self.config, self.config.adversary
        learned = tuple(name for name in self.networks if name != "discriminator")
        objectives, optimizers = [Objective("elbo", learned, self.loss)], {}
        if adversary is not None:
            judge = Objective("discriminator", ("discriminator",), self.judge, "discriminator", begins=adversary.begins)
            objectives.append(judge)
            rate = adversary.learning_rate
            optimizers = {"discriminator": {"betas": (0.5, 0.9), **({"learning_rate": rate} if rate else {})}}
        game = adversary is not None and (adversary.adaptive or adversary.network.needs_whole_batch)
        return [
            Stage(
                name="autoencoder",
                networks=self.networks,
                objectives=objectives,
                averaged=learned,
                held_out=self.held_out,
                optimizers=optimizers,
                alarms=[elbo.collapsed] if config.posterior == "gaussian" and config.beta > 0 else [],
                shows=None if config.network.kind == "vector" and config.posterior == "gaussian" else self._beside,
                measures=None if config.scaling == "none" else self._measured,
                batch_statistics=config.free_bits > 0 or game,
                game=adversary is not None,
            )
        ]

    def loss(self, batch: Batch, draw: Draw) -> Terms:
        """The negative bound in nats a number of the picture, and what else pulls at the autoencoder."""
        config, x = self.config, batch.image
        label = self._label(batch.label)
        if label is not None:
            hidden = draw.uniform("label_dropout", (len(batch),)) < config.label_dropout
            label = torch.where(hidden, self.label_count(), label)
        q, decoded = self._through(x, label, draw)
        pixels = x[0].numel()
        terms = {"reconstruction": self._surprise(x, decoded).mean()}
        if config.posterior == "gaussian":
            kl = self._kl(q)
            summed = elbo.with_free_bits(kl, config.free_bits) if config.free_bits else kl.sum(1).mean()
            terms["kl"] = config.beta * elbo.annealed(draw.step, **dict(config.annealing)) * summed / pixels
            terms |= {f"_{name}": value for name, value in elbo.health(q.mean, kl.detach()).items()}
            terms["_kl_nats"] = kl.detach().sum(1).mean()
        if config.likelihood.learned:
            terms["_deviation"] = self.log_deviation.detach().exp().mean()
        if config.perceptual is not None:
            distance = self._perceptual()(x, elbo.centre(config.likelihood.kind, decoded)).mean()
            terms["perceptual"] = config.perceptual.weight * distance * (-self.log_deviation).exp().mean()
        if config.adversary is not None and draw.step >= config.adversary.begins:
            terms |= self._adversary(x, elbo.centre(config.likelihood.kind, decoded), terms)
        return terms

    def _adversary(self, x: Tensor, painted: Tensor, terms: Terms) -> Terms:
        """What the discriminator thinks of reconstructions, as strong as their distance is at the last layer."""
        how, judge = self.config.adversary, self.networks["discriminator"]
        pull = generator_loss(
            how.kind, judge(painted).float(), judge(x).float() if how.kind == "relativistic" else None
        )
        if not how.adaptive:
            return {"adversary": how.weight * pull}
        distance = terms["reconstruction"] + terms.get("perceptual", 0.0)
        strength = adaptive_weight(distance, pull, self.autoencoder.last_layer)
        return {"adversary": how.weight * strength * pull, "_adaptive_weight": strength}

    def judge(self, batch: Batch, draw: Draw) -> Terms:
        """The discriminator's step: pictures against what the autoencoder makes of them."""
        with torch.no_grad():
            _, decoded = self._through(batch.image, self._label(batch.label), draw)
        judge = self.networks["discriminator"]
        real = judge(batch.image).float()
        fake = judge(elbo.centre(self.config.likelihood.kind, decoded)).float()
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return {"judging": discriminator_loss(self.config.adversary.kind, real, fake), "_accuracy": right}

    def held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """The bound's terms on pictures never trained on, with the KL's full weight."""
        q, decoded = self._through(batch.image, self._label(batch.label), draw)
        found = {"reconstruction": self._surprise(batch.image, decoded).flatten(1).mean(1)}
        if self.config.posterior == "gaussian":
            found["kl"] = self._kl(q).sum(1) / batch.image[0].numel() * self.config.beta
        if self.config.perceptual is not None:
            distance = self._perceptual()(batch.image, elbo.centre(self.config.likelihood.kind, decoded))
            found["perceptual"] = self.config.perceptual.weight * distance * (-self.log_deviation).exp()
        return {"loss": torch.stack(list(found.values())).sum(0), **found}

    def _through(self, x: Tensor, label: Tensor | None, draw: Draw) -> tuple[Gaussian, Tensor]:
        """q(z | x), and what the decoder says at a sample of it, in float32."""
        q = self.autoencoder.posterior(x, label)
        eps = draw.normal("posterior_noise", tuple(q.mean.shape))
        return q, self.autoencoder.decoded(q.sample(eps), label).float()

    def _surprise(self, x: Tensor, decoded: Tensor) -> Tensor:
        return elbo.surprise(self.config.likelihood.kind, x, decoded, self.log_deviation)

    @staticmethod
    def _kl(q: Gaussian) -> Float[Tensor, "n d"]:
        assert q.log_variance is not None
        return elbo.kl_to_prior(q.mean.float(), q.log_variance.float()).flatten(1)

    def _perceptual(self) -> Any:
        """The perceptual distance; its network is frozen and no part of the model."""
        from ..formats.perceptual import perceptual_network
        from ..objectives.perceptual import Perceptual

        return Perceptual(perceptual_network(self.config.perceptual.network).to(self.device))

    def _measured(self, batches: Iterator[Batch]) -> Mapping[str, Mapping[str, Tensor]]:
        """Shift and scale that bring the latents of training pictures to mean 0 and deviation 1 (Rombach 2022, app. G)."""
        values, count = [], 0
        for batch in batches:
            mean = self.autoencoder.posterior(batch.image, self._label(batch.label)).mean
            values.append(mean.detach().double().cpu().transpose(0, 1).flatten(1))
            count += len(batch)
            if count >= self.config.scaling_pictures:
                break
        numbers = torch.cat(values, dim=1)  # (channels, all places of all pictures)
        pooled = numbers if self.config.scaling == "channel" else numbers.flatten()
        shift, scale = pooled.mean(-1), 1 / pooled.std(-1).clamp(min=1e-6)
        like = self.autoencoder.scale
        return {"autoencoder": {"shift": shift.to(like).expand_as(like), "scale": scale.to(like).expand_as(like)}}

    def _beside(self, batch: Batch) -> Tensor:
        """Pictures and their reconstructions in turn."""
        half = (len(batch) + 1) // 2
        x, label = batch.image[:half], self._label(None if batch.label is None else batch.label[:half])
        painted = self._paint_z(self.autoencoder.posterior(x, label).mean, label)
        return torch.stack([x, painted], dim=1).flatten(0, 1)[: len(batch)]

    # -------------------------------------------------------------------------------------------------------- how it paints

    def paint(self, request: Request) -> Tensor:
        """One batch of a call: draws from the prior, or what was asked for instead of them."""
        return request.one_step(walks.paint(self, request))

    def latents(self, request: Request, name: str = "noise") -> tuple[Tensor, Tensor | None]:
        """Draws from the prior, scaled as a diffusion sees them, and the labels to paint them with."""
        z = request.source()(name, (len(request), *self.config.network.latent_shape(request.size)))
        return z * request.inputs.get("temperature", 1.0), self._label(request.label)

    def latents_of(self, x: Float[Tensor, "n 3 h w"], label: Tensor | None = None) -> Tensor:
        self._fits(tuple(x.shape[2:]), "images")
        q = self.autoencoder.posterior(x.to(self.dtype), self._or_null(label, len(x)))
        return self.autoencoder.scaled(q.mean)

    def pictures_of(self, latents: Tensor, label: Tensor | None = None) -> Float[Tensor, "n 3 h w"]:
        network = self.config.network
        wanted = network.latent_shape(self.about.size)
        fits = latents.dim() == 1 + len(wanted) and latents.shape[1] == wanted[0] and latents.numel() > 0
        if not latents.is_floating_point() or not fits:
            shape = f"(n, {', '.join(map(str, wanted))})" if network.kind == "vector" else f"(n, {wanted[0]}, y, x)"
            raise InputError(
                f"latents={str(latents.dtype).split('.')[-1]} of shape {tuple(latents.shape)}: {self.title} decodes floating "
                f"numbers of shape {shape}"
            )
        return self._paint_z(self.autoencoder.unscaled(latents), self._or_null(label, len(latents)))

    def _paint_z(self, z: Tensor, label: Tensor | None) -> Tensor:
        return elbo.centre(self.config.likelihood.kind, self.autoencoder.decoded(z, label).float())

    def _label(self, label: Tensor | None) -> Tensor | None:
        if not self.config.labels:
            return None
        if label is None:
            raise InputError("this model is conditioned on labels, but the data have none")
        return label.to(self.device)

    def _or_null(self, label: Tensor | None, n: int) -> Tensor | None:
        """The labels, or the null label, which stands for every kind."""
        if not self.config.labels or label is not None:
            return self._label(label)
        return torch.full((n,), self.label_count(), device=self.device)

    # ---------------------------------------------------------------------------------------------------- what can be asked

    def label_count(self) -> int:
        return max(0, getattr(self.config.network, "classes", 0) - 1)

    def factor(self) -> int:
        return self.config.network.factor

    def how_many(self, n: int, given: Mapping[str, Any]) -> int:
        return walks.how_many(n, given)

    def check(self, request: Request) -> None:
        self._fits(request.size, "size")
        walks.check(self, request)

    def _fits(self, size: tuple[int, ...], name: str) -> None:
        fixed = getattr(self.config.network, "size", None)
        if fixed is not None and tuple(size) != tuple(fixed):
            raise InputError(f"{name}={tuple(size)}: this network knows pictures of {tuple(fixed)} alone")

    # ---------------------------------------------------------------------------------------------------------- likelihood

    @property
    def tells_bits(self) -> bool:
        return self.config.likelihood.kind == "discretised-logistic" and self.config.posterior == "gaussian"

    @torch.no_grad()
    def bits(
        self, image: Tensor, label: Tensor | None, seed: int, count: int | None = None, progress: Any = None
    ) -> tuple[elbo.Evidence, int]:
        """The bound of pictures in [0, 1] in bits a number, its terms, and the nearer bound by importance samples (16, or
        `count` if that is less); and how many samples of z were taken."""
        if not self.tells_bits:
            raise InputError(f"likelihood={self.config.likelihood.kind}: bits are told by discretised-logistic alone")
        x, samples = to_inside(image).to(self.device), min(count or 16, 16)
        label = self._or_null(label, len(x))
        q = self.autoencoder.posterior(x.to(self.dtype), label)
        mean, log_variance = q.mean.float(), q.log_variance.float()
        noise = from_seed(seed, range(len(x)), self.device)
        surprises, weights = [], []
        for k in range(samples):
            z = Gaussian(mean, log_variance).sample(noise("posterior_noise", tuple(mean.shape)))
            decoded = self.autoencoder.decoded(z.to(self.dtype), label).float()
            surprises.append(self._surprise(x, decoded).flatten(1).sum(1))
            prior = elbo.log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
            weights.append(prior - surprises[-1] - elbo.log_normal(z, mean, log_variance))
            if progress:
                progress(k + 1, samples, "likelihood")
        unit = elbo.BITS / x[0].numel()
        reconstruction = torch.stack(surprises).mean(0) * unit
        nearer = -elbo.importance_bound(torch.stack(weights)) * unit
        return elbo.Evidence(reconstruction, self._kl(q).sum(1) * unit, nearer), samples

    # ------------------------------------------------------------------------------------------- public folders and files

    @classmethod
    def _public(cls, found: public.Found, dtype: torch.dtype, device: torch.device) -> VAE:
        config = cls.checked(
            {"network": found.config, "likelihood": {"kind": "laplace", "deviation": 1.0}, "beta": 1e-6}
        )
        return cls(config, {"autoencoder": found.network(dtype, device)}, About(size=found.size, layout=found.layout))

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> VAE:
        """An AutoencoderKL folder (flat, as `vae/` of a pipeline is); it is saved again as it looked."""
        return cls._public(public.read_folder(path), dtype, device)

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> VAE:  # fmt: skip
        """One file of an AutoencoderKL, under the original authors' names or the public folder's."""
        return cls._public(public.read_file(path, tensors), dtype, device)

    def to_diffusers(self, folder: Path) -> None:
        public.write_folder(folder, self.autoencoder, self.about.size, self.about.layout)

    def to_file(self, path: Path) -> None:
        public.write_file(path, self.autoencoder, self.about.layout)
