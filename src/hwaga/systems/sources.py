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


def fitted(name: str, given: Any, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """A source picture in [0, 1] at (height, width): as it is where it has that size, else resized (bicubic, antialiased)
    and cut around its middle; another aspect is said in a warning."""
    picture = read_picture(name, given)
    height, width = picture.shape[2:]
    if (height, width) == size:
        return picture
    scale = max(size[0] / height, size[1] / width)
    inner = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    if inner != size:
        warnings.warn(
            f"{name}= has {height} x {width} pixels, another aspect than {size[0]} x {size[1]}: its middle was taken",
            stacklevel=2,
        )
    picture = interpolate(picture, inner, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
    return picture[:, :, top : top + size[0], left : left + size[1]]


def read_mask(given: Any, size: tuple[int, int]) -> Bool[Tensor, "1 1 h w"]:
    """True where a picture is painted anew: a path, PIL image, array or tensor (h, w), (1, h, w) or (3, h, w) in [0, 1]."""
    if isinstance(given, (np.ndarray, Tensor)):
        given = torch.as_tensor(given).float()
        given = given.reshape(1, *given.shape) if given.dim() == 2 else given[0] if given.dim() == 4 else given
        given = given.expand(3, -1, -1) if given.shape[0] == 1 else given
    mask = read_picture("mask", given).mean(1, keepdim=True)
    if tuple(mask.shape[2:]) != size:
        mask = interpolate(mask, size, mode="area")
    return mask >= 0.5


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
