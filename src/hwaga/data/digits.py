"""The 1,797 handwritten digits, 8 x 8 pixels, that come with scikit-learn: the smallest real data there is."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import unknown
from .cache import Writer, cached
from .clusters import connected
from .config import DataConfig
from .dataset import Dataset, Progress
from .pictures import fit
from .splits import held_out
from .wording import several

LICENCE = "CC BY 4.0"
ATTRIBUTION = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C50P49, CC BY 4.0; the copy in scikit-learn"
)
WORDS = {
    "en": ("a handwritten {}", "zero one two three four five six seven eight nine".split()),
    "ko": ("손으로 쓴 숫자 {}", "영 일 이 삼 사 오 육 칠 팔 구".split()),
}
HELD_OUT = 0.1
_VERSION = 1


def open_digits(config: DataConfig, split: str, progress: Progress | None = None) -> Dataset:
    """White digits on black; labels 0 ... 9; splits "train", "held-out" (a tenth of each digit) and "all".

    Clusters are equal pictures only: that two digits of one kind are alike is the nature of this data.
    """
    for language in config.languages:
        if language not in WORDS:
            raise unknown("data.language", language, WORDS)
    key = {
        "version": _VERSION,
        "scikit-learn": version("scikit-learn"),
        "shape": config.stored,
        "resize": config.resize,
    }

    def build(folder: Path) -> dict[str, Any]:
        from sklearn.datasets import load_digits

        data = load_digits()
        images = np.rint(data.images * (255 / 16)).astype(np.uint8)
        with Writer(folder / "pixels.npy", (3, *config.stored)) as writer:
            writer.append(
                np.stack([fit(Image.fromarray(i).convert("RGB"), config.stored, config.resize) for i in images])
            )
        first: dict[bytes, int] = {}
        same = [(i, first.setdefault(image.tobytes(), i)) for i, image in enumerate(images)]
        return {"labels": data.target.tolist(), "clusters": connected(len(images), same).tolist()}

    entry = cached("digits", key, build)
    every = np.array(entry.facts["labels"], dtype=np.int64)
    clusters = np.array(entry.facts["clusters"], dtype=np.int64)
    names = [f"digit-{i:04d}" for i in range(len(every))]
    held = held_out(clusters, names, HELD_OUT, [str(label) for label in every])
    rows = np.flatnonzero({"train": ~held, "held-out": held, "all": np.ones(len(every), bool)}[split])
    told = [
        [phrase.format(numbers[every[i]]) for i in rows] for phrase, numbers in map(WORDS.__getitem__, config.languages)
    ]
    unlabelled = config.label == "none"
    return Dataset(
        config=config,
        split=split,
        names=[names[i] for i in rows],
        labels=None if unlabelled else every[rows],
        classes=() if unlabelled else tuple("0123456789"),
        captions=told[0],
        wordings=several(zip(*told, strict=True)),
        clusters=clusters[rows],
        found=len(every),
        left_out=[],
        splits={"train": int((~held).sum()), "held-out": int(held.sum())},
        licence=LICENCE,
        attribution=ATTRIBUTION,
        store=entry.pixels,
        rows=rows,
        stored=entry.sha256,
        facts={"copies": len(every) - int(clusters.max()) - 1, "clusters": int(clusters.max()) + 1},
    )
