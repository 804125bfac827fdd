"""Features as they come (arrays, tensors, lists) to finite float64 matrices, with errors that name them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError

Array = Any  # a numpy array, a torch tensor or nested lists of numbers


def as_float64(value: Array, name: str, single: bool = False) -> np.ndarray:
    """`value` as a float64 numpy array; with `single`, float32 stays what it is (and is not copied).

    InputError when it is no real numbers, or not all of them are finite.
    """
    if hasattr(value, "detach"):  # a tensor: torch itself need not be imported for this
        value = value.detach().cpu()
        kept = value.is_complex() or (single and str(value.dtype) == "torch.float32")
        value = (value if kept else value.double()).numpy()
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"its numbers are {array.dtype}")
        if not (single and array.dtype == np.float32):
            array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: not an array of real numbers ({error})") from None
    if not np.isfinite(array).all():
        wrong = int(array.size - np.isfinite(array).sum())
        raise InputError(f"{name}: {wrong} of {array.size} numbers are not finite; features must be finite")
    return array


def as_features(value: Array, name: str, least: int = 1, width: int | None = None, single: bool = False) -> np.ndarray:
    """Features (n, d) in float64 (see `as_float64`); a vector is n features of one dimension.

    InputError when there are fewer than `least` rows or another number of columns than `width`.
    """
    array = as_float64(value, name, single)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name}: shape {array.shape}; want (n, d), one row a picture")
    if len(array) < least:
        raise InputError(f"{name}: {len(array)} pictures; at least {least} are needed")
    if width is not None and array.shape[1] != width:
        raise InputError(
            f"{name}: {array.shape[1]} dimensions, the other set has {width}; use the same features for both"
        )
    return array


def as_pair(samples: Array, reference: Array, least: int = 1, single: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as features of the same dimension, at least `least` pictures in each."""
    first = as_features(samples, "samples", least, None, single)
    return first, as_features(reference, "reference", least, first.shape[1], single)


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, m) between the rows of two float64 matrices.

    By one matrix product, so values below the rounding error of that product (equal rows) are set to exactly 0.
    """
    centre = second.mean(axis=0)  # distances stay, rounding errors shrink
    first, second = first - centre, second - centre
    sizes = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :]
    result = sizes - 2 * (first @ second.T)
    result[result <= 1e-13 * first.shape[1] ** 0.5 * sizes] = 0
    return result


def nearest_distances(first: np.ndarray, second: np.ndarray, own: bool = False) -> np.ndarray:
    """Distance (n,) of each row of `first` to the nearest row of `second`; `own`: both are one set, itself left out."""
    rows = max(1, min(len(first), 2**24 // max(1, len(second))))  # blocks of at most 128 MiB
    result = np.empty(len(first))
    for start in range(0, len(first), rows):
        distances = squared_distances(first[start : start + rows], second)
        if own:
            at = np.arange(len(distances))
            distances[at, start + at] = np.inf
        result[start : start + rows] = distances.min(axis=1)
    return np.sqrt(result)
