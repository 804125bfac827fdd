"""Writing token by token: what is drawn, what is left out, what is known, and the window over a large picture."""

import math

import pytest
import torch

from hwaga.errors import Interrupted
from hwaga.networks.gpt import GPTConfig
from hwaga.samplers.tokens import kept, pick, reading, sample_tokens, uniform_of


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_normal_noise_becomes_uniform():
    u = uniform_of(gaussian(20_000)).sort().values
    assert (u - torch.linspace(0, 1, 20_000, dtype=torch.float64)).abs().max() < 0.015
    assert uniform_of(torch.tensor([0.0, -40.0, 40.0])).tolist() == [0.5, 0.0, 1.0]


def test_tokens_are_drawn_by_their_probability_and_temperature_sharpens():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(8000, 4)
    u = uniform_of(gaussian(8000))
    shares = torch.bincount(pick(logits, u, 1.0), minlength=4) / 8000
    assert (shares - torch.tensor([0.1, 0.2, 0.3, 0.4])).abs().max() < 0.02
    cold = torch.bincount(pick(logits, u, 0.5), minlength=4) / 8000
    assert (cold - torch.tensor([1.0, 4, 9, 16]) / 30).abs().max() < 0.02
    assert pick(logits, u, 0.0).eq(3).all()


def test_a_number_of_exactly_1_picks_the_last_token_that_is_possible():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert pick(logits, torch.tensor([1.0]), 1.0).item() == 1 and pick(logits, torch.tensor([0.0]), 1.0).item() == 0


def test_top_k_keeps_ties_and_top_p_the_fewest_that_are_enough():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    alive = lambda *how: kept(logits, *how).isfinite()[0].tolist()  # noqa: E731
    assert alive(1, 1.0) == [True, False, False, False]
    assert alive(3, 1.0) == [True, True, True, True]  # the fourth is as likely as the third
    assert alive(None, 0.5) == [True, False, False, False]
    assert alive(None, 0.6) == [True, True, False, False]
    assert alive(None, 1.0) == [True] * 4 and alive(9, 1.0) == [True] * 4


def test_known_tokens_stay_and_those_after_them_see_them():
    seen = []

    def next_logits(tokens):
        seen.append(tokens.clone())
        return torch.zeros(2, 5)

    known = torch.full((2, 4), -1)
    known[0, 1] = known[1, 2] = 4
    found = sample_tokens(next_logits, gaussian(2, 4), known=known)
    assert found[0, 1] == 4 and found[1, 2] == 4 and found.shape == (2, 4)
    assert [s.shape[1] for s in seen] == [0, 1, 2, 3] and seen[3][1, 2] == 4


def test_a_callback_sees_every_place_and_may_end_it():
    steps = []

    def callback(step):
        steps.append((step.index, step.total, tuple(step.x0.shape)))
        if step.index == 2:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        sample_tokens(lambda t: torch.zeros(1, 3), gaussian(1, 6), callback=callback)
    assert steps == [(0, 6, (1, 1)), (1, 6, (1, 2)), (2, 6, (1, 3))]


def gpt(length):
    network = GPTConfig(vocabulary=9, length=length, width=16, heads=2, depth=2).build()
    network.initialise(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return network.eval()


@torch.no_grad()
def test_a_picture_of_the_trained_size_is_read_once_token_by_token():
    network, asked = gpt(10), []
    network.register_forward_hook(lambda m, given, out: asked.append(out.shape[1]))
    tokens, prefix = (
        torch.randint(9, (2, 9), generator=torch.Generator().manual_seed(0)),
        torch.zeros((2, 1), dtype=torch.int64),
    )
    read = reading(network, prefix, (3, 3), (3, 3))
    found = torch.stack([read(tokens[:, :place]) for place in range(9)], 1)
    assert asked == [1] * 9
    assert (found - network(torch.cat([prefix, tokens[:, :-1]], 1))).abs().max() < 1e-5


@torch.no_grad()
def test_of_a_larger_picture_the_network_sees_the_window_around_a_place():
    network, size, window = gpt(10), (5, 6), (3, 3)
    tokens, prefix = (
        torch.randint(9, (1, 30), generator=torch.Generator().manual_seed(0)),
        torch.zeros((1, 1), dtype=torch.int64),
    )
    read = reading(network, prefix, size, window)
    for place in range(30):
        i, j = divmod(place, 6)
        top, left = min(max(i - 1, 0), 2), min(max(j - 1, 0), 3)
        inside = [
            r * 6 + c for r in range(top, top + 3) for c in range(left, left + 3) if r * 6 + c < place
        ]  # what is written of the window
        want = network(torch.cat([prefix, tokens[:, inside]], 1))[:, -1]
        assert (read(tokens[:, :place]) - want).abs().max() < 1e-5, place
