"""Putting tensors into a network that was built without memory: every tensor used, every parameter filled, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers.initialise import without_memory as without_memory
from .mapped import page_out
from .streamed import left_in_file, stream


def fill(
    config: Any,
    tensors: Mapping[str, Tensor],
    where: str,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """The network of `config` with `tensors` in it. Mapped tensors stay mapped where dtype and device let them.

    The network is first built without memory and its names and shapes are held against the file's: a config that asks for
    more than the file has is found before anything is allocated. InputError names the tensors that do not fit.
    """
    with without_memory():
        network = config.build()
    needed = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    shapes = getattr(tensors, "shapes", None) or {name: tuple(value.shape) for name, value in tensors.items()}
    if missing := sorted(needed.keys() - shapes.keys()):
        raise InputError(f"{where} lacks {_some(missing)}, which its config asks for")
    if foreign := sorted(shapes.keys() - needed.keys()):
        raise InputError(f"{where} holds {_some(foreign)}, for which its config has no place")
    for name, shape in needed.items():
        if shapes[name] != shape:
            raise InputError(f"{where}: {name} has shape {shapes[name]}, but its config asks for {shape}")
    exact, late = precise(network), left_in_file(network, dtype, device)
    copied = 0

    def placed(name: str) -> Tensor:
        nonlocal copied
        tensor = tensors[name]
        kind = None if not tensor.is_floating_point() or name in late else torch.float32 if name in exact else dtype
        put = tensor.to(device=device, dtype=kind)
        if put is not tensor:
            copied += put.numel() * put.element_size()
            page_out(tensor)  # its copy is what is used
        return put

    network.load_state_dict({name: placed(name) for name in needed}, assign=True)
    network.private_bytes = copied  # type: ignore[assignment]
    if late and dtype is not None:
        stream(network, late, dtype)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return network


def precise(network: nn.Module) -> set[str]:
    """Names of the tensors that are float32 whatever the weights are: a module names its own in `precise` (a measured
    scale, which in half precision would be wrong by the same factor everywhere)."""
    found = ((prefix, getattr(part, "precise", ())) for prefix, part in network.named_modules())
    return {f"{prefix}.{name}" if prefix else name for prefix, names in found for name in names}


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"the tensor {names[0]}{rest}"
