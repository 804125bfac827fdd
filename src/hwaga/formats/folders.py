"""Public model folders: `model_index.json` names the components, each a folder with its config and weights.

A flat folder (google/ddpm-*, plain autoencoders) has config and weights of its one network at the root. What was read is
written again in the same layout: flat or not, tensors under the names and in the dtype that they had.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..files import inside, read_json, write_json, write_tensors
from ..weights.mapped import read_folder

STEMS = ("diffusion_pytorch_model", "model")


class PublicFolder:
    """A folder in the public layout, read lazily."""

    def __init__(self, path: str | Path, network: str) -> None:
        """network: the component that a flat folder holds at its root ("unet", "vae")."""
        self.path, self.network = Path(path), network
        index = self.path / "model_index.json"
        self.index: dict[str, Any] = read_json(index) if index.is_file() else {}
        if not isinstance(self.index, dict):
            raise InputError(f"{index} is not a table of components")
        self.flat = not (self.path / network).is_dir()

    def place(self, component: str) -> Path:
        """Where a component's files are."""
        return self.path if self.flat else inside(self.path, component)

    def config(self, component: str) -> dict[str, Any]:
        """A network's config.json."""
        return self._table(self.place(component) / "config.json")

    def scheduler(self) -> dict[str, Any] | None:
        """The scheduler's config; None where the folder has none."""
        for folder in (self.path / "scheduler", self.path):
            if (file := folder / "scheduler_config.json").is_file():
                return self._table(file)
        return None

    def tensors(self, component: str) -> Mapping[str, Tensor]:
        """A network's tensors under their public names, mapped."""
        return read_folder(self.place(component), STEMS)

    @staticmethod
    def _table(file: Path) -> dict[str, Any]:
        value = read_json(file)
        if not isinstance(value, dict):
            raise InputError(f"{file} is not a table of settings")
        return value


def full_config(
    public: Mapping[str, Any], where: str, name: str, defaults: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """A network's public config with every field of its class `name`: fields left out have the class's defaults.

    `only` names fields of which this library does some values. InputError for fields that the class lacks and for others.
    """
    full = {**defaults, **{key: value for key, value in public.items() if not key.startswith("_")}}
    for key in full:
        if key not in defaults:
            raise InputError(f"{where}: {key} is no field of {name}")
    for key, values in only.items():
        if full[key] not in values:
            raise InputError(f"{where}: {key}={full[key]!r} cannot be loaded; {' or '.join(map(repr, values))} can")
    return full


def kind_of(folder: str | Path) -> str | None:
    """The public class that a folder says it holds (of a pipeline, or of its one network); None if it is no public folder."""
    folder = Path(folder)
    for name in ("model_index.json", "config.json"):
        if (folder / name).is_file():
            value = read_json(folder / name)
            if isinstance(value, dict) and isinstance(value.get("_class_name"), str):
                return value["_class_name"]
    return None


def lone_component(folder: str | Path) -> str | None:
    """The name of the one sub-folder that holds a public network, where the folder itself holds none and there is no other."""
    folder = Path(folder)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    found = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and (entry / "config.json").is_file()]
    return found[0] if len(found) == 1 else None


def write_component(place: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """config.json and diffusion_pytorch_model.safetensors of one network, into an existing folder that is not yet in use."""
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "config.json", config)
    write_tensors(place / f"{STEMS[0]}.safetensors", tensors, {"format": "pt"})
