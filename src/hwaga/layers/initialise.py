"""First weights of a network, drawn from a generator that is handed in: the global one is never touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Weighted = (nn.Linear, nn.modules.conv._ConvNd)


def variance_scaling(weight: Tensor, generator: torch.Generator, scale: float = 1.0, fan: str = "average") -> None:
    """Uniform with variance scale / fan, where fan is the `average` of inputs and outputs, or the inputs (`in`).

    Source: Glorot and Bengio 2010, eq. 16 (average); He et al. 2015 (in).
    """
    place = math.prod(weight.shape[2:])
    ins, outs = weight.shape[1] * place, weight.shape[0] * place
    bound = math.sqrt(3 * scale / ((ins + outs) / 2 if fan == "average" else ins))
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)


def normal(std: float) -> Callable[[Tensor, torch.Generator], None]:
    """Weights from a normal distribution of mean 0 and this standard deviation."""

    def fill(weight: Tensor, generator: torch.Generator) -> None:
        with torch.no_grad():
            weight.normal_(std=std, generator=generator)

    return fill


def initialise(
    module: nn.Module,
    generator: torch.Generator,
    weight: Callable[[Tensor, torch.Generator], None] = variance_scaling,
    zero: Iterable[nn.Module] = (),
) -> None:
    """Fills every parameter: linear and convolution weights by `weight`, those of the modules in `zero` with 0, biases
    with 0, norms with the identity (batch norms forget what they saw), embeddings from a standard normal. A module that
    begins itself, or what it has beside its weights, says so by a method `reset_state(generator)`. TypeError on a
    parameter of any other module."""
    zeros = set(zero)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, Weighted):
                part.weight.zero_() if part in zeros else weight(part.weight, generator)
                if part.bias is not None:
                    part.bias.zero_()
            elif isinstance(part, nn.Embedding):
                part.weight.normal_(generator=generator)
            elif isinstance(part, (nn.GroupNorm, nn.LayerNorm)):
                if part.elementwise_affine if isinstance(part, nn.LayerNorm) else part.affine:
                    part.weight.fill_(1.0)
                    part.bias.zero_()
            elif isinstance(part, nn.RMSNorm):
                part.weight.fill_(1.0)
            elif isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.reset_parameters()  # draws nothing
            elif hasattr(part, "reset_state"):
                pass
            elif names := [name for name, _ in part.named_parameters(recurse=False)]:
                raise TypeError(f"{type(part).__name__} has parameters {names} that nothing here knows how to begin")
            if hasattr(part, "reset_state"):
                part.reset_state(generator)  # type: ignore[operator]


class _NoDraws(TorchFunctionMode):
    """Inside, nothing is drawn for first weights that nobody will see. (To draw a normal one without memory torch imports what
    takes it a second.)"""

    drawing = frozenset({
        Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_uniform_,
        nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.xavier_normal_,
    })  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.drawing:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside, networks are built of shapes alone."""
    with torch.device("meta"), _NoDraws():
        yield


def build_on(config: object, device: str = "cpu") -> nn.Module:
    """The network of a config with memory but without values: fill it by `initialise` or from a file."""
    with without_memory():
        network = config.build()  # type: ignore[attr-defined]
    return network.to_empty(device=device)
