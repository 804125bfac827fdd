"""DDIM inversion: the noise of a picture, and the picture of that noise."""

import math

import pytest
import tiny
import torch

from hwaga.errors import InputError
from hwaga.interfaces import Prediction
from hwaga.processes.continuous import VPConfig
from hwaga.processes.flow import FlowConfig
from hwaga.processes.gaussian import GaussianConfig
from hwaga.samplers.ddim import ddim
from hwaga.samplers.inversion import invert

S = 0.5
PROCESSES = [FlowConfig(), VPConfig(schedule="linear"), GaussianConfig(schedule="cosine")]


def exact(x, at, to):
    """The denoiser of data N(0, S^2)."""
    return Prediction(at.alpha * S**2 / (at.alpha**2 * S**2 + at.sigma**2) * x)


def draws(name, shape):
    raise AssertionError(f"{name}: nothing here is random")


@pytest.mark.parametrize("config", PROCESSES, ids=lambda c: c.kind)
def test_inversion_walks_the_ode_whose_solution_is_known(config):
    """x_t / sqrt(alpha^2 S^2 + sigma^2) stays the same along the path; the error falls with the step, in first order."""
    process, x0 = config.build(), torch.linspace(-1, 1, 8, dtype=torch.float64).view(8, 1)
    errors = []
    for steps in (50, 100):
        grid = process.grid(steps)
        start = grid[0]
        wanted = x0 / S * math.sqrt(start.alpha**2 * S**2 + start.sigma**2)
        errors.append(float((invert(exact, x0, grid, evaluations=20) - wanted).abs().max()))
    assert errors[1] < 0.08 and errors[1] < 0.65 * errors[0]


@pytest.mark.parametrize("config", PROCESSES, ids=lambda c: c.kind)
def test_what_was_inverted_is_painted_again(config):
    process, x0 = config.build(), torch.linspace(-1, 1, 8, dtype=torch.float64).view(8, 1)
    grid, back = process.grid(20), []
    for evaluations in (1, 4, 16, 64):
        start = invert(exact, x0, grid, evaluations=evaluations)
        back.append(float((ddim(exact, start, grid, noise=draws) - x0).abs().max()))
    assert back[0] > back[1] > back[2] and back[3] < 1e-3


@pytest.fixture(scope="module")
def model():
    system = tiny.ddpm(process={"timesteps": 50, "schedule": "cosine", "predicts": "v"})
    tiny.fill_zeros(system.network)
    return system


def paint(model, **call):
    return model.sample(**{"output": "tensor", "progress": False, "seed": 5, "steps": 10, "sampler": "ddim", **call})


def test_a_system_paints_a_picture_again_from_its_own_noise(model):
    image = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    again = paint(model, image=image, label=1, inversion=40)
    drawn = paint(model, image=image, label=1)
    assert (again - image).abs().max() < 0.02 < (drawn - image).abs().max()
    assert (paint(model, image=image, label=1, inversion=True) - image).abs().mean() < (drawn - image).abs().mean()
    changed = paint(model, image=image, label=2, inversion=40, inversion_label=1)
    assert (changed - again).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"inversion": True}, "without image="),
        ({"image": torch.zeros(3, 16, 16), "inversion": 0}, "inversion=0"),
        ({"image": torch.zeros(3, 16, 16), "inversion": True, "sampler": "ddpm"}, "ddim"),
        ({"image": torch.zeros(3, 16, 16), "inversion": True, "sampler_options": {"eta": 0.5}}, "eta=0.5"),
        ({"image": torch.zeros(3, 16, 16), "inversion_label": 1}, "without inversion="),
        ({"image": torch.zeros(3, 16, 16), "inversion": True, "inversion_label": 9}, "0 to 2"),
    ],
)
def test_what_cannot_be_inverted_is_refused(model, call, words):
    with pytest.raises(InputError) as error:
        paint(model, **call)
    assert words in str(error.value)
