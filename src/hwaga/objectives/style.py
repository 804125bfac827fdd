"""What StyleGAN's generator learns beside the adversarial loss.

path length    E (|| J_w^T y ||_2 - a)^2, y ~ N(0, I), a the running mean      Karras et al. 2020, section 3.2, eq. 4
style mixing   two w's meet in one picture, at a layer drawn anew              Karras et al. 2019, section 3.1
w and z        perceptual path length: how far a small step in w leads         Karras et al. 2019, section 4.1, eq. 2, 3
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PathLength(nn.Module):
    """A step of given length in w should change the picture by a given amount, whatever w and the direction.

    `mean` is the running mean of the lengths, which they are drawn to: it belongs to the state of training.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(
        self, picture: Float[Tensor, "n c h w"], ws: Float[Tensor, "n l d"], y: Float[Tensor, "n c h w"]
    ) -> tuple[Tensor, Tensor]:
        """Penalties (n,) and lengths (n,); moves the mean. `ws` are what `picture` was made of and need gradients; `y` is
        standard normal."""
        lengths = path_lengths(picture, ws, y)
        with torch.no_grad():
            self.mean.copy_(self.mean.lerp(lengths.mean().to(self.mean.dtype), self.decay))
        return (lengths - self.mean).square(), lengths


def path_lengths(
    picture: Float[Tensor, "n c h w"], ws: Float[Tensor, "n l d"], y: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """|| J_w^T y ||, a root mean square over the layers' w; y is divided by the root of the number of pixels, so that lengths
    do not depend on the picture's size. J^T y is the gradient of <picture, y>: J itself is never made."""
    weighted = y / math.sqrt(picture.shape[2] * picture.shape[3])
    (gradient,) = torch.autograd.grad((picture * weighted).sum(), ws, create_graph=True)
    return gradient.float().square().sum(2).mean(1).sqrt()


def mixed(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], cutoff: Tensor, layers: int
) -> Float[Tensor, "n l d"]:
    """Styles (n, layers, d): the first w below layer `cutoff` (n,), the second from there on."""
    later = torch.arange(layers, device=cutoff.device) >= cutoff[:, None]
    return torch.where(later[:, :, None], second[:, None], first[:, None])


Space = Literal["z", "w"]


@torch.no_grad()
def perceptual_path_length(
    mapping: Callable[[Tensor], Tensor], paint: Callable[[Tensor], Tensor], distance: Callable[[Tensor, Tensor], Tensor],
    first: Float[Tensor, "n z"], second: Float[Tensor, "n z"], t: Float[Tensor, " n"], *, space: Space = "w",
    epsilon: float = 1e-4,
) -> Float[Tensor, " n"]:  # fmt: skip
    """d(G(at t), G(at t + epsilon)) / epsilon^2 along paths from `first` to `second`, one value a pair; their mean is the
    score.

    mapping: z -> w. paint: w (n, d) -> pictures in [-1, 1]. distance: of two batches of pictures, (n,), quadratic for small
    differences as a squared feature distance is. t uniform in [0, 1): over whole paths ("full"), or all 0 ("end"). In z
    the path is the great circle, in w the straight line. Pictures should be painted with fixed noise.
    """
    t, epsilon_ = t[:, None], epsilon
    if space == "z":
        wa, wb = mapping(spherical(first, second, t)), mapping(spherical(first, second, t + epsilon_))
    else:
        a, b = mapping(first), mapping(second)
        wa, wb = torch.lerp(a, b, t), torch.lerp(a, b, t + epsilon_)
    return distance(paint(wa), paint(wb)) / epsilon**2


def spherical(a: Float[Tensor, "n z"], b: Float[Tensor, "n z"], t: Tensor) -> Float[Tensor, "n z"]:
    """The point at t of the great circle from a to b, both brought to unit length: the mapping network normalises z, so
    only its direction counts. Source: Shoemake 1985; Karras et al. 2019, section 4.1."""
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    angle = (a * b).sum(1, keepdim=True).clamp(-1, 1).acos() * t
    across = b - (a * b).sum(1, keepdim=True) * a
    return angle.cos() * a + angle.sin() * across / across.norm(dim=1, keepdim=True).clamp(min=1e-12)
