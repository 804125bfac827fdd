"""The U-Net that is told words, against the public class with the same weights, and what is true of it without a peer."""

import pytest
import tiny
import torch

from hwaga.formats import text_unet as public
from hwaga.networks.text_unet import TextUNetConfig
from hwaga.weights.fill import fill

SMALL = {
    "channels": (8, 16),
    "attention": (True, False),
    "depth": (1, 1),
    "heads": (2, 4),
    "blocks": 1,
    "groups": 4,
    "text_width": 12,
}
KINDS = {
    "SD 1": {},
    "SD 2": {"linear_projection": True, "heads": (2, 2)},
    "XL": {
        "attention": (False, True), "depth": (1, 3), "linear_projection": True, "added_width": 10 + 6 * 4, "size_width": 4,
    },
    "LCM": {"guidance_width": 8},
    "inpainting, two blocks": {"in_channels": 9, "blocks": 2},
    "without a middle": {"middle": False},
}  # fmt: skip


def made(seed=0, **more):
    network = TextUNetConfig(**{**SMALL, **more}).build()
    network.initialise(torch.Generator().manual_seed(seed))
    tiny.fill_zeros(network)
    return network.eval()


def told(config, n=2, size=(6, 5), seed=1):
    g = torch.Generator().manual_seed(seed)
    inputs = {
        "x": torch.randn(n, config.in_channels, *size, generator=g), "time": torch.tensor([7.0, 912.0][:n]),
        "text": torch.randn(n, 7, config.text_width, generator=g),
    }  # fmt: skip
    if config.added_width:
        inputs |= {
            "pooled": torch.randn(n, 10, generator=g),
            "ids": torch.tensor([[64.0, 32, 0, 8, 64, 64]]).expand(n, -1),
        }
    if config.guidance_width:
        inputs["guidance"] = torch.tensor([4.0, 8.5][:n])
    return inputs


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_public_network_to_rounding(kind):
    """Odd sizes and a ControlNet's residuals too."""
    diffusers = pytest.importorskip("diffusers")
    ours = made(**KINDS[kind])
    config = public.public_config(ours.config, (6, 6))
    theirs = diffusers.UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")}).eval()
    theirs.load_state_dict(ours.state_dict())
    given = told(ours.config)
    extra = {}
    if ours.config.added_width:
        extra["added_cond_kwargs"] = {"text_embeds": given["pooled"], "time_ids": given["ids"]}
    if ours.config.guidance_width:
        half = ours.config.guidance_width // 2
        angle = (
            (given["guidance"][:, None] - 1)
            * 1000
            * torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(half) / (half - 1))
        )
        extra["timestep_cond"] = torch.cat([angle.sin(), angle.cos()], dim=1)
    with torch.no_grad():
        want = theirs(given["x"], given["time"], given["text"], **extra).sample
        assert (ours(**given) - want).abs().max() < 1e-5 * want.abs().max().clamp(min=1)
        kept = ours.down(
            ours.enter(given["x"]),
            ours.embed(given["time"], given.get("pooled"), given.get("ids"), given.get("guidance")),
            given["text"],
        )
        added = [torch.randn(k.shape, generator=torch.Generator().manual_seed(i)) for i, k in enumerate(kept)]
        middle = torch.randn(kept[-1].shape, generator=torch.Generator().manual_seed(99))
        if ours.config.middle:
            want = theirs(given["x"], given["time"], given["text"], **extra, down_block_additional_residuals=tuple(added),
                          mid_block_additional_residual=middle).sample  # fmt: skip
            assert (ours(**given, residuals=(added, middle)) - want).abs().max() < 1e-5 * want.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_public_config_and_ours_say_the_same(kind):
    config = made(**KINDS[kind]).config
    assert public.network_config(public.public_config(config, (8, 8)), "here") == config


def test_published_sizes_have_the_published_number_of_parameters():
    sizes = {
        "SD 1.5": ({}, 859_520_964, 686),
        "SD 2.1": ({"heads": (5, 10, 20, 20), "text_width": 1024, "linear_projection": True}, 865_910_724, 686),
        "XL": ({"channels": (320, 640, 1280), "attention": (False, True, True), "depth": (1, 2, 10), "heads": (5, 10, 20),
                "text_width": 2048, "linear_projection": True, "added_width": 2816}, 2_567_463_684, 1680),
        "LCM": ({"guidance_width": 256}, 859_602_884, 687),
        "inpainting": ({"in_channels": 9}, 859_535_364, 686),
    }  # fmt: skip
    for name, (config, parameters, keys) in sizes.items():
        with torch.device("meta"):
            network = TextUNetConfig(**config).build()
        assert (sum(p.numel() for p in network.parameters()), len(network.state_dict())) == (parameters, keys), name


@pytest.mark.parametrize("kind", ["SD 1", "XL", "LCM"])
def test_gradient_reaches_every_parameter(kind):
    network = made(**KINDS[kind])
    network(**told(network.config)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_recomputing_in_the_backward_pass_changes_no_gradient():
    network, gradients = made(), []
    for again in (False, True):
        network.checkpointing = again
        network.zero_grad()
        network(**told(network.config)).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_what_is_kept_of_a_text_is_dropped_when_weights_or_text_change():
    network = made()
    given = told(network.config)
    with torch.no_grad():
        before = network(**given)
        layer = network.down_blocks[0].attentions[0].transformer_blocks[0].attn2
        layer.to_v.weight.mul_(-1)
        assert (network(**given) - before).abs().max() > 1e-4
        layer.to_v.weight.mul_(-1)
        assert torch.equal(network(**given), before)
        given["text"].mul_(2)
        assert (network(**given) - before).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "wrong"), [("SD 1", {"pooled": torch.zeros(2, 10)}), ("XL", {"ids": None})])
def test_what_a_network_is_not_told_is_refused(kind, wrong):
    network = made(**KINDS[kind])
    with pytest.raises(ValueError, match="not what this config is told"):
        network(**{**told(network.config), **wrong})


def test_projections_stored_as_matrices_are_read_as_views():
    network = made()
    stored = {k: v.flatten(1) if ".proj_" in k and k.endswith("weight") else v for k, v in network.state_dict().items()}
    seen = public.Projected(stored, linear=False)
    again = fill(network.config, seen, "here")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())
    assert seen.other and all(name.endswith(("proj_in.weight", "proj_out.weight")) for name in seen.other)


@pytest.mark.parametrize(("field", "value"), [
    ("class_embed_type", "projection"), ("dual_cross_attention", True), ("down_block_types", ["SimpleCrossAttnDownBlock2D"] * 4),
    ("cross_attention_dim", [1, 2]), ("nonsense", 1),
])  # fmt: skip
def test_what_is_not_stable_diffusion_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match="here"):
        public.network_config({field: value}, "here")
