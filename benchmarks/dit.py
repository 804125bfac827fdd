"""DiT against diffusers' DiTTransformer2DModel with the same weights: forward at the paper's sizes, with 8-bit weights too, and a
training step; the small world's transformer in hwaga's loop against a plain loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hwaga.formats import dit as public
from hwaga.formats.keys import Assembled, places
from hwaga.interfaces import Batch
from hwaga.networks.dit import SIZES
from hwaga.precision import choose_dtype
from hwaga.systems.base import About
from hwaga.systems.dit import DiT
from hwaga.training import EmaConfig, Trainer, TrainingConfig
from hwaga.weights.fill import fill
from hwaga.weights.quantised import quantise

from .pairing import Row, compare, gflop
from .peers import hide_torchvision, version
from .pictures import InOrder, Pictures

GROUP, CLASSES = "dit", 1000
SMALL = {"depth": 6, "width": 192, "heads": 6}  # the network of openmoji/dit


def rows() -> Iterator[Row]:
    peer = version("diffusers")
    for size, aim in (("S", 1.0), ("XL", 1.0)):
        ours, theirs = _pair(**SIZES[size])
        yield _forward(f"DiT-{size}/2 forward, 2 x 4 x 32 x 32", peer, ours, theirs, aim)
        if size == "XL":
            yield _rounded(f"DiT-{size}/2 forward, 8-bit weights", peer, ours, theirs)
        del ours, theirs
    yield _training("DiT-S/2 training step, batch 8 of 4 x 32 x 32", peer, 8, 32, aim=1.0, **SIZES["S"])
    small = {"patch": 4, "channels": 3, **SMALL}
    yield _training("openmoji/dit training step, batch 64", peer, 64, 32, aim=1.0, **small)
    kind, _ = choose_dtype("auto", torch.device("cpu"), training=True)
    if kind != torch.float32:
        name = "openmoji/dit training step, batch 64, as it trains here: bfloat16"
        yield _training(name, f"{peer}, float32", 64, 32, aim=1 / 1.2, dtype=kind, **small)


def _pair(
    depth: int, width: int, heads: int, patch: int = 2, channels: int = 4, side: int = 32, learned: bool = True
) -> tuple[Any, Any]:  # fmt: skip
    """The same random weights on both sides."""
    hide_torchvision()
    from diffusers import DiTTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=width // heads, in_channels=channels,
            out_channels=channels * (2 if learned else 1), num_layers=depth, sample_size=side, patch_size=patch,
            num_embeds_ada_norm=CLASSES,
        ).eval()  # fmt: skip
    first = theirs.transformer_blocks[0].norm1.emb.state_dict()
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    config = public.network_config(dict(theirs.config), "diffusers")
    with torch.device("meta"):
        names = list(config.build().state_dict())
    where = places(names, public.FOLDER, each=depth)
    own = {name: value.clone() for name, value in Assembled(theirs.state_dict(), where, "diffusers").items()}
    return fill(config, own, "diffusers").eval(), theirs


def _given(n: int, channels: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    times, labels = (torch.randint(0, high, (n,), generator=g) for high in (1000, CLASSES))
    return torch.randn(n, channels, side, side, generator=g), times, labels


@torch.no_grad()
def _forward(name: str, peer: str, ours: Any, theirs: Any, aim: float) -> Row:
    x, t, label = _given(2, 4, 32)
    mine, other = lambda: ours(x, t.float(), label), lambda: theirs(x, t, label).sample
    return compare(
        GROUP, name, peer, mine, other, patience=120, aim=aim, gflop=gflop(other),
        difference=(mine() - other()).abs().max().item(),
    )  # fmt: skip


@torch.no_grad()
def _rounded(name: str, peer: str, ours: Any, theirs: Any) -> Row:
    """Another computation than the peer's: how far it is off is said in the note."""
    x, t, label = _given(2, 4, 32)
    exact = ours(x, t.float(), label)
    count = quantise(ours)
    error = ((ours(x, t.float(), label) - exact).norm() / exact.norm()).item()
    other = lambda: theirs(x, t, label).sample  # noqa: E731
    return compare(
        GROUP, name, f"{peer}, float32", lambda: ours(x, t.float(), label), other, patience=120, aim=0.65, gflop=gflop(other),
        note=f"{count} layers in 8 bits; the output is off by {error:.1%} of its norm (random weights)",
    )  # fmt: skip


class _Plain(DiT):
    """Trained on what it is given, whatever that is: neither side is charged for an autoencoder."""

    def seen(self, batch: Batch, draw: Any) -> Tensor:
        return batch.image


def _training(
    name: str, peer: str, n: int, side: int, aim: float, patch: int = 2, channels: int = 4,
    dtype: torch.dtype = torch.float32, **sizes: int,
) -> Row:  # fmt: skip
    """Noising, forward, backward, AdamW, moving average on both sides; the gradients of one loss are compared first."""
    ours, theirs = _pair(**sizes, patch=patch, channels=channels, side=side, learned=False)
    difference = _gradient_difference(ours, theirs, min(n, 8), channels, side)
    image, _, label = _given(n, channels, side)
    pictures = Pictures(image, label)
    codec = None if channels == 3 else {"latent_channels": channels}
    config = _Plain.checked({"network": ours.config, "labels": True, "autoencoder": codec})
    system = _Plain(config, {"network": ours}, About(size=(side, side)))
    plan = TrainingConfig(batch_size=n, learning_rate=1e-6, ema=EmaConfig(half_lives=(20_000.0,)))
    trainer = Trainer(system.stages()[0], plan, pictures, InOrder(n), dtype=dtype)
    step = _plain_step(theirs, image, label)
    x, t, label = _given(n, channels, side)
    work = gflop(lambda: theirs(x, t, label).sample.square().mean().backward())
    theirs.zero_grad()
    return compare(
        GROUP, name, peer, trainer.step, step, rounds=7, patience=180, aim=aim, gflop=work, difference=difference,
        note="difference: of the whole gradient, relative, by norm; theirs has a copy of the embedders in each block",
    )  # fmt: skip


def _gradient_difference(ours: Any, theirs: Any, n: int, channels: int, side: int) -> float:
    """Of all weights but the embedders, which are copied in each block there."""
    x, t, label = _given(n, channels, side)
    ours(x, t.float(), label).square().mean().backward()
    theirs(x, t, label).sample.square().mean().backward()
    mine = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    other = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    difference = whole = 0.0
    for name, (public_names, move) in places(mine, public.FOLDER, each=ours.config.depth).items():
        if move != "repeat":
            value = torch.cat([other[one] for one in public_names])
            difference += (mine[name] - value).square().sum().item()
            whole += value.square().sum().item()
    for network in (ours, theirs):
        network.zero_grad()
    return (difference / whole) ** 0.5


def _plain_step(network: Any, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """The loop that diffusers' examples have, less logging and accelerator."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    scheduler = DDPMScheduler(num_train_timesteps=1000)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step() -> None:
        noise = torch.randn(images.shape)
        t = torch.randint(0, 1000, (len(images),))
        predicted = network(scheduler.add_noise(images, noise, t), t, labels).sample
        F.mse_loss(predicted, noise).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    return step
