"""AutoencoderKL's public layouts: folders (`config.json` + `diffusion_pytorch_model.safetensors`) and single files.

Parameters are named here as in the folders. Single files have the names of the original authors (`encoder.down.0.block.0...`),
alone (`ae.safetensors`) or below `first_stage_model.` or `vae.`; `ldm_rows` is their key table, which VQGAN's files share.

Of a single file the scale of latents is not known: 4 channels are taken for Stable Diffusion 1 and 2 (0.18215), 16 for Flux
(0.3611, 0.1159) where the names have no prefix, else for Stable Diffusion 3 (1.5305, 0.0609). Encoding and decoding again
does not depend on it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..errors import InputError, first_mistake
from ..files import write_tensors
from ..networks.autoencoder import AutoencoderKLConfig, CodecConfig
from ..weights.mapped import Renamed
from .folders import PublicFolder, full_config, write_component
from .keys import Row, renamed
from .stored import Stored, as_stored, dtypes_of, shapes_of
from .unet2d import OLD_ATTENTION

CLASS = "AutoencoderKL"
DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64], "layers_per_block": 1, "act_fn": "silu",
    "latent_channels": 4, "norm_num_groups": 32, "sample_size": 32, "scaling_factor": 0.18215, "shift_factor": None,
    "latents_mean": None, "latents_std": None, "force_upcast": True, "use_quant_conv": True, "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}  # fmt: skip
ONLY = {"act_fn": ("silu", "swish")}
PREFIXES = ("first_stage_model.", "vae.", "")
LEFT_BY_TRAINING = ("loss.", "model_ema.", "discriminator.")
BUFFERS = ("shift", "scale")


@dataclass(frozen=True)
class Found(Stored[AutoencoderKLConfig]):
    """What a public folder or file holds; shift and scale are among its tensors."""

    size: tuple[int, int] = field(kw_only=True)


# ------------------------------------------------------------------------------------------------------- original names


def ldm_rows(levels: int) -> tuple[Row, ...]:
    """(original name, name in folders and here) of an Encoder and a Decoder with so many resolutions; all other names are
    the same in both. The original counts the decoder's levels from the finest."""
    rows: list[Row] = []
    for i in range(levels):
        for old, new in ((f"encoder.down.{i}", f"encoder.down_blocks.{i}"),
                         (f"decoder.up.{levels - 1 - i}", f"decoder.up_blocks.{i}")):  # fmt: skip
            rows.append((f"{old}.block.{{i}}.nin_shortcut.{{path}}", f"{new}.resnets.{{i}}.conv_shortcut.{{path}}"))
            rows.append((f"{old}.block.{{i}}.{{path}}", f"{new}.resnets.{{i}}.{{path}}"))
            rows += [(f"{old}.attn.{{i}}.{a}.{{path}}", f"{new}.attentions.{{i}}.{b}.{{path}}") for a, b in ATTENTION]
        rows.append(
            (f"encoder.down.{i}.downsample.conv.{{path}}", f"encoder.down_blocks.{i}.downsamplers.0.conv.{{path}}")
        )
        rows.append(
            (f"decoder.up.{levels - 1 - i}.upsample.conv.{{path}}", f"decoder.up_blocks.{i}.upsamplers.0.conv.{{path}}")
        )
    for half in ("encoder", "decoder"):
        rows += [(f"{half}.mid.block_{k + 1}.{{path}}", f"{half}.mid_block.resnets.{k}.{{path}}") for k in (0, 1)]
        rows += [
            (f"{half}.mid.attn_1.{a}.{{path}}", f"{half}.mid_block.attentions.0.{b}.{{path}}") for a, b in ATTENTION
        ]
        rows.append((f"{half}.norm_out.{{path}}", f"{half}.conv_norm_out.{{path}}"))
    return tuple(rows)


ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
_MATRIX = re.compile(r".+\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight")


def from_ldm(tensors: Mapping[str, Tensor], prefix: str = "", keep: Iterable[str] | None = None) -> Renamed:
    """Tensors of an original file under our names, lazily. The attention's 1 x 1 convolutions become matrices: views.

    prefix: what their names begin with. keep: names without the prefix to take; None: all below it.
    """
    own = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)] if keep is None else list(keep)
    levels = 1 + max((int(m[1]) for name in own if (m := re.match(r"encoder\.down\.(\d+)\.", name))), default=0)
    names = renamed(own, ldm_rows(levels))
    shapes = shapes_of(tensors)
    flat = [new for old, new in names.items() if _MATRIX.fullmatch(new) and len(shapes[prefix + old]) == 4]
    return Renamed(tensors, {new: prefix + old for old, new in names.items()}, flat)


def to_ldm(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The way back: original names, matrices of the attention as 1 x 1 convolutions."""
    names = renamed(tensors, ldm_rows(levels), back=True)
    return {
        names[name]: value[:, :, None, None] if _MATRIX.fullmatch(name) and value.dim() == 2 else value
        for name, value in tensors.items()
    }


def config_of(tensors: Mapping[str, Tensor], where: str) -> AutoencoderKLConfig:
    """The config that tensors under our names are of, read off their shapes. The number of groups is not in them: 32, or
    what divides all widths, where that is less."""
    count = lambda pattern: len({m[1] for name in tensors if (m := re.match(pattern, name))})  # noqa: E731
    shapes = shapes_of(tensors)
    try:
        levels = count(r"encoder\.down_blocks\.(\d+)\.")
        channels = [shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)]
        latents = shapes["decoder.conv_in.weight"][1]
        attention = [f"encoder.down_blocks.{i}.attentions.0.to_q.weight" in tensors for i in range(levels)]
        return AutoencoderKLConfig(
            channels=tuple(channels), blocks=count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\."), latent_channels=latents,
            in_channels=shapes["encoder.conv_in.weight"][1], groups=math.gcd(32, *channels),
            attention=tuple(attention) if any(attention) else None,
            middle_attention="encoder.mid_block.attentions.0.to_q.weight" in tensors,
            quant_conv="quant_conv.weight" in tensors, post_quant_conv="post_quant_conv.weight" in tensors,
            double_z=shapes["encoder.conv_out.weight"][0] == 2 * latents,
        )  # fmt: skip
    except (KeyError, IndexError) as error:
        raise InputError(f"{where} is no whole autoencoder: it lacks {error.args[0]}") from None
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


# --------------------------------------------------------------------------------------------------------------- folders


def read_folder(path: Path) -> Found:
    """An AutoencoderKL folder; what it looked like is kept, so that it is saved again the same."""
    folder = PublicFolder(path, "vae")
    return read_component(folder, "vae")


def read_component(folder: PublicFolder, component: str) -> Found:
    """The AutoencoderKL in a pipeline's folder, or in a flat one."""
    place = folder.place(component)
    where = str(place / "config.json")
    public = folder.config(component)
    config, tensors = network_config(public, where), folder.tensors(component)
    names = renamed(tensors, OLD_ATTENTION)
    shift, scale = scaling({**DEFAULTS, **public}, config.latent_channels)
    ours = Renamed(tensors, {new: old for old, new in names.items()}, more={"shift": shift, "scale": scale})
    side = public.get("sample_size") or DEFAULTS["sample_size"]
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    layout = {
        "config": public, "old_attention": any(old != new for old, new in names.items()), "dtypes": dtypes_of(tensors),
    }  # fmt: skip
    return Found(config, ours, str(place), layout, size=multiple(size, config.factor))


def network_config(public: Mapping[str, Any], where: str) -> AutoencoderKLConfig:
    """Our config of a public one; InputError for what that class knows and this network does not do."""
    full = full_config(public, where, CLASS, DEFAULTS, ONLY)
    attention = attention_of(full, where)
    if full["in_channels"] != full["out_channels"]:
        raise InputError(
            f"{where}: in_channels={full['in_channels']} and out_channels={full['out_channels']} differ; alike can be loaded"
        )
    try:
        return AutoencoderKLConfig(
            channels=tuple(full["block_out_channels"]), blocks=full["layers_per_block"], attention=attention,
            middle_attention=full["mid_block_add_attention"], in_channels=full["in_channels"],
            latent_channels=full["latent_channels"], groups=full["norm_num_groups"], quant_conv=full["use_quant_conv"],
            post_quant_conv=full["use_post_quant_conv"],
        )  # fmt: skip
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


def attention_of(public: Mapping[str, Any], where: str) -> tuple[bool, ...] | None:
    """Which levels of a public encoder have attention, by its block types; the decoder's must mirror them."""
    down, up = list(public["down_block_types"]), list(public["up_block_types"])
    known = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")
    for kind in (*down, *up):
        if kind not in known:
            raise InputError(f"{where}: block type {kind!r} cannot be loaded; {', '.join(known)} can")
    found = tuple(kind.startswith("Attn") for kind in down)
    if len(down) != len(up) or tuple(kind.startswith("Attn") for kind in reversed(up)) != found:
        raise InputError(f"{where}: attention on the way up {up} does not mirror that on the way down {down}")
    return found if any(found) else None


def scaling(public: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """(shift, scale), a number a channel: z' = (z - shift) scale. Where a mean and a deviation of each channel are given
    (Playground 2.5), z' = (z - mean) factor / deviation."""
    scale = torch.full((channels,), float(public["scaling_factor"]))
    if public.get("latents_mean") and public.get("latents_std"):
        return torch.tensor(public["latents_mean"]).float(), scale / torch.tensor(public["latents_std"]).float()
    return torch.full((channels,), float(public.get("shift_factor") or 0.0)), scale


def block_types(config: CodecConfig) -> dict[str, Any]:
    """The public fields that name the kinds of levels."""
    kinds = ["Attn" if config.attends(i) else "" for i in range(len(config.channels))]
    return {
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
    }


def public_config(network: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The public config of one of our networks; InputError in one sentence where there is none."""
    config = network.config
    refuse(config)
    shift, scale = network.shift.double(), network.scale.double()
    told: dict[str, Any] = {"scaling_factor": float(scale[0]), "shift_factor": float(shift[0]) or None}
    if bool((shift != shift[0]).any()) or bool((scale != scale[0]).any()):
        told = {"scaling_factor": 1.0, "latents_mean": shift.tolist(), "latents_std": (1 / scale).tolist()}
    return {
        "_class_name": CLASS, **DEFAULTS, **block_types(config), "in_channels": config.in_channels,
        "out_channels": config.in_channels, "block_out_channels": list(config.channels), "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels, "norm_num_groups": config.groups,
        "sample_size": size[0] if size[0] == size[1] else list(size), "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.post_quant_conv, "mid_block_add_attention": config.middle_attention, **told,
    }  # fmt: skip


def shiftless(network: Any, layout: Mapping[str, Any]) -> Any:
    """The same network without a shift of its latents, for pipelines that know a scale alone (Stable Diffusion 1, 2, XL, DiT): it
    is taken off in the 1 x 1 convolution after the encoder and put back in the one before the decoder. As it is where there is
    none, where it was loaded so, and where those convolutions are not there."""
    if layout.get("config") or not bool(network.shift.any()):
        return network
    if network.quant_conv is None or network.post_quant_conv is None:
        return network
    found = copy.deepcopy(network)
    shift = found.shift.to(found.quant_conv.bias)
    with torch.no_grad():
        found.quant_conv.bias[: len(shift)] -= shift
        found.post_quant_conv.bias += found.post_quant_conv.weight.flatten(1) @ shift
        found.shift.zero_()
    return found


def refuse(config: Any) -> None:
    """InputError where a network has no public layout."""
    if not isinstance(config, AutoencoderKLConfig):
        raise InputError(
            "a VAE with a vector (network.kind=vector) has no public layout; one with a map (kind=map) has"
        )
    for key, only in (("patch", 1), ("double_z", True), ("eps", 1e-6)):
        if getattr(config, key) != only:
            raise InputError(
                f"network.{key}={getattr(config, key)}: the public layout has no field for it; only {only} can be exported"
            )


def write_folder(folder: Path, network: Any, size: tuple[int, int], layout: Mapping[str, Any]) -> None:
    """Writes a flat public folder: as it was loaded, if it was."""
    config = layout.get("config") or public_config(network, size)
    tensors = _plain(network)
    if layout.get("old_attention"):
        names = renamed(tensors, OLD_ATTENTION, back=True)
        tensors = {names[name]: value for name, value in tensors.items()}
    write_component(folder, config, as_stored(tensors, layout.get("dtypes")))


# ----------------------------------------------------------------------------------------------------------- single files


def prefix_of(tensors: Iterable[str]) -> str | None:
    """What the names of an AutoencoderKL's file begin with; None if the tensors are of something else, or of more."""
    names = [name for name in tensors if not name.startswith(LEFT_BY_TRAINING)]
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        first = ("encoder.down.0.block.0.norm1.weight", "encoder.down_blocks.0.resnets.0.norm1.weight")
        whole = "decoder.conv_in.weight" in inner and any(name in inner for name in first)
        if whole and len(inner) == len(names) and not any(name.startswith("quantize") for name in inner):
            return prefix
    return None


def read_file(path: Path, tensors: Mapping[str, Tensor]) -> Found:
    """A single file that `prefix_of` knows; names in it are the original ones, or the folder's."""
    prefix = prefix_of(tensors) or ""
    kept = [n.removeprefix(prefix) for n in tensors if n.startswith(prefix) and not n.startswith(LEFT_BY_TRAINING)]
    original = any(name.startswith("encoder.down.") for name in kept)
    if original:
        ours = from_ldm(tensors, prefix, kept)
    else:
        names = renamed(kept, OLD_ATTENTION)
        ours = Renamed(tensors, {new: prefix + old for old, new in names.items()})
    config = config_of(ours, str(path))
    shift, scale = scaling(_known(config.latent_channels, prefix), config.latent_channels)
    whole = Renamed(ours, {name: name for name in ours}, more={"shift": shift, "scale": scale})
    layout = {"prefix": prefix, "original": original, "dtypes": dtypes_of(tensors)}
    return Found(config, whole, str(path), layout, size=multiple((256, 256), config.factor))


def _known(channels: int, prefix: str) -> dict[str, Any]:
    if channels == 16:
        flux = prefix == ""
        return {"scaling_factor": 0.3611 if flux else 1.5305, "shift_factor": 0.1159 if flux else 0.0609}
    return {"scaling_factor": 0.18215}


def write_file(path: Path, network: Any, layout: Mapping[str, Any]) -> None:
    """Writes one file: under the names and prefix that were loaded, the original authors' otherwise."""
    refuse(network.config)
    tensors = _plain(network)
    if layout.get("original", True):
        tensors = to_ldm(tensors, len(network.config.channels))
    prefix = layout.get("prefix", "")
    named = {prefix + name: value for name, value in tensors.items()}
    write_tensors(path, as_stored(named, layout.get("dtypes")), {"format": "pt"})


def _plain(network: Any) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if name not in BUFFERS}


def multiple(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """The size, brought down to multiples of the factor."""
    return max(factor, size[0] // factor * factor), max(factor, size[1] // factor * factor)
