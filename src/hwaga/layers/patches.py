"""Pictures as rows of tokens and back: every block of p x p pixels, or latents, is one token."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


class Patches(nn.Conv2d):
    """Blocks of a picture brought to tokens of some width, row by row (Dosovitskiy et al. 2021, eq. 1).

    Named and shaped as the convolution that it is; as its blocks do not overlap, all of them are one matrix product.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__(channels, width, patch, stride=patch)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n l d"]:
        """ValueError where the patch does not divide height and width."""
        p = self.stride[0]
        if x.shape[2] % p or x.shape[3] % p:
            raise ValueError(f"{x.shape[2]} x {x.shape[3]} is not a multiple of patch={p}")
        return linear(rearrange(x, "n c (y p) (x q) -> n (y x) (c p q)", p=p, q=p), self.weight.flatten(1), self.bias)


def assembled(tokens: Float[Tensor, "n l o"], patch: int, rows: int) -> Float[Tensor, "n c h w"]:
    """The picture that tokens of patch x patch x c numbers are the blocks of, `rows` of them from top to bottom."""
    return rearrange(tokens, "n (y x) (p q c) -> n c (y p) (x q)", y=rows, p=patch, q=patch)
