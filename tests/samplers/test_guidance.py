"""Guides: their formulas, and how often each asks the network. Off costs nothing."""

import pytest
import torch

from hwaga.interfaces import Prediction
from hwaga.processes.gaussian import GaussianConfig
from hwaga.samplers.denoiser import denoiser, known_outside, unguided
from hwaga.samplers.guidance import autoguided, by_classifier, classifier_free, perturbed, rescaled, within

PROCESS = GaussianConfig(predicts="x0").build()
AT, TO = PROCESS.indexed(500), PROCESS.indexed(400)
X = torch.linspace(-1, 1, 2 * 4 * 3).view(2, 4, 3, 1)
COND, NULL = {"label": torch.tensor([2.0, 3.0])}, {"label": torch.tensor([1.0, 1.0])}


class Network:
    def __init__(self, gain=1.0):
        self.calls, self.gain = [], gain

    def __call__(self, x, time, label):
        self.calls.append(len(x))
        return self.gain * x * label.view(-1, 1, 1, 1) + label.view(-1, 1, 1, 1)


def asked(guide, network=None, at=AT):
    network = network or Network()
    said = denoiser(network, PROCESS, COND, guide)(X, at, TO).x0
    return said, network.calls


def plain(conditions):
    return Network()(X, None, **conditions)


def test_off_is_the_plain_guide_and_costs_one_evaluation():
    assert classifier_free(NULL, 1.0) is unguided and rescaled(NULL, 1.0, 0.7) is unguided
    assert autoguided(Network(), 1.0) is unguided
    assert perturbed(lambda: pytest.fail("asked without attention"), 0.0) is unguided
    said, calls = asked(unguided)
    assert torch.equal(said, plain(COND)) and calls == [2]
    denoise = denoiser(Network(), PROCESS, COND)
    assert by_classifier(denoise, lambda x, at: x.sum(), 0.0) is denoise


def test_classifier_free_guidance_is_one_batch():
    for scale, expected_calls in ((0.0, [2]), (0.5, [4]), (3.0, [4]), (-1.0, [4])):
        said, calls = asked(classifier_free(NULL, scale))
        assert (
            torch.allclose(said, plain(NULL) + scale * (plain(COND) - plain(NULL)), atol=1e-6)
            and calls == expected_calls
        )


def test_only_some_channels_can_be_guided():
    said, _ = asked(classifier_free(NULL, 3.0, channels=3))
    assert torch.allclose(said[:, :3], (plain(NULL) + 3 * (plain(COND) - plain(NULL)))[:, :3], atol=1e-6)
    assert torch.equal(said[:, 3:], plain(COND)[:, 3:])


def test_an_interval_guides_between_two_times_and_costs_nothing_outside():
    guide = within(classifier_free(NULL, 3.0), 0.3, 0.7)
    assert asked(guide)[1] == [4] and asked(guide, at=PROCESS.indexed(900))[1] == [2]
    assert torch.equal(asked(guide, at=PROCESS.indexed(100))[0], asked(unguided, at=PROCESS.indexed(100))[0])


def test_rescaling_gives_the_deviation_of_the_conditional_prediction():
    said, calls = asked(rescaled(NULL, 5.0, 1.0))
    assert calls == [4]
    assert torch.allclose(said.std((1, 2, 3)), plain(COND).std((1, 2, 3)), rtol=1e-5)
    half = asked(rescaled(NULL, 5.0, 0.5))[0]
    assert torch.allclose(half, (said + asked(classifier_free(NULL, 5.0))[0]) / 2, atol=1e-5)


def test_autoguidance_asks_both_networks_once():
    strong, weak = Network(1.0), Network(0.5)
    said, calls = asked(autoguided(weak, 2.0), strong)
    assert calls == [2] and weak.calls == [2]
    assert torch.allclose(said, 2 * Network(1.0)(X, None, **COND) - Network(0.5)(X, None, **COND), atol=1e-6)


def test_perturbed_attention_asks_once_more_inside_the_context():
    from contextlib import contextmanager

    network = Network()

    @contextmanager
    def without():
        network.gain = 0.25
        yield
        network.gain = 1.0

    said, calls = asked(perturbed(without, 2.0), network)
    worse = Network(0.25)(X, None, **COND)
    assert calls == [2, 2] and torch.allclose(said, plain(COND) + 2 * (plain(COND) - worse), atol=1e-6)
    both, calls = asked(perturbed(without, 2.0, classifier_free(NULL, 3.0)), network)
    assert torch.allclose(both, plain(NULL) + 3 * (plain(COND) - plain(NULL)) + 2 * (plain(COND) - worse), atol=1e-5)


def test_classifier_guidance_moves_the_noise_along_the_gradient():
    denoise = denoiser(Network(), PROCESS, COND)
    guided = by_classifier(denoise, lambda x, at: -(x**2).flatten(1).sum(1), 1.5)
    before, after = denoise(X, AT, TO).x0, guided(X, AT, TO).x0
    eps = lambda x0: (X - AT.alpha * x0) / AT.sigma  # noqa: E731
    assert torch.allclose(eps(after), eps(before) - AT.sigma * 1.5 * (-2 * X), atol=1e-5)


def test_a_classifier_draws_samples_to_its_class():
    """Data N(0, 1); a classifier that likes positive numbers, exact at every noise: the end is the conditional's mean."""
    from hwaga.processes.flow import FlowConfig
    from hwaga.samplers.ddim import ddim

    process = FlowConfig().build()
    exact = lambda x, at, to: Prediction(at.alpha * x / (at.alpha**2 + at.sigma**2))  # noqa: E731

    def likes(x, at):  # p(y = 1 | x_t) of a data model y = 1 where x_0 + N(0, 0.25) > 0
        variance = at.alpha**2 + at.sigma**2
        mean, spread = at.alpha * x / variance, at.sigma**2 / variance + 0.25
        return torch.special.log_ndtr(mean / spread**0.5).flatten()

    start = torch.randn((4000, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = process.grid(200)
    grid[0] = process.point(0.999)
    end = ddim(by_classifier(exact, likes, 1.0), start, grid, noise=None)
    truth = 1 / (1.25**0.5) * (2 / torch.pi) ** 0.5  # mean of N(0, 1) given that class
    assert abs(end.mean() - truth) < 0.03 and (end > 0).double().mean() > 0.8


def test_outside_the_mask_x_stays_on_the_noised_source():
    from hwaga.samplers import SAMPLERS

    source, start = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    network = lambda x, time: torch.tanh(x)  # noqa: E731
    for name in ("ddim", "heun", "dpm-solver++", "unipc", "euler-ancestral", "ddpm"):
        grid = GaussianConfig().build().grid(12)
        at = grid[0]
        x = at.alpha * source + at.sigma * start
        own = {"process": PROCESS} if SAMPLERS[name].asks_process else {}
        denoise = known_outside(denoiser(network, PROCESS, {}), source, mask)
        end = SAMPLERS[name].run(denoise, x, grid, noise=lambda name, shape: torch.randn(shape), **own)
        assert torch.allclose(end[..., 2:], source[..., 2:], atol=1e-4) and not torch.allclose(
            end[..., :2], source[..., :2]
        )
