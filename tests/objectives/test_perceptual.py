"""The perceptual distance and where its networks come from."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hwaga.errors import InputError
from hwaga.evaluation import judge
from hwaga.formats.perceptual import lpips_names, perceptual_network
from hwaga.layers.initialise import build_on
from hwaga.networks.features import initialise
from hwaga.networks.perceptual import PlainConfig, VGGConfig, folded
from hwaga.objectives.perceptual import Perceptual

WIDTHS = ((2, 2), (3, 3), (4, 4, 4), (4, 4, 4), (4, 4, 4))


def pictures(n=3, side=16, seed=0):
    return torch.rand((n, 3, side, side), generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def plain():
    network = initialise(
        build_on(PlainConfig(classes=5, channels=(8, 16), features=6)), torch.Generator().manual_seed(0)
    )
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


def test_norms_are_folded_into_the_weights_before_them(plain):
    x = pictures()
    assert torch.allclose(folded(plain)(x).logits, plain(x).logits, atol=1e-5)


def test_the_distance_is_the_papers(plain):
    """Equation 1 written out: normalised vectors, squares, a sum over channels, a mean over places, levels alike."""
    x, y = pictures(), pictures(seed=1)
    distance = Perceptual(plain)
    want = 0
    for f, g in zip(plain.levels(x), plain.levels(y), strict=True):
        f, g = (v / (v.square().sum(1, keepdim=True).sqrt() + 0.1) for v in (f, g))
        want = want + (f - g).square().sum(1).mean((1, 2)) / 2
    assert torch.allclose(distance(x, y), want, atol=1e-6)
    assert distance(x, x).eq(0).all() and torch.allclose(distance(x, y), distance(y, x))


def test_it_is_frozen_and_its_gradient_is_finite_on_plain_white(plain):
    distance, white = Perceptual(plain).train(), torch.ones(2, 3, 16, 16, requires_grad=True)
    distance(pictures(2), white).sum().backward()
    assert torch.isfinite(white.grad).all() and white.grad.any()
    assert not distance.network.training and all(p.grad is None for p in distance.parameters())


def lpips_file(path, prefix=""):
    network = VGGConfig(widths=WIDTHS).build()
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for ours, (public, _) in lpips_names().items():
        value = network.state_dict()[ours]
        value = torch.randn(value.shape, generator=generator) * 0.5
        tensors[prefix + public] = value.abs().view(1, -1, 1, 1) if ours.startswith("weights") else value
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return tensors


def test_lpips_in_its_public_layout_gives_the_published_distance(tmp_path):
    tensors = lpips_file(tmp_path / "lpips.safetensors")
    x, y = pictures(2, 32), pictures(2, 32, seed=1)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def levels(image):
        h, found, number = (image - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1), [], 0
        for i, widths in enumerate(WIDTHS):
            if i:
                h, number = torch.nn.functional.max_pool2d(h, 2), number + 1
            for _ in widths:
                weight, bias = (tensors[f"net.slice{i + 1}.{number}.{k}"] for k in ("weight", "bias"))
                h, number = torch.relu(torch.nn.functional.conv2d(h, weight, bias, padding=1)), number + 2
            found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    want = sum(
        ((f - g).square() * tensors[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
        for i, (f, g) in enumerate(zip(levels(x), levels(y), strict=True))
    )
    found = Perceptual(perceptual_network(tmp_path / "lpips.safetensors"))(x, y)
    assert torch.allclose(found, want, rtol=1e-5)
    lpips_file(tmp_path / "inside.safetensors", "loss.perceptual_loss.")
    assert torch.equal(Perceptual(perceptual_network(tmp_path / "inside.safetensors"))(x, y), found)


def test_lpips_may_lie_in_two_files_of_a_folder(tmp_path):
    (tmp_path / "two").mkdir()
    whole = lpips_file(tmp_path / "lpips.safetensors")
    backbone = {names[1]: whole[names[0]] for ours, names in lpips_names().items() if ours.startswith("stages")}
    save_file({**backbone, "classifier.0.weight": torch.zeros(2)}, tmp_path / "two" / "vgg16.safetensors")
    save_file({k: v for k, v in whole.items() if k.startswith("lin")}, tmp_path / "two" / "vgg.safetensors")
    one, two = (Perceptual(perceptual_network(tmp_path / name)) for name in ("lpips.safetensors", "two"))
    assert torch.equal(one(pictures(2, 32), pictures(2, 32, 1)), two(pictures(2, 32), pictures(2, 32, 1)))
    (tmp_path / "two" / "vgg.safetensors").unlink()
    with pytest.raises(InputError, match="lin0.model.1.weight"):
        perceptual_network(tmp_path / "two")


def test_what_training_left_is_loaded_and_a_judge_is_refused(plain, tmp_path):
    judge.save_network(plain, tmp_path / "mine", {"name": "mine"})
    network = perceptual_network(tmp_path / "mine")
    x = pictures()
    assert torch.allclose(network(x).logits, plain(x).logits, atol=2e-2)  # stored in half precision
    with pytest.raises(InputError, match="holds 'features', which trains nothing"):
        perceptual_network("openmoji/features")
    with pytest.raises(InputError, match="hwaga.evaluation.judge"):
        perceptual_network(tmp_path / "absent")
    card = json.loads((tmp_path / "mine" / "model.json").read_text())
    assert card["kind"] == "perceptual" and not any("norm" in name for name in network.state_dict())
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="is not the file that model.json names"):
        perceptual_network(tmp_path / "mine")
