"""Pictures to learn from: OpenMoji, a folder, tar shards, a data set of the hub, handwritten digits; prepared once, read
from a packed cache.

data = open_data(DataConfig(source="openmoji", size=32), "train")
indices, epochs = Order(len(data), 64, seed=0).at(step)
batch = data.batch(indices, epochs)
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError, unknown
from .buckets import Bucketed, bucketed
from .config import SPLITS, DataConfig
from .dataset import Dataset, LeftOut, Progress
from .edits import EditPair, edit_pairs, edit_pixels
from .order import Order
from .prior import Joined

SOURCES = {  # name -> the splits that it has
    "openmoji": ("train", "held-out", "combinations", "all"),
    "digits": ("train", "held-out", "all"),
    "a folder": ("train", "held-out", "all"),
    "tar shards": ("train", "held-out", "all"),
    "hf:NAME": ("train", "held-out", "all"),
}
GIVE = "give openmoji, digits, a folder of pictures, tar shards (x-{000..012}.tar) or hf:NAME"

__all__ = [
    "Bucketed",
    "DataConfig",
    "Dataset",
    "EditPair",
    "Joined",
    "LeftOut",
    "Order",
    "Progress",
    "SOURCES",
    "bucketed",
    "edit_pairs",
    "edit_pixels",
    "open_data",
]


def open_data(config: DataConfig, split: str | None = None, progress: Progress | None = None) -> Dataset:
    """The pictures of a source, prepared as `config` says; `split` takes the place of the config's.

    The first time they are drawn or read and packed into the cache, of which `progress` is told. InputError for a
    source that is none of SOURCES or has no pictures, and for a split that it does not have.
    """
    split = config.split if split is None else split
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    kind = _kind(config.source)
    if split not in SOURCES[kind]:
        raise InputError(f"split={split!r}: {config.source} has {', '.join(SOURCES[kind])}")
    if kind == "openmoji":
        from .openmoji import open_openmoji as opener
    elif kind == "digits":
        from .digits import open_digits as opener
    elif kind == "tar shards":
        from .shards import open_shards as opener
    elif kind == "hf:NAME":
        from .hub import open_hub as opener
    else:
        from .folders import open_folder as opener
    return opener(config, split, progress)


def _kind(source: str) -> str:
    """Which of SOURCES a text names; what is there on the disk comes before what a name could mean."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return source if source in ("openmoji", "digits") else "a folder"
        there = path.exists()
    except OSError:
        there = False
    if source in ("openmoji", "digits"):
        return source
    if source.startswith("hf:"):
        return "hf:NAME"
    if source.endswith(".tar"):
        return "tar shards"
    if there:
        raise InputError(f"source {source!r} is a file; {GIVE}")
    raise InputError(f"source {source!r} is unknown and no folder has that name; {GIVE}")
