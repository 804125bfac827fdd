"""The public layout of Stable Diffusion's network: `unet/` folders with a UNet2DConditionModel.

Parameters have the same names here as there. A field that a config lacks has the default of the public class; what
`attention_head_dim` says there is how many heads there are. Some files of Stable Diffusion 1 were saved again with the 1 x 1
convolutions around transformers as matrices: they are read by a view, and written as they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ..errors import InputError, first_mistake
from ..networks.text_unet import TextUNetConfig
from .folders import PublicFolder, full_config, write_component
from .stored import Stored, as_stored, dtypes_of, shapes_of

CLASS = "UNet2DConditionModel"
DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 4, "out_channels": 4, "center_input_sample": False, "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "only_cross_attention": False, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "dropout": 0.0, "act_fn": "silu", "norm_num_groups": 32,
    "norm_eps": 1e-5, "cross_attention_dim": 1280, "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "attention_head_dim": 8, "num_attention_heads": None, "dual_cross_attention": False, "use_linear_projection": False,
    "class_embed_type": None, "addition_embed_type": None, "addition_time_embed_dim": None, "num_class_embeds": None,
    "upcast_attention": False, "resnet_time_scale_shift": "default", "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0, "time_embedding_type": "positional", "time_embedding_dim": None,
    "time_embedding_act_fn": None, "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3,
    "conv_out_kernel": 3, "projection_class_embeddings_input_dim": None, "attention_type": "default",
    "class_embeddings_concat": False, "mid_block_only_cross_attention": None, "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {  # of which some values are Stable Diffusion; the public class knows others
    "center_input_sample": (False,), "mid_block_type": ("UNetMidBlock2DCrossAttn", None), "only_cross_attention": (False,),
    "mid_block_scale_factor": (1,), "act_fn": ("silu", "swish"), "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "num_attention_heads": (None,),
    "dual_cross_attention": (False,), "class_embed_type": (None,), "addition_embed_type": (None, "text_time"),
    "resnet_time_scale_shift": ("default",), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",), "time_embedding_act_fn": (None,), "timestep_post_act": (None,),
    "conv_in_kernel": (3,), "conv_out_kernel": (3,), "attention_type": ("default",), "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False), "cross_attention_norm": (None,),
}  # fmt: skip
DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_PROJECTION = re.compile(r".+\.attentions\.\d+\.proj_(in|out)\.weight")


@dataclass(frozen=True)
class Found(Stored[TextUNetConfig]):
    """What a public folder or file holds."""

    size: tuple[int, int] | None = None  # (height, width) of what the network works on, where the folder says it


class Projected(Mapping[str, Tensor]):
    """A file's tensors, where projections stored as matrices are seen as 1 x 1 convolutions, or the other way; views."""

    def __init__(self, tensors: Mapping[str, Tensor], linear: bool) -> None:
        self._tensors, held = tensors, shapes_of(tensors)
        wanted = 2 if linear else 4
        self.other = {name for name in held if _PROJECTION.fullmatch(name) and len(held[name]) != wanted}
        self.shapes = {
            name: shape if name not in self.other else shape[:2] if linear else (*shape, 1, 1)
            for name, shape in held.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        value = self._tensors[name]
        return value.view(self.shapes[name]) if name in self.other else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


# --------------------------------------------------------------------------------------------------------------- reading


def read_component(folder: PublicFolder, component: str = "unet") -> Found:
    """The network in a pipeline's folder."""
    place = folder.place(component)
    public, tensors = folder.config(component), folder.tensors(component)
    config = network_config(public, str(place / "config.json"))
    ours = Projected(tensors, config.linear_projection)
    side = public.get("sample_size")
    size = None if side is None else (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    layout = {"config": public, "dtypes": dtypes_of(tensors), "projections": sorted(ours.other)}
    return Found(config, ours, str(place), layout, size)


def network_config(public: Mapping[str, Any], where: str) -> TextUNetConfig:
    """Our config of a public one; InputError for what that class knows and this network does not do."""
    full = full_config(public, where, CLASS, DEFAULTS, ONLY)
    return config_of(full, where, attention_of(full, where))


def config_of(full: Mapping[str, Any], where: str, attention: tuple[bool, ...]) -> TextUNetConfig:
    """Our config of a public one's fields, which a ControlNet's config has too."""
    channels, levels = list(full["block_out_channels"]), len(full["block_out_channels"])
    if full["time_embedding_dim"] not in (None, 4 * channels[0]):
        raise InputError(
            f"{where}: time_embedding_dim={full['time_embedding_dim']} cannot be loaded; {4 * channels[0]} can"
        )
    if not isinstance(full["cross_attention_dim"], int) or not isinstance(full["layers_per_block"], int):
        raise InputError(f"{where}: cross_attention_dim and layers_per_block must be one number each to be loaded")
    added = full["projection_class_embeddings_input_dim"] if full["addition_embed_type"] == "text_time" else 0
    if full["addition_embed_type"] == "text_time" and not (added and full["addition_time_embed_dim"]):
        raise InputError(f"{where}: addition_embed_type='text_time' needs projection_class_embeddings_input_dim and "
                         f"addition_time_embed_dim")  # fmt: skip
    try:
        return TextUNetConfig(
            channels=tuple(channels), attention=attention, depth=_each(full["transformer_layers_per_block"], levels),
            heads=_each(full["attention_head_dim"], levels), middle=full.get("mid_block_type") is not None,
            blocks=full["layers_per_block"], in_channels=full["in_channels"],
            out_channels=full.get("out_channels", DEFAULTS["out_channels"]), text_width=full["cross_attention_dim"],
            linear_projection=full["use_linear_projection"], added_width=added,
            size_width=full["addition_time_embed_dim"] or TextUNetConfig().size_width,
            classes=full["num_class_embeds"] or 0, groups=full["norm_num_groups"], eps=full["norm_eps"],
            dropout=full.get("dropout", 0.0), downsample_padding=full["downsample_padding"],
            cosine_first=full["flip_sin_to_cos"], frequency_shift=full["freq_shift"],
            guidance_width=full.get("time_cond_proj_dim") or 0,
        )  # fmt: skip
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None
    except TypeError:
        raise InputError(
            f"{where}: attention_head_dim and transformer_layers_per_block must be numbers to be loaded"
        ) from None


def _each(value: int | Sequence[int], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def attention_of(full: Mapping[str, Any], where: str) -> tuple[bool, ...]:
    """Which levels have transformers, by the block types; the way up must mirror the way down."""
    down, up = list(full["down_block_types"]), list(full["up_block_types"])
    found = down_attention(down, where)
    for kind in up:
        if kind not in UP:
            raise InputError(f"{where}: block type {kind!r} cannot be loaded; {', '.join(UP)} can")
    if tuple(UP[kind] for kind in reversed(up)) != found:
        raise InputError(f"{where}: transformers on the way up {up} do not mirror those on the way down {down}")
    return found


def down_attention(kinds: Sequence[str], where: str) -> tuple[bool, ...]:
    for kind in kinds:
        if kind not in DOWN:
            raise InputError(f"{where}: block type {kind!r} cannot be loaded; {', '.join(DOWN)} can")
    return tuple(DOWN[kind] for kind in kinds)


# --------------------------------------------------------------------------------------------------------------- writing


def public_config(config: TextUNetConfig, size: tuple[int, int]) -> dict[str, Any]:
    """The public config of ours at (height, width) of what it works on; InputError in one sentence where there is none."""
    for key, only in (("time_scale", 1.0), ("span", False)):
        if getattr(config, key) != only:
            raise InputError(
                f"network.{key}={getattr(config, key)}: {CLASS} has no field for it; only {only} can be exported"
            )
    told = config.added_width > 0
    return {
        "_class_name": CLASS, **DEFAULTS, **public_fields(config), "out_channels": config.out_channels,
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "mid_block_type": DEFAULTS["mid_block_type"] if config.middle else None,
        "up_block_types": [f"{'CrossAttn' if a else ''}UpBlock2D" for a in reversed(config.attention)],
        "dropout": config.dropout, "time_cond_proj_dim": config.guidance_width or None,
        "addition_embed_type": "text_time" if told else None,
    }  # fmt: skip


def public_fields(config: TextUNetConfig) -> dict[str, Any]:
    """The fields that a ControlNet's public config shares."""
    told = config.added_width > 0
    one = lambda values: values[0] if len(set(values)) == 1 else list(values)  # noqa: E731
    return {
        "in_channels": config.in_channels, "block_out_channels": list(config.channels),
        "down_block_types": [f"{'CrossAttn' if a else ''}DownBlock2D" for a in config.attention],
        "layers_per_block": config.blocks, "cross_attention_dim": config.text_width,
        "transformer_layers_per_block": one(config.depth), "attention_head_dim": one(config.heads),
        "use_linear_projection": config.linear_projection, "norm_num_groups": config.groups, "norm_eps": config.eps,
        "num_class_embeds": config.classes or None, "downsample_padding": config.downsample_padding,
        "flip_sin_to_cos": config.cosine_first, "freq_shift": int(config.frequency_shift),
        "addition_time_embed_dim": config.size_width if told else None,
        "projection_class_embeddings_input_dim": config.added_width or None,
    }  # fmt: skip


def write_folder(place: Any, network: Any, size: tuple[int, int], layout: Mapping[str, Any]) -> None:
    """Writes the network's folder: as it was loaded, if it was."""
    config = layout.get("config") or public_config(network.config, size)
    write_component(place, config, public_tensors(network, layout))


def public_tensors(network: Any, layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's tensors as they were stored."""
    tensors = dict(network.state_dict())
    for name in layout.get("projections") or ():
        value = tensors[name]
        tensors[name] = value[:, :, None, None] if value.dim() == 2 else value.flatten(1)
    return as_stored(tensors, layout.get("dtypes"))
