"""The public folder of Stable Diffusion 1, 2, XL and latent consistency models: its components, and how they go together.

    unet                              UNet2DConditionModel       text_unet.py
    vae                               AutoencoderKL              autoencoder.py
    text_encoder, text_encoder_2      CLIP's text halves         text_encoders.py
    tokenizer, tokenizer_2            files, kept as they are    conditioning/tokenizers.py
    scheduler                         process and sampling       schedulers.py

Components that judge pictures after they are painted (a safety checker and what it needs), or that nothing here runs, are left
out, said so, and copied when the model is exported. A component of another model is found by the shapes of its tensors.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..conditioning.text_encoders import ENCODERS, TOKENIZERS
from ..errors import InputError
from ..files import write_json
from . import autoencoder, schedulers, text_encoders, text_unet
from .folders import PublicFolder
from .stored import shapes_of

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "watermarker", "depth_estimator")
PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy", "StableDiffusionDepth2ImgPipeline", "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)  # fmt: skip
"""Public classes whose folders are read here."""


VERSION = "0.42.1"
"""Of the public classes whose fields and defaults are written; their inpainting asks for it."""
_OFFSET = {"steps_offset": 1}
MENDED: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {**_OFFSET, "clip_sample": False},
    "StableDiffusionImg2ImgPipeline": {**_OFFSET, "clip_sample": False},
    "StableDiffusionInpaintPipeline": {**_OFFSET, "skip_prk_steps": True},
}
"""What these pipelines of diffusers 0.42 set in a scheduler's config, whatever the folder says."""


@dataclass(frozen=True)
class Use:
    """How a kind of model uses its text encoders, and what its published pipeline does when nothing is said."""

    encoders: Mapping[str, Mapping[str, Any]]  # fields of TextEncoderConfig, by component
    steps: int = 50
    guidance_scale: float = 7.5


PENULTIMATE = {"skip": 1, "final_norm": False}
SD = Use({"text_encoder": {}})
LCM = Use({"text_encoder": {}}, steps=4, guidance_scale=8.5)
XL = Use({"text_encoder": PENULTIMATE, "text_encoder_2": {**PENULTIMATE, "pooled": "projected"}}, guidance_scale=5.0)


@dataclass(frozen=True)
class Parts:
    """What a folder holds."""

    network: text_unet.Found
    codec: autoencoder.Found | None  # None: a single file without one
    encoders: Mapping[str, text_encoders.Found]
    scheduler: dict[str, Any]
    index: dict[str, Any]
    use: Use
    left_out: Mapping[str, Path] = field(default_factory=dict)

    @property
    def layout(self) -> dict[str, Any]:
        """All that is needed to write the folder again as it was."""
        return {
            "index": self.index, "scheduler": self.scheduler, "unet": self.network.layout,
            "vae": {} if self.codec is None else self.codec.layout,
            **{name: found.layout for name, found in self.encoders.items()},
            "left_out": {name: str(place) for name, place in self.left_out.items()},
        }  # fmt: skip

    @property
    def empty_is_zeros(self) -> bool:
        """Whether no negative prompt is zeros."""
        return bool(self.index.get("force_zeros_for_empty_prompt", self.use is XL))

    def mended(self) -> dict[str, Any]:
        """Fields of the scheduler's config that its published pipeline takes for outdated, with what it puts in their place."""
        full = {**schedulers.DEFAULTS.get(self.scheduler.get("_class_name", ""), {}), **self.scheduler}
        wanted = MENDED.get(self.index.get("_class_name", ""), {})
        return {name: value for name, value in wanted.items() if name in full and full[name] != value}

    def process(self) -> tuple[Any, dict[str, Any]]:
        """The process, and fields of SamplingConfig."""
        process, sampling = schedulers.read(self.scheduler | self.mended(), self.network.where)
        few = sampling["sampler"] == "lcm"
        return process, {
            "steps": None if few else self.use.steps,
            "guidance_scale": self.use.guidance_scale,
            **sampling,
        }


def use_of(network: Any) -> Use:
    """How a network of this config uses text encoders."""
    return XL if network.added_width else LCM if network.guidance_width else SD


def read(path: Path) -> Parts:
    """A pipeline's folder. InputError for a component that is missing, cannot be loaded or belongs to another model."""
    folder = PublicFolder(path, "unet")
    for name in ("unet", "vae"):
        if not (path / name).is_dir():
            raise InputError(f"{path} has no folder {name!r}, which a Stable Diffusion model needs")
    network, codec = text_unet.read_component(folder), autoencoder.read_component(folder, "vae")
    use, encoders = use_of(network.config), {}
    for name, how in use.encoders.items():
        if (path / name).is_dir():
            beside = path / TOKENIZERS[name]
            encoders[name] = text_encoders.read_component(path / name, beside, **how)
    if not encoders:
        raise InputError(f"{path} has no folder 'text_encoder', which a Stable Diffusion model needs")
    check_together(path, network, codec, encoders)
    left_out = left_out_of(path, folder.index, ("unet",))
    return Parts(network, codec, encoders, folder.scheduler() or {}, folder.index, use, left_out)


def left_out_of(path: Path, index: Mapping[str, Any], networks: Sequence[str]) -> dict[str, Path]:
    """Folders of a pipeline that are left where they are: what its index names, and what pictures are judged by, but for what
    is read (`networks` beside what every model has)."""
    named = {name for name, said in index.items() if isinstance(said, list) and said[0] is not None}
    read = {*networks, "vae", "scheduler", *ENCODERS, *TOKENIZERS.values()}
    found = {name: path / name for name in sorted({*named, *LEFT_OUT} - read) if (path / name).is_dir()}
    if "safety_checker" in found:
        warnings.warn(
            f"{path.name}: its safety checker, which looks at pictures after they are painted, is left out; export copies it",
            stacklevel=6,
        )
    return found


def copy_left_out(folder: Path, layout: Mapping[str, Any]) -> None:
    """What was left out when a model was loaded, into the folder that it is written to."""
    for name, place in (layout.get("left_out") or {}).items():
        if not Path(place).is_dir():
            raise InputError(
                f"{place}: the model's {name} was left there when it was loaded, and is there no more; put it back"
            )
        shutil.copytree(place, folder / name)


def check_together(path: Path, network: Any, codec: Any, encoders: Mapping[str, Any]) -> None:
    """InputError where a component is another model's: which tensor has which shape."""
    held = shapes_of(network.tensors)
    width = sum(found.config.width for found in encoders.values())
    keys = next((name for name in held if name.endswith("attn2.to_k.weight")), None)
    if keys is not None and held[keys][1] != width:
        theirs = ", ".join(
            f"{name}: text_model.final_layer_norm.weight {(found.config.width,)}" for name, found in encoders.items()
        )
        raise InputError(
            f"{path}: the components are of different models: unet: {keys} has shape {held[keys]}, so it takes texts of width "
            f"{held[keys][1]}, but those of {theirs} are {width} wide"
        )
    latents, painted = codec.config.latent_channels, network.config.out_channels
    if latents != painted:
        taken = shapes_of(codec.tensors)["decoder.conv_in.weight"]
        raise InputError(
            f"{path}: the components are of different models: unet: conv_out.weight has shape {held['conv_out.weight']}, so it "
            f"paints {painted} channels, but vae: decoder.conv_in.weight has shape {taken}, so it takes {latents}"
        )
    if network.config.added_width:
        pooled = encoders["text_encoder_2"].config.pooled_width if "text_encoder_2" in encoders else 0
        numbers, rest = divmod(network.config.added_width - pooled, network.config.size_width)
        if not pooled or rest or numbers not in (5, 6):
            raise InputError(
                f"{path}: the components are of different models: unet: add_embedding.linear_1.weight has shape "
                f"{held['add_embedding.linear_1.weight']}, which is not text_encoder_2's pooled width {pooled} and 5 or 6 sizes of "
                f"{network.config.size_width}"
            )


# --------------------------------------------------------------------------------------------------------------- writing


def write(folder: Path, system: Any, latent_size: tuple[int, int]) -> None:
    """Writes a pipeline's folder into an empty one: as it was loaded, if it was."""
    layout, networks = system.about.layout, system.networks
    scheduler = layout.get("scheduler") or schedulers.written(system.config.process, system.config.sampling)
    text_unet.write_folder(folder / "unet", networks["network"], latent_size, layout.get("unet") or {})
    (folder / "vae").mkdir()
    told = layout.get("vae") or {}
    autoencoder.write_folder(folder / "vae", autoencoder.shiftless(system.autoencoder, told), system.about.size, told)
    for name in ENCODERS:
        if name in networks:
            text_encoders.write_folder(folder / name, networks[name], layout.get(name) or {})
            text_encoders.write_tokenizer(folder / TOKENIZERS[name], networks[name])
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    copy_left_out(folder, layout)
    write_json(folder / "model_index.json", layout.get("index") or index_of(system, scheduler))


def pipeline_of(network: Any) -> str:
    """The public class that paints with a network of this config."""
    kind = "StableDiffusionXL" if network.added_width else "StableDiffusion"
    extra = network.in_channels - network.out_channels
    if network.guidance_width and not extra:
        return "LatentConsistencyModelPipeline"
    return f"{kind}{'' if not extra else 'Depth2Img' if extra == 1 else 'Inpaint'}Pipeline"


def index_of(system: Any, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json of a model that was trained here."""
    network, names = system.config.network, [n for n in ENCODERS if n in system.networks]
    index: dict[str, Any] = {"_class_name": pipeline_of(network), "_diffusers_version": VERSION}
    if network.added_width:
        index |= {"force_zeros_for_empty_prompt": system.config.zeros_for_empty}
    else:
        index |= {"feature_extractor": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    for name in names:
        projected = system.networks[name].config.model.projection > 0
        index[name] = ["transformers", text_encoders.CLASSES[1 if projected else 0]]
        index[TOKENIZERS[name]] = ["transformers", "CLIPTokenizer"]
    return {**index, "unet": ["diffusers", text_unet.CLASS], "vae": ["diffusers", autoencoder.CLASS]}
