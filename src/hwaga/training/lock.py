"""A run belongs to one process at a time. The lock is the operating system's: it goes with the process that held it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError

LOCK = ".lock"
OWNER = ".lock-owner"  # beside it: the lock file itself is cut by whoever tries to take it


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, this process holds the run in `folder`. InputError, with the id of the holder, if another one does.

    What a process left behind that ended without a word (kill -9) is taken over.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder} is in use by {_holder(folder)}; wait for it or stop it first") from None
    try:
        (folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError):  # it has the lock and has not yet written its name
        return "another process"
