"""Between tensors in [0, 1] and the arrays that picture processing works on."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def levels_of(picture: Float[Tensor, "3 h w"]) -> np.ndarray:
    """uint8 (h, w, 3): what a PNG of the picture would hold."""
    return (picture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def grey_of(levels: np.ndarray) -> np.ndarray:
    """float64 (h, w) in 0 ... 255 of RGB levels: luma (ITU-R BT.601)."""
    return levels @ np.array([0.299, 0.587, 0.114])


def map_of(values: np.ndarray) -> Float[Tensor, "3 h w"]:
    """A control map of levels (h, w) or (h, w, 3), uint8 in 0 ... 255, or of a mask (h, w), True white."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))).float() / 255


def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """float64: every channel of (h, w) or (h, w, c) under a Gaussian of `sigma` pixels; the border goes on as it is."""
    from skimage.filters import gaussian

    channels = 2 if values.ndim == 3 else None
    return gaussian(values.astype(np.float64), sigma, mode="nearest", preserve_range=True, channel_axis=channels)
