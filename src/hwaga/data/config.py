"""The section `data:` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

Side = Annotated[int, Field(ge=1, le=8192)]
SPLITS = ("train", "held-out", "combinations", "all")
MARGIN = 8  # `random_crop` stores pictures larger by 1/MARGIN a side (256 for a window of 224 is about that)


class PriorConfig(BaseModel, frozen=True, extra="forbid"):
    """Pictures that a model painted before it learns new ones, to be learned beside them (data/prior.py)."""

    source: str = Field(min_length=1)  # a folder of pictures: hwaga sample MODEL --prompt WORDS --n 200 --out FOLDER
    caption: str | None = None  # of all of them: the words they were painted from; null: their own
    weight: float = Field(1.0, gt=0)  # of their loss beside that of a new picture


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """What is trained on and how it is prepared. Sizes are (height, width) in pixels; one number means a square."""

    source: str = Field("openmoji", min_length=1)  # openmoji, digits, a folder, tar shards, hf:NAME
    size: Side | tuple[Side, Side] = 32
    split: Literal["train", "held-out", "combinations", "all"] = "train"
    label: Literal["subgroup", "group", "none"] | None = None
    # openmoji: Unicode's subgroup (default) or group; a folder: the first sub-folder (group, default) or the whole path
    # of sub-folders (subgroup); digits: the digit. "none": no labels.
    language: str | tuple[str, ...] = (
        "en"  # of the captions, where the source has several; of a list training reads one
    )
    # a picture and epoch, and measuring the first
    wordings: Literal["name", "all"] = (
        "name"  # all: other names that a source knows of a thing are read in training too
    )
    caption_shuffle: bool = False  # training reads the parts of a caption, between commas, in another order each epoch
    caption_keep: int = Field(0, ge=0)  # so many first parts stay where they are
    resize: Literal["crop", "pad", "stretch"] = "crop"  # how a picture of another shape is made to fit; pad: with white
    flip: bool = False  # mirror half of the pictures in training
    random_crop: bool = False  # store larger by 1/8 and cut a random window in training (its centre otherwise)
    held_out: float = Field(0.1, ge=0, le=0.5)  # share of a folder kept for measuring; openmoji has its own fixed sets
    buckets: Side | None = (
        None  # sides are multiples of it: batches of one size each, as each picture's aspect asks for
    )
    prior: PriorConfig | None = None
    seed: int = Field(0, ge=0)  # of flips, random crops and the choice of captions

    @field_validator("source")
    @classmethod
    def _no_nul(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("source holds a NUL character; give openmoji, digits or the path of a folder")
        return value

    @field_validator("language")
    @classmethod
    def _some_language(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or len(set(value)) < len(value) and not isinstance(value, str):
            raise ValueError(f"language={value!r}: one language or a list of different ones is needed")
        return value

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the captions, the one that is measured in first."""
        return (self.language,) if isinstance(self.language, str) else self.language

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of a picture."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def stored(self) -> tuple[int, int]:
        """(height, width) of a picture in the cache: larger than `shape` where windows are cut at random."""
        height, width = self.shape
        if not self.random_crop:
            return height, width
        return height + -(-height // MARGIN), width + -(-width // MARGIN)
