"""StyleGAN2 against stylegan2_pytorch: a convolution whose kernel every picture has its own of, and whole steps of training.

The peer is not installed whole (it wants a GPU, an experiment tracker and an old package at import): what is timed are its
networks and losses, imported with those replaced, in the order of its `Trainer.train`. It needs kornia, which blurs for it.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hwaga.layers.modulation import modulated
from hwaga.systems import find
from hwaga.training.config import EmaConfig, TrainingConfig
from hwaga.training.loop import Trainer

from .pairing import Row, compare, gflop
from .peers import version
from .pictures import InOrder, Pictures, random_pictures

GROUP, SIZE, BATCH, LATENT = "stylegan", 64, 16, 512
CAPACITY = (
    8  # of the peer: 256, 128, 64, 32, 16 channels at 4 ... 64 px in G, 32, 64, 128, 256, 256 at 64 ... 4 px in D
)


def rows() -> Iterator[Row]:
    if any(importlib.util.find_spec(name) is None for name in ("stylegan2_pytorch", "kornia")):
        print(f"{GROUP}: left out, as stylegan2_pytorch or kornia is not installed")
        return
    with _importable():
        from stylegan2_pytorch import stylegan2_pytorch as peer  # type: ignore[import-not-found]

        for channels, size in ((32, 64), (128, 16), (512, 16)):
            yield _convolution(peer, channels, size)
        yield _step(peer, False)
        yield _step(peer, True)


@contextmanager
def _importable() -> Iterator[None]:
    """Inside, what the peer asks for at import and what is not timed is there in name."""
    named = {
        "fire": (), "aim": (), "torchvision": ("transforms",), "torchvision.transforms": (),
        "vector_quantize_pytorch": ("VectorQuantize",), "contrastive_learner": ("ContrastiveLearner",),
    }  # fmt: skip
    before = {name: sys.modules.get(name) for name in named}
    asked = torch.cuda.is_available
    for name, members in named.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module
    torch.cuda.is_available = lambda: True
    try:
        import stylegan2_pytorch.stylegan2_pytorch  # noqa: F401

        torch.cuda.is_available = asked
        yield
    finally:
        torch.cuda.is_available = asked
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _convolution(peer: Any, channels: int, size: int) -> Row:
    """Forward and both gradients of a modulated, demodulated 3 x 3; the peer's kernels are grouped, one a picture. Each side has
    its pictures in the memory layout that its network keeps them in."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, channels, size, size, generator=generator).requires_grad_(True)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(True)
    style = torch.randn(BATCH, channels, generator=generator)
    theirs = peer.Conv2DMod(channels, channels, 3)
    weight = theirs.weight.detach().clone().requires_grad_(True)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(modulated(last, weight, style + 1).square().sum(), (last, weight))

    def others() -> tuple[Tensor, ...]:
        return torch.autograd.grad(theirs(x, style).square().sum(), (x, theirs.weight))

    difference = max(((a - b).norm() / b.norm()).item() for a, b in zip(ours(), others(), strict=True))
    return compare(
        GROUP, f"modulated convolution, {channels} channels, {size} px, batch {BATCH}, with gradients",
        version("stylegan2_pytorch"), ours, others, aim=0.7, gflop=3 * gflop(lambda: theirs(x, style)), difference=difference,
        note="difference: of the gradients, relative, by norm",
    )  # fmt: skip


def _step(peer: Any, penalised: bool) -> Row:
    """One move of D, one of G and the average, with (at every step) or without the gradient penalty on D.

    The same channels at the same sizes, latents and depth of mapping. The networks are not the same: the peer's D has three
    convolutions a block where StyleGAN2 has two, its blur three taps where StyleGAN2 has four; gflop is the peer's.
    """
    pictures = Pictures(random_pictures(BATCH, SIZE, seed=0))
    reverse = [CAPACITY * 2 ** (i + 1) for i in range(5)][::-1]
    down = [min(CAPACITY * 4 * 2**i, 256) for i in range(5)][::-1]
    system = find("stylegan").create(
        {
            "generator": {"channels": reverse, "z_dim": LATENT, "w_dim": LATENT},
            "discriminator": {"channels": down}, "path_weight": 0, "r1_every": 1, "r1_weight": 1.0 if penalised else 0,
        },
        size=(SIZE, SIZE),
    )  # fmt: skip
    config = TrainingConfig(
        batch_size=BATCH, learning_rate=1e-6, dtype="float32", ema=EmaConfig(half_lives=(10_000.0,))
    )
    trainer = Trainer(system.stages()[0], config, pictures, InOrder(BATCH))
    theirs = _plain_step(peer, pictures.image, penalised)
    name = "step with R1" if penalised else "step"
    return compare(
        GROUP, f"{name} at {SIZE} px, batch {BATCH}", version("stylegan2_pytorch"), trainer.step, theirs, rounds=5,
        patience=240, aim=0.7, gflop=None if penalised else gflop(theirs), note="networks of like sizes, not the same",
    )  # fmt: skip


def _plain_step(peer: Any, pictures: Tensor, penalised: bool) -> Callable[[], None]:
    """What `Trainer.train` of the peer does in a step: no augmentation, no logging."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mapping, average_mapping = (peer.StyleVectorizer(LATENT, 8, lr_mul=0.1) for _ in range(2))
        paint, average = (peer.Generator(SIZE, LATENT, network_capacity=CAPACITY, fmap_max=256) for _ in range(2))
        judge = peer.Discriminator(SIZE, network_capacity=CAPACITY, fmap_max=256)
    of_paint = torch.optim.Adam([*paint.parameters(), *mapping.parameters()], lr=1e-6, betas=(0.5, 0.9))
    of_judge = torch.optim.Adam(judge.parameters(), lr=2e-6, betas=(0.5, 0.9))
    follow = peer.EMA(0.995)

    def painted() -> Tensor:
        layers = paint.num_layers
        meet = int(torch.randint(layers, ())) if torch.rand(()) < 0.9 else 0  # `mixed_list`, which insists on a GPU
        parts = [(torch.randn(BATCH, LATENT), n) for n in (meet, layers - meet)]
        styles = peer.styles_def_to_tensor([(mapping(z), n) for z, n in parts])
        return paint(styles, torch.rand(BATCH, SIZE, SIZE, 1))

    def step() -> None:
        of_judge.zero_grad()
        fake = painted().clone().detach().requires_grad_(penalised)
        real = pictures.clone().requires_grad_(penalised)
        fakes, reals = judge(fake)[0], judge(real)[0]
        loss = peer.hinge_loss(fakes, reals)
        if penalised:
            loss = loss + peer.gradient_penalty(real, reals)
        loss.backward()
        of_judge.step()
        of_paint.zero_grad()
        peer.gen_hinge_loss(judge(painted())[0], None).backward()
        of_paint.step()
        with torch.no_grad():
            for old, new in ((average_mapping, mapping), (average, paint)):
                for a, b in zip(old.parameters(), new.parameters(), strict=True):
                    a.data = follow.update_average(a.data, b.data)

    return step
