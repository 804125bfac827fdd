"""Which pictures are kept for measuring: whole near-duplicate clusters, chosen by a hash that never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def stable(*words: str) -> float:
    """A number in [0, 1) that depends on the words alone; file names that are not UTF-8 are words too."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).digest()[:7], "big") / 2**56


def held_out(
    clusters: np.ndarray, names: Sequence[str], share: float, strata: Sequence[str] | None = None
) -> np.ndarray:
    """bool (n,): true for the pictures that are held out, about `share` of each stratum and never more.

    Clusters are taken whole, in the order of a hash of their first name. One that would fill more than a third of its
    stratum's share is left in training (so that a set has many kinds), as long as there are smaller ones. If there are
    two clusters or more and a share above 0, at least one picture is held out.
    """
    chosen = np.zeros(len(names), bool)
    if share <= 0 or len(names) == 0:
        return chosen
    members: dict[int, list[int]] = {}
    for i, cluster in enumerate(clusters.tolist()):
        members.setdefault(cluster, []).append(i)
    if len(members) < 2:
        return chosen
    first = {cluster: min(names[i] for i in inside) for cluster, inside in members.items()}
    stratum = {c: strata[inside[0]] if strata is not None else "" for c, inside in members.items()}
    order = sorted(members, key=lambda c: (stable("held-out", first[c]), first[c]))
    for name in sorted(set(stratum.values())):
        here = [c for c in order if stratum[c] == name]
        limit = round(share * sum(len(members[c]) for c in here))
        taken = 0
        for most in (max(1, limit // 3), limit):
            for cluster in here:
                size = len(members[cluster])
                if not chosen[members[cluster][0]] and size <= most and taken + size <= limit:
                    chosen[members[cluster]] = True
                    taken += size
            if taken >= 0.8 * limit:
                break
    if not chosen.any():
        least = min(order, key=lambda c: len(members[c]))  # the first of the smallest
        chosen[members[least]] = True
    return chosen
