"""Pictures to learn from: OpenMoji, a folder of pictures, handwritten digits; prepared once, read from a packed cache.

data = open_data(DataConfig(source="openmoji", size=32), "train")
indices, epochs = Order(len(data), 64, seed=0).at(step)
batch = data.batch(indices, epochs)
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError, unknown
from .config import SPLITS, DataConfig
from .dataset import Dataset, LeftOut, Progress
from .edits import EditPair, edit_pairs, edit_pixels
from .order import Order

SOURCES = {  # name -> the splits that it has
    "openmoji": ("train", "held-out", "combinations", "all"),
    "digits": ("train", "held-out", "all"),
    "a folder": ("train", "held-out", "all"),
}

__all__ = [
    "DataConfig",
    "Dataset",
    "EditPair",
    "LeftOut",
    "Order",
    "Progress",
    "SOURCES",
    "edit_pairs",
    "edit_pixels",
    "open_data",
]


def open_data(config: DataConfig, split: str | None = None, progress: Progress | None = None) -> Dataset:
    """The pictures of a source, prepared as `config` says; `split` takes the place of the config's.

    The first time they are drawn or read and packed into the cache, of which `progress` is told. InputError for a
    source that is neither openmoji, digits nor a folder with pictures, and for a split that it does not have.
    """
    split = config.split if split is None else split
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    kind = config.source if config.source in ("openmoji", "digits") else "a folder"
    if kind == "a folder":
        _check_folder(config.source)
    if split not in SOURCES[kind]:
        raise InputError(f"split={split!r}: {config.source} has {', '.join(SOURCES[kind])}")
    if kind == "openmoji":
        from .openmoji import open_openmoji

        return open_openmoji(config, split, progress)
    if kind == "digits":
        from .digits import open_digits

        return open_digits(config, split, progress)
    from .folders import open_folder

    return open_folder(config, split, progress)


def _check_folder(source: str) -> None:
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return
        there = path.exists()
    except OSError:
        there = False
    if there:
        raise InputError(f"source {source!r} is a file; give openmoji, digits or a folder of pictures")
    raise InputError(
        f"source {source!r} is unknown and no folder has that name; give openmoji, digits or a folder of pictures"
    )
