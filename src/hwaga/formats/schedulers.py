"""`scheduler_config.json` of public folders: the process, and what a call that says nothing does with it.

A public scheduler is process, grid and sampler in one. Its file names the class and some fields; a field that it lacks has the
default of that class. When another sampler is asked for, fields that the file states hold for it too, as far as it has them, and
all others are its own class's: that is what diffusers does with `Other.from_config(pipeline.scheduler.config)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import InputError, first_mistake
from ..processes.flow import FlowConfig
from ..processes.gaussian import GaussianConfig
from ..samplers import SAMPLERS as KNOWN

SAMPLERS = {
    "DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "PNDMScheduler": "pndm", "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "euler", "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "HeunDiscreteScheduler": "heun", "DPMSolverMultistepScheduler": "dpm-solver++",
    "DPMSolverSinglestepScheduler": "dpm-solver++-single", "UniPCMultistepScheduler": "unipc", "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "flow-euler", "FlowMatchHeunDiscreteScheduler": "flow-heun",
}  # fmt: skip

_TABLE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
    "prediction_type": "epsilon",
}  # fmt: skip
_NARROW = {"beta_start": 0.00085, "beta_end": 0.012}
_CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_RESPACED = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_SNR = {"rescale_betas_zero_snr": False}
_FLOW_SIGMAS = {
    "use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential",
}  # fmt: skip
_DPM = {
    "solver_order": 2, **_THRESHOLD, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", **_RESPACED, **_FLOW_SIGMAS,
    "final_sigmas_type": "zero", "lambda_min_clipped": -math.inf, "variance_type": None,
}  # fmt: skip

DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {**_TABLE, "variance_type": "fixed_small", **_CLIPPED, **_THRESHOLD, **_LEADING, **_SNR},
    "DDIMScheduler": {**_TABLE, **_CLIPPED, "set_alpha_to_one": True, **_THRESHOLD, **_LEADING, **_SNR},
    "PNDMScheduler": {**_TABLE, "skip_prk_steps": False, "set_alpha_to_one": False, **_LEADING},
    "LMSDiscreteScheduler": {**_TABLE, **_RESPACED, **_LINSPACE},
    "EulerDiscreteScheduler": {
        **_TABLE, "interpolation_type": "linear", **_RESPACED, "sigma_min": None, "sigma_max": None, **_LINSPACE,
        "timestep_type": "discrete", **_SNR, "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_TABLE, **_LINSPACE, **_SNR},
    "HeunDiscreteScheduler": {**_TABLE, **_NARROW, **_RESPACED, **_CLIPPED, "clip_sample": False, **_LINSPACE},
    "DPMSolverMultistepScheduler": {
        **_TABLE, **_DPM, "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False, **_LINSPACE, **_SNR,
    },
    "DPMSolverSinglestepScheduler": {**_TABLE, **_DPM, "lower_order_final": False},
    "UniPCMultistepScheduler": {
        **_TABLE, "solver_order": 2, **_THRESHOLD, "predict_x0": True, "solver_type": "bh2", "lower_order_final": True,
        "disable_corrector": [], "solver_p": None, **_RESPACED, **_FLOW_SIGMAS, **_LINSPACE, "final_sigmas_type": "zero",
        **_SNR, "sigma_min": None, "sigma_max": None, "shift_terminal": None,
    },
    "LCMScheduler": {
        **_TABLE, **_NARROW, "beta_schedule": "scaled_linear", "original_inference_steps": 50, **_CLIPPED,
        "clip_sample": False, "set_alpha_to_one": True, **_THRESHOLD, **_LEADING, "timestep_scaling": 10.0, **_SNR,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None, **_RESPACED,
        "time_shift_type": "exponential", "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}  # fmt: skip
"""The fields of each class with their defaults, of diffusers 0.42."""

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
VARIANCES = {
    "fixed_small": "fixed-small", "fixed_large": "fixed-large", "learned": "learned", "learned_range": "learned-range",
}  # fmt: skip

ONLY: dict[str, tuple[Any, ...]] = {  # of which one value can be loaded
    "trained_betas": (None,), "interpolation_type": ("linear",), "timestep_type": ("discrete",), "sigma_min": (None,),
    "sigma_max": (None,), "use_beta_sigmas": (False, None), "use_lu_lambdas": (False,), "use_flow_sigmas": (False,),
    "lambda_min_clipped": (-math.inf, "-inf", "-Infinity"), "predict_x0": (True,), "disable_corrector": ([],),
    "solver_p": (None,), "invert_sigmas": (False,),
}  # fmt: skip

ALGORITHMS: dict[str, dict[str, Any]] = {
    "dpmsolver++": {}, "dpmsolver": {"predicts": "eps"}, "sde-dpmsolver++": {"stochastic": True},
}  # fmt: skip

Config = GaussianConfig | FlowConfig


def read(public: Mapping[str, Any], where: str) -> tuple[Config, dict[str, Any]]:
    """The process config, and the fields of `systems.diffusion.SamplingConfig`, of a public scheduler's config.

    InputError for a class or a setting that cannot be loaded, by name.
    """
    name = public.get("_class_name", "DDPMScheduler")
    if name not in SAMPLERS:
        raise InputError(f"{where}: scheduler {name!r} cannot be loaded; {', '.join(SAMPLERS)} can")
    stated = {key: value for key, value in public.items() if not key.startswith("_")}
    full = {**DEFAULTS[name], **stated}
    if name == "DPMSolverSinglestepScheduler" and full["algorithm_type"] == "dpmsolver":
        raise InputError(f"{where}: algorithm_type='dpmsolver' of {name} cannot be loaded; dpmsolver++ can")
    for key, values in ONLY.items():
        if key in DEFAULTS[name] and full[key] not in values:
            raise InputError(f"{where}: {key}={full[key]!r} cannot be loaded; leave it out")
    options: dict[str, dict[str, Any]] = {}
    for other, sampler in SAMPLERS.items():
        asked = {key: stated[key] for key in DEFAULTS[other] if key in stated}
        if found := _options(other, asked if other != name else {**DEFAULTS[name], **stated}, where):
            options[sampler] = found
    sampling: dict[str, Any] = {"sampler": SAMPLERS[name], "options": options}
    if name.startswith("Flow"):
        return FlowConfig(shift=1.0 if full.get("use_dynamic_shifting") else full["shift"]), sampling
    if "timestep_spacing" in stated:
        sampling["spacing"] = stated["timestep_spacing"]
    if "set_alpha_to_one" in stated:
        sampling["ends_at_data"] = stated["set_alpha_to_one"]
    clips = full.get("clip_sample", True)
    return _process(full, where), {
        **sampling, "offset": full.get("steps_offset", 0), "clip": full.get("clip_sample_range", 1.0) if clips else None,
    }  # fmt: skip


def _process(full: Mapping[str, Any], where: str) -> GaussianConfig:
    variance = full.get("variance_type") or "fixed_small"
    for key, value, known in (
        ("beta_schedule", full["beta_schedule"], SCHEDULES), ("prediction_type", full["prediction_type"], PREDICTIONS),
        ("variance_type", variance, VARIANCES),
    ):  # fmt: skip
        if value not in known:
            raise InputError(f"{where}: {key}={value!r} cannot be loaded; {', '.join(known)} can")
    try:
        return GaussianConfig(
            timesteps=full["num_train_timesteps"], schedule=SCHEDULES[full["beta_schedule"]],
            beta_start=full["beta_start"], beta_end=full["beta_end"], predicts=PREDICTIONS[full["prediction_type"]],
            variance=VARIANCES[variance], zero_terminal_snr=full.get("rescale_betas_zero_snr", False),
        )  # fmt: skip
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


def _options(name: str, stated: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A class's further options, of the fields that are given for it."""
    found: dict[str, Any] = {}
    sampler, get = SAMPLERS[name], stated.get
    if name in ("HeunDiscreteScheduler", "LCMScheduler") and not get("clip_sample", False):
        found["clip"] = None  # the only two classes that have the field and do not clip unless told
    if get("thresholding"):
        found |= {"threshold": get("dynamic_thresholding_ratio", 0.995), "clip": get("sample_max_value", 1.0)}
    if get("use_karras_sigmas"):
        found["karras"] = True
    if get("use_exponential_sigmas"):
        found["exponential"] = True
    if get("final_sigmas_type", "zero") == "sigma_min":
        found["ends_at_data"] = False
    if get("solver_order", 2) != 2:
        found["order"] = get("solver_order")
    if sampler in ("dpm-solver++", "dpm-solver++-single"):
        if get("solver_type") == "heun":
            found["solver_type"] = "heun"
        algorithm = get("algorithm_type", "dpmsolver++")
        if algorithm not in ALGORITHMS:
            raise InputError(f"{where}: algorithm_type={algorithm!r} cannot be loaded; {', '.join(ALGORITHMS)} can")
        found |= {key: value for key, value in ALGORITHMS[algorithm].items() if key in KNOWN[sampler].own}
    if sampler == "dpm-solver++" and get("euler_at_final"):
        found["euler_at_final"] = True
    if sampler in ("dpm-solver++", "unipc") and not get("lower_order_final", True):
        found["lower_order_final"] = False
    if sampler == "unipc" and get("solver_type") == "bh1":
        found["solver_type"] = "bh1"
    if sampler == "pndm" and not get("skip_prk_steps", False):
        found["runge_kutta"] = True
    if sampler == "lcm":
        found |= {"timestep_scaling": get("timestep_scaling", 10.0)} if get("timestep_scaling", 10.0) != 10.0 else {}
        found |= {"student_steps": s} if (s := get("original_inference_steps", 50)) != 50 else {}
    if sampler == "flow-euler":
        found |= {"stochastic": True} if get("stochastic_sampling") else {}
        found |= {"terminal": get("shift_terminal")} if get("shift_terminal") else {}
    if sampler.startswith("flow") and not get("use_dynamic_shifting"):
        found["spacing"] = "linspace"
    return found


def written(process: Any, sampling: Any) -> dict[str, Any]:
    """The public scheduler config of ours: what `read` gives back as it was. InputError where there is no public class."""
    name = next((cls for cls, sampler in SAMPLERS.items() if sampler == sampling.sampler), None)
    if name is None:
        raise InputError(
            f"no public scheduler samples as {sampling.sampler} does; choose one of {', '.join(SAMPLERS.values())}"
        )
    full, options = dict(DEFAULTS[name]), sampling.options.get(sampling.sampler, {})
    if (process.kind == "flow") != name.startswith("Flow"):
        raise InputError(
            f"no public scheduler walks a {process.kind} process by {sampling.sampler}; choose another sampler"
        )
    if process.kind == "flow":
        full["shift"] = process.shift
    elif process.kind == "gaussian":
        back = lambda table, value: next(k for k, v in table.items() if v == value)  # noqa: E731
        full |= {
            "num_train_timesteps": process.timesteps, "beta_start": process.beta_start, "beta_end": process.beta_end,
            "beta_schedule": back(SCHEDULES, process.schedule), "prediction_type": back(PREDICTIONS, process.predicts),
        }  # fmt: skip
        if name == "DDPMScheduler" or (process.learns_variance and "variance_type" in full):
            full["variance_type"] = back(VARIANCES, process.variance)
        ours = {
            "clip_sample": sampling.clip is not None, "clip_sample_range": sampling.clip or 1.0,
            "steps_offset": sampling.offset, "rescale_betas_zero_snr": process.zero_terminal_snr,
        }  # fmt: skip
        if sampling.spacing is not None:
            ours["timestep_spacing"] = sampling.spacing
        if sampling.ends_at_data is not None:
            ours["set_alpha_to_one"] = sampling.ends_at_data
        full |= {key: value for key, value in ours.items() if key in full}
    else:
        raise InputError(f"no public scheduler has a {process.kind} process")
    return {"_class_name": name, **full, **_fields(options, full)}


def _fields(options: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """The public fields of a sampler's options."""
    found: dict[str, Any] = {
        "use_karras_sigmas": options.get("karras", False), "use_exponential_sigmas": options.get("exponential", False),
        "solver_order": options.get("order", 2), "euler_at_final": options.get("euler_at_final", False),
        "final_sigmas_type": "zero" if options.get("ends_at_data", True) else "sigma_min",
        "skip_prk_steps": not options.get("runge_kutta", False), "stochastic_sampling": options.get("stochastic", False),
        "original_inference_steps": options.get("student_steps", 50), "shift_terminal": options.get("terminal"),
        "timestep_scaling": options.get("timestep_scaling", 10.0),
    }  # fmt: skip
    for key in ("solver_type", "lower_order_final"):
        if key in options:
            found[key] = options[key]
    if "clip" in options and "threshold" not in options:
        found["clip_sample"] = options["clip"] is not None
    if "threshold" in options:
        found |= {
            "thresholding": True, "dynamic_thresholding_ratio": options["threshold"],
            "sample_max_value": options.get("clip") or 1.0,
        }  # fmt: skip
    asked = {key: value for key, value in options.items() if key in ("predicts", "stochastic")}
    found["algorithm_type"] = next((name for name, value in ALGORITHMS.items() if value == asked), "dpmsolver++")
    return {key: value for key, value in found.items() if key in full}


def dynamic_shift(public: Mapping[str, Any], tokens: int) -> float:
    """The shift of a flow's grid for a picture of so many tokens, where a scheduler shifts by size (Flux, Qwen-Image)."""
    full = {**DEFAULTS["FlowMatchEulerDiscreteScheduler"], **public}
    rise = (full["max_shift"] - full["base_shift"]) / (full["max_image_seq_len"] - full["base_image_seq_len"])
    mu = full["base_shift"] + rise * (tokens - full["base_image_seq_len"])
    return math.exp(mu) if full["time_shift_type"] == "exponential" else mu
