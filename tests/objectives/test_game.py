"""The moves of the game and its alarms."""

import math

import pytest
import torch
from torch import nn

from hwaga.interfaces import Batch
from hwaga.objectives.adversarial import KINDS
from hwaga.objectives.game import Game, game_is_unstable, generator_collapses, gradient_vanishes, spread
from hwaga.training.loop import StepDraw
from hwaga.training.moves import laziness

BATCH = Batch(torch.randn((6, 3), generator=torch.Generator().manual_seed(0)), torch.arange(6), torch.arange(6) % 2)


class Linear(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        g = torch.Generator().manual_seed(ins)
        self.weight = nn.Parameter(torch.randn((outs, ins), generator=g))

    def forward(self, x, label=None):
        out = x @ self.weight.T
        return out.squeeze(1) if out.shape[1] == 1 else out


def game(**rules):
    return Game(Linear(2, 3), Linear(3, 1), 2, **rules)


def draw(step=0, **part):
    return StepDraw(0, "game", step, **{"whole": 6, **part})


def total(terms):
    return sum(value for name, value in terms.items() if not name.startswith("_"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_move_has_gradients_for_its_own_player_and_the_logits_are_always_seen(kind):
    play = game(kind=kind, r1=1.0, r2=1.0)
    terms = play.discriminator_terms(BATCH, draw())
    total(terms).backward()
    assert play.generator.weight.grad is None and play.discriminator.weight.grad.abs().sum() > 0
    assert {"adversarial", "r1", "r2", "_real", "_fake", "_accuracy", "_diversity", "_diversity_real"} == set(terms)
    total(play.generator_terms(BATCH, draw())).backward()
    assert play.generator.weight.grad.abs().sum() > 0


def test_the_penalties_of_a_linear_discriminator_are_those_by_hand():
    play = game(r1=3.0, r2=5.0, gradient_penalty=10.0)
    terms = play.discriminator_terms(BATCH, draw())
    squared = play.discriminator.weight.detach().square().sum().item()
    assert terms["r1"].item() == pytest.approx(3.0 / 2 * squared, rel=1e-5)
    assert terms["r2"].item() == pytest.approx(5.0 / 2 * squared, rel=1e-5)
    assert terms["gradient_penalty"].item() == pytest.approx(10 * (math.sqrt(squared) - 1) ** 2, rel=1e-4)


def test_lazy_penalties_are_an_objective_of_their_own_that_is_as_strong():
    every, lazy = game(r1=1.0, r2=1.0), game(r1=1.0, r2=1.0, penalty_every=4)
    assert [o.name for o in every.objectives()] == ["discriminator", "generator"]
    assert [(o.name, o.every, o.optimizer) for o in lazy.objectives()] == [
        ("discriminator", 1, "discriminator"), ("penalty", 4, "discriminator"), ("generator", 1, "generator"),
    ]  # fmt: skip
    assert "r1" not in lazy.discriminator_terms(BATCH, draw())
    _, weights = laziness([o for o in lazy.objectives() if o.optimizer == "discriminator"])
    torch.testing.assert_close(
        weights["penalty"] * total(lazy.penalty_terms(BATCH, draw())) / 4,
        total(every.discriminator_terms(BATCH, draw())) - total(lazy.discriminator_terms(BATCH, draw())),
    )


def test_the_generator_may_move_less_often():
    assert [(o.name, o.every) for o in game(generator_every=5).objectives()] == [("discriminator", 1), ("generator", 5)]


def test_penalties_anneal_along_a_cosine():
    play = game(r1=2.0, penalty_anneal=100, penalty_final=0.1)
    squared = play.discriminator.weight.detach().square().sum().item()
    for step, share in ((0, 1.0), (50, 0.55), (100, 0.1), (1000, 0.1)):
        terms = play.discriminator_terms(BATCH, draw(step))
        assert terms["r1"].item() == pytest.approx(share * squared, rel=1e-5)


def test_parts_of_a_batch_add_up_to_the_whole():
    play = game(kind="relativistic", r1=1.0, r2=1.0)
    whole = total(play.discriminator_terms(BATCH, draw())) + total(play.generator_terms(BATCH, draw()))
    parts = torch.zeros(())
    for start in (0, 3):
        half = Batch(BATCH.image[start : start + 3], BATCH.index[start : start + 3])
        at = draw(start=start, count=3)
        parts = parts + (total(play.discriminator_terms(half, at)) + total(play.generator_terms(half, at))) / 2
    torch.testing.assert_close(parts, whole)


def test_accuracy_is_half_for_a_discriminator_that_knows_nothing():
    right, nothing = torch.tensor([2.0, 3.0]), torch.zeros(2)
    for kind in KINDS:
        assert game(kind=kind).accuracy(right, -right).tolist() == [1, 1]
        assert game(kind=kind).accuracy(-right, right).tolist() == [0, 0]
    assert game(kind="wgan").accuracy(nothing, nothing).tolist() == [0.5, 0.5]
    assert game(kind="hinge").accuracy(right, right).tolist() == [0.5, 0.5]


def test_diversity_is_that_of_one_label_and_nothing_for_a_constant_generator():
    assert spread(torch.tensor([[[1.0], [3.0]], [[7.0], [9.0]]])).item() == 1.0  # the groups' distance does not count
    assert game().diversity(torch.device("cpu")) > 0.1
    by_label = Game(lambda z, label: label[:, None].float(), Linear(1, 1), 2, labels=4)
    assert by_label.diversity(torch.device("cpu")) == 0


def rows(count, every=10, **values):
    """Metric rows in which each value is a number or a function of the step."""
    names = {name: f"discriminator.{name}" for name in ("diversity", "diversity_real", "accuracy", "real", "fake")}
    names["gradient"] = "generator.gradient"
    full = {
        "diversity": 0.4,
        "diversity_real": 0.5,
        "accuracy": 0.7,
        "real": 1.0,
        "fake": -1.0,
        "gradient": 1.0,
        **values,
    }
    return [
        {"step": step, **{names[k]: v(step) if callable(v) else v for k, v in full.items()}}
        for step in range(every, count * every + 1, every)
    ]


ALARMS = (generator_collapses, gradient_vanishes, game_is_unstable)


def test_a_healthy_game_rings_nothing():
    for alarm in ALARMS:
        assert (
            alarm([]) is None and alarm(rows(5)) is None and alarm(rows(200)) is None and alarm(rows(20, 100)) is None
        )


def test_collapse_names_what_it_saw_and_what_to_change():
    says = generator_collapses(rows(10, diversity=0.013))
    for word in ("0.013", "0.5", "70%", "model.loss=relativistic", "model.r1", "training.learning_rate", "best/"):
        assert word in says
    assert generator_collapses(rows(9, diversity=0.0)) is None  # too early to tell
    assert generator_collapses(rows(40, diversity=lambda step: 0.0 if step < 350 else 0.4)) is None


def test_a_vanishing_gradient_is_told_by_the_generators_gradient_and_the_discriminators_outputs():
    gone = {"gradient": lambda step: 1.0 if step < 200 else 1e-4, "accuracy": 1.0, "real": 9.0, "fake": -14.0}
    says = gradient_vanishes(rows(40, **gone))
    for word in ("0.0001", "100%", "9 real", "-14 fake", "model.loss=minimax"):
        assert word in says
    assert gradient_vanishes(rows(40, **{**gone, "accuracy": 0.6})) is None  # a game that has come to rest


def test_logits_that_run_away_are_told():
    says = game_is_unstable(rows(60, real=lambda step: 1.0 if step < 500 else 300.0))
    assert "301 apart, usually 2" in says and "model.r2" in says
