"""Features from any vision encoder folder that transformers loads: DINOv2, CLIP, SigLIP (whole or vision half), ViT.

Only local files are read, in float32, and no code of the folder is ever run. Pictures are prepared as the folder's
`preprocessor_config.json` says, by torch's antialiased resizing (transformers' own classes for it need more packages).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import InputError
from .encoders import Features, folder_sha256

if TYPE_CHECKING:
    from torch import Tensor

_RESAMPLE = {0: "nearest-exact", 1: "bicubic", 2: "bilinear", 3: "bicubic", 4: "area", 5: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Preparation:
    """What a preprocessor_config.json asks for."""

    shortest: int | None  # the shorter side after resizing, aspect kept
    exact: tuple[int, int] | None  # (height, width) after resizing, aspect not kept
    crop: tuple[int, int] | None  # (height, width) cut from the centre
    mode: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __str__(self) -> str:
        steps = []
        if self.shortest:
            steps.append(f"shorter side to {self.shortest}")
        if self.exact:
            steps.append(f"to {self.exact[0]} x {self.exact[1]}")
        if steps:
            steps[-1] += f" ({self.mode}, antialiased)" if self.mode in ("bilinear", "bicubic") else f" ({self.mode})"
        if self.crop:
            steps.append(f"centre {self.crop[0]} x {self.crop[1]}")
        return ", ".join(steps) or "none"

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1] (n, 3, h, w), as the network takes them."""
        import torch
        import torch.nn.functional as F

        height, width = images.shape[-2:]
        size = self.exact
        if self.shortest:
            # the longer side is cut off, not rounded, as the public processors do
            short, long = sorted((height, width))
            other = int(self.shortest * long / short)
            size = (self.shortest, other) if height <= width else (other, self.shortest)
        if size and size != (height, width):
            if self.mode in ("bilinear", "bicubic"):
                images = F.interpolate(images, size, mode=self.mode, antialias=True, align_corners=False).clamp(0, 1)
            else:
                images = F.interpolate(images, size, mode=self.mode)
        if self.crop:
            missing = [max(0, want - has) for want, has in zip(self.crop, images.shape[-2:], strict=True)]
            if any(missing):
                top, left = missing[0] // 2, missing[1] // 2
                images = F.pad(images, (left, missing[1] - left, top, missing[0] - top))
            top, left = ((has - want) // 2 for want, has in zip(self.crop, images.shape[-2:], strict=True))
            images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        if self.mean is not None and self.std is not None:
            mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
            images = (images - mean) / std
        return images


def read_preparation(path: Path) -> Preparation:
    """The preparation that a preprocessor_config.json describes; InputError names what cannot be used."""
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no table of settings")
    shortest = exact = crop = None
    if config.get("do_resize", True) and config.get("size") is not None:
        size = config["size"]
        if isinstance(size, int):  # the old spelling: CLIP means the shorter side by it, ViT a square
            shortest, exact = (size, None) if config.get("do_center_crop") else (None, (size, size))
        elif isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
            shortest = _side(size["shortest_edge"], path)
        elif isinstance(size, Mapping) and {"height", "width"} <= set(size):
            exact = (_side(size["height"], path), _side(size["width"], path))
        else:
            raise InputError(f"{path}: size={size!r}: want shortest_edge, or height and width")
    if config.get("do_center_crop") and config.get("crop_size") is not None:
        size = config["crop_size"]
        sides = (size, size) if isinstance(size, int) else (size.get("height"), size.get("width"))
        crop = (_side(sides[0], path), _side(sides[1], path))
    mean = std = None
    if config.get("do_normalize", True) and config.get("image_mean") is not None:
        mean, std = tuple(map(float, config["image_mean"])), tuple(map(float, config.get("image_std") or ()))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(f"{path}: image_mean={mean}, image_std={std}: want three numbers each, std above 0")
    scale = config.get("rescale_factor", 1 / 255)
    if config.get("do_rescale", True) and abs(scale * 255 - 1) > 1e-6:
        raise InputError(f"{path}: rescale_factor={scale!r}: only 1/255 (pictures in [0, 1]) is supported")
    return Preparation(shortest, exact, crop, _RESAMPLE.get(config.get("resample", 3), "bicubic"), mean, std)


def _side(value: Any, path: Path) -> int:
    if not isinstance(value, int) or not 1 <= value <= 4096:
        raise InputError(f"{path}: a side of {value!r} pixels; want 1 to 4096")
    return value


def load_vision(folder: Path, device: str = "cpu") -> Features:
    """The pooled output of the encoder in `folder`: the shared-space embedding of a two-towered model (CLIP, SigLIP),
    else `pooler_output`, else the mean of the last hidden states. InputError when the folder is no such encoder."""
    import torch

    preparation = folder / "preprocessor_config.json"
    if not preparation.is_file():
        raise InputError(f"{preparation} is missing: it says how the encoder takes pictures")
    prepare = read_preparation(preparation)
    weights = weight_files(folder)
    model, untrained = _encoder(folder)
    model = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
    pooled = pooling(getattr(model, "get_image_features", model), untrained)

    def run(images: Tensor) -> tuple[Tensor, None]:
        return pooled(pixel_values=prepare(images)), None

    side = prepare.crop or prepare.exact or (prepare.shortest or 224,) * 2
    try:
        with torch.inference_mode():
            dim = run(torch.zeros(1, 3, *side, device=device))[0].shape[1]
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}: {type(model).__name__} takes no pictures as a vision encoder does: {reason}"
        ) from None
    return Features(
        name=f"{type(model).__name__} ({folder.resolve().name})",
        sha256=folder_sha256(folder, ["config.json", "preprocessor_config.json", *weights]),
        dim=dim,
        resize=str(prepare),
        source=None,
        network=run,
        has_logits=False,
        batch_size=32,
        device=device,
    )


def weight_files(folder: Path) -> list[str]:
    """Names of the files with weights, safetensors where there are some. InputError where there are none."""
    weights = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") and p.is_file())
    safe = [name for name in weights if name.endswith(".safetensors")]
    if not weights:
        raise InputError(f"{folder} has no weights (model.safetensors)")
    return safe or weights


def open_model(folder: Path, asked: str = "clip", wanted: str = "a CLIP") -> tuple[Any, list[str]]:
    """The model of a folder, from local files, in float32, and the names of tensors that its files lack.

    asked, wanted: what a user named the folder for, in the InputError where it holds no model."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers raises of every kind here; all mean that the folder is not usable
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{asked}={str(folder)!r}: transformers cannot load {wanted} from it: {reason}") from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    return model, sorted(report["missing_keys"])


def _encoder(folder: Path) -> tuple[Any, bool]:
    """The model, and whether only its pooler has no weights there. Others that lack: InputError."""
    model, missing = open_model(folder, "features", "a vision encoder")
    missing = [name for name in missing if not name.startswith("text")]
    if not all(name.startswith("pooler.") for name in missing):
        raise InputError(
            f"{folder}: {len(missing)} tensors of {type(model).__name__} are missing, such as {missing[0]!r}"
        )
    return model, bool(missing)


def pooling(ask: Any, untrained_pooler: bool = False) -> Any:
    """`ask`, answering with one vector a picture (or text): the embedding, else the pooled output, else the mean of the
    states; older versions give the embedding itself."""

    def pooled(**given: Any) -> Tensor:
        output = ask(**given)
        for name in ("image_embeds", "pooler_output"):
            if getattr(output, name, None) is not None and not untrained_pooler:
                return getattr(output, name).flatten(1)
        if hasattr(output, "last_hidden_state"):
            states = output.last_hidden_state
            return states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)
        return output

    return pooled
