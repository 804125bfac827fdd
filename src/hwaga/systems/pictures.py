"""Pictures at the edge: float32 RGB in [-1, 1] inside, [0, 1] tensors and 8-bit PIL images outside. One place for both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from PIL import Image


def to_inside(unit: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return unit.float() * 2 - 1


def to_pil(pictures: Float[Tensor, "n 3 h w"]) -> list[Image.Image]:
    """8-bit images of pictures in [0, 1], rounded to the nearest level."""
    from PIL import Image

    levels = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(level)) for level in levels]


def read_picture(name: str, given: Any) -> Float[Tensor, "1 3 h w"]:
    """A picture in [0, 1] from what a user gives: a path, a PIL image, an array or tensor in [0, 1], (3, h, w) or (1, 3, h, w).

    Transparency is laid on white. InputError names the argument, what came and what would be right.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(given, (str, Path)):
        try:
            with Image.open(given) as file:
                given = ImageOps.exif_transpose(file).copy()
        except FileNotFoundError:
            raise InputError(f"{name}={str(given)!r}: there is no such file") from None
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise InputError(f"{name}={str(given)!r} is not a picture that can be read: {error}") from None
    if isinstance(given, Image.Image):
        rgba = given.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return torch.from_numpy(np.array(flat)).permute(2, 0, 1)[None].float() / 255
    if isinstance(given, (np.ndarray, Tensor)):
        tensor = torch.as_tensor(given).float()
        tensor = tensor[None] if tensor.dim() == 3 else tensor
        if tensor.dim() != 4 or tensor.shape[0] != 1 or tensor.shape[1] != 3:
            raise InputError(f"{name}= has shape {tuple(given.shape)}; (3, h, w) or (1, 3, h, w) is needed")
        if not bool(torch.isfinite(tensor).all()) or tensor.min() < 0 or tensor.max() > 1:
            raise InputError(f"{name}= has values outside [0, 1]")
        return tensor
    raise InputError(f"{name}={type(given).__name__}: a path, a PIL image, an array or a tensor is needed")


def size_of(image: Any, factor: int) -> tuple[int, int]:
    """(height, width) of the picture of `image`, or of the first of several, brought down to multiples of the factor."""
    first = image[0] if isinstance(image, list | tuple) and image else image
    height, width = read_picture("image", first).shape[2:]
    if min(height, width) < factor:
        raise InputError(f"image= has {height} x {width} pixels; at least {factor} x {factor} are needed")
    return height // factor * factor, width // factor * factor


def read_pictures(name: str, given: Any, factor: int = 1) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [0, 1] of one size, multiples of `factor`: a tensor or array (n, 3, h, w), one picture, or a list of them."""
    if isinstance(given, (np.ndarray, Tensor)) and given.ndim == 4:
        pictures = torch.as_tensor(given).float()
        if not len(pictures) or pictures.shape[1] != 3:
            raise InputError(f"{name}= has shape {tuple(given.shape)}; (n, 3, h, w) is needed")
        if not bool(torch.isfinite(pictures).all()) or pictures.min() < 0 or pictures.max() > 1:
            raise InputError(f"{name}= has values outside [0, 1]")
    else:
        one_by_one = given if isinstance(given, (list, tuple)) else [given]
        if not one_by_one:
            raise InputError(f"{name}=[]: at least one picture is needed")
        read = [read_picture(name, one) for one in one_by_one]
        if len({one.shape for one in read}) > 1:
            sizes = ", ".join(sorted({f"{one.shape[2]} x {one.shape[3]}" for one in read}))
            raise InputError(f"{name}= has pictures of several sizes ({sizes}); give those of one size at a time")
        pictures = torch.cat(read)
    height, width = pictures.shape[2:]
    if height % factor or width % factor:
        raise InputError(f"{name}= has pictures of {height} x {width}; this model needs multiples of {factor}")
    return pictures
