"""Samplers: pure functions of a denoiser, a start, a grid of points and a noise source.

SAMPLERS names them, with what each states of itself. A sampler has no state between calls, draws only from the noise source it
is handed, and gives each step to a callback. Where a grid's points lie is not the sampler's matter: processes/spacing.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..errors import InputError
from ..processes.spacing import SPACINGS, Rule
from .adams import lms, pndm
from .ddim import ddim, euler_ancestral
from .ddpm import ddpm
from .euler import euler
from .exponential import multistep, singlestep
from .heun import flow_heun, heun
from .lcm import lcm
from .ode import rk4
from .sde import langevin, predictor_corrector, reverse_sde
from .unipc import unipc

Check = Callable[[str, Any], None]


def within(least: float, most: float, none: bool = False) -> Check:
    """A check of an option: a number from least to most, or None where that is allowed."""

    def check(name: str, value: Any) -> None:
        if value is None and none:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise InputError(f"{name}={value!r}: a number from {least:g} to {most:g} is needed")

    return check


def whole(least: int, most: int) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"{name}={value!r}: a whole number from {least} to {most} is needed")

    return check


def one_of(*names: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in names:
            raise InputError(f"{name}={value!r}: one of {', '.join(names)} is needed")

    return check


def yes_or_no(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: true or false is needed")


def numbers(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{name}={value!r}: a list of numbers, falling from noise to data, is needed")


CLIP = {"clip": within(1e-6, 1e6, none=True), "threshold": within(0, 1, none=True)}
CHURN = {
    "churn": within(0, 1e6), "churn_from": within(0, math.inf), "churn_to": within(0, math.inf),
    "churn_noise": within(0, 10),
}  # fmt: skip
GRID = {
    "spacing": one_of(*SPACINGS), "offset": whole(0, 1000), "ends_at_data": yes_or_no, "times": numbers, "sigmas": numbers,
}  # fmt: skip
RESPACING = {"karras": yes_or_no, "exponential": yes_or_no}
FLOW = {"shift": within(1e-3, 1e3), "terminal": within(0, 0.999, none=True)}
ON_GRID = (*GRID, *RESPACING, *FLOW, "student_steps")
"""Options that say where the points lie; all others are the sampler's own."""


@dataclass(frozen=True)
class Sampler:
    """A sampler with what is to be known of it."""

    run: Callable[..., Tensor]
    title: str
    source: str
    order: int  # of convergence, of the deterministic form
    evaluations: int  # calls of the denoiser a step
    stochastic: Literal["no", "yes", "by option"] = "no"
    own: Mapping[str, Check] = field(default_factory=dict)  # options of the function itself
    rule: Rule = "indices"  # how its public class places points on a table (processes/spacing.py)
    ends_at_data: bool = True  # as its public class has it by default
    needs_signal: bool = False  # True: divides by alpha, so a path that begins at pure noise (a flow) is not for it
    asks_process: bool = False  # True: has a keyword `process`
    extra_evaluations: int = 0  # at the start, beside those of the steps

    options: Mapping[str, Check] = field(init=False)
    """All that a user may set by `sampler_options`."""

    def __post_init__(self) -> None:
        respacing = RESPACING if self.rule in ("ratios", "halves") else {}
        object.__setattr__(self, "options", {**self.own, **CLIP, **GRID, **respacing, **FLOW})


_ORDER = {"order": whole(1, 3)}
SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        ddpm, "ancestral sampling", "Ho et al. 2020", 1, 1, "yes",
        {"variance": one_of("fixed-small", "fixed-large", "learned")},
    ),
    "ddim": Sampler(ddim, "DDIM", "Song, Meng and Ermon 2021", 1, 1, "by option", {"eta": within(0, 1)}),
    "euler": Sampler(
        euler, "Euler", "Karras et al. 2022", 1, 1, "by option", {**CHURN, "stochastic": yes_or_no}, "ratios",
        asks_process=True,
    ),
    "euler-ancestral": Sampler(
        euler_ancestral, "Euler with ancestral noise", "Song et al. 2021; k-diffusion", 1, 1, "yes", rule="ratios"
    ),
    "heun": Sampler(
        heun, "Heun", "Karras et al. 2022", 2, 2, "by option", CHURN, "ratios", needs_signal=True, asks_process=True
    ),
    "lms": Sampler(
        lms, "linear multistep", "Adams and Bashforth; k-diffusion", 4, 1, "no", {"order": whole(1, 4)}, "ratios",
        needs_signal=True,
    ),
    "pndm": Sampler(
        pndm, "pseudo linear multistep", "Liu et al. 2022", 2, 1, "no", {"runge_kutta": yes_or_no}, ends_at_data=False,
        needs_signal=True, asks_process=True, extra_evaluations=1,
    ),
    "dpm-solver++": Sampler(
        multistep, "DPM-Solver++ multistep (2M, 3M, SDE)", "Lu et al. 2022b", 2, 1, "by option",
        {**_ORDER, "solver_type": one_of("midpoint", "heun", "polynomial"), "stochastic": yes_or_no, "lower_order_final": yes_or_no,
         "euler_at_final": yes_or_no, "predicts": one_of("x0", "eps")}, "halves",
    ),
    "dpm-solver++-single": Sampler(
        singlestep, "DPM-Solver++ singlestep (2S, 3S)", "Lu et al. 2022b", 2, 1, "by option",
        {**_ORDER, "solver_type": one_of("midpoint", "heun", "polynomial"), "stochastic": yes_or_no}, "halves",
    ),
    "unipc": Sampler(
        unipc, "UniPC", "Zhao et al. 2023", 3, 1, "no",
        {**_ORDER, "solver_type": one_of("bh1", "bh2"), "lower_order_final": yes_or_no, "corrector": yes_or_no}, "halves",
    ),
    "lcm": Sampler(
        lcm, "consistency sampling", "Song et al. 2023; Luo et al. 2023", 1, 1, "yes",
        {"timestep_scaling": within(1e-3, 1e6, none=True), "student_steps": whole(1, 1000)}, "student",
    ),
    "flow-euler": Sampler(
        euler, "Euler along straight paths", "Liu et al. 2023", 1, 1, "by option", {"stochastic": yes_or_no}, "ratios"
    ),
    "flow-heun": Sampler(
        flow_heun, "Heun along straight paths", "Liu et al. 2023; Heun 1900", 2, 2, "by option", CHURN, "ratios",
        asks_process=True,
    ),
    "rk4": Sampler(
        rk4, "Runge-Kutta of fourth order on the probability-flow ODE", "Song et al. 2021, eq. 13; Kutta 1901", 4, 4,
        rule="ratios", asks_process=True,
    ),
    "reverse-sde": Sampler(
        reverse_sde, "Euler-Maruyama on the reverse SDE", "Song et al. 2021, eq. 6", 1, 1, "yes", rule="ratios",
        needs_signal=True, asks_process=True,
    ),
    "predictor-corrector": Sampler(
        predictor_corrector, "ancestral steps corrected by Langevin dynamics", "Song et al. 2021, algorithms 2 to 5", 1, 2,
        "yes", {"corrections": whole(0, 100), "snr": within(1e-6, 10)}, rule="ratios",
    ),
    "langevin": Sampler(
        langevin, "annealed Langevin dynamics", "Song and Ermon 2019, algorithm 1", 1, 10, "yes",
        {"corrections": whole(1, 1000), "rate": within(1e-6, 2)}, rule="ratios", needs_signal=True, extra_evaluations=1,
    ),
}  # fmt: skip
"""name: sampler. Public schedulers by these names: formats/schedulers.py."""
