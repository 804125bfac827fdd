"""Where the networks of the perceptual distance come from: the shipped one, a folder that training left, or LPIPS's own files.

openmoji/perceptual    shipped, made by recipes/openmoji/perceptual.yaml
FOLDER                 what `python -m hwaga.evaluation.judge` wrote; or a folder with two public files: torchvision's
                       VGG-16 (`features.0.weight`, ...) and LPIPS's weights (`lin0.model.1.weight`, ...)
FILE                   the whole of LPIPS in one file (`net.slice1.0.weight`, ..., `lin0.model.1.weight`), as it is in
                       VQGAN checkpoints below `loss.perceptual_loss.`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import InputError
from ..files import read_json, sha256
from ..networks.perceptual import VGG16, PlainConfig, VGGConfig
from ..weights.fill import fill
from ..weights.mapped import Mapped, read_pickled

SHIPPED = Path(__file__).parent.parent / "shipped"
PREFIX = "loss.perceptual_loss."
HOW = "python -m hwaga.evaluation.judge recipes/openmoji/perceptual.yaml --out FOLDER"


def perceptual_network(source: str | Path) -> nn.Module:
    """The network of `objectives.perceptual.Perceptual`, in float32 on the CPU, evaluation mode.

    InputError, with what would be right, where there is nothing that can be used. No connection is opened.
    """
    path = SHIPPED / source if str(source).startswith("openmoji/") else Path(source).expanduser()
    if not path.exists():
        shipped = "is not shipped with this installation" if path.is_relative_to(SHIPPED) else "does not exist"
        raise InputError(f"perceptual={str(source)!r} {shipped}; make one with: {HOW}, and name that folder")
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    return _network(path.resolve(), tuple((file.name, file.stat().st_mtime_ns) for file in inside))


@lru_cache(maxsize=2)
def _network(path: Path, stamp: tuple[tuple[str, int], ...]) -> nn.Module:
    """`stamp`: what is kept is forgotten when a file changes."""
    with torch.utils._python_dispatch._disable_current_modes():  # memory may be being planned without any
        if path.is_dir() and (path / "model.json").is_file():
            network = _own(path)
        else:
            files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
            network = _lpips(files, str(path))
        return network.eval().requires_grad_(False)


def _own(folder: Path) -> nn.Module:
    card, weights = read_json(folder / "model.json"), folder / "model.safetensors"
    if card.get("kind") != "perceptual":
        raise InputError(
            f"perceptual={str(folder)!r} holds {card.get('kind') or card.get('system')!r}, which trains nothing here (a judge "
            f"that systems were trained through would flatter them); make one with: {HOW}"
        )
    if not weights.is_file() or sha256(weights) != card.get("files", {}).get("model.safetensors"):
        raise InputError(f"{weights} is missing or is not the file that model.json names; get the folder anew")
    try:
        config = PlainConfig.model_validate(read_json(folder / "config.json"))
    except ValidationError as error:
        raise InputError(f"{folder}/config.json: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    return fill(config, Mapped(weights), str(weights), torch.float32)


def _lpips(files: list[Path], where: str) -> nn.Module:
    tensors: dict[str, Any] = {}
    for file in files:
        tensors |= _read(file)
    public = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    found = {ours: public[name] for ours, names in lpips_names().items() for name in names if name in public}
    if lost := [names[0] for ours, names in lpips_names().items() if ours not in found]:
        raise InputError(
            f"perceptual={where!r}: {lost[0]} and {len(lost) - 1} more tensors of LPIPS (VGG-16) are missing; give a file that "
            f"holds all of it, or a folder with torchvision's vgg16 file and LPIPS's vgg.pth"
        )
    found |= {f"weights.{k}": found[f"weights.{k}"].flatten() for k in range(len(VGG16))}
    widths = tuple(tuple(found[f"stages.{i}.{j}.weight"].shape[0] for j in range(len(w))) for i, w in enumerate(VGG16))
    network = VGGConfig(widths=widths).build()
    missing = network.load_state_dict({name: value.float() for name, value in found.items()}, strict=False).missing_keys
    assert set(missing) == {"shift", "scale"}
    return network


def lpips_names() -> dict[str, tuple[str, ...]]:
    """{our name: (its name within LPIPS, torchvision's)}. LPIPS keeps torchvision's numbers and cuts the list in five."""
    names: dict[str, tuple[str, ...]] = {}
    number = 0
    for i, widths in enumerate(VGG16):
        number += i > 0  # a pooling layer, which begins each slice but the first
        for j in range(len(widths)):
            for kind in ("weight", "bias"):
                inner, outer = f"net.slice{i + 1}.{number}.{kind}", f"features.{number}.{kind}"
                names[f"stages.{i}.{j}.{kind}"] = (inner, outer)
            number += 2  # the convolution and its ReLU
        names[f"weights.{i}"] = (f"lin{i}.model.1.weight", f"lins.{i}.model.1.weight")
    return names


def _read(file: Path) -> Mapping[str, Tensor]:
    if not re.search(r"\.(safetensors|pth|pt|ckpt|bin)$", file.name):
        return {}
    with open(file, "rb") as stream:
        head = stream.read(9)
    return Mapped(file) if head[8:9] == b"{" else read_pickled(file)
