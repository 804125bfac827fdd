"""Linear layers with weights of 8 bits: a quarter of the memory, and half of the time where a processor multiplies bytes.

A weight matrix keeps one scale for each of its rows (each output), found once; an input keeps one for each of its tokens, found
at each call. The product of the two matrices of bytes is exact in 32-bit integers; then both scales and the bias are put on.

    x = scale_x q_x        q_x = round(127 x / max |x|)    a token
    w = scale_w q_w        q_w = round(127 w / max |w|)    an output

What is lost is rounding: about 1 % of a layer's output, by norm, for weights and tokens that are normal. It is an option and
never a default; norms, embeddings, convolutions and small layers stay as they are. Source: Dettmers et al. 2022, section 2.1
(vector-wise quantisation), without its 16-bit part.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

LEAST = 2**14
"""Weights that a layer has at least to be worth it."""


def _bytes(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (rows, columns) and the scale (rows, 1) of each row: x is about their product."""
    scale = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """In the place of an nn.Linear: see the top of this file. Gives what it is given: float32, or a half type."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = _bytes(linear.weight.detach().float())
        self.register_buffer("weight", weight.t())  # (in, out), each output's bytes one after the other
        self.register_buffer("scale", scale.t().contiguous())  # (1, out)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        q, scale = _bytes(x.reshape(-1, self.in_features).float())
        product = torch._int_mm(q, self.weight).float()
        product = product.mul_(scale).mul_(self.scale)
        if self.bias is not None:
            product = product.add_(self.bias)
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)


@torch.no_grad()
def quantise(network: nn.Module, least: int = LEAST) -> int:
    """Puts Int8Linear in the place of every linear layer of at least so many weights, in place; how many there were."""
    count = 0
    for part in list(network.modules()):
        for name, inner in list(part.named_children()):
            if isinstance(inner, nn.Linear) and inner.weight.numel() >= least:
                setattr(part, name, Int8Linear(inner))
                count += 1
    return count


def is_quantised(network: nn.Module) -> bool:
    return any(isinstance(part, Int8Linear) for part in network.modules())
