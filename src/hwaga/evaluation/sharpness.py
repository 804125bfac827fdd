"""Sharpness: energy above half the Nyquist frequency, over that of real pictures. 1 as sharp as they, 0 without detail.

Blurred pictures have less of it, noise has more. Radial frequency, all three channels, mean over pictures.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .arrays import Array

_HALF_NYQUIST = 0.25  # cycles a pixel; Nyquist's is 0.5
_BLOCK = 256


def high_frequency_energy(images: Array) -> np.ndarray:
    """Energy (n,) of each picture above half the Nyquist frequency: its share of the mean square of the pixels.

    images (n, 3, h, w): uint8, or floating point in [0, 1]; h, w >= 4. The spectrum is that of the picture continued by
    its mirror images, so that a border where left and right (or top and bottom) differ is no edge.
    """
    images = np.asarray(images.detach().cpu().numpy() if hasattr(images, "detach") else images)
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 4 or not len(images):
        raise InputError(f"pictures of shape {images.shape}: want (n, 3, h, w) with at least 4 by 4 pixels")
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    height, width = images.shape[2:]
    fy, fx = np.fft.fftfreq(2 * height)[:, None], np.fft.rfftfreq(2 * width)[None, :]
    high = np.hypot(fy, fx) > _HALF_NYQUIST
    # rfft2 leaves out the conjugate half: all columns but the first and the last stand for two
    weight = np.where((np.arange(width + 1) == 0) | (np.arange(width + 1) == width), 1.0, 2.0) * high
    energies = np.empty(len(images))
    for start in range(0, len(images), _BLOCK):
        part = images[start : start + _BLOCK].astype(np.float64) / scale
        mirrored = np.concatenate([part, part[..., ::-1]], axis=-1)
        mirrored = np.concatenate([mirrored, mirrored[..., ::-1, :]], axis=-2)
        power = np.abs(np.fft.rfft2(mirrored)) ** 2
        # Parseval: the sum of |F|^2 over the number of places squared is the mean square of the pixels
        energies[start : start + _BLOCK] = (power * weight).sum(axis=(-2, -1)).mean(axis=1) / (4 * height * width) ** 2
    return energies


def sharpness(samples: Array, reference: Array) -> float:
    """Mean high-frequency energy of the samples over that of the reference, at least 0.

    Both (n, 3, h, w) of one size, uint8 or in [0, 1]. InputError when the sizes differ (resizing makes its own blur) or
    the reference has no detail at all.
    """
    if tuple(samples.shape[2:]) != tuple(reference.shape[2:]):
        raise InputError(
            f"samples of {tuple(samples.shape[2:])} and reference of {tuple(reference.shape[2:])} pixels:"
            " sharpness compares pictures of one size"
        )
    real = float(high_frequency_energy(reference).mean())
    if real <= 1e-15:
        raise InputError(
            "the reference pictures have no energy above half the Nyquist frequency; nothing to compare with"
        )
    return float(high_frequency_energy(samples).mean()) / real
