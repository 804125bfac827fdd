"""Where is computed, and in which type: decided once, at `load` or from the recipe, by what the machine can do."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from .errors import InputError, unknown


def native_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 in hardware. Without it, bf16 on a CPU is a hundred times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if "AVX512" in torch.backends.cpu.get_cpu_capability() or platform.machine() in ("aarch64", "arm64"):
        try:
            words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
        except OSError:  # not Linux: no safe answer, so none is assumed
            return False
        return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
    return False


def choose_device(name: str, key: str = "device") -> tuple[torch.device, str | None]:
    """The device that a recipe's `device` means, and a line to print when `auto` found no accelerator.

    InputError when the name is none, or the machine lacks it: a named device is obeyed or refused, never changed.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), None
        if torch.backends.mps.is_available():
            return torch.device("mps"), None
        return torch.device("cpu"), "no accelerator found: computing on the CPU"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"{key}={name!r} is no device; right would be auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            there = f"has {count}" if count else "has none"
            raise InputError(f"{key}={name!r}: this machine {there} (CUDA devices); auto takes what there is")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(f"{key}={name!r}: this machine has no such device; auto takes what there is")
    elif device.type != "cpu":
        raise InputError(f"{key}={name!r} is not supported; right would be auto, cpu, cuda or cuda:1")
    return device, None


def choose_dtype(
    name: str, device: torch.device, key: str = "dtype", training: bool = False
) -> tuple[torch.dtype, str | None]:
    """The type of the networks' arithmetic, and a line to print, or None. auto: float32 on a CPU, but in training bfloat16 where
    the processor multiplies it natively; on a GPU bfloat16. InputError for an unknown name."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    native = native_bfloat16(device)
    if name == "auto":
        fast = native and (training or device.type != "cpu")
        return (torch.bfloat16 if fast else torch.float32), None
    if name not in names:
        raise unknown(key, name, ["auto", *names])
    if name == "float16" and device.type == "cpu":
        raise InputError(f"{key}='float16' on a CPU: half precision is computed there in float32; use auto or float32")
    if name == "bfloat16" and not native:
        slow = "this processor has no bf16 arithmetic; float32 would be up to a hundred times faster"
        return torch.bfloat16, f"{key}=bfloat16: {slow}"
    return names[name], None
