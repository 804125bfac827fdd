"""Flips and random windows that depend on (seed, epoch, index) and on nothing else: no state, no order of calls."""

from __future__ import annotations

import zlib

import numpy as np


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), on uint64; overflow is meant."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(name: str, seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1), one for each (epoch, index); another `name` gives an independent draw."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = np.array([(seed & 0xFFFFFFFFFFFFFFFF) ^ (zlib.crc32(name.encode()) << 32)], dtype=np.uint64)
    x = _mix(key + golden)
    x = _mix(x ^ _mix(np.asarray(epochs).astype(np.uint64) + golden))
    x = _mix(x ^ _mix(np.asarray(indices).astype(np.uint64) + golden))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def windows(pixels: np.ndarray, top: np.ndarray, left: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts pixels (n, c, H, W) to (n, c, height, width) at a place of its own for each picture."""
    every = np.lib.stride_tricks.sliding_window_view(pixels, (height, width), axis=(2, 3))
    return every[np.arange(len(pixels)), :, top, left]


def augment(
    pixels: np.ndarray,
    shape: tuple[int, int],
    *,
    flip: bool,
    crop: bool,
    seed: int,
    epochs: np.ndarray,
    indices: np.ndarray,
) -> np.ndarray:
    """pixels uint8 (n, c, H, W) as stored -> (n, c, h, w), shape = (h, w), with the draws of (seed, epoch, index)."""
    height, width = shape
    if crop:
        spare = pixels.shape[2] - height + 1, pixels.shape[3] - width + 1
        top = (uniform("top", seed, epochs, indices) * spare[0]).astype(np.int64)
        left = (uniform("left", seed, epochs, indices) * spare[1]).astype(np.int64)
        pixels = windows(pixels, top, left, height, width)
    if flip:
        pixels = np.where(mirrored(seed, epochs, indices)[:, None, None, None], pixels[..., ::-1], pixels)
    return pixels


def mirrored(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(n,) bool: which pictures an epoch sees mirrored."""
    return uniform("flip", seed, epochs, indices) < 0.5


def centre(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The middle (h, w) of pixels (n, c, H, W)."""
    top, left = (pixels.shape[2] - shape[0]) // 2, (pixels.shape[3] - shape[1]) // 2
    return pixels[:, :, top : top + shape[0], left : left + shape[1]]
