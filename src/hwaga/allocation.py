"""Memory that was freed stays with the process, for the next layer that needs as much.

glibc takes blocks above a threshold from the system one by one and gives them back when they are freed, and it gives back the end
of its heap. The system then clears every page of the next activation anew: up to a fifth of a training step on a CPU. With both
thresholds raised the same pages serve layer after layer. What a process holds at most does not grow by it; it goes down later.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM, _MMAP = -1, -3  # of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_ASKED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
_done: bool | None = None


def keep_freed_memory() -> bool:
    """Raises both thresholds (to 1 and 2 GB), once a process; whether that was done. Nothing happens where the C library is not
    glibc, and where the environment already says how it is to allocate."""
    global _done
    if _done is None:
        _done = sys.platform == "linux" and not any(name in os.environ for name in _ASKED) and _raised()
    return _done


def _raised() -> bool:
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_MMAP, 2**30) and library.mallopt(_TRIM, 2**31 - 1))
