"""Control maps that are lines: edges, line art, strokes, soft edges, straight lines. White on black, as public models want them.

canny      peaks of the gradient, followed from strong to weak     Canny 1986; the numbers are OpenCV's
lineart    how much darker than its surroundings                   a difference from a Gaussian
scribble   the same between two Gaussians, as black or white       Winnemoller et al. 2012, eq. 1 (XDoG)
softedge   gradients at three scales, averaged                     in place of HED's network (Xie and Tu 2015)
mlsd       straight lines among the edges                          probabilistic Hough (Matas et al. 2000)
invert     a drawing in black on white, turned round
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from .arrays import blurred, grey_of, levels_of, map_of
from .options import Count, Level, Pixels, Seed

_EIGHTH = 13573  # tan(pi / 8) in units of 2^-15, as OpenCV rounds it


def canny(
    picture: Float[Tensor, "3 h w"], *, low: Level = 100.0, high: Level = 200.0
) -> Float[Tensor, "3 h w"]:  # fmt: skip
    """White edges, one pixel wide: what `cv2.Canny(picture, low, high)` gives, on which public models were trained.

    Gradients are Sobel's sums over 8-bit levels, |dx| + |dy|, of the channel where that is largest; a pixel stays if it is
    a peak across its edge and above `high`, or above `low` and connected with one that is. Source: Canny 1986.
    """
    return map_of(edges(levels_of(picture), low, high))


def edges(levels: np.ndarray, low: float = 100.0, high: float = 200.0) -> np.ndarray:
    """bool (h, w) of uint8 (h, w, 3); see `canny`."""
    from skimage.measure import label

    low, high = np.floor(min(low, high)), np.floor(max(low, high))
    dx, dy = _sobel(levels)
    size = np.abs(dx) + np.abs(dy)
    channel = size.argmax(2)[..., None]
    dx, dy, size = (np.take_along_axis(part, channel, 2)[..., 0] for part in (dx, dy, size))
    weak = _peaks(dx, dy, size) & (size > low)
    parts = label(weak, connectivity=2)
    strong = np.zeros(parts.max() + 1, bool)
    strong[parts[weak & (size > high)]] = True
    return strong[parts] & weak


def _sobel(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 (h, w, c) across and down."""
    p = np.pad(levels.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across, down = p[:, 2:] - p[:, :-2], p[2:] - p[:-2]
    dx = across[:-2] + 2 * across[1:-1] + across[2:]
    dy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    return dx, dy


def _peaks(dx: np.ndarray, dy: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Where the gradient is no smaller than at its two neighbours along the direction nearest to its own, of four."""
    around = np.pad(size, 1)
    left, right, above, below = around[1:-1, :-2], around[1:-1, 2:], around[:-2, 1:-1], around[2:, 1:-1]
    falls = (dx ^ dy) >= 0  # from the upper left to the lower right
    before = np.where(falls, around[:-2, :-2], around[:-2, 2:])
    after = np.where(falls, around[2:, 2:], around[2:, :-2])
    lying, upright = np.abs(dx) * _EIGHTH, np.abs(dy) << 15
    diagonal = (size > before) & (size > after)
    steep = np.where(upright > lying + (np.abs(dx) << 16), (size > above) & (size >= below), diagonal)
    return np.where(upright < lying, (size > left) & (size >= right), steep)


def lineart(picture: Float[Tensor, "3 h w"], *, sigma: Pixels = 6.0) -> Float[Tensor, "3 h w"]:
    """White lines, as bright as the picture is darker there than its surroundings of `sigma` pixels in every channel.

    The median of what is a line at all becomes half white, so that faint drawings are seen too.
    """
    levels = levels_of(picture).astype(np.float64)
    darker = (blurred(levels, sigma) - levels).min(2).clip(0)
    lines = darker[darker > 8]
    scale = max(16.0, float(np.median(lines))) if lines.size else 16.0
    return map_of((darker / scale * 127).clip(0, 255).astype(np.uint8))


def scribble(
    picture: Float[Tensor, "3 h w"], *, fine: Pixels = 0.5, coarse: Pixels = 5.0, threshold: Level = 32.0
) -> Float[Tensor, "3 h w"]:  # fmt: skip
    """White strokes, all or nothing: where a fine blur is darker than a coarse one by half of `threshold` levels."""
    levels = levels_of(picture)
    darker = (blurred(levels, coarse) - blurred(levels, fine)).min(2).clip(0, 255)
    return map_of(2 * darker > threshold)


def softedge(picture: Float[Tensor, "3 h w"], *, sigma: Pixels = 1.0) -> Float[Tensor, "3 h w"]:
    """Grey edges, the brighter the clearer: gradients under Gaussians of sigma, 2 sigma and 4 sigma, averaged.

    No network knows here what an object is: textures count as much as outlines of equal contrast.
    """
    levels, total = levels_of(picture), np.zeros(picture.shape[1:])
    for scale in (sigma, 2 * sigma, 4 * sigma):
        smooth = blurred(levels, scale)
        size = np.hypot(*np.gradient(smooth, axis=(0, 1))).max(2) if min(smooth.shape[:2]) > 1 else total
        top = float(np.quantile(size, 0.995))
        total = total + (size / max(top, 2.0 / scale)).clip(0, 1)
    return map_of((total / 3 * 255).round().astype(np.uint8))


def mlsd(
    picture: Float[Tensor, "3 h w"], *, low: Level = 100.0, high: Level = 200.0, length: Pixels = 20.0,
    gap: Pixels = 3.0, votes: Count = 10, seed: Seed = 0,
) -> Float[Tensor, "3 h w"]:  # fmt: skip
    """White straight lines of at least `length` pixels that bridge up to `gap`, found among Canny's edges.

    The method draws edge points at random; `seed` fixes which, so that a picture always has the same map.
    """
    from skimage.transform import probabilistic_hough_line

    found = edges(levels_of(picture), low, high)
    lines = probabilistic_hough_line(
        found, threshold=votes, line_length=round(length), line_gap=round(gap), rng=np.random.default_rng(seed)
    )
    canvas = Image.new("L", (found.shape[1], found.shape[0]))
    pen = ImageDraw.Draw(canvas)
    for start, end in lines:
        pen.line([tuple(map(int, start)), tuple(map(int, end))], fill=255, width=1)
    return map_of(np.asarray(canvas))


def invert(picture: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """A drawing in black on white becomes white on black."""
    return map_of((255 - grey_of(levels_of(picture)).round()).astype(np.uint8))
