"""The peers, imported so that nothing of theirs but what is timed is needed."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import torch

_kept: list[Any] = []


HIDE_TORCHVISION = "import sys; sys.modules['torchvision'] = None; "
"""Begins a program of diffusers: other peers need a torchvision, which a CPU-only torch cannot import whole, and which
diffusers would import if it could."""


def hide_torchvision() -> None:
    """As HIDE_TORCHVISION, in this process; `declare_torchvision_operators` shows it again."""
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]


def declare_torchvision_operators() -> None:
    """torchvision's Python half looks for two compiled operators; on a CPU-only torch they are not there, nor used."""
    if sys.modules.get("torchvision", True) is None:
        del sys.modules["torchvision"]
    try:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    except RuntimeError:
        pass  # a torchvision that fits has declared them


def version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


CIFAR = {"channels": (128, 256, 256, 256), "attention": (False, True, False, False)}  # google/ddpm-cifar10-32, 35.7 M
NARROW = {"channels": (64, 128, 128), "attention": (False, True, False)}  # 6.5 M


def unet2d(channels: tuple[int, ...], attention: tuple[bool, ...], seed: int = 0) -> Any:
    """diffusers' UNet2DModel as google/ddpm-cifar10-32 has it, in other widths: random weights, all of them used."""
    hide_torchvision()
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=channels,
            down_block_types=[f"{'Attn' * a}DownBlock2D" for a in attention],
            up_block_types=[f"{'Attn' * a}UpBlock2D" for a in reversed(attention)], attention_head_dim=None,
            norm_num_groups=32, norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
        )  # fmt: skip


def save_ddim(folder: Path, unet: Any) -> None:
    """A diffusers folder (DDIMPipeline) around a network."""
    from diffusers import DDIMPipeline, DDIMScheduler

    DDIMPipeline(unet=unet, scheduler=DDIMScheduler(num_train_timesteps=1000)).save_pretrained(folder)


def walked(network: Any, scheduler: Any, start: torch.Tensor, steps: int) -> torch.Tensor:
    """The loop of diffusers' pipelines, from noise to pictures in [0, 1], without bars and files."""
    x = start
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)
