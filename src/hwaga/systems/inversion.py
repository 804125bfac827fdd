"""Editing from a picture's own noise: what DDIM would paint it from, found by walking backwards (samplers/inversion.py).

With `image=` and `inversion=` the start of a call is not drawn: it is the noise that, with the label `inversion_label` and no
guidance, leads to the picture. Painted from there with the same label it is the picture again; with another label or guidance,
its variation that keeps the composition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..interfaces import Point
from ..samplers.denoiser import denoiser
from ..samplers.inversion import EVALUATIONS, invert
from .base import Request
from .labels import class_number

if TYPE_CHECKING:
    from .diffusion import Diffusion

OWN = {
    "inversion": "true, or evaluations a step: paints from the noise that DDIM finds for the picture of image=",
    "inversion_label": "label of that picture; left out: the call's own",
}
WALKED_BACK = ("ddim", "euler", "flow-euler")
"""Samplers whose step is Euler's, which `invert` undoes."""


def inverted(system: Diffusion, request: Request, source: Tensor, grid: Sequence[Point]) -> Tensor:
    """What stands at the start of `grid` for the picture `source` (n, ...), as it is denoised."""
    label, inputs = request.label, request.inputs
    if "inversion_label" in inputs and label is not None:
        number = class_number(inputs["inversion_label"], system.label_count(), system.about.classes)
        label = torch.full_like(label, number)
    prompts = request.prompts
    if "inversion_prompt" in inputs:
        prompts = tuple(prompt._replace(text=inputs["inversion_prompt"]) for prompt in prompts)
    conditions = system.conditions(replace(request, label=label, prompts=prompts))
    said = inputs["inversion"]
    return invert(
        denoiser(system.compute, system.process, conditions),
        source,
        grid,
        evaluations=EVALUATIONS if said is True else said,
    )


def unclipped(request: Request) -> Request:
    """The request with x_0 left as the network says it: cutting it cannot be undone."""
    return replace(request, sampler_options={**request.sampler_options, "clip": None, "threshold": None})


def check_inversion(system: Diffusion, request: Request, value: Any) -> None:
    """InputError where there is nothing to invert, or where the way is not the same in both directions."""
    if "image" not in request.inputs:
        raise InputError("inversion= given without image=; it finds the noise of that picture")
    if value is not True and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000):
        raise InputError(f"inversion={value!r}: true, or a number of evaluations a step from 1 to 1000, is needed")
    if request.sampler not in WALKED_BACK:
        raise InputError(
            f"inversion= with sampler={request.sampler!r}: it undoes the steps of {', '.join(WALKED_BACK)}"
        )
    for name in ("eta", "churn", "stochastic"):
        if request.sampler_options.get(name):
            raise InputError(
                f"inversion= with {name}={request.sampler_options[name]!r}: random steps cannot be undone; use 0"
            )


def check_inversion_prompt(system: Diffusion, request: Request, value: Any) -> None:
    if "inversion" not in request.inputs:
        raise InputError("inversion_prompt= given without inversion=; it says what the picture is, not what is painted")
    if not isinstance(value, str):
        raise InputError(f"inversion_prompt={value!r}: text is needed")


def check_inversion_label(system: Diffusion, request: Request, value: Any) -> None:
    if "inversion" not in request.inputs:
        raise InputError("inversion_label= given without inversion=; it says what the picture is, not what is painted")
    if not system.label_count():
        raise InputError(f"inversion_label={value!r}: this model was trained without labels; leave it out")
    class_number(value, system.label_count(), system.about.classes)
