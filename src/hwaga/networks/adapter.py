"""LoRA in training: small matrices beside the layers of a network that stays as it is (Hu et al. 2021).

    y = W x + s (alpha / r) up (down x)      section 4.1: W is frozen, down and up are what is trained
    up = 0 at first                          so that training begins at the base

Of a convolution, down has its k x k kernel and stride, up is 1 x 1 (Yeh et al. 2023, section 3). The matrices are a network of
their own, the only one that such a training moves and stores; it hangs on the outputs of the base's layers, whose names and
weights it does not touch. Gradients, optimizer and averages are those of the small matrices alone, which is what makes it
fit where training the whole does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..layers.conv import Conv2d
from ..layers.initialise import without_memory

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "attention.qkv", "attention.out")
"""How attention's layers are named here: the targets of the paper, in U-Nets and in transformers."""


class LoraConfig(BaseModel, frozen=True, extra="forbid"):
    """`model.lora` of a recipe."""

    rank: int = Field(8, ge=1, le=4096)
    alpha: float | None = Field(None, gt=0, description="null: as the rank; the change is multiplied by alpha / rank")
    targets: tuple[str, ...] = Field(
        ATTENTION, min_length=1, description="ends of the names of linear layers and convolutions; `all`: every one"
    )


class AdapterConfig(LoraConfig, frozen=True, extra="forbid"):
    """With the config of the network that it hangs on."""

    network: Any

    def build(self) -> Adapter:
        return Adapter(self)

    def layers(self) -> dict[str, nn.Module]:
        """The base's layers that have a LoRA, by name, without memory. ValueError for a target that is the end of no name."""
        with without_memory():
            base = self.network.build()
        return chosen(base, self.targets)


def chosen(base: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """The layers of a network whose names end so. ValueError where one of the targets, given by hand, is the end of none."""
    able: dict[str, nn.Module] = {
        name: part for name, part in base.named_modules() if isinstance(part, nn.Linear | nn.Conv2d) and _is_plain(part)
    }
    if targets == ("all",):
        return able
    ends = {target: [name for name in able if name == target or name.endswith(f".{target}")] for target in targets}
    if lost := [target for target, found in ends.items() if not found and targets != ATTENTION]:
        last = sorted({name.rpartition(".")[2] if not name[-1].isdigit() else name for name in able})
        raise ValueError(f"targets={lost[0]!r} is the end of no layer's name; there are {', '.join(last[:24])}")
    wanted = {name for found in ends.values() for name in found}
    if not wanted:
        raise ValueError(f"targets={list(targets)}: this network has no such layers; name some, or all")
    return {name: part for name, part in able.items() if name in wanted}


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer does what its kind says (one that makes tokens of patches does not), or says itself that it is a 1 x 1
    convolution `on_tokens` (n, l, c)."""
    plain = type(layer).forward in (nn.Linear.forward, nn.Conv2d.forward, Conv2d.forward)
    return getattr(layer, "groups", 1) == 1 and (plain or bool(getattr(layer, "on_tokens", False)))


class _Pair(nn.Module):
    """down and up of one layer; down is uniform as a new layer's weights are, up zero."""

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        out, into, *kernel = layer.weight.shape  # type: ignore[union-attr,misc]
        self.down = nn.Parameter(torch.zeros(rank, into, *kernel))
        self.up = nn.Parameter(torch.zeros(out, rank, *[1] * len(kernel)))

    def forward(self, layer: Any, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if down.dim() == 2 or x.dim() == 3:
            return F.linear(F.linear(x, down.flatten(1)), up.flatten(1))
        return F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation), up)


class Adapter(nn.Module):
    """See the top of this file. `attach` hangs it on a network; `scale` is s."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = 1.0
        self.alpha = float(config.alpha or config.rank)
        self.layers = nn.ModuleDict({_key(name): _Pair(layer, config.rank) for name, layer in config.layers().items()})
        self._base: list[Any] = []  # not a part of this module
        self._handles: list[RemovableHandle] = []

    def initialise(self, generator: torch.Generator) -> None:
        """down uniform in +-1 / sqrt(inputs), as linear layers and convolutions begin; up 0."""
        with torch.no_grad():
            for pair in self.layers.values():
                bound = pair.down[0].numel() ** -0.5  # type: ignore[index,operator,union-attr]
                pair.down.uniform_(-bound, bound, generator=generator)  # type: ignore[operator,union-attr]
                pair.up.zero_()  # type: ignore[operator,union-attr]

    def pairs(self, tensors: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """(down, up) by the name of the base's layer; of `tensors`, a state of this module, in place of its own."""
        held = dict(self.named_parameters()) if tensors is None else tensors
        return {_name(key): (held[f"layers.{key}.down"], held[f"layers.{key}.up"]) for key in self.layers}

    def attach(self, network: nn.Module) -> None:
        """From now on the network computes with this adapter; its own parameters need no gradients any more."""
        self.detach_from()
        network.requires_grad_(False)
        self._base = [network]
        for key, pair in self.layers.items():
            layer = network.get_submodule(_name(key))
            self._handles.append(layer.register_forward_hook(self._hook(pair)))

    def detach_from(self) -> None:
        """The network is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._base = [], []

    def _hook(self, pair: nn.Module) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.scale == 0:
                return output
            return output + pair(layer, given[0]) * (self.scale * self.alpha / self.config.rank)

        return hook

    @property
    def checkpointing(self) -> bool:
        """Whether the base recomputes its levels in the backward pass."""
        return bool(self._base and getattr(self._base[0], "checkpointing", False))

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        if self._base and hasattr(self._base[0], "checkpointing"):
            self._base[0].checkpointing = on


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
