"""`evaluate`: samples in, scores with their protocol card out."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, unknown
from .config import METRICS
from .encoders import Features, load_features
from .inception_score import inception_score
from .intervals import interval, ratio_interval, resampled_distances, whole_clusters
from .kernel import kernel_distance
from .memorisation import memorisation
from .pictures import Samples, take_samples
from .prdc import prdc
from .protocol import Scores, foreign_features, protocol_card
from .sharpness import sharpness

if TYPE_CHECKING:
    from ..data import Dataset

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): over the whole evaluation."""

_NORMAL = 1.959964  # 97.5 % of the standard normal
_MANY = 20_000  # of a larger training set only the floor's pictures are looked at, where nothing asks for all
_RESAMPLES = 500
_SPLIT_FROM = 5000  # pictures from which the Inception score is the mean over 10 splits, as published


def evaluate(
    samples: Any,
    reference: Dataset,
    *,
    training: Dataset | None = None,
    features: str | Path | Features | None = None,
    n: int | None = None,
    seed: int = 0,
    metrics: Sequence[str] = ("fid", "kid", "prdc"),
    settings: Mapping[str, Any] | None = None,
    k: int = 5,
    resamples: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores of `samples` against all pictures of `reference` (held-out ones).

    samples    folder of pictures; tensor or array (n, 3, h, w), uint8 or in [0, 1]; or a Dataset
    training   what the painter learned from: makes the floor of `fid`, and is needed by `memorisation`
    features   see `load_features`; None: the shipped ones, made for emoji (a warning on other data)
    n          pictures that are measured, drawn by `seed` where there are more; None: all
    metrics    of fid, kid, prdc, inception_score, sharpness, memorisation; `bits` and `codes` are the
               painter's own to measure, `retrieval` and `clip_score` those of what it was asked for (see measuring.py)
    settings   what the card is to say of the painting: sampler, steps, guidance_scale, model, seconds_a_picture ...
    k          neighbours of `prdc`
    resamples  for the intervals of fid and memorisation; None: 500, fewer where features have many dimensions; 0: none

    `values` has `fid`, `fid_floor`, `fid_over_floor`, `kid`, `kid_standard_error`, `precision`, `recall`, `density`,
    `coverage`, `inception_score` (and `inception_score_real`, the reference's own), `sharpness`, `memorisation`,
    `seconds_a_picture`, as far as they were asked for and can be had. Everything wrong with the input is an InputError
    before any work is done.
    """
    settings = dict(settings or {})
    _check(metrics, reference, training, resamples)
    judge = load_features(features)
    if "inception_score" in metrics and not judge.has_logits:
        raise InputError(f"metric 'inception_score': the features {judge.name!r} have no classes; leave it out")
    taken = take_samples(samples, reference, n, seed)
    count = len(taken.pixels)
    if "prdc" in metrics and not 1 <= k < min(count, len(reference)):
        least = min(count, len(reference))
        raise InputError(
            f"k={k}: precision and recall look at the k nearest neighbours; with {least} pictures k < {least}"
        )
    draws = _resamples(judge.dim) if resamples is None else resamples

    card = protocol_card(judge, reference, count, seed, taken.resize, {"samples": taken.name, **settings})
    found = Scores({}, {}, card, list(taken.notes))
    if foreign := foreign_features(judge, reference):
        warnings.warn(foreign, UserWarning, stacklevel=2)
        found.notes.append(foreign)
    work = _Work(progress, count, reference, training, draws)
    ours, our_logits = judge.judge(taken.pixels, work.part(count), "samples")
    real, real_logits = judge.of(reference, work.part(len(reference)), "reference")
    mine, theirs = ours.numpy().astype(np.float64), real.numpy().astype(np.float64)
    found._witness = (mine, theirs, reference.clusters)

    if "fid" in metrics:
        _frechet(found, judge, taken, mine, theirs, reference, training, seed, draws, "memorisation" in metrics, work)
    if "kid" in metrics:
        distance = kernel_distance(mine, theirs)
        found.values |= {"kid": distance.value, "kid_standard_error": distance.standard_error}
        reach = _NORMAL * distance.standard_error
        if np.isfinite(reach):  # two pictures have no jackknife
            found.intervals["kid"] = (distance.value - reach, distance.value + reach)
    if "prdc" in metrics:
        found.values |= prdc(mine, theirs, k=k)._asdict()
        card["k"] = k
    if "inception_score" in metrics:
        splits = 10 if count >= _SPLIT_FROM else 1
        found.values["inception_score"] = inception_score(our_logits, splits=splits).mean
        found.values["inception_score_real"] = inception_score(real_logits, splits=1).mean
        card["splits"] = splits
    if "sharpness" in metrics:
        found.values["sharpness"] = sharpness(taken.pixels, reference.pixels(np.arange(len(reference))))
    if "memorisation" in metrics:
        assert training is not None  # _check has seen to it
        cheap = _RESAMPLES if resamples is None else resamples
        _memorisation(found, judge, taken, mine, theirs, reference, training, seed, cheap, work)
    if "seconds_a_picture" in settings:
        found.values["seconds_a_picture"] = float(settings["seconds_a_picture"])
    work.end()
    return found


def _check(metrics: Sequence[str], reference: Any, training: Any, resamples: int | None) -> None:
    from ..data import Dataset

    if isinstance(metrics, str):
        raise InputError(f"metrics={metrics!r}: want a tuple of names, such as ({metrics!r},)")
    if not metrics:
        raise InputError(f"metrics is empty; choose from: {', '.join(METRICS)}")
    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    for name, data in (("reference", reference), ("training", training)):
        if data is not None and not isinstance(data, Dataset) or data is None and name == "reference":
            raise InputError(f"{name}={type(data).__name__}: want a hwaga.data.Dataset, as open_data gives it")
        if data is not None and len(data) < 2:
            raise InputError(f"{name}: {len(data)} pictures in its {data.split!r} split; at least 2 are needed")
    if "memorisation" in metrics and training is None:
        raise InputError("metric 'memorisation' needs the pictures that were trained on: give training=")
    if training is not None and training.size != reference.size:
        raise InputError(
            f"training pictures of {training.size} and reference of {reference.size} pixels: want one size"
        )
    if resamples is not None and resamples < 0:
        raise InputError(f"resamples={resamples}: want 0 (no intervals) or more")


def _resamples(dim: int) -> int:
    """How many a few seconds allow: the work grows with the cube of the dimensions."""
    return _RESAMPLES if dim <= 128 else 100 if dim <= 512 else 20 if dim <= 1024 else 0


def _frechet(
    found: Scores, judge: Features, taken: Samples, mine: np.ndarray, theirs: np.ndarray, reference: Dataset,
    training: Dataset | None, seed: int, draws: int, whole: bool, work: _Work,
) -> None:  # fmt: skip
    """fid, its floor and the ratio, with intervals."""
    floor: list[np.ndarray] = []
    if training is None:
        found.notes.append("no training pictures were given, so the Frechet distance has no floor")
    else:
        many = len(mine) >= len(training)
        rounds = 1 if many else 16 if judge.dim <= 128 else 4
        # the draws do not depend on the seed of the samples: the same data and n have the same floor
        places = (
            [np.arange(len(training))]
            if many
            else [whole_clusters(training.clusters, len(mine), number) for number in range(rounds)]
        )
        places = [np.arange(len(mine)) if len(drawn) < 2 else drawn for drawn in places]  # one huge cluster
        if whole or len(training) <= _MANY:
            known = judge.of(training, work.part(len(training)), "training pictures")[0].numpy()
            floor = [known[drawn] for drawn in places]
        else:
            part = work.part(len(training))
            floor = [judge.judge(training.pixels(drawn), part, "training pictures")[0].numpy() for drawn in places[:1]]
        count = int(np.mean([len(features) for features in floor]))
        found.card["floor"] = {
            "source": training.config.source, "split": training.split, "fingerprint": training.fingerprint,
            "n": count, "draws": len(floor),
        }  # fmt: skip
        if count < 0.98 * len(mine):
            found.notes.append(
                f"the floor has {count} real pictures, fewer than the {len(mine)} samples: it is rather too high"
            )
    values, drawn = resampled_distances(
        [mine], theirs, clusters=[taken.clusters], reference_clusters=reference.clusters, floor=floor,
        resamples=draws, seed=seed, progress=work.part(draws),
    )  # fmt: skip
    found.values["fid"] = float(values[0])
    if draws:
        found.intervals["fid"] = interval(values[0], drawn[:, 0])[1:]
        found.card["resamples"] = draws
    if training is None:
        return
    found.values["fid_floor"] = float(values[1])
    if values[1] <= 0:
        found.notes.append("the floor is 0 (training pictures and reference are the same?), so there is no ratio to it")
        return
    found.values["fid_over_floor"] = float(values[0] / values[1])
    if draws:
        found.intervals["fid_over_floor"] = ratio_interval(0, 1, values, drawn)[1:]


def _memorisation(
    found: Scores, judge: Features, taken: Samples, mine: np.ndarray, theirs: np.ndarray, reference: Dataset,
    training: Dataset, seed: int, draws: int, work: _Work,
) -> None:  # fmt: skip
    learned = judge.of(training, work.part(len(training)), "training pictures")[0].numpy().astype(np.float64)
    result = memorisation(
        mine, learned, theirs,
        sample_keys=_keys(taken.pixels), training_keys=_keys_of(training),
        sample_clusters=taken.clusters, training_clusters=training.clusters, held_out_clusters=reference.clusters,
        resamples=draws, seed=seed,
    )  # fmt: skip
    found.values |= {
        "memorisation": result.value,
        "near_samples": result.near_samples,
        "near_training": result.near_training,
    }
    if draws:
        found.intervals["memorisation"] = (result.low, result.high)
    if result.note:
        found.notes.append(result.note)


def _keys(pixels: np.ndarray) -> list[bytes]:
    return [hashlib.blake2b(picture.tobytes(), digest_size=16).digest() for picture in pixels]


def _keys_of(data: Dataset) -> list[bytes]:
    blocks = range(0, len(data), 512)
    return [key for start in blocks for key in _keys(data.pixels(np.arange(start, min(start + 512, len(data)))))]


class _Work:
    """One count over all parts of an evaluation, so that a bar runs once from left to right."""

    def __init__(
        self, progress: Progress | None, samples: int, reference: Dataset, training: Dataset | None, draws: int
    ) -> None:
        self._progress = progress
        self._before = 0
        self._here = 0
        self._total = samples + len(reference) + (len(training) if training is not None else 0) + draws

    def part(self, size: int) -> Progress | None:
        """Begins the next part; `size` is what it counts for."""
        if self._progress is None:
            return None
        self._before, begun = self._before + self._here, self._before + self._here
        self._here = size

        def report(done: int, total: int, what: str) -> None:
            assert self._progress is not None
            self._progress(min(self._total, begun + size * done // max(1, total)), self._total, what)

        return report

    def end(self) -> None:
        if self._progress is not None:
            self._progress(self._total, self._total, "done")
