"""`hf:NAME`: a data set of the hub, or a folder in one of its forms (parquet, arrow, csv with pictures), through `datasets`.

`hf:NAME` or `hf:NAME:CONFIG`. The picture is the first column of pictures; the caption a column named text, caption,
captions, prompt or sentence; the class one named label, class or category, or the first column of class labels. The split
`train` is taken where there is one: hwaga holds pictures back by cluster itself. Code of a data set is never run.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, WorkError
from .captions import Said, plain_label, words
from .config import DataConfig
from .dataset import Dataset, Progress
from .packing import Candidates, packed
from .pictures import Unusable

PREFIX = "hf:"
CAPTIONS = ("text", "caption", "captions", "prompt", "sentence")
LABELS = ("label", "class", "category")


def open_hub(config: DataConfig, split: str, progress: Progress | None = None) -> Dataset:
    """The pictures of `split` ("train", "held-out", "all"). InputError where the set or its pictures cannot be found,
    or `datasets` is not installed; WorkError where the hub cannot be reached."""
    rows = _load(config.source)
    features = rows.features
    pictures = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if not pictures:
        raise InputError(f"{config.source} has no column of pictures; its columns are {', '.join(features) or 'none'}")
    column = pictures[0]
    raw = rows.cast_column(column, type(features[column])(decode=False))  # bytes: we decode, and count what is broken

    def opened(name: str) -> Path | BinaryIO:
        value = raw[int(name)][column]
        if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
            raise Unusable("no picture in this row")
        return io.BytesIO(value["bytes"]) if value.get("bytes") else Path(value["path"])

    found = Candidates(
        config.source, [f"{i:08d}" for i in range(len(rows))], opened, lambda: _said(rows, column), threads=1,
        what="this data set",
    )  # fmt: skip
    licence = getattr(rows.info, "license", None) or None
    return packed(found, "hub", {"name": config.source, "data": rows._fingerprint}, config, split, progress, licence)


def _load(source: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(f"source {source!r} needs the package datasets: pip install 'hwaga[datasets]'") from None
    name, _, variant = source.removeprefix(PREFIX).partition(":")
    if not name:
        raise InputError(
            f"source {source!r}: hf:NAME names a data set, such as hf:huggan/smithsonian_butterflies_subset"
        )
    local = Path(name).expanduser()
    try:
        loaded = datasets.load_dataset(str(local) if local.exists() else name, variant or None)
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"source {source!r} is no data set that can be read: {first}") from None
    except (ConnectionError, OSError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WorkError(f"source {source!r}: the hub could not be reached: {first}") from None
    return loaded["train"] if "train" in loaded else next(iter(loaded.values()))


def _said(rows: Any, picture: str) -> dict[str, Said]:
    features = rows.features
    caption = next((name for name in CAPTIONS if name in features and name != picture), None)
    label = next((name for name in LABELS if name in features), None)
    label = label or next((n for n, feature in features.items() if type(feature).__name__ == "ClassLabel"), None)
    captions = rows[caption] if caption else [None] * len(rows)
    labels = rows[label] if label else [None] * len(rows)
    names = getattr(features[label], "names", None) if label else None
    return {
        f"{i:08d}": Said(_text(text), _class(value, names))
        for i, (text, value) in enumerate(zip(captions, labels, strict=True))
    }


def _text(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):  # several captions of one picture: the first
        value = value[0] if value else None
    return words(value) or None if isinstance(value, str) else None


def _class(value: Any, names: list[str] | None) -> str | None:
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return plain_label(value)
