"""Byte-pair encoding learned of captions (Sennrich et al. 2016; Radford et al. 2019, 2021): the tokenizer of a small CLIP.

A word is its bytes in UTF-8 (so no word of any language is unknown), its last one marked. Of the training captions the pair
that stands side by side most often becomes one token, again and again; the list of these merges is the tokenizer:

    vocabulary = 256 bytes + 256 last bytes + a token a merge + start + end

`learned` finds the merges, `files` makes of them the folder of a CLIPTokenizer, which tokenizers.py and transformers read: lower
case, words cut as CLIP cuts them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

from .tokenizers import Tokenizer

Pair = tuple[str, str]
START, END, LAST = "<|startoftext|>", "<|endoftext|>", "</w>"


@lru_cache(maxsize=1)
def alphabet() -> tuple[str, ...]:
    """A printable character for each of the 256 bytes: itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in seen]
    return tuple(chr(byte) for byte in seen) + tuple(chr(256 + i) for i in range(len(rest)))


def vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """Numbers of the tokens that these merges ("a b</w>") make; start and end are the last two."""
    tokens = [*alphabet(), *(letter + LAST for letter in alphabet()), *(merge.replace(" ", "") for merge in merges)]
    return {token: number for number, token in enumerate([*tokens, START, END])}


def learned(captions: Iterable[str], count: int) -> tuple[str, ...]:
    """The `count` merges of these captions, the most frequent first, of equals the first by letters; fewer where no pair is
    left that is there twice: what is seen once teaches nothing. They depend on the captions alone."""
    return _learned(tuple(sorted(captions)), count)


@lru_cache(maxsize=2)
def _learned(captions: tuple[str, ...], count: int) -> tuple[str, ...]:
    found: Counter[str] = Counter(piece for caption in captions for piece in _words(caption))
    words, times = [[*word[:-1], word[-1] + LAST] for word in found], list(found.values())
    pairs: Counter[Pair] = Counter()
    where: dict[Pair, set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += times[i]
            where[pair].add(i)
    heap = [(-number, pair) for pair, number in pairs.items()]
    heapify(heap)
    merges: list[str] = []
    while len(merges) < count and heap:
        number, best = heappop(heap)
        if -number != pairs[best]:
            continue  # it has changed since; what it is now lies further down
        if -number < 2:
            break
        merges.append(" ".join(best))
        changed = set()
        for i in where.pop(best):
            before, words[i] = words[i], _merged(words[i], best)
            for word, sign in ((before, -1), (words[i], 1)):
                for pair in pairwise(word):
                    pairs[pair] += sign * times[i]
                    changed.add(pair)
                    if sign > 0:
                        where[pair].add(i)
        for pair in changed - {best}:
            heappush(heap, (-pairs[pair], pair))
    return tuple(merges)


def _words(text: str) -> list[str]:
    """The words of a text as CLIP cuts it, each as the characters of its bytes."""
    cut = engine()
    return [piece for piece, _ in cut.pre_tokenizer.pre_tokenize_str(cut.normalizer.normalize_str(text))]


@lru_cache(maxsize=1)
def engine() -> Any:
    """A tokenizer without merges: CLIP's rules of what a word is."""
    return Tokenizer(files((), 77)).engine


def _merged(word: list[str], pair: Pair) -> list[str]:
    found: list[str] = []
    for letter in word:
        if found and (found[-1], letter) == pair:
            found[-1] += letter
        else:
            found.append(letter)
    return found


def files(merges: Sequence[str], length: int) -> dict[str, bytes]:
    """The files of the tokenizer, for texts of at most `length` tokens, start and end counted."""
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "errors": "replace",
    }
    texts = {
        "vocab.json": json.dumps(vocabulary(merges), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps({**settings, "add_prefix_space": False, **special}, indent=2) + "\n",
    }
    return {name: text.encode() for name, text in texts.items()}
