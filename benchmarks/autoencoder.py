"""VAE steps against pythae's (where it is installed), and the public autoencoder's decoder against diffusers', at once and in
parts: seconds here, peak memory in fresh processes.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hwaga.networks.autoencoder import AutoencoderKLConfig, Gaussian
from hwaga.networks.tiling import Tiling
from hwaga.systems.base import About
from hwaga.systems.vae import VAE
from hwaga.training import EmaConfig, Trainer, TrainingConfig

from .pairing import Row, compare, gflop
from .peers import HIDE_TORCHVISION, hide_torchvision, version
from .pictures import InOrder, Pictures, random_pictures
from .processes import MEMORY, run

GROUP, BATCH, LATENTS = "autoencoder", 64, 16
PUBLIC = (128, 256, 512, 512)  # Stable Diffusion's autoencoder, 83.7 M
PEAK = (
    HIDE_TORCHVISION
    + MEMORY
    + """
import json, sys, torch
side, kind, pixels = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
if side == "hwaga":
    from hwaga.networks.autoencoder import AutoencoderKLConfig
    from hwaga.networks.tiling import Tiling
    network = AutoencoderKLConfig().build().eval()
    network.tiling = Tiling(kind)
    decode = network.decoded
else:
    from diffusers import AutoencoderKL
    network = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4).eval()
    network.enable_tiling() if kind == "blended" else None
    decode = lambda z: network.decode(z).sample
z = torch.randn(1, 4, pixels // 8, pixels // 8)
with torch.no_grad():
    decode(z)
print(json.dumps(memory()["VmHWM"]))
"""
)


def rows() -> Iterator[Row]:
    if importlib.util.find_spec("pythae") is not None:
        yield _step_of_one_network()
        yield _step_of_own_networks()
    ours, theirs = _pair()
    yield _decode(ours, theirs, 512, "whole")
    yield _decode(ours, theirs, 512, "blended")
    yield _decode(ours, theirs, 512, "exact")
    yield _memory()


# ------------------------------------------------------------------------------------------------------------------ steps


class _Theirs(nn.Module):
    """pythae's encoder and decoder where our system looks for an autoencoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, config: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config = encoder, decoder, config

    def posterior(self, image: Tensor, label: Tensor | None = None) -> Gaussian:
        found = self.encoder(image)
        return Gaussian(found.embedding, found.log_covariance)

    def decoded(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.decoder(z).reconstruction


def _peer(convolutions: bool) -> Any:
    from pythae.models import VAE as Peer  # type: ignore[import-not-found]
    from pythae.models import VAEConfig as PeerConfig
    from pythae.models.nn.benchmarks.cifar import (  # type: ignore[import-not-found]
        Decoder_Conv_AE_CIFAR,
        Encoder_Conv_VAE_CIFAR,
    )

    config = PeerConfig(input_dim=(3, 32, 32), latent_dim=LATENTS, reconstruction_loss="mse")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not convolutions:
            return Peer(config)
        return Peer(config, Encoder_Conv_VAE_CIFAR(config), Decoder_Conv_AE_CIFAR(config))


def _plain_step(peer: Any, image: Tensor) -> Callable[[], None]:
    """The step of pythae's trainer, less its logging."""
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-6)
    inputs = {"data": image}

    def step() -> None:
        peer.train()
        output = peer(inputs, epoch=1, dataset_size=BATCH, uses_ddp=False)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        output.loss.item()

    return step


def _trained(system: VAE, pictures: Pictures) -> Trainer:
    config = TrainingConfig(batch_size=BATCH, learning_rate=1e-6, ema=EmaConfig(half_lives=()), dtype="float32")
    return Trainer(system.stages()[0], config, pictures, InOrder(BATCH))


def _step_of_one_network() -> Row:
    """Their default multilayer perceptron on both sides: what is compared is the loss and the loop around it."""
    peer, pictures = _peer(False), Pictures(random_pictures(BATCH))
    config = VAE.checked({
        "network": {"kind": "vector", "latents": LATENTS}, "likelihood": {"kind": "gaussian", "deviation": 1.0},
    })  # fmt: skip
    mine = _peer(False)
    system = VAE(config, {"autoencoder": _Theirs(mine.encoder, mine.decoder, config.network)}, About(size=(32, 32)))
    step = _plain_step(peer, pictures.image)
    return compare(
        GROUP, f"VAE step, the same perceptron, batch {BATCH}", version("pythae"), _trained(system, pictures).step, step,
        aim=0.7, gflop=gflop(step), note="ours with health measures and checks of every loss and gradient",
    )  # fmt: skip


def _step_of_own_networks() -> Row:
    """Each project's own convolutional network for 32 x 32 pixels: pythae's for CIFAR-10, that of `openmoji/vae`."""
    peer, pictures = _peer(True), Pictures(random_pictures(BATCH))
    network = {"kind": "vector", "latents": LATENTS, "channels": [64, 96, 128], "blocks": 1, "patch": 2, "groups": 16}
    system = VAE.create({"network": network}, size=(32, 32))
    theirs = sum(p.numel() for p in peer.parameters()) / 1e6
    mine = sum(system.parameters_by_network().values()) / 1e6
    return compare(
        GROUP, f"VAE step, each one's own convolutional network, batch {BATCH}", version("pythae"),
        _trained(system, pictures).step, _plain_step(peer, pictures.image), rounds=3, patience=120, aim=0.7,
        note=f"not the same network: {mine:.1f} M parameters to {theirs:.1f} M",
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- decoding


def _pair() -> tuple[Any, Any]:
    """The public autoencoder on both sides with the same random weights."""
    hide_torchvision()
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = AutoencoderKL(
            block_out_channels=PUBLIC, layers_per_block=2, down_block_types=["DownEncoderBlock2D"] * 4, sample_size=256,
            up_block_types=["UpDecoderBlock2D"] * 4,
        ).eval()  # fmt: skip
    ours = AutoencoderKLConfig(channels=PUBLIC).build().eval()
    ours.load_state_dict({**ours.state_dict(), **theirs.state_dict()})
    return ours, theirs


@torch.no_grad()
def _decode(ours: Any, theirs: Any, pixels: int, kind: Any) -> Row:
    """Blended: tiles of 256 pixels on both sides; exact: against all at once there."""
    z = torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(1))
    ours.tiling = Tiling(kind, tile=256)
    theirs.enable_tiling() if kind == "blended" else theirs.disable_tiling()

    def decode() -> Tensor:
        return theirs.decode(z).sample

    difference = (ours.decoded(z) - decode()).abs().max().item()
    names = {"whole": "at once", "blended": "in tiles of 256", "exact": "in strips (theirs at once)"}
    return compare(
        GROUP, f"decode to {pixels} x {pixels}, {names[kind]}", version("diffusers"), lambda: ours.decoded(z), decode,
        rounds=3, patience=240, aim=0.7, gflop=gflop(decode), difference=difference,
    )  # fmt: skip


def _memory() -> Row:
    """Peak resident memory of a fresh process, imports included, that decodes once with one thread; the ratio is of memory.

    ours and theirs: GB, for 1024 x 1024 pixels in parts (strips here, tiles of 512 there).
    """
    asked = [
        ("hwaga", "whole", 512), ("diffusers", "whole", 512), ("hwaga", "exact", 1024), ("hwaga", "blended", 1024),
        ("diffusers", "blended", 1024),
    ]  # fmt: skip
    peak = {one: float(json.loads(run("-c", PEAK, *map(str, one)))) for one in asked}
    gb = {f"{side} {kind} {pixels}": f"{value / 1e9:.2f} GB" for (side, kind, pixels), value in peak.items()}
    a, b = peak["hwaga", "exact", 1024] / 1e9, peak["diffusers", "blended", 1024] / 1e9
    return Row(
        GROUP, "decode to 1024 x 1024 in parts: peak memory", version("diffusers"), a / b, a / b, a / b, a, b, 1, 0,
        note="figures are GB, not seconds; aim: under 2 GB; " + ", ".join(f"{k}: {v}" for k, v in gb.items()),
    )  # fmt: skip
