"""The joint transformer: what it begins as, where words and places enter, published sizes, equality with diffusers'."""

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch.nn.functional import softmax

from hwaga.layers.initialise import build_on
from hwaga.layers.joint import JointAttention
from hwaga.layers.positions import sine_cosine_2d
from hwaga.networks.mmdit import MMDiTConfig

SMALL = {"width": 32, "depth": 3, "heads": 2, "in_channels": 4, "out_channels": 4, "text_width": 20, "pooled_width": 12,
         "table": 24, "base": 8}  # fmt: skip
FORMS = {"3": {}, "3.5 large": {"qk_norm": True}, "3.5 medium": {"qk_norm": True, "dual": (0, 1)}}
UNHEARD = (
    "add_q_proj",
    "norm_added_q",
)  # of the last block: what the text would look for, of which no one reads the answer


def made(seed=0, filled=False, **values):
    network = build_on(MMDiTConfig(**{**SMALL, **values}))
    network.initialise(torch.Generator().manual_seed(seed))
    if filled:
        tiny.fill_zeros(network)
    return network.eval()


def given(n=2, size=(8, 12), seed=1):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 4, *size, generator=g), torch.rand(n, generator=g), torch.randn(n, 7, 20, generator=g),
            torch.randn(n, 12, generator=g))  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_gradient_reaches_every_parameter_that_anyone_reads(form):
    network = made(filled=True, **FORMS[form])
    network(*given(4)).square().mean().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert {n for n in dead if not n.startswith("transformer_blocks.2.attn.")} == set()
    assert all(any(part in n for part in UNHEARD) for n in dead)


def test_every_block_begins_as_the_identity_and_the_network_as_zero():
    network = made(dual=(0,))
    x, text, told = torch.randn(2, 6, 32), torch.randn(2, 5, 32), torch.randn(2, 32)
    for block in network.transformer_blocks:
        assert all(torch.equal(a, b) for a, b in zip(block(x, text, told), (x, text), strict=True))
    assert not network(*given()).any()


@pytest.mark.parametrize("part", range(4), ids=["picture", "time", "text", "pooled"])
def test_it_hears_all_that_it_is_told(part):
    network, told = made(filled=True), list(given())
    before = network(*told)
    told[part] = told[part] + 0.3
    assert (network(*told) - before).abs().max() > 1e-3


def test_the_order_of_the_texts_tokens_is_their_encoders_matter():
    network, (x, time, text, pooled) = made(filled=True), given()
    assert torch.allclose(network(x, time, text, pooled), network(x, time, text.flip(1), pooled), atol=1e-5)


def test_joint_attention_is_one_softmax_over_both_kinds_of_tokens():
    torch.manual_seed(0)
    layer, x, text = JointAttention(8, 2, qk_norm=False, eps=1e-6), torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    q = torch.cat([layer.to_q(x), layer.add_q_proj(text)], 1).view(1, 5, 2, 4).transpose(1, 2)
    k = torch.cat([layer.to_k(x), layer.add_k_proj(text)], 1).view(1, 5, 2, 4).transpose(1, 2)
    v = torch.cat([layer.to_v(x), layer.add_v_proj(text)], 1).view(1, 5, 2, 4).transpose(1, 2)
    heard = (softmax(q @ k.transpose(-1, -2) / 2, -1) @ v).transpose(1, 2).reshape(1, 5, 8)
    ours = layer(x, text)
    assert torch.allclose(ours[0], layer.to_out[0](heard[:, :3]), atol=1e-6)
    assert torch.allclose(ours[1], layer.to_add_out(heard[:, 3:]), atol=1e-6)


def test_a_picture_sees_the_middle_of_the_table_of_positions():
    network = made()
    table = network.pos_embed.pos_embed.view(24, 24, 32)
    assert torch.equal(table.view(-1, 32), sine_cosine_2d(32, 24, 24, (8, 8), torch.device("cpu")))
    assert torch.equal(network.pos_embed.positions(4, 7).view(4, 7, 32), table[10:14, 8:15])
    with pytest.raises(ValueError, match="25 x 4 tokens, but there are positions for 24 x 24"):
        network.pos_embed.positions(25, 4)


def test_the_same_crop_has_the_same_positions_whatever_the_size():
    positions = made().pos_embed.positions
    assert torch.equal(positions(8, 8).view(8, 8, 32)[2:6, 2:6].reshape(16, 32), positions(4, 4)[0])


@pytest.mark.parametrize("size", [(2, 2), (6, 20), (48, 4)])
def test_any_height_and_width_that_the_patch_divides(size):
    assert made()(*given(1, size)).shape == (1, 4, *size)


def test_checkpointing_gives_the_same_gradients():
    network = made(filled=True)
    found = []
    for checkpointing in (False, True):
        network.checkpointing = checkpointing
        network.zero_grad()
        network(*given()).square().mean().backward()
        found.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_a_student_is_told_its_scale_and_how_far_it_steps():
    network = made(filled=True, guidance_width=8, span=True)
    told = {"guidance": torch.tensor([3.0, 3.0]), "span": torch.tensor([0.5, 0.5])}
    before = network(*given(), **told)
    for name in told:
        assert (network(*given(), **{**told, name: told[name] + 0.3}) - before).abs().max() > 1e-4
    with pytest.raises(ValueError, match="span"):
        network(*given(), guidance=told["guidance"])
    with pytest.raises(ValueError, match="guidance"):
        made()(*given(), guidance=told["guidance"])


@pytest.mark.parametrize(
    ("size", "parameters", "tensors"),
    [("medium", 2_028_328_000, 683), ("3.5-medium", 2_243_171_520, 909), ("3.5-large", 8_056_627_520, 1227)],
)  # fmt: skip
def test_published_sizes_have_as_many_parameters_and_tensors_as_published(size, parameters, tensors):
    with torch.device("meta"):
        network = MMDiTConfig(size=size).build()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


@pytest.mark.parametrize(
    ("values", "words"),
    [({"heads": 3}, "heads=3"), ({"dual": (3,)}, "blocks are numbered from 0 to 2"), ({"size": "huge"}, "size='huge'"),
     ({"depths": 3}, "depths")],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        MMDiTConfig(**{**SMALL, **values})


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
def test_it_equals_the_public_class_with_the_same_weights(form):
    diffusers = pytest.importorskip("diffusers")
    public = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=20, caption_projection_dim=32, pooled_projection_dim=12,
        pos_embed_max_size=24, dual_attention_layers=FORMS[form].get("dual", ()),
        qk_norm="rms_norm" if "qk_norm" in FORMS[form] else None,
    ).eval()  # fmt: skip
    g = torch.Generator().manual_seed(0)
    for parameter in public.parameters():
        parameter.data.normal_(std=0.1, generator=g)
    network = made(**FORMS[form])
    assert torch.allclose(network.pos_embed.pos_embed, public.pos_embed.pos_embed, atol=1e-6)
    network.load_state_dict(public.state_dict())  # names and shapes are the same
    x, time, text, pooled = given()
    with torch.no_grad():
        theirs = public(x, text, pooled, time * 1000).sample
        assert (network(x, time, text, pooled) - theirs).abs().max() < 1e-5
