"""ControlNet: Stable Diffusion that keeps to a picture's edges, pose, depth, ... (Zhang, Rao and Agrawala 2023).

The model that paints stays locked. Beside it learns a copy of its first half, which sees a control map as well as the noised
latents, and whose outputs enter the locked half through convolutions that begin at zero: at first nothing changes, and the locked
weights never do.

    y = F(x; theta) + Z( F(x + Z(c)); theta_c )           eq. 2          networks/controlnet.py
    E || eps - eps_theta(z_t, t, words, c) ||^2           eq. 5          objectives/denoising.py
    half of the words hidden in training                  section 3.3    `text_dropout`
    several at once: what they add is summed              section 3.5    `residuals`
    c on the conditional branch alone, deep levels first  section 3.4, appendix   `guess_mode`
    c, a picture in [0, 1]                                section 3.2    conditioning/control/, systems/controls.py

Conditions are those of Stable Diffusion, and for each ControlNet a `hint` (n, c, y, x), what its map is to it, made once a call;
`control_scales` (n, nets) weighs them. A net whose weight is 0 is not asked, so that a call with scale 0 is the locked model's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field, field_validator
from torch import Tensor, nn

from ..conditioning import control as kinds
from ..errors import InputError
from ..formats import controlnet as public
from ..formats.folders import PublicFolder
from ..interfaces import Batch, Denoise, Draw, Objective, Point, Precomputed, Prediction, Stage
from ..networks.controlnet import ControlNetConfig as NetworkConfig
from ..networks.controlnet import summed
from ..networks.text_unet import Residuals, TextUNetConfig
from ..objectives.denoising import denoising, held_out_bins
from ..samplers.denoiser import Conditions
from . import controls
from .base import About, Request, System
from .diffusion import Given
from .stable_diffusion import StableDiffusion, StableDiffusionConfig

LINES = "lines"  # the drawing's own lines, which the data have beside the picture; every other kind is made from the picture
CONTROL = "control"  # a batch's control maps, where they are computed once
KEPT_BELOW = 128 * 128  # pixels of a training picture up to which its map is computed once and kept on the disk
OTHER = "loss other control"  # the held-out loss with each picture's map exchanged for another's


class ControlConfig(BaseModel, frozen=True, extra="forbid"):
    """What control maps a model learns from."""

    kind: str = Field(LINES, description="lines: the data's own line art; or a kind of `hwaga control`")
    options: dict[str, Any] = Field({}, description="of that kind")

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        needed = [name for name, kind in kinds.KINDS.items() if any(option.needed for option in kind.options.values())]
        able = [LINES, *(name for name in kinds.KINDS if name not in needed)]
        if value not in able:
            raise ValueError(f"kind={value!r} cannot be made of training pictures alone; {', '.join(able)} can")
        return value


class ControlNetConfig(StableDiffusionConfig, frozen=True, extra="forbid"):
    controlnet: NetworkConfig = NetworkConfig()
    more_controlnets: tuple[NetworkConfig, ...] = Field((), description="further ones beside it")
    control: ControlConfig = ControlConfig()
    text_dropout: float = Field(0.5, ge=0, le=1, description="share of training pictures whose words are hidden")

    @property
    def nets(self) -> dict[str, NetworkConfig]:
        """The ControlNets by name: controlnet, controlnet_1, ..."""
        return {name_of(i): config for i, config in enumerate((self.controlnet, *self.more_controlnets))}


def name_of(i: int) -> str:
    return "controlnet" if i == 0 else f"controlnet_{i}"


def ignored(rows: Sequence[Mapping[str, float]]) -> str | None:
    """A control that makes no difference: with another picture's map the model does as well as with the right one."""
    heard = [
        (r["held_out.loss"], r[f"held_out.{OTHER}"]) for r in rows if f"held_out.{OTHER}" in r and "held_out.loss" in r
    ]
    if len(heard) > 2 and all(other <= given for given, other in heard[-2:]):
        return (
            f"the control is not looked at: held-out loss {heard[-1][0]:.5g} with the right map, {heard[-1][1]:.5g} with another "
            "picture's; early in training that is usual, later a higher training.learning_rate helps"
        )
    scores = [r for r in rows if "score.control_given" in r]
    if scores and scores[-1]["score.control_given"] <= scores[-1]["score.control_floor"]:
        given, floor = scores[-1]["score.control_given"], scores[-1]["score.control_floor"]
        return f"the control is not followed: {given:.3f} of it is found in what was painted, {floor:.3f} of a shuffled one"
    return None


def check_fits(base: TextUNetConfig, name: str, net: nn.Module, source: str) -> None:
    """InputError where a network is no ControlNet, or one for another model: says by which of its sizes."""
    config: Any = net.config
    if not isinstance(config, NetworkConfig):
        raise InputError(f"components[{name!r}]={source}: {type(net).__name__} is no ControlNet")
    for key, what in (("text_width", "takes texts of width"), ("added_width", "is told sizes and pooled texts of width"),
                      ("channels", "has the widths"), ("blocks", "has residual blocks a level:")):  # fmt: skip
        theirs, ours = getattr(config, key), getattr(base, key)
        if theirs != ours:
            raise InputError(
                f"components[{name!r}]={source}: a ControlNet for another model: it {what} {theirs}, this model {ours}"
            )


class ControlNet(StableDiffusion):
    """Networks: those of a StableDiffusion, locked, and `controlnet`, `controlnet_1`, ...; alone it waits for a base."""

    name, title, year = "controlnet", "ControlNet", 2023
    paper = "Adding Conditional Control to Text-to-Image Diffusion Models (arXiv:2302.05543)"
    formats: ClassVar[tuple[str, ...]] = ("diffusers", "single")
    may_lack: ClassVar[tuple[str, ...]] = (*StableDiffusion.may_lack, "network")
    takes: ClassVar[tuple[str, ...]] = (*StableDiffusion.takes, "control", "control_scale")
    own: ClassVar[Mapping[str, str]] = {
        **StableDiffusion.own,
        "control_kind": "control= are pictures, of which a map of this kind is made (hwaga control lists them); a list: one a map",
        "control_options": "options of that kind, as {name: value}; a list: one a map",
        "control_start": "share of the steps before which the control has no influence: 0; a list: one a ControlNet",
        "control_end": "share of the steps after which it has none: 1; a list: one a ControlNet",
        "guess_mode": "true: the control leads alone, also without a prompt; strongest at the lowest resolution",
    }
    Config = ControlNetConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: Any) -> dict[str, Any]:
        return {**super().network_configs(config), **config.nets}

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        config = super().complete(config, size, classes)
        base, net = TextUNetConfig(**config["network"]), dict(config.get("controlnet") or {})
        codec = config.get("autoencoder")
        if "hint_channels" not in net:  # as many halvings as the autoencoder has
            levels = 1 if codec is None else len(codec.get("channels", ())) or 4
            net["hint_channels"] = NetworkConfig().hint_channels[:levels]
        return {**config, "controlnet": NetworkConfig.of(base, **net).model_dump(mode="json")}

    @classmethod
    def create(cls, config: Mapping[str, Any], **rest: Any) -> ControlNet:  # type: ignore[override]
        """A ControlNet begins as a copy of the U-Net that it is to control."""
        system = super().create(config, **rest)
        for name in system.nets:
            if name not in (rest.get("components") or {}):
                system.networks[name].copy(system.networks["network"])
        return system

    @classmethod
    def over(
        cls, base: System, nets: Mapping[str, nn.Module], layouts: Mapping[str, Any], source: str = ""
    ) -> ControlNet:
        """A Stable Diffusion with ControlNets beside it. InputError where one is for another model."""
        for name, net in nets.items():
            check_fits(base.config.network, name, net, source)
        before = [base.networks[name] for name in base.config.nets] if isinstance(base, ControlNet) else []
        every = [*before, *nets.values()]
        told = base.config.model_dump(exclude={"controlnet", "more_controlnets"})
        first, *more = (net.config for net in every)
        config = cls.checked({**told, "controlnet": first, "more_controlnets": tuple(more)})
        about = base.about.model_copy(update={"layout": {**base.about.layout, **layouts}})
        held = {name: network for name, network in base.networks.items() if not name.startswith("controlnet")}
        return cls(config, {**held, **{name_of(i): net for i, net in enumerate(every)}}, about)

    @classmethod
    def alone(cls, found: public.Found, dtype: torch.dtype, device: torch.device) -> ControlNet:
        """A ControlNet without the model that it is for: it can be written in another layout, or put beside that model."""
        fields = {name: getattr(found.config, name) for name in TextUNetConfig.model_fields}
        base = TextUNetConfig(**{**fields, "out_channels": found.config.in_channels})
        codec = {"latent_channels": found.config.in_channels}
        config = cls.checked({"network": base, "controlnet": found.config, "autoencoder": codec})
        about = About(size=(512, 512), layout={"controlnet": found.layout})
        return cls(config, {"controlnet": found.network(dtype, device)}, about)

    def take(self, part: str, network: Any, source: str) -> None:
        """Another ControlNet may have another hint network."""
        if part not in self.config.nets:
            return super().take(part, network, source)
        check_fits(self.config.network, part, network, source)
        first, *more = ({**self.config.nets, part: network.config}).values()
        self.config = self.config.model_copy(update={"controlnet": first, "more_controlnets": tuple(more)})
        self.networks[part] = network

    @property
    def nets(self) -> dict[str, Any]:
        """The ControlNets, by name."""
        return {name: self.networks[name] for name in self.config.nets}

    # --------------------------------------------------------------------------------------------------- folders and files

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> ControlNet:
        """A pipeline's folder with one or more ControlNets (`controlnet`, `controlnet_1`, ...), or one ControlNet's folder."""
        if not (path / "unet").is_dir():
            return cls.alone(public.read_component(PublicFolder(path, "controlnet")), dtype, device)
        base, folder = StableDiffusion.from_diffusers(path, dtype, device), PublicFolder(path, "unet")
        left_out = {n: at for n, at in base.about.layout.get("left_out", {}).items() if not n.startswith("controlnet")}
        found: dict[str, public.Found] = {}
        while (path / name_of(len(found))).is_dir():
            found[name_of(len(found))] = public.read_component(folder, name_of(len(found)))
        if not found:
            raise InputError(f"{path} has no folder 'controlnet', which its model_index.json names")
        layouts = {**{name: one.layout for name, one in found.items()}, "left_out": left_out}
        return cls.over(base, {name: one.network(dtype, device) for name, one in found.items()}, layouts, str(path))

    def to_diffusers(self, folder: Path) -> None:
        """Writes the public layout: of the whole pipeline, or of the ControlNet alone where that is all there is."""
        layout = self.about.layout
        if "network" not in self.networks:
            public.write_folder(folder, self.networks["controlnet"], layout.get("controlnet") or {})
            return
        super().to_diffusers(folder)
        for name, net in self.nets.items():
            public.write_folder(folder / name, net, layout.get(name) or {})
        public.write_index(folder, len(self.nets))

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> ControlNet:  # fmt: skip
        """An original file: the ControlNet alone, or (the first release) with all of Stable Diffusion."""
        found = public.read_file(path, tensors)
        if public.is_alone(tensors):
            return cls.alone(found, dtype, device)
        base = StableDiffusion.from_file(path, public.base_of(tensors), dtype, device, components)
        return cls.over(base, {"controlnet": found.network(dtype, device)}, {"controlnet": found.layout}, str(path))

    def to_file(self, path: Path) -> None:
        """The ControlNet alone, with the original authors' names; its base has a file of its own."""
        if len(self.nets) > 1:
            raise InputError(
                f"a single file holds one ControlNet, this model has {len(self.nets)}; format diffusers has room"
            )
        public.write_file(path, self.networks["controlnet"], self.about.layout.get("controlnet") or {})

    # ---------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        nets = self.nets
        for name, network in self.networks.items():
            network.requires_grad_(name in nets)
        objective = Objective("denoising", tuple(nets), self.loss)
        return [Stage("denoising", nets, [objective], tuple(nets), self.held_out, alarms=[ignored], shows=self.shown)]

    def held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """The loss by time, and what it is when every picture has another's control: that shows whether maps are looked at."""
        given, x0 = self.conditions(batch), self.seen(batch, draw)
        other = {name: value.roll(1, 0) if name.startswith("hint") else value for name, value in given.items()}
        found = held_out_bins(lambda part: denoising(self.compute, self.process, x0, given, draw, part))
        swapped = held_out_bins(lambda part: denoising(self.compute, self.process, x0, other, draw, part))
        return {**found, OTHER: swapped["loss"]}

    def data_extras(self) -> tuple[str, ...]:
        return ("line_art",) if self.config.control.kind == LINES else ()

    def precomputed(self) -> Mapping[str, Precomputed]:
        """Control maps of small pictures are made once."""
        how, (height, width) = self.config.control, self.about.size
        if how.kind == LINES or height * width > KEPT_BELOW:
            return super().precomputed()
        key = hashlib.sha256(json.dumps([1, how.kind, how.options], sort_keys=True).encode()).hexdigest()
        channels = 1 if kinds.KINDS[how.kind].grey else 3
        made = Precomputed(lambda: key, (channels, height, width), lambda image: self.made(image)[:, :channels])
        return {**super().precomputed(), CONTROL: made}

    def made(self, image: Tensor) -> Tensor:
        """The control maps (n, 3, h, w) of training pictures in [-1, 1]."""
        how = self.config.control
        return torch.stack([kinds.make(how.kind, one, **how.options) for one in (image / 2 + 0.5).clamp(0, 1)]).to(
            image
        )

    def maps(self, batch: Batch) -> Tensor:
        """The control maps (n, 3, h, w) of a batch of training, in [0, 1]."""
        if CONTROL in batch.extra:
            held: Tensor = batch.extra[CONTROL]
            return held.expand(-1, 3, -1, -1)
        if self.config.control.kind == LINES:
            lines: Tensor = batch.extra["line_art"]  # black on white; public maps of lines are white on black
            return 1 - lines
        return self.made(batch.image)

    @torch.no_grad()
    def shown(self, batch: Batch) -> Tensor:
        """Control maps of held-out pictures, each beside what is painted by it."""
        maps, words = self.maps(batch).cpu(), list(batch.caption or [""] * len(batch))
        painted = self.sample(prompt=words, control=maps, seed=0, output="tensor", progress=False)
        return torch.stack([maps, painted], dim=1).flatten(0, 1) * 2 - 1

    # ---------------------------------------------------------------------------------------- what the networks are told

    def conditions(self, given: Given) -> dict[str, Tensor]:
        """Those of Stable Diffusion; `hint`, `hint_1`, ... and `control_scales`, (n, nets)."""
        told = super().conditions(given)
        for i, (name, net) in enumerate(self.nets.items()):
            maps = self.map(given, i) if isinstance(given, Request) else self.maps(given)
            y, x = self.shape((maps.shape[2], maps.shape[3]) if isinstance(given, Batch) else given.size)[1:]
            factor = net.config.map_factor
            hint = net.hint(controls.resized(maps.to(self.device), (y * factor, x * factor)))
            told[name.replace("controlnet", "hint")] = hint.expand(len(given), -1, -1, -1)
        if isinstance(given, Request):  # a step of training weighs all with 1
            told["control_scales"] = self.scales(given).expand(len(given), -1)
            if given.inputs.get("guess_mode", False):
                told["guess"] = torch.ones(len(given), device=self.device)
        return told

    def null(self, conditions: Conditions, given: Given) -> dict[str, Tensor]:
        """The same without words; in guess mode, and where a net speaks by means over all places, without that control."""
        told = super().null(conditions, given)
        if "control_scales" in told:
            both = [float("guess" not in told and not config.pooled) for config in self.config.nets.values()]
            told["control_scales"] = told["control_scales"] * torch.tensor(both).to(told["control_scales"])
        return told

    def scales(self, request: Request) -> Tensor:
        """(1, nets): the weight of each ControlNet, 0 outside its share of the steps."""
        one = self.each("control_scale", request, 1.0)
        one = [scale * on for scale, on in zip(one, request.inputs.get("control_on", [1] * len(one)), strict=True)]
        return torch.tensor([one], dtype=torch.float32, device=self.device)

    def map(self, request: Request, i: int) -> Tensor:
        """The control map of ControlNet i, (1, 3, h, w), or (n, 3, h, w) where each picture of the call has its own."""
        given, name = self.given(request)[i], "control" if len(self.nets) == 1 else f"control[{i}]"
        kind, options = self.each("control_kind", request, None)[i], self.each("control_options", request, None)[i]
        if getattr(given, "ndim", 0) == 4 and len(given) == request.total > 1:
            every = [given[k] for k in request.pictures]
        else:
            every = [given]
        if kind is None:
            return torch.cat([controls.ready(name, one, request.size) for one in every])
        return torch.cat([controls.map_from(one, kind, options, request.size, name) for one in every])

    def given(self, request: Request) -> list[Any]:
        """What was given as `control`, one a ControlNet."""
        control = request.inputs["control"]
        return list(control) if isinstance(control, list | tuple) else [control]

    def each(self, name: str, request: Request, default: Any) -> list[Any]:
        """One value a ControlNet of a keyword that has one for all, or a list."""
        value = request.inputs.get(name, default)
        return list(value) if isinstance(value, list | tuple) else [value] * len(self.nets)

    def compute(self, x: Tensor, time: Tensor, beside: Tensor | None = None, **conditions: Any) -> Tensor:
        """The raw prediction of the locked network, with what the ControlNets add."""
        hints = {name: conditions.pop(name.replace("controlnet", "hint")) for name in self.config.nets}
        scales, guess = conditions.pop("control_scales", None), conditions.pop("guess", None) is not None
        conditions["residuals"] = self.residuals(x, time, hints, scales, guess, conditions)
        return super().compute(x, time, beside, **conditions)

    def residuals(
        self, x: Tensor, time: Tensor, hints: Mapping[str, Tensor], scales: Tensor | None, guess: bool,
        told: Mapping[str, Any],
    ) -> Residuals | None:  # fmt: skip
        """What all ControlNets add together; None where all weights are 0. Pictures of weight 0 are not looked at.

        scales: (n, nets); None weighs all with 1.
        """
        said: list[Residuals] = []
        own = {key: told[key] for key in ("text", "pooled", "ids") if key in told}
        for i, (name, hint) in enumerate(hints.items()):
            net, rows = self.networks[name], [1.0] if scales is None else scales[:, i].tolist()
            scale, entering = (
                next((row for row in rows if row), 0.0),
                x.to(next(self.networks[name].parameters()).dtype),
            )
            if not scale:
                continue
            if all(rows):
                said.append(net(entering, time, hint=hint, scale=scale, guess=guess, **own))
                continue
            at = torch.tensor(rows, device=x.device).nonzero().flatten()
            some = {key: value[at] for key, value in own.items()}
            added = net(entering[at], time[at], hint=hint[at], scale=scale, guess=guess, **some)
            said.append(_spread(added, at, len(x)))
        return summed(said) if said else None

    # -------------------------------------------------------------------------------------------------------- how it paints

    def asked(self, request: Request) -> Denoise:
        """The denoiser of a call; where a ControlNet speaks only in a part of it, one for each part."""
        starts, ends = self.each("control_start", request, 0.0), self.each("control_end", request, 1.0)
        if not any(starts) and all(end == 1 for end in ends):
            return super().asked(request)
        steps = int(request.steps * self.strength(request) + 1e-9) if self.from_picture(request) else request.steps
        times = [point.t for point in self.grid(request)[-steps - 1 : -1]]
        parts: dict[tuple[bool, ...], Denoise] = {}

        def denoise(x: Tensor, at: Point, to: Point) -> Prediction:
            i = max(0, sum(t >= at.t - 1e-9 for t in times) - 1)  # the step that the point lies in
            share = [(i / len(times), (i + 1) / len(times))] * len(starts)
            on = tuple(not (a < s or b > e) for (a, b), s, e in zip(share, starts, ends, strict=True))
            if on not in parts:
                parts[on] = super(ControlNet, self).asked(replace(request, inputs={**request.inputs, "control_on": on}))
            return parts[on](x, at, to)

        return denoise

    def from_picture(self, request: Request) -> bool:
        return "image" in request.inputs and "strip" not in request.inputs and not self.begins_at_noise(request)

    def preview(self, n: int, seed: int = 0) -> Tensor:
        """Pictures of a fixed seed without any control: a black map says nothing."""
        return self.sample(
            n=n, seed=seed, control=[torch.zeros(3, *self.about.size)] * len(self.nets), output="tensor", progress=False
        )

    def check(self, request: Request) -> None:
        if "network" not in self.networks:
            raise InputError(
                "this is a ControlNet alone, without the model that it controls; load that model with it: hwaga sample MODEL "
                "--component controlnet=THIS, or hwaga.load(MODEL, components={'controlnet': THIS})"
            )
        self.check_control(request)
        super().check(request)

    def check_control(self, request: Request) -> None:
        """InputError for control maps that are missing, too many or none; for weights and parts of the steps that are none."""
        count, names = len(self.nets), ", ".join(self.nets)
        if "control" not in request.inputs:
            raise InputError(
                "control= is needed: the control map of each ControlNet, or a picture of which control_kind= makes one"
            )
        if len(given := self.given(request)) != count:
            raise InputError(
                f"control= has {len(given)} maps, but this model has {count} ControlNets ({names}); give one for each"
            )
        for name, low, high in (
            ("control_scale", -100.0, 100.0),
            ("control_start", 0.0, 1.0),
            ("control_end", 0.0, 1.0),
        ):
            values = self.each(name, request, 0.0)
            if len(values) != count:
                raise InputError(
                    f"{name}= has {len(values)} values, but this model has {count} ControlNets; give one, or {count}"
                )
            for value in values:
                if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                    raise InputError(f"{name}={value!r}: a number from {low:g} to {high:g} is needed")
        for start, end in zip(
            self.each("control_start", request, 0.0), self.each("control_end", request, 1.0), strict=True
        ):
            if start >= end:
                raise InputError(
                    f"control_start={start!r} is not before control_end={end!r}; the control would never speak"
                )
        if not isinstance(request.inputs.get("guess_mode", False), bool):
            raise InputError(f"guess_mode={request.inputs['guess_mode']!r}: true or false is needed")
        found, options = self.each("control_kind", request, None), self.each("control_options", request, None)
        if len(found) != count or len(options) != count:
            raise InputError(
                f"control_kind= and control_options= have one value, or one for each of {count} ControlNets"
            )
        for kind, one in zip(found, options, strict=True):
            if one is not None and (kind is None or not isinstance(one, Mapping)):
                raise InputError("control_options= are those of a control_kind=, as {name: value}; name the kind")
        for i in range(count):
            self.map(request, i)


def _spread(added: Residuals, rows: Tensor, n: int) -> Residuals:
    """Residuals of some pictures, zeros for the others."""

    def whole(value: Tensor) -> Tensor:
        return value.new_zeros(n, *value.shape[1:]).index_copy(0, rows, value)

    return [whole(value) for value in added[0]], whole(added[1])
