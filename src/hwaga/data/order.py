"""The order of samples: a pure function of (length, seed), so that a run resumes at any step without state.

The stream of samples is epoch after epoch, each epoch a permutation of all pictures; step k takes the samples
k * batch_size ... of that stream and runs over the borders of epochs. So every picture is seen once an epoch whatever
the batch size, and sample number s is the same picture whatever the batch size. A process of many takes its slice.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..errors import InputError


@lru_cache(maxsize=64)
def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of epoch `epoch`. Raw bits of PCG64, sorted: numpy promises these bits for all versions, while the
    methods of its Generator may change. Stable sorting settles ties."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(length)
    order = np.argsort(bits, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


class Order:
    """Which pictures step k sees. InputError for a length or batch size below 1 or a negative seed."""

    def __init__(self, length: int, batch_size: int, seed: int = 0) -> None:
        if length < 1:
            raise InputError(f"length={length}: an order of samples needs at least one picture")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: give at least 1")
        if seed < 0:
            raise InputError(f"seed={seed}: give 0 or more")
        self.length, self.batch_size, self.seed = length, batch_size, seed

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of step 0, 1, ...: each int64 (batch_size,), indices in 0 ... length - 1."""
        if step < 0:
            raise InputError(f"step={step}: give 0 or more")
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epochs = samples // self.length
        indices = np.empty_like(samples)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = permutation(self.length, self.seed, epoch)[samples[here] % self.length]
        return indices, epochs
