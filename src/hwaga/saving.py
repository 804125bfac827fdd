"""Saving models: our own folder, and the public layouts that other programs read. Folders are made whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, loading
from .errors import InputError, unknown
from .files import sha256, whole_file, whole_folder, write_json, write_tensors, write_text
from .loading import FORMAT, load

if TYPE_CHECKING:
    from torch import Tensor

    from .systems.base import System

FORMATS = ("hwaga", "diffusers", "single", "peft", "kohya")
DTYPES = ("float32", "bfloat16", "float16")


def save(
    system: System,
    folder: str | Path,
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    replace: bool = False,
    dtype: Any = None,
    training: bool = True,
    refer: bool = False,
    base: bool = True,
) -> Path:
    """Writes a folder that `load` reads: a folder a component, and last `model.json` with the hashes of all files.

    weights: {network: {name: tensor}} to write in place of the networks' own (averaged ones, say). dtype: to store floating
    tensors in. training: with the networks that training alone needs (a discriminator beside an autoencoder). refer: a part
    that is still a shipped model's is named and not copied. base: with the frozen networks that a LoRA was trained beside; False
    names where they came from. An existing folder is an InputError unless `replace`.
    """
    from .weights.fill import precise

    _are_exact(system)
    with whole_folder(folder, replace=replace) as part:
        components: dict[str, Any] = {}
        for name, network in system.networks.items():
            if name in system.trains_with and not training:
                continue
            entry = _reference(system, name) if refer else None if base else _of_base(system, name)
            if entry is not None:
                components[name] = entry
                continue
            place = part if system.flat else part / name
            place.mkdir(exist_ok=True)
            system.write_beside(name, place)
            tensors = dict((weights or {}).get(name) or network.state_dict())
            stored, exact = {}, precise(network)
            for key, value in tensors.items():
                half = dtype is not None and value.is_floating_point() and key not in exact
                keep = dtype if half else value.dtype
                stored[key] = value.detach().to(keep)
            write_tensors(place / "model.safetensors", stored, {"format": "pt"} if system.flat else None)
            components[name] = {"files": {f.name: sha256(f) for f in sorted(place.iterdir())}}
        system.write_lora(part, (weights or {}).get("lora"))
        hashes = "".join(_weights_hash(components[name]) for name in sorted(components))
        about = system.about.model_dump(mode="json", exclude={"name", "sha256", "layout"})
        card = {
            "format": FORMAT, "system": system.name, "version": __version__, "about": about,
            "sha256": hashlib.sha256(hashes.encode()).hexdigest(), "components": components,
            "config": system.config.model_dump(mode="json"),
        }  # fmt: skip
        if system.about.data_licence:
            write_text(part / "LICENSE.txt", licence_text(system))
        write_json(part / "model.json", card)
    return Path(folder)


def export(system: System, folder: str | Path, format: str = "diffusers") -> Path:
    """Writes a public layout: the one that was loaded, if it was; InputError where the network has none.

    format: "diffusers" (a folder), "single" (`folder` is then the name of one .safetensors file, with the names of the
    original authors), "hwaga" (as `save`); "peft" or "kohya": the LoRA alone that the model was trained as, one .safetensors
    file with the names of the one or the other. Other formats have it in the weights.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == "hwaga":
        return save(system, folder)
    if format in ("peft", "kohya"):
        return system.save_lora(folder, names=format)
    if format not in system.formats:
        raise InputError(
            f"{system.title} has no {format} layout; it can be exported to: {', '.join(system.formats) or 'none'}"
        )
    _are_exact(system)
    if format == "single":
        with system.merged_lora():
            return _single(system, Path(folder))
    with whole_folder(folder) as part, system.merged_lora():
        system.to_diffusers(part)
        if system.about.data_licence:
            write_text(part / "LICENSE.txt", licence_text(system))
    return Path(folder)


def _of_base(system: System, name: str) -> dict[str, str] | None:
    """The entry that names a network beside which a LoRA was trained, and a hash of its weights; None where it is none."""
    from .systems.latents import fingerprint

    source = system.about.components.get(name)
    if "lora" not in system.networks or name == "lora" or source is None:
        return None
    known: dict[str, str] = system.__dict__.setdefault("_fingerprints", {})  # frozen: they do not change
    if name not in known:
        known[name] = fingerprint(system.networks[name])
    return {"source": source, "of": "weights", "sha256": known[name]}


def _reference(system: System, name: str) -> dict[str, str] | None:
    """The entry that names a part as a shipped model's; None where it came from none, or is not that part any more."""
    import torch

    source = system.about.components.get(name)
    if source not in loading.shipped():
        return None
    there = load(source, device="cpu", dtype="float32").lends(name)
    own = system.networks[name].state_dict()
    if there is None or there.config != system.networks[name].config:
        return None
    if not all(torch.equal(value, own[key].cpu()) for key, value in there.state_dict().items()):
        return None
    return {"source": source, "sha256": sha256(loading.weights_file(loading.SHIPPED / source, name))}


def _weights_hash(entry: Mapping[str, Any]) -> str:
    return str(entry["sha256"] if "source" in entry else entry["files"]["model.safetensors"])


def _are_exact(system: System) -> None:
    """InputError for a model whose weights were rounded when it was loaded."""
    from .weights.quantised import is_quantised

    if any(is_quantised(network) for network in system.networks.values()):
        raise InputError(
            "this model was loaded with dtype='int8', which rounded its weights; load it with float32 to save"
        )


def _single(system: System, file: Path) -> Path:
    if file.suffix != ".safetensors":
        raise InputError(f"{file}: a single file's name ends in .safetensors")
    if file.exists():
        raise InputError(f"{file} exists already; name a new file")
    with whole_file(file) as part:
        if (text := system.to_file(part)) is not None:
            if (beside := file.with_suffix(".yaml")).exists():
                raise InputError(
                    f"{beside} exists already, and the YAML of this file would take its place; name a new file"
                )
            write_text(beside, text)
    return file


def convert(
    source: str | Path, dest: str | Path, to: str, dtype: str | None = None, *, weights: str | None = None,
    components: Mapping[str, str | Path] | None = None,
) -> Path:  # fmt: skip
    """Loads a model and writes it in another format, tensors in the dtype that they were stored in.

    dtype: another type to store them in (our own format only): float16 halves the file. Networks that training alone needs
    are then left out too: this is the form in which weights are given away. weights, components: as `load` takes them.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if dtype is None:
        return export(load(source, device="cpu", dtype="float32", weights=weights, components=components), dest, to)
    import torch

    if to != "hwaga":
        raise InputError(f"dtype={dtype!r} with to={to!r}: only hwaga's own format stores another type")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    system = load(source, device="cpu", dtype="float32", weights=weights, components=components)
    return save(system, dest, dtype=getattr(torch, dtype), training=False, refer=True)


def licence_text(system: System) -> str:
    """What a saved model says of the data it was trained on."""
    about = system.about
    return (
        f"These weights were trained on data under {about.data_licence} and are given under the same licence.\n"
        f"{about.attribution or ''}\n"
    )
