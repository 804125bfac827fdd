"""Byte-pair encoding learned of captions: what is merged, that nothing is unknown, that transformers reads the same."""

import json

import pytest

from hwaga.conditioning import bpe
from hwaga.conditioning.tokenizers import Tokenizer

CAPTIONS = ["dog face", "hot dog", "a dog and a cat", "cat face", "강아지 얼굴", "고양이 얼굴", "고양이 얼굴 웃는"]


@pytest.fixture(scope="module")
def merges():
    return bpe.learned(CAPTIONS, 40)


def test_the_first_merges_are_the_most_frequent_pairs():
    assert bpe.learned(["aab aab aab", "ab"], 2) == ("a b</w>", "a ab</w>")
    assert bpe.learned(["aaa aaa"], 5) == ("a a", "aa a</w>")
    assert bpe.learned(["xy"], 5) == ()  # seen once


def test_merges_depend_on_the_captions_alone(merges):
    assert bpe.learned(reversed(CAPTIONS), 40) == merges and bpe.learned(CAPTIONS, 7) == merges[:7]


def test_merges_are_those_of_a_plain_recount():
    """The definition, without the bookkeeping: count all pairs anew before each merge."""
    words = [[*word[:-1], word[-1] + "</w>"] for caption in CAPTIONS for word in bpe._words(caption)]
    found = []
    for _ in range(25):
        counts = {}
        for word in words:
            for pair in zip(word, word[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        found.append(" ".join(best))
        words = [bpe._merged(word, best) for word in words]
    assert list(bpe.learned(CAPTIONS, 25)) == found and len(found) > 15


def test_no_word_is_unknown_and_every_text_comes_back(merges):
    tokenizer = Tokenizer(bpe.files(merges, 32))
    unknown = {tokenizer.begin, tokenizer.end}
    letters = {letter: byte for byte, letter in _bytes().items()}
    names = {number: token for token, number in bpe.vocabulary(merges).items()}
    for text in (*CAPTIONS, "zebra 7!", "日本 🎉 ñ"):
        ids = tokenizer(text).ids
        assert not unknown & set(ids)
        said = "".join(names[i] for i in ids).replace("</w>", " ").split()
        assert [bytes(letters[c] for c in word).decode() for word in said] == _cut(text)
    assert tokenizer.size == len(names) and tokenizer.end == len(names) - 1 and tokenizer.length == 32


def _bytes():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(rest)}}


def _cut(text):
    import tokenizers

    cut = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True
    )
    return [piece for piece, _ in cut.pre_tokenize_str(text)]


def test_the_alphabet_is_that_of_public_tokenizers():
    assert list(bpe.alphabet()) == list(_bytes().values()) and len(set(bpe.alphabet())) == 256


def test_transformers_loads_the_files_and_reads_the_same(merges, tmp_path):
    from transformers import CLIPTokenizer

    for name, content in bpe.files(merges, 16).items():
        (tmp_path / name).write_bytes(content)
    theirs, ours = CLIPTokenizer.from_pretrained(tmp_path), Tokenizer(bpe.files(merges, 16))
    for text in (*CAPTIONS, "Zebra's  7 cats", "", "고양이, dog!"):
        assert theirs(text)["input_ids"] == [ours.begin, *ours(text).ids, ours.end]
    assert theirs.model_max_length == 16 and theirs.pad_token_id == ours.filling
    assert json.loads(bpe.files(merges, 16)["vocab.json"]) == bpe.vocabulary(merges)
