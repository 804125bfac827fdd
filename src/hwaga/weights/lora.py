"""LoRA as a change of weights (Hu et al. 2021): what a file of some megabytes adds to a model of gigabytes.

A fine-tuned weight differs from the one that it began with by little, and that little has a low rank: it is a product of a
tall and a wide matrix. Only the two are stored; here they are multiplied out and added to the weight, so that sampling costs
what it did before.

    W' = W + s (alpha / r) up down                         LoRA, equation 3 and section 4.1     LowRank
    the same for convolutions: down is k x k, up 1 x 1     LoCon (Yeh et al. 2023, section 3)   LowRank
    W' = W + s (alpha / r) (up1 down1) * (up2 down2)       LoHa (Hyeon-Woo et al. 2021, eq. 3)  Hadamard
    W' = m (W + dW) / |W + dW|, then W + s (W' - W)        DoRA (Liu et al. 2024, equation 5)   Change.magnitude

s is the scale that the user gives and 1 / r the rank's share. Every change is one of the base weight, so the order in which
several are loaded plays no part: W' = W + s1 dW1 + s2 dW2 + ... Bases are kept, the tensors themselves: a scale of 0 and a
removal put them back, bit for bit. Arithmetic is float32, rounded once to the weight's own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """A weight of a model, or some rows of one (queries of a matrix that holds queries, keys and values)."""

    part: str  # of a system's networks: "network", "text_encoder"
    name: str  # of its parameters: "mid_block.attentions.0.to_q.weight"
    rows: tuple[int, int] | None = None  # from, to


# ---------------------------------------------------------------------------------------------------------- kinds of change


@dataclass(frozen=True)
class LowRank:
    """up (out, r[, 1, 1]) times down (r, in[, k, k]); with `mid` (r, r, k, k) between them, down is 1 x 1 too (Tucker)."""

    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    alpha: float | None = None  # None: as large as the rank
    rooted: bool = False  # divided by the root of the rank in place of the rank (rsLoRA, Kalajdzievski 2023)

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def strength(self) -> float:
        """What up down is multiplied by."""
        return _strength(self.alpha, self.rank, self.rooted)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it changes."""
        return (self.up.shape[0], self.down.shape[1], *(self.down if self.mid is None else self.mid).shape[2:])

    def delta(self) -> Tensor:
        """(out, in[, k, k]) float32."""
        down, up = self.down.float(), self.up.float()
        if self.mid is not None:
            product = torch.einsum("or,rskl,si->oikl", up.flatten(1), self.mid.float(), down.flatten(1))
        else:
            product = (up.flatten(1) @ down.flatten(1)).reshape(self.shape)
        return product * self.strength

    def of_rows(self, start: int, stop: int) -> LowRank:
        """The same change of some of the rows alone."""
        return LowRank(self.down, self.up[start:stop], self.mid, self.alpha, self.rooted)


@dataclass(frozen=True)
class Hadamard:
    """LoHa: two products of low rank, multiplied number by number. Each is a (out, r) times b (r, in), or, of a convolution,
    with a core t (r, r, k, k): t b along its second, a along its first direction."""

    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]
    t: tuple[Tensor, Tensor] | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return int(self.b[0].shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        if self.t is not None:  # with a core, a is (r, out)
            return (self.a[0].shape[1], self.b[0].shape[1], *self.t[0].shape[2:])
        return (self.a[0].shape[0], self.b[0].shape[1])

    def delta(self) -> Tensor:
        products = []
        for i in (0, 1):
            a, b = self.a[i].float(), self.b[i].float()
            if self.t is None:
                products.append(a @ b)
            else:
                products.append(torch.einsum("rskl,si,ro->oikl", self.t[i].float(), b, a))
        return products[0] * products[1] * _strength(self.alpha, self.rank, False)


@dataclass(frozen=True)
class Whole:
    """The difference itself, of a weight or a bias."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def delta(self) -> Tensor:
        return self.value.float()


def _strength(alpha: float | None, rank: int, rooted: bool) -> float:
    if alpha is None:
        return 1.0
    return alpha / rank**0.5 if rooted else alpha / rank


@dataclass(frozen=True)
class Change:
    """What a LoRA does to one place. `magnitude`: DoRA's lengths, of the rows (outputs) or of the columns (inputs)."""

    kind: LowRank | Hadamard | Whole
    magnitude: Tensor | None = None
    of_outputs: bool = True

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is of a weight of this shape. A matrix and a 1 x 1 convolution of its numbers are the same."""
        return plain_shape(self.kind.shape) == plain_shape(shape) or (
            isinstance(self.kind, Hadamard) and self.kind.t is None and _folded(shape) == self.kind.shape
        )

    def delta(self, base: Tensor) -> Tensor:
        """W' - W at full strength, of W = `base`; float32, of its shape."""
        change = self.kind.delta().to(base.device).reshape(base.shape)
        if self.magnitude is None:
            return change
        weight = base.float()
        changed = weight + change
        axis = 0 if self.of_outputs else 1
        others = [i for i in range(changed.dim()) if i != axis]
        length = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
        return changed * (self.magnitude.float().to(base.device).reshape(length.shape) / length) - weight


def plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the two ones of a 1 x 1 convolution."""
    return shape[:-2] if len(shape) == 4 and tuple(shape[2:]) == (1, 1) else tuple(shape)


def _folded(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], torch.Size(shape[1:]).numel()


# ---------------------------------------------------------------------------------------------------------- several at once


@dataclass
class Loaded:
    """A LoRA that is in use."""

    changes: Mapping[Place, Change]
    scale: float

    def __post_init__(self) -> None:
        self.by_weight: dict[tuple[str, str], list[tuple[slice, Change]]] = {}  # which rows of which weight
        for place, change in self.changes.items():
            rows = slice(None) if place.rows is None else slice(*place.rows)
            self.by_weight.setdefault((place.part, place.name), []).append((rows, change))


class Loras:
    """The LoRAs of a model: their changes, and the bases of what they change."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks = networks
        self.loaded: dict[str, Loaded] = {}
        self._bases: dict[tuple[str, str], Tensor] = {}

    def add(self, name: str, changes: Mapping[Place, Change], scale: float) -> None:
        self.loaded[name] = Loaded(changes, scale)
        self._put(changes)

    @torch.no_grad()
    def measure(self, changes: Mapping[Place, Change]) -> float:
        """|dW| / |W| at scale 1, over the weights that are changed: 0.01 is a change by one part in a hundred."""
        change = weight = 0.0
        for place, one in changes.items():
            base = self._base(place)
            change += float(torch.linalg.vector_norm(one.delta(base))) ** 2
            weight += float(torch.linalg.vector_norm(base.float())) ** 2
        return (change / weight) ** 0.5 if weight else float(change > 0)

    def scale(self, name: str, scale: float) -> None:
        self.loaded[name].scale = scale
        self._put(self.loaded[name].changes)

    def remove(self, name: str) -> None:
        self._put(self.loaded.pop(name).changes)
        used = {(place.part, place.name) for one in self.loaded.values() for place in one.changes}
        self._bases = {key: base for key, base in self._bases.items() if key in used}

    def parameter(self, place: Place) -> nn.Parameter:
        return plain(self.networks[place.part]).get_parameter(place.name)

    def _base(self, place: Place) -> Tensor:
        """The weight (or its rows) as it was before any LoRA, where the weight now is."""
        now = self.parameter(place).detach()
        base = self._bases.get((place.part, place.name), now).to(device=now.device, dtype=now.dtype)
        return base if place.rows is None else base[slice(*place.rows)]

    @torch.no_grad()
    def _put(self, changes: Mapping[Place, Change]) -> None:
        """Brings the weights of these places to what all LoRAs together make of them."""
        for part, name in {(place.part, place.name) for place in changes}:
            network = plain(self.networks[part])
            parameter = network.get_parameter(name)
            base = self._bases.setdefault((part, name), parameter.detach())
            there = base.to(device=parameter.device, dtype=parameter.dtype)
            total: Tensor | None = None
            for one in self.loaded.values():
                for rows, change in one.by_weight.get((part, name), ()) if one.scale else ():
                    total = there.float().clone() if total is None else total
                    total[rows] += one.scale * change.delta(there[rows])
            parameter.data = there if total is None else total.to(parameter.dtype)
            forget(network, name.rpartition(".")[0])


def plain(network: nn.Module) -> nn.Module:
    """The network itself, of one that was handed to torch.compile."""
    inner = getattr(network, "_orig_mod", network)
    return inner if isinstance(inner, nn.Module) else network


def forget(network: nn.Module, module: str) -> None:
    """Lets a module of a network, and those that it is a part of, drop what they keep of their weights: a convolution's
    transform, the keys and values of a text."""
    while module:
        owner = network.get_submodule(module)
        if hasattr(owner, "forget"):
            owner.forget()  # type: ignore[operator]
        module = module.rpartition(".")[0]
