"""The likelihood by the ODE, where it is known in closed form."""

import math

import pytest
import torch

from hwaga.interfaces import Prediction
from hwaga.objectives.likelihood import dequantised, likelihood
from hwaga.processes.continuous import SubVPConfig, VEConfig, VPConfig
from hwaga.processes.flow import FlowConfig
from hwaga.processes.gaussian import GaussianConfig
from hwaga.samplers.noise import from_seed

S = torch.tensor([0.3, 0.8, 1.1, 0.5], dtype=torch.float64)  # the data are N(0.2, S^2), four dimensions


def exact(x, at, to):
    gain = at.alpha * S**2 / (at.alpha**2 * S**2 + at.sigma**2)
    return Prediction(0.2 + gain * (x - at.alpha * 0.2))


@pytest.mark.parametrize(
    "process",
    [
        FlowConfig(),
        VPConfig(),
        SubVPConfig(),
        VEConfig(sigma_max=40.0),
        GaussianConfig(),
        GaussianConfig(schedule="cosine"),
    ],
    ids=lambda config: config.kind,
)
def test_it_is_that_of_a_gaussian(process):
    g = torch.Generator().manual_seed(0)
    x = 0.2 + S * torch.randn((6, 4), generator=g, dtype=torch.float64)
    truth = torch.distributions.Normal(0.2, S).log_prob(x).sum(1)
    found = likelihood(exact, process.build(), x, from_seed(0, range(6)), rtol=1e-6, atol=1e-6)
    assert (found.nats - truth).abs().max() < 0.02 and found.evaluations < 2000
    assert abs(found.bits()[0] - (-truth[0] / 4 / math.log(2) + 7)) < 0.02


def test_latents_are_those_of_unit_variance_noise():
    g = torch.Generator().manual_seed(0)
    x = 0.2 + S * torch.randn((4000, 4), generator=g, dtype=torch.float64)
    found = likelihood(exact, VPConfig().build(), x, from_seed(0, range(4000)))
    assert (found.latent.std(0) - 1).abs().max() < 0.05 and found.latent.mean(0).abs().max() < 0.06


def test_a_coupled_network_needs_no_more_than_a_probe_on_average():
    """Hutchinson's estimate has no bias where the Jacobian is not diagonal."""
    mix = torch.tensor([[1.0, 0.4], [0.4, 0.6]], dtype=torch.float64)  # covariance of the data

    def coupled(x, at, to):
        return Prediction(x @ (at.alpha * mix @ torch.linalg.inv(at.alpha**2 * mix + at.sigma**2 * torch.eye(2))).T)

    x = torch.tensor([[0.5, -0.3]], dtype=torch.float64).expand(600, 2)
    truth = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), mix).log_prob(x[0])
    one = likelihood(coupled, FlowConfig().build(), x, from_seed(0, range(600))).nats
    assert abs(one.mean() - truth) < 4 * one.std() / math.sqrt(600) + 0.01
    four = likelihood(coupled, FlowConfig().build(), x[:100], from_seed(0, range(100)), probes=4).nats
    assert four.std() < one.std()


def test_dequantised_pictures_stay_in_their_grey_values():
    pictures = torch.tensor([-1.0, 1.0, 0.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    lifted = dequantised(pictures, from_seed(0, range(3)))
    assert (
        lifted.min() >= -1
        and lifted.max() <= 1
        and torch.equal(((lifted / 2 + 0.5) * 256).floor()[1], torch.full((1, 8, 8), 255.0))
    )
