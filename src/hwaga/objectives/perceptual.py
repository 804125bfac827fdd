"""The perceptual distance: how alike two pictures look to a network that has learned to see (Zhang et al. 2018, eq. 1).

    d(x, y) = sum over levels l of  mean over places of  sum over channels of  w_l (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2

f_l are the feature maps of a network that stays as it is; w_l are LPIPS's learned weights where the network has them
(`network.weights`), else 1 / levels for every channel, so that d lies in [0, 4]. Squared differences of pixels alone reward
a blur; this distance notices that its features are missing.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.linalg import vector_norm


class Perceptual(nn.Module):
    """A distance between pictures by the features of `network` (networks/perceptual.py), which is frozen."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """The distance of each pair of pictures in [-1, 1], both of one size; 0 for equal ones. Differentiable in both."""
        ours, theirs = self.levels(x), self.levels(y)
        weights: Any = getattr(self.network, "weights", None)
        total: Any = 0.0
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            squares = (one - other) ** 2
            weighted = squares / len(ours) if weights is None else squares * weights[place].view(1, -1, 1, 1)
            total = total + weighted.sum(1).mean((1, 2))
        return total

    def levels(self, x: Tensor) -> list[Tensor]:
        """The feature maps, each place's vector divided by its length and the network's `floor`."""
        network: Any = self.network
        return [f / (vector_norm(f, dim=1, keepdim=True) + network.floor) for f in network.levels(x)]

    def train(self, mode: bool = True) -> Perceptual:
        return super().train(False)  # never in training mode, whatever the networks around it are
