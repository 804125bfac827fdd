"""Scores of a model, a folder of pictures or a tensor against real pictures: who paints, what is compared with what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import DataConfig, Dataset, open_data
from .errors import InputError
from .recipes import load_recipe

if TYPE_CHECKING:
    from .evaluation import Scores

BITS_PICTURES, BITS_INDICES = 64, 100
"""`bits` is measured on so many real pictures, at so many indices of the table; each stands for those nearest to it."""

PICTURES = 500
"""How many pictures a model paints for quick work; what the docs state has 2,000."""


def measure(
    samples: Any, reference: Any, split: str, n: int | None, seed: int, metrics: tuple[str, ...], features: Any,
    sampling: Mapping[str, Any], training: Any, progress: Any,
) -> Scores:  # fmt: skip
    """See `hwaga.evaluate`. All that was given is checked before a picture is painted."""
    from . import evaluation

    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 2):
        raise InputError(f"n={n!r}: a whole number of at least 2 pictures is needed")
    painter = _painter(samples)
    if "bits" in metrics and not getattr(painter, "tells_bits", False):
        who = painter.title if painter is not None else "a folder of pictures"
        raise InputError(f"metric 'bits' is a likelihood, and {who} has none; leave it out")
    if "codes" in metrics and not hasattr(painter, "codebook_use"):
        who = painter.title if painter is not None else "a folder of pictures"
        raise InputError(f"metric 'codes' is the use of a codebook, and {who} has none; leave it out")
    config = _data_config(reference, samples, painter)
    real = reference if isinstance(reference, Dataset) else open_data(config, split)
    if len(real) < 2:
        raise InputError(
            f"reference {config.source!r} has {len(real)} pictures in its {split!r} split; at least 2 are needed"
        )
    trained_on = training if training is not None else _training(config, split)
    judge = evaluation.load_features(features) if features is None or isinstance(features, (str, Path)) else features
    settings: dict[str, Any] = {"split": split}
    pictures = samples
    if painter is not None:
        if sampling and (odd := sorted(set(sampling) - set(painter.takes) - set(painter.own))):
            raise InputError(f"{odd[0]}= given to {painter.title}, which takes {', '.join(painter.takes)}")
        count, begun = n or PICTURES, time.perf_counter()
        told = (lambda done, of: progress(done, of, "painting")) if progress is not None else False
        pictures = painter.sample(n=count, seed=seed, output="tensor", progress=told, **sampling)
        settings |= {
            "system": painter.name, "model": painter.about.name, "sha256": painter.about.sha256, **sampling,
            "seconds_a_picture": (time.perf_counter() - begun) / count,
        }  # fmt: skip
    found = evaluation.evaluate(
        pictures, real, training=trained_on, features=judge, n=n, seed=seed, metrics=metrics, settings=settings,
        progress=progress,
    )  # fmt: skip
    if "bits" in metrics:
        values, how = _bits(painter, real, seed, progress)
        found.values.update(values)
        found.card["bits"] = how
    if "codes" in metrics:
        found.values.update(_codes(painter, real))
        found.card["codes"] = {"pictures": len(real)}
    return found


def _bits(painter: Any, real: Dataset, seed: int, progress: Any) -> tuple[dict[str, float], dict[str, int]]:
    """The likelihood of real pictures (a bound and its terms, or one by the ODE), in bits a dimension, and how it was measured."""
    import torch

    chosen = np.random.default_rng(seed).permutation(len(real))[:BITS_PICTURES]
    image = torch.from_numpy(real.pixels(chosen)).float() / 255
    labels = None if real.labels is None or not painter.label_count() else torch.from_numpy(real.labels[chosen])
    found, indices = painter.bits(image, labels, seed, BITS_INDICES, progress)
    return {k: float(v.mean()) for k, v in found.named().items()}, {
        "pictures": len(chosen),
        getattr(found, "counted", "indices"): indices,
    }


def _codes(painter: Any, real: Dataset) -> dict[str, float]:
    """How many codes the real pictures have, their share of all, and the perplexity."""
    import torch

    used: dict[str, float] = painter.codebook_use(torch.from_numpy(real.pixels(np.arange(len(real)))).float() / 255)
    return used


def _painter(samples: Any) -> Any:
    """The System that paints, or None where the samples are pictures already."""
    if hasattr(samples, "sample") and hasattr(samples, "networks"):
        return samples
    if not isinstance(samples, (str, Path)):
        return None
    path = Path(samples).expanduser()
    marks = ("recipe.yaml", "model.json", "model_index.json", "config.json")
    if path.is_dir() and not any((path / mark).is_file() for mark in marks):
        return None  # a folder of pictures
    from .loading import load

    return load(samples)


def _data_config(reference: Any, samples: Any, painter: Any) -> DataConfig:
    """What the reference is, at the size of the samples; the data of a run as that run had them."""
    if isinstance(reference, Dataset):
        return reference.config
    if isinstance(reference, DataConfig):
        return reference
    if not isinstance(reference, (str, Path)):
        raise InputError(f"reference={type(reference).__name__}: a source of data, a DataConfig or a Dataset is needed")
    source = str(reference)
    if isinstance(samples, (str, Path)) and (Path(samples) / "recipe.yaml").is_file():
        own = load_recipe(Path(samples) / "recipe.yaml").data
        if own.source == source:
            return own
    return DataConfig(source=source, size=_size(samples, painter))


def _size(samples: Any, painter: Any) -> tuple[int, int]:
    if painter is not None:
        height, width = painter.about.size
    elif hasattr(samples, "shape"):
        height, width = samples.shape[-2:]
    elif isinstance(samples, Dataset):
        height, width = samples.size
    else:
        height, width = _first_picture(Path(samples).expanduser())
    return int(height), int(width)


def _first_picture(folder: Path) -> tuple[int, int]:
    from PIL import Image

    if not folder.is_dir():
        raise InputError(f"samples {str(folder)!r}: there is no such folder of pictures")
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            try:
                with Image.open(path) as image:
                    return image.height, image.width
            except (OSError, ValueError, Image.DecompressionBombError):
                continue  # named by whoever reads them all
    raise InputError(f"samples {str(folder)!r}: no picture is in that folder")


def _training(config: DataConfig, split: str) -> Dataset | None:
    return open_data(config, "train") if split != "train" else None
