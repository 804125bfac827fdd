"""Samples in any form that a user has them in, to uint8 pictures of the reference's size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import Dataset
from ..data.pictures import Unusable, fit, quiet, read
from ..errors import InputError
from .encoders import check_images

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class Samples(NamedTuple):
    """n pictures to be measured."""

    pixels: np.ndarray  # (n, 3, h, w) uint8
    clusters: np.ndarray | None  # (n,) near-duplicates that are known
    name: str  # for the card
    resize: str  # for the card: how they came to their size
    notes: list[str]


def take_samples(samples: Any, reference: Dataset, n: int | None, seed: int) -> Samples:
    """n of the pictures in `samples` (all of them for None), drawn by the seed where there are more.

    samples: a folder of pictures, a Dataset, or a tensor or array (n, 3, h, w) or (n, h, w, 3), uint8 or in [0, 1],
    which is rounded to 8 bits as a PNG is. Pictures of another size are brought to the reference's as the reference
    itself was.
    InputError for fewer than n pictures, none at all, or anything else.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 2):
        raise InputError(f"n={n!r}: want a whole number of pictures, at least 2")
    if isinstance(samples, str | Path):
        return _from_folder(Path(samples).expanduser(), reference, n, seed)
    if isinstance(samples, Dataset):
        chosen = _choose(len(samples), n, seed)
        pixels, resize = _to_size(samples.pixels(chosen), reference)
        return Samples(pixels, samples.clusters[chosen], f"{samples.config.source} {samples.split}", resize, [])
    pixels = _from_array(samples)
    pixels, resize = _to_size(pixels[_choose(len(pixels), n, seed)], reference)
    return Samples(pixels, None, "pictures in memory", resize, [])


def _choose(there: int, n: int | None, seed: int) -> np.ndarray:
    if there < (n or 2):
        raise InputError(f"n={n or 2}: there are only {there} samples; ask for at most as many as there are")
    if n is None or n == there:
        return np.arange(there)
    return np.sort(np.random.default_rng([seed, 0]).choice(there, n, replace=False))


def _from_array(samples: Any) -> np.ndarray:
    if isinstance(samples, np.ndarray) and samples.ndim == 4 and samples.shape[-1] == 3 and samples.shape[1] != 3:
        samples = samples.transpose(0, 3, 1, 2)
    images = check_images(samples).cpu()
    if images.is_floating_point():
        images = (images.double() * 255).round().byte()
    return images.numpy()


def _to_size(pixels: np.ndarray, reference: Dataset) -> tuple[np.ndarray, str]:
    from PIL import Image

    if pixels.shape[2:] == reference.size:
        return pixels, "none"
    how = reference.config.resize
    pictures = (Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))) for picture in pixels)
    resized = np.stack([fit(picture, reference.size, how) for picture in pictures])
    return resized, _words(pixels.shape[2:], reference)


def _words(size: Any, reference: Dataset) -> str:
    height, width = reference.size
    return f"{size[0]} x {size[1]} to {height} x {width}: Lanczos, {reference.config.resize}"


def _from_folder(folder: Path, reference: Dataset, n: int | None, seed: int) -> Samples:
    """Reads in an order of the seed until n good pictures are there; the files' own order is kept among them."""
    if not folder.is_dir():
        raise InputError(f"samples={str(folder)!r}: no such folder of pictures")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()]
    paths.sort(key=lambda path: _natural(str(path.relative_to(folder))))
    if not paths:
        raise InputError(f"samples={str(folder)!r}: no pictures in this folder (PNG, JPEG, WebP, ...)")
    if n is not None and len(paths) < n:
        raise InputError(f"n={n}: {folder} holds only {len(paths)} pictures; ask for at most as many as there are")
    order = np.arange(len(paths))
    if n is not None and n < len(paths):
        order = np.random.default_rng([seed, 0]).permutation(order)
    found: dict[int, np.ndarray] = {}
    bad: list[str] = []
    sizes: set[tuple[int, int]] = set()
    with quiet():
        for place in order:
            if n is not None and len(found) == n:
                break
            try:
                found[int(place)], size = read(paths[place], reference.size, reference.config.resize)
                sizes.add(size)
            except Unusable as reason:
                bad.append(f"{paths[place].relative_to(folder)} ({reason})")
    if len(found) < (n or 2):
        raise InputError(
            f"samples={str(folder)!r}: {len(found)} usable pictures of {n or 'at least 2'} wanted"
            + (f"; left out: {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}" if bad else "")
        )
    notes = [f"{len(bad)} files were left out: {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}"] if bad else []
    other = sorted(sizes - {reference.size})
    resize = (
        "none"
        if not other
        else _words(other[0], reference)
        if len(sizes) == 1
        else _words(("mixed", "sizes"), reference)
    )
    return Samples(np.stack([found[place] for place in sorted(found)]), None, folder.resolve().name, resize, notes)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """10.png after 9.png."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
