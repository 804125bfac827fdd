"""Several processes, one training: started by torchrun, talking through torch itself (nccl on GPUs, gloo on CPUs).

Every process works off its slice of each batch with its share of the loss, and the gradients are summed over the
processes: the sum is the gradient of the whole batch. No wrapper around the networks; the main process alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InputError, WorkError


class World:
    """The processes of a training. `World()` is one process alone: every call is then free."""

    def __init__(self, rank: int = 0, size: int = 1, timeout: float = 1800.0) -> None:
        self.rank = rank
        self.size = size
        self.timeout = timeout

    @property
    def main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool, step: int = 0) -> bool:
        """Whether the flag is set in any process. A process that does not answer in time ends all, with its name."""
        if self.size == 1:
            return flag
        return bool(self.all_sum(torch.tensor([float(flag)]), step)[0] > 0)

    def all_sum(self, tensor: Tensor, step: int = 0) -> Tensor:
        """The sum over the processes, in place, for a tensor on the device that the processes talk through."""
        if self.size == 1:
            return tensor
        on = tensor.to(_talk_device())
        store = dist.distributed_c10d._get_default_store()
        store.set(f"hwaga/at/{self.rank}", str(step))
        try:
            dist.all_reduce(on)
        except RuntimeError as error:
            raise WorkError(self._who_is_missing(store, step, error)) from error
        return on.to(tensor.device)

    def _who_is_missing(self, store: Any, step: int, error: Exception) -> str:
        behind = []
        for rank in range(self.size):
            try:
                at = int(store.get(f"hwaga/at/{rank}")) if store.check([f"hwaga/at/{rank}"]) else -1
            except Exception:  # the store went with the process that held it
                at = -1
            if rank != self.rank and at < step:
                behind.append(str(rank))
        who = f"process {', '.join(behind)} of {self.size}" if behind else "another process"
        return (
            f"step {step}: {who} did not answer within {self.timeout:g} s, or has ended ({str(error).splitlines()[0]})"
        )

    def sum_gradients(self, parameters: Iterable[Tensor], step: int = 0) -> None:
        """Sums the gradients over the processes. One that only some processes have counts as 0 in the others."""
        if self.size == 1:
            return
        every = list(parameters)
        have = torch.tensor([float(p.grad is not None) for p in every])
        have = self.all_sum(have, step)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter, count in zip(every, have.tolist(), strict=True):
            if count > 0:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            flat = self.all_sum(torch.cat([g.reshape(-1) for g in gradients]), step)
            pieces = flat.split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [p.view(g.shape) for p, g in zip(pieces, gradients, strict=True)])

    def barrier(self, step: int = 0) -> None:
        self.any(False, step)

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=_talk_device())
        return box[0]


def _talk_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def world(timeout: float, device: str = "auto") -> Iterator[World]:
    """The processes that torchrun started (WORLD_SIZE in the environment), or this one alone.

    Each process takes the GPU of its LOCAL_RANK. InputError when more processes share a machine than it has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_available() and dist.is_initialized():  # the caller's own group: used, not ended
        yield World(dist.get_rank(), dist.get_world_size(), timeout)
        return
    if size == 1:
        yield World(timeout=timeout)
        return
    gpu = torch.cuda.is_available() and device != "cpu"
    if gpu:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError(
                f"{os.environ.get('LOCAL_WORLD_SIZE', size)} processes on a machine with "
                f"{torch.cuda.device_count()} GPUs; "
                "start one process a GPU, or set training.device=cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), timeout)
    finally:
        dist.destroy_process_group()


# -------------------------------------------------------------------------------- parameters that are shared out (FSDP)


def shard(network: nn.Module) -> None:
    """Shares the parameters of a network out over the processes: each keeps a part, and its optimizer state with it."""
    from torch.distributed.fsdp import fully_shard

    for block in network.modules():
        if isinstance(block, nn.ModuleList):
            for child in block:
                if type(child).forward is not nn.Module.forward:  # a list's members are gathered one at a time
                    fully_shard(child)
    fully_shard(network)


def gather_no_more(network: nn.Module) -> None:
    """Gives up what a forward without a backward has left gathered."""
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is shared out (every process must ask); another one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Copies a whole value into a tensor that may be shared out: each process takes its part."""
    if hasattr(tensor, "full_tensor") and not hasattr(value, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(tensor, DTensor)
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)
