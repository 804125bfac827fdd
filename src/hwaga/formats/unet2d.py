"""The public layout of DDPM: folders such as google/ddpm-cifar10-32 (a UNet2DModel and a scheduler), flat or with sub-folders.
The scheduler is read by schedulers.py.

Parameters have the same names here as there; files saved before 2023 spell those of attention otherwise. A field that a
config lacks has the default of the public class that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import InputError, first_mistake
from ..networks.unet import UNetConfig
from .folders import full_config
from .keys import rename, renamed

__all__ = [
    "OLD_ATTENTION", "network_config", "public_network_config", "rename", "renamed",
]  # fmt: skip

OLD_ATTENTION = tuple(
    (f"{{path}}.attentions.{{i}}.{old}.{kind}", f"{{path}}.attentions.{{i}}.{new}.{kind}")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    for kind in ("weight", "bias")
)

UNET_DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
    "num_train_timesteps": None,
}  # fmt: skip

ONLY = {  # fields of which one value is the method of the papers here; the public class knows others
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,), "downsample_type": ("conv",), "upsample_type": ("conv",), "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"), "class_embed_type": (None,),
}  # fmt: skip


def network_config(public: Mapping[str, Any], where: str) -> UNetConfig:
    """Our config of a public UNet2DModel's; InputError for what that class knows and this network does not do."""
    full = full_config(public, where, "UNet2DModel", UNET_DEFAULTS, ONLY)
    down, up, channels = full["down_block_types"], full["up_block_types"], full["block_out_channels"]
    for kind in (*down, *up):
        if kind not in ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"):
            raise InputError(
                f"{where}: block type {kind!r} cannot be loaded; DownBlock2D, AttnDownBlock2D and their Up kind can"
            )
    attention = [kind.startswith("Attn") for kind in down]
    if [kind.startswith("Attn") for kind in reversed(up)] != attention:
        raise InputError(f"{where}: attention on the way up {up} does not mirror that on the way down {down}")
    if full["attn_norm_num_groups"] not in (None, full["norm_num_groups"]):
        raise InputError(f"{where}: attn_norm_num_groups={full['attn_norm_num_groups']} differs from norm_num_groups")
    if full["time_embedding_dim"] not in (None, 4 * channels[0]):
        raise InputError(
            f"{where}: time_embedding_dim={full['time_embedding_dim']} cannot be loaded; {4 * channels[0]} can"
        )
    try:
        return UNetConfig(
            channels=tuple(channels), attention=tuple(attention), blocks=full["layers_per_block"],
            in_channels=full["in_channels"], out_channels=full["out_channels"], middle_attention=full["add_attention"],
            middle_norm=full["resnet_time_scale_shift"] == "default" or full["attn_norm_num_groups"] is not None,
            head_width=full["attention_head_dim"], classes=full["num_class_embeds"] or 0, groups=full["norm_num_groups"],
            eps=full["norm_eps"], dropout=full["dropout"], scale_shift=full["resnet_time_scale_shift"] == "scale_shift",
            downsample_padding=full["downsample_padding"], cosine_first=full["flip_sin_to_cos"],
            frequency_shift=full["freq_shift"],
        )  # fmt: skip
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


def public_network_config(config: UNetConfig, size: tuple[int, int]) -> dict[str, Any]:
    """The public config of ours; InputError in one sentence where there is none."""
    if config.patch != 1:
        raise InputError(
            f"network.patch={config.patch}: the public layout has no field for it; only a network with patch=1 can be exported"
        )
    if config.time_scale != 1.0:
        raise InputError(
            f"network.time_scale={config.time_scale}: the public layout has no field for it; 1 can be exported"
        )
    if config.guidance_width or config.span:
        told = "guidance_width" if config.guidance_width else "span"
        raise InputError(
            f"network.{told}={getattr(config, told)}: UNet2DModel has no field for it; a student cannot be exported"
        )
    kind = {True: "Attn", False: ""}
    return {
        "_class_name": "UNet2DModel", **UNET_DEFAULTS, "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": config.in_channels, "out_channels": config.out_channels, "freq_shift": config.frequency_shift,
        "flip_sin_to_cos": config.cosine_first, "down_block_types": [f"{kind[a]}DownBlock2D" for a in config.attention],
        "up_block_types": [f"{kind[a]}UpBlock2D" for a in reversed(config.attention)],
        "block_out_channels": list(config.channels), "layers_per_block": config.blocks,
        "downsample_padding": config.downsample_padding, "dropout": config.dropout, "attention_head_dim": config.head_width,
        "norm_num_groups": config.groups, "norm_eps": config.eps, "add_attention": config.middle_attention,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "attn_norm_num_groups": config.groups if config.scale_shift and config.middle_norm else None,
        "num_class_embeds": config.classes or None,
    }  # fmt: skip
