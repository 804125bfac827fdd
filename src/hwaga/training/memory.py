"""How much memory a training will take, told before it takes any.

One step of every objective is gone through on tensors that have shapes and no memory (torch's fake tensors), while the
bytes of all tensors that are alive are counted: the highest count is what the step needs beside the parameters. Where a
system does something that has no shapes-only form, one and two real pictures are measured and the line through them is
taken.
"""

from __future__ import annotations

import os
import resource
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InputError
from ..interfaces import Batch, Stage
from .config import TrainingConfig
from .loop import StepDraw

HELD, LIBRARIES = 0.4, 48 * 2**20
"""Measured on a CPU (UNets of 6 M, 8 to 128 pictures): the C library's allocator ends up with 1.4 times the bytes that
live in a step, as it keeps what it was given in pieces, and the convolution library takes some 48 MiB for itself."""

MakeBatch = Callable[[int], Batch]


@dataclass(frozen=True)
class Memory:
    """Bytes of one stage in training, by what they are for."""

    parameters: int  # of all networks that are on the device, frozen ones too
    gradients: int
    optimizer: int
    averages: int
    activations: int  # the highest of all that lives besides, in a step of the batch (or of an accumulated part)
    process: int = 0  # what the process holds anyway: Python, torch, the data
    allocator: int = 0  # what the allocator and the libraries hold beyond what lives

    @property
    def total(self) -> int:
        parts = (self.parameters, self.gradients, self.optimizer, self.averages, self.activations)
        return sum(parts) + self.process + self.allocator


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that are made inside and live: `now`, and the highest, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()
        self._watched: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in _tensors(result):
            self._count(value)
        return result

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Takes these for known: parameters, which are counted elsewhere."""
        for tensor in tensors:
            self._seen.add(id(tensor.untyped_storage()))
            self._watched.append(tensor.untyped_storage())  # keeps the id from being used again

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def predict(
    stage: Stage, config: TrainingConfig, batch: MakeBatch, *, frozen: int = 0, dtype: torch.dtype = torch.float32,
    pictures: int | None = None, process: int = 0,
) -> Memory:  # fmt: skip
    """The memory of a stage in training.

    batch: makes n pictures as the data will give them. frozen: bytes of networks beside the stage's. pictures: of one
    part; None: batch_size / accumulation, rounded up. process: bytes that the process has anyway.
    """
    count = -(-config.batch_size // config.accumulation) if pictures is None else pictures
    moved = {name for o in stage.objectives for name in o.networks}
    every = {name: list(network.parameters()) for name, network in stage.networks.items()}
    trained = [p for name in moved for p in every[name] if p.requires_grad]
    parameters = sum(_bytes(p) for own in every.values() for p in own)
    # gradients live while their objective works: the heaviest one's
    heaviest = max(sum(_bytes(p) for n in o.networks for p in every[n] if p.requires_grad) for o in stage.objectives)
    averages = sum(max(4, p.element_size()) * p.numel() for name in stage.averaged for p in every[name])
    peak = activations(stage, config, batch, count, dtype)
    return Memory(
        parameters=parameters + frozen,
        gradients=heaviest,
        optimizer=2 * sum(_bytes(p) for p in trained),
        averages=averages * len(config.ema.half_lives) if stage.averaged else 0,
        activations=peak,
        process=process,
        allocator=int(HELD * peak) + LIBRARIES,
    )


def activations(stage: Stage, config: TrainingConfig, batch: MakeBatch, count: int, dtype: torch.dtype) -> int:
    """The highest number of bytes alive in forward and backward of any objective with `count` pictures, parameters and
    their gradients left out."""
    try:
        return _peak(stage, config, batch, count, dtype, fake=True)
    except InputError:
        raise
    except Exception:  # no shapes-only form of something in it: measured instead
        if any(p.is_meta or _is_fake(p) for n in stage.networks.values() for p in n.parameters()):
            raise
        one = _peak(stage, config, batch, 1, dtype, fake=False)
        two = _peak(stage, config, batch, 2, dtype, fake=False)
        return one + (count - 1) * max(0, two - one)


def largest_batch(
    stage: Stage, config: TrainingConfig, batch: MakeBatch, available: int, *, dtype: torch.dtype = torch.float32,
    frozen: int = 0, process: int = 0,
) -> int:  # fmt: skip
    """The most pictures that a part can have in `available` bytes; 0 if not even one fits."""

    def needs(n: int) -> int:
        return predict(stage, config, batch, frozen=frozen, dtype=dtype, pictures=n, process=process).total

    one, three = needs(1), needs(3)
    if one > available:
        return 0
    slope = max(1.0, (three - one) / 2)
    return 1 + int((available - one) / slope)


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still take on the device: of the machine's free memory, the container's and the
    process's own limits, the lowest."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    found = [int(psutil.virtual_memory().available)]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()) + _reclaimable())
        except (OSError, ValueError):  # no such limit ("max")
            continue
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        found.append(soft - int(psutil.Process(os.getpid()).memory_info().vms))
    return max(0, min(found))


def _reclaimable() -> int:
    """Bytes of file pages in the container, which the system gives up when memory is asked for."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(values.get("inactive_file", 0)) + int(values.get("active_file", 0))


def process_memory() -> int:
    """Bytes that this process holds now."""
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


def check_fits(memory: Mapping[str, Memory], available: int, largest: Callable[[str], int]) -> None:
    """InputError if a stage needs more than `available` bytes (what the process holds already is not asked for
    again).
    """
    for name, stage in memory.items():
        needed = stage.total - stage.process
        if needed > available:
            most = largest(name)
            cure = (
                f"training.batch_size={most} (or as many pictures a part by training.accumulation) would fit, or "
                "training.gradient_checkpointing=true"
                if most
                else "a smaller model would fit: not even one picture does with this one"
            )
            raise InputError(
                f"stage {name!r} needs {shown(needed)} to train, {shown(available)} are free "
                f"(parameters {shown(stage.parameters)}, gradients {shown(stage.gradients)}, optimizer "
                f"{shown(stage.optimizer)}, averages {shown(stage.averages)}, activations "
                f"{shown(stage.activations + stage.allocator)}); {cure}"
            )


def shown(size: float) -> str:
    """Bytes in words: 1.5 GiB.

    >>> shown(1536 * 2**20)
    '1.5 GiB'
    """
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit in ("bytes", "KiB") else f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def _peak(stage: Stage, config: TrainingConfig, batch: MakeBatch, count: int, dtype: torch.dtype, fake: bool) -> int:
    every = [p for network in stage.networks.values() for p in network.parameters()]
    flags = [p.requires_grad for p in every]
    highest = 0
    for objective in stage.objectives:
        moved = {id(p) for name in objective.networks for p in stage.networks[name].parameters()}
        try:
            for parameter, flag in zip(every, flags, strict=True):
                parameter.requires_grad_(flag and id(parameter) in moved)
            with _checkpointing(stage, config.gradient_checkpointing), _fake_mode(every, fake) as mode:
                given = batch(count) if mode is None else _as_fake(batch(1), count, mode)
                alive = Alive()
                alive.ignore([*every, given.image])
                alive.now = alive.peak = _bytes(given.image)
                with alive:
                    last = config.steps - 1  # when everything that begins late has begun
                    draw = StepDraw(0, stage.name, last, whole=count, device=given.image.device)
                    with torch.autocast(given.image.device.type, dtype, enabled=dtype != torch.float32):
                        terms = objective.loss(given, draw)
                    loss = sum((t.float() for name, t in terms.items() if not name.startswith("_")), torch.zeros(()))
                    gradients = torch.autograd.grad(loss, [p for p in every if p.requires_grad], allow_unused=True)
                    del terms, loss
                # gradients are counted apart, so that gradients + activations is the highest of both together
                highest = max(highest, alive.peak - sum(_bytes(g) for g in gradients if g is not None))
        finally:
            for parameter, flag in zip(every, flags, strict=True):
                parameter.requires_grad_(flag)
    return highest


@contextmanager
def _fake_mode(parameters: Sequence[Tensor], fake: bool) -> Iterator[FakeTensorMode | None]:
    """The mode that the parameters belong to, or a new one that takes real ones for what they are."""
    if not fake:
        yield None
        return
    known = (p.fake_mode for p in parameters if isinstance(p, FakeTensor))
    mode = next(known, None) or FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            yield mode
    finally:
        _forget_kept()


def _forget_kept() -> None:
    """Empties the function caches of the house: a constant that was first asked for here has no values."""
    for name, module in list(sys.modules.items()):
        if name.startswith("hwaga."):
            for value in list(vars(module).values()):
                if isinstance(value, _lru_cache_wrapper):
                    value.cache_clear()


@contextmanager
def _checkpointing(stage: Stage, on: bool) -> Iterator[None]:
    before = [(n, n.checkpointing) for n in stage.networks.values() if hasattr(n, "checkpointing")]
    for network, _ in before:
        network.checkpointing = on  # type: ignore[assignment]
    try:
        yield
    finally:
        for network, was in before:
            network.checkpointing = was


def _as_fake(one: Batch, count: int, mode: FakeTensorMode) -> Batch:
    """A batch of `count` pictures like the one given, without memory."""

    def grown(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty((count, *value.shape[1:]), dtype=value.dtype, device=value.device)
        return [*value] * count if isinstance(value, (list, tuple)) else value

    with mode:
        extra = {name: grown(value) for name, value in one.extra.items()}
        image, index, label, caption, cluster = map(grown, (one.image, one.index, one.label, one.caption, one.cluster))
        return Batch(image, index, label, caption, extra, cluster)


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
