"""The tokenizer of VQGAN, and its codebooks: from vectors to codes (whole numbers) and back, and how a codebook learns.

`VQModel` is an encoder to a grid of vectors, a codebook that each is exchanged at, and a decoder back, in the public layout
(diffusers' VQModel): encoder and decoder as in `autoencoder.py`, 1 x 1 convolutions into the codebook's space (`quant_conv`)
and out of it (`post_quant_conv`), `quantize.embedding.weight`. Source: Esser, Rombach and Ommer 2021, section 3.1, table 7.

`VectorQuantizer` has K vectors and takes the nearest (van den Oord et al. 2017); `FiniteScalarQuantizer` has none and rounds
each number to a few levels (Mentzer et al. 2023); `GumbelQuantizer` chooses by logits (Esser et al. 2021's f8 tokenizers, after
Jang et al. 2016). All have the same four methods:

    quantize(z)     Quantized: the codes' vectors with gradients straight through, the codes, the codebook's loss
    codes(z)        (n, y, x) int64, for vectors (n, c, y, x)
    vectors(codes)  (n, c, y, x)
    learn(...)      what moves in training beside gradients: averages, codes that nobody uses

A code is written in whole numbers 0 ... K - 1, rows first. Factorized codes (Yu et al. 2022): `width` smaller than the
encoder's channels, as the 1 x 1 convolutions around the codebook lead into its space and out of it; `cosine` compares
directions alone.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad, softmax

from ..layers.conv import Conv2d
from ..layers.initialise import initialise
from . import tiling
from .autoencoder import CodecConfig, Coder, Decoder, Encoder, ends
from .tiling import Tiling

BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**28}  # of distances at a time: a lookup of any size takes little more memory
_GROUP = 64  # distances of which the least is found before they are looked at one by one


class QuantizerConfig(BaseModel, frozen=True, extra="forbid"):
    """A codebook; the defaults are the published f16 tokenizer's (Esser et al. 2021)."""

    kind: Literal["vq", "fsq", "gumbel"] = "vq"
    codes: int = Field(1024, ge=2, description="K; of fsq the product of `levels`")
    width: int = Field(256, ge=1, description="numbers of a code's vector; of fsq one a level")
    levels: tuple[int, ...] = Field((), description="fsq: how many values each number can have")
    cosine: bool = Field(False, description="vq: vectors are compared by direction, all of length 1")
    update: Literal["gradient", "average"] = Field(
        "gradient", description="vq: codes follow gradients, or are moving averages of the vectors that chose them"
    )
    decay: float = Field(0.99, ge=0, lt=1, description="of the moving averages, a step")
    commitment: float = Field(0.25, ge=0, description="weight of the term that keeps the encoder near its codes")
    codebook: float = Field(1.0, ge=0, description="vq by gradients: weight of the term that moves the codes")
    restart: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="vq: a code used less than this share of an even use is put where a vector is; 0: never",
    )
    temperature: float = Field(1.0, gt=0, description="gumbel: of the draws in training")
    prior: float = Field(5e-4, ge=0, description="gumbel: weight of the divergence from an even use of the codes")

    @model_validator(mode="before")
    @classmethod
    def _levels_settle(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("kind") == "fsq" and value.get("levels"):
            levels = [n for n in value["levels"] if isinstance(n, int)]
            return {"codes": math.prod(levels), "width": len(levels), **value}
        return value

    @model_validator(mode="after")
    def _agrees(self) -> QuantizerConfig:
        if (self.kind == "fsq") != bool(self.levels):
            raise ValueError(f"levels={list(self.levels)} with kind={self.kind}: fsq has levels, the others have none")
        if self.levels and (
            min(self.levels) < 2 or (self.codes, self.width) != (math.prod(self.levels), len(self.levels))
        ):
            raise ValueError(
                f"levels={list(self.levels)}: each is at least 2, codes is their product and width their number; leave both out"
            )
        return self

    @property
    def tracked(self) -> bool:
        """Whether the use of each code is followed."""
        return self.kind == "vq" and (self.update == "average" or self.restart > 0)

    def build(self) -> VectorQuantizer | FiniteScalarQuantizer | GumbelQuantizer:
        if self.kind == "vq":
            return VectorQuantizer(self)
        return FiniteScalarQuantizer(self) if self.kind == "fsq" else GumbelQuantizer(self)


class Quantized(NamedTuple):
    """What became of vectors z (n, c, y, x)."""

    vectors: Tensor  # (n, c, y, x): the codes' vectors, with gradients as if they were z
    codes: Tensor  # (n, y, x) int64
    loss: Tensor  # (n,) what the codebook and the encoder pay for being apart


def straight_through(z: Tensor, value: Tensor) -> Tensor:
    """`value`, whose gradient goes to z as it is (Bengio et al. 2013; van den Oord et al. 2017, section 3.2)."""
    return z + (value - z).detach()


# ------------------------------------------------------------------------------------------------------- nearest vector


@torch.no_grad()
def nearest(vectors: Float[Tensor, "n d"], book: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """The place of the nearest row of `book` (squared distance; of equally near ones the first), block by block.

    One matrix product a block gives |e|^2 - 2 z.e in single precision; the two least are then measured again from their
    differences in double precision, so that rounding cannot turn the order of the two.
    """
    count = book.shape[0]
    blank = -count % _GROUP
    squares = pad(book.float().square().sum(1), (0, blank), value=math.inf)
    rows = pad(book.float(), (0, 0, 0, blank)).T
    found = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    size = max(1, BLOCK_BYTES.get(vectors.device.type, 2**25) // (4 * len(squares)))
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size].float()
        with torch.autocast(vectors.device.type, enabled=False):
            distances = torch.addmm(squares, part, rows, alpha=-2)
        first, second = _two_least(distances.view(len(part), -1, _GROUP))
        second = second.clamp(max=count - 1)  # a book of one row has no second
        one, other = ((part.double() - book[at].double()).square().sum(1) for at in (first, second))
        nearer = (other < one) | ((other == one) & (second < first))
        found[start : start + size] = torch.where(nearer, second, first)
    return found


def _two_least(distances: Float[Tensor, "n groups size"]) -> tuple[Tensor, Tensor]:
    """The places (in a row of groups times size) of the least and of the second least; overwrites `distances`.

    The least of each group first: that is one fast pass, and only one group a row is then looked at by place.
    """
    least = distances.amin(2)
    found = []
    for _ in range(2):
        group = least.argmin(1, keepdim=True)
        inside = distances.take_along_dim(group[:, :, None], 1)[:, 0]
        place = inside.argmin(1, keepdim=True)
        found.append((group * _GROUP + place)[:, 0])
        distances.view(len(distances), -1).scatter_(1, found[-1][:, None], math.inf)
        least.scatter_(1, group, inside.scatter(1, place, math.inf).amin(1, keepdim=True))
    return found[0], found[1]


# -------------------------------------------------------------------------------------------------------- the codebooks


class VectorQuantizer(nn.Module):
    """K vectors that learn; z becomes the nearest of them.

        quantized        e_k, k = argmin |z - e_k|^2                                     van den Oord et al. 2017, eq. 1, 2
        loss             codebook |sg(z) - e|^2 + commitment |z - sg(e)|^2               eq. 3
        averages         N_k <- d N_k + (1 - d) n_k,  m_k <- d m_k + (1 - d) sum z,  e_k = m_k / N_k    appendix A.1
        restart          a code whose N_k is small is put on a vector of the batch       Dhariwal et al. 2020, section 3.1

    The published f16 tokenizers were trained with commitment 1 and codebook 0.25.
    """

    use: Tensor
    sums: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codes, config.width)
        if config.update == "average":
            self.embedding.weight.requires_grad_(False)
        if config.tracked:  # part of training's state: checkpoints hold them, public files do not
            self.register_buffer("use", torch.zeros(config.codes))
            self.register_buffer("sums", torch.zeros(config.codes, config.width))

    def initialise(self, generator: torch.Generator) -> None:
        """Uniform in +-1/K, as published; with restarts the first batch's vectors take their places at once."""
        bound = 1 / self.config.codes
        with torch.no_grad():
            self.embedding.weight.uniform_(-bound, bound, generator=generator)
            if self.config.tracked:
                self.use.fill_(0.0 if self.config.restart else 1.0)
                self.sums.copy_(self.embedding.weight * self.use[:, None])

    def book(self) -> Float[Tensor, "k c"]:
        """The codes' vectors."""
        weight = self.embedding.weight
        return (
            _unit(weight.clone(), 1) if self.config.cosine else weight
        )  # a copy: `learn` writes before the backward pass

    def forward(self, z: Float[Tensor, "n c y x"], draws: Tensor | None = None) -> Quantized:
        z = _unit(z.float(), 1) if self.config.cosine else z.float()
        codes = self.codes(z)
        chosen = self.vectors(codes)
        away = self.config.commitment * (z - chosen.detach()).square()
        if self.config.update == "gradient":
            away = away + self.config.codebook * (z.detach() - chosen).square()
        return Quantized(straight_through(z, chosen), codes, away.flatten(1).mean(1))

    def codes(self, z: Float[Tensor, "n c y x"]) -> Int[Tensor, "n y x"]:
        z = _unit(z, 1) if self.config.cosine else z
        n, _, y, x = z.shape
        return nearest(rearrange(z, "n c y x -> (n y x) c"), self.book()).view(n, y, x)

    def vectors(self, codes: Int[Tensor, "n y x"]) -> Float[Tensor, "n c y x"]:
        return self.book()[codes].permute(0, 3, 1, 2)

    @torch.no_grad()
    def learn(self, z: Float[Tensor, "n c y x"], codes: Int[Tensor, "n y x"], order: Float[Tensor, "n yx"]) -> None:
        """Moves the averages by a batch, then puts codes that are hardly used on vectors of it.

        `order` are uniform draws, one a vector: who has the highest takes the first code that is free, and so on.
        """
        if not self.config.tracked:
            return
        vectors = rearrange(_unit(z, 1) if self.config.cosine else z, "n c y x -> (n y x) c").float()
        counts = torch.zeros_like(self.use).index_add_(0, codes.flatten(), vectors.new_ones(len(vectors)))
        self.use.lerp_(counts, 1 - self.config.decay)
        weight = self.embedding.weight
        if self.config.update == "average":
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes.flatten(), vectors), 1 - self.config.decay)
            mean = self.sums / self.use.clamp(min=1e-5)[:, None]
            weight.copy_(torch.where(self.use[:, None] > 1e-5, mean, weight))
        if self.config.restart:
            even = len(vectors) / self.config.codes
            idle = self.use < self.config.restart * even
            takers = order.flatten().argsort(descending=True, stable=True)
            turn = (idle.cumsum(0) - 1).clamp(min=0) % len(vectors)  # the how-manieth of the free codes this is
            new = vectors[takers[turn]]
            weight.copy_(torch.where(idle[:, None], new, weight))
            self.use.copy_(torch.where(idle, even, self.use))
            self.sums.copy_(torch.where(idle[:, None], new * even, self.sums))


class FiniteScalarQuantizer(nn.Module):
    """No codebook: each of a few numbers is held between bounds and rounded to one of L values.

        bounded      tanh(z + s) h - o with h = 1.001 (L - 1) / 2; where L is even o = 1/2 and s = atanh(o / h), else 0
        vector       round(bounded) / floor(L / 2), in [-1, 1]
        code         the values as digits, the first one least

    Nothing can collapse and there is no loss; the rounding is straight through. Source: Mentzer et al. 2023, section 3.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config

    def initialise(self, generator: torch.Generator) -> None:
        """Nothing learns here."""

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.levels, device=like.device).view(1, -1, 1, 1)

    def _worth(self, like: Tensor) -> Tensor:
        """What 1 more in each digit adds to a code."""
        return self._levels(like).cumprod(1) // self._levels(like)

    def _rounded(self, z: Tensor) -> Tensor:
        """Whole numbers around 0, straight through."""
        levels = self._levels(z)
        half = (levels - 1) * 1.001 / 2
        offset = (levels + 1) % 2 / 2
        bounded = (z.float() + (offset / half).atanh()).tanh() * half - offset
        return straight_through(bounded, bounded.round())

    def _numbered(self, rounded: Tensor) -> Tensor:
        digits = rounded.detach().round().long() + self._levels(rounded) // 2
        return (digits * self._worth(rounded)).sum(1)

    def forward(self, z: Float[Tensor, "n c y x"], draws: Tensor | None = None) -> Quantized:
        rounded = self._rounded(z)
        return Quantized(rounded / (self._levels(z) // 2), self._numbered(rounded), z.new_zeros(len(z)))

    def codes(self, z: Float[Tensor, "n c y x"]) -> Int[Tensor, "n y x"]:
        return self._numbered(self._rounded(z))

    def vectors(self, codes: Int[Tensor, "n y x"]) -> Float[Tensor, "n c y x"]:
        half = self._levels(codes) // 2
        digits = codes[:, None] // self._worth(codes) % self._levels(codes)
        return (digits - half).float() / half

    def learn(self, z: Tensor, codes: Tensor, order: Tensor) -> None:
        """Nothing."""


class GumbelQuantizer(nn.Module):
    """A 1 x 1 convolution gives a logit a code; in training one is drawn, afterwards the highest is taken.

    In training the choice is one of softmax((logits + g) / temperature), g Gumbel, hard ahead and soft back (Jang et al.
    2016, section 2.2). The loss is `prior` times KL(softmax(logits) || even), a mean over places. Taking the highest
    afterwards makes codes a function of the picture; the published code draws there too.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(config.width, config.codes, 1)
        self.embed = nn.Embedding(config.codes, config.width)

    def initialise(self, generator: torch.Generator) -> None:
        initialise(self, generator)

    def forward(self, z: Float[Tensor, "n c y x"], draws: Float[Tensor, "n yx k"] | None = None) -> Quantized:
        """`draws`: uniform in [0, 1), one a place and code; without them the highest logit is taken."""
        logits = self.proj(z)
        shares = softmax(logits, 1)
        loss = self.config.prior * (shares * (shares * self.config.codes + 1e-10).log()).sum(1).flatten(1).mean(1)
        noised = logits
        if draws is not None:
            uniform = rearrange(draws, "n (y x) k -> n k y x", y=z.shape[2]).clamp(1e-10, 1 - 1e-7)
            noised = (logits - (-uniform.log()).log()) / self.config.temperature
        soft = softmax(noised, 1)
        codes = noised.argmax(1)
        hard = straight_through(soft, one_hot(codes, self.config.codes).permute(0, 3, 1, 2).to(soft.dtype))
        return Quantized(torch.einsum("nkyx,kc->ncyx", hard, self.embed.weight), codes, loss)

    def codes(self, z: Float[Tensor, "n c y x"]) -> Int[Tensor, "n y x"]:
        return self.proj(z).argmax(1)

    def vectors(self, codes: Int[Tensor, "n y x"]) -> Float[Tensor, "n c y x"]:
        return self.embed.weight[codes].permute(0, 3, 1, 2)

    def learn(self, z: Tensor, codes: Tensor, order: Tensor) -> None:
        """Nothing."""


def _unit(vectors: Tensor, dim: int) -> Tensor:
    return vectors / vectors.norm(dim=dim, keepdim=True).clamp(min=1e-12)


# ------------------------------------------------------------------------------------------------------- the tokenizer


class VQModelConfig(CodecConfig, frozen=True, extra="forbid"):
    """A tokenizer; the defaults are the published f16 one's for 256 x 256 pictures."""

    channels: tuple[int, ...] = Field((128, 128, 256, 256, 512), min_length=1, max_length=16)
    attention: tuple[bool, ...] | None = (False, False, False, False, True)
    latent_channels: int = Field(256, ge=1)
    double_z: bool = Field(False, description="a tokenizer has no variance")
    quantizer: QuantizerConfig = QuantizerConfig()

    def build(self) -> VQModel:
        return VQModel(self)


class Told(NamedTuple):
    """What a tokenizer makes of n pictures in training."""

    image: Tensor  # (n, 3, h, w) about [-1, 1]
    z: Tensor  # (n, c, y, x) what the encoder said, in the codebook's space
    codes: Tensor  # (n, y, x) int64
    loss: Tensor  # (n,) the codebook's


class VQModel(Coder):
    """Pictures are in [-1, 1], codes int64 (n, h / f, w / f)."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tiling = Tiling()
        width, channels = config.quantizer.width, config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = Conv2d(channels * (2 if config.double_z else 1), width, 1)
        self.quantize = config.quantizer.build()
        self.post_quant_conv = Conv2d(width, channels, 1)

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: variance scaling, 0 for what ends a residual branch; the codebook's as it says."""
        initialise(self, generator, zero=ends(self))
        self.quantize.initialise(generator)

    def forward(self, image: Float[Tensor, "n 3 h w"], draws: Tensor | None = None) -> Told:
        """There and back; `draws` as the codebook takes them (Gumbel in training)."""
        z = self.quant_conv(self.encoder(image))
        found = self.quantize(z, draws)
        painted = self.decoder(self.post_quant_conv(found.vectors.to(self.last_layer.dtype)))
        return Told(painted, z, found.codes, found.loss)

    def latents(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c y x"]:
        """What the encoder says, in the codebook's space, not yet quantised. h and w are multiples of `config.factor`."""
        return self.quant_conv(tiling.encoded(self.encoder, image, self.tiling))

    def codes(self, image: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n y x"]:
        return self.quantize.codes(self.latents(image))

    def pictures(self, codes: Int[Tensor, "n y x"]) -> Float[Tensor, "n 3 h w"]:
        """What codes look like; each must be below `config.quantizer.codes`."""
        vectors = self.quantize.vectors(codes).to(self.last_layer.dtype)
        return tiling.decoded(self.decoder, self.post_quant_conv(vectors), self.tiling)
