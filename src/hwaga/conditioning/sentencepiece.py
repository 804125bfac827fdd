"""SentencePiece's file (`spiece.model`), as older folders of T5 have it alone: pieces and their scores, and how a text is normed.

The file is a protocol buffer: a row of fields, each a number of its kind and then its content. Read of it are

    1  a piece: 1 its text, 2 its score (float32), 3 its kind (2 unknown, 3 control)
    2  how it was trained: 3 the kind of model (1 unigram, which is what T5 has)
    3  the norms: 2 a table of characters, as the `tokenizers` library takes it

Source: Kudo and Richardson 2018; the layout is that of `sentencepiece_model.proto`. A unigram model takes the pieces of a text
whose scores are highest together (Kudo 2018, section 3.2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

UNIGRAM = 1  # the kind of model
UNKNOWN = 2  # the kind of the piece that stands for what is in none
SPACE = "\u2581"
EXTRA = 100  # T5's further words, <extra_id_0> ...: numbered after the pieces, the last first


class Model(NamedTuple):
    """What a file says."""

    pieces: list[tuple[str, float]]
    unknown: int  # the number of the unknown piece
    norms: bytes


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, content) of each field. ValueError where the bytes are none."""
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        field, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _number(data, at)
            yield field, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            if kind != 2:
                raise ValueError(f"a field of kind {kind}")
            size, at = _number(data, at)
        if at + size > len(data):
            raise ValueError("it ends early")
        yield field, data[at : at + size]
        at += size


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next field begins."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("it ends early")
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 128:
            return value, at


def read(data: bytes) -> Model:
    """The model in a file. ValueError where it is none."""
    pieces: list[tuple[str, float]] = []
    unknown, norms = -1, b""
    for field, content in fields(data):
        if field == 1 and isinstance(content, bytes):
            said = dict(fields(content))
            text, score = said.get(1, b""), said.get(2, b"\0\0\0\0")
            if not isinstance(text, bytes) or not isinstance(score, bytes):
                raise ValueError("a piece without a text")
            if said.get(3) == UNKNOWN:
                unknown = len(pieces)
            pieces.append((text.decode(), struct.unpack("<f", score)[0]))
        elif field == 2 and isinstance(content, bytes):
            if dict(fields(content)).get(3, UNIGRAM) != UNIGRAM:
                raise ValueError("it is no unigram model")
        elif field == 3 and isinstance(content, bytes):
            table = dict(fields(content)).get(2, b"")
            norms = table if isinstance(table, bytes) else b""
    if not pieces or unknown < 0:
        raise ValueError("it holds no pieces")
    return Model(pieces, unknown, norms)


def engine(data: bytes) -> Any:
    """The tokenizer of the `tokenizers` library that a T5's file is. ValueError where it is none."""
    import tokenizers as library

    model = read(data)
    extra = [f"<extra_id_{i}>" for i in reversed(range(EXTRA))]
    known = {text for text, _ in model.pieces}
    further = [(name, 0.0) for name in extra if name not in known]
    found = library.Tokenizer(library.models.Unigram([*model.pieces, *further], unk_id=model.unknown))
    if model.norms:
        found.normalizer = library.normalizers.Precompiled(model.norms)
    before = library.pre_tokenizers
    found.pre_tokenizer = before.Sequence([before.WhitespaceSplit(), before.Metaspace(replacement=SPACE)])
    special = [text for text in ("<pad>", "</s>", "<unk>", *extra) if text in known or text in extra]
    found.add_special_tokens([library.AddedToken(text, special=True, normalized=False) for text in special])
    return found
