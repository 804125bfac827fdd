"""What turns pictures into features: the shipped judge, a vision encoder's folder, or the public Inception file.

Nothing here opens a connection or runs code of a folder. Pictures enter as uint8, or floating point in [0, 1],
(n, 3, h, w); features leave as float32 (n, d) on the CPU. The same picture has the same features whatever else is in
the call, to rounding.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset

SHIPPED = Path(__file__).parent.parent / "shipped" / "openmoji" / "features"
_KEPT = 8  # data sets whose features are kept

Progress = Callable[[int, int, str], None]
"""progress(done, total, what)"""

Network = Callable[["Tensor"], tuple["Tensor", "Tensor | None"]]
"""Pictures in [0, 1], float32 (n, 3, h, w), to features (n, d) and logits (n, c) or None."""


@dataclass
class Features:
    """Features with a name: calling it makes (n, dim) float32 of pictures."""

    name: str
    sha256: str  # of the weights (a folder: of config and weights together)
    dim: int
    resize: str  # how a picture comes to the size that the network takes
    source: str | None  # the data that it was trained on where that is all it knows
    network: Network = field(repr=False)
    has_logits: bool = False
    batch_size: int = 64
    device: str = "cpu"
    _known: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False)

    def __call__(self, images: Any, progress: Progress | None = None) -> Tensor:
        """(n, dim) float32 of pictures (n, 3, h, w), uint8 or in [0, 1]. InputError for anything else."""
        return self.judge(images, progress)[0]

    def logits(self, images: Any, progress: Progress | None = None) -> Tensor:
        """(n, c) float32 class logits, as the Inception score takes them. InputError where the network has none."""
        result = self.judge(images, progress)[1]
        if result is None:
            raise InputError(
                f"features {self.name!r} have no classes; the Inception score needs the shipped or Inception"
            )
        return result

    def judge(
        self, images: Any, progress: Progress | None = None, what: str = "pictures"
    ) -> tuple[Tensor, Tensor | None]:
        """Features and logits (None where there are none) in one pass."""
        import torch

        images = check_images(images)
        parts: list[tuple[Tensor, Tensor | None]] = []
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                part = images[start : start + self.batch_size].to(self.device)
                part = part.float() / 255 if part.dtype == torch.uint8 else part.float()
                features, logits = self.network(part)
                parts.append((features.float().cpu(), None if logits is None else logits.float().cpu()))
                if progress:
                    progress(min(start + self.batch_size, len(images)), len(images), f"features of {what}")
        features = torch.cat([part[0] for part in parts])
        logits = torch.cat([part[1] for part in parts if part[1] is not None]) if parts[0][1] is not None else None
        return features.clone(), None if logits is None else logits.clone()

    def of(
        self, data: Dataset, progress: Progress | None = None, what: str = "pictures"
    ) -> tuple[Tensor, Tensor | None]:
        """Features and logits of a whole data set; kept, so that the next evaluation in this process need not wait."""
        import torch

        key = f"{data.fingerprint} {data.split}"
        if key not in self._known:
            blocks = []
            for start in range(0, len(data), self.batch_size):
                end = min(start + self.batch_size, len(data))
                blocks.append(self.judge(data.pixels(np.arange(start, end))))
                if progress:
                    progress(end, len(data), f"features of {what}")
            logits = None if blocks[0][1] is None else torch.cat([block[1] for block in blocks])  # type: ignore[misc]
            while len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = (torch.cat([block[0] for block in blocks]), logits)
        return self._known[key]


def check_images(images: Any) -> Tensor:
    """Pictures as a tensor (n, 3, h, w), uint8 or floating point in [0, 1]. InputError says what is wrong with them."""
    import torch

    images = torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
    if not isinstance(images, torch.Tensor):
        raise InputError(f"pictures of type {type(images).__name__}: want a tensor or an array (n, 3, h, w)")
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise InputError(f"pictures of shape {tuple(images.shape)}: want (n, 3, h, w), RGB, at least one")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError(f"pictures of {images.dtype}: want uint8, or floating point in [0, 1]")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # written so that NaN is refused too
        raise InputError(f"pictures with values from {low:.4g} to {high:.4g}: want [0, 1] (or uint8 for 0 to 255)")
    return images.clamp(0, 1)


# ------------------------------------------------------------------------------------------------------------- loading


def load_features(spec: str | Path | Features | None = None, device: str = "cpu") -> Features:
    """Features by what `spec` is.

    None              the shipped ones, made for emoji (64 dimensions, logits of the subgroups)
    a folder          a judge that `evaluation.judge` saved, or a vision encoder that transformers loads (DINOv2, CLIP,
                      ...; config.json, weights, preprocessor_config.json): its pooled output, computed in float32
    a file            Inception-v3 in the public FID layout (.pth, read without executing anything, or .safetensors)

    InputError for anything else, in one sentence. No connection is opened.
    """
    if isinstance(spec, Features):
        return spec
    if spec is None:
        if not (SHIPPED / "model.safetensors").is_file():
            raise InputError(
                "this installation has no shipped features; name a folder or an Inception file as features"
            )
        return _judge(str(SHIPPED), device)
    path = Path(spec)
    if path.is_dir():
        if (path / "model.json").is_file() and files.read_json(path / "model.json").get("kind") == "features":
            return _judge(str(path), device)
        if not (path / "config.json").is_file():
            raise InputError(f"features={str(spec)!r}: the folder has no config.json; want a vision encoder's folder")
        from .vision import load_vision

        return load_vision(path, device)
    if path.is_file():
        return _inception(path, device)
    raise InputError(
        f"features={str(spec)!r}: no such folder or file; want a vision encoder's folder or an Inception file"
    )


@lru_cache(maxsize=4)
def _judge(folder: str, device: str) -> Features:
    from pydantic import ValidationError

    from ..layers.initialise import build_on
    from ..networks.features import FILTER, FeatureNetwork, FeaturesConfig

    path = Path(folder)
    card = files.read_json(path / "model.json")
    if card.get("format") != 1:
        raise InputError(f"{path}/model.json: format {card.get('format')!r}; this version reads format 1")
    weights = path / "model.safetensors"
    found = files.sha256(weights) if weights.is_file() else None
    if found is None or found != card.get("files", {}).get("model.safetensors"):
        raise InputError(f"{weights} is missing or is not the file that model.json names; get the folder anew")
    try:
        config = FeaturesConfig.model_validate(files.read_json(path / "config.json"))
    except ValidationError as error:
        raise InputError(f"{path}/config.json: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    network = build_on(config, device)
    assert isinstance(network, FeatureNetwork)
    missing = _fill(network, _read(weights), str(weights))
    if missing:
        raise InputError(f"{weights}: {len(missing)} tensors are missing, the first is {missing[0]!r}")
    network.eval().requires_grad_(False)
    size = config.size

    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        judged = network(images * 2 - 1)
        return judged.features, judged.logits

    return Features(
        name=card.get("name", path.name),
        sha256=found,
        dim=config.features,
        resize=f"{size} x {size}: {FILTER}",
        source=card.get("data", {}).get("config", {}).get("source"),
        network=run,
        has_logits=True,
        batch_size=256,
        device=device,
    )


def _inception(path: Path, device: str) -> Features:
    import torch

    from ..layers.initialise import build_on
    from ..networks.inception import FEATURES, SIZE, InceptionConfig, fused

    state = _read(path)
    head = state.get("fc.weight")
    if "Conv2d_1a_3x3.conv.weight" not in state or head is None or head.ndim != 2 or head.shape[1] != FEATURES:
        raise InputError(
            f"features={str(path)!r}: not Inception-v3 in the public FID layout (which has Conv2d_1a_3x3.conv.weight"
            f" and fc.weight); it has {len(state)} tensors{', such as ' + next(iter(state)) if state else ''}"
        )
    network: Any = build_on(InceptionConfig(classes=head.shape[0]))
    missing = _fill(network, state, str(path))
    if missing:
        raise InputError(f"{path}: {len(missing)} tensors are missing, the first is {missing[0]!r}")
    network = fused(network).to(device).requires_grad_(False)

    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        output = network((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        return output.features, output.logits

    return Features(
        name=f"inception-v3-fid ({path.name})",
        sha256=files.sha256(path),
        dim=FEATURES,
        resize=f"{SIZE} x {SIZE}: bilinear, not antialiased",
        source=None,
        network=run,
        has_logits=True,
        batch_size=32,
        device=device,
    )


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, its kind told by content; pickles by the unpickler that builds nothing but tensors."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with open(path, "rb") as file:
        start = file.read(9)
    try:
        if start[8:9] == b"{":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of a pickle: what cannot be read is an error anyhow
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a readable file of weights (nothing in it was executed): {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: not a plain table of tensors; want the weights of a network")
    return state


def _fill(network: Any, state: dict[str, Tensor], where: str) -> list[str]:
    """Copies every tensor of `state` into the network, as float32; what it lacks is returned (norms' counters apart).

    InputError for a tensor that the network does not have, or of another shape.
    """
    import torch

    wanted = dict(network.state_dict())
    with torch.no_grad():
        for name, value in state.items():
            if name not in wanted:
                raise InputError(f"{where}: the tensor {name!r} belongs to no part of this network")
            target = wanted.pop(name)
            if target.shape != value.shape:
                raise InputError(f"{where}: {name} has shape {tuple(value.shape)}, want {tuple(target.shape)}")
            target.copy_(value)
        for name in [name for name in wanted if name.endswith("num_batches_tracked")]:
            wanted.pop(name).zero_()
    return list(wanted)


def folder_sha256(folder: Path, names: list[str]) -> str:
    """One hash for several files of a folder: over their names and their own hashes."""
    whole = hashlib.sha256()
    for name in sorted(names):
        whole.update(f"{name} {files.sha256(folder / name)}\n".encode())
    return whole.hexdigest()
