"""The 3 x 3 convolution of every network here: minimal filtering where the shape says that it pays.

`Conv2d` is `nn.Conv2d` in its constructor, its parameters and its first weights. In float32 on a CPU, with stride 1
and padding 1, `choose` picks F(4 x 4, 3 x 3), F(2 x 2, 3 x 3) (`winograd.py`) or the direct sum for the forward pass
and for each of the two gradients. It is a rule on the shape and never a timing, so the same call gives the same bits on
every day. Everything else (other kernels, bf16, accelerators, compiled graphs) is the library's.

Differentiable any number of times: the gradients are made of the same two operations (a penalty on gradients works).

    layer.minimal_filtering   True: by the rule; False: never; 2 or 4: that one, whatever the shape (tests, experiments)
    layer.cache_transforms    keep the transformed weights while no gradients are taken (memory: `transformed_bytes`)
    fit_transforms(net, n)    turns layers off, the heaviest first, until the kept transforms fit in n bytes

Beside what is kept, a call takes up to some 60 MiB of passing memory (`winograd.BLOCK_BYTES`).
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from . import winograd

Algorithm = Literal[0, 2, 4]  # 0: direct; m: F(m x m, 3 x 3)
Pass = Literal["cached", "anew", "kernel"]
# cached: forward with a kept transform; anew: forward, or the input's gradient, with one made now; kernel: its gradient

# The rule weighs nanoseconds of a machine that convolves directly at 210e9 flop/s (measured on two cores). Only the
# ratios matter, and only coarsely: on another machine a close call goes the other way, and loses little.
_DIRECT = 1 / 210  # a multiplication, an addition
_PRODUCT = 1 / 175
_TILES = {2: 4.2, 4: 2.6}  # an input's pixel and channel: tiles, B^T d B
_RETURN = {2: 3.0, 4: 1.8}  # an output's pixel and channel: A^T M A, put in its place
_READ = 0.18  # a number of a transformed kernel, from memory
_ARRANGE = 0.25  # a number of a plain kernel, which the library reorders at each call
_MAKE = 0.6  # a number of a transformed kernel, made
_MAKE_LARGE = 1.5  # the same where the kernel is too large for the allocator to reuse memory
_CALLS = 50e3  # a dozen calls
_MARGIN = 0.93  # direct unless clearly slower
_LARGE = 5 * 2**18  # kernels (channels in times out) above it are not kept as F(4 x 4): that is four times their memory


def _cost(m: Algorithm, task: Pass, c: int, k: int, n: int, h: int, w: int) -> float:
    """Estimated nanoseconds."""
    if m == 0:
        return 18 * n * h * w * c * k * _DIRECT + 9 * c * k * _ARRANGE
    positions, tiles = (m + 2) ** 2, n * -(-h // m) * -(-w // m)
    kernel = positions * c * k
    per_number = _READ if task == "cached" else _MAKE if kernel <= 2**23 else _MAKE_LARGE
    transforms = tiles * m * m * (_TILES[m] * c + _RETURN[m] * k)
    return _CALLS + transforms + 2 * tiles * kernel * _PRODUCT + kernel * per_number


@cache
def choose(task: Pass, channels_in: int, channels_out: int, n: int, height: int, width: int) -> Algorithm:
    """The rule: which algorithm serves n pictures of (channels_in, height, width). Depends on its arguments alone."""
    best: Algorithm = 0
    limit = _MARGIN * _cost(0, task, channels_in, channels_out, n, height, width)
    options: tuple[Algorithm, ...] = (2,) if task == "cached" and channels_in * channels_out > _LARGE else (2, 4)
    for m in options:
        cost = _cost(m, task, channels_in, channels_out, n, height, width)
        if cost < limit:
            best, limit = m, cost
    return best


def _memory_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The library's rule for a convolution's result: channels_last where either of the two is."""
    last = torch.channels_last
    if (
        x.is_contiguous(memory_format=last)
        and not x.is_contiguous()
        or (weight.is_contiguous(memory_format=last) and not weight.is_contiguous())
    ):
        return last
    return torch.contiguous_format


def _places(x: Tensor) -> Tensor:
    """(n, h, w, channels) of a picture batch, contiguous; a view where the memory is channels_last already."""
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)


def _direct_gradient(gradient: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    """The library's gradient by the input (which = 0) or the kernel (1)."""
    mask = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
    )[which]


def _filtered(x: Tensor, u: Tensor, m: int, bias: Tensor | None, form: torch.memory_format) -> Tensor:
    return winograd.convolve(_places(x), u, m, bias).permute(0, 3, 1, 2).contiguous(memory_format=form)


class _Convolve(torch.autograd.Function):
    """y = x * weight + bias, or (`adjoint`) the transposed convolution, which takes y's gradient to x's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, adjoint: bool, force: Algorithm | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.adjoint, ctx.force = adjoint, force
        n, channels, h, w = x.shape
        out = weight.shape[1 if adjoint else 0]
        m = choose("anew", channels, out, n, h, w) if force is None else force
        if m:
            u = winograd.transform_kernel(weight, m, adjoint)
            return _filtered(x, u, m, bias, _memory_format(x, weight))
        if adjoint:
            return _direct_gradient(x, x.new_empty(1).expand(n, out, h, w), weight, 0)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _Convolve.apply(gradient, weight, None, not ctx.adjoint, ctx.force)
        if ctx.needs_input_grad[1]:
            into, out = (gradient, x) if ctx.adjoint else (x, gradient)
            of_weight = _KernelGradient.apply(into, out, _memory_format(weight, weight), ctx.force)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


class _KernelGradient(torch.autograd.Function):
    """The kernel's gradient (k, c, 3, 3) from x (n, c, h, w) and the output's gradient (n, k, h, w)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, form: torch.memory_format, force: Algorithm | None) -> Tensor:
        ctx.save_for_backward(x, gradient)
        ctx.force = force
        n, c, h, w = x.shape
        k = gradient.shape[1]
        m = choose("kernel", c, k, n, h, w) if force is None else force
        if m:
            of_weight = winograd.kernel_gradient(_places(x), _places(gradient), m).permute(2, 3, 0, 1)
        else:
            of_weight = _direct_gradient(gradient, x, x.new_empty(1).expand(k, c, 3, 3), 1)
        return of_weight.contiguous(memory_format=form)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = gradients  # what multiplies each number of the kernel's gradient is itself a kernel
        x, gradient = ctx.saved_tensors
        of_x = of_gradient = None
        if ctx.needs_input_grad[0]:
            of_x = _Convolve.apply(gradient, kernel, None, True, ctx.force)
        if ctx.needs_input_grad[1]:
            of_gradient = _Convolve.apply(x, kernel, None, False, ctx.force)
        return of_x, of_gradient, None, None


def _by_rule(x: Tensor, weight: Tensor) -> bool:
    """Whether the rule has a say here at all: float32 on a CPU, run as written, without a derivative that goes along."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.layout == torch.strided
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and unpack_dual(x).tangent is None
    )


def convolve3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, force: Algorithm | None = None) -> Tensor:
    """(n, c, h, w) convolved with weights made on the spot (k, c, 3, 3), stride 1, padding 1 -> (n, k, h, w).

    By the rule; `force` names the algorithm (0: direct). Nothing is kept. Relative error (norm) against the direct sum
    below 1e-5, of the gradients too. `bias` is (k,).
    """
    if force is None and not _by_rule(x, weight):
        return F.conv2d(x, weight, bias, padding=1)
    n, c, h, w = x.shape
    k = weight.shape[0]
    if force is None:
        forward = choose("anew", c, k, n, h, w)
        backward = (choose("anew", k, c, n, h, w), choose("kernel", c, k, n, h, w)) if torch.is_grad_enabled() else ()
        if not (forward or any(backward)):  # then the library's own, whose backward shares work between the gradients
            return F.conv2d(x, weight, bias, padding=1)
    return _Convolve.apply(x, weight, bias, False, force)


class _Kept:
    """A transformed kernel, and how to tell whether it is still that of a weight.

    torch counts writes to a tensor, but not those through `.data` nor those of its fused optimizers (2.13); so a sample
    of the numbers is compared as well, which costs some microseconds.
    """

    def __init__(self, weight: Tensor, m: int) -> None:
        self.m = m
        self.u = winograd.transform_kernel(weight.detach(), m)
        self.tensor = weakref.ref(weight)
        self.mark = self._mark(weight)
        self.sample = self._sample(weight).clone()

    def is_of(self, weight: Tensor) -> bool:
        same = self.tensor() is weight and self._mark(weight) == self.mark
        return same and torch.equal(self._sample(weight), self.sample)

    @staticmethod
    def _mark(weight: Tensor) -> tuple[Any, ...]:
        return weight.data_ptr(), weight._version, weight.dtype, weight.stride()

    @staticmethod
    def _sample(weight: Tensor) -> Tensor:
        """64 numbers from all over the memory; the step is odd, so that they are not all of one channel."""
        size = weight.numel()
        step = max(1, size // 64 - 1) | 1
        return weight.detach().as_strided((-(-size // step),), (step,))


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last, but for a derivative that goes along with x, which group norms have for the other form alone."""
    return torch.channels_last if unpack_dual(x).tangent is None else torch.contiguous_format


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` (same arguments, state dict and first weights) that filters minimally where the rule says so.

    Input and output are (n, channels, h, w); memory formats as the library's: channels_last in, channels_last out (the
    faster one).
    """

    minimal_filtering: bool | Literal[2, 4] = True
    cache_transforms: bool = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: _Kept | None = None

    @property
    def eligible(self) -> bool:
        """Whether the layer is of the kind (3 x 3, stride 1, padding 1 with zeros, not dilated, not grouped) at all."""
        return (
            self.kernel_size == (3, 3)
            and self.stride == (1, 1)
            and self.padding in ((1, 1), "same")
            and self.dilation == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, switch = self.weight, self.minimal_filtering
        if switch is False or x.dim() != 4 or not self.eligible or x.shape[1] != self.in_channels or not x.numel():
            return super().forward(x)
        force: Algorithm | None = None if switch is True else switch
        if force is None and not _by_rule(x, weight):
            return super().forward(x)
        if torch.is_grad_enabled() and weight.requires_grad:
            self._kept = None  # an optimizer is about to write
        tracked = (x, weight) if self.bias is None else (x, weight, self.bias)
        learns = torch.is_grad_enabled() and any(one.requires_grad for one in tracked)
        planned = hasattr(weight, "fake_mode")  # a plan of memory has no values to keep a transform of
        if learns or planned or not self.cache_transforms or weight.is_inference():
            return convolve3x3(x, weight, self.bias, force=force)
        n, c, h, w = x.shape
        m = choose("cached", c, self.out_channels, n, h, w) if force is None else force
        if not m:
            return super().forward(x)
        return _filtered(x, self._transformed(m), m, self.bias, _memory_format(x, weight))

    def _transformed(self, m: int) -> Tensor:
        """U of the weights as they are now; made again when they were written to, moved or replaced."""
        kept = self._kept
        if kept is None or kept.m != m or not kept.is_of(self.weight):
            kept = self._kept = None  # the old one's memory first
            kept = self._kept = _Kept(self.weight, m)
        return kept.u

    def forget(self) -> None:
        """Drops the kept transform and its memory; it is made again when next needed."""
        self._kept = None

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        if mode:
            self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies make their own

    def _most_kept(self) -> int:
        if self.minimal_filtering is False or not self.cache_transforms or not self.eligible:
            return 0
        numbers = self.in_channels * self.out_channels
        if self.minimal_filtering is True:
            if not _can_pay(self.in_channels, self.out_channels):
                return 0
            m = 2 if numbers > _LARGE else 4
        else:
            m = int(self.minimal_filtering)
        return (m + 2) ** 2 * numbers * self.weight.element_size()


def _can_pay(channels_in: int, channels_out: int) -> bool:
    """Whether there is any size of picture at which the rule filters these channels minimally."""
    sizes = ((1, 8, 8), (1, 16, 16), (16, 4, 4), (1, 64, 64), (16, 256, 256))
    return any(choose("cached", channels_in, channels_out, *size) for size in sizes)


def transformed_bytes(module: nn.Module) -> int:
    """The most bytes that kept transforms of `module`'s layers can take while it is used without gradients.

    From shapes alone (meta tensors too): an upper bound, since what is kept depends on the pictures' size.
    """
    return sum(part._most_kept() for part in module.modules() if isinstance(part, Conv2d))


def kept_bytes(module: nn.Module) -> int:
    """The bytes that kept transforms take now."""
    kept = (part._kept for part in module.modules() if isinstance(part, Conv2d))
    return sum(one.u.numel() * one.u.element_size() for one in kept if one is not None)


def fit_transforms(module: nn.Module, budget: int) -> list[str]:
    """Turns minimal filtering off, the layer with the most bytes first, until `transformed_bytes(module) <= budget`.

    Returns the names of the layers turned off. Ties go to the later layer.
    """
    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, Conv2d)]
    total, off = transformed_bytes(module), []
    for name, part in sorted(reversed(layers), key=lambda pair: -pair[1]._most_kept()):
        if total <= budget:
            break
        total -= part._most_kept()
        part.minimal_filtering = False
        part.forget()
        off.append(name)
    return off
