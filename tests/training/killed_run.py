"""Run by test_training_killed.py: trains a toy run in child processes that are killed, then one to its end.

    python killed_run.py FOLDER KILLS SEED

torch is imported once; each attempt is a fork of this process. Prints the number of attempts that were really killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from training_toys import session

CONFIG = {"steps": 60, "checkpoint_every": 5, "log_every": 1, "sample_every": 10}


def attempt(folder: Path, seconds: float | None) -> bool:
    """One process on the run; True if it was killed."""
    child = os.fork()
    if child == 0:
        session(folder, **CONFIG).run()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if seconds is None and status != 0:
        raise SystemExit("the last attempt did not end well")
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kills, moments = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    begun = time.perf_counter()
    attempt(folder / "whole", None)
    whole = time.perf_counter() - begun
    done = sum(attempt(folder / "killed", moments.uniform(0.02, 0.35) * whole) for _ in range(kills))
    attempt(folder / "killed", None)
    print(done)
