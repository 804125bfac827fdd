"""The pieces of the variational bound against what torch.distributions says."""

import torch
from torch.distributions import Normal, kl_divergence

from hwaga.objectives.variational import discretised_log_likelihood, gaussian_kl


def test_kl_of_gaussians_is_torchs():
    a, b = (
        Normal(torch.tensor([0.3, -2.0]), torch.tensor([0.5, 2.0])),
        Normal(torch.tensor([1.0, 0.0]), torch.tensor([1.5, 0.1])),
    )
    ours = gaussian_kl(a.mean, a.variance.log(), b.mean, b.variance.log())
    assert torch.allclose(ours, kl_divergence(a, b), rtol=1e-5)


def test_masses_of_all_grey_values_sum_to_one():
    grey = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, deviation in ((0.0, 0.3), (-0.99, 0.05), (0.4, 2.0)):
        mass = discretised_log_likelihood(grey, torch.tensor(mean).double(), torch.tensor(deviation).double()).exp()
        assert abs(mass.sum() - 1) < 1e-6


def test_mass_is_finite_far_from_the_mean():
    value = discretised_log_likelihood(torch.tensor([1.0, -1.0, 0.5]), torch.tensor(-0.9), torch.tensor(1e-3))
    assert torch.isfinite(value).all()
