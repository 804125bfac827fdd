"""VQGAN: pictures as sentences of a learned alphabet (Esser, Rombach and Ommer 2021), and its root, VQ-VAE (van den Oord
et al. 2017).

A tokenizer exchanges each patch of a picture for one of K codes: an encoder makes a vector of it, the nearest of K learned
vectors takes its place, a decoder paints the patch again. A perceptual loss and a discriminator of patches keep the painting
sharp where squared error would blur. A transformer then learns in which order codes follow each other, and new pictures
are written code by code.

    z_q = e_k, k = argmin |z - e_k|                          eq. 2        networks/vq.py: nearest, VectorQuantizer
    gradients straight through the choice                    section 3.1  networks/vq.py: straight_through
    reconstruction, perceptual, codebook, commitment         eq. 4        objectives/vq.py: Tokenizing.terms
    adversary, its adaptive weight lambda, its late start    eq. 5 to 7   objectives/adversarial.py, objectives/vq.py
    p(s) = prod p(s_i | s_<i, c)                             eq. 8        objectives/vq.py: next_tokens; networks/gpt.py
    writing code by code; a window where a picture is larger section 3.2  samplers/tokens.py

Told words (`vqgan-text`), a frozen text encoder reads the prompt, and the codes follow its states. States of the text see each
other in both directions, codes see all of them and the codes before:

    c = tau(y), the states of a text encoder                 Rombach 2022 conditioning/reading.py: said; networks/gpt.py: before
    now and then no words; l_0 + s (l - l_0)                 Gafni 2022   samplers/tokens.py: guided

Choices of the same config: `discriminator: null` and no perceptual loss is the VQ-VAE; codes by gradients or averages,
factorized, cosine, FSQ, Gumbel; 4, 8 or 16 pixels a code by the number of `channels`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from ..conditioning.reading import OWN as WORDS
from ..conditioning.reading import Readers
from ..conditioning.text_encoders import TextEncoderConfig
from ..errors import InputError
from ..formats import vqgan as public
from ..formats import vqgan_single as original
from ..formats.perceptual import perceptual_network
from ..interfaces import Batch, Draw, Objective, Precomputed, Stage, Terms
from ..networks.discriminators import PatchDiscriminatorConfig
from ..networks.gpt import GPTConfig
from ..networks.vq import VQModelConfig
from ..objectives.adversarial import Kind
from ..objectives.perceptual import Perceptual
from ..objectives.vq import ALARMS, Tokenizing, counted, next_tokens, perplexity
from ..samplers.tokens import guided, reading, sample_tokens
from .base import About, Defaults, Request, System, number, whole_number
from .latents import fingerprint
from .pictures import to_inside
from .sources import fitted, read_mask

CODES = "codes"  # of a picture, as they lie beside it


class LossConfig(BaseModel, frozen=True, extra="forbid"):
    """What a painted picture is compared by; the weights are the paper's."""

    pixel: Literal["l1", "l2"] = "l1"
    perceptual: str | None = Field(None, description="openmoji/perceptual, a folder, or a file of LPIPS; null: none")
    perceptual_weight: float = Field(1.0, ge=0)
    codebook_weight: float = Field(1.0, ge=0)


class AdversaryConfig(BaseModel, frozen=True, extra="forbid"):
    """How the discriminator's opinion counts."""

    loss: Kind = "hinge"
    weight: float = Field(0.8, ge=0, description="on top of the adaptive one")
    adaptive: bool = True
    begins: int = Field(0, ge=0, description="steps of the tokenizer before the discriminator plays")


class SamplingConfig(BaseModel, frozen=True, extra="forbid"):
    """What a call of `sample` that says nothing does."""

    temperature: float = Field(1.0, ge=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float = Field(1.0, gt=0, le=1)


class VQGANConfig(BaseModel, frozen=True, extra="forbid"):
    autoencoder: VQModelConfig = VQModelConfig()
    discriminator: PatchDiscriminatorConfig | None = PatchDiscriminatorConfig()
    prior: GPTConfig | None = Field(GPTConfig(), description="null: a tokenizer alone")
    labels: bool = Field(False, description="the prior is told the data's labels")
    classes: int = Field(0, ge=0, description="number of labels; follows from the data")
    coordinates: int = Field(
        0, ge=0, description="the prior is told where in a picture it is, in so many steps; 0: not"
    )
    condition: VQModelConfig | None = Field(
        None, description="the prior is told a second picture (depth, say), by a tokenizer of its own"
    )
    loss: LossConfig = LossConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    keep: float = Field(1.0, gt=0, le=1, description="share of tokens that the prior reads as they are in training")
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _agrees(self) -> VQGANConfig:
        if self.labels != (self.classes > 0):
            raise ValueError(f"labels={self.labels} with classes={self.classes}")
        if sum((self.labels, self.coordinates > 0, self.condition is not None)) > 1:
            raise ValueError("labels, coordinates and condition: the prior is told one of them")
        if self.condition is not None and self.condition.factor != self.autoencoder.factor:
            raise ValueError(
                f"condition has {self.condition.factor} pixels a code, autoencoder {self.autoencoder.factor}"
            )
        if self.prior is not None:
            second = self.condition.quantizer.codes if self.condition is not None else self.coordinates
            wanted = max(self.autoencoder.quantizer.codes, self.classes, second)
            if self.prior.vocabulary < wanted:
                raise ValueError(
                    f"prior.vocabulary={self.prior.vocabulary}: {wanted} are needed, as codes and labels share the tokens"
                )
        return self


class VQGAN(System):
    """Pictures code by code. Networks: `autoencoder` (the tokenizer), `prior`, and `discriminator`, which training alone
    needs."""

    name, title, year = "vqgan", "VQGAN", 2021
    paper = "Taming Transformers for High-Resolution Image Synthesis (arXiv:2012.09841)"
    stage_names = ("tokenizer", "prior")
    takes: ClassVar[tuple[str, ...]] = ("label", "image", "mask", "fit_image", "keep_unmasked", "control")
    own: ClassVar[Mapping[str, str]] = {
        "temperature": "below 1 the prior is bolder, 1 is its own, 0 takes the likeliest code alone",
        "top_k": "only the k likeliest codes are drawn from",
        "top_p": "only the likeliest codes that together have this probability are drawn from",
        "reconstruct": "true paints image= (one or several) as it comes back from its codes",
        "codebook": "true paints the codebook, each code alone; with image= those that it uses",
    }
    formats: ClassVar[tuple[str, ...]] = ("diffusers", "single")
    trains_with = ("discriminator",)
    Config = VQGANConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: Any) -> dict[str, Any]:
        parts = {
            "autoencoder": config.autoencoder, "condition": config.condition, "discriminator": config.discriminator,
            "prior": config.prior,
        }  # fmt: skip
        return {name: part for name, part in parts.items() if part is not None}

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        if config.get("labels"):
            if not classes:
                raise InputError("model.labels=true, but the data have no labels; set model.labels=false")
            config = {"classes": len(classes), **config}
        try:
            tokenizer = VQModelConfig.model_validate(config.get("autoencoder", {}))
        except ValidationError:  # said in `checked`
            return config
        prior = config.get("prior", {})
        if prior is not None:
            places = (size[0] // tokenizer.factor) * (size[1] // tokenizer.factor)
            told = max(config.get("classes", 0), config.get("coordinates", 0))
            room = {
                "vocabulary": max(tokenizer.quantizer.codes, told),
                "length": 2 * places - 1 if config.get("coordinates") or config.get("condition") else places,
            }
            config = {**config, "prior": {**room, **prior}}
        return config

    @classmethod
    def check_data(cls, config: VQGANConfig, size: tuple[int, int]) -> None:
        factor = config.autoencoder.factor
        if any(side % factor for side in size):
            raise InputError(f"data.size={size}: this tokenizer needs multiples of {factor}, the pixels a code's side")
        places = (size[0] // factor) * (size[1] // factor)
        if config.prior is not None and config.prior.length < places:
            raise InputError(
                f"model.prior.length={config.prior.length}: a picture of {size} has {places} codes, and the prior reads its "
                "condition and all but the last; leave length out"
            )

    @property
    def tokenizer(self) -> Any:
        return self.networks["autoencoder"]

    # -------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        found = []
        if any(p.requires_grad for p in self.tokenizer.parameters()):  # else it came trained, as a component
            found.append(self._tokenizer_stage())
        if "prior" in self.networks:
            objective = Objective("prior", ("prior",), self.prior_terms)
            networks = {"prior": self.networks["prior"]}
            found.append(Stage("prior", networks, [objective], averaged=("prior",), held_out=self.prior_held_out))
        return found

    def _tokenizer_stage(self) -> Stage:
        config, losses = self.config, self.tokenizing()
        objectives = [Objective("autoencoder", ("autoencoder",), losses.terms)]
        networks = {"autoencoder": self.tokenizer}
        if losses.discriminator is not None:
            networks["discriminator"] = self.networks["discriminator"]
            objectives.append(
                Objective(
                    "discriminator", ("discriminator",), losses.discriminator_terms, "discriminator",
                    begins=config.adversary.begins,
                )
            )  # fmt: skip
        return Stage(
            "tokenizer", networks, objectives, averaged=("autoencoder",), held_out=self.tokenizer_held_out,
            alarms=ALARMS, game=losses.discriminator is not None, shows=self._beside,
            batch_statistics=losses.discriminator is not None or config.autoencoder.quantizer.tracked,
        )  # fmt: skip

    def tokenizing(self) -> Tokenizing:
        """The losses of the first stage."""
        loss, adversary = self.config.loss, self.config.adversary
        return Tokenizing(
            self.tokenizer, self._perceptual(), self.networks.get("discriminator"), loss.pixel, loss.perceptual_weight,
            loss.codebook_weight, adversary.loss, adversary.weight, adversary.adaptive, adversary.begins,
        )  # fmt: skip

    def _perceptual(self) -> Perceptual | None:
        source = self.config.loss.perceptual
        return None if source is None else Perceptual(perceptual_network(source)).to(self.device)

    def tokenizer_held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """Reconstructions of pictures never trained on."""
        found = self.tokenizing().distances(batch.image, self.tokenizer(batch.image).image)
        return {"loss": torch.stack([*found.values()]).sum(0), **found}

    def prior_terms(self, batch: Batch, draw: Draw) -> Terms:
        """One step of the second stage; with `keep` below 1 the prior reads other codes in the place of some."""
        tokens = self._tokens(batch)
        told = self._hidden(self._told(batch), batch, draw)
        return {"nats": next_tokens(self.networks["prior"], told, tokens, self._read(tokens, draw)).mean()}

    def _read(self, tokens: Tensor, draw: Draw) -> Tensor:
        """What the prior reads of the tokens that it learns."""
        if self.config.keep == 1:
            return tokens
        other = draw.integers("other", self.config.autoencoder.quantizer.codes, tuple(tokens.shape))
        return torch.where(draw.uniform("keep", tuple(tokens.shape)) < self.config.keep, tokens, other)

    def _hidden(self, told: Tensor, batch: Batch, draw: Draw) -> Tensor:
        """What the rows of a training batch begin with; VQGAN's always say it."""
        return told

    def prior_held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        return {"loss": next_tokens(self.networks["prior"], self._told(batch), self._tokens(batch))}

    @torch.no_grad()
    def _tokens(self, batch: Batch) -> Tensor:
        held = batch.extra.get(CODES)
        return (self.tokenizer.codes(batch.image) if held is None else held.long()).flatten(1)

    def precomputed(self) -> Mapping[str, Precomputed]:
        """The codes of pictures, of which a tokenizer that came trained need make them only once."""
        if any(p.requires_grad for p in self.tokenizer.parameters()):
            return {}
        made = lambda image: self.tokenizer.codes(image.to(self.device, self.dtype)).float()  # noqa: E731
        return {CODES: Precomputed(lambda: fingerprint(self.tokenizer), self._grid(self.about.size), made)}

    def _told(self, batch: Batch) -> Tensor:
        """(n, p): what the rows of a batch begin with."""
        size = (batch.image.shape[2], batch.image.shape[3])
        return self._prefix(len(batch), size, batch.label, batch.extra.get("control")).flatten(1)

    def _prefix(
        self, n: int, size: tuple[int, int], label: Tensor | None, control: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """What the prior is told: (n, 1) the label's number, or 0; or a grid (n, y, x)."""
        if self.config.condition is not None or self.config.coordinates:
            return self._told_grid(size, control).expand(n, -1, -1)
        if not self.config.labels:
            return torch.zeros((n, 1), dtype=torch.int64, device=self.device)
        if label is None:
            raise InputError("this model is conditioned on labels, but the data have none")
        return label.to(self.device)[:, None]

    def _told_grid(self, size: tuple[int, int], control: Tensor | None) -> Tensor:
        """(1 or n, y, x): the codes of a second picture, or of where in a picture each place is."""
        if self.config.condition is None:
            return self._coordinates(size)
        if control is None:
            raise InputError("this model is told a second picture (control), but none is given")
        second: Any = self.networks["condition"]
        return second.codes(control.to(self.device, self.dtype))

    def _coordinates(self, size: tuple[int, int]) -> Tensor:
        """(1, y, x): how far down a picture each code's pixels lie, row by row, in steps. Source: the published CoordStage."""
        places = torch.arange(size[0] * size[1], dtype=torch.float32, device=self.device) / (size[0] * size[1])
        mean = avg_pool2d(places.view(1, 1, *size), self.factor())[:, 0]
        return (self.config.coordinates * mean).round().long().clamp(max=self.config.prior.vocabulary - 1)

    def _beside(self, batch: Batch) -> Tensor:
        """Pictures and what became of them, side by side."""
        return torch.cat([batch.image, self.tokenizer(batch.image).image.float()], dim=3)

    # -------------------------------------------------------------------------------------------------------- how it paints

    def paint(self, request: Request) -> Tensor:
        if request.inputs.get("codebook"):
            return self._sheet(request)
        if request.inputs.get("reconstruct"):
            return self.tokenizer.pictures(self._codes_of_image(request).expand(len(request), -1, -1))
        grid = self._grid(request.size)
        known = self._known(request, grid) if "image" in request.inputs else None
        noise = request.source()("noise", (len(request), *grid)).flatten(1)
        read = self._next_logits(request, grid)
        codes = sample_tokens(read, noise, known=known, callback=request.callback, **self._habits(request))
        return self.tokenizer.pictures(codes.view(-1, *grid))

    def _next_logits(self, request: Request, grid: tuple[int, int]) -> Any:
        """What the prior says comes next; of a picture larger than it knows it sees the window around a place."""
        codes = self.config.autoencoder.quantizer.codes
        control = self._control(request) if "control" in request.inputs else None
        prefix = self._prefix(len(request), request.size, request.label, control)
        read = reading(self.networks["prior"], prefix, grid, self._grid(self.about.size))
        return lambda tokens: read(tokens)[:, :codes]

    def _control(self, request: Request) -> Tensor:
        """(1, c, h, w) in [-1, 1]: what the prior is told; one channel is the mean of three."""
        picture = to_inside(fitted("control", request.inputs["control"], request.size))
        return picture.mean(1, keepdim=True) if self.config.condition.in_channels == 1 else picture

    def _habits(self, request: Request) -> dict[str, Any]:
        return {
            **self.config.sampling.model_dump(include=set(SamplingConfig.model_fields)),
            **{k: v for k, v in request.inputs.items() if k in SamplingConfig.model_fields},
        }

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.factor(), size[1] // self.factor()

    def _codes_of_image(self, request: Request) -> Tensor:
        """(1, y, x); of several pictures those of this batch."""
        image = request.inputs["image"]
        several = [image[i] for i in request.pictures] if isinstance(image, (list, tuple)) else [image]
        pictures = torch.cat([fitted("image", one, request.size) for one in several])
        return self.latents_of(to_inside(pictures).to(request.device))

    def _known(self, request: Request, grid: tuple[int, int]) -> Tensor:
        """(n, y x): the picture's codes, -1 where one is drawn anew: wherever the mask touches its pixels."""
        mask = read_mask(request.inputs["mask"], request.size).float()
        anew = max_pool2d(mask, self.factor())[:, 0].to(request.device) > 0
        return torch.where(anew, -1, self._codes_of_image(request)).flatten(1).expand(len(request), -1)

    def _sheet(self, request: Request) -> Tensor:
        """Each code alone, rows first, in a square; with a picture those that it does not use stay white."""
        count, factor = self.config.autoencoder.quantizer.codes, self.factor()
        codes = torch.arange(count, device=request.device).view(-1, 1, 1)
        tiles = torch.cat([self.tokenizer.pictures(part) for part in codes.split(1024)])
        if (image := request.inputs.get("image")) is not None:
            used = (
                counted(self.latents_of(to_inside(fitted("image", image, request.size)).to(request.device)), count) > 0
            )
            tiles = torch.where(used.view(-1, 1, 1, 1), tiles, 1.0)
        side = next(s for s in range(1, count + 1) if s * s >= count)
        rows = -(-count // side)
        sheet = tiles.new_ones((rows * side, *tiles.shape[1:]))
        sheet[:count] = tiles
        sheet = (
            sheet.view(rows, side, 3, factor, factor).permute(2, 0, 3, 1, 4).reshape(1, 3, rows * factor, side * factor)
        )
        return interpolate(sheet, scale_factor=float(max(1, 8 // factor)), mode="nearest").expand(
            len(request), -1, -1, -1
        )

    # ---------------------------------------------------------------------------------------------------- what can be asked

    def label_count(self) -> int:
        return self.config.classes

    def factor(self) -> int:
        return self.config.autoencoder.factor

    def how_many(self, n: int, given: Mapping[str, Any]) -> int:
        image = given.get("image")
        return len(image) if given.get("reconstruct") and isinstance(image, (list, tuple)) and image else n

    def check(self, request: Request) -> None:
        given = request.inputs
        if given:
            self._check_given(given)
        if given.get("reconstruct") or given.get("codebook"):
            return
        if "prior" not in self.networks:
            raise InputError(
                "this model is a tokenizer alone and has no prior to paint with; it encodes and decodes pictures "
                "(encode, decode, or sample with image= and reconstruct=true)"
            )
        if ("control" in given) != (self.config.condition is not None):
            told = (
                "is told no second picture; leave it out" if "control" in given else "is told a second picture; give it"
            )
            raise InputError(f"control=: the prior of this model {told}")
        if any(side < known for side, known in zip(request.size, self.about.size, strict=True)):
            raise InputError(
                f"size={request.size}: the prior of this model knows pictures of {self.about.size}; that or larger can be painted"
            )

    def _check_given(self, given: Mapping[str, Any]) -> None:
        for name in ("reconstruct", "codebook"):
            if name in given and not isinstance(given[name], bool):
                raise InputError(f"{name}={given[name]!r}: true or false is needed")
        if "temperature" in given:
            number("temperature", given["temperature"], 0, 1000)
        if "top_k" in given:
            whole_number("top_k", given["top_k"], 1)
        if "top_p" in given and number("top_p", given["top_p"], 0, 1) == 0:
            raise InputError("top_p=0: nothing would be left to draw from; a number above 0 is needed")
        whole = given.get("reconstruct") or given.get("codebook")
        if isinstance(given.get("image"), (list, tuple)) and not given.get("reconstruct"):
            raise InputError(
                f"image= has {len(given['image'])} pictures; only reconstruct=true takes several, give one"
            )
        if given.get("reconstruct") and "image" not in given:
            raise InputError("reconstruct=true without image=; it says that the image is painted as it comes back")
        if whole and "mask" in given:
            raise InputError("mask= with reconstruct or codebook, which draw no codes; give one of them")
        if "image" in given and not (whole or "mask" in given):
            raise InputError(
                "image= given to VQGAN without mask=, reconstruct=true or codebook=true: nothing would be painted"
            )

    def latents_of(self, x: Tensor) -> Tensor:
        return self.tokenizer.codes(x.to(self.dtype))

    def pictures_of(self, latents: Tensor) -> Tensor:
        count = self.config.autoencoder.quantizer.codes
        if latents.dtype != torch.int64:
            raise InputError(f"latents of dtype {str(latents.dtype).removeprefix('torch.')}: VQGAN decodes int64 codes")
        if latents.dim() != 3 or not latents.numel():
            raise InputError(
                f"latents of shape {tuple(latents.shape)}: codes (n, height / {self.factor()}, width / {self.factor()})"
            )
        low, high = int(latents.min()), int(latents.max())
        if low < 0 or high >= count:
            raise InputError(f"codes from {low} to {high}: this codebook has the codes 0 to {count - 1}")
        return self.tokenizer.pictures(latents)

    @torch.no_grad()
    def codebook_use(self, image: Tensor) -> dict[str, float]:
        """Of pictures (n, 3, h, w) in [0, 1]: how many different codes they have, their share of all, the perplexity."""
        size, counts = self.config.autoencoder.quantizer.codes, torch.zeros(())
        for part in image.split(64):
            counts = counts + counted(self.encode(part), size)
        used = float((counts > 0).sum())
        return {"codes": used, "codes_share": used / size, "codes_perplexity": float(perplexity(counts))}

    # ------------------------------------------------------------------------------------------------------ public weights

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> VQGAN:
        """A VQModel's folder, flat or in a sub-folder; it is saved again as it looked."""
        return cls._public(public.read_folder(path), dtype, device)

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> VQGAN:  # fmt: skip
        """An original checkpoint, of a tokenizer or of a tokenizer and its transformer, with its YAML."""
        return cls._public(public.read_file(path, tensors), dtype, device)

    @classmethod
    def _public(cls, found: public.Found, dtype: torch.dtype, device: torch.device) -> VQGAN:
        config = cls.checked({
            "prior": None, "discriminator": None, "labels": "classes" in found.told, **found.told, **found.configs,
        })  # fmt: skip
        return cls(config, found.networks(dtype, device), About(size=found.size, layout=found.layout))

    def to_diffusers(self, folder: Path) -> None:
        """Writes the tokenizer's public folder; a prior has no public layout there, and is named in a warning."""
        public.write_folder(folder, self.tokenizer, self.about.size, self.about.layout)
        if "prior" in self.networks:
            warnings.warn("the public folder holds the tokenizer alone: it has no place for the prior", stacklevel=3)

    def to_file(self, path: Path) -> str:
        """Writes the original authors' tensors; gives the YAML that belongs beside them."""
        told = {"classes": self.config.classes, "coordinates": self.config.coordinates}
        return original.write_file(
            path, self.networks, {name: count for name, count in told.items() if count}, self.about.size,
            self.about.layout.get("file") or {},
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- told words


class TextSamplingConfig(SamplingConfig, frozen=True, extra="forbid"):
    guidance_scale: float = Field(1.0, description="1: off")


class TextVQGANConfig(VQGANConfig, frozen=True, extra="forbid"):
    text_encoder: TextEncoderConfig | None = Field(None, description="that of components.text_encoder")
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of training pictures whose words are hidden")
    examples: tuple[str, ...] = Field((), description="prompts that sample grids show; left out: some captions")
    sampling: TextSamplingConfig = TextSamplingConfig()

    @model_validator(mode="after")
    def _is_told_words(self) -> TextVQGANConfig:
        if self.labels or self.coordinates or self.condition is not None:
            raise ValueError("labels, coordinates and condition: this prior is told words alone")
        if self.prior is None or self.text_encoder is None:
            raise ValueError("prior and text_encoder: this system has both; system: vqgan is a tokenizer alone")
        if self.prior.text_width != self.text_encoder.width:
            raise ValueError(
                f"prior.text_width={self.prior.text_width}: the text encoder gives {self.text_encoder.width}"
            )
        return self


class TextVQGAN(Readers, VQGAN):
    """Networks: those of VQGAN, and `text_encoder`, which is frozen."""

    name, title = "vqgan-text", "VQGAN told words"
    told = "prior"
    takes: ClassVar[tuple[str, ...]] = (
        "prompt", "negative_prompt", "guidance_scale", "image", "mask", "fit_image", "keep_unmasked",
    )  # fmt: skip
    own: ClassVar[Mapping[str, str]] = {**VQGAN.own, **WORDS}
    formats: ClassVar[tuple[str, ...]] = ("diffusers",)
    Config = TextVQGANConfig

    @classmethod
    def network_configs(cls, config: Any) -> dict[str, Any]:
        return {**super().network_configs(config), "text_encoder": config.text_encoder}

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        if not config.get("text_encoder"):
            raise InputError(
                f"{cls.name} reads captions by a trained text encoder; name it: components.text_encoder=openmoji/clip"
            )
        encoder = TextEncoderConfig.model_validate(config["text_encoder"])
        asked, config = config.get("prior") or {}, super().complete(config, size, classes)
        if config.get("prior", {}) is None:  # said in `checked`
            return config
        prior = {"text_width": encoder.width, "unmasked": encoder.length, **config.get("prior", {})}
        if "length" in prior and "length" not in asked:
            prior["length"] += encoder.length - 1  # it was that of rows which begin with one token
        return {**config, "prior": prior}

    # -------------------------------------------------------------------------------------------------------- how it learns

    def _told(self, batch: Batch) -> Tensor:
        return self.said(self.texts(batch), batch)["text"]

    def _hidden(self, told: Tensor, batch: Batch, draw: Draw) -> Tensor:
        """Now and then no words, so that guidance has its other branch."""
        if self.config.text_dropout == 0:
            return told
        hide = draw.uniform("text_dropout", (len(told),)) < self.config.text_dropout
        return torch.where(hide[:, None, None], self.said([None], batch)["text"], told)

    # -------------------------------------------------------------------------------------------------------- how it paints

    def _next_logits(self, request: Request, grid: tuple[int, int]) -> Any:
        codes, scale = self.config.autoencoder.quantizer.codes, request.guidance_scale
        states = self.said(self.texts(request), request)["text"]
        if scale != 1:
            states = torch.cat([self.said(self.negatives(request), request)["text"], states])
        read = reading(self.networks["prior"], states, grid, self._grid(self.about.size))
        read = read if scale == 1 else guided(read, scale)
        return lambda tokens: read(tokens)[:, :codes]

    def defaults(self) -> Defaults:
        return Defaults(guidance_scale=self.config.sampling.guidance_scale)

    def check(self, request: Request) -> None:
        super().check(request)
        if request.guidance_scale != 1 and self.config.text_dropout == 0:
            raise InputError(
                f"guidance_scale={request.guidance_scale:g}: this model learned with text_dropout=0 and has nothing to guide "
                "away from; use 1"
            )
