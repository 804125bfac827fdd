"""Names in single files of Stable Diffusion 1, 2 and XL, and what such files say of themselves (ldm_file.py reads and writes them).

    model.diffusion_model.input_blocks.4.1. ...             the U-Net                              `unet_names`
    first_stage_model.encoder.down.0. ...                   the autoencoder                        formats/autoencoder.py
    cond_stage_model.transformer.text_model. ...            SD 1: CLIP ViT-L/14                    names as in folders
    cond_stage_model.model.transformer.resblocks.0. ...     SD 2: OpenCLIP ViT-H/14                `OPEN_CLIP`
    conditioner.embedders.0.transformer. ... and .1.model.  SD XL: both                            the same two
    model_ema.diffusion_modelinput_blocks00weight           the U-Net's averages, dots left out    `chosen`

A file does not say all: number of heads, groups of the norms, what is predicted. They are taken, in this order, from what
hwaga wrote into the header of its own files, from a `.yaml` of the same stem beside the file (the original authors' config),
and from what the published models of the family have. Of SD 2 that is the prediction of v, but where the header says
otherwise or the file counts the 875,000 steps of the base model; public converters take it so.

Raw or averaged weights, where a file has both: as `use_ema` of the `.yaml` says; without one the raw, as public converters take
them; `weights="ema"` asks for the others. Buffers of the noise schedule in a file are not used: they have its dtype.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from torch import Tensor

from ..errors import InputError, first_mistake
from ..networks.autoencoder import AutoencoderKLConfig
from ..networks.clip_text import ClipTextConfig
from ..networks.text_unet import TextUNetConfig
from ..weights.lora import Place, plain
from ..weights.mapped import Renamed
from . import autoencoder
from .keys import Moved
from .stored import as_stored, dtypes_of

UNET, EMA, CODEC = "model.diffusion_model.", "model_ema.", "first_stage_model."
SCALES = {"1": 0.18215, "2": 0.18215, "xl": 0.13025}  # of latents, by family
HEADER = "hwaga"  # the key of a safetensors header under which our own files say what tensors do not
FIRST = UNET + "input_blocks.0.0.weight"

SKIPPED = re.compile(
    r"""(model_ema\..+ | .*position_ids | .*logit_scale | .*\.attn_mask | betas | alphas_cumprod(_prev)? | sqrt_.+ |
    log_one_minus.+ | posterior_.+ | logvar | lvlb_weights | scale_factor | global_step | v_pred | ztsnr | denoiser\.sigmas |
    first_stage_model\.(loss|discriminator|model_ema)\..+ | cond_stage_model\.model\.(visual\..+|text_projection) |
    low_scale_model\..+ | depth_model\..+ | .*\.decay | .*\.num_updates)""",
    re.X,
)
"""What a file may hold beside the networks, knowingly left out: averages not chosen, buffers, a picture encoder, CLIP's
temperature, the projection that SD 2 does not use, a depth estimator."""

LOOKS_LIKE = (
    (r"joint_blocks\.\d+\.", "Stable Diffusion 3"),
    (r"double_blocks\.\d+\.img_attn|single_transformer_blocks\.\d+\.", "FLUX"),
    (r"blocks\.\d+\.(self_attn|cross_attn)\.norm_[qk]\.", "Wan (video)"),
    (r"transformer_blocks\.\d+\.img_mod\.", "Qwen-Image"),
    (r"control_model\.|controlnet_cond_embedding\.", "a ControlNet (a part: name it with components={'controlnet': ...})"),
    (r"conditioner\.embedders\.0\.model\.", "the refiner of Stable Diffusion XL"),
    (r"(edm_mean|edm_std)$", "Playground 2.5"),
    (r"(cond_stage_model|text_model|encoder\.layers)\.", "a text encoder alone"),
    (r"(emb_params|string_to_param|clip_[lg])$", "a textual inversion (words, not a model)"),
    (r"down_blocks\.\d+\.(attentions|resnets)", "a part of a public folder; give the folder"),
)  # fmt: skip
"""Of files that cannot be loaded: a pattern of their names, and what they look like."""


def looks_like(names: Iterable[str]) -> str | None:
    """What a file seems to be, in words; None where nothing is known of it."""
    there = list(names)
    return next((words for pattern, words in LOOKS_LIKE if any(re.search(pattern, name) for name in there)), None)


def is_stable_diffusion(tensors: Mapping[str, Any]) -> bool:
    """Whether a file is of Stable Diffusion 1, 2 or XL: by a U-Net of these names that attends to a text."""
    if FIRST not in tensors or "edm_mean" in tensors or any(name.startswith("control_model.") for name in tensors):
        return False
    return family_of(tensors) is not None


def family_of(names: Collection[str]) -> str | None:
    """ "1", "2" or "xl", by which text encoders there are; None where it is none of them."""
    if any(name.startswith("conditioner.embedders.1.model.") for name in names):
        return "xl"
    if any(name.startswith("cond_stage_model.model.transformer.") for name in names):
        return "2"
    if any(name.startswith("cond_stage_model.transformer.") for name in names):
        return "1"
    return None


# -------------------------------------------------------------------------------------------------------- raw or averaged


class Chosen(Renamed):
    """A file's tensors with one of its two U-Nets, under the same names."""

    kinds: tuple[str, ...] = ()  # "ema", "raw": the one that was taken first
    metadata: Mapping[str, Any] = {}


def chosen(path: Path, tensors: Mapping[str, Tensor], weights: str | None) -> Mapping[str, Tensor]:
    """The tensors with the U-Net that `weights`, else a `.yaml` beside the file, else public habit asks for. Others as they
    are. InputError for weights that it does not hold."""
    if not any(name.startswith(EMA + "diffusion_model") for name in tensors):
        if weights == "ema" and FIRST in tensors:
            raise InputError(f"weights='ema': {path} holds one set of weights alone; leave weights out")
        return tensors
    raw = [name for name in tensors if name.startswith(UNET)]
    flat = {EMA + name.removeprefix("model.").replace(".", ""): name for name in raw}
    averaged = [name for name in tensors if name in flat]
    said = yaml_beside(path)
    wanted = weights or ("ema" if said is not None and said.use_ema else "raw")
    if not raw or len(averaged) != len(raw):
        raise InputError(
            f"{path} has {len(averaged)} averaged weights for {len(raw)} of its U-Net; it is not whole and cannot be loaded"
        )
    names = {name: name for name in tensors if not name.startswith(EMA)}
    if wanted == "ema":
        names |= {flat[name]: name for name in averaged}
    found = Chosen(tensors, names)
    found.kinds = (wanted, "raw" if wanted == "ema" else "ema")
    found.metadata = getattr(tensors, "metadata", {})
    return found


# ------------------------------------------------------------------------------------------------------ what a file is told


class Said(BaseModel, extra="allow"):
    """What is said of a file beside its tensors. None: nothing."""

    use_ema: bool = False
    heads: int | None = None  # of every level
    head_width: int | None = None
    predicts: str | None = None  # eps, v
    beta_start: float | None = None
    beta_end: float | None = None
    timesteps: int | None = None
    scale: float | None = None  # of latents
    last_layer: bool | None = None  # of OpenCLIP: the last layer is used, else the last but one


def yaml_beside(path: Path) -> Said | None:
    """The original authors' config of the same stem; None where there is none. InputError where it is not one."""
    import yaml

    file = next((f for s in (".yaml", ".yml") if (f := path.with_suffix(s)).is_file()), None)
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8")
        model = yaml.safe_load(text)["model"]
        params = model["params"]
        unet = (params.get("unet_config") or params.get("network_config") or {}).get("params") or {}
        positive = lambda value: value if isinstance(value, int) and value > 0 else None  # noqa: E731
        older = "ddpm" in str(model.get("target"))  # whose class averages unless told; the later one does not
        predicts = {"eps": "eps", "v": "v", "x0": "x0"}.get(str(params.get("parameterization")))
        denoiser = str(params.get("denoiser_config") or "")
        layer = ((params.get("cond_stage_config") or {}).get("params") or {}).get("layer")
        return Said(
            use_ema=bool(params.get("use_ema", older)), heads=positive(unet.get("num_heads")),
            head_width=positive(unet.get("num_head_channels")),
            predicts=predicts or ("v" if "VScaling" in denoiser else None), beta_start=params.get("linear_start"),
            beta_end=params.get("linear_end"), timesteps=params.get("timesteps"), scale=params.get("scale_factor"),
            last_layer=None if layer is None else layer == "last",
        )  # fmt: skip
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValidationError) as error:
        first = " ".join(str(error).split())
        raise InputError(f"{file} lies beside {path.name} and is no config of Stable Diffusion: {first}") from None


def own_header(tensors: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """What hwaga wrote into the header of its own file."""
    text = getattr(tensors, "metadata", {}).get(HEADER)
    if not isinstance(text, str):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}: what its header says under {HEADER!r} is not a table of settings")
    return value


def predicts(family: str, said: Said, tensors: Mapping[str, Any], in_channels: int) -> str:
    """What the network of a file predicts: "eps" or "v"."""
    header = getattr(tensors, "metadata", {})
    told = str(header.get("modelspec.prediction_type") or header.get("modelspec.predict_key") or "")
    if said.predicts:
        return said.predicts
    if told.startswith("v") or "v_pred" in tensors:
        return "v"
    if told.startswith("eps") or family != "2" or in_channels != 4:
        return "eps"
    return "eps" if int(header.get("global_step") or 0) == 875_000 else "v"


# ------------------------------------------------------------------------------------------------------------------ U-Net

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2", "class_embedding": "label_emb", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def unet_blocks(config: TextUNetConfig) -> dict[str, str]:
    """{our block: the original's}: the original counts blocks through all levels, here they are counted in each."""
    found, k, last = {}, 1, len(config.channels) - 1
    for b, attention in enumerate(config.attention):
        for j in range(config.blocks):
            found[f"down_blocks.{b}.resnets.{j}"] = f"input_blocks.{k}.0"
            if attention:
                found[f"down_blocks.{b}.attentions.{j}"] = f"input_blocks.{k}.1"
            k += 1
        if b < last:
            found[f"down_blocks.{b}.downsamplers.0"] = f"input_blocks.{k}.0"
            k += 1
    for part, k in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
        found[f"mid_block.{part}"] = f"middle_block.{k}"
    k = 0
    for b, attention in enumerate(reversed(config.attention)):
        for j in range(config.blocks + 1):
            found[f"up_blocks.{b}.resnets.{j}"] = f"output_blocks.{k}.0"
            if attention:
                found[f"up_blocks.{b}.attentions.{j}"] = f"output_blocks.{k}.1"
            if j == config.blocks and b < last:
                found[f"up_blocks.{b}.upsamplers.0"] = f"output_blocks.{k}.{2 if attention else 1}"
            k += 1
    return found


def unet_names(names: Iterable[str], config: TextUNetConfig) -> dict[str, str]:
    """{our name: the original's, without a prefix} of parameters or of modules. ValueError for one that has none."""
    blocks, found = unet_blocks(config), {}
    for name in names:
        parts = name.split(".")
        length = 4 if parts[0] in ("down_blocks", "up_blocks") else 3
        block, rest = ".".join(parts[:length]), parts[length:]
        if block in blocks:
            if parts[length - 2] == "resnets":
                rest = [_RESNET[rest[0]], *rest[1:]] if rest else rest
            elif parts[length - 2] == "downsamplers":
                rest = ["op", *rest[1:]]
            found[name] = ".".join([blocks[block], *rest])
            continue
        end = next((ours for ours in _ENDS if name == ours or name.startswith(f"{ours}.")), None)
        if end is None:
            raise ValueError(f"no rule of the key table tells of {name!r}")
        found[name] = _ENDS[end] + name[len(end) :]
    return found


def unet_config(shapes: Mapping[str, tuple[int, ...]], family: str, said: Said, where: str) -> TextUNetConfig:
    """The config that shapes, under original names without prefix, are of."""
    channels: list[int] = []
    attention: list[bool] = []
    depth: list[int] = []
    blocks = [0]
    count = lambda lead: len(  # noqa: E731
        {m[1] for name in shapes if (m := re.match(re.escape(lead) + r"\.transformer_blocks\.(\d+)\.", name))}
    )
    try:
        k = 1
        while any(name.startswith(f"input_blocks.{k}.") for name in shapes):
            if f"input_blocks.{k}.0.op.weight" in shapes:
                blocks.append(0)
            else:
                blocks[-1] += 1
                if len(channels) < len(blocks):
                    channels.append(shapes[f"input_blocks.{k}.0.out_layers.3.weight"][0])
                    attention.append(f"input_blocks.{k}.1.norm.weight" in shapes)
                    depth.append(count(f"input_blocks.{k}.1") or 1)
            k += 1
        if len(set(blocks)) != 1 or len(channels) != len(blocks):
            raise InputError(f"{where}: its levels have {blocks} residual blocks; as many in each can be loaded")
        if not attention[-1]:
            depth[-1] = count("middle_block.1") or 1
        first = next((n for n in shapes if n.endswith("attn2.to_k.weight")), None)
        if first is None:
            raise InputError(f"{where}: its U-Net attends to no text; a Stable Diffusion does")
        linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
        return TextUNetConfig(
            channels=tuple(channels), attention=tuple(attention), depth=tuple(depth), blocks=blocks[0],
            heads=tuple(_heads(width, family, said) for width in channels), in_channels=shapes["input_blocks.0.0.weight"][1],
            out_channels=shapes["out.2.weight"][0], text_width=shapes[first][1], linear_projection=linear,
            added_width=shapes["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in shapes else 0,
            classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0,
            guidance_width=shapes["time_embed.cond_proj.weight"][1] if "time_embed.cond_proj.weight" in shapes else 0,
            groups=math.gcd(32, *channels),
        )  # fmt: skip
    except (KeyError, IndexError) as error:
        raise InputError(f"{where} has no whole U-Net: it lacks {error.args[0]}") from None
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


def _heads(width: int, family: str, said: Said) -> int:
    if said.heads:
        return said.heads
    if said.head_width is None and family == "1":
        return 8
    return max(1, width // (said.head_width or 64))


# ----------------------------------------------------------------------------------------------------------- text encoders


def _open_clip() -> tuple[Moved, ...]:
    block, old = "text_model.encoder.layers.{i}", "transformer.resblocks.{i}"
    rows = [
        Moved("text_model.embeddings.token_embedding.weight", ("token_embedding.weight",)),
        Moved("text_model.embeddings.position_embedding.weight", ("positional_embedding",)),
        Moved("text_model.final_layer_norm.{path}", ("ln_final.{path}",)),
        Moved("text_projection.weight", ("text_projection",), "transpose"),
    ]
    for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("self_attn.out_proj", "attn.out_proj"),
                         ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
        rows.append(Moved(f"{block}.{ours}.{{path}}", (f"{old}.{theirs}.{{path}}",)))
    for k, one in enumerate("qkv"):
        for kind in ("weight", "bias"):
            rows.append(Moved(f"{block}.self_attn.{one}_proj.{kind}", (f"{old}.attn.in_proj_{kind}",), "rows", (k, 3)))
    return tuple(rows)


OPEN_CLIP = _open_clip()
"""Our names (those of folders) and OpenCLIP's."""


class Encoder(NamedTuple):
    """Where a text encoder is in a file."""

    prefix: str
    open_clip: bool


ENCODERS: dict[str, dict[str, Encoder]] = {
    "1": {"text_encoder": Encoder("cond_stage_model.transformer.", False)},
    "2": {"text_encoder": Encoder("cond_stage_model.model.", True)},
    "xl": {
        "text_encoder": Encoder("conditioner.embedders.0.transformer.", False),
        "text_encoder_2": Encoder("conditioner.embedders.1.model.", True),
    },
}


def text_config(shapes: Mapping[str, tuple[int, ...]], encoder: Encoder, layers: int, where: str) -> ClipTextConfig:
    """The config that a text encoder's shapes, under its own names without prefix, are of."""
    try:
        if encoder.open_clip:
            tokens, hidden = shapes["token_embedding.weight"], shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
            positions = shapes["positional_embedding"][0]
        else:
            body = "text_model.embeddings."
            tokens, positions = shapes[f"{body}token_embedding.weight"], shapes[f"{body}position_embedding.weight"][0]
            hidden = shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
        return ClipTextConfig(
            width=tokens[1], layers=layers, heads=max(1, tokens[1] // 64), hidden=hidden, vocabulary=tokens[0],
            positions=positions, activation="gelu" if encoder.open_clip else "quick_gelu",
            projection=shapes["text_projection"][1] if encoder.open_clip and "text_projection" in shapes else 0,
        )  # fmt: skip
    except KeyError as error:
        raise InputError(f"{where} has no whole text encoder: it lacks {error.args[0]}") from None
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


# ------------------------------------------------------------------------------------------------- parts that files share


def from_header(kind: type[Any], values: Mapping[str, Any] | None, where: str) -> Any:
    """A config that hwaga wrote into a file's header; None where it wrote none."""
    if values is None:
        return None
    try:
        return kind(**values)
    except (ValidationError, TypeError) as error:
        what = first_mistake(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{where}: its header: {what}") from None


def codec_of(
    tensors: Mapping[str, Tensor], kept: list[str], told: Mapping[str, Any] | None, latents: Any, where: str
) -> autoencoder.Found:  # fmt: skip
    """The autoencoder. latents: its scale, or the fields of a public config that say scale and shift."""
    ours = autoencoder.from_ldm(tensors, CODEC, kept)
    config = from_header(AutoencoderKLConfig, told, where) or autoencoder.config_of(ours, where)
    public = latents if isinstance(latents, dict) else {"scaling_factor": latents}
    shift, scale = autoencoder.scaling(public, config.latent_channels)
    layout = {"dtypes": dtypes_of(ours)}
    whole = Renamed(ours, {name: name for name in ours}, more={"shift": shift, "scale": scale})
    return autoencoder.Found(config, whole, where, layout, size=(0, 0))


def codec_tensors(codec: Any, layout: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The way back of `codec_of`: the autoencoder's tensors as a file has them, in the dtypes that it had."""
    plain = {name: value for name, value in codec.state_dict().items() if name not in autoencoder.BUFFERS}
    typed = as_stored(plain, (layout or {}).get("dtypes"))
    return {CODEC + name: v for name, v in autoencoder.to_ldm(typed, len(codec.config.channels)).items()}


def spelled(network: Any) -> dict[str, Place]:
    """{a module's original name: our weight}, as files of LoRA for XL name them."""
    own = plain(network).named_parameters()
    weights = [name.removesuffix(".weight") for name, p in own if name.endswith(".weight") and p.dim() > 1]
    return {old: Place("network", f"{ours}.weight") for ours, old in unet_names(weights, network.config).items()}
