from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_toys import InTurn, Pictures, denoising_stage, gan_stage, plain_net, seeded, trainer

from hwaga.errors import InputError, WorkError
from hwaga.interfaces import Objective, Stage
from hwaga.training import Trainer, TrainingConfig
from hwaga.training.moves import StageOptimizer, laziness
from hwaga.training.watching import check_weights, held_out


def weights(stage: Stage) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.clone() for n, m in stage.networks.items() for k, v in m.state_dict().items()}


def test_the_step_fits_one_screen() -> None:
    lines = [line for line in inspect.getsource(Trainer.step).splitlines() if line.strip()]
    assert len(lines) <= 25


def test_one_batch_is_overfitted() -> None:
    stage = denoising_stage(seeded(lambda: plain_net(32)), averaged=())
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 3, 8, 8, generator=draws)
    net = stage.networks["network"]
    fixed = Objective("fit", ("network",), lambda b, d: {"error": (net(noise) - b.image).square().mean()})
    data = Pictures(4)
    work = trainer(replace(stage, objectives=[fixed]), data, batch_size=4, learning_rate=5e-3, steps=400)
    work.step()
    first = work.metrics()["fit.error"]
    while work.done < 400:
        work.step()
    work.metrics()
    work.step()
    assert work.metrics()["fit.error"] < 0.05 * first


@pytest.mark.parametrize("parts", [2, 4, 6])
def test_accumulated_gradients_are_those_of_one_big_batch(parts: int) -> None:
    """Parts of unequal size too (6 pictures in 4 parts)."""
    whole, split = (denoising_stage(seeded(plain_net).double()) for _ in range(2))
    for stage, accumulation in ((whole, 1), (split, parts)):
        work = trainer(stage, accumulation=accumulation)
        for _ in range(3):
            work.step()
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(split)[name], rtol=1e-9, atol=1e-11)


def test_accumulated_losses_are_logged_as_those_of_one_big_batch() -> None:
    rows = []
    for accumulation in (1, 4):
        work = trainer(denoising_stage(seeded(plain_net).double()), accumulation=accumulation)
        work.step()
        rows.append(work.metrics())
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_a_lazy_objective_is_due_at_the_steps_that_its_interval_divides() -> None:
    due: list[int] = []
    stage = gan_stage(every=4)
    lazy = stage.objectives[2]

    def counted(batch, draw):
        due.append(work.done)
        return lazy.loss(batch, draw)

    work = trainer(replace(stage, objectives=[*stage.objectives[:2], replace(lazy, loss=counted)]))
    for _ in range(10):
        work.step()
    assert due == [0, 4, 8]


def test_a_lazy_objective_corrects_adam_and_its_own_weight() -> None:
    """StyleGAN2, appendix B: with an interval of 16, lr and betas become lr c and beta^c with c = 16 / 17."""
    stage = gan_stage(every=16)
    config = TrainingConfig(learning_rate=1e-3)
    shared = StageOptimizer("discriminator", stage, config)
    alone = StageOptimizer("generator", stage, config)
    assert shared.learning_rate == pytest.approx(2e-3 * 16 / 17)
    assert shared.adam.param_groups[0]["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert shared.weights == {"discriminator": 1.0, "r1": 16.0}
    assert (alone.learning_rate, alone.correction, alone.weights) == (1e-3, 1.0, {"generator": 1.0})


def test_objectives_that_are_all_equally_frequent_are_not_corrected() -> None:
    often = [Objective(name, ("n",), lambda b, d: {}, every=5) for name in "ab"]
    assert laziness(often) == (1.0, {"a": 1.0, "b": 1.0})


def test_a_lazy_loss_has_the_strength_that_it_has_when_it_is_not_lazy() -> None:
    """The gradient of a lazy objective is its interval times the plain one's."""
    stage = gan_stage(every=8)
    work = trainer(stage)
    batch = Pictures().batch(list(range(6)))
    objective = stage.objectives[2]
    terms = objective.loss(batch, None)
    assert work.total(objective, terms).item() == pytest.approx(8 * terms["penalty"].item())


def test_only_the_networks_of_the_objective_at_work_need_gradients() -> None:
    seen: dict[str, set[str]] = {}
    stage = gan_stage()

    def watched(objective: Objective) -> Objective:
        def loss(batch, draw):
            seen[objective.name] = {
                n for n, m in stage.networks.items() if any(p.requires_grad for p in m.parameters())
            }
            return objective.loss(batch, draw)

        return replace(objective, loss=loss)

    work = trainer(replace(stage, objectives=[watched(o) for o in stage.objectives]))
    work.step()
    assert seen == {"generator": {"generator"}, "discriminator": {"discriminator"}, "r1": {"discriminator"}}
    assert all(p.requires_grad for m in stage.networks.values() for p in m.parameters())


def test_each_objective_moves_its_own_networks_alone() -> None:
    stage = gan_stage()
    before = weights(stage)
    trainer(replace(stage, objectives=stage.objectives[:1])).step()
    moved = {name.split(".")[0] for name, value in weights(stage).items() if not torch.equal(value, before[name])}
    assert moved == {"generator"}


def test_parameters_that_a_system_froze_stay_as_they_are() -> None:
    net = seeded(plain_net)
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    work = trainer(denoising_stage(net))
    work.step()
    assert torch.equal(net[0].weight, before) and not net[0].weight.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_term_stops_the_step_and_is_named(value: float) -> None:
    stage = denoising_stage(seeded(plain_net))
    plain = stage.objectives[0]

    def loss(batch, draw):
        bad = torch.tensor(value if work.done == 2 else 0.0)
        return {**plain.loss(batch, draw), "extra": bad}

    work = trainer(replace(stage, objectives=[replace(plain, loss=loss)]))
    work.step()
    work.step()
    before = weights(stage)
    with pytest.raises(
        WorkError, match=r"objective 'denoise', step 3: the term 'extra' is not finite.*pictures of the batch: 12, 13"
    ):
        work.step()
    assert all(torch.equal(before[name], value) for name, value in weights(stage).items())


def test_a_non_finite_gradient_stops_the_step_and_its_layer_is_named() -> None:
    net = seeded(plain_net)
    stage = denoising_stage(net)
    # sqrt has an infinite slope at 0: the loss is finite, the gradient is not
    bad = Objective("bad", ("network",), lambda b, d: {"root": (net[2].weight * 0).abs().sum().sqrt()})
    work = trainer(replace(stage, objectives=[bad]))
    before = weights(stage)
    with pytest.raises(WorkError, match=r"objective 'bad', step 1: the gradient of 'network.2.weight' is not finite"):
        work.step()
    assert all(torch.equal(before[name], value) for name, value in weights(stage).items())


def test_a_weight_that_is_not_finite_is_named_before_anything_is_saved() -> None:
    work = trainer()
    with torch.no_grad():
        work.stage.networks["network"].out.bias[1] = math.inf
    with pytest.raises(WorkError, match="weight 'out.bias' of network is not finite"):
        check_weights(work)


def test_clipping_bounds_the_norm_and_keeps_the_direction() -> None:
    work = trainer(denoising_stage(seeded(plain_net)), clip_norm=1e-3)
    optimizer = work.optimizers["main"]
    for parameter in optimizer.parameters:
        parameter.grad = torch.ones_like(parameter)
    before = work.norm(optimizer)
    kept: list[torch.Tensor] = []
    optimizer.move = lambda step: kept.extend(p.grad.clone() for p in optimizer.parameters)  # type: ignore[method-assign]
    work.update(work.stage.objectives[0], work.order.at(0)[0])
    assert before > 1 and torch.cat([g.flatten() for g in kept]).norm().item() == pytest.approx(1e-3, rel=1e-5)
    assert torch.cat([g.flatten() for g in kept]).std().item() < 1e-9


def test_the_global_generators_are_untouched_by_a_step() -> None:
    work = trainer()  # its network has dropout
    before = torch.get_rng_state()
    work.step()
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_depends_on_the_step_and_not_on_what_was_drawn_before() -> None:
    ends = []
    for disturb in (0, 5):
        stage = denoising_stage()
        work = trainer(stage)
        torch.rand(disturb)
        work.step()
        ends.append(weights(stage))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_held_out_losses_have_fixed_draws_and_leave_no_trace() -> None:
    work = trainer()
    work.step()
    before = weights(work.stage)
    a = held_out(work, Pictures(9), 9)
    b = held_out(work, Pictures(9), 9)
    assert a == b and set(a) == {"loss", "loss t 0.0-0.5"} and all(map(math.isfinite, a.values()))
    assert all(torch.equal(before[name], value) for name, value in weights(work.stage).items())


def test_the_model_that_is_shown_is_in_evaluation_mode_with_averaged_weights() -> None:
    work = trainer(learning_rate=0.1)
    for _ in range(3):
        work.step()
    net = work.stage.networks["network"]
    own = net.out.weight.clone()
    with work.showing():
        assert not net.training and not torch.is_grad_enabled()
        assert torch.equal(net.out.weight, work.ema.weights()["network"]["out.weight"])
        assert not torch.equal(net.out.weight, own)
    assert net.training and torch.equal(net.out.weight, own)


def test_a_loss_over_the_whole_batch_refuses_accumulation() -> None:
    with pytest.raises(InputError, match="training.accumulation=2.*right would be 1"):
        trainer(replace(denoising_stage(), batch_statistics=True), accumulation=2)


def test_more_parts_than_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="training.accumulation=9 is more than training.batch_size=6"):
        trainer(accumulation=9)


def test_objectives_that_share_an_optimizer_must_move_the_same_networks() -> None:
    stage = gan_stage()
    wrong = [replace(o, optimizer="one") for o in stage.objectives]
    with pytest.raises(ValueError, match="move different networks"):
        trainer(replace(stage, objectives=wrong, optimizers={}))


def test_weight_decay_acts_on_kernels_and_not_on_biases() -> None:
    net = seeded(plain_net)
    stage = Stage(
        "s",
        {"network": net},
        [Objective("o", ("network",), lambda b, d: {"zero": 0 * sum(p.sum() for p in net.parameters())})],
    )
    before = weights(stage)
    trainer(stage, optimizer={"weight_decay": 0.5}, learning_rate=0.1).step()
    for name, value in weights(stage).items():
        expected = before[name] * (0.95 if value.ndim >= 2 else 1.0)
        torch.testing.assert_close(value, expected)


def test_bfloat16_keeps_weights_and_logged_losses_in_float32() -> None:
    stage = denoising_stage(seeded(plain_net))
    data = Pictures()
    work = Trainer(stage, TrainingConfig(batch_size=4), data, InTurn(len(data), 4), dtype=torch.bfloat16)
    work.step()
    assert {p.dtype for p in stage.networks["network"].parameters()} == {torch.float32}
    assert math.isfinite(work.metrics()["denoise.loss"])


def test_logged_terms_are_means_over_the_steps_since_the_last_row() -> None:
    stage = denoising_stage(seeded(plain_net))
    plain = stage.objectives[0]
    work = trainer(
        replace(
            stage,
            objectives=[
                replace(plain, loss=lambda b, d: {**plain.loss(b, d), "_step": torch.tensor(float(work.done))})
            ],
        )
    )
    for _ in range(4):
        work.step()
    assert work.metrics()["denoise.step"] == 1.5
    work.step()
    assert work.metrics()["denoise.step"] == 4.0


def test_gradient_checkpointing_reaches_the_networks_that_offer_it() -> None:
    net = seeded(plain_net)
    net.checkpointing = False
    trainer(denoising_stage(net), gradient_checkpointing=True)
    assert net.checkpointing is True


def test_a_network_that_is_trained_gets_a_gradient_norm_in_each_row() -> None:
    work = trainer(gan_stage())
    work.step()
    row = work.metrics()
    assert {"generator.gradient", "discriminator.gradient", "r1.gradient"} <= set(row)
    assert row["discriminator.accuracy"] <= 1 and row["discriminator.loss"] == pytest.approx(
        row["discriminator.real"] + row["discriminator.fake"]
    )
    assert isinstance(work.stage.networks["generator"], nn.Module)
