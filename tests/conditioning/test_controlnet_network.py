"""The ControlNet network: zero at first, a copy of its base, equal to the public class."""

import pytest
import tiny
import torch

from hwaga.conditioning.controlnet import ControlNetConfig, summed
from hwaga.formats import controlnet as public
from hwaga.layers.initialise import build_on
from hwaga.networks.text_unet import TextUNetConfig

BASE = TextUNetConfig(**tiny.WORDED, text_width=16)


def made(base=BASE, seed=0, **own):
    net = build_on(ControlNetConfig.of(base, **{"hint_channels": (8, 8), **own}))
    net.initialise(torch.Generator().manual_seed(seed))
    return net.eval()


def inputs(n=2, size=8, seed=0, factor=2):
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(n, 4, size, size, generator=g), "time": torch.tensor([3.0, 700.0][:n]),
        "text": torch.randn(n, 5, 16, generator=g), "control": torch.rand(n, 3, factor * size, factor * size, generator=g),
    }  # fmt: skip


def ask(net, given, **how):
    rest = {name: value for name, value in given.items() if name != "control"}
    return net(**rest, hint=net.hint(given["control"]), **how)


def flat(residuals):
    return [*residuals[0], residuals[1]]


@torch.no_grad()
def test_at_first_it_adds_nothing_and_the_base_says_the_same_bits():
    net, base, given = made(), build_on(BASE), inputs()
    base.initialise(torch.Generator().manual_seed(1))
    tiny.fill_zeros(base)
    net.copy(base)
    said = ask(net, given)
    assert all(not value.any() for value in flat(said))
    plain = base(given["x"], given["time"], given["text"])
    assert torch.equal(plain, base(given["x"], given["time"], given["text"], residuals=said))


@torch.no_grad()
def test_it_begins_as_a_copy_of_the_bases_first_half():
    net, base = made(), build_on(BASE)
    base.initialise(torch.Generator().manual_seed(1))
    net.copy(base)
    given, own = base.state_dict(), net.state_dict()
    shared = [name for name in own if not name.startswith("controlnet_")]
    assert shared and all(torch.equal(own[name], given[name]) for name in shared)
    assert all(name in own for name in given if not name.startswith(("up_blocks", "conv_norm_out", "conv_out")))


def test_a_base_that_is_told_a_mask_lends_the_channels_of_the_picture():
    base = build_on(TextUNetConfig(**{**BASE.model_dump(), "in_channels": 9}))
    base.initialise(torch.Generator().manual_seed(1))
    net = made(base.config)
    net.copy(base)
    assert net.config.in_channels == 4 and torch.equal(net.conv_in.weight, base.conv_in.weight[:, :4])
    with pytest.raises(ValueError, match="its ControlNet"):
        made(BASE.model_copy(update={"channels": (8, 24)})).copy(base)


def test_gradient_reaches_every_parameter():
    net = made()
    tiny.fill_zeros(net)
    given = inputs()
    sum(value.square().sum() for value in flat(ask(net, given))).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_at_the_first_step_the_convolutions_that_are_zero_learn_already():
    net, given = made(), inputs()
    sum((value - 1).square().sum() for value in flat(ask(net, given))).backward()
    assert all(layer.weight.grad.any() for layer in [*net.controlnet_down_blocks, net.controlnet_mid_block])


@torch.no_grad()
def test_scales_are_linear_and_several_nets_are_summed():
    net, other, given = made(), made(seed=3), inputs()
    tiny.fill_zeros(net)
    tiny.fill_zeros(other, seed=1)
    one, half = ask(net, given), ask(net, given, scale=0.5)
    assert all(torch.allclose(a / 2, b) for a, b in zip(flat(one), flat(half), strict=True))
    both = summed([one, ask(other, given)])
    assert all(torch.equal(a + b, c) for a, b, c in zip(flat(one), flat(ask(other, given)), flat(both), strict=True))
    assert flat(summed([one]))[0] is flat(one)[0]


@torch.no_grad()
def test_guess_mode_weighs_from_a_tenth_to_one_evenly_in_logarithm():
    net, given = made(), inputs()
    tiny.fill_zeros(net)
    plain, guess = flat(ask(net, given)), flat(ask(net, given, guess=True))
    ratios = torch.stack([(b.norm() / a.norm()) for a, b in zip(plain, guess, strict=True)])
    assert ratios[0] - 0.1 < 1e-5 and abs(ratios[-1] - 1) < 1e-5
    steps = ratios.log().diff()
    assert (steps - steps.mean()).abs().max() < 1e-4


@torch.no_grad()
def test_exchanged_colours_and_means_over_places():
    net, given = made(), inputs()
    tiny.fill_zeros(net)
    turned = made(bgr=True)
    turned.load_state_dict(net.state_dict())
    swapped = {**given, "control": given["control"].flip(1)}
    assert all(torch.equal(a, b) for a, b in zip(flat(ask(net, given)), flat(ask(turned, swapped)), strict=True))
    pooled = made(pooled=True)
    pooled.load_state_dict(net.state_dict())
    for a, b in zip(flat(ask(net, given)), flat(ask(pooled, given)), strict=True):
        assert b.shape[2:] == (1, 1) and torch.allclose(a.mean((2, 3), keepdim=True), b)


# ---------------------------------------------------------------------------------------------------------- the public class

PUBLIC = {
    "block_out_channels": [16, 32, 32], "layers_per_block": 2, "norm_num_groups": 4, "cross_attention_dim": 16,
    "attention_head_dim": 2, "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "conditioning_embedding_out_channels": [8, 8, 16, 16],
}  # fmt: skip
XL = {
    "attention_head_dim": [2, 2, 4], "use_linear_projection": True, "transformer_layers_per_block": [1, 2, 3],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 12,
}  # fmt: skip
KINDS = {
    "sd1": ({}, {}), "sd2": ({"attention_head_dim": [1, 2, 4], "use_linear_projection": True}, {}), "xl": (XL, {}),
    "bgr": ({"controlnet_conditioning_channel_order": "bgr"}, {}), "guess": ({}, {"guess": True}),
    "pooled": ({"global_pool_conditions": True}, {"guess": True}), "scaled": ({}, {"scale": 0.7}),
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_says_what_the_public_class_says(kind):
    diffusers = pytest.importorskip("diffusers")
    config, how = KINDS[kind]
    torch.manual_seed(0)
    peer = diffusers.ControlNetModel(**{**PUBLIC, **config}).eval()
    tiny.fill_zeros(peer, seed=2)
    net = public.network_config({**peer.config}, "here").build().eval()
    net.load_state_dict(peer.state_dict())
    given, told, added = inputs(size=10, factor=8), {}, {}
    if kind == "xl":
        told = {"pooled": torch.randn(2, 12), "ids": torch.tensor([[64.0, 80, 0, 8, 64, 64]] * 2)}
        added = {"added_cond_kwargs": {"text_embeds": told["pooled"], "time_ids": told["ids"]}}
    ours = flat(ask(net, {**given, **told}, **how))
    down, mid = peer(
        given["x"], given["time"], given["text"], given["control"], conditioning_scale=how.get("scale", 1.0),
        guess_mode=how.get("guess", False), return_dict=False, **added,
    )  # fmt: skip
    for a, b in zip(ours, [*down, mid], strict=True):
        assert a.shape == b.shape and (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max()))
