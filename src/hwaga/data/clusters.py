"""Near-duplicates: which pictures are so alike that one in training and the other in a test would flatter copying.

Two pictures are near when the root mean square difference of their 16 x 16 RGB thumbnails is at most a threshold, in
levels of 255. Clusters are what is connected through near pairs (and through pairs that the caller knows of).
Thumbnails are bytes and the test is in integers, so that the answer does not depend on the machine's float sums.

Measured on OpenMoji 17 (3,731 different drawings; the nearest other one of the median drawing is at 13): up to 12 two
near drawings nearly always show one thing (a skin tone, a gender, an hour), at 14 to 16 one thing or twins (two
keycaps, a person in two moods), from 20 on different faces on one yellow disc, from 30 on only the outline is common.
Hence 16. Together with the concepts that makes 1,486 clusters, 1,299 of them of one drawing, the largest of 186.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

SIDE = 16
LEVELS = 16.0
_BLOCK = 512


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, 3, h, w) -> uint8 (n, 768): every picture averaged over areas to 16 x 16."""
    n, _, height, width = pixels.shape
    out = np.empty((n, 3, SIDE, SIDE), np.uint8)
    if height == width and height % SIDE == 0:
        k = height // SIDE
        for start in range(0, n, 1024):
            part = np.asarray(pixels[start : start + 1024], dtype=np.uint8)
            sums = part.reshape(len(part), 3, SIDE, k, SIDE, k).sum((3, 5), dtype=np.uint32)
            out[start : start + 1024] = (sums + k * k // 2) // (k * k)
    else:  # Pillow's area filter works in integers
        for i in range(n):
            picture = Image.fromarray(np.ascontiguousarray(pixels[i].transpose(1, 2, 0)))
            out[i] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)).transpose(2, 0, 1)
    return out.reshape(n, -1)


def _limit(levels: float, dimensions: int) -> int:
    return int(levels * levels * dimensions)


def near_pairs(thumbs: np.ndarray, levels: float = LEVELS) -> np.ndarray:
    """int64 (p, 2), i < j: all pairs whose thumbnails differ by at most `levels` (root mean square).

    Exact, without comparing all with all: pictures are sorted along the direction in which they vary most, and only
    those within the radius along it are compared (a projection never lengthens a difference).
    """
    n, dimensions = thumbs.shape
    if n < 2:
        return np.empty((0, 2), np.int64)
    values = thumbs.astype(np.float32)
    values -= values.mean(0)
    direction: np.ndarray = np.ones(dimensions)
    for _ in range(8):  # towards the first principal direction; any unit vector would be right, this one is quick
        direction = values.T @ (values @ (direction / np.linalg.norm(direction)).astype(np.float32)).astype(np.float64)
        direction = direction if np.linalg.norm(direction) > 0 else np.ones(dimensions)
    place = values.astype(np.float64) @ (direction / np.linalg.norm(direction))
    order = np.argsort(place, kind="stable")
    place, values = place[order], values[order]
    squares = (values.astype(np.float64) ** 2).sum(1)
    limit = _limit(levels, dimensions)
    radius = np.sqrt(limit) + 1.0
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        end = int(np.searchsorted(place, place[stop - 1] + radius, side="right"))
        for left in range(start, end, 8 * _BLOCK):
            right = min(left + 8 * _BLOCK, end)
            distance = (
                squares[start:stop, None]
                + squares[None, left:right]
                - 2.0 * (values[start:stop] @ values[left:right].T)
            )
            a, b = np.nonzero(distance <= limit * 1.01 + 64)  # float32 sums are not exact: judged again below
            a, b = a + start, b + left
            later = b > a
            found.append(np.stack([order[a[later]], order[b[later]]], 1))
    pairs = np.concatenate(found)
    keep = np.empty(len(pairs), bool)
    for start in range(0, len(pairs), 1 << 14):
        part = pairs[start : start + (1 << 14)]
        difference = thumbs[part[:, 0]].astype(np.int32) - thumbs[part[:, 1]]
        keep[start : start + (1 << 14)] = (difference * difference).sum(1, dtype=np.int64) <= limit
    pairs = np.sort(pairs[keep], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def spread(thumbs: np.ndarray) -> float:
    """How far two pictures of a set usually are apart, in levels: the median over some 4,000 pairs; 0 for one."""
    n = len(thumbs)
    if n < 2:
        return 0.0
    step = max(1, n // 2)
    chosen = np.arange(min(n, 4096)) * max(1, n // 4096)
    difference = thumbs[chosen].astype(np.int32) - thumbs[(chosen + step) % n]
    return float(np.median(np.sqrt((difference * difference).mean(1))))


def connected(n: int, pairs: Iterable[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """int64 (n,): the number of the connected part that each of n things is in, numbered by first appearance."""
    root = np.arange(n)

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for a, b in pairs:
        a, b = find(a), find(b)
        if a != b:
            root[max(a, b)] = min(a, b)
    roots = np.array([find(i) for i in range(n)], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)  # a root is the first of its part
