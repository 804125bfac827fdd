"""Frechet and kernel distance of two sets of 10,000 x 2048 features, from the features to the number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

from hwaga.evaluation import frechet_distance, kernel_distance
from hwaga.evaluation.frechet import statistics

from .pairing import Row, compare
from .peers import declare_torchvision_operators, version

N, D = 10_000, 2048


def features(seed: int) -> np.ndarray:
    """Features like those of an Inception: nearly low-rank, not negative."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((256, D), dtype=np.float32)
    inner = generator.standard_normal((N, 256), dtype=np.float32) + 0.1 * seed
    return np.maximum(inner @ mixing / 16 + 0.3 * generator.standard_normal((N, D), dtype=np.float32), 0)


def rows() -> Iterator[Row]:
    declare_torchvision_operators()
    a, b = features(1), features(2)

    def ours() -> float:
        return frechet_distance(*statistics(a), *statistics(b))

    value = ours()
    peers = ((_torch_fidelity, 1.0), (_torchmetrics, 1.0), (_pytorch_fid, 0.2))
    for make, aim in peers:
        peer, theirs = make(a, b)
        yield compare(
            "Frechet distance", f"two sets of {N:,} x {D}", peer, ours, theirs, rounds=5, patience=150, aim=aim,
            difference=abs(theirs() - value) / value, note="difference: relative",
        )  # fmt: skip

    def kernel() -> float:
        return kernel_distance(a, b, subsets=100, subset_size=1000, seed=2020).value

    peer, theirs = _kernel_torch_fidelity(a, b)
    yield compare(
        "KID", f"100 subsets of 1,000 of {N:,} x {D}", peer, kernel, theirs, rounds=5, patience=150, aim=1.0,
        difference=abs(theirs() - kernel()) / abs(theirs()), note="difference: relative",
    )  # fmt: skip


def _torch_fidelity(a: np.ndarray, b: np.ndarray) -> tuple[str, Callable[[], float]]:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = torch.from_numpy(a), torch.from_numpy(b)

    def distance() -> float:
        two = (fid_features_to_statistics(one) for one in (x, y))
        return next(iter(fid_statistics_to_metric(*two, False).values()))

    return version("torch-fidelity"), distance


def _torchmetrics(a: np.ndarray, b: np.ndarray) -> tuple[str, Callable[[], float]]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        num_features = D

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    x, y = torch.from_numpy(a), torch.from_numpy(b)

    def distance() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric = FrechetInceptionDistance(feature=Given())
        metric.update(x, real=True)
        metric.update(y, real=False)
        return float(metric.compute())

    return version("torchmetrics"), distance


def _pytorch_fid(a: np.ndarray, b: np.ndarray) -> tuple[str, Callable[[], float]]:
    from pytorch_fid.fid_score import calculate_frechet_distance

    def distance() -> float:
        moments = [moment for x in (a, b) for moment in (np.mean(x, axis=0), np.cov(x, rowvar=False))]
        return float(calculate_frechet_distance(*moments))

    return version("pytorch-fid"), distance


def _kernel_torch_fidelity(a: np.ndarray, b: np.ndarray) -> tuple[str, Callable[[], float]]:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    x, y = torch.from_numpy(a), torch.from_numpy(b)

    def distance() -> float:
        found = kid_features_to_metric(x, y, kid_subsets=100, kid_subset_size=1000, rng_seed=2020, verbose=False)
        return float(found[KEY_METRIC_KID_MEAN])

    return version("torch-fidelity"), distance
