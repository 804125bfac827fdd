"""Control maps that are areas: outlines filled, segments, blocks of colour, the picture itself.

silhouette     what stands before the background of the border, white
segmentation   classes in the colours of ADE20K (Zhou et al. 2017), given; or superpixels (SLIC, Achanta et al. 2012)
colours        large blocks of the mean colour
tile           the picture, or what is left of it at a fraction of its size
inpaint        the picture with the part that is to be painted at -1, outside every colour
shuffle        the picture's colours and textures, its arrangement lost
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from ...errors import InputError
from .ade20k import COLOURS
from .arrays import levels_of, map_of
from .options import Beside, Count, Level, Pixels, Seed

Labels = Annotated[Any, Beside("a picture or array of class numbers 0 to 149; 255 is no class")]
Mask = Annotated[Any, Beside("a picture or array, white where the picture is painted anew")]


def silhouette(picture: Float[Tensor, "3 h w"], *, tolerance: Level = 24.0) -> Float[Tensor, "3 h w"]:
    """White where the picture is not background: what cannot be reached from the border through pixels of its colour.

    The border's colour is the median of its pixels; `tolerance` is how far each channel may be from it. Holes are filled.
    """
    return map_of(foreground(levels_of(picture), tolerance))


def foreground(levels: np.ndarray, tolerance: float = 24.0) -> np.ndarray:
    """bool (h, w) of uint8 (h, w, 3); see `silhouette`."""
    from skimage.measure import label

    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    near = np.abs(levels - np.median(border, axis=0)).max(2) <= tolerance
    parts = label(near, connectivity=1)
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    outside = np.zeros(parts.max() + 1, bool)
    outside[edge[edge > 0]] = True
    return ~outside[parts]


def segmentation(
    picture: Float[Tensor, "3 h w"], *, labels: Labels = None, segments: Count = 60, merge: Level = 20.0
) -> Float[Tensor, "3 h w"]:
    """Areas, each in one colour of ADE20K's palette, whose classes public models know by their colours.

    labels: the class of each pixel, as a picture of numbers (a grey or indexed PNG) or an array (h, w). Without them the
    areas are about `segments` superpixels, neighbours nearer than `merge` levels joined; the largest has the first colour,
    and so on: the model sees where the areas are, but what they are is then chance.
    """
    height, width = picture.shape[1:]
    if labels is None:
        classes = _superpixels(levels_of(picture), segments, merge)
    else:
        classes = _numbers("labels", labels)
        if classes.shape != (height, width):
            raise InputError(
                f"labels= has {classes.shape[0]} x {classes.shape[1]} pixels, the picture {height} x {width}"
            )
        odd = np.unique(classes[(classes < 0) | ((classes >= len(COLOURS)) & (classes != 255))])
        if odd.size:
            raise InputError(f"labels= holds the class {odd[0]}; ADE20K has 0 to {len(COLOURS) - 1} (255: none)")
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(COLOURS)] = COLOURS
    return map_of(palette[classes.astype(np.uint8)])


def _superpixels(levels: np.ndarray, segments: int, merge: float) -> np.ndarray:
    """(h, w) numbers of areas, 0 the largest."""
    from skimage.graph import cut_threshold, rag_mean_color
    from skimage.segmentation import slic

    parts = slic(levels, n_segments=segments, compactness=10.0, start_label=0, channel_axis=2)
    if parts.max() > 0:
        parts = cut_threshold(parts, rag_mean_color(levels, parts), merge)
    _, numbers, counts = np.unique(parts, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return rank[numbers.reshape(parts.shape)] % len(COLOURS)


def colours(picture: Float[Tensor, "3 h w"], *, block: Pixels = 64.0) -> Float[Tensor, "3 h w"]:
    """Blocks of about `block` pixels a side, each in its mean colour."""
    height, width = picture.shape[1:]
    cells = (max(1, round(height / block)), max(1, round(width / block)))
    return interpolate(interpolate(picture[None], cells, mode="area"), (height, width), mode="nearest")[0]


def tile(picture: Float[Tensor, "3 h w"], *, factor: Pixels = 1.0) -> Float[Tensor, "3 h w"]:
    """The picture itself, after `factor` the detail that is left of it at so small a size (4: a quarter of each side)."""
    if factor <= 1:
        return picture.clone()
    size = (picture.shape[1], picture.shape[2])
    small = [max(1, round(side / factor)) for side in size]
    reduced = interpolate(picture[None], small, mode="bicubic", antialias=True, align_corners=False)
    return interpolate(reduced, size, mode="bicubic", align_corners=False)[0].clamp(0, 1)


def inpaint(picture: Float[Tensor, "3 h w"], *, mask: Mask) -> Float[Tensor, "3 h w"]:
    """The picture, -1 in all three channels where the mask is white: what public inpainting ControlNets were trained on."""
    height, width = picture.shape[1:]
    hole = torch.from_numpy(_numbers("mask", mask) >= 128) if not isinstance(mask, Tensor) else _unit(mask) >= 0.5
    if tuple(hole.shape) != (height, width):
        raise InputError(f"mask= has {hole.shape[0]} x {hole.shape[1]} pixels, the picture {height} x {width}")
    return torch.where(hole, -1.0, picture)


def shuffle(picture: Float[Tensor, "3 h w"], *, grain: Pixels = 256.0, seed: Seed = 0) -> Float[Tensor, "3 h w"]:
    """Every pixel is taken from where two smooth fields of noise lead, one across and one down; `grain` is their size."""
    height, width = picture.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    cells = (round(height / grain) + 2, round(width / grain) + 2)
    wide = (round(cells[0] * grain), round(cells[1] * grain))

    def field() -> Tensor:
        noise = interpolate(torch.rand((1, 1, *cells), generator=generator), wide, mode="bicubic", align_corners=False)
        top, left = (wide[0] - height) // 2, (wide[1] - width) // 2
        smooth = noise[0, 0, top : top + height, left : left + width]
        return (smooth - smooth.min()) / (smooth.max() - smooth.min()).clamp(min=1e-6)

    across, down = field(), field()
    places = torch.stack([across, down], dim=-1)[None] * 2 - 1
    return grid_sample(picture[None], places, mode="bilinear", padding_mode="border", align_corners=True)[0]


def _numbers(name: str, given: Any) -> np.ndarray:
    """int64 (h, w) of a file, a PIL image, an array or a tensor of whole numbers; of a coloured picture the first channel."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(given, str | Path):
        try:
            with Image.open(given) as file:
                given = file.copy()
        except FileNotFoundError:
            raise InputError(f"{name}={str(given)!r}: there is no such file") from None
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{name}={str(given)!r} is not a picture that can be read: {error}") from None
    if isinstance(given, Image.Image) and given.mode in ("1", "LA", "RGBA"):
        given = given.convert("L" if given.mode != "RGBA" else "RGB")
    values = np.asarray(given)
    if values.ndim == 3:
        values = values[0] if values.shape[0] in (1, 3) and values.shape[2] not in (1, 3) else values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "iub":
        what = f"{values.dtype} of shape {values.shape}"
        raise InputError(f"{name}={what}: a picture or whole numbers of shape (h, w) are needed")
    return values.astype(np.int64)


def _unit(mask: Tensor) -> Tensor:
    """(h, w) of a mask (h, w), (c, h, w) or (1, c, h, w) in [0, 1]."""
    mask = mask[0] if mask.dim() == 4 else mask
    return mask.float().mean(0) if mask.dim() == 3 else mask.float()
