"""Single files of Stable Diffusion 1, 2 and XL and of latent consistency models, read and written.

Their names and what they say of themselves are in ldm.py. All networks are in one file and no tokenizer is; the process and the
sampler are those of the family's published folder, but for what a header or a `.yaml` says. What hwaga writes has in its header
what tensors do not say: the configs of the networks, the scheduler, the scale of latents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..conditioning.text_encoders import TextEncoderConfig
from ..errors import InputError
from ..files import write_tensors
from ..networks.text_unet import TextUNetConfig
from ..weights.fill import without_memory
from ..weights.mapped import Renamed
from . import autoencoder, schedulers, stable_diffusion, text_encoders, text_unet
from .keys import Assembled, Moved, places, taken_apart
from .ldm import (
    CODEC,
    ENCODERS,
    HEADER,
    OPEN_CLIP,
    SCALES,
    SKIPPED,
    UNET,
    Encoder,
    Said,
    codec_of,
    codec_tensors,
    family_of,
    from_header,
    own_header,
    predicts,
    text_config,
    unet_config,
    unet_names,
    yaml_beside,
)  # fmt: skip
from .stored import as_stored, dtypes_of

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_ENDS_ABOVE = {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "1": {"_class_name": "PNDMScheduler", **BETAS, **_ENDS_ABOVE, "skip_prk_steps": True},
    "2": {"_class_name": "DDIMScheduler", **BETAS, **_ENDS_ABOVE},
    "xl": {"_class_name": "EulerDiscreteScheduler", **BETAS, **_ENDS_ABOVE, "timestep_spacing": "leading"},
    "lcm": {"_class_name": "LCMScheduler", **BETAS, "clip_sample": False},
}
"""The scheduler of a family's published folder."""
SIDES = {"1": 64, "2": 64, "xl": 128}  # of latents; SD 2 with v-prediction was trained at 96


@dataclass(frozen=True)
class FileParts(stable_diffusion.Parts):
    """What a file holds, as a folder's parts."""

    family: str = "1"
    zeros_for_empty: bool | None = None

    @property
    def layout(self) -> dict[str, Any]:
        return {**{name: value for name, value in super().layout.items() if value}, "family": self.family}

    @property
    def empty_is_zeros(self) -> bool:
        return super().empty_is_zeros if self.zeros_for_empty is None else self.zeros_for_empty


def read_file(path: Path, tensors: Mapping[str, Tensor]) -> FileParts:
    """A file that `is_stable_diffusion` knows. Every tensor is of one of its networks, or knowingly left out, or named in an
    InputError. Tokenizers are in no such file."""
    family, where = family_of(tensors) or "1", str(path)
    shapes = getattr(tensors, "shapes", None) or {name: tuple(value.shape) for name, value in tensors.items()}
    said, header = yaml_beside(path) or Said(), own_header(tensors, path) or {}
    networks = header.get("networks")
    own: dict[str, Any] = networks if isinstance(networks, dict) else {}
    used: set[str] = set()
    below = lambda prefix: {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}  # noqa: E731
    inner = below(UNET)
    config = from_header(TextUNetConfig, own.get("network"), where) or unet_config(inner, family, said, where)
    unet = _unet(tensors, inner, config, where)
    used |= {UNET + name for name in inner}
    codec = None
    if kept := [n for n in below(CODEC) if not SKIPPED.fullmatch(CODEC + n)]:
        codec = codec_of(
            tensors, kept, own.get("autoencoder"), header.get("latents") or said.scale or SCALES[family], where
        )
        used |= {CODEC + name for name in kept}
    use = stable_diffusion.use_of(config)
    encoders = {}
    for name, encoder in ENCODERS[family].items():
        inner = below(encoder.prefix)
        original = "text_projection" in inner  # as OpenCLIP has it; public converters write what is used of it alone
        penultimate = family == "2" and (original if said.last_layer is None else not said.last_layer)
        how = use.encoders.get(name, {})
        encoders[name], taken = _text(tensors, inner, encoder, own.get(name), how, penultimate, where)
        used |= taken
    if foreign := sorted(name for name in shapes if name not in used and not SKIPPED.fullmatch(name)):
        more = f" and {len(foreign) - 1} more tensors" if len(foreign) > 1 else ""
        raise InputError(f"{path} holds the tensor {foreign[0]}{more}, for which a Stable Diffusion has no place")
    kind = predicts(family, said, tensors, config.in_channels)
    scheduler = header.get("scheduler") or _scheduler("lcm" if config.guidance_width else family, said, kind)
    side = 96 if family == "2" and kind == "v" else SIDES[family]
    size = header.get("size") or (side, side)
    network = text_unet.Found(config, unet, where, {"dtypes": dtypes_of(unet)}, (int(size[0]), int(size[1])))
    return FileParts(
        network, codec, encoders, scheduler, {}, use, family=family, zeros_for_empty=header.get("zeros_for_empty")
    )


def _scheduler(kind: str, said: Said, predicts: str) -> dict[str, Any]:
    """The scheduler of a family, with what a `.yaml` says otherwise."""
    told = {"beta_start": said.beta_start, "beta_end": said.beta_end, "num_train_timesteps": said.timesteps}
    prediction = next(public for public, ours in schedulers.PREDICTIONS.items() if ours == predicts)
    given = {name: value for name, value in told.items() if value is not None}
    return {**SCHEDULERS[kind], **given, "prediction_type": prediction}


def _unet(tensors: Mapping[str, Tensor], inner: Mapping[str, Any], config: TextUNetConfig, where: str) -> Renamed:
    """The U-Net under our names."""
    with without_memory():
        needed = list(config.build().state_dict())
    names = unet_names(needed, config)
    if missing := sorted(set(names.values()) - inner.keys()):
        raise InputError(f"{where} lacks the tensor {UNET}{missing[0]}, which its other tensors ask for")
    if foreign := sorted(inner.keys() - set(names.values())):
        raise InputError(f"{where} holds the tensor {UNET}{foreign[0]}, for which its U-Net has no place")
    return Renamed(tensors, {ours: UNET + old for ours, old in names.items()})


def _text(
    tensors: Mapping[str, Tensor], inner: Mapping[str, tuple[int, ...]], encoder: Encoder, told: Mapping[str, Any] | None,
    how: Mapping[str, Any], penultimate: bool, where: str,
) -> tuple[text_encoders.Found, set[str]]:  # fmt: skip
    """A text encoder, and the names in the file that it takes. penultimate: its last layer is not used, and left out."""
    block = "transformer.resblocks" if encoder.open_clip else "text_model.encoder.layers"
    layers = 1 + max(
        (int(m[1]) for name in inner if (m := re.match(rf"{re.escape(block)}\.(\d+)\.", name))), default=-1
    )
    config = from_header(TextEncoderConfig, told, where)
    if config is None:
        model = text_config(inner, encoder, layers - penultimate, where)
        if encoder.prefix.startswith("cond_stage_model.model."):
            model = model.model_copy(update={"projection": 0})  # SD 2 uses no pooled text
        config = from_header(TextEncoderConfig, {"model": model, "length": model.positions, **how}, where)
    with without_memory():
        needed = list(config.build().state_dict())
    table = OPEN_CLIP if encoder.open_clip else (Moved("{path}", ("{path}",)),)
    spots = places(needed, table)
    beyond = (
        {n for n in inner if re.match(rf"{re.escape(block)}\.{config.model.layers}\.", n)} if penultimate else set()
    )
    below = Renamed(tensors, {name: encoder.prefix + name for name in inner})
    skipped = [name for name in inner if SKIPPED.fullmatch(encoder.prefix + name)]
    ours = Assembled(below, spots, where, [*skipped, *beyond])
    taken = {encoder.prefix + name for spot in spots.values() for name in spot.names}
    found = text_encoders.Found(config, ours, where, {"dtypes": dtypes_of(ours)})
    return found, taken | {encoder.prefix + name for name in beyond}


# ----------------------------------------------------------------------------------------------------------------- writing


def write_file(path: Path, system: Any) -> None:
    """Writes one safetensors file under the original names, in the dtypes that were loaded; what tensors do not say goes into
    its header. InputError for networks that have no such names."""
    layout, config, family = system.about.layout, system.config, family_to_write(system)
    codec = autoencoder.shiftless(system.networks["autoencoder"], layout.get("vae") or {})
    networks = {**system.networks, "autoencoder": codec}
    configs = {
        name: networks[name].config.model_dump(mode="json") for name in (*ENCODERS[family], "network", "autoencoder")
    }
    public = autoencoder.public_config(networks["autoencoder"], system.about.size)
    fields = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    side = system.shape(system.about.size)[1:]
    header = {
        "family": family, "networks": configs, "size": list(side), "zeros_for_empty": config.zeros_for_empty,
        "scheduler": layout.get("scheduler") or schedulers.written(config.process, config.sampling),
        "latents": {name: public[name] for name in fields if public[name] is not None},
    }  # fmt: skip
    said = {"format": "pt", HEADER: json.dumps(header, sort_keys=True)}
    write_tensors(path, public_tensors(networks, family, layout), said)


def family_to_write(system: Any) -> str:
    """ "1", "2" or "xl": how a model's single file is named. InputError where there is no such."""
    unet, encoders = system.config.network, system.config.encoders
    if system.config.autoencoder is None or "autoencoder" not in system.networks:
        raise InputError("a single file of Stable Diffusion holds its autoencoder, which this model has not")
    if unet.span or unet.time_scale != 1 or not unet.middle:
        raise InputError(
            "this network is no Stable Diffusion of the original authors, so there is no single file of it"
        )
    if lost := [name for name in encoders if name not in system.networks] or not encoders:
        raise InputError(
            f"a single file of Stable Diffusion holds its text encoders; this model came without {lost or 'any'}"
        )
    loaded = system.about.layout.get("family")
    if loaded:
        return str(loaded)
    if unet.added_width:
        if set(encoders) != {"text_encoder", "text_encoder_2"}:
            raise InputError(
                "a single file of Stable Diffusion XL holds two text encoders; of the refiner there is none here"
            )
        return "xl"
    return "2" if encoders["text_encoder"].model.activation == "gelu" else "1"


def public_tensors(networks: Mapping[str, Any], family: str, layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file of these networks, under the original names and in the dtypes that they were stored in."""
    unet, codec = networks["network"], networks["autoencoder"]
    own = as_stored(unet.state_dict(), (layout.get("unet") or {}).get("dtypes"))
    found = {UNET + old: own[ours] for ours, old in unet_names(own, unet.config).items()}
    found |= codec_tensors(codec, layout.get("vae"))
    for name, encoder in ENCODERS[family].items():
        dtypes = {
            n if n == "" or n.startswith(("text_model.", "text_projection")) else f"text_model.{n}": kind
            for n, kind in ((layout.get(name) or {}).get("dtypes") or {}).items()
        }
        own = as_stored(networks[name].state_dict(), dtypes)
        table = OPEN_CLIP if encoder.open_clip else (Moved("{path}", ("{path}",)),)
        found |= {encoder.prefix + n: v for n, v in taken_apart(own, places(own, table)).items()}
    return found
