"""Every public scheduler, through its own config, against diffusers: one network, one start, the same draws.

What differs on purpose is written down in EXCEPTIONS, and in docs/samplers.md.
"""

import public
import pytest

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the peer
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
V = {"prediction_type": "v_prediction"}

CASES = [  # class, steps, config, options of the step
    ("DDPMScheduler", 10, {}, {}),
    ("DDPMScheduler", 7, {"variance_type": "fixed_large", **V}, {}),
    ("DDPMScheduler", 10, {"timestep_spacing": "linspace", "clip_sample": False, **COSINE}, {}),
    ("DDPMScheduler", 10, {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}, {}),
    ("DDIMScheduler", 10, {}, {}),
    ("DDIMScheduler", 7, {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, {}),
    ("DDIMScheduler", 10, {"timestep_spacing": "trailing", "prediction_type": "sample"}, {}),
    ("DDIMScheduler", 10, {**SD, **V, "clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {}),
    ("DDIMScheduler", 10, {"clip_sample_range": 0.8}, {"eta": 0.7}),
    ("DDIMScheduler", 10, {"set_alpha_to_one": False}, {"eta": 1.0}),
    ("PNDMScheduler", 10, {**SD, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}, {}),
    ("PNDMScheduler", 20, {"skip_prk_steps": True, "set_alpha_to_one": True}, {}),
    ("PNDMScheduler", 10, {}, {}),
    ("PNDMScheduler", 7, {**SD}, {}),
    ("LMSDiscreteScheduler", 10, {**SD}, {}),
    ("LMSDiscreteScheduler", 7, {"use_karras_sigmas": True, **V}, {}),
    ("LMSDiscreteScheduler", 10, {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    ("EulerDiscreteScheduler", 10, {**SD}, {}),
    ("EulerDiscreteScheduler", 7, {**SD, "timestep_spacing": "leading", "steps_offset": 1}, {}),
    ("EulerDiscreteScheduler", 10, {"timestep_spacing": "trailing", **V}, {}),
    ("EulerDiscreteScheduler", 10, {**SD, "use_karras_sigmas": True}, {}),
    ("EulerDiscreteScheduler", 10, {"use_exponential_sigmas": True, "prediction_type": "sample"}, {}),
    ("EulerDiscreteScheduler", 10, {**SD, "final_sigmas_type": "sigma_min"}, {}),
    ("EulerDiscreteScheduler", 10, {**SD, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {}),
    ("EulerAncestralDiscreteScheduler", 10, {**SD}, {}),
    ("EulerAncestralDiscreteScheduler", 7, {"timestep_spacing": "trailing", **V}, {}),
    ("HeunDiscreteScheduler", 10, {}, {}),
    ("HeunDiscreteScheduler", 7, {"use_karras_sigmas": True, **V}, {}),
    ("HeunDiscreteScheduler", 10, {"clip_sample": True, "timestep_spacing": "leading"}, {}),
    ("DPMSolverMultistepScheduler", 10, {}, {}),
    ("DPMSolverMultistepScheduler", 20, {**SD, **V}, {}),
    ("DPMSolverMultistepScheduler", 20, {"solver_order": 3, **SD}, {}),
    ("DPMSolverMultistepScheduler", 9, {"solver_order": 3}, {}),
    ("DPMSolverMultistepScheduler", 10, {"solver_order": 1}, {}),
    ("DPMSolverMultistepScheduler", 10, {"solver_type": "heun", "timestep_spacing": "leading", "steps_offset": 1}, {}),
    ("DPMSolverMultistepScheduler", 20, {"use_karras_sigmas": True, **SD}, {}),
    ("DPMSolverMultistepScheduler", 10, {"use_exponential_sigmas": True, **SD}, {}),
    ("DPMSolverMultistepScheduler", 10, {"timestep_spacing": "trailing", "euler_at_final": True}, {}),
    ("DPMSolverMultistepScheduler", 20, {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, {}),
    ("DPMSolverMultistepScheduler", 10, {"algorithm_type": "sde-dpmsolver++", **SD}, {}),
    ("DPMSolverMultistepScheduler", 16, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, {}),
    ("DPMSolverMultistepScheduler", 10, {"thresholding": True}, {}),
    ("DPMSolverMultistepScheduler", 16, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {}),
    ("DPMSolverMultistepScheduler", 16, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3}, {}),
    ("DPMSolverSinglestepScheduler", 10, {"lower_order_final": True}, {}),
    ("DPMSolverSinglestepScheduler", 9, {**SD}, {}),
    ("DPMSolverSinglestepScheduler", 10, {"solver_order": 3, "lower_order_final": True}, {}),
    ("DPMSolverSinglestepScheduler", 12, {"solver_order": 3, "solver_type": "heun", "lower_order_final": True, **V}, {}),
    ("DPMSolverSinglestepScheduler", 11, {"solver_type": "heun", "use_karras_sigmas": True, **SD}, {}),
    ("DPMSolverSinglestepScheduler", 10, {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}, {}),
    ("UniPCMultistepScheduler", 10, {}, {}),
    ("UniPCMultistepScheduler", 20, {**SD, "solver_order": 3}, {}),
    ("UniPCMultistepScheduler", 10, {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min", **V}, {}),
    ("UniPCMultistepScheduler", 10, {"solver_order": 1, "timestep_spacing": "trailing"}, {}),
    ("UniPCMultistepScheduler", 10, {"use_karras_sigmas": True, **SD}, {}),
    ("UniPCMultistepScheduler", 10, {"final_sigmas_type": "sigma_min", "timestep_spacing": "leading", "steps_offset": 1}, {}),
    ("LCMScheduler", 4, {}, {}),
    ("LCMScheduler", 3, {"set_alpha_to_one": False, "original_inference_steps": 100, "timestep_scaling": 1.0, **V}, {}),
    ("FlowMatchEulerDiscreteScheduler", 10, {}, {}),
    ("FlowMatchEulerDiscreteScheduler", 7, {"shift": 3.0}, {}),
    ("FlowMatchEulerDiscreteScheduler", 10, {"shift": 3.0, "use_karras_sigmas": True}, {}),
    ("FlowMatchEulerDiscreteScheduler", 10, {"shift_terminal": 0.02}, {}),
    ("FlowMatchEulerDiscreteScheduler", 5, {"stochastic_sampling": True}, {}),
    ("FlowMatchHeunDiscreteScheduler", 10, {"shift": 3.0}, {}),
]  # fmt: skip


EXCEPTIONS = [  # as CASES, and why ours does otherwise
    ("DDPMScheduler", 10, {"timestep_spacing": "trailing", "variance_type": "fixed_large"}, {},
     "draws noise in the last step too, where it does not end at index 0"),
    ("DDIMScheduler", 7, {"timestep_spacing": "linspace"}, {}, "steps by T // n, not to the next point, off the leading grid"),
    ("PNDMScheduler", 10, {"skip_prk_steps": True, "timestep_spacing": "linspace"}, {}, "steps by T // n, as DDIM"),
    ("PNDMScheduler", 10, {"skip_prk_steps": True, **V}, {}, "combines the predictions of v, each of another x, in place of eps"),
    ("EulerDiscreteScheduler", 10, {}, {"s_churn": 5.0}, "asks the network before the churn, not after it"),
    ("DPMSolverMultistepScheduler", 16, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, **SD}, {},
     "the third-order term of the SDE has a sign that leaves -1 where the step's length goes to 0"),
    ("UniPCMultistepScheduler", 10, {"solver_type": "bh1", "solver_order": 3}, {}, "gives NaN where it ends at sigma = 0"),
]  # fmt: skip


def distance(name, steps, config, step, monkeypatch):
    expected = public.theirs(name, steps, config, monkeypatch, **step)
    ours = {"churn": step["s_churn"]} if "s_churn" in step else step
    return (public.ours(name, steps, config, **ours) - expected).abs().max() / max(1.0, expected.abs().max().item())


@pytest.mark.parametrize(("name", "steps", "config", "step"), CASES)
def test_it_ends_where_the_public_scheduler_ends(name, steps, config, step, monkeypatch):
    rounding = 1e-4 if config.get("rescale_betas_zero_snr") else 1e-5  # float32 at sigma = 4096
    assert distance(name, steps, config, step, monkeypatch) < rounding


@pytest.mark.parametrize(("name", "steps", "config", "step", "why"), EXCEPTIONS)
def test_it_differs_where_the_public_one_is_left(name, steps, config, step, why, monkeypatch):
    """So that the list of exceptions stays true, and no longer than it must be."""
    assert not distance(name, steps, config, step, monkeypatch) < 1e-4, f"{name} no longer {why}"


@pytest.mark.parametrize(("name", "steps", "config", "step"), CASES)
def test_a_config_is_written_back_as_it_was_read(name, steps, config, step):
    from hwaga.formats import schedulers
    from hwaga.systems.diffusion import SamplingConfig

    process, sampling = schedulers.read({"_class_name": name, **config}, "scheduler_config.json")
    written = schedulers.written(process, SamplingConfig(**sampling))
    full = {**schedulers.DEFAULTS[name], **config}
    if name == "DPMSolverSinglestepScheduler":
        del full["lower_order_final"]  # which that class itself sets to True where it ends at the data
    assert {key: written[key] for key in full} == full


@pytest.mark.parametrize("name", sorted({case[0] for case in CASES}))
def test_the_defaults_are_those_of_the_public_class(name):
    import inspect

    from hwaga.formats import schedulers

    theirs = {
        k: p.default for k, p in inspect.signature(getattr(diffusers, name).__init__).parameters.items() if k != "self"
    }
    assert schedulers.DEFAULTS[name] == theirs
