"""Scores of a model, a folder of pictures or a tensor against real pictures: who paints, what is compared with what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import DataConfig, Dataset, open_data
from .errors import InputError, unknown
from .recipes import load_recipe

if TYPE_CHECKING:
    from .evaluation import Scores
    from .evaluation.clip import ClipJudge
    from .evaluation.retrieval import Asked

BITS_PICTURES, BITS_INDICES = 64, 100
"""`bits` is measured on so many real pictures, at so many indices of the table; each stands for those nearest to it."""

PICTURES = 500
"""How many pictures a model paints for quick work; what the docs state has 2,000."""


JUDGE = "openmoji/clip-judge"
"""The CLIP that judges where none is named: it never tells a painter what to paint."""
BY_CLIP = ("retrieval", "clip_score")


def measure(
    samples: Any, reference: Any, split: str, n: int | None, seed: int, metrics: tuple[str, ...], features: Any,
    sampling: Mapping[str, Any], training: Any, progress: Any, clip: Any = None,
) -> Scores:  # fmt: skip
    """See `hwaga.evaluate`. All that was given is checked before a picture is painted."""
    from . import evaluation

    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 2):
        raise InputError(f"n={n!r}: a whole number of at least 2 pictures is needed")
    for name in metrics:
        if name not in evaluation.METRICS:
            raise unknown("metric", name, evaluation.METRICS)
    painter, by_clip = _painter(samples), [name for name in metrics if name in BY_CLIP]
    _check_own(metrics, painter)
    config = _data_config(reference, samples, painter)
    real = reference if isinstance(reference, Dataset) else open_data(config, split)
    if len(real) < 2:
        raise InputError(
            f"reference {config.source!r} has {len(real)} pictures in its {split!r} split; at least 2 are needed"
        )
    if painter is not None and not painter.paints:
        return _of_reader(painter, real, config, metrics, progress)
    trained_on = training if training is not None else _training(config, split)
    others = tuple(name for name in metrics if name not in (*BY_CLIP, "control"))
    judge = features
    if others and (features is None or isinstance(features, (str, Path))):
        judge = evaluation.load_features(features)
    asked, eye, told_by = [], None, trained_on or real
    follows = hasattr(painter, "maps")
    if painter is not None and not follows and "prompt" in painter.takes and (by_clip or told_by.captions is not None):
        asked = _asked(told_by, config, n or PICTURES, seed, combinations=bool(by_clip))
    if by_clip:
        if not asked:
            raise InputError(
                f"metric {by_clip[0]!r} asks a painter for what captions say; {_who(painter)} takes no prompt"
            )
        eye = clip_judge(clip)
    settings: dict[str, Any] = {"split": split}
    pictures: Any = samples
    painted: list[Any] = []
    if painter is not None:
        if sampling and (odd := sorted(set(sampling) - set(painter.takes) - set(painter.own))):
            raise InputError(f"{odd[0]}= given to {painter.title}, which takes {', '.join(painter.takes)}")
        begun, count = time.perf_counter(), n or PICTURES
        told = (lambda done, of: progress(done, of, "painting")) if progress is not None else False
        calls: list[dict[str, Any]] = [{"prompt": one.texts} for one in asked] or [{"n": count}]
        if follows:
            at, call = _controlled(painter, real, count, seed, sampling)
            calls = [call]
        for call in calls:
            painted.append(painter.sample(**call, seed=seed, output="tensor", progress=told, **sampling))
        pictures = painted[0]
        settings |= {
            "system": painter.name, "model": painter.about.name, "sha256": painter.about.sha256, **sampling,
            "seconds_a_picture": (time.perf_counter() - begun) / sum(map(len, painted)),
        }  # fmt: skip
    if others:
        found = evaluation.evaluate(
            pictures, real, training=trained_on, features=judge, n=n, seed=seed, metrics=others, settings=settings,
            progress=progress,
        )  # fmt: skip
    else:
        found = evaluation.Scores({}, {}, _card(real, len(pictures), seed, settings))
    if "bits" in metrics:
        values, how = _bits(painter, real, seed, progress)
        found.values.update(values)
        found.card["bits"] = how
    if "codes" in metrics:
        found.values.update(_codes(painter, real))
        found.card["codes"] = {"pictures": len(real)}
    if "control" in metrics:
        _followed(found, painter, pictures, real, at, seed, sampling)
    if eye is not None:
        _read(found, eye, painter, painted, asked, told_by, metrics, seed, progress)
    return found


def _check_own(metrics: tuple[str, ...], painter: Any) -> None:
    """InputError for a metric that only some painters have."""
    if "bits" in metrics and not getattr(painter, "tells_bits", False):
        raise InputError(f"metric 'bits' is a likelihood, and {_who(painter)} has none; leave it out")
    if "codes" in metrics and not hasattr(painter, "codebook_use"):
        raise InputError(f"metric 'codes' is the use of a codebook, and {_who(painter)} has none; leave it out")

    if "control" in metrics and not hasattr(painter, "maps"):
        raise InputError(
            f"metric 'control' asks whether a control map is followed, and {_who(painter)} takes none; leave it out"
        )
    if hasattr(painter, "maps") and any(name in metrics for name in BY_CLIP):
        raise InputError(
            f"metric {BY_CLIP[0]!r} is of words alone, and {_who(painter)} is told a control map too; measure its base"
        )


def _who(painter: Any) -> str:
    return painter.title if painter is not None else "a folder of pictures"


def _card(real: Dataset, n: int, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The card of scores that no features have a part in."""
    from .evaluation.protocol import versions

    told = {"source": real.config.source, "split": real.split, "n": len(real), "fingerprint": real.fingerprint}
    given = {name: value for name, value in settings.items() if name != "split" and value is not None}
    return {**given, "reference": told, "n": n, "seed": seed, "versions": versions()}


# ------------------------------------------------------------------------------------------------- by a CLIP that judges


def clip_judge(spec: Any = None) -> ClipJudge:
    """The CLIP of a shipped name, a saved model of ours, or a folder that transformers loads; None: `JUDGE`."""
    from .evaluation.clip import ClipJudge, load_clip, of_system
    from .loading import load, shipped

    if isinstance(spec, ClipJudge):
        return spec
    if spec is None and JUDGE not in shipped():
        raise InputError(f"this installation has no {JUDGE}; name the folder of a CLIP: clip= or --clip")
    source = JUDGE if spec is None else spec
    path = Path(source).expanduser()
    if path.is_dir() and not any((path / mark).is_file() for mark in ("model.json", "recipe.yaml")):
        return load_clip(path)
    model = load(source, device="cpu", dtype="float32")
    if model.name != "clip":
        raise InputError(f"clip={str(source)!r} is a {model.title}; a CLIP is needed")
    return of_system(model)


def _asked(data: Dataset, config: DataConfig, n: int, seed: int, combinations: bool) -> list[Asked]:
    """What a painter is asked for: n captions of the training pictures, and as many of the combinations held out of them.

    Where there are fewer captions than n, each is asked for several times.
    """
    from .evaluation.retrieval import Asked

    sets = [("", data)]
    if combinations and config.source == "openmoji":
        sets.append(("combinations", open_data(config, "combinations")))
    found = []
    for name, one in sets:
        if one.captions is None:
            raise InputError(f"{config.source!r} has no captions, and the painter is asked for what they say")
        order = np.random.default_rng([seed, 6]).permutation(len(one))
        at = np.resize(order, n)
        found.append(Asked(name, [one.captions[i] for i in at], one.clusters[at], one.pixels(at)))
    return found


def _read(
    found: Scores, eye: ClipJudge, painter: Any, painted: list[Any], asked: list[Asked], data: Dataset,
    metrics: tuple[str, ...], seed: int, progress: Any,
) -> None:  # fmt: skip
    """Adds what a CLIP says of the pictures that were asked for."""
    from .evaluation.retrieval import CANDIDATES, Words, judged

    assert data.captions is not None
    words = Words(data.captions, data.clusters)
    for pictures, one in zip(painted, asked, strict=True):
        seen = (pictures * 255).round().byte().numpy()
        result = judged(eye, seen, one, words, metrics, seed, progress=progress)
        found.values |= result.values
        found.intervals |= result.intervals
    found.card["clip"] = {"name": eye.name, "sha256": eye.sha256, "candidates": CANDIDATES}
    if eye.name is not None and eye.name in painter.about.components.values():
        found.notes.append(f"{eye.name} judges the painter that it tells what to paint: the scores flatter")


def _of_reader(painter: Any, real: Dataset, config: DataConfig, metrics: tuple[str, ...], progress: Any) -> Scores:
    """How well a CLIP finds captions and pictures: of the split that is measured on, and of the held-out combinations."""
    from .evaluation import Scores
    from .evaluation.clip import of_system
    from .evaluation.retrieval import Asked, recalls

    if metrics != ("retrieval",):
        raise InputError(
            f"metrics={','.join(metrics)}: {painter.title} paints nothing; it can be measured by retrieval"
        )
    sets = [("", real)]
    if config.source == "openmoji" and real.split != "combinations":
        sets.append(("combinations", open_data(config, "combinations")))
    settings = {"system": painter.name, "model": painter.about.name, "sha256": painter.about.sha256}
    found = Scores({}, {}, _card(real, len(real), 0, settings))
    for name, data in sets:
        if data.captions is None:
            raise InputError(f"{config.source!r} has no captions, and {painter.title} is measured by them")
        every = Asked(name, list(data.captions), data.clusters, data.pixels(np.arange(len(data))))
        found.values |= recalls(of_system(painter), every, progress).values
    return found


# ------------------------------------------------------------------------------------------------------ whether it follows


def _controlled(
    painter: Any, real: Dataset, n: int, seed: int, sampling: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
    """Places of n real pictures (over and over where there are fewer), and the call that asks for each by its own control map
    and caption."""
    import torch

    at = np.resize(np.random.default_rng([seed, 8]).permutation(len(real)), n)
    if sampling.get("control_kind") is not None:  # made from the pictures by the call itself
        control = torch.from_numpy(real.pixels(at)).float() / 255
    else:
        control = painter.maps(real.with_extras(painter.data_extras()).batch(at)).cpu()
    words = [""] * n if real.captions is None else [real.captions[i] for i in at]
    return at, {"prompt": words, "control": control}


def _followed(
    found: Scores, painter: Any, painted: Any, real: Dataset, at: np.ndarray, seed: int, sampling: Mapping[str, Any]
) -> None:  # fmt: skip
    """Adds the condition-following score: the condition extracted again, against the real pictures it was made of."""
    import torch

    from .evaluation import following

    pixels = real.pixels(at)
    parts = (torch.from_numpy(pixels[i : i + 64]).float() / 255 for i in range(0, len(pixels), 64))
    again = torch.cat([painter.decode(painter.encode(part)) for part in parts])
    measure = following.measure_of(str(sampling.get("control_kind") or painter.config.control.kind))
    levels = [(pictures * 255).round().byte().numpy() for pictures in (painted, again)]
    told = following.following(levels[0], pixels, levels[1], measure, real.clusters[at], seed)
    found.values |= {
        "control_lost": 1 - told.score.value, "control": told.score.value, "control_given": told.given,
        "control_floor": told.floor, "control_ceiling": told.ceiling,
    }  # fmt: skip
    found.intervals["control"] = (told.score.low, told.score.high)
    found.card["control"] = {"measure": measure, "canny": [following.LOW, following.HIGH], "tolerance": 1}


# ------------------------------------------------------------------------------------------------------- by the painter itself


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
