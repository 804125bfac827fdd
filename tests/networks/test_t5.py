"""T5's encoder: distances in buckets, equality with transformers', half precision, published sizes, its words."""

import math

import pytest
import tiny
import torch

from hwaga.conditioning.prompts import cut
from hwaga.errors import InputError
from hwaga.formats import t5 as public
from hwaga.layers.initialise import build_on
from hwaga.networks.t5 import T5Config, buckets

SMALL = {"width": 24, "layers": 3, "heads": 3, "head_width": 8, "hidden": 40, "vocabulary": 50}


def made(seed=0, **values):
    network = build_on(T5Config(**{**SMALL, **values}))
    g = torch.Generator().manual_seed(seed)
    network.initialise(g)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3, generator=g)
    return network.eval()


def test_near_distances_have_buckets_of_their_own_and_far_ones_share_them():
    table = buckets(300, 32, 128)
    assert table[0, :8].tolist() == [0, *range(17, 24)] and table[:8, 0].tolist() == list(range(8))
    for apart in range(8, 300):
        far = min(8 + int(math.log(apart / 8) / math.log(16) * 8 + 1e-9), 15)
        assert table[apart, 0] == far and table[0, apart] == 16 + far
    assert torch.equal(table[1:, 1:], table[:-1, :-1])  # a matter of the distance alone


def test_it_equals_the_public_class_with_the_same_weights():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5EncoderModel(transformers.T5Config(
        d_model=24, d_kv=8, num_heads=3, d_ff=40, num_layers=3, vocab_size=50, feed_forward_proj="gated-gelu",
    )).eval()  # fmt: skip
    network = made()
    names = theirs.state_dict().keys() - {public.TWIN}
    theirs.load_state_dict({**network.state_dict(), public.TWIN: network.shared.weight})
    assert names == network.state_dict().keys()
    ids = torch.randint(50, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(ids)[0] - network(ids).states).abs().max() < 1e-5


def test_gradient_reaches_every_parameter():
    network = made()
    network(torch.arange(50)[None]).states.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_leaves_float16_is_computed_in_float32():
    network = made()
    for block in network.encoder.block:
        block.layer[1].DenseReluDense.wo.weight.data.fill_(30)
        block.layer[1].DenseReluDense.wi_0.weight.data.abs_()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        exact, half = network(ids).states, network.half()(ids).states
    assert half.dtype == torch.float16 and torch.isfinite(half).all()
    assert (exact - half.float()).abs().max() < 0.05


def test_published_size_has_as_many_parameters_and_tensors_as_published():
    with torch.device("meta"):
        network = T5Config().build()
    assert sum(p.numel() for p in network.parameters()) == 4_762_310_656 and len(network.state_dict()) == 219


def test_its_shapes_say_its_config():
    network = made(buckets=16)
    shapes = {f"t5.{name}": tuple(value.shape) for name, value in network.state_dict().items()}
    assert public.config_of({n.removeprefix("t5."): s for n, s in shapes.items()}, "file") == network.config


# ------------------------------------------------------------------------------------------------------------- its words


def test_a_text_has_an_end_and_filling_and_no_beginning():
    encoder = tiny.t5(length=8)
    words = encoder.tokenizer
    assert (words.begin, words.end, words.filling, words.marks) == (None, 1, 0, 1)
    ids = words("a red circle").ids
    assert words.framed(ids, 8) == [3, 4, 5, 1, 0, 0, 0, 0]
    assert encoder.encode(["a red circle", ""]).states.shape == (2, 8, 24)
    assert encoder.encode(["a"]).pooled is None


def test_a_text_as_long_as_there_is_room_is_whole_and_the_words_beyond_are_told():
    encoder = tiny.t5(length=4)
    assert cut(encoder, "a red circle").lost == ""
    found = cut(encoder, "a red circle star red")
    assert found.chunks == [[3, 4, 5]] and found.lost == "star red"


def test_weights_of_words_stand_at_their_tokens():
    from hwaga.conditioning.prompts import encoded

    encoder = tiny.t5(length=8)
    plain, weighed = (encoded(encoder, [t], weighted=True).states for t in ("red star", "red (star:1.5)"))
    same = (plain == weighed).all(dim=-1)[0]
    assert same.tolist() == [True, False, *[True] * 6]


def test_the_first_t5_whose_layers_are_not_gated_is_refused():
    with pytest.raises(InputError, match="feed_forward_proj='relu' cannot be loaded"):
        public.encoder_config({"d_model": 8}, "config.json", None, {})
