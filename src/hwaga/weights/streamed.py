"""Large weights that stay in their file and are widened a layer at a time, so that a model runs in less memory than it needs whole.

A file of half precision is computed with in float32 on a CPU, which makes four bytes of two. Where a budget does not allow that for
all of them at once, the matrices of large layers stay as the file has them, mapped, which is memory that the system can take back
at any time. When a layer is asked, its matrix is widened, used, and dropped, and the file's pages are given back; what is
computed with are the same numbers, so the picture is the same. It costs reading and widening every large matrix at each evaluation.

Only layers that are called as layers can do so: a network says that its are by `streams = True`. Small weights (norms, biases,
embeddings of time) are widened once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from .mapped import page_out

LEAST = 2**17
"""Numbers that a matrix has at least to be left in its file."""

_LATE: ContextVar[bool] = ContextVar("late", default=False)


@contextmanager
def widened_late(on: bool = True) -> Iterator[None]:
    """Inside, networks that are filled from files leave large matrices there."""
    token = _LATE.set(on)
    try:
        yield
    finally:
        _LATE.reset(token)


def left_in_file(network: nn.Module, dtype: torch.dtype | None, device: str | torch.device) -> set[str]:
    """Names of the weights that are to stay as their file has them; none where nothing is to be saved."""
    if not _LATE.get() or torch.device(device).type != "cpu" or dtype != torch.float32:
        return set()
    if not getattr(network, "streams", False):
        return set()
    return {
        f"{name}.weight"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding) and layer.weight.numel() >= LEAST
    }


def stream(network: nn.Module, names: set[str], dtype: torch.dtype) -> int:
    """Makes the layers of these weights widen them when they are asked; how many there are that need it."""
    count = 0
    for name in sorted(names):
        layer: Any = network.get_submodule(name.rpartition(".")[0])
        if layer.weight.dtype == dtype:
            continue
        count += 1
        if isinstance(layer, nn.Embedding):  # some rows are looked up, and those alone are widened
            layer.register_forward_hook(lambda layer, given, output: output.to(dtype))
            continue
        if hasattr(layer, "cache_transforms"):  # a convolution's transform would be larger than its weight
            layer.cache_transforms = False
        layer.register_forward_pre_hook(_widen(dtype))
        layer.register_forward_hook(_narrow, always_call=True)
    return count


def _widen(dtype: torch.dtype) -> Any:
    def hook(layer: Any, given: Any) -> None:
        layer.__dict__["_in_file"] = layer.weight
        layer._parameters["weight"] = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)

    return hook


def _narrow(layer: Any, given: Any, output: Any) -> None:
    if (stored := layer.__dict__.pop("_in_file", None)) is not None:
        layer._parameters["weight"] = stored
        page_out(stored.detach())


def private_bytes(network: nn.Module) -> int:
    """Bytes of the weights that are copies and not pages of a file: what `fill` noted, else all."""
    noted = getattr(network, "private_bytes", None)
    return sum(p.numel() * p.element_size() for p in network.parameters()) if noted is None else int(noted)


def widest(network: nn.Module) -> int:
    """Bytes of the largest weight in float32: what is widened at one time."""
    tensors: list[Tensor] = list(network.parameters())
    return max((4 * p.numel() for p in tensors), default=0)
