"""Sample grids: pictures side by side in one PNG, as nearly square as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..files import whole_file


def grid(images: Tensor, gap: int = 2) -> Image.Image:
    """One picture of n pictures (n, 3, h, w) in [0, 1], white between them."""
    n, _, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = torch.ones(3, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, image in enumerate(images.float().cpu().clamp(0, 1)):
        y, x = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[:, y : y + height, x : x + width] = image
    pixels = (sheet * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)


def write_grid(path: Path, images: Tensor, about: Mapping[str, Any]) -> None:
    """Writes the grid as PNG, with what it shows in a text chunk. Whole or not at all."""
    info = PngInfo()
    info.add_itxt("hwaga-grid", json.dumps(dict(about), ensure_ascii=False, default=str))
    with whole_file(path) as part:
        grid(images).save(part, format="PNG", pnginfo=info)
