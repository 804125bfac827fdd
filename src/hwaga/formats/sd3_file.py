"""Single files of Stable Diffusion 3 and 3.5: the transformer, and what else a file holds, under the original authors' names.

    model.diffusion_model.joint_blocks.0. ...                       the transformer        `rows`
    first_stage_model.encoder.down.0. ...                           the autoencoder        autoencoder.py
    text_encoders.clip_l.transformer. ..., text_encoders.clip_g.    both CLIPs             names as in folders
    text_encoders.t5xxl.transformer. ...                            T5                     names as in folders

Only the transformer is in every file; `components=` gives what a file lacks, tokenizers always. Queries, keys and values are one
matrix there, and a scale stands after its shift where the folder has it before: at the end, and for the text in the last block.

CLIP-L's pooled text has no projection in such files and is taken as it is. How many numbers a head has is seen in the norms of 3.5,
else it is 64 as published, unless the header says otherwise, where hwaga wrote the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ..conditioning.text_encoders import ENCODERS, TextEncoderConfig
from ..errors import InputError, first_mistake
from ..files import write_tensors
from ..networks.clip_text import ClipTextConfig
from ..networks.mmdit import MMDiTConfig
from ..weights.fill import without_memory
from ..weights.mapped import Renamed
from . import autoencoder, ldm, lora, schedulers, sd3, t5, text_encoders
from .keys import Assembled, Moved, places, taken_apart
from .stored import as_stored, dtypes_of, shapes_of

LEAD = "model.diffusion_model."
PREFIXES = {
    "text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}  # fmt: skip
BASE = 64  # places of the published tables' numbers: those of a picture of 1024 x 1024
LATENTS = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
SKIPPED = re.compile(
    r".*position_ids|text_encoders\..*(logit_scale|spiece_model|scaled_fp8|transformer\.encoder\.embed_tokens\.weight)"
)
"""What a file may hold beside the networks, knowingly left out."""
MARK = "joint_blocks.0.context_block.adaLN_modulation.1.bias"
FIELDS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def spelled(network: Any) -> lora.Spelled:
    """The transformer's weights by the original names, as files of LoRA have them."""
    own = [name for name, _ in lora.plain(network).named_parameters()]
    return lora.by_table("network", network, places(own, rows(network.config.depth)))


def rows(depth: int) -> tuple[Moved, ...]:
    """The key table of a transformer of so many blocks."""
    found = [
        Moved("pos_embed.pos_embed", ("pos_embed",)),
        Moved("pos_embed.proj.{path}", ("x_embedder.proj.{path}",)),
        Moved("context_embedder.{path}", ("context_embedder.{path}",)),
        Moved("norm_out.linear.{path}", ("final_layer.adaLN_modulation.1.{path}",), "swap"),
        Moved("proj_out.{path}", ("final_layer.linear.{path}",)),
    ]
    for ours, theirs in (("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")):
        for k, old in ((1, 0), (2, 2)):
            found.append(Moved(f"time_text_embed.{ours}.linear_{k}.{{path}}", (f"{theirs}.mlp.{old}.{{path}}",)))
    last = f"transformer_blocks.{depth - 1}.norm1_context.linear.{{path}}"
    found.append(Moved(last, (f"joint_blocks.{depth - 1}.context_block.adaLN_modulation.1.{{path}}",), "swap"))
    block, picture, text = "transformer_blocks.{i}", "joint_blocks.{i}.x_block", "joint_blocks.{i}.context_block"
    for ours, theirs in (
        ("norm1.linear", f"{picture}.adaLN_modulation.1"), ("norm1_context.linear", f"{text}.adaLN_modulation.1"),
        ("attn.to_out.0", f"{picture}.attn.proj"), ("attn.to_add_out", f"{text}.attn.proj"),
        ("attn2.to_out.0", f"{picture}.attn2.proj"), ("attn.norm_added_q", f"{text}.attn.ln_q"),
        ("attn.norm_added_k", f"{text}.attn.ln_k"), ("attn.norm_q", f"{picture}.attn.ln_q"),
        ("attn.norm_k", f"{picture}.attn.ln_k"), ("attn2.norm_q", f"{picture}.attn2.ln_q"),
        ("attn2.norm_k", f"{picture}.attn2.ln_k"), ("ff.net.0.proj", f"{picture}.mlp.fc1"), ("ff.net.2", f"{picture}.mlp.fc2"),
        ("ff_context.net.0.proj", f"{text}.mlp.fc1"), ("ff_context.net.2", f"{text}.mlp.fc2"),
    ):  # fmt: skip
        found.append(Moved(f"{block}.{ours}.{{path}}", (f"{theirs}.{{path}}",)))
    for k, one in enumerate("qkv"):
        for ours, theirs in ((f"attn.to_{one}", f"{picture}.attn.qkv"), (f"attn.add_{one}_proj", f"{text}.attn.qkv"),
                             (f"attn2.to_{one}", f"{picture}.attn2.qkv")):  # fmt: skip
            found.append(Moved(f"{block}.{ours}.{{path}}", (f"{theirs}.{{path}}",), "rows", (k, 3)))
    return tuple(found)


def is_sd3(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of a Stable Diffusion 3 or 3.5, alone or with other networks beside it."""
    return MARK in tensors or LEAD + MARK in tensors


# --------------------------------------------------------------------------------------------------------------- reading


def config_of(shapes: Mapping[str, tuple[int, ...]], where: str) -> MMDiTConfig:
    """The config that a transformer's shapes, under original names without prefix, are of."""
    try:
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("joint_blocks."))
        norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
        return MMDiTConfig(
            patch=patch, width=width, depth=depth, heads=max(1, width // (64 if norm is None else norm[0])),
            in_channels=channels, out_channels=shapes["final_layer.linear.weight"][0] // patch**2,
            text_width=shapes["context_embedder.weight"][1], pooled_width=shapes["y_embedder.mlp.0.weight"][1],
            table=(table := math.isqrt(shapes["pos_embed"][1])), base=min(BASE, table), qk_norm=norm is not None,
            dual=tuple(i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes),
        )  # fmt: skip
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, ValidationError):
            raise InputError(f"{where}: {first_mistake(error)}") from None
        raise InputError(f"{where} has no whole Stable Diffusion 3: it lacks {error.args[0]}") from None


def clip_config(shapes: Mapping[str, tuple[int, ...]], name: str, where: str) -> ClipTextConfig:
    """The config that a CLIP's shapes, under the folder's names, are of: 64 numbers a head; the first one's activation is the
    quick one."""
    try:
        words, layer = shapes["text_model.embeddings.token_embedding.weight"], "text_model.encoder.layers."
        return ClipTextConfig(
            width=words[1], vocabulary=words[0], heads=max(1, words[1] // 64),
            layers=1 + max(int(n.removeprefix(layer).split(".")[0]) for n in shapes if n.startswith(layer)),
            hidden=shapes[f"{layer}0.mlp.fc1.weight"][0], activation="quick_gelu" if name == ENCODERS[0] else "gelu",
            positions=shapes["text_model.embeddings.position_embedding.weight"][0],
            projection=shapes["text_projection.weight"][0] if "text_projection.weight" in shapes else 0,
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise InputError(f"{where}: {first_mistake(error)}") from None
        raise InputError(f"{where} has no whole {name}: it lacks {error.args[0]}") from None


def read_file(path: Path, tensors: Mapping[str, Tensor]) -> sd3.Parts:
    """A file that `is_sd3` knows. Every tensor is of one of its networks, or knowingly left out, or named in an InputError."""
    where, shapes, header = str(path), shapes_of(tensors), ldm.own_header(tensors, path) or {}
    own: dict[str, Any] = header.get("networks") or {}
    lead = LEAD if LEAD + MARK in shapes else ""
    beside = (ldm.CODEC, *PREFIXES.values())
    below = lambda prefix: {  # noqa: E731
        n.removeprefix(prefix): s for n, s in shapes.items()
        if n.startswith(prefix) and not SKIPPED.fullmatch(n) and (prefix or not n.startswith(beside))
    }  # fmt: skip
    inner = below(lead)
    used = {lead + name for name in inner}
    config = ldm.from_header(MMDiTConfig, own.get("network"), where) or config_of(inner, where)
    with without_memory():
        needed = list(config.build().state_dict())
    spots = places(needed, rows(config.depth))
    ours = Assembled(
        Renamed(tensors, {n: lead + n for n in inner}), spots, where, [n for n in inner if SKIPPED.fullmatch(n)]
    )
    side = header.get("size") or (config.base * config.patch,) * 2
    kinds = dtypes_of(Renamed(tensors, {n: lead + n for n in inner}))
    layout = {"file": kinds, "dtypes": {"": kinds[""]}} if kinds else {}
    network = sd3.Found(config, ours, where, layout, size=(int(side[0]), int(side[1])))
    codec, encoders = None, {}
    if kept := list(below(ldm.CODEC)):
        told = own.get("autoencoder")
        codec = ldm.codec_of(tensors, kept, told, header.get("latents") or LATENTS, where)
        used |= {ldm.CODEC + name for name in kept}
    for name, prefix in PREFIXES.items():
        if inner := below(prefix):
            encoders[name] = _encoder(tensors, inner, name, own.get(name), where)
            used |= {prefix + n for n in inner}
    if foreign := sorted(name for name in shapes if name not in used and not SKIPPED.fullmatch(name)):
        others = f" and {len(foreign) - 1} more tensors" if len(foreign) > 1 else ""
        raise InputError(f"{path} holds the tensor {foreign[0]}{others}, for which a Stable Diffusion 3 has no place")
    sd3.check_together(where, network, codec, encoders)
    more = {"lead": lead} if lead != LEAD else {}
    return sd3.Parts(network, codec, encoders, header.get("scheduler") or dict(sd3.SCHEDULER), more=more)


def _encoder(
    tensors: Mapping[str, Tensor], inner: Mapping[str, tuple[int, ...]], name: str, told: Any, where: str
) -> text_encoders.Found:  # fmt: skip
    """A text encoder of a file."""
    config, use = ldm.from_header(TextEncoderConfig, told, where), dict(sd3.USE.encoders[name])
    if config is None and name == ENCODERS[2]:
        config = TextEncoderConfig(model=t5.config_of(inner, where), **use)
    elif config is None:
        model = clip_config(inner, name, where)
        pooled = {"pooled": "projected" if model.projection else "end"}
        config = TextEncoderConfig(model=model, length=model.positions, **{**use, **pooled})
    ours = Renamed(tensors, {n: PREFIXES[name] + n for n in inner})
    return text_encoders.Found(config, ours, where, {"dtypes": dtypes_of(ours)})


# --------------------------------------------------------------------------------------------------------------- writing


def write_file(path: Path, system: Any) -> None:
    """Writes one safetensors file under the original names, in the dtypes that were loaded, with all networks that there are;
    what tensors do not say goes into its header."""
    networks, layout, config = system.networks, system.about.layout, system.config
    sd3.public_config(config.network)  # InputError where there is no such transformer
    tensors = public_tensors(networks, layout)
    names = [name for name in ("network", "autoencoder", *ENCODERS) if name in networks]
    header: dict[str, Any] = {
        "family": "3", "size": list(system.shape(system.about.size)[1:]),
        "networks": {name: networks[name].config.model_dump(mode="json") for name in names},
        "scheduler": layout.get("scheduler") or schedulers.written(config.process, config.sampling),
    }  # fmt: skip
    if "autoencoder" in networks:
        public = autoencoder.public_config(networks["autoencoder"], system.about.size)
        header["latents"] = {name: public[name] for name in FIELDS if public[name] is not None}
    write_tensors(path, tensors, {"format": "pt", ldm.HEADER: json.dumps(header, sort_keys=True)})


def public_tensors(networks: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file of these networks, under the original names and in the dtypes that they were stored in."""
    own, how = networks["network"].state_dict(), layout.get("transformer") or {}
    public = taken_apart(own, places(own, rows(networks["network"].config.depth)))
    most = (how.get("dtypes") or {}).get("")
    kinds = how.get("file") or ({"": most} if most else None)
    found = {layout.get("lead", LEAD) + name: value for name, value in as_stored(public, kinds).items()}
    if "autoencoder" in networks:
        found |= ldm.codec_tensors(networks["autoencoder"], layout.get("vae"))
    for name, prefix in PREFIXES.items():
        if name in networks:
            tensors = as_stored(networks[name].state_dict(), (layout.get(name) or {}).get("dtypes"))
            found |= {prefix + inner: value for inner, value in tensors.items()}
    return found
