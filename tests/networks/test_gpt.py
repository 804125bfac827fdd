"""The transformer over tokens: what it may see, and that its cache changes nothing."""

import pytest
import torch
from pydantic import ValidationError

from hwaga.networks.gpt import GPTConfig


def gpt(seed=0, **config):
    network = GPTConfig(**{"vocabulary": 20, "length": 12, "width": 16, "heads": 2, "depth": 2, **config}).build()
    network.initialise(torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return network.eval()


def tokens(n=2, length=12, seed=0):
    return torch.randint(20, (n, length), generator=torch.Generator().manual_seed(seed))


def test_a_token_sees_none_after_it():
    network, given = gpt(), tokens()
    other = given.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 20
    assert torch.equal(network(given)[:, :7], network(other)[:, :7])
    assert not torch.equal(network(given)[:, 7:], network(other)[:, 7:])


def test_unmasked_tokens_see_each_other():
    network, given = gpt(unmasked=4), tokens()
    other = given.clone()
    other[:, 3] = (other[:, 3] + 1) % 20
    assert not torch.allclose(network(given)[:, 0], network(other)[:, 0])
    other = given.clone()
    other[:, 4] = (other[:, 4] + 1) % 20
    assert torch.allclose(network(given)[:, :4], network(other)[:, :4], atol=1e-6)


@pytest.mark.parametrize("pieces", [(1,) * 12, (5, 1, 6), (12,), (3, 9)])
def test_reading_in_pieces_with_a_cache_is_reading_at_once(pieces):
    network, given = gpt(), tokens()
    cache, parts, start = network.cache(2), [], 0
    for count in pieces:
        parts.append(network(given[:, start : start + count], cache))
        start += count
    assert (torch.cat(parts, 1) - network(given)).abs().max() < 1e-5


def test_more_tokens_than_places_are_refused():
    with pytest.raises(ValueError, match="13 tokens"):
        gpt()(tokens(length=13))
    with pytest.raises(ValidationError, match="heads=3"):
        GPTConfig(width=16, heads=3)


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none():
    def gradients(checkpointing):
        network = gpt().train()
        network.checkpointing = checkpointing
        network(tokens()).square().sum().backward()
        return {name: p.grad for name, p in network.named_parameters()}

    plain, again = gradients(False), gradients(True)
    # a key's bias moves all of a row's scores by the same number, which softmax does not see
    dead = [n for n, g in plain.items() if (g is None or not g.any()) and not n.endswith("key.bias")]
    assert dead == []
    assert all(torch.allclose(plain[n], again[n], atol=1e-6) for n in plain)
