"""The bound's terms against closed forms, autograd and sums over grey values."""

import math

import pytest
import torch

from hwaga.objectives import elbo


def drawn(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def test_kl_is_that_of_torchs_normals_and_its_gradients_are_mean_and_half_variance_minus_one():
    mean, log_variance = drawn(50).requires_grad_(), drawn(50, seed=1).requires_grad_()
    kl = elbo.kl_to_prior(mean, log_variance)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    assert torch.allclose(kl, theirs, atol=1e-12)
    of_mean, of_log = torch.autograd.grad(kl.sum(), (mean, log_variance))
    assert torch.allclose(of_mean, mean) and torch.allclose(of_log, 0.5 * (log_variance.exp() - 1))


def test_gaussian_and_laplace_surprise_are_those_of_torchs_distributions():
    x, decoded, log_width = drawn(40), drawn(40, seed=1), torch.tensor([-0.7], dtype=torch.float64)
    for kind, theirs in (("gaussian", torch.distributions.Normal), ("laplace", torch.distributions.Laplace)):
        wanted = -theirs(decoded, log_width.exp()).log_prob(x)
        assert torch.allclose(elbo.surprise(kind, x, decoded, log_width), wanted, atol=1e-12)


def test_bernoulli_surprise_is_the_cross_entropy_and_its_centre_the_mean():
    x, logits = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.3, -2.0, 1.5])
    p = torch.sigmoid(logits)
    share = (x + 1) / 2
    wanted = -(share * p.log() + (1 - share) * (1 - p).log())
    assert torch.allclose(elbo.surprise("bernoulli", x, logits, torch.zeros(1)), wanted, atol=1e-6)
    assert torch.allclose(elbo.centre("bernoulli", logits), 2 * p - 1, atol=1e-6)


@pytest.mark.parametrize("width", [1e-3, 0.02, 0.3, 3.0])
@pytest.mark.parametrize("middle", [-1.4, -0.3, 0.0, 0.98, 1.2])
def test_the_masses_of_all_grey_values_sum_to_one(width, middle):
    grey = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_width = torch.tensor([math.log(width)], dtype=torch.float64)
    nats = elbo.surprise("discretised-logistic", grey, torch.full_like(grey, middle), log_width)
    assert abs((-nats).exp().sum() - 1) < 1e-9


def test_discretised_logistic_is_finite_and_has_gradients_far_from_the_middle():
    grey = torch.linspace(-1, 1, 256)
    decoded, log_width = torch.full((256,), -50.0).requires_grad_(), torch.tensor([-6.0]).requires_grad_()
    nats = elbo.surprise("discretised-logistic", grey, decoded, log_width)
    nats.sum().backward()
    assert torch.isfinite(nats).all() and torch.isfinite(decoded.grad).all() and torch.isfinite(log_width.grad).all()


def test_free_bits_leave_dimensions_below_them_alone():
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]]).requires_grad_()
    total = elbo.with_free_bits(kl, 0.5)
    total.backward()
    assert total.item() == pytest.approx(0.5 + 3.0)
    assert kl.grad[:, 0].tolist() == [0.0, 0.0] and kl.grad[:, 1].tolist() == [0.5, 0.5]


def test_annealing_rises_once_or_in_cycles():
    assert [elbo.annealed(step, 10) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert [elbo.annealed(step, 20, cycles=2) for step in (0, 2, 5, 9, 10, 12, 19, 20)] == [
        0.0, 0.4, 1.0, 1.0, 0.0, 0.4, 1.0, 1.0
    ]  # fmt: skip
    assert elbo.annealed(0, 0) == 1.0


class Linear:
    """x = W z + b + sigma eps, z normal: its likelihood and its posterior are known."""

    def __init__(self, seed=0, latents=3, numbers=6, sigma=0.4):
        self.w, self.b, self.sigma = drawn(numbers, latents, seed=seed), drawn(numbers, seed=seed + 1), sigma
        self.x = (drawn(5, latents, seed=seed + 2) @ self.w.T + self.b) + sigma * drawn(5, numbers, seed=seed + 3)

    def log_likelihood(self):
        spread = self.w @ self.w.T + self.sigma**2 * torch.eye(len(self.b), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.b, spread).log_prob(self.x)

    def posterior(self):
        precision = torch.eye(self.w.shape[1], dtype=torch.float64) + self.w.T @ self.w / self.sigma**2
        return (self.x - self.b) @ self.w @ precision.inverse().T / self.sigma**2, precision

    def surprise(self, z):
        log_sigma = torch.tensor([math.log(self.sigma)], dtype=torch.float64)
        return elbo.surprise("gaussian", self.x, z @ self.w.T + self.b, log_sigma).sum(-1)


def weights(model, mean, log_variance, k, seed=9):
    """log p(x, z) / q(z | x) of k samples."""
    found = []
    for eps in drawn(k, *mean.shape, seed=seed):
        z = mean + (0.5 * log_variance).exp() * eps
        prior = elbo.log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
        found.append(prior - model.surprise(z) - elbo.log_normal(z, mean, log_variance))
    return torch.stack(found)


def test_elbo_of_a_linear_vae_lies_below_the_importance_sampled_likelihood_which_meets_the_true_one():
    model = Linear()
    mean, precision = model.posterior()
    # the best Gaussian with independent dimensions has the true mean and 1 / (diagonal of the precision) as variance
    log_variance = -precision.diagonal().log().expand_as(mean)
    log_w = weights(model, mean, log_variance, 4000)
    kl = elbo.kl_to_prior(mean, log_variance).sum(1)
    expected = model.surprise(mean) + 0.5 * (log_variance.exp() * model.w.square().sum(0) / model.sigma**2).sum(1)
    bound, true = -(expected + kl), model.log_likelihood()
    assert (log_w.mean(0) - bound).abs().max() < 0.15  # both ways to the bound agree
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))  # KL between the two posteriors
    assert torch.allclose(true - bound, gap.expand_as(bound), atol=1e-9)
    nearer = elbo.importance_bound(log_w)
    assert (nearer > bound).all() and (nearer - true).abs().max() < 0.1


def test_with_a_single_latent_the_bound_is_the_likelihood_itself():
    model = Linear(latents=1)
    mean, precision = model.posterior()
    log_variance = -precision.diagonal().log().expand_as(mean)
    log_w = weights(model, mean, log_variance, 3)
    assert (log_w - model.log_likelihood()).abs().max() < 1e-9  # every weight is p(x)
    assert torch.allclose(elbo.importance_bound(log_w), model.log_likelihood())


def test_collapse_is_an_alarm_that_names_the_keys():
    dead = {"elbo.active_share": 0.01, "elbo.kl_a_dimension": 1e-4}
    assert elbo.collapsed([dead] * 4) is None and elbo.collapsed([]) is None
    said = elbo.collapsed([dead] * 5 + [{"held_out.loss": 1.0}])
    assert "model.beta" in said and "model.free_bits" in said and "model.annealing.steps" in said
    assert elbo.collapsed([dead] * 5 + [{"elbo.active_share": 0.9}]) is None


def test_active_dimensions_are_those_whose_mean_varies():
    mean = torch.zeros(64, 4)
    mean[:, 1] = torch.randn(64, generator=torch.Generator().manual_seed(0))
    found = elbo.health(mean, elbo.kl_to_prior(mean, torch.zeros_like(mean)))
    assert (
        found["active_units"] == 1 and found["active_share"] == 0.25 and found["kl_largest"] > found["kl_a_dimension"]
    )
