"""SentencePiece's file, read without its library: a buffer written by hand, and what is none."""

import struct

import pytest

from hwaga.conditioning import sentencepiece
from hwaga.conditioning.tokenizers import Tokenizer
from hwaga.errors import InputError

PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁a", -2.0, 1), ("▁red", -2.5, 1), ("▁", -4.0, 1),
          ("r", -5.0, 1), ("e", -5.0, 1), ("d", -5.0, 1), ("별", -6.0, 1)]  # fmt: skip


def number(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def part(field, content):
    return number(field << 3 | 2) + number(len(content)) + content


def piece(text, score, kind):
    inner = part(1, text.encode()) + number(2 << 3 | 5) + struct.pack("<f", score)
    return part(
        1, inner if kind == 1 else inner + number(3 << 3) + number(kind)
    )  # an ordinary piece leaves its kind out


def written(model=1):
    return b"".join(piece(*one) for one in PIECES) + part(2, number(3 << 3) + number(model)) + part(4, b"?" * 300)


def test_pieces_scores_and_the_unknown_one_are_read_and_other_fields_passed_over():
    model = sentencepiece.read(written())
    assert model.pieces == [(text, score) for text, score, _ in PIECES] and model.unknown == 2 and model.norms == b""


def test_a_text_is_the_pieces_whose_scores_are_highest_together():
    words = Tokenizer({"spiece.model": written()})
    assert words("a red").ids == (3, 4)
    assert words("  a\n\tredd 별").ids == (3, 4, 8, 5, 9)
    assert words("a x").ids == (3, 5, 2)
    assert words.framed(words("a").ids, 4) == [3, 1, 0, 0] and words.begin is None
    assert words.size == len(PIECES) + 100 and words("<extra_id_0>").ids == (len(PIECES) + 99,)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no pieces"),
        (b"\x0a\x50abc", "ends early"),
        (b"{}", "field of kind"),
        (written(2), "no unigram model"),
    ],
)
def test_what_is_no_such_file_is_refused(data, says):
    with pytest.raises(InputError, match=f"spiece.model cannot be read: .*{says}"):
        Tokenizer({"spiece.model": data})("a")
