"""What a painter beside which ControlNets stand is told of control maps: of a call, or of a batch of training, to tensors.

    conditions, null   beside those of the words, for each net a `hint`, what its map is to it, and `control_scales`
    compute            the locked network's prediction with what the nets add           eq. 2 of Zhang et al. 2023
    residuals          several at once: a sum, each with its weight                     section 3.4
    asked              a net's share of the steps                                       the published code
    maps               control maps of training pictures

A map and its hint do not change while a picture is painted and are made once a call. A net whose weight is 0 is not asked, so that
a call with scale 0 is the locked model's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import InputError
from ..interfaces import Batch, Denoise, Point, Prediction
from . import control as kinds
from .control.ready import exact
from .controlnet import ControlNet, summed

LINES = "lines"  # the drawing's own lines, which the data have beside the picture; every other kind is made from the picture
CONTROL = "control"  # a batch's control maps, where they are computed once
OWN = {
    "control_kind": "control= are pictures, of which a map of this kind is made (hwaga control lists them); a list: one a map",
    "control_options": "options of that kind, as {name: value}; a list: one a map",
    "control_start": "share of the steps before which the control has no influence: 0; a list: one a ControlNet",
    "control_end": "share of the steps after which it has none: 1; a list: one a ControlNet",
    "guess_mode": "true: the control leads alone, also without a prompt; strongest at the lowest resolution",
}


class Controlled:
    """The part of a system that is about control: stands before a Diffusion, whose `networks`, `config` and shapes it looks at."""

    networks: dict[str, Any]
    config: Any
    about: Any

    @property
    def nets(self) -> dict[str, ControlNet]:
        """The ControlNets by name: controlnet, controlnet_1, ..."""
        return {name: network for name, network in self.networks.items() if name.startswith("controlnet")}

    # ------------------------------------------------------------------------------------------- what the networks are told

    def conditions(self, given: Any) -> dict[str, Tensor]:
        """Those of the words; `hint`, `hint_1`, ... (n, c, y, x) and, of a call, `control_scales` (n, nets)."""
        told: dict[str, Tensor] = super().conditions(given)  # type: ignore[misc]
        n, device = len(told["text"]), told["text"].device
        for i, (name, net) in enumerate(self.nets.items()):
            if isinstance(given, Batch):
                maps, size = self.maps(given), given.image.shape[2:]
            else:
                maps, size = self.map(given, i), given.size
            y, x = self.shape((size[0], size[1]))[1:]  # type: ignore[attr-defined]
            place = (y * net.config.map_factor, x * net.config.map_factor)
            maps = maps if tuple(maps.shape[2:]) == place else interpolate(maps, place, mode="area")
            told[name.replace("controlnet", "hint")] = net.hint(maps.to(device)).expand(n, -1, -1, -1)
        if not isinstance(given, Batch):  # a step of training weighs all with 1
            told["control_scales"] = self.scales(given).expand(n, -1).to(device)
            if given.inputs.get("guess_mode", False):
                told["guess"] = torch.ones(n, device=device)
        return told

    def null(self, conditions: Mapping[str, Tensor], given: Any) -> dict[str, Tensor]:
        """The same without words; in guess mode, and where a net speaks by means over all places, without that control."""
        told: dict[str, Tensor] = super().null(conditions, given)  # type: ignore[misc]
        if "control_scales" in told:
            both = [float("guess" not in told and not net.config.pooled) for net in self.nets.values()]
            told["control_scales"] = told["control_scales"] * torch.tensor(both).to(told["control_scales"])
        return told

    def scales(self, request: Any) -> Tensor:
        """(1, nets): the weight of each ControlNet, 0 outside its share of the steps."""
        one = self.each("control_scale", request, 1.0)
        one = [scale * on for scale, on in zip(one, request.inputs.get("control_on", [1] * len(one)), strict=True)]
        return torch.tensor([one], dtype=torch.float32)

    def each(self, name: str, request: Any, default: Any) -> list[Any]:
        """One value a ControlNet of a keyword that has one for all, or a list."""
        value = request.inputs.get(name, default)
        return list(value) if isinstance(value, list | tuple) else [value] * len(self.nets)

    def compute(self, x: Tensor, time: Tensor, beside: Tensor | None = None, **conditions: Any) -> Tensor:
        """The raw prediction of the locked network, with what the ControlNets add. What lies beside x they do not see."""
        hints = {name: conditions.pop(name.replace("controlnet", "hint")) for name in self.nets}
        scales, guess = conditions.pop("control_scales", None), conditions.pop("guess", None) is not None
        conditions["residuals"] = self.residuals(x, time, hints, scales, guess, conditions)
        return super().compute(x, time, beside, **conditions)  # type: ignore[misc,no-any-return]

    def residuals(
        self, x: Tensor, time: Tensor, hints: Mapping[str, Tensor], scales: Tensor | None, guess: bool,
        told: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """What all ControlNets add together; None where all weights are 0. Pictures of weight 0 are not looked at.

        scales: (n, nets); None weighs all with 1.
        """
        said = []
        own = {key: told[key] for key in ("text", "pooled", "ids") if key in told}
        for i, (name, hint) in enumerate(hints.items()):
            net, rows = self.networks[name], [1.0] if scales is None else scales[:, i].tolist()
            scale, entering = next((row for row in rows if row), 0.0), x.to(net.conv_in.weight.dtype)
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

    def asked(self, request: Any) -> Denoise:
        """The denoiser of a call; where a ControlNet speaks only in a part of it, one for each part."""
        starts, ends = self.each("control_start", request, 0.0), self.each("control_end", request, 1.0)
        plain = super().asked  # type: ignore[misc]
        if not any(starts) and all(end == 1 for end in ends):
            return plain(request)  # type: ignore[no-any-return]
        run = int(request.steps * self.strength(request) + 1e-9) if self.from_picture(request) else request.steps  # type: ignore[attr-defined]
        times = [point.t for point in self.grid(request)[-run - 1 : -1]]  # type: ignore[attr-defined]
        parts: dict[tuple[bool, ...], Denoise] = {}

        def denoise(x: Tensor, at: Point, to: Point) -> Prediction:
            i = max(0, sum(t >= at.t - 1e-9 for t in times) - 1)  # the step that the point lies in
            on = tuple(not (i / len(times) < a or (i + 1) / len(times) > b) for a, b in zip(starts, ends, strict=True))
            if on not in parts:
                parts[on] = plain(replace(request, inputs={**request.inputs, "control_on": on}))
            return parts[on](x, at, to)

        return denoise

    def from_picture(self, request: Any) -> bool:
        """Whether a walk begins at a noised picture."""
        return "image" in request.inputs and "strip" not in request.inputs and not self.begins_at_noise(request)  # type: ignore[attr-defined]

    # ----------------------------------------------------------------------------------------------------- maps of a call

    def map(self, request: Any, i: int) -> Tensor:
        """The control map of ControlNet i, (1, 3, h, w), or (n, 3, h, w) where each picture of the call has its own."""
        given, name = self.given(request)[i], "control" if len(self.nets) == 1 else f"control[{i}]"
        kind, options = self.each("control_kind", request, None)[i], self.each("control_options", request, None)[i]
        own = getattr(given, "ndim", 0) == 4 and len(given) == request.total > 1
        return torch.cat([
            self.map_of(name, one, kind, options, request.size)  # type: ignore[attr-defined]
            if kind is not None or (whole := exact(name, one, request.size)) is None else whole
            for one in ([given[k] for k in request.pictures] if own else [given])
        ])  # fmt: skip

    def given(self, request: Any) -> list[Any]:
        """What was given as `control`, one a ControlNet."""
        control = request.inputs["control"]
        return list(control) if isinstance(control, list | tuple) else [control]

    def check(self, request: Any) -> None:
        if "network" not in self.networks:
            raise InputError(
                "this is a ControlNet alone, without the model that it controls; load that model with it: hwaga sample MODEL "
                "--component controlnet=THIS, or hwaga.load(MODEL, components={'controlnet': THIS})"
            )
        self.check_control(request)
        super().check(request)  # type: ignore[misc]

    def check_control(self, request: Any) -> None:
        """InputError for control maps that are missing, too many or none; for weights and parts of the steps that are none."""
        count, names = len(self.nets), ", ".join(self.nets)
        if "control" not in request.inputs:
            learned = f" (it learned by {self.config.control.kind})" if self.about.trained else ""
            raise InputError(
                f"control= is needed: the control map of each ControlNet{learned}, or a picture of which control_kind= makes one"
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
        both = zip(self.each("control_start", request, 0.0), self.each("control_end", request, 1.0), strict=True)
        for start, end in both:
            if start >= end:
                raise InputError(f"control_start={start!r} is not before control_end={end!r}: it would never speak")
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

    # ------------------------------------------------------------------------------------------------- maps of a training batch

    def maps(self, batch: Batch) -> Tensor:
        """The control maps (n, 3, h, w) of a batch of training, in [0, 1]."""
        if CONTROL in batch.extra:
            held: Tensor = batch.extra[CONTROL]
            return held.expand(-1, 3, -1, -1)
        if self.config.control.kind == LINES:
            lines: Tensor = batch.extra["line_art"]  # black on white; public maps of lines are white on black
            return 1 - lines
        return self.made(batch.image)

    def made(self, image: Tensor) -> Tensor:
        """The control maps (n, 3, h, w) of training pictures in [-1, 1]."""
        how = self.config.control
        return torch.stack([kinds.make(how.kind, one, **how.options) for one in (image / 2 + 0.5).clamp(0, 1)]).to(
            image
        )


def _spread(added: Any, rows: Tensor, n: int) -> Any:
    """Residuals of some pictures, zeros for the others."""

    def whole(value: Tensor) -> Tensor:
        return value.new_zeros(n, *value.shape[1:]).index_copy(0, rows, value)

    return [whole(value) for value in added[0]], whole(added[1])
