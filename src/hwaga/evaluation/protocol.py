"""The protocol card, what a score is, and what makes two of them comparable.

A Frechet distance alone says little: it moves with the features, the number of pictures and the resize filter. So each
score carries a card of all that, and is given over its **floor**, the distance of as many real training pictures (whole
clusters of near-duplicates) to the same held-out reference: 1.0 is as good as other real pictures.
"""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..errors import InputError
from .intervals import Interval, ratio_interval, resampled_distances

if TYPE_CHECKING:
    from ..data import Dataset
    from .encoders import Features

IDENTITY = ("system", "model", "sha256", "samples", "seconds_a_picture", "time")
"""Fields of a card that say whose pictures were measured: they differ between scores that are meant to be compared."""


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    import torch

    from .. import __version__

    return {
        "hwaga": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def protocol_card(
    features: Features,
    reference: Dataset,
    n: int,
    seed: int,
    resize: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The card: features, reference, number and seed, preparation, how the pictures were painted, versions."""
    height, width = reference.size
    return {
        **{name: value for name, value in settings.items() if name != "split" and value is not None},
        "features": {
            "name": features.name,
            "sha256": features.sha256,
            "dim": features.dim,
            "resize": features.resize,
        },
        "reference": {
            "source": reference.config.source,
            "split": reference.split,
            "n": len(reference),
            "size": [height, width],
            "fingerprint": reference.fingerprint,
        },
        "n": n,
        "seed": seed,
        "resize": resize,
        "versions": versions(),
    }


def cards_differ(card_a: Mapping[str, Any], card_b: Mapping[str, Any]) -> list[str]:
    """The fields, dotted, in which two cards differ; whose pictures were measured does not count (`IDENTITY`).

    An empty list means that the two scores may be compared.
    """
    first, second = _flat(card_a), _flat(card_b)
    names = [*first, *(name for name in second if name not in first)]
    missing = object()
    return [
        name
        for name in names
        if name.split(".")[0] not in IDENTITY and first.get(name, missing) != second.get(name, missing)
    ]


def _flat(card: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in card.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{before}{name}.")
        else:
            result[f"{before}{name}"] = list(value) if isinstance(value, tuple) else value
    return result


def foreign_features(features: Features, reference: Dataset) -> str | None:
    """What a reader must be told where features that know one source judge another; None where all is well."""
    if features.source is None or features.source == reference.config.source:
        return None
    return (
        f"the features {features.name!r} were made for {features.source} and judge {reference.config.source!r}: scores"
        " rank roughly at best; give features= a vision encoder's folder (DINOv2, CLIP) or an Inception file"
    )


@dataclass
class Scores:
    """What an evaluation found. `values` are plain numbers by name; `intervals` the 95 % intervals of some of them."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    card: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # sentences that a reader must be told
    # kept for `compare`, not written: features of samples and reference, clusters of the reference
    _witness: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data; a number that is not finite becomes null."""
        return {
            "values": {name: _plain(value) for name, value in self.values.items()},
            "intervals": {name: [_plain(end) for end in ends] for name, ends in self.intervals.items()},
            "card": self.card,
            "notes": list(self.notes),
        }

    def save(self, path: str | Path) -> None:
        files.write_json(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Scores:
        """The scores in a file that `save` wrote; InputError for another."""
        found = files.read_json(path)
        if (
            not isinstance(found, dict)
            or not isinstance(found.get("values"), dict)
            or not isinstance(found.get("card"), dict)
        ):
            raise InputError(f"{path} holds no scores; want a file that `hwaga evaluate --json` wrote")
        values = {name: math.nan if value is None else value for name, value in found["values"].items()}
        ends = {name: (low, high) for name, (low, high) in found.get("intervals", {}).items()}
        return cls(values, ends, found["card"], found.get("notes", []))


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def compare(first: Scores, second: Scores, *, resamples: int = 500, seed: int = 0) -> Interval:
    """Frechet distance of the first over that of the second, with its interval: below 1 the first is better.

    The ratio is made inside each resample of the reference's clusters; where both painted as many pictures from one
    seed, picture i of both is drawn together. Warns (UserWarning) with the differing fields when the cards differ;
    InputError when the features or the reference do, or when the scores come from a file (which holds no features).
    """
    if first._witness is None or second._witness is None:
        raise InputError(
            "compare: these scores come without their features; use what `evaluate` returned in this process"
        )
    differing = cards_differ(first.card, second.card)
    if unlike := [name for name in differing if name.split(".")[0] in ("features", "reference")]:
        raise InputError(
            f"compare: the scores were made in different ways ({', '.join(unlike)} differ); measure both alike"
        )
    if differing:
        warnings.warn(f"the scores' cards differ in {', '.join(differing)}", UserWarning, stacklevel=2)
    (ours, reference, clusters), theirs = first._witness, second._witness[0]
    values, drawn = resampled_distances(
        [ours, theirs],
        reference,
        reference_clusters=clusters,
        paired=[(0, 1)] if len(ours) == len(theirs) and "seed" not in differing else [],
        resamples=resamples,
        seed=seed,
    )
    return ratio_interval(0, 1, values, drawn)
