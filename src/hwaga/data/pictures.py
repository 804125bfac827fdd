"""Any picture file to 8-bit RGB of one size; what cannot be used is refused with a reason that names the fault."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX", "SGI",
)  # fmt: skip
# not among them: formats that start another program (EPS) or hold no picture of their own
LARGEST_SIDE = 20_000
LARGEST_AREA = 80_000_000  # below Pillow's own warning (89 million), 240 MB once decoded


class Unusable(Exception):
    """Why a file is left out, in a few words."""


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's warnings off, its alarm about decompression bombs an error. Around a whole pool of threads, not in each:
    Python's filters belong to the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _eight_bits(image: Image.Image) -> Image.Image:
    """Modes of more than 8 bits a channel, scaled to 8."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        scaled = values.astype(np.float64) / 257.0
    elif image.mode == "I":  # a 16-bit grey PNG, or 32 bits
        top = 65535.0 if values.max(initial=0) <= 65535 else float(2**31 - 1)
        scaled = values / top * 255.0
    else:  # F: from 0 to 1, or to 255, or to 65535
        if not np.isfinite(values).all():
            raise Unusable("holds numbers that are not finite")
        top = next((t for t in (1.0, 255.0, 65535.0) if values.max(initial=0) <= t), float(values.max(initial=1)))
        scaled = values / top * 255.0
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; what is transparent lies on white."""
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(image: Image.Image, shape: tuple[int, int], how: str) -> np.ndarray:
    """An RGB picture as uint8 (3, h, w), shape = (h, w), resampled by Pillow's antialiased Lanczos filter.

    crop: covers the shape, the middle is kept; pad: lies whole on white; stretch: pulled to the shape.
    """
    height, width = shape
    filter_ = Image.Resampling.LANCZOS
    if image.size == (width, height):
        out = image
    elif how == "stretch":
        out = image.resize((width, height), filter_)
    elif how == "crop":
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (
            max(0.0, left),
            max(0.0, top),
            min(image.width, left + width * scale),
            min(image.height, top + height * scale),
        )
        out = image.resize((width, height), filter_, box=box)
    else:
        scale = min(width / image.width, height / image.height)
        inner = max(1, min(width, round(image.width * scale))), max(1, min(height, round(image.height * scale)))
        out = Image.new("RGB", (width, height), (255, 255, 255))
        out.paste(image.resize(inner, filter_), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.ascontiguousarray(np.asarray(out).transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # broken EXIF, of which there are many kinds: the picture is good without
        return image


def read(source: Path | BinaryIO, shape: tuple[int, int], how: str) -> tuple[np.ndarray, tuple[int, int]]:
    """(uint8 (3, h, w), (height, width) of the picture, upright) of a file or of bytes. Unusable with the reason else.

    Of animations the first frame. A file is opened for reading only. Call inside `quiet()`.
    """
    try:
        if (source.stat().st_size if isinstance(source, Path) else source.seek(0, 2)) == 0:
            raise Unusable("empty file")
        with Image.open(source, formats=_formats()) as image:
            width, height = image.size
            if max(width, height) > LARGEST_SIDE:
                raise Unusable(f"too large: {width} x {height} px, at most {LARGEST_SIDE:,} px a side")
            if width * height > LARGEST_AREA:
                raise Unusable(f"too large: {width} x {height} px, at most {LARGEST_AREA // 10**6} million px")
            image.load()
            picture = to_rgb(_upright(image))
        return fit(picture, shape, how), (picture.height, picture.width)
    except UnidentifiedImageError:
        raise Unusable("not a picture") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unusable("too large once decompressed") from None
    except Unusable:
        raise
    except MemoryError:
        raise Unusable("too large for the memory there is") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        words = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"broken: {words[:120]}") from None
