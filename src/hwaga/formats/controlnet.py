"""The public layouts of ControlNets: ControlNetModel folders, and the original authors' files.

In a folder parameters have the names that they have here. An original file has them below `control_model.`, the way down and the
middle named as in Stable Diffusion's files (`ldm.py`):

    input_hint_block.0, .2, ... .14     the hint network; every second place is a SiLU
    zero_convs.{k}.0                    what is said to each of what the way down keeps
    middle_block_out.0                  what is said to the middle

A file of the first release (`control_sd15_canny.pth`) holds all of Stable Diffusion beside it, a later one the ControlNet alone.
A field that a config lacks has the default of the public class; what `attention_head_dim` says is how many heads there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ..conditioning.controlnet import ControlNetConfig
from ..errors import InputError, first_mistake
from ..files import read_json, write_json, write_tensors
from ..weights.fill import without_memory
from ..weights.mapped import Mapped, Renamed
from . import ldm, text_unet
from .folders import PublicFolder, full_config, write_component
from .stored import Stored, as_stored, dtypes_of, shapes_of

CLASS = "ControlNetModel"
MULTI = "MultiControlNetModel"
CONTROLLED = (
    ("StableDiffusionXL", "StableDiffusionXLControlNet"), ("StableDiffusion", "StableDiffusionControlNet"),
)  # fmt: skip
"""What the names of public pipelines begin with, and what they begin with when a ControlNet is beside them."""
PREFIX = "control_model."
DEFAULTS: dict[str, Any] = {
    "in_channels": 4, "conditioning_channels": 3, "flip_sin_to_cos": True, "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "downsample_padding": 1,
    "mid_block_scale_factor": 1, "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5, "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1, "encoder_hid_dim": None, "encoder_hid_dim_type": None, "attention_head_dim": 8,
    "num_attention_heads": None, "use_linear_projection": False, "class_embed_type": None, "addition_embed_type": None,
    "addition_time_embed_dim": None, "num_class_embeds": None, "upcast_attention": False,
    "resnet_time_scale_shift": "default", "projection_class_embeddings_input_dim": None,
    "controlnet_conditioning_channel_order": "rgb", "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "global_pool_conditions": False, "addition_embed_type_num_heads": 64,
}  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {
    **{name: values for name, values in text_unet.ONLY.items() if name in DEFAULTS},
    "mid_block_type": ("UNetMidBlock2DCrossAttn",), "controlnet_conditioning_channel_order": ("rgb", "bgr"),
}  # fmt: skip


Found = Stored[ControlNetConfig]


# --------------------------------------------------------------------------------------------------------------- folders


def read_component(folder: PublicFolder, component: str = "controlnet") -> Found:
    """The ControlNet of a flat folder, or of a pipeline's folder."""
    place = folder.place(component)
    public, tensors = folder.config(component), folder.tensors(component)
    config = network_config(public, str(place / "config.json"))
    ours = text_unet.Projected(tensors, config.linear_projection)
    layout = {"config": public, "dtypes": dtypes_of(tensors), "projections": sorted(ours.other)}
    return Found(config, ours, str(place), layout)


def network_config(public: Mapping[str, Any], where: str) -> ControlNetConfig:
    """Our config of a public one; InputError for what that class knows and this network does not do."""
    full = full_config(public, where, CLASS, DEFAULTS, ONLY)
    shared = {"time_embedding_dim": None, **full}
    base = text_unet.config_of(shared, where, text_unet.down_attention(full["down_block_types"], where))
    try:
        return ControlNetConfig.of(
            base, in_channels=full["in_channels"], hint_channels=tuple(full["conditioning_embedding_out_channels"]),
            map_channels=full["conditioning_channels"], bgr=full["controlnet_conditioning_channel_order"] == "bgr",
            pooled=full["global_pool_conditions"],
        )  # fmt: skip
    except (ValidationError, TypeError) as error:
        told = (
            first_mistake(error)
            if isinstance(error, ValidationError)
            else "conditioning_embedding_out_channels is no list"
        )
        raise InputError(f"{where}: {told}") from None


def public_config(config: ControlNetConfig) -> dict[str, Any]:
    """The public config of ours; InputError in one sentence where there is none."""
    if config.time_scale != 1.0:
        raise InputError(
            f"controlnet.time_scale={config.time_scale}: {CLASS} has no field for it; only 1 can be exported"
        )
    return {
        "_class_name": CLASS, **DEFAULTS, **text_unet.public_fields(config), "conditioning_channels": config.map_channels,
        "addition_embed_type": "text_time" if config.added_width else None,
        "controlnet_conditioning_channel_order": "bgr" if config.bgr else "rgb",
        "conditioning_embedding_out_channels": list(config.hint_channels), "global_pool_conditions": config.pooled,
    }  # fmt: skip


def write_folder(place: Path, network: Any, layout: Mapping[str, Any]) -> None:
    """Writes a ControlNet's folder: as it was loaded, if it was."""
    config = layout.get("config") or public_config(network.config)
    write_component(place, config, text_unet.public_tensors(network, layout))


def write_index(folder: Path, count: int) -> None:
    """Names the ControlNets in a pipeline's model_index.json, where it does not name them yet."""
    index = read_json(folder / "model_index.json")
    if "controlnet" in index:
        return
    kind = str(index.get("_class_name"))
    for old, new in CONTROLLED:
        if kind.startswith(old):
            index["_class_name"] = new + kind.removeprefix(old)
            break
    index["controlnet"] = ["diffusers", CLASS if count == 1 else MULTI]
    write_json(folder / "model_index.json", index)


# ----------------------------------------------------------------------------------------------------------------- files


def is_alone(tensors: Mapping[str, Any]) -> bool:
    """Whether a file is a ControlNet without the model that it is for, in either spelling."""
    original = f"{PREFIX}time_embed.0.weight" in tensors or "input_hint_block.0.weight" in tensors
    return (original and ldm.FIRST not in tensors) or "controlnet_cond_embedding.conv_in.weight" in tensors


def is_whole(tensors: Mapping[str, Any]) -> bool:
    """Whether a file holds Stable Diffusion and a ControlNet."""
    return f"{PREFIX}time_embed.0.weight" in tensors and ldm.FIRST in tensors


def base_of(tensors: Mapping[str, Tensor]) -> Renamed:
    """Of a whole file what is Stable Diffusion's."""
    found = ldm.Chosen(tensors, {name: name for name in tensors if not name.startswith(PREFIX)})
    found.metadata, found.kinds = getattr(tensors, "metadata", {}), getattr(tensors, "kinds", ())
    return found


def read_file(path: Path, tensors: Mapping[str, Tensor]) -> Found:
    """The ControlNet in a file that `is_alone` or `is_whole`; every tensor of it is used, or named in an InputError."""
    shapes = shapes_of(tensors)
    if "controlnet_cond_embedding.conv_in.weight" in shapes:
        return _converted(path, tensors, shapes)
    prefix = PREFIX if f"{PREFIX}time_embed.0.weight" in shapes else ""
    inner = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    told = ldm.own_header(tensors, path)
    config = _told(told, path) if told and "controlnet" in told else _config_of(inner, path)
    with without_memory():
        needed = {name: tuple(value.shape) for name, value in config.build().state_dict().items()}
    names = original_names(needed, config)
    if missing := sorted(set(names.values()) - inner.keys()):
        raise InputError(f"{path} lacks the tensor {prefix}{missing[0]}, which its other tensors ask for")
    if foreign := sorted(inner.keys() - set(names.values())):
        raise InputError(f"{path} holds the tensor {prefix}{foreign[0]}, for which its ControlNet has no place")
    flat = [ours for ours, old in names.items() if len(inner[old]) == 4 and len(needed[ours]) == 2]
    ours = Renamed(tensors, {ours: prefix + old for ours, old in names.items()}, flat)
    kinds = dtypes_of(tensors)
    return Found(config, ours, str(path), {"prefix": prefix, "dtypes": {"": kinds[""]} if kinds else {}})


def _converted(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Found:
    """A file with a folder's names: what other programs call a converted ControlNet."""
    raise_for = sorted(name for name in shapes if name.startswith(("up_blocks.", "conv_out.")))
    if raise_for:
        raise InputError(f"{path} holds the tensor {raise_for[0]}, for which a ControlNet has no place")
    widths: list[int] = []
    attention: list[bool] = []
    depth: list[int] = []
    blocks: list[int] = []
    while f"down_blocks.{len(widths)}.resnets.0.conv1.weight" in shapes:
        lead = f"down_blocks.{len(widths)}"
        widths.append(shapes[f"{lead}.resnets.0.conv1.weight"][0])
        attention.append(f"{lead}.attentions.0.norm.weight" in shapes)
        depth.append(max(1, _count(shapes, f"{lead}.attentions.0.transformer_blocks.")))
        blocks.append(_count(shapes, f"{lead}.resnets."))
    first = next((name for name in shapes if name.endswith("attn2.to_k.weight")), None)
    if not widths or first is None or len(set(blocks)) != 1:
        raise InputError(f"{path} is no whole ControlNet: its levels cannot be told from its tensors")
    if not attention[-1]:
        depth[-1] = max(1, _count(shapes, "mid_block.attentions.0.transformer_blocks."))
    linear = len(shapes["mid_block.attentions.0.proj_in.weight"]) == 2
    added = shapes["add_embedding.linear_1.weight"][1] if "add_embedding.linear_1.weight" in shapes else 0
    heads = tuple(8 if not linear else max(1, width // 64) for width in widths)
    hints = [shapes["controlnet_cond_embedding.conv_in.weight"][0]]
    count = _count(shapes, "controlnet_cond_embedding.blocks.")
    hints += [shapes[f"controlnet_cond_embedding.blocks.{k}.weight"][0] for k in range(1, count, 2)]
    config = _checked(path, dict(
        channels=widths, attention=attention, depth=depth, heads=heads, blocks=blocks[0], linear_projection=linear,
        in_channels=shapes["conv_in.weight"][1], text_width=shapes[first][1], added_width=added, hint_channels=hints,
        map_channels=shapes["controlnet_cond_embedding.conv_in.weight"][1], groups=math.gcd(32, *widths),
    ))  # fmt: skip
    told = ldm.own_header(tensors, path)
    config = _told(told, path) if told and "controlnet" in told else config
    kinds = dtypes_of(tensors)
    return Found(config, tensors, str(path), {"prefix": PREFIX, "dtypes": {"": kinds[""]} if kinds else {}})


def _count(shapes: Mapping[str, Any], lead: str) -> int:
    """How many places a list of modules has."""
    return len({name.removeprefix(lead).split(".")[0] for name in shapes if name.startswith(lead)})


def _config_of(inner: Mapping[str, tuple[int, ...]], path: Path) -> ControlNetConfig:
    """The config that shapes under original names, without prefix, are of."""
    linear = len(inner.get("middle_block.1.proj_in.weight", (0,) * 4)) == 2
    family = "xl" if "label_emb.0.0.weight" in inner else "2" if linear else "1"
    base = ldm.unet_config({**inner, "out.2.weight": (4,)}, family, ldm.yaml_beside(path) or ldm.Said(), str(path))
    hints, k = [], 0
    try:
        hints.append(inner["input_hint_block.0.weight"][0])
        while (
            f"input_hint_block.{4 * (k + 1)}.weight" in inner and f"input_hint_block.{4 * (k + 1) + 2}.weight" in inner
        ):
            k += 1
            hints.append(inner[f"input_hint_block.{4 * k}.weight"][0])
        told = {
            "in_channels": inner["input_blocks.0.0.weight"][1],
            "map_channels": inner["input_hint_block.0.weight"][1],
        }
    except KeyError as error:
        raise InputError(f"{path} has no whole ControlNet: it lacks {error.args[0]}") from None
    return _checked(path, {**ControlNetConfig.of(base).model_dump(), "hint_channels": hints, **told})


def _told(header: Mapping[str, Any], path: Path) -> ControlNetConfig:
    return _checked(path, header["controlnet"])


def _checked(path: Path, values: Any) -> ControlNetConfig:
    try:
        return ControlNetConfig(**values)
    except (ValidationError, TypeError) as error:
        told = first_mistake(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{path}: {told}") from None


def original_names(names: Any, config: ControlNetConfig) -> dict[str, str]:
    """{our name: the original's, without `control_model.`}."""
    found: dict[str, str] = {}
    shared = []
    for name in names:
        parts = name.split(".")
        if parts[0] == "controlnet_cond_embedding":
            last = 2 * (len(config.hint_channels) - 1) + 1
            place = {"conv_in": 0, "conv_out": last}.get(parts[1])
            place = int(parts[2]) + 1 if place is None else place
            found[name] = f"input_hint_block.{2 * place}.{parts[-1]}"
        elif parts[0] == "controlnet_down_blocks":
            found[name] = f"zero_convs.{parts[1]}.0.{parts[-1]}"
        elif parts[0] == "controlnet_mid_block":
            found[name] = f"middle_block_out.0.{parts[-1]}"
        else:
            shared.append(name)
    return found | ldm.unet_names(shared, config)


def file_tensors(network: Any, layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a ControlNet under the original names, below the prefix and in the dtype that they were loaded with."""
    own = network.state_dict()
    prefix = layout.get("prefix", PREFIX)
    found = {prefix + old: own[ours] for ours, old in original_names(own, network.config).items()}
    return as_stored(found, layout.get("dtypes"))


def write_file(path: Path, network: Any, layout: Mapping[str, Any]) -> None:
    """Writes a ControlNet alone as one safetensors file with the original names."""
    told = {"controlnet": network.config.model_dump(mode="json")}
    write_tensors(path, file_tensors(network, layout), {"format": "pt", ldm.HEADER: json.dumps(told, sort_keys=True)})


def add_to_file(path: Path, network: Any, layout: Mapping[str, Any]) -> None:
    """Puts a ControlNet beside the Stable Diffusion that a file holds: the first release's form."""
    base = Mapped(path)
    write_tensors(path, {**base, **file_tensors(network, layout)}, base.metadata)
