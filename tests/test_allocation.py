"""What was freed stays with the process: the next block of the same size costs no new pages."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from hwaga.allocation import keep_freed_memory
print(keep_freed_memory())
def touched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        parts = [torch.empty(2**22).fill_(1.0) for _ in range(10)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
touched()
print(touched())
"""


def said(**environment: str) -> tuple[bool, int]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**plain, **environment}, capture_output=True, text=True, check=True
    )
    done, faults = run.stdout.split()
    return done == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_that_were_freed_are_used_again():
    done, faults = said()
    assert done and faults < 1000  # of 409,600 pages that are written


def test_what_the_environment_says_stays():
    assert said(MALLOC_MMAP_THRESHOLD_="65536")[0] is False
