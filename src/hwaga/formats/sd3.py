"""The public folder of Stable Diffusion 3 and 3.5: its components, and how they go together.

    transformer                        SD3Transformer2DModel       here
    vae                                AutoencoderKL               autoencoder.py
    text_encoder, text_encoder_2       CLIP's text halves          text_encoders.py
    text_encoder_3                     T5's encoder, or none       text_encoders.py, t5.py
    tokenizer, tokenizer_2, _3         files, kept as they are     conditioning/tokenizers.py
    scheduler                          process and sampling        schedulers.py

Parameters of the transformer have the same names here as there; its table of positions is read and written as it is. Single files:
sd3_file.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..conditioning.text_encoders import ENCODERS, TOKENIZERS
from ..errors import InputError, first_mistake
from ..files import write_json
from ..networks.mmdit import MMDiTConfig
from . import autoencoder, schedulers, text_encoders
from .folders import PublicFolder, full_config, write_component
from .stable_diffusion import PENULTIMATE, Use, copy_left_out, left_out_of
from .stored import Stored, as_stored, dtypes_of, shapes_of

CLASS = "SD3Transformer2DModel"
PIPELINES = (
    "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline",
    "StableDiffusion3PAGPipeline", "StableDiffusion3PAGImg2ImgPipeline",
)  # fmt: skip
"""Public classes whose folders are read here."""
DEFAULTS: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 18, "attention_head_dim": 64,
    "num_attention_heads": 18, "joint_attention_dim": 4096, "caption_projection_dim": 1152, "pooled_projection_dim": 2048,
    "out_channels": 16, "pos_embed_max_size": 96, "dual_attention_layers": [], "qk_norm": None,
}  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {"qk_norm": (None, "rms_norm")}

CLIP = {**PENULTIMATE, "pooled": "projected"}
T5_LENGTH = 256  # tokens, as published
USE = Use(
    {"text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": {"length": T5_LENGTH}}, steps=28, guidance_scale=7.0
)  # fmt: skip
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
"""As published, of both 3 and 3.5."""


@dataclass(frozen=True)
class Found(Stored[MMDiTConfig]):
    """What a public folder or file holds of the transformer."""

    size: tuple[int, int] = field(kw_only=True)  # (height, width) of what the network works on


@dataclass(frozen=True)
class Parts:
    """What a folder or a file holds."""

    network: Found
    codec: autoencoder.Found | None  # None: a single file without one
    encoders: Mapping[str, text_encoders.Found]
    scheduler: dict[str, Any]
    index: dict[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, Path] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)  # of a file, for its way back

    @property
    def layout(self) -> dict[str, Any]:
        """All that is needed to write it again as it was."""
        found = {
            "index": self.index, "scheduler": self.scheduler, "transformer": self.network.layout,
            "vae": {} if self.codec is None else self.codec.layout,
            **{name: found.layout for name, found in self.encoders.items()},
            "left_out": {name: str(place) for name, place in self.left_out.items()}, **self.more,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value}

    def process(self) -> tuple[Any, dict[str, Any]]:
        """The process, and fields of SamplingConfig."""
        process, sampling = schedulers.read(self.scheduler, self.network.where)
        return process, {"steps": USE.steps, "guidance_scale": USE.guidance_scale, "clip": None, **sampling}


# --------------------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Parts:
    """A pipeline's folder. InputError for a component that is missing, cannot be loaded or belongs to another model."""
    folder = PublicFolder(path, "transformer")
    for name in ("transformer", "vae"):
        if not (path / name).is_dir():
            raise InputError(f"{path} has no folder {name!r}, which a Stable Diffusion 3 model needs")
    network, codec = read_component(folder), autoencoder.read_component(folder, "vae")
    encoders = {
        name: text_encoders.read_component(path / name, path / TOKENIZERS[name], **how)
        for name, how in USE.encoders.items() if (path / name).is_dir()
    }  # fmt: skip
    check_together(str(path), network, codec, encoders)
    left_out = left_out_of(path, folder.index, ("transformer",))
    return Parts(network, codec, encoders, folder.scheduler() or dict(SCHEDULER), folder.index, left_out)


def read_component(folder: PublicFolder, component: str = "transformer") -> Found:
    """The transformer in a pipeline's folder."""
    place = folder.place(component)
    public, tensors = folder.config(component), folder.tensors(component)
    config = network_config(public, str(place / "config.json"))
    side = int(public.get("sample_size") or DEFAULTS["sample_size"])
    return Found(config, tensors, str(place), {"config": public, "dtypes": dtypes_of(tensors)}, size=(side, side))


def network_config(public: Mapping[str, Any], where: str) -> MMDiTConfig:
    """Our config of a public one; InputError for what that class knows and this network does not do."""
    full = full_config(public, where, CLASS, DEFAULTS, ONLY)
    try:
        width = full["num_attention_heads"] * full["attention_head_dim"]
        if full["caption_projection_dim"] != width:
            raise InputError(
                f"{where}: caption_projection_dim={full['caption_projection_dim']} cannot be loaded; {width} can"
            )
        return MMDiTConfig(
            patch=full["patch_size"], width=width, depth=full["num_layers"], heads=full["num_attention_heads"],
            in_channels=full["in_channels"], out_channels=full["out_channels"] or full["in_channels"],
            text_width=full["joint_attention_dim"], pooled_width=full["pooled_projection_dim"],
            table=full["pos_embed_max_size"], base=max(1, full["sample_size"] // full["patch_size"]),
            qk_norm=full["qk_norm"] is not None, dual=tuple(full["dual_attention_layers"]),
        )  # fmt: skip
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None
    except (TypeError, ZeroDivisionError):
        raise InputError(
            f"{where}: its sizes must be whole numbers above 0, dual_attention_layers a list of them"
        ) from None


def check_together(path: str, network: Found, codec: autoencoder.Found | None, encoders: Mapping[str, Any]) -> None:
    """InputError where a component is another model's: which tensor has which shape."""
    held, config = shapes_of(network.tensors), network.config
    lead = f"{path}: the components are of different models: transformer: "
    clips = [found.config for name, found in encoders.items() if found.config.pooled_width]
    pooled = sum(clip.pooled_width for clip in clips)
    if len(clips) == 2 and pooled != config.pooled_width:
        name = "time_text_embed.text_embedder.linear_1.weight"
        raise InputError(
            f"{lead}{name} has shape {held[name]}, so it takes pooled texts of width {config.pooled_width}, but those of "
            f"text_encoder and text_encoder_2 are {pooled} wide together"
        )
    third = encoders["text_encoder_3"].config.width if "text_encoder_3" in encoders else config.text_width
    if third != config.text_width or sum(clip.width for clip in clips) > config.text_width:
        name = "context_embedder.weight"
        raise InputError(
            f"{lead}{name} has shape {held[name]}, so it takes texts of width {config.text_width}, but those of text_encoder_3 are "
            f"{third} wide, and those of text_encoder and text_encoder_2 {sum(clip.width for clip in clips)} together"
        )
    if codec is not None and codec.config.latent_channels != config.out_channels:
        name = "decoder.conv_in.weight"
        raise InputError(
            f"{lead}proj_out.weight has shape {held['proj_out.weight']}, so it paints {config.out_channels} channels, but vae: "
            f"{name} has shape {shapes_of(codec.tensors)[name]}, so it takes {codec.config.latent_channels}"
        )


# --------------------------------------------------------------------------------------------------------------- writing


def public_config(config: MMDiTConfig) -> dict[str, Any]:
    """The public config of ours; InputError in one sentence where there is none."""
    for key in ("time_scale", "guidance_width", "span"):
        if (value := getattr(config, key)) != (only := MMDiTConfig.model_fields[key].default):
            raise InputError(f"network.{key}={value}: {CLASS} has no field for it; only {only} can be exported")
    return {
        "_class_name": CLASS, **DEFAULTS, "sample_size": config.base * config.patch, "patch_size": config.patch,
        "in_channels": config.in_channels, "num_layers": config.depth, "attention_head_dim": config.width // config.heads,
        "num_attention_heads": config.heads, "joint_attention_dim": config.text_width,
        "caption_projection_dim": config.width, "pooled_projection_dim": config.pooled_width,
        "out_channels": config.out_channels, "pos_embed_max_size": config.table, "dual_attention_layers": list(config.dual),
        "qk_norm": "rms_norm" if config.qk_norm else None,
    }  # fmt: skip


def write(folder: Path, system: Any) -> None:
    """Writes a pipeline's folder into an empty one: as it was loaded, if it was."""
    layout, networks = system.about.layout, system.networks
    scheduler = layout.get("scheduler") or schedulers.written(system.config.process, system.config.sampling)
    own = layout.get("transformer") or {}
    config = own.get("config") or public_config(networks["network"].config)
    write_component(folder / "transformer", config, as_stored(networks["network"].state_dict(), own.get("dtypes")))
    (folder / "vae").mkdir()
    codec, told = system.autoencoder, dict(layout.get("vae") or {})
    if bool((codec.shift != codec.shift[0]).any()):  # readers know one shift for all channels
        codec = autoencoder.shiftless(codec, told)
    size = system.about.size
    if not told.get("config"):
        public = autoencoder.public_config(codec, size)
        told["config"] = {**public, "shift_factor": public["shift_factor"] or 0.0}  # they add it whatever it is
    autoencoder.write_folder(folder / "vae", codec, size, told)
    for name in (n for n in ENCODERS if n in networks):
        clip = name != ENCODERS[2]  # CLIP's pooled text is projected in every public folder
        text_encoders.write_folder(folder / name, networks[name], layout.get(name) or {}, projected=clip)
        text_encoders.write_tokenizer(folder / TOKENIZERS[name], networks[name])
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    copy_left_out(folder, layout)
    write_json(folder / "model_index.json", layout.get("index") or index_of(networks, scheduler))


def index_of(networks: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json of a model that has none yet."""
    index: dict[str, Any] = {
        "_class_name": PIPELINES[0], "feature_extractor": [None, None], "image_encoder": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }  # fmt: skip
    for name in ENCODERS:
        classes = (
            ("T5EncoderModel", "T5TokenizerFast")
            if name == ENCODERS[2]
            else (text_encoders.CLASSES[1], "CLIPTokenizer")
        )
        for part, cls in zip((name, TOKENIZERS[name]), classes, strict=True):
            index[part] = ["transformers", cls] if name in networks else [None, None]
    return {**index, "transformer": ["diffusers", CLASS], "vae": ["diffusers", autoencoder.CLASS]}
