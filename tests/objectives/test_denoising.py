"""One objective under many names: denoising score matching, flow matching, the loss of EDM."""

import pytest
import tiny
import torch

from hwaga.objectives.denoising import denoising, held_out_bins
from hwaga.processes.continuous import VEConfig, VPConfig
from hwaga.processes.flow import FlowConfig
from hwaga.processes.process import noise_in

X0 = torch.randn((64, 2, 3, 3), generator=torch.Generator().manual_seed(0))


def says(process):
    """A network that believes one thing of the clean picture, x_0 = tanh(x), and says it as the process wants it."""

    def network(entering, fed):
        t = torch.tensor([float(v) for v in fed], dtype=torch.float64)
        level = process.levels(t, X0)
        x0 = torch.tanh(entering / process.entering(torch.ones_like(entering), level) * 0.5)
        x = entering / process.entering(torch.ones_like(entering), level)
        return process.target(x0, noise_in(x, x0, level), level)

    return network


@pytest.mark.parametrize("config", [VPConfig, FlowConfig])
def test_with_the_weight_snr_every_prediction_is_the_error_of_the_noise(config):
    found = []
    for predicts in ("eps", "v", "x0", "velocity", "score"):
        if predicts in config.model_fields["predicts"].annotation.__args__:
            process = config(predicts=predicts, weighting="snr").build()
            found.append(denoising(says(process), process, X0, {}, tiny.Draw(1), within=(0.2, 0.8))["denoising"])
    assert len(found) >= 4 and all(torch.allclose(one, found[0], rtol=1e-3) for one in found)


def test_score_matching_weighs_by_the_variance():
    """sigma^2 times the squared error of the score: Song and Ermon 2019, eq. 6."""
    process = VEConfig(
        predicts="score", weighting="snr", fed="time", times={"kind": "uniform"}, sigma_min=0.1, sigma_max=2.0
    ).build()
    draw = tiny.Draw(2)
    terms = denoising(says(process), process, X0, {}, draw)["denoising"]
    again = tiny.Draw(2)
    t = process.draw_times(again, 64)
    eps = again.normal("noise", tuple(X0.shape))
    level = process.levels(t, X0)
    x = X0 + level.sigma * eps
    said = -(x - torch.tanh(x * 0.5)) / level.sigma**2
    truth = (level.sigma**2 * (said + eps / level.sigma) ** 2).flatten(1).mean(1)
    assert torch.allclose(terms, truth, rtol=1e-3)


def test_the_least_error_is_that_of_the_exact_denoiser():
    """With data N(0, 1) on the line the flow's best velocity is known, and any other has a greater loss."""
    process = FlowConfig().build()
    x0 = torch.randn((20_000, 1), generator=torch.Generator().manual_seed(0))

    def network(gain):
        def velocity(x, fed):
            t = fed[:, None]
            return gain * (2 * t - 1) / ((1 - t) ** 2 + t**2) * x

        return velocity

    losses = [denoising(network(g), process, x0, {}, tiny.Draw(3))["denoising"].mean() for g in (0.8, 1.0, 1.2)]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_bins_of_time_are_evenly_drawn_whatever_training_draws():
    process, seen = FlowConfig(times={"kind": "logit-normal"}).build(), []

    def network(x, fed):
        seen.append(fed)
        return x

    bins = held_out_bins(lambda part: denoising(network, process, X0, {}, tiny.Draw(0), part))
    assert len(seen) == 5 and all(
        ((t >= 0.2 * k - 1e-6) & (t <= 0.2 * k + 0.2 + 1e-6)).all() for k, t in enumerate(seen)
    )
    assert torch.allclose(bins["loss"], torch.stack([v for k, v in bins.items() if k != "loss"]).mean(0))
