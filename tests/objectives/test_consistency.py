"""Consistency on a Gaussian, where the function that all are to learn is known."""

import pytest
import tiny
import torch

from hwaga.objectives.consistency import consistency, consistency_tuning, latent_consistency, nearer, teacher_step
from hwaga.processes.continuous import VEConfig, VPConfig
from hwaga.processes.flow import FlowConfig
from hwaga.processes.gaussian import GaussianConfig
from hwaga.processes.process import noise_in

S = 0.5
CONFIGS = [
    GaussianConfig(schedule="cosine", predicts="v"), VPConfig(predicts="v"), FlowConfig(), VEConfig(predicts="edm"),
]  # fmt: skip


class Exact:
    """Networks whose x_0 is that of the denoiser, or of the consistency function, of data N(0, S^2)."""

    def __init__(self, process, kind):
        self.process, self.kind, self.t = process, kind, None

    def __call__(self, x, time, **conditions):
        process = self.process
        t = torch.where(self.t <= 0, 1.0, self.t)
        level = process.levels(t, x)
        if process.config.predicts == "edm":
            x = x / process.entering(torch.ones_like(x), level)
        variance = level.alpha**2 * S**2 + level.sigma**2
        x0 = level.alpha * S**2 / variance * x if self.kind == "mean" else S * x / variance.sqrt()
        return process.target(x0, noise_in(x, x0, level), level)

    def at(self, t):
        self.t = t
        return self


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_the_exact_function_says_the_same_along_a_teachers_step(config):
    """f(x_t, t) = f(x_s, s) up to the error of one DDIM step, which falls with its square."""
    process = config.build()
    teacher, student = Exact(process, "mean"), Exact(process, "function")
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for h in (0.04, 0.02):
        t, s = torch.full((8,), 0.5).double(), torch.full((8,), 0.5 - h).double()
        below = teacher_step(teacher.at(t), process, x, t, s, {}, {}, None, None)
        there, here = consistency(student.at(s), process, below, s, {}), consistency(student.at(t), process, x, t, {})
        errors.append(float((there - here).abs().max()))
    assert errors[0] < 0.06 and errors[1] < 0.35 * errors[0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_at_the_data_the_function_is_what_is_there(config):
    process = config.build()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    t = torch.zeros(4).double()
    assert torch.equal(consistency(Exact(process, "mean").at(t), process, x, t, {}), x)


def test_the_loss_is_near_zero_for_the_exact_function_and_falls_with_the_grid():
    process = GaussianConfig(schedule="cosine", predicts="v").build()
    x0 = S * torch.randn(512, 3, generator=torch.Generator().manual_seed(2))

    def loss(places, student):
        def told(network):
            def call(x, time, **conditions):
                return network.at((time.double() + 1) / 1000)(x, time)

            return call

        found = latent_consistency(
            told(student), told(Exact(process, "function")), told(Exact(process, "mean")), process, x0, {}, None, tiny.Draw(3),
            places=places, scaling=None,
        )  # fmt: skip
        return float(found["consistency"].mean())

    coarse, fine = loss(25, Exact(process, "function")), loss(100, Exact(process, "function"))
    assert fine < 0.15 * coarse < 0.15 * 0.02
    assert loss(100, Exact(process, "mean")) > 20 * fine


def test_guidance_scales_are_drawn_within_their_range_and_told_to_the_student_and_its_target():
    seen = {}

    def network(name):
        def call(x, time, label, guidance=None):
            seen[name] = (label, guidance)
            return torch.where((label == 9).view(-1, 1), 1.0, 2.0) + 0 * x

        return call

    process = GaussianConfig(schedule="cosine", predicts="v").build()
    x0, label = torch.zeros(64, 2), torch.zeros(64).long()
    latent_consistency(
        network("student"), network("target"), network("teacher"), process, x0, {"label": label},
        {"label": torch.full((64,), 9)}, tiny.Draw(4), scales=(2.0, 5.0),
    )  # fmt: skip
    scale = seen["student"][1]
    assert torch.equal(scale, seen["target"][1]) and 2 <= scale.min() < 2.5 and 4.5 < scale.max() <= 5
    assert seen["teacher"][1] is None and (seen["teacher"][0][64:] == 9).all()


def test_guidance_of_the_teachers_step_is_the_usual_formula():
    process = FlowConfig().build()

    def network(x, time, label):
        return torch.where((label == 9).view(-1, 1), 1.0, 2.0) + 0 * x

    x, t, s = torch.zeros(3, 2), torch.full((3,), 0.5).double(), torch.full((3,), 0.25).double()
    scale = torch.tensor([0.0, 1.0, 3.0])
    label, null = {"label": torch.zeros(3).long()}, {"label": torch.full((3,), 9)}
    got = teacher_step(network, process, x, t, s, label, null, scale, None)
    assert torch.allclose(got, (-0.25 * (1 + scale))[:, None].expand(3, 2))


def test_the_neighbour_begins_at_the_data_and_comes_nearer():
    ratio = torch.tensor([0.01, 0.5, 5.0, 80.0], dtype=torch.float64)
    steps = [nearer(ratio, k) for k in range(12)]
    assert (steps[0] == 0).all()
    for before, after in zip(steps, steps[1:], strict=False):
        assert (after >= before).all() and (after < ratio).all()
    assert ((ratio - steps[11]) / ratio < 0.005).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_tuning_begins_as_denoising_and_knows_the_exact_function_in_the_end(config):
    """With the neighbour at the data, the best answer is the mean of x_0; near t, the gap of the exact function vanishes."""
    process = config.build()
    x0 = S * torch.randn(256, 3, generator=torch.Generator().manual_seed(5))

    def told(kind):
        network = Exact(process, kind)

        def call(x, time, **conditions):
            return network.at(times(process, time))(x, time)

        return call

    first = {kind: float(consistency_tuning(told(kind), process, x0, {}, tiny.Draw(6), doublings=0)["consistency"].mean())
             for kind in ("mean", "function")}  # fmt: skip
    assert first["mean"] < first["function"]


def times(process, fed):
    """The times at which a process feeds these numbers."""
    fed = fed.double()
    if process.config.kind == "gaussian":
        return (fed + 1) / 1000
    return process.time((4 * fed).exp()) if process.config.kind == "ve" else fed
