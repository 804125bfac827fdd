"""ControlNet: a trainable copy of half a network, which tells the locked whole what to keep to (Zhang, Rao and Agrawala 2023).

    y = F(x; theta) + Z( F(x + Z(c; theta_z1); theta_c); theta_z2 )                 eq. 2

F is Stable Diffusion's U-Net, theta stays as it was; theta_c begins as a copy of its way down and middle; Z are 1 x 1
convolutions that begin at zero, so that at first nothing is added at all and training does no harm.

    hint      the control map, a picture in [0, 1], to the size of the latents; added once, behind conv_in    section 3.2
    forward   what is added to each of what the U-Net's way down keeps, and to its middle                      figure 3

A map does not change while a picture is painted: `hint` is asked once a call, `forward` at every step. Parameters have the names
of ControlNetModel folders (the hint network, `controlnet_cond_embedding`, ends in a zero convolution of its own).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from ..layers.conv import Conv2d
from ..layers.initialise import initialise
from ..layers.resnet import ResnetBlock
from ..layers.spatial import SpatialTransformer
from ..networks.text_unet import Residuals, TextUNet, TextUNetConfig, TextUNetDown
from ..networks.unet import memory_format

GUESS_FROM = (
    0.1  # guess mode: what is added to conv_in's output is weighed with this, the middle with 1, evenly in logarithm
)


class ControlNetConfig(TextUNetConfig, frozen=True, extra="forbid"):
    """Sizes of a ControlNet: those of the U-Net that it copies, and of its hint network."""

    hint_channels: tuple[int, ...] = Field(
        (16, 32, 96, 256), min_length=1, max_length=8, description="widths of the hint network, each at half the size"
    )
    map_channels: int = Field(3, ge=1, description="of a control map")
    bgr: bool = Field(False, description="it was trained on maps whose red and blue are exchanged")
    pooled: bool = Field(False, description="what is added is a mean over all places (the shuffle model)")

    @classmethod
    def of(cls, base: TextUNetConfig, **own: Any) -> ControlNetConfig:
        """The config of a ControlNet for a U-Net: told the time, text and sizes as it is, but no guidance scale or span."""
        told = {"in_channels": base.out_channels, "guidance_width": 0, "span": False}
        return cls(**{**base.model_dump(), **told, **own})

    @property
    def map_factor(self) -> int:
        """How many pixels of a control map, a side, are one of the latents."""
        return 2 ** (len(self.hint_channels) - 1)

    def build(self) -> ControlNet:  # type: ignore[override]
        return ControlNet(self)


class Hint(nn.Module):
    """A control map to what is added behind conv_in: convolutions with SiLU between, half the size at every second."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.hint_channels
        self.conv_in = Conv2d(config.map_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, width in zip(widths[:-1], widths[1:], strict=True):
            self.blocks.append(Conv2d(before, before, 3, padding=1))
            self.blocks.append(Conv2d(before, width, 3, stride=2, padding=1))
        self.conv_out = Conv2d(widths[-1], config.channels[0], 3, padding=1)

    def forward(self, control: Float[Tensor, "n m H W"]) -> Float[Tensor, "n c h w"]:
        x = silu(self.conv_in(control.contiguous(memory_format=memory_format(control))))
        for layer in self.blocks:
            x = silu(layer(x))
        return self.conv_out(x)


class ControlNet(TextUNetDown):
    """See the top of this file."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        kept = [config.channels[0]]  # widths of what the way down keeps
        for i, width in enumerate(config.channels):
            kept += [width] * (config.blocks + (i < len(config.channels) - 1))
        self.controlnet_cond_embedding = Hint(config)
        self.controlnet_down_blocks = nn.ModuleList(Conv2d(width, width, 1) for width in kept)
        self.controlnet_mid_block = Conv2d(config.channels[-1], config.channels[-1], 1)

    def initialise(self, generator: torch.Generator) -> None:
        """First weights: those of a U-Net, and zero for every convolution through which it speaks; then see `copy`."""
        ends: list[nn.Module] = [part.conv2 for part in self.modules() if isinstance(part, ResnetBlock)]
        ends += [part.proj_out for part in self.modules() if isinstance(part, SpatialTransformer)]
        zero = [self.controlnet_cond_embedding.conv_out, *self.controlnet_down_blocks, self.controlnet_mid_block]
        initialise(self, generator, zero=[*ends, *zero])

    @torch.no_grad()
    def copy(self, base: TextUNet) -> None:
        """Takes the weights of the U-Net that it is to control. Of a U-Net that is told more than the noised picture (a mask, a
        depth) the first convolution's channels for the picture are taken. ValueError where it is another network."""
        given, own = base.state_dict(), self.state_dict()
        for name, value in own.items():
            if name.startswith("controlnet_"):
                continue
            taken = given[name] if name in given else None
            if taken is not None and name == "conv_in.weight":
                taken = taken[:, : value.shape[1]]
            if taken is None or taken.shape != value.shape:
                raise ValueError(f"{name}: the U-Net has {None if taken is None else tuple(taken.shape)} there, "
                                 f"its ControlNet {tuple(value.shape)}")  # fmt: skip
            value.copy_(taken)

    def hint(self, control: Float[Tensor, "n m H W"]) -> Float[Tensor, "n c h w"]:
        """What is added behind conv_in, of control maps in [0, 1] (-1: a hole) at `map_factor` times the latents' size."""
        control = control.flip(1) if self.config.bgr else control
        return self.controlnet_cond_embedding(control.to(self.conv_in.weight.dtype))

    def forward(
        self, x: Float[Tensor, "n c h w"], time: Float[Tensor, " n"], text: Float[Tensor, "n l d"],
        hint: Float[Tensor, "n e h w"], scale: float = 1.0, guess: bool = False, pooled: Float[Tensor, "n p"] | None = None,
        ids: Float[Tensor, "n k"] | None = None, label: Int[Tensor, " n"] | None = None,
    ) -> Residuals:  # fmt: skip
        """What is added to the U-Net at `time` for noised latents x; channels of x behind `in_channels` are not looked at.

        scale: 1 is the paper's formula, 0 adds nothing. guess: the less, the higher the resolution, as public code does where a
        control is to lead without a prompt (section 3.4 weighs by resolution for the same end). The rest as in `TextUNet.forward`.
        """
        text = text.to(x.dtype) if text.dtype != x.dtype else text
        embedding = self.embed(time, pooled, ids, label=label).to(x.dtype)
        kept = self.down(self.enter(x[:, : self.config.in_channels]) + hint, embedding, text)
        middle = self.across(kept[-1], embedding, text)
        said = [layer(value) for layer, value in zip(self.controlnet_down_blocks, kept, strict=True)]
        said.append(self.controlnet_mid_block(middle))
        if self.config.pooled:
            said = [value.mean((2, 3), keepdim=True) for value in said]
        elif guess:
            powers = torch.logspace(0, 1, len(said)) * GUESS_FROM
            said = [value * power for value, power in zip(said, powers.tolist(), strict=True)]
        if scale != 1:
            said = [value * scale for value in said]
        return said[:-1], said[-1]


def summed(parts: list[Residuals]) -> Residuals:
    """What several ControlNets add together: place by place the sum."""
    down = [sum(values[1:], values[0]) for values in zip(*(part[0] for part in parts), strict=True)]
    middles = [part[1] for part in parts]
    return down, sum(middles[1:], middles[0])
