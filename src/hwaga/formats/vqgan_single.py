"""VQGAN written as its authors released it: one file of tensors under their names, and the YAML that tells its sizes.

The way back of `vqgan.read_file`: the tokenizer at the root, or below `first_stage_model.` with the transformer beside it. What
was read from such a file is written with the YAML that it came with; of any other model the YAML is made, and what its keys
cannot say is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ..errors import InputError
from ..files import write_tensors
from ..networks.gpt import GPTConfig
from ..networks.vq import VQModelConfig
from .autoencoder import to_ldm
from .stored import as_stored
from .vqgan import COND, FIRST, GROUPS, TRACKING

PREFIX = {"autoencoder": FIRST, "condition": COND, "prior": "transformer."}
MODELS = "taming.models."


def write_file(
    path: Path, networks: Mapping[str, Any], told: Mapping[str, int], size: tuple[int, int], layout: Mapping[str, Any]
) -> str:
    """Writes the tensors and gives the text of the YAML that belongs beside them.

    networks: `autoencoder`, and with a transformer `prior`, and `condition` where it is told a second picture. told: what the
    prior is told beside (classes, coordinates). size: (height, width) in pixels that the model was trained at. layout: as
    `read_file` left it, {} for a model of another origin. InputError for what the original files have no key for.
    """
    whole = "prior" in networks
    said = layout.get("yaml") or settings({n: net.config for n, net in networks.items()}, told, size)
    tensors: dict[str, Tensor] = {}
    for name in PREFIX if whole else ("autoencoder",):
        if name in networks:
            own = {key: value for key, value in networks[name].state_dict().items() if key not in TRACKING}
            named = own if name == "prior" else to_ldm(own, len(networks[name].config.channels))
            tensors |= {(PREFIX[name] if whole else "") + key: value.contiguous() for key, value in named.items()}
    write_tensors(path, as_stored(tensors, layout.get("dtypes")), {"format": "pt"})
    return yaml.safe_dump({"model": said}, sort_keys=False)


def settings(configs: Mapping[str, Any], told: Mapping[str, int], size: tuple[int, int]) -> dict[str, Any]:
    """The section `model` of the YAML, of our configs."""
    tokenizer = _tokenizer("autoencoder", configs["autoencoder"], size)
    if "prior" not in configs:
        return tokenizer
    prior: GPTConfig = configs["prior"]
    params: dict[str, Any] = {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": {
            "vocab_size": prior.vocabulary, "block_size": prior.length, "n_layer": prior.depth, "n_head": prior.heads,
            "n_embd": prior.width, "n_unmasked": prior.unmasked,
        }},
        "first_stage_key": "image", "first_stage_config": tokenizer,
    }  # fmt: skip
    if "condition" in configs:
        cond: Any = _tokenizer("condition", configs["condition"], size)
        params |= {"cond_stage_key": "depth", "cond_stage_config": cond}
    elif "classes" in told:
        cond = {"target": "taming.modules.util.Labelator", "params": {"n_classes": told["classes"]}}
        params |= {"cond_stage_key": "class_label", "cond_stage_config": cond}
    elif "coordinates" in told:
        inner = {"n_embed": told["coordinates"], "down_factor": configs["autoencoder"].factor}
        cond = {"target": "taming.modules.misc.coord.CoordStage", "params": inner}
        params |= {"cond_stage_key": "coord", "cond_stage_config": cond}
    else:
        params |= {"unconditional": True, "sos_token": 0, "cond_stage_config": "__is_unconditional__"}
    return {"target": f"{MODELS}cond_transformer.Net2NetTransformer", "params": params}


def _tokenizer(name: str, config: VQModelConfig, size: tuple[int, int]) -> dict[str, Any]:
    book, first, side = config.quantizer, config.channels[0], max(size)
    for key, value, only in (
        ("patch", config.patch, 1), ("eps", config.eps, 1e-6), ("groups", config.groups, GROUPS),
        ("middle_attention", config.middle_attention, True), ("quantizer.cosine", book.cosine, False),
    ):  # fmt: skip
        if value != only:
            raise InputError(f"{name}.{key}={value}: the original files have no key for it; only {only} can be written")
    if book.kind == "fsq":
        raise InputError(f"{name}.quantizer.kind=fsq: the original files have codebooks (vq, gumbel) alone")
    if any(width % first for width in config.channels):
        raise InputError(f"{name}.channels={config.channels}: the original files ask for multiples of the first")
    attention = config.attention or (False,) * len(config.channels)
    kind = "GumbelVQ" if book.kind == "gumbel" else "VQModel"
    sizes: dict[str, Any] = {
        "double_z": config.double_z, "z_channels": config.latent_channels, "resolution": side,
        "in_channels": config.in_channels, "out_ch": config.in_channels, "ch": first,
        "ch_mult": [width // first for width in config.channels], "num_res_blocks": config.blocks,
        "attn_resolutions": [side // 2**i for i, there in enumerate(attention) if there], "dropout": 0.0,
    }  # fmt: skip
    loss = {"target": "taming.modules.losses.DummyLoss"}
    params = {"embed_dim": book.width, "n_embed": book.codes, "ddconfig": sizes, "lossconfig": loss}
    return {"target": f"{MODELS}vqgan.{kind}", "params": params}
