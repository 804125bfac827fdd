"""The diffusion transformer: shapes, what it begins as, where positions and conditions go, equality with diffusers'."""

import pytest
import tiny
import torch
from pydantic import ValidationError

from hwaga.layers.initialise import build_on
from hwaga.layers.positions import rotated, rotations_2d, sine_cosine_2d
from hwaga.networks.dit import DiTConfig

CONDITIONINGS = ("adaln-zero", "adaln", "cross-attention", "in-context")
MODERN = {"positions": "rope", "qk_norm": True, "mlp": "swiglu"}
CPU = torch.device("cpu")


def made(seed=0, filled=False, **values):
    config = DiTConfig(
        **{"width": 32, "depth": 2, "heads": 2, "classes": 4, "in_channels": 3, "out_channels": 6, **values}
    )
    network = build_on(config)
    network.initialise(torch.Generator().manual_seed(seed))
    if filled:
        tiny.fill_zeros(network)
    return network.eval()


def given(n=2, channels=3, size=(8, 12), seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, *size, generator=g), torch.rand(n, generator=g) * 999, torch.arange(n) % 4


@pytest.mark.parametrize("options", [{}, MODERN], ids=["plain", "modern"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_gradient_reaches_every_parameter(conditioning, options):
    network = made(filled=True, conditioning=conditioning, **options)
    x, time, _ = given(4)
    network(x, time, torch.arange(4)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_blocks_of_adaln_zero_begin_as_the_identity_and_the_network_as_zero():
    network = made()
    x, time, label = given()
    told, _ = network.condition(time, label, x.dtype)
    tokens = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(2))
    assert all(torch.equal(block(tokens, told, None), tokens) for block in network.blocks)
    assert not network(x, time, label).any()


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("part", ["time", "label"])
def test_every_conditioning_hears_time_and_label(conditioning, part):
    network = made(filled=True, conditioning=conditioning)
    x, time, label = given()
    other = network(x, time + 100, label) if part == "time" else network(x, time, (label + 1) % 4)
    assert (network(x, time, label) - other).abs().max() > 1e-4


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_any_height_and_width_that_the_patch_divides(patch):
    network = made(filled=True, patch=patch)
    x, time, label = given(size=(16, 24))
    assert network(x, time, label).shape == (2, 6, 16, 24)
    if patch > 1:
        with pytest.raises(ValueError, match=f"patch={patch}"):
            network(x[..., 1:], time, label)


def test_patches_go_back_where_they_came_from():
    """With no blocks' effect and a last layer that inverts the first, the picture returns."""
    network = made(width=48, heads=2, patch=4, out_channels=3, positions="none", depth=1)
    with torch.no_grad():
        first = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))[0]
        network.patches.weight.copy_(first.view(48, 3, 4, 4))  # columns are (c p q)
        network.patches.bias.zero_()
        back = first.T.view(3, 4, 4, 48).permute(1, 2, 0, 3).reshape(48, 48)  # rows are (p q c)
        network.out.linear.weight.copy_(back)
    network.out.norm = torch.nn.Identity()
    x, time, label = given(size=(8, 12))
    assert (network(x, time, label) - x).abs().max() < 1e-5


def test_positions_are_fixed_sines_and_cosines_columns_first():
    table = sine_cosine_2d(8, 2, 3, None, CPU)
    place = 1 * 3 + 2  # row 1, column 2
    omega = torch.tensor([1.0, 10_000 ** (-1 / 2)])
    wanted = torch.cat([(2 * omega).sin(), (2 * omega).cos(), (1 * omega).sin(), (1 * omega).cos()])
    assert (table[place] - wanted).abs().max() < 1e-6


def test_another_size_is_stretched_over_the_trained_grid():
    small, large = (sine_cosine_2d(16, n, n, (4, 4), CPU).view(n, n, 16) for n in (4, 8))
    assert (large[::2, ::2] - small).abs().max() < 1e-6
    assert torch.equal(small, sine_cosine_2d(16, 4, 4, None, CPU).view(4, 4, 16))


def test_rotations_make_attention_depend_on_differences_of_places_alone():
    turned = rotations_2d(8, 5, 5, None, 1, CPU)
    q, k = torch.randn(2, 1, 1, 26, 8, generator=torch.Generator().manual_seed(0))
    q, k = q[:, :, :1].expand(-1, -1, 26, -1), k[:, :, :1].expand(-1, -1, 26, -1)
    logits = (rotated(q, turned) @ rotated(k, turned).transpose(-1, -2))[0, 0]
    cell = lambda row, column: 5 * row + column  # noqa: E731
    assert (logits[cell(0, 0), cell(1, 2)] - logits[cell(3, 1), cell(4, 3)]).abs() < 1e-5
    assert (logits[cell(0, 0), cell(1, 2)] - logits[cell(0, 0), cell(2, 1)]).abs() > 1e-3
    assert torch.equal(rotated(q, turned)[..., 25, :], q[..., 25, :])  # a condition's token stands nowhere


def test_checkpointing_gives_the_same_gradients():
    plain, saving = made(filled=True), made(filled=True)
    saving.checkpointing = True
    for network in (plain, saving):
        network(*given()).square().mean().backward()
    pairs = zip(plain.parameters(), saving.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


def test_normed_queries_and_keys_bound_the_logits():
    attention = made(filled=True, qk_norm=True).blocks[0].attention
    x = 1000 * torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    q, k, _ = attention.qkv(x).view(1, 6, 3, 2, 16).unbind(2)
    assert (attention.norm_q(q) * attention.norm_k(k)).sum(-1).abs().max() <= 16 * 1.001


def test_half_precision_training_needs_no_warning():
    network = made(filled=True, **MODERN)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(*given()).isfinite().all()


@pytest.mark.parametrize("size, millions", [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_sizes_of_the_paper(size, millions):
    """Table 4 of the paper, for patch 2 on latents of 4 channels."""
    with torch.device("meta"):
        network = DiTConfig(size=size, classes=1001).build()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": "M"}, "one of S, B, L, XL"),
        ({"heads": 5}, "heads=5"),
        ({"positions": "rope", "width": 24, "heads": 4}, "multiple of 4"),
        ({"frequency_width": 2, "frequency_shift": 1}, "no frequencies"),
        ({"conditioning": "adaln_zero"}, "adaln-zero"),
    ],
)
def test_a_config_that_cannot_be_is_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        DiTConfig(**{"width": 32, "heads": 2, "depth": 1, **values} if "size" not in values else values)


def test_labels_are_given_where_there_are_some_and_only_there():
    x, time, label = given()
    with pytest.raises(ValueError, match="label missing"):
        made()(x, time)
    with pytest.raises(ValueError, match="without label"):
        made(classes=0)(x, time, label)
    assert made(classes=0)(x, time).shape == (2, 6, 8, 12)
