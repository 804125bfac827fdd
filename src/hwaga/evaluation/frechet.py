"""Frechet distance between two sets of features, each seen as a Gaussian (FD; with Inception features, FID).

    FD = |m_a - m_b|^2 + tr A + tr B - 2 tr (A B)^(1/2)                 Frechet 1957; Dowson and Landau 1982, eq. 4

With any factors A = F F^T and B = G G^T the last trace is the sum of the singular values of F^T G: (A B)^(1/2) has the
eigenvalues of the root of the symmetric G^T A G = (F^T G)^T (F^T G). So no matrix root is ever taken, nothing becomes
complex, and a factor may be as thin as the number of pictures.

numpy alone is used: its symmetric products and eigenvalues are faster than torch's on a CPU.
Source of the measure: Heusel et al. 2017, "GANs trained by a two time-scale update rule", section 3 (arXiv:1706.08500).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..files import whole_file
from .arrays import Array, as_features, as_float64, as_pair

_EPS = float(np.finfo(np.float64).eps)
# Eigenvalues are right to about eps times the largest one, their roots to eps / sqrt(ratio): 1e-11 at this ratio.
_WELL_CONDITIONED = 1e-10
_ASYMMETRY = 1e-6  # of the largest entry: float32 covariances have 1e-7
_NEGATIVE = 1e-4  # a most negative eigenvalue beyond this share of the largest is no rounding error


class Statistics(NamedTuple):
    """Mean (d,) and covariance (d, d), divided by n - 1, in float64."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: Array) -> Statistics:
    """Mean and covariance of features (n, d); n >= 2. InputError on other shapes and on numbers that are not finite."""
    array = as_features(features, "features", least=2)
    mean = array.mean(axis=0)
    centred = array - mean
    return Statistics(mean, (centred.T @ centred) / (len(array) - 1))


def save_statistics(path: str | Path, mean: Array, covariance: Array) -> None:
    """An .npz file with `mu` and `sigma`, as pytorch-fid writes and reads them."""
    mean, covariance = _moments(mean, covariance, "statistics")
    if Path(path).suffix != ".npz":
        raise InputError(f"{path}: statistics are stored as .npz; give the file that ending")
    with whole_file(path) as part:
        np.savez(part, mu=mean, sigma=covariance)


def load_statistics(path: str | Path) -> Statistics:
    """Mean and covariance of an .npz file with `mu` and `sigma`; InputError names a file that is none."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = [name for name in ("mu", "sigma") if name not in file]
            if missing:
                raise InputError(f"{path}: no {missing[0]!r} in it; statistics are an .npz with mu and sigma")
            mean, covariance = file["mu"], file["sigma"]
    except FileNotFoundError:
        raise InputError(f"{path} is missing; want an .npz with mu and sigma") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an .npz with the arrays mu and sigma: {error}") from None
    return Statistics(*_moments(mean, covariance, str(path)))


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """FD of two Gaussians; means (d,) and covariances (d, d), arrays or tensors of any d >= 1 (scalars for d = 1).

    At least 0, finite, symmetric in a and b. Singular covariances are in order; what is not symmetric, or has an
    eigenvalue clearly below 0, is no covariance: InputError. Memory: about 6 d^2 numbers; time: O(d^3).
    """
    mean_a, cov_a = _moments(mean_a, cov_a, "a")
    mean_b, cov_b = _moments(mean_b, cov_b, "b")
    if mean_a.shape != mean_b.shape:
        raise InputError(f"a has {len(mean_a)} dimensions, b has {len(mean_b)}; both must come from the same features")
    traces = float(np.trace(cov_a) + np.trace(cov_b))
    return _join(mean_a - mean_b, traces, trace_of_root(cov_a, cov_b))


def frechet_distance_of_features(samples: Array, reference: Array) -> float:
    """FD of two sets of features (n, d) and (m, d); n, m >= 2 and either may be smaller than d.

    The same number as `frechet_distance` of their `statistics`. Where a set has at most d pictures its centred features
    themselves make the factor: exact where the covariance would be singular, and cheaper.
    """
    first, second = as_pair(samples, reference, least=2)
    n, m, d = len(first), len(second), first.shape[1]
    if n > d and m > d:
        return frechet_distance(*statistics(first), *statistics(second))
    factors = [_thin(features) for features in (first, second)]
    traces = float((factors[0] ** 2).sum() + (factors[1] ** 2).sum())
    return _join(first.mean(axis=0) - second.mean(axis=0), traces, sum_of_singular_values(factors[0] @ factors[1].T))


def _thin(features: np.ndarray) -> np.ndarray:
    """F (min(n - 1, d), d) with F^T F the covariance of features (n, d).

    Row k of Helmert's matrix takes the mean of the first k pictures from the next one: n - 1 rows, orthonormal and
    orthogonal to the mean, so that no direction is empty by construction (centring would leave one).
    """
    n, d = features.shape
    centred = features - features.mean(axis=0)
    k = np.arange(1, n)[:, None]
    rows = (np.cumsum(centred, axis=0)[:-1] - k * centred[1:]) / np.sqrt(k * (k + 1.0) * (n - 1))
    return rows if n - 1 <= d else np.asarray(np.linalg.qr(rows, mode="r"))


def trace_of_root(cov_a: np.ndarray, cov_b: np.ndarray) -> float:
    """tr (A B)^(1/2) of two symmetric positive semi-definite float64 matrices (d, d)."""
    factors = []
    for covariance, name in ((cov_a, "a"), (cov_b, "b")):
        factor = cholesky(covariance)
        factors.append(_factor(covariance, name) if factor is None else factor)
    return sum_of_singular_values(factors[0].T @ factors[1])


def cholesky(covariance: np.ndarray) -> np.ndarray | None:
    """The lower Cholesky factor, or None for a matrix that is singular to rounding error."""
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return None
    pivots = factor.diagonal()
    return factor if pivots.min() >= np.sqrt(len(factor) * _EPS) * pivots.max() else None


def sum_of_singular_values(product: np.ndarray) -> float:
    """Of any matrix (r, s): from the eigenvalues of its smaller Gram matrix where those are well conditioned."""
    if not product.size:
        return 0.0
    product = product if product.shape[0] <= product.shape[1] else product.T
    values = np.linalg.eigvalsh(product @ product.T)
    if values[0] > _WELL_CONDITIONED * values[-1]:
        return float(np.sqrt(values).sum())
    # roots of eigenvalues that are 0 but for rounding lose half of the digits; singular values lose none
    return float(np.linalg.svd(product, compute_uv=False).sum())


def _factor(covariance: np.ndarray, name: str) -> np.ndarray:
    """F (d, r) with F F^T = covariance, r its rank to rounding error."""
    values, vectors = np.linalg.eigh(covariance)
    top = max(values[-1], 0.0)
    if values[0] < -_NEGATIVE * max(top, np.finfo(np.float64).tiny):
        raise InputError(
            f"covariance {name}: its smallest eigenvalue is {values[0]:.3g}; a covariance has none below 0"
        )
    kept = values > len(values) * _EPS * top
    return vectors[:, kept] * np.sqrt(values[kept])


def _join(difference: np.ndarray, traces: float, root: float) -> float:
    return max(0.0, float(difference @ difference) + traces - 2 * root)


def _moments(mean: Array, covariance: Array, name: str) -> tuple[np.ndarray, np.ndarray]:
    mean, covariance = as_float64(mean, f"mean {name}"), as_float64(covariance, f"covariance {name}")
    if mean.ndim == 0:
        mean = mean[None]
    if covariance.ndim == 0:
        covariance = covariance[None, None]
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise InputError(f"{name}: mean {mean.shape} and covariance {covariance.shape}; want (d,) and (d, d)")
    scale = float(np.abs(covariance).max())
    if float(np.abs(covariance - covariance.T).max()) > _ASYMMETRY * scale:
        raise InputError(f"covariance {name} is not symmetric; want the covariance matrix of features")
    return mean, covariance
