"""What is in a data set, in numbers and as a grid of pictures with their captions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from .dataset import Dataset
from .fonts import Font, built_in, font_for
from .splits import stable

_CELL, _GAP, _TEXT, _LINES = 96, 8, 11, 3


def summary(dataset: Dataset) -> dict[str, Any]:
    """The numbers of a set and of its source, as plain JSON; `left_out` has every file by name and reason."""
    reasons = Counter(_kind(item.reason) for item in dataset.left_out)
    counts = dataset.label_counts
    clusters = np.bincount(dataset.clusters)
    facts = dict(dataset.facts)
    return {
        "source": dataset.config.source,
        "split": dataset.split,
        "pictures": len(dataset),
        "size": list(dataset.size),
        "found": dataset.found,
        "used": dataset.used,
        "left out": len(dataset.left_out),
        "left out by reason": dict(reasons.most_common()),
        "splits": dict(dataset.splits),
        "classes": {} if counts is None else {name: int(n) for name, n in zip(dataset.classes, counts, strict=True)},
        "captions": _captions(dataset),
        "copies": facts.pop("copies", 0),
        "clusters": facts.pop("clusters", 0),
        "near-duplicates in this split": int((clusters[clusters > 1] - 1).sum()),
        "licence": dataset.licence,
        "attribution": dataset.attribution,
        "fingerprint": dataset.fingerprint,
        **facts,
        "left_out": [[item.name, item.reason] for item in dataset.left_out],
    }


def _kind(reason: str) -> str:
    """Reasons that name a file or a number are counted as one kind."""
    for start in ("the same drawing as", "too large", "broken"):
        if reason.startswith(start):
            return {"the same drawing as": "a copy of another drawing"}.get(start, start)
    return reason


def _captions(dataset: Dataset) -> dict[str, Any]:
    if dataset.captions is None:
        return {"with": 0}
    there = [caption for caption in dataset.captions if caption]
    words = sorted(len(caption.split()) for caption in there) or [0]
    return {
        "with": len(there),
        "without": len(dataset.captions) - len(there),
        "different": len(set(there)),
        "words (median, most)": [words[len(words) // 2], words[-1]],
    }


def summary_text(facts: dict[str, Any], most: int | None = 20) -> str:
    """The summary in lines to read; at most `most` files that were left out, None: all of them.

    OpenMoji's drawings without a name and copies are only counted: they are as they should be.
    """
    height, width = facts["size"]
    lines = [
        f"{facts['source']}: {facts['pictures']:,} pictures of {height} x {width} px in the split {facts['split']}",
        f"found {facts['found']:,} = used {facts['used']:,} + left out {facts['left out']:,}",
    ]
    lines += [f"  left out: {n:,} {reason}" for reason, n in facts["left out by reason"].items()]
    lines.append("splits: " + ", ".join(f"{name} {n:,}" for name, n in facts["splits"].items()))
    if facts["classes"]:
        largest = sorted(facts["classes"].items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{name} {n:,}" for name, n in largest[:8])
        lines.append(f"classes: {len(largest)} ({shown}{', ...' if len(largest) > 8 else ''})")
    captions = facts["captions"]
    if captions["with"]:
        lines.append(
            f"captions: {captions['with']:,} ({captions['different']:,} different), {captions['without']:,} without"
        )
    else:
        lines.append("captions: none")
    if "source sizes" in facts:
        named = ", ".join(f"{name} {h} x {w}" for name, (h, w) in facts["source sizes"].items())
        lines.append(f"files' own sizes: {named}")
    lines.append(
        f"copies: {facts['copies']:,}; near-duplicates: {facts['near-duplicates in this split']:,} in this split; "
        f"clusters: {facts['clusters']:,} in all"
    )
    if facts["attribution"]:
        lines.append(f"licence: {facts['licence']}. {facts['attribution']}")
    files = [
        item for item in facts["left_out"] if _kind(item[1]) not in ("no official name", "a copy of another drawing")
    ]
    shown_files = files if most is None else files[:most]
    lines += [f"left out: {_printable(name)}: {_printable(reason)}" for name, reason in shown_files]
    if len(files) > len(shown_files):
        lines.append(f"... and {len(files) - len(shown_files):,} more")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """File names are strangers' words: nothing in them may steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines that fit the width, at most _LINES; what is longer ends in three dots."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = lines[_LINES:] != []
    lines = lines[:_LINES]
    for i, line in enumerate(lines):
        short = line
        dots = "..." if (cut and i == len(lines) - 1) else ""
        while short and font.getlength(short + dots) > width:
            short, dots = short[:-1], "..."
        lines[i] = short + dots
    return lines


def chosen(dataset: Dataset, n: int, seed: int) -> np.ndarray:
    """Which n pictures a grid shows: spread over the set by a hash of seed and name, in the set's order."""
    if n < 1:
        raise InputError(f"n={n}: a grid needs at least one picture")
    order = sorted(range(len(dataset)), key=lambda i: stable("grid", str(seed), dataset.names[i]))
    return np.array(sorted(order[:n]), dtype=np.int64)


def grid(dataset: Dataset, n: int = 48, seed: int = 0, font: str | None = None) -> Image.Image:
    """n pictures as training sees them in its first epoch (flips and crops too), each above its caption.

    Small pictures are enlarged by whole numbers, so that every pixel can be seen. `font`: a file to prefer. Where no
    font here has a caption's letters, the picture's name stands instead, and the grid's last line says so.
    """
    at = chosen(dataset, n, seed)
    pixels = dataset.pixels(at, np.zeros(len(at), np.int64))
    captions = dataset.captions
    if captions is not None:
        texts = [captions[i] or dataset.names[i] for i in at]
    elif dataset.labels is not None:
        texts = [dataset.classes[dataset.labels[i]] for i in at]
    else:
        texts = [dataset.names[i] for i in at]
    return sheet(pixels, texts, [dataset.names[i] for i in at], font)


def sheet(pixels: np.ndarray, texts: list[str], names: list[str] | None = None, font: str | None = None) -> Image.Image:
    """uint8 (n, 3, h, w) and a text for each as one picture; `names` stand in for texts that no font can draw."""
    height, width = pixels.shape[2:]
    scale = max(1, -(-_CELL // max(height, width)))
    cell_h, cell_w = height * scale, max(width * scale, _CELL)
    columns = max(1, min(len(pixels), round((len(pixels) * 1.6) ** 0.5)))
    rows = -(-len(pixels) // columns)
    step_x, step_y = cell_w + _GAP, cell_h + _LINES * (_TEXT + 3) + _GAP
    drawable = [_letters(text, font) for text in texts]
    lost = sum(found is None for found in drawable)
    canvas = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP + (20 if lost else 0)), (238, 238, 238))
    draw = ImageDraw.Draw(canvas)
    for i, picture in enumerate(pixels):
        x, y = _GAP + i % columns * step_x, _GAP + i // columns * step_y
        image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
        large = image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(large, (x + (cell_w - width * scale) // 2, y))
        used = drawable[i] or built_in(_TEXT)
        text = _printable(texts[i] if drawable[i] else (names[i] if names else "?"))
        for k, line in enumerate(_wrapped(text, used, cell_w)):
            draw.text((x + cell_w / 2, y + cell_h + 2 + k * (_TEXT + 3)), line, (30, 30, 30), used, anchor="ma")
    if lost:
        note = f"{lost} captions in letters that no font here has: the names stand instead"
        draw.text((_GAP, canvas.height - 18), note, (160, 30, 30), built_in(_TEXT))
        canvas.info["note"] = note
    return canvas


def _letters(text: str, font: str | None) -> Font | None:
    return font_for(_printable(text), _TEXT, font)
