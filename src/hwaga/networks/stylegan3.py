"""The alias-free generator of StyleGAN3 (Karras et al. 2021), translation (T) and rotation (R) equivariant, for sampling.

The picture is thought of as continuous, its pixels as samples below a band limit. Each layer has a cutoff frequency fc, a
transition half-width fh and a sampling rate s (section 3.2, figure 4 b): it convolves, up-samples twofold, applies the leaky
ReLU there, and brings the result down to the next rate through a low-pass filter, so that the non-linearity makes no
frequencies that pixels cannot hold. It begins with Fourier features that an affine layer of w turns and moves.

    cutoffs and rates of all layers         `specification`           section 3.2, appendix B
    Fourier features, transformed           `FourierInput`            section 3.1, 3.2; appendix F
    convolution, filtered leaky ReLU        `AliasFreeLayer`          section 3.1, 3.2
    Kaiser and jinc filters                 `layers/resample.py`      appendix C

Names are those of the public networks. The filters and the frequencies of the input belong to the weights.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ..layers.modulation import SLOPE, EqualLinear, demodulation
from ..layers.resample import jinc, kaiser, resample
from .stylegan import LayerNoise, Mapping, MappingConfig, Network


class AliasFreeConfig(BaseModel, frozen=True, extra="forbid"):
    """Defaults are the published T at 256 x 256; R has kernel 1, radial filters, twice channel_base and channel_max."""

    kind: Literal["stylegan3"] = "stylegan3"
    resolution: int = Field(256, ge=4)
    z_dim: int = Field(512, ge=1)
    w_dim: int = Field(512, ge=1)
    classes: int = Field(0, ge=0)
    mapping: MappingConfig = MappingConfig(layers=2, w_avg_beta=0.998)
    channel_base: int = Field(32768, ge=1)
    channel_max: int = Field(512, ge=1)
    layers: int = Field(14, ge=2)
    critical: int = Field(2, ge=1, description="layers at the end that are sampled critically, with no room to spare")
    first_cutoff: float = Field(2.0, gt=0)
    first_stopband: float = Field(2**2.1, gt=0)
    last_stopband_share: float = Field(2**0.3, gt=0, description="of the last cutoff")
    margin: int = Field(10, ge=0, description="pixels around the picture")
    output_scale: float = 0.25
    kernel: Literal[1, 3] = 3
    filter_size: int = Field(6, ge=1)
    oversampling: int = Field(2, ge=1, description="of the leaky ReLU")
    radial: bool = False
    clamp: float | None = Field(256.0, gt=0)
    picture_channels: int = Field(3, ge=1)

    @property
    def num_ws(self) -> int:
        """One for the input, one for each layer and one for the colours."""
        return self.layers + 2

    def build(self) -> AliasFreeGenerator:
        return AliasFreeGenerator(self)


class Band(NamedTuple):
    """What a layer's output may hold."""

    cutoff: float  # fc, cycles over the picture's side
    half_width: float  # fh of the transition
    rate: int  # s: pixels over the picture's side
    size: int  # pixels of a side, margins and all
    channels: int


def specification(config: AliasFreeConfig) -> list[Band]:
    """The bands of the input (first) and of every layer: geometric from the first cutoff to half the resolution, the
    stopbands likewise (appendix B)."""
    steps = config.layers - config.critical
    last_cutoff = config.resolution / 2
    last_stopband = last_cutoff * config.last_stopband_share
    bands = []
    for i in range(config.layers + 1):
        share = min(i / steps, 1.0)
        cutoff = config.first_cutoff * (last_cutoff / config.first_cutoff) ** share
        stopband = config.first_stopband * (last_stopband / config.first_stopband) ** share
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, config.resolution)))
        size = config.resolution if i >= config.layers - 1 else rate + 2 * config.margin
        channels = round(min(config.channel_base / 2 / cutoff, config.channel_max))
        bands.append(Band(cutoff, max(stopband, rate / 2) - cutoff, rate, size, channels))
    bands[-1] = bands[-1]._replace(channels=config.picture_channels)
    return bands


class FourierInput(nn.Module):
    """Sines of random frequencies below the band's cutoff, over a plane that w turns and moves."""

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, config: AliasFreeConfig, band: Band) -> None:
        super().__init__()
        self.band = band
        self.weight = nn.Parameter(torch.empty(band.channels, band.channels))
        self.affine = EqualLinear(config.w_dim, 4, weight_init=0.0, bias_init=(1.0, 0.0, 0.0, 0.0))  # upright, in place
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", torch.zeros(band.channels, 2))
        self.register_buffer("phases", torch.zeros(band.channels))

    def initialise(self, generator: torch.Generator) -> None:
        """Frequencies within the cutoff, from all directions, denser towards its edge."""
        with torch.no_grad():
            self.weight.normal_(generator=generator)
            self.transform.copy_(torch.eye(3))
            direction = torch.randn(self.freqs.shape, generator=generator)
            squared = direction.square().sum(1, keepdim=True)
            self.freqs.copy_(direction / squared.sqrt() * (1 - torch.exp(-squared / 2)).sqrt() * self.band.cutoff)
            self.phases.copy_(torch.rand(self.phases.shape, generator=generator) - 0.5)

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c s s"]:
        t = self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cos, sin, x, y = t.unbind(1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3)
        move = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], 1).view(-1, 3, 3)
        transform = turn @ move @ self.transform  # the learned turn and move, after the user's own
        phases = self.phases + (self.freqs @ transform[:, :2, 2:])[..., 0]
        freqs = self.freqs @ transform[:, :2, :2]
        # what the transform pushes beyond the band fades out, as it could not be sampled
        limit = self.band.rate / 2
        amplitude = (1 - (freqs.norm(dim=2) - self.band.cutoff) / (limit - self.band.cutoff)).clamp(0, 1)
        half = 0.5 * self.band.size / self.band.rate
        at = (torch.arange(self.band.size, device=w.device, dtype=w.dtype) + 0.5) * (2 * half / self.band.size) - half
        angle = freqs[:, :, 0, None, None] * at + freqs[:, :, 1, None, None] * at[:, None]
        waves = torch.sin((angle + phases[:, :, None, None]) * (2 * math.pi)) * amplitude[:, :, None, None]
        return torch.einsum("nihw,oi->nohw", waves, self.weight * (1 / math.sqrt(self.band.channels)))


class AliasFreeLayer(nn.Module):
    """A modulated convolution, then a leaky ReLU between two low-pass filters; or, as the last, colours."""

    magnitude_ema: Tensor
    up_filter: Tensor
    down_filter: Tensor

    def __init__(self, config: AliasFreeConfig, i: int, before: Band, band: Band) -> None:
        super().__init__()
        self.colours = i == config.layers
        self.before, self.band, self.clamp = before, band, config.clamp
        kernel = 1 if self.colours else config.kernel
        self.weight = nn.Parameter(torch.empty(band.channels, before.channels, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(band.channels))
        self.affine = EqualLinear(config.w_dim, before.channels, bias_init=1)
        self.register_buffer("magnitude_ema", torch.ones(()))
        rate = max(before.rate, band.rate) * (1 if self.colours else config.oversampling)
        self.up, self.down = rate // before.rate, rate // band.rate
        taps_up = 1 if self.colours or self.up == 1 else config.filter_size * self.up
        taps_down = 1 if self.colours or self.down == 1 else config.filter_size * self.down
        critical = i >= config.layers - config.critical
        if taps_up > 1:
            self.register_buffer("up_filter", kaiser(taps_up, before.cutoff, 2 * before.half_width, rate))
        if taps_down > 1:
            make = jinc if config.radial and not critical else kaiser
            self.register_buffer("down_filter", make(taps_down, band.cutoff, 2 * band.half_width, rate))
        # padding such that the samples of all layers lie around one centre
        total = (band.size - 1) * self.down + 1 - (before.size + kernel - 1) * self.up + taps_up + taps_down - 2
        self.first = (total + self.up) // 2
        self.last = total - self.first
        self._design = (taps_up, taps_down, rate, critical, config.radial)

    def initialise(self, generator: torch.Generator) -> None:
        taps_up, taps_down, rate, critical, radial = self._design
        with torch.no_grad():
            self.weight.normal_(generator=generator)
            self.bias.zero_()
            self.magnitude_ema.fill_(1.0)
            if taps_up > 1:
                self.up_filter.copy_(kaiser(taps_up, self.before.cutoff, 2 * self.before.half_width, rate))
            if taps_down > 1:
                make = jinc if radial and not critical else kaiser
                self.down_filter.copy_(make(taps_down, self.band.cutoff, 2 * self.band.half_width, rate))

    def forward(self, x: Float[Tensor, "n i y x"], w: Float[Tensor, "n w"]) -> Float[Tensor, "n o s s"]:
        style: Tensor = self.affine(w)
        weight: Tensor = self.weight
        kernel = weight.shape[-1]
        gain = torch.rsqrt(self.magnitude_ema)
        if self.colours:
            style = style / math.sqrt(weight.shape[1])
        else:  # to unit mean square, which nothing but the arithmetic's range depends on
            weight = weight * torch.rsqrt(weight.square().mean((1, 2, 3), keepdim=True))
            style = style * torch.rsqrt(style.square().mean())
        y = F.conv2d(x * (style * gain)[:, :, None, None], weight, padding=kernel - 1)
        if not self.colours:
            y = y * demodulation(weight, style)[:, :, None, None]
        y = y + self.bias[:, None, None]
        y = resample(
            y, getattr(self, "up_filter", None), up=self.up, before=self.first, after=self.last, gain=float(self.up**2)
        )
        if not self.colours:
            y = F.leaky_relu(y, SLOPE) * math.sqrt(2)
        if self.clamp is not None:
            y = y.clamp(-self.clamp, self.clamp)
        return resample(y, getattr(self, "down_filter", None), down=self.down)


class AliasFreeSynthesis(nn.Module):
    """Styles (n, num_ws, w) -> pictures (n, 3, r, r) in about [-1, 1]. There are no noise inputs."""

    def __init__(self, config: AliasFreeConfig) -> None:
        super().__init__()
        self.config = config
        bands = specification(config)
        self.input = FourierInput(config, bands[0])
        self.names = []
        for i, band in enumerate(bands):
            self.names.append(f"L{i}_{band.size}_{band.channels}")
            setattr(self, self.names[-1], AliasFreeLayer(config, i, bands[max(0, i - 1)], band))

    def forward(self, ws: Float[Tensor, "n l w"], noise: LayerNoise = "none") -> Float[Tensor, "n c r r"]:
        first, *rest = ws.unbind(1)
        x = self.input(first)
        for name, w in zip(self.names, rest, strict=True):
            x = getattr(self, name)(x, w)
        return x * self.config.output_scale


class AliasFreeGenerator(Network):
    """z (n, z_dim) standard normal [and a class] -> pictures."""

    def __init__(self, config: AliasFreeConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.mapping, config.z_dim, config.classes, config.w_dim)
        self.synthesis = AliasFreeSynthesis(config)

    def forward(
        self, z: Float[Tensor, "n z"], label: Tensor | None = None, noise: LayerNoise = "none", truncation: float = 1.0,
        cutoff: int | None = None,
    ) -> Float[Tensor, "n c r r"]:  # fmt: skip
        ws = self.mapping(z, label)[:, None].expand(-1, self.config.num_ws, -1)
        return self.synthesis(self.mapping.truncate(ws, truncation, cutoff), noise)
