"""Depth and surface normals, for public depth and normal ControlNets.

Depth is estimated by any depth-estimation model that transformers loads from a local folder (DPT and MiDaS, Depth Anything,
GLPN, ZoeDepth, ...). The map is white where the picture is near and black where it is far.

Normals come from depth d, which grows towards the viewer: (dd/dx, dd/dy, a), brought to length 1 and from [-1, 1] to
[0, 1] as red, green and blue. Red is what faces left, green what faces up, blue what faces the viewer: the convention of
both public kinds (made from MiDaS with a = 2 pi, and of the later ones, which an estimator of normals made).
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ...errors import InputError
from ...files import read_json
from .arrays import grey_of, levels_of, map_of
from .options import Beside, Between, Share

Model = Annotated[Any, Beside("a folder of a depth-estimation model, as transformers loads it")]
Strength = Annotated[float, Between(0.0, 1000.0)]
Says = Literal["auto", "nearness", "distance"]

METRIC = ("glpn", "zoedepth", "depth_pro", "prompt_depth_anything")
"""Kinds of model that estimate a distance in metres; the others say how near something is, without a unit."""


def depth(picture: Float[Tensor, "3 h w"], *, model: Model, says: Says = "auto") -> Float[Tensor, "3 h w"]:
    """Grey, white near and black far, from the nearest to the farthest point of the picture.

    says: whether the model's numbers grow with nearness or with distance; auto: as its config tells.
    """
    near = nearness(picture, model, says)
    span = (near.max() - near.min()).clamp(min=1e-12)
    return map_of(((near - near.min()) / span * 255).round().to(torch.uint8).numpy())


def normals(
    picture: Float[Tensor, "3 h w"], *, model: Model = None, says: Says = "auto", background: Share = 0.0,
    strength: Strength = 1.0,
) -> Float[Tensor, "3 h w"]:  # fmt: skip
    """Surface normals as colours. Without a model the picture is taken for a depth map, white near.

    background: what is farther than this share of the depth there is counts as flat (0.4 in the first public
    recipe); strength: factor of the depth's slope.
    """
    near = torch.from_numpy(grey_of(levels_of(picture))) if model is None else nearness(picture, model, says).double()
    dx, dy = _slopes(near.numpy())
    share = (near - near.min()) / (near.max() - near.min()).clamp(min=1e-12)
    dx, dy = (np.where(share.numpy() < background, 0.0, slope) for slope in (dx, dy))
    vector = np.stack([strength * dx, strength * dy, np.full_like(dx, 2 * math.pi)], axis=2)
    vector /= np.linalg.norm(vector, axis=2, keepdims=True)
    return map_of((vector * 127.5 + 127.5).clip(0, 255).astype(np.uint8))


def _slopes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's sums across and down, the border reflected."""
    p = np.pad(values, 1, mode="reflect" if min(values.shape) > 1 else "edge")
    across, down = p[:, 2:] - p[:, :-2], p[2:] - p[:-2]
    return across[:-2] + 2 * across[1:-1] + across[2:], down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]


# ----------------------------------------------------------------------------------------------------------- estimating


@torch.no_grad()
def nearness(picture: Float[Tensor, "3 h w"], model: Any, says: str = "auto") -> Float[Tensor, "h w"]:
    """What the model of a folder says of a picture in [0, 1], turned so that it grows towards the viewer; no unit."""
    network, preparation = _loaded(str(model))
    config = network.config
    said = network(pixel_values=_prepared(picture.float().cpu(), preparation, config)).predicted_depth
    said = said.reshape(1, 1, *said.shape[-2:]).float()
    values = interpolate(said, tuple(picture.shape[1:]), mode="bicubic", align_corners=False)[0, 0]
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"model={str(model)!r}: its depth of this picture is not finite")
    metric = getattr(config, "depth_estimation_type", "relative") == "metric" or config.model_type in METRIC
    distance = says == "distance" or (says == "auto" and metric)
    return 1 / values.clamp(min=1e-3) if distance else values


@lru_cache(maxsize=1)
def _loaded(folder: str) -> tuple[Any, dict[str, Any]]:
    """The network of a local folder and its preprocessor_config.json; InputError where it is no such model."""
    place = Path(folder).expanduser()
    if not (place / "config.json").is_file():
        raise InputError(
            f"model={folder!r}: a folder with the config.json and weights of a depth-estimation model is needed"
        )
    from transformers import AutoModelForDepthEstimation

    try:
        network = AutoModelForDepthEstimation.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"model={folder!r} is no depth-estimation model that can be loaded: {first}") from None
    near = (place, place.parent / "feature_extractor")  # the second of a pipeline's folder that has an estimator in it
    told = [file for where in near if (file := where / "preprocessor_config.json").is_file()]
    return network.float().eval(), read_json(told[0]) if told else {}


def _prepared(picture: Tensor, told: dict[str, Any], config: Any) -> Float[Tensor, "1 3 y x"]:
    """The picture as the model takes it: its size, to multiples that it needs, and its mean and deviation."""
    size = told.get("size") or getattr(config, "image_size", None) or getattr(config, "backbone_config", None)
    size = getattr(size, "image_size", size) or 384
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge", 384)), size.get("width", size.get("shortest_edge", 384))
    high, wide = size if isinstance(size, list | tuple) else (size, size)
    scale_y, scale_x = high / picture.shape[1], wide / picture.shape[2]
    if told.get("keep_aspect_ratio"):  # the side that changes less settles both
        scale_y = scale_x = scale_x if abs(1 - scale_x) < abs(1 - scale_y) else scale_y
    step = told.get("ensure_multiple_of") or told.get("size_divisor") or 1
    sides = [
        max(step, round(s * scale / step) * step)
        for s, scale in zip(picture.shape[1:], (scale_y, scale_x), strict=True)
    ]
    resized = interpolate(picture[None], sides, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    if told.get("do_normalize", True) and config.model_type != "glpn":
        mean, std = (torch.tensor(told.get(f"image_{name}") or [0.5] * 3).view(1, 3, 1, 1) for name in ("mean", "std"))
        resized = (resized - mean) / std
    return resized
