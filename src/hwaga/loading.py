"""`load`: a model from wherever it is: a run, a saved model, a public folder, a shipped name, a hub id.

What is local never opens a connection. Files of strangers are read as data: nothing in them is executed, paths that lead out of
the folder are refused, and a config is held against the file's headers before memory is taken.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, WorkError, unknown
from .files import inside, read_json, sha256

if TYPE_CHECKING:
    import torch

    from .systems.base import System

FORMAT = 1
SHIPPED = Path(__file__).parent / "shipped"
PIPELINES = {  # public class: system
    "AutoencoderKL": "vae", "DDPMPipeline": "ddpm", "DDIMPipeline": "ddpm", "UNet2DModel": "ddpm", "VQModel": "vqgan",
    "DiTPipeline": "dit", "Transformer2DModel": "dit", "DiTTransformer2DModel": "dit",
    **dict.fromkeys(
        ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
         "StableDiffusionInpaintPipelineLegacy", "StableDiffusionDepth2ImgPipeline", "LatentConsistencyModelPipeline",
         "LatentConsistencyModelImg2ImgPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline",
         "StableDiffusionXLInpaintPipeline"),
        "stable-diffusion",
    ),
    **dict.fromkeys(
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline",
         "StableDiffusion3InpaintPipeline", "StableDiffusion3PAGPipeline", "StableDiffusion3PAGImg2ImgPipeline"),
        "stable-diffusion-3",
    ),
    **dict.fromkeys(
        ("ControlNetModel", "StableDiffusionControlNetPipeline", "StableDiffusionControlNetImg2ImgPipeline",
         "StableDiffusionControlNetInpaintPipeline", "StableDiffusionXLControlNetPipeline",
         "StableDiffusionXLControlNetImg2ImgPipeline", "StableDiffusionXLControlNetInpaintPipeline"),
        "controlnet",
    ),
}  # fmt: skip
HASHED_BELOW = 64 * 2**20  # files up to this many bytes are held against their hash at each load


def load(
    source: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    components: Mapping[str, str | Path] | None = None,
    memory: str | int | None = None,
    compile: bool = False,
    weights: str | None = None,
) -> System:
    """The model at `source`, ready to sample.

    source: a local path (a run, a saved model, a public folder, a single public file), then a shipped name (openmoji/ddpm),
    then a hub id.
    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1". dtype: "auto" (float32 on a CPU, bfloat16 on a GPU),
    "float32", "bfloat16", "float16", or "int8" (on a CPU: linear layers' weights in 8 bits, all else float32; an approximation,
    see weights/quantised.py). components: {name: source} to put in another's place. memory: a budget such as "8GB":
    large weights of half precision then stay in their file (weights/streamed.py), and what would not fit is refused. compile:
    hand the networks to torch.compile. weights: "ema" or "raw" of files that hold both.

    InputError for what cannot be loaded, with the reason; WorkError where a hub cannot be reached.
    """
    from .allocation import keep_freed_memory
    from .formats.single import in_release
    from .precision import choose_device, choose_dtype
    from .weights.streamed import widened_late

    place, _ = choose_device(device)
    if dtype == "int8" and place.type != "cpu":
        raise InputError(f"dtype='int8' on {place}: it is for a CPU; use auto, float32 or bfloat16")
    if place.type == "cpu" and memory is None:
        keep_freed_memory()
    kept, slow = choose_dtype("float32" if dtype == "int8" else dtype, place)
    if slow:
        warnings.warn(slow, stacklevel=2)
    name, folder = _find(source)
    if weights not in (None, "ema", "raw"):
        raise unknown("weights", weights, ("ema", "raw"))
    if weights == "raw" and not folder.is_file():
        raise InputError(f"weights='raw': {name} holds the averaged weights alone; leave weights out")
    with widened_late(memory is not None and _halves(folder) > 0.6 * parsed_size(memory)):
        if folder.is_file():
            system = _file(folder, kept, place, components or {}, weights)
        elif (folder / "model.json").is_file():
            system = _saved(folder, kept, place)
        elif (released := in_release(folder)) is not None:
            system = _file(released, kept, place, components or {})
        else:
            system = _public(folder, kept, place)
        system.about.name = name
        for part, other in (components or {}).items():
            system = _replace(system, part, other, kept, place)
    _hold_to_budget(system, memory)
    _prepare(system, compile, dtype == "int8")
    return system


# --------------------------------------------------------------------------------------------------------------- where it is


def shipped() -> list[str]:
    """Names of the models that came with the package."""
    found = (file.parent.relative_to(SHIPPED).as_posix() for file in SHIPPED.glob("*/*/model.json"))
    return sorted(name for name in found if _is_system(SHIPPED / name))


def _is_system(folder: Path) -> bool:
    return "system" in read_json(folder / "model.json")


def _find(source: str | Path) -> tuple[str, Path]:
    """The name to remember and the folder, or the single file, to read."""
    text, path = str(source), Path(source).expanduser()
    if path.is_dir():
        if (path / "recipe.yaml").is_file() and not (path / "model.json").is_file():
            path = path / "model"  # a run
            if not (path / "model.json").is_file():
                raise InputError(
                    f"{source}: this run has saved no model yet; train it on with: hwaga train --resume {source}"
                )
        return str(path.resolve()), path
    if path.is_file():
        return str(path.resolve()), path
    if text.startswith("openmoji/"):
        if text not in shipped():
            raise unknown("model", text, shipped())
        return text, SHIPPED / text
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or text.startswith("."):
        raise InputError(
            f"{source}: there is no such file or folder, and it is no name of a shipped model ({', '.join(shipped())})"
        )
    return text, _download(text)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # not in the local cache
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except RepositoryNotFoundError:
        raise InputError(f"{name}: neither a local folder nor a model of the hub") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WorkError(f"{name} is no local folder, and the hub could not be reached: {first}") from None


# --------------------------------------------------------------------------------------------------------------- how it is read


def _saved(folder: Path, dtype: torch.dtype, device: torch.device) -> System:
    """A folder with `model.json`, as hwaga writes it."""
    from .systems import find
    from .systems.base import About

    card = read_json(folder / "model.json")
    where = str(folder / "model.json")
    if not isinstance(card, dict) or not isinstance(card.get("format"), int):
        raise InputError(f"{where} is no model card of hwaga: it has no `format`")
    if card["format"] > FORMAT:
        raise InputError(
            f"{where} has format {card['format']}; this version reads up to {FORMAT}: a newer hwaga wrote it"
        )
    cls = find(str(card.get("system")))
    config = cls.checked(card.get("config") or {})
    parts = card.get("components")
    networks: dict[str, Any] = {}
    bases: dict[str, System] = {}
    for name, network_config in cls.network_configs(config).items():
        if name in (*cls.trains_with, *cls.may_lack) and isinstance(parts, dict) and name not in parts:
            continue
        if not isinstance(parts, dict) or not isinstance(parts.get(name), dict):
            raise InputError(f"{where} says nothing of the component {name!r}")
        if parts[name].get("of") == "weights":
            networks[name] = _lent(folder, name, parts[name], dtype, device, bases)
            continue
        within = "." if cls.flat else name
        networks[name] = _component(folder, name, within, parts[name], network_config, dtype, device)
    return cls(config, networks, About(**{**card.get("about", {}), "sha256": card.get("sha256")}))


def _lent(
    folder: Path, name: str, entry: Mapping[str, Any], dtype: torch.dtype, device: torch.device, bases: dict[str, System]
) -> Any:  # fmt: skip
    """A frozen network of the model that a LoRA was trained beside; small ones are held against their hash."""
    import torch

    from .systems.latents import fingerprint

    source = str(entry.get("source"))
    if source not in bases:
        try:
            bases[source] = _any(_find(source)[1], dtype, device)
        except InputError as error:
            raise InputError(f"{folder} is a LoRA beside the model {source}, which cannot be loaded: {error}") from None
    network = bases[source].lends(name)
    if network is None:
        raise InputError(f"{folder} is a LoRA beside the {name} of {source}, which has none now")
    small = sum(p.numel() * p.element_size() for p in network.parameters()) <= HASHED_BELOW
    if small and dtype == torch.float32 and fingerprint(network) != entry.get("sha256"):
        raise InputError(
            f"{folder}: its {name} is that of {source}, but the weights there are others than it was trained with"
        )
    return network


def _any(folder: Path, dtype: torch.dtype, device: torch.device) -> System:
    """The model in a file or a folder of any kind."""
    if folder.is_file():
        return _file(folder, dtype, device, {})
    return (_saved if (folder / "model.json").is_file() else _public)(folder, dtype, device)


def _component(
    folder: Path, name: str, within: str, entry: Mapping[str, Any], config: Any, dtype: Any, device: Any
) -> Any:  # fmt: skip
    """One network of a saved model: in the folder `within` it, or by reference to another model's."""
    from .weights.fill import fill
    from .weights.mapped import Mapped

    if "source" in entry:
        source, place = _find(str(entry["source"]))
        file = weights_file(place, name)
        if entry.get("sha256") != sha256(file):
            raise InputError(
                f"{folder}: its {name} is that of {source}, but the weights there are others than it was trained with"
            )
        if file.parent == place and (lent := _saved(place, dtype, device).lends(name)) is not None:
            return lent
    else:
        place = inside(folder, within)
        file = place / "model.safetensors"
        expected = (entry.get("files") or {}).get("model.safetensors")
        if file.is_file() and file.stat().st_size <= HASHED_BELOW and expected and sha256(file) != expected:
            raise InputError(f"{file} is damaged: it is not the file that model.json was written for")
    network = fill(config, Mapped(file), str(file), dtype, device)
    if hasattr(network, "files"):  # what stands beside the weights, such as a tokenizer's
        own = ("config.json", "model.safetensors")
        beside = {f.name: f.read_bytes() for f in file.parent.iterdir() if f.is_file() and f.name not in own}
        network.files = beside  # type: ignore[assignment]
    return network


def weights_file(place: Path, part: str) -> Path:
    """The file with the weights of a part of a saved model, which may be all that the model is."""
    inner = place / part / "model.safetensors"
    return inner if inner.is_file() else place / "model.safetensors"


def _public(folder: Path, dtype: torch.dtype, device: torch.device) -> System:
    from .formats.folders import kind_of, lone_component
    from .systems import find

    kind = kind_of(folder)
    if kind not in PIPELINES and (lone := lone_component(folder)) is not None:
        kind = kind_of(folder / lone)
    if kind is None:
        raise InputError(
            f"{folder} holds no model: neither model.json (a saved model) nor model_index.json or config.json (a public folder)"
        )
    if kind not in PIPELINES:
        raise InputError(f"{folder} holds a {kind}; this version loads {', '.join(PIPELINES)}")
    system = find(PIPELINES[kind]).from_diffusers(folder, dtype, device)
    files = sorted(f for f in folder.rglob("*.safetensors") if f.is_file())
    if sum(f.stat().st_size for f in files) <= HASHED_BELOW:
        system.about.sha256 = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
    return system


def _file(
    path: Path, dtype: torch.dtype, device: torch.device, components: Mapping[str, str | Path], weights: str | None = None
) -> System:  # fmt: skip
    """A single public file; what it is is told by its content."""
    from .formats import single
    from .systems import find

    tensors = single.read(path, weights)
    kinds: tuple[str, ...] = getattr(tensors, "kinds", ())
    if len(kinds) > 1 and weights is None:
        warnings.warn(f"{path.name} holds {' and '.join(kinds)} weights; {kinds[0]} was taken (weights=)", stacklevel=4)
    rule = single.recognise(path, tensors)
    system = find(rule.system).from_file(path, tensors, dtype, device, components)
    if path.stat().st_size <= HASHED_BELOW:
        system.about.sha256 = sha256(path)
    return system


def _replace(system: System, part: str, source: str | Path, dtype: Any, device: Any) -> System:
    """Puts another model's network in place of one of this system's, or where it has none yet; the system that then is (with
    a ControlNet, say, another)."""
    known = [*system.networks, *system.may_lack]
    name, folder = _find(source)
    if folder.is_dir() and system.read_part(part, folder, dtype, device):
        return system
    grown = system.grows.get(re.sub(r"_\d+$", "", part)) if part not in known else None
    if part not in known and grown is None:
        raise unknown(f"component of {system.title}", part, [*known, *system.grows])
    other = _any(folder, dtype, device)
    network = other.lends(part) or other.lends(re.sub(r"_\d+$", "", part))
    if network is None:
        raise InputError(f"components[{part!r}]={name}: it has no {part}; it has {', '.join(other.networks)}")
    if grown is not None:
        from .systems import find

        return find(grown).over(system, {part: network}, {part: other.about.layout.get(part)}, name)
    system.take(part, network, name)
    return system


# ------------------------------------------------------------------------------------------------------------- what it takes


def _hold_to_budget(system: System, memory: str | int | None) -> None:
    """Refuses what would not fit; under a tight budget the transforms of convolutions are not kept. Weights that are pages of a
    file do not count: the system takes them back when memory is short."""
    if memory is None:
        return
    from .layers.conv import fit_transforms
    from .weights.streamed import private_bytes, widest

    budget = parsed_size(memory)
    held = sum(map(private_bytes, system.networks.values())) + max(map(widest, system.networks.values()))
    if held > budget:
        raise InputError(
            f"memory={memory}: the weights alone take {held / 2**20:,.1f} MiB; name at least that, or another dtype"
        )
    for network in system.networks.values():
        fit_transforms(network, budget - held)


def _halves(folder: Path) -> int:
    """Bytes that a model's weights of half precision would take in float32, by the headers of its files."""
    from .weights.mapped import Mapped

    files = [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))
    total = 0
    for file in files:
        if file.suffix != ".safetensors":  # a pickle: as if it were of half precision
            total += 2 * file.stat().st_size
            continue
        held = Mapped(file)
        total += sum(4 * math.prod(held.shapes[name]) for name in held if held.dtypes[name].itemsize == 2)
    return total


def parsed_size(text: str | int) -> int:
    """Bytes of "8GB", "512 MiB", "2G" or a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    if not match:
        raise InputError(f"memory={text!r}: a size such as 8GB or 512MB is needed")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _prepare(system: System, compile: bool, int8: bool) -> None:
    import torch

    from .weights.quantised import quantise

    if int8 and not sum(quantise(network) for network in system.networks.values()):
        raise InputError(f"dtype='int8': {system.title} has no linear layers large enough for it; use float32")
    for name, network in system.networks.items():
        network.eval()
        if compile:
            system.networks[name] = torch.compile(network)  # type: ignore[assignment]
