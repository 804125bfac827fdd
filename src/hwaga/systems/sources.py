"""Source pictures of a call: brought to its size, their masks, and what outside a mask stays as it was."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import InputError
from .pictures import read_picture

MOST_CUT = 8
"""Pixels that may be cut off a picture without a word: what a latent's side stands for."""


def fitted(name: str, given: Any, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """A source picture in [0, 1] at (height, width): as it is where it has that size, else resized (bicubic, antialiased)
    and cut around its middle; another aspect is said in a warning."""
    picture = read_picture(name, given)
    height, width = picture.shape[2:]
    if (height, width) == size:
        return picture
    inner, (top, left) = covering((height, width), size)
    if max(inner[0] - size[0], inner[1] - size[1]) > MOST_CUT:
        warnings.warn(
            f"{name}= has {height} x {width} pixels, another aspect than {size[0]} x {size[1]}: its middle was taken",
            stacklevel=2,
        )
    picture = interpolate(picture, inner, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return picture[:, :, top : top + size[0], left : left + size[1]]


def covering(own: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size to bring a picture of size `own` to, so that it covers `size`, and the corner (top, left) of its middle there."""
    scale = max(size[0] / own[0], size[1] / own[1])
    inner = (max(size[0], round(own[0] * scale)), max(size[1], round(own[1] * scale)))
    return inner, ((inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2)


def read_mask(given: Any, size: tuple[int, int]) -> Bool[Tensor, "1 1 h w"]:
    """True where a picture is painted anew: a path, PIL image, array or tensor (h, w), (1, h, w) or (3, h, w) in [0, 1]."""
    if isinstance(given, (np.ndarray, Tensor)):
        given = torch.as_tensor(given).float()
        given = given.reshape(1, *given.shape) if given.dim() == 2 else given[0] if given.dim() == 4 else given
        given = given.expand(3, -1, -1) if given.shape[0] == 1 else given
    mask = read_picture("mask", given).mean(1, keepdim=True)
    own = (mask.shape[2], mask.shape[3])
    if own != size:
        inner, (top, left) = covering(own, size)
        mask = interpolate(mask, inner, mode="area")[:, :, top : top + size[0], left : left + size[1]]
    return mask >= 0.5


def check_mask(mask: Any, image: Any, size: tuple[int, int]) -> None:
    """InputError for a mask that has neither its picture's size nor that of what is painted."""
    given, picture = _size("mask", mask), _size("image", image)
    if given not in (picture, size):
        raise InputError(
            f"mask= has {given[0]} x {given[1]} pixels, but image= has {picture[0]} x {picture[1]}; a mask has its picture's size"
        )


def _size(name: str, given: Any) -> tuple[int, int]:
    if isinstance(given, (np.ndarray, Tensor)):
        return int(given.shape[-2]), int(given.shape[-1])
    height, width = read_picture(name, given).shape[2:]
    return height, width


def read_depth(given: Any, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """A depth map at (height, width), in numbers of any range, near ones large: a path, a PIL image, or an array or tensor
    (h, w), (1, h, w) or (3, h, w)."""
    if isinstance(given, (np.ndarray, Tensor)):
        depth = torch.as_tensor(given).float()
        depth = depth[(None,) * (4 - depth.dim())] if depth.dim() < 4 else depth
        whole = depth.dim() == 4 and depth.shape[0] == 1 and depth.shape[1] in (1, 3)
        if not whole or not bool(torch.isfinite(depth).all()):
            raise InputError(f"depth= has shape {tuple(given.shape)}; (h, w) or (1, h, w) of finite numbers is needed")
        depth = depth.mean(1, keepdim=True)
    else:
        depth = read_picture("depth", given).mean(1, keepdim=True)
    if tuple(depth.shape[2:]) != size:
        depth = interpolate(depth, size, mode="bicubic", align_corners=False, antialias=True)
    return depth


def kept(pictures: Float[Tensor, "n 3 h w"], image: Any, mask: Any) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [0, 1] whose pixels outside the mask are the source's, bit for bit."""
    if image is None:
        raise InputError("mask= given without image=; the mask says which part of the image is painted anew")
    size = (pictures.shape[2], pictures.shape[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the source was read to paint
        source = fitted("image", image, size)
    return torch.where(read_mask(mask, size), pictures, source)
