"""What all tests share."""

import os

import pytest
import torch

torch.set_num_threads(1)  # tests are many and small: two workers do better than two threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """One packed cache for all tests, so that data is rasterized once and the user's own is left alone."""
    if "HWAGA_CACHE" not in os.environ:
        os.environ["HWAGA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
