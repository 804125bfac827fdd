"""VQGAN's public layouts: diffusers' VQModel folders, and the checkpoint files of the original authors with their YAML.

    folder    config.json (class VQModel) and weights, flat or in a sub-folder (`vqvae/`, `vqgan/`); saved again as it was
    file      tokenizer (VQModel, GumbelVQ): `encoder.down.0...`, `quantize.embedding.weight` or `quantize.embed.weight`
              whole (Net2NetTransformer): the same below `first_stage_model.`, and `transformer.tok_emb.weight`, ...

A checkpoint's tensors do not say at which levels there is attention, how many heads there are, what the prior is told: that
is in the YAML, without which a file is refused. It is looked for as NAME.yaml beside the file, then in `configs/` beside the
file's folder, as the releases have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import InputError, first_mistake
from ..files import write_json
from ..networks.gpt import GPTConfig
from ..networks.vq import QuantizerConfig, VQModelConfig
from ..weights.fill import fill
from ..weights.mapped import Renamed
from .autoencoder import attention_of, block_types, from_ldm, multiple
from .folders import PublicFolder, full_config, lone_component, write_component
from .keys import renamed
from .stored import as_stored, dtypes_of, shapes_of
from .unet2d import OLD_ATTENTION

CLASS = "VQModel"
DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64], "layers_per_block": 1, "act_fn": "silu",
    "latent_channels": 3, "sample_size": 32, "num_vq_embeddings": 256, "norm_num_groups": 32, "vq_embed_dim": None,
    "scaling_factor": 0.18215, "norm_type": "group", "mid_block_add_attention": True, "lookup_from_codebook": False,
    "force_upcast": False,
}  # fmt: skip
ONLY = {"act_fn": ("silu", "swish"), "norm_type": ("group",)}
TRACKING = ("quantize.use", "quantize.sums")  # what training keeps of a codebook beside it
FIRST, COND = "first_stage_model.", "cond_stage_model."
IMAGENET = 1000  # labels where the YAML does not say how many
GROUPS = 32  # of every norm in the original files


@dataclass(frozen=True)
class Found:
    """What a public folder or file holds: configs, and networks under our names."""

    configs: dict[str, Any]
    tensors: dict[str, Mapping[str, Tensor]]
    where: str
    size: tuple[int, int]
    told: dict[str, int] = field(default_factory=dict)  # what the prior is told: classes, coordinates; how many
    layout: dict[str, Any] = field(default_factory=dict)

    def networks(self, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
        return {name: fill(c, self.tensors[name], self.where, dtype, device) for name, c in self.configs.items()}


# --------------------------------------------------------------------------------------------------------------- folders


def read_folder(path: Path) -> Found:
    """A VQModel's folder, flat or with the network in a sub-folder. Its look is kept, so that it is saved again the same."""
    component = lone_component(path)
    folder = PublicFolder(path, component or "vqvae")
    name = folder.network
    public, tensors = folder.config(name), folder.tensors(name)
    where = str(folder.place(name))
    config = network_config(public, f"{where}/config.json")
    names = renamed(tensors, OLD_ATTENTION)
    ours = Renamed(tensors, {new: old for old, new in names.items()})
    layout = {
        "config": public, "component": None if folder.flat else name, "index": folder.index, "dtypes": dtypes_of(tensors),
        "old_attention": any(old != new for old, new in names.items()),
    }  # fmt: skip
    side = public.get("sample_size") or DEFAULTS["sample_size"]
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    return Found({"autoencoder": config}, {"autoencoder": ours}, where, multiple(size, config.factor), layout=layout)


def network_config(public: Mapping[str, Any], where: str) -> VQModelConfig:
    """Our config of a public one; InputError for what that class knows and this network does not do."""
    full = full_config(public, where, CLASS, DEFAULTS, ONLY)
    if full["in_channels"] != full["out_channels"]:
        raise InputError(
            f"{where}: in_channels={full['in_channels']} and out_channels={full['out_channels']} differ; alike can be loaded"
        )
    book = {"codes": full["num_vq_embeddings"], "width": full["vq_embed_dim"] or full["latent_channels"]}
    return _checked(
        {
            "channels": full["block_out_channels"], "blocks": full["layers_per_block"], "attention": attention_of(full, where),
            "middle_attention": full["mid_block_add_attention"], "in_channels": full["in_channels"],
            "latent_channels": full["latent_channels"], "groups": full["norm_num_groups"], "quantizer": book,
        },
        where,
    )  # fmt: skip


def public_config(config: VQModelConfig, size: tuple[int, int]) -> dict[str, Any]:
    """The public config of ours; InputError in one sentence where there is none."""
    for key, only in (("patch", 1), ("double_z", False), ("eps", 1e-6)):
        if getattr(config, key) != only:
            raise InputError(
                f"autoencoder.{key}={getattr(config, key)}: the public layout has no field for it; only {only} can be exported"
            )
    book = config.quantizer
    if book.kind != "vq" or book.cosine:
        kind = "cosine=true" if book.cosine else f"kind={book.kind}"
        raise InputError(f"autoencoder.quantizer.{kind}: the public layout has plain codebooks alone (kind=vq)")
    return {
        "_class_name": CLASS, **DEFAULTS, **block_types(config), "in_channels": config.in_channels,
        "out_channels": config.in_channels, "block_out_channels": list(config.channels), "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels, "norm_num_groups": config.groups, "num_vq_embeddings": book.codes,
        "vq_embed_dim": book.width, "mid_block_add_attention": config.middle_attention,
        "sample_size": size[0] if size[0] == size[1] else list(size),
    }  # fmt: skip


def write_folder(folder: Path, network: Any, size: tuple[int, int], layout: Mapping[str, Any]) -> None:
    """Writes a public folder: as it was loaded, if it was; flat otherwise."""
    config = layout.get("config") or public_config(network.config, size)
    tensors = {name: value for name, value in network.state_dict().items() if name not in TRACKING}
    if layout.get("old_attention"):
        names = renamed(tensors, OLD_ATTENTION, back=True)
        tensors = {names[name]: value for name, value in tensors.items()}
    place = folder / layout["component"] if layout.get("component") else folder
    write_component(place, config, as_stored(tensors, layout.get("dtypes")))
    if layout.get("index"):
        write_json(folder / "model_index.json", layout["index"])


# -------------------------------------------------------------------------------------------------------- original files


def is_tokenizer(names: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether the names are those of an original tokenizer, below a prefix."""
    books = (f"{prefix}quantize.embedding.weight", f"{prefix}quantize.embed.weight")
    return any(book in names for book in books) and f"{prefix}encoder.down.0.block.0.norm1.weight" in names


def is_whole(names: Mapping[str, Any]) -> bool:
    """Whether they are those of an original tokenizer with its transformer."""
    return "transformer.tok_emb.weight" in names and is_tokenizer(names, FIRST)


def read_file(path: Path, tensors: Mapping[str, Tensor]) -> Found:
    """An original checkpoint with the YAML that belongs to it. InputError names what is missing."""
    settings = _settings(path)
    params = settings.get("params")
    if not isinstance(params, dict):
        raise InputError(f"{_yaml(path)}: model.params is missing; the YAML of a VQGAN release has it")
    where = str(path)
    if is_whole(tensors):
        return _whole(settings, tensors, where, str(_yaml(path)))
    config, ours = _tokenizer(settings, tensors, "", str(_yaml(path)))
    side = int(params["ddconfig"]["resolution"])
    return Found({"autoencoder": config}, {"autoencoder": ours}, where, (side, side), layout=_layout(tensors, settings))


def _whole(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, yaml_file: str) -> Found:
    params = settings["params"]
    first = params.get("first_stage_config")
    if not isinstance(first, dict):
        raise InputError(f"{yaml_file}: model.params.first_stage_config is missing; it describes the tokenizer")
    config, ours = _tokenizer(first, tensors, FIRST, yaml_file)
    told = (params.get("transformer_config") or {}).get("params")
    if not isinstance(told, dict):
        raise InputError(
            f"{yaml_file}: model.params.transformer_config.params is missing; it describes the transformer"
        )
    permuter = str((params.get("permuter_config") or {}).get("target", "Identity"))
    if not permuter.endswith("Identity"):
        raise InputError(f"{yaml_file}: permuter {permuter} cannot be loaded; codes row by row (Identity) can")
    prior = _checked_prior(told, yaml_file)
    shape = shapes_of(tensors)["transformer.tok_emb.weight"]
    if shape != (prior.vocabulary, prior.width):
        raise InputError(
            f"{yaml_file} describes a transformer of {prior.vocabulary} tokens and width {prior.width}, but {where} has {shape}: "
            "it is the YAML of another file"
        )
    kept = [n for n in tensors if n.startswith("transformer.") and not n.endswith(".attn.mask")]
    configs: dict[str, Any] = {"autoencoder": config, "prior": prior}
    parts = {"autoencoder": ours, "prior": Renamed(tensors, {name.removeprefix("transformer."): name for name in kept})}
    told_of = _told(params, prior.vocabulary, yaml_file)
    cond: Any = first if params.get("cond_stage_config") == "__is_first_stage__" else params.get("cond_stage_config")
    if told_of is None:  # a second tokenizer
        configs["condition"], parts["condition"] = _tokenizer(cond, tensors, COND, yaml_file)
        if configs["condition"].in_channels not in (1, 3):
            raise InputError(
                f"{yaml_file}: the prior is told pictures of {configs['condition'].in_channels} channels, which cannot be given; "
                "those of 1 or 3 can"
            )
    places = prior.length if told_of is not None and "coordinates" not in told_of else (prior.length + 1) // 2
    side = int(first["params"]["ddconfig"]["resolution"])
    side = min(side, math.isqrt(places) * config.factor)  # a square of codes for which it has places
    layout = _layout(tensors, settings)
    return Found(configs, parts, where, (side, side), told_of or {}, layout)


def _layout(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a file, so that it is written again as it was."""
    dtypes = dtypes_of(tensors)
    return {"dtypes": dtypes, "file": {"dtypes": dtypes, "yaml": dict(settings)}}


def _told(params: Mapping[str, Any], vocabulary: int, where: str) -> dict[str, int] | None:
    """What the prior is told: {} nothing (a row begins with token 0), classes, coordinates; None: a second picture."""
    cond = params.get("cond_stage_config", "__is_unconditional__")
    target = cond.get("target", "") if isinstance(cond, Mapping) else str(cond)
    inner: Any = (cond.get("params") or {}) if isinstance(cond, Mapping) else {}
    if params.get("unconditional") or target == "__is_unconditional__" or target.endswith("SOSProvider"):
        if (token := int(params.get("sos_token", 0))) != 0:
            raise InputError(f"{where}: sos_token={token} cannot be loaded; 0 can")
        return {}
    if int(params.get("downsample_cond_size", -1)) != -1:
        raise InputError(f"{where}: downsample_cond_size={params['downsample_cond_size']} cannot be loaded; -1 can")
    if target.endswith("Labelator"):
        return {"classes": min(int(inner.get("n_classes", IMAGENET)), vocabulary)}
    if target.endswith("DummyCondStage") and params.get("cond_stage_key") == "class_label":
        return {"classes": min(IMAGENET, vocabulary)}
    if target.endswith("CoordStage"):
        return {"coordinates": int(inner.get("n_embed", vocabulary))}
    if target == "__is_first_stage__" or target.endswith(("vqgan.VQModel", "vqgan.GumbelVQ")):
        return None
    raise InputError(
        f"{where}: a prior that is told of {params.get('cond_stage_key', target)!r} by {target or 'another network'} cannot be "
        "loaded; one that is told labels, coordinates, a second picture, or nothing can"
    )


def _tokenizer(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str, where: str
) -> tuple[VQModelConfig, Mapping[str, Tensor]]:  # fmt: skip
    """Config and tensors of an original tokenizer, from its part of the YAML."""
    params = settings.get("params")
    dd = params.get("ddconfig") if isinstance(params, Mapping) else None
    if not isinstance(dd, Mapping) or not isinstance(params, Mapping):
        raise InputError(f"{where}: params.ddconfig is missing; it has the sizes of the tokenizer")
    gumbel = f"{prefix}quantize.embed.weight" in tensors
    for key, only in (
        ("resamp_with_conv", True),
        ("tanh_out", False),
        ("give_pre_end", False),
        ("use_linear_attn", False),
    ):
        if dd.get(key, only) != only:
            raise InputError(f"{where}: ddconfig.{key}={dd[key]!r} cannot be loaded; {only} can")
    try:
        multiples, resolution = [int(m) for m in dd["ch_mult"]], int(dd["resolution"])
        if multiples[0] != 1:
            raise InputError(f"{where}: ddconfig.ch_mult={multiples} cannot be loaded; one that begins with 1 can")
        book = {
            "kind": "gumbel" if gumbel else "vq",
            "codes": int(params["n_embed"]),
            "width": int(params["embed_dim"]),
        }
        values = {
            "channels": [int(dd["ch"]) * m for m in multiples], "blocks": int(dd["num_res_blocks"]),
            "attention": [resolution // 2**i in dd["attn_resolutions"] for i in range(len(multiples))],
            "latent_channels": int(dd["z_channels"]), "in_channels": int(dd["in_channels"]), "groups": GROUPS,
            "double_z": bool(dd.get("double_z", True)), "quantizer": book if gumbel else {**book, **TRAINED},
        }  # fmt: skip
    except KeyError as error:
        raise InputError(f"{where}: the key {error.args[0]} of the tokenizer is missing") from None
    config = _checked(values, where)
    left = (f"{prefix}loss.", f"{prefix}quantize.used", f"{prefix}colorize")
    kept = [n.removeprefix(prefix) for n in tensors if n.startswith(prefix) and not n.startswith(left)]
    kept = [name for name in kept if prefix or not name.startswith(("model_ema.", "discriminator."))]
    return config, from_ldm(tensors, prefix, kept)


TRAINED = {"commitment": 1.0, "codebook": 0.25}  # as the published files were


def _settings(path: Path) -> dict[str, Any]:
    """The section `model` of a checkpoint's YAML."""
    file = _yaml(path)
    if file is None:
        raise InputError(
            f"{path} is a VQGAN checkpoint, whose sizes are in a YAML file that is missing: put the release's configs/model.yaml "
            f"beside it as {path.with_suffix('.yaml').name}"
        )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} is not readable YAML: {' '.join(str(error).split())}") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise InputError(f"{file}: the section model: is missing; the YAML of a VQGAN release has it")
    return model


def _yaml(path: Path) -> Path | None:
    """NAME.yaml beside the file; the only model.yaml or *-project.yaml of a `configs` folder beside the file's folder, or of
    the file's own folder."""
    for ending in (".yaml", ".yml"):
        if path.with_suffix(ending).is_file():
            return path.with_suffix(ending)
    for folder in (path.parent.parent / "configs", path.parent / "configs", path.parent):
        for pattern in ("model.y*ml", "*-project.y*ml"):
            if len(found := sorted(folder.glob(pattern))) == 1:
                return found[0]
    return None


def _checked(values: Mapping[str, Any], where: str) -> VQModelConfig:
    try:
        return VQModelConfig.model_validate(
            {**values, "quantizer": QuantizerConfig.model_validate(values["quantizer"])}
        )
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


def _checked_prior(told: Mapping[str, Any], where: str) -> GPTConfig:
    try:
        return GPTConfig(
            vocabulary=told["vocab_size"], length=told["block_size"], width=told.get("n_embd", 256), heads=told.get("n_head", 8),
            depth=told.get("n_layer", 12), unmasked=told.get("n_unmasked", 0),
        )  # fmt: skip
    except KeyError as error:
        raise InputError(f"{where}: the key {error.args[0]} of the transformer is missing") from None
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None
