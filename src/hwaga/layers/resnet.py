"""The residual block of convolutional networks (diffusion's with a time, autoencoders' without), and the steps between
resolutions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu

from .conv import Conv2d


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, dropout, conv; plus the input (through a 1 x 1 where channels change).

    With `scale_shift` the time vector scales and shifts the second norm's output instead of being added (Dhariwal and
    Nichol 2021, section 3). `time_width=None`: no time enters (autoencoders). Source: Ho et al. 2020, appendix B.
    """

    def __init__(
        self, in_channels: int, out_channels: int, time_width: int | None, *, groups: int, eps: float, dropout: float = 0.0,
        scale_shift: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, out_channels * (2 if scale_shift else 1)) if time_width else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(
        self, x: Float[Tensor, "n i h w"], time: Float[Tensor, "n t"] | None = None
    ) -> Float[Tensor, "n o h w"]:
        h = self.conv1(silu(self.norm1(x)))
        if self.time_emb_proj is None or time is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = self.time_emb_proj(silu(time))[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + self.time_emb_proj(silu(time))[:, :, None, None])
        h = self.conv2(self.dropout(silu(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Half the height and width by a strided 3 x 3 convolution.

    `padding=0` pads one row below and one column to the right instead, as TensorFlow's "same" does and with it the
    published DDPM weights.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c y x"]:
        return self.conv(pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a 3 x 3 convolution.

    size: (height, width) to come to instead, where the way down rounded an odd one up.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "n c y x"]:
        if size is None or size == (2 * x.shape[2], 2 * x.shape[3]):
            return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(interpolate(x, size, mode="nearest"))
