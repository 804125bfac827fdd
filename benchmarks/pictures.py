"""Pictures in memory, as training asks for them: neither side of a comparison is charged for a disk."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hwaga.interfaces import Batch


def random_pictures(n: int, size: int = 32, seed: int = 3) -> Tensor:
    """(n, 3, size, size), uniform in [-1, 1)."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Pictures:
    """Pictures (n, c, h, w), with labels (n,) where they have some."""

    def __init__(self, image: Tensor, label: Tensor | None = None) -> None:
        self.image, self.label = image, label

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        label = None if self.label is None else self.label[indices]
        return Batch(self.image[indices], torch.from_numpy(indices), label)


class InOrder:
    """The same n pictures at every step."""

    def __init__(self, n: int) -> None:
        self.indices = np.arange(n)

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self.indices, np.zeros_like(self.indices)
