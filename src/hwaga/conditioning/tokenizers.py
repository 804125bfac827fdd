"""From words to token numbers: a folder's tokenizer, kept as the files that it is.

Byte-pair encoding (Sennrich et al. 2016): letters, then the pairs that training found most often, joined in that order. CLIP's
(`vocab.json` and `merges.txt`) lowers case, cuts at words, digits and signs, and marks the end of a word; any other is read from
its `tokenizer.json`, or of SentencePiece's file (sentencepiece.py). Texts are framed as a text encoder takes them: begin (T5's
texts have none), tokens, end, and the filling up to its length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import InputError

NAMES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "added_tokens.json", "spiece.model", "tokenizer.model")  # fmt: skip
"""Files of a tokenizer that are read, or kept for the way back."""
PIECES = "spiece.model"
"""SentencePiece's file, from which a T5's tokenizer is read where there is no tokenizer.json."""
CUTS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Where CLIP cuts a text before pairs are joined (Radford et al. 2021; the regular expression of its published tokenizer)."""
LONGEST = 10_000  # a stated length above is none: some files say 10^30


class Tokens(NamedTuple):
    """A text as token numbers, without begin and end, and where in the text each stands."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def missing(where: str, files: Mapping[str, bytes], component: str = "tokenizer") -> InputError:
    """What to say where there is no tokenizer. component: the name under which one may be given."""
    remedy = f"components={{{component!r}: FOLDER}} or --component {component}=FOLDER names a folder with them"
    there = f"there is {', '.join(sorted(files))}" if files else remedy
    return InputError(
        f"{where} has no {component}: vocab.json with merges.txt, tokenizer.json, or spiece.model is needed to read a "
        f"prompt; {there}"
    )


class Tokenizer:
    """See the top of this file. `files`: the contents of a tokenizer's folder by name."""

    def __init__(self, files: Mapping[str, bytes], where: str = "this model") -> None:
        self.files, self.where = dict(files), where
        whole = (
            bool(self.files.keys() & {"tokenizer.json", PIECES}) or {"vocab.json", "merges.txt"} <= self.files.keys()
        )
        if not whole:
            raise missing(where, self.files)

    # ------------------------------------------------------------------------------------------------ what its files say

    def _table(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self.files.get(name, b"{}"))
        except ValueError as error:
            raise InputError(f"{self.where}: {name} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InputError(f"{self.where}: {name} is not a table")
        return value

    @cached_property
    def settings(self) -> dict[str, Any]:
        return {**self._table("special_tokens_map.json"), **self._table("tokenizer_config.json")}

    @cached_property
    def length(self) -> int | None:
        """Tokens that a text may have, begin and end among them; None where the files say nothing."""
        said = self.settings.get("model_max_length")
        return int(said) if isinstance(said, (int, float)) and 2 < said <= LONGEST else None

    def special(self, role: str, otherwise: str) -> tuple[str, bool]:
        """The token of a role ("bos_token", "pad_token"), and whether it is looked for in the text as it was written down."""
        said = self.settings.get(role) or otherwise
        if isinstance(said, Mapping):
            return str(said.get("content", otherwise)), bool(said.get("normalized", False))
        return str(said), False

    @cached_property
    def begin(self) -> int | None:
        """None where texts have no beginning: nothing is said of one, and CLIP's is no token."""
        if self.settings.get("bos_token") is None and self.engine.token_to_id("<|startoftext|>") is None:
            return None
        return self._id("bos_token", "<|startoftext|>")

    @cached_property
    def end(self) -> int:
        return self._id("eos_token", self._end)

    @cached_property
    def filling(self) -> int:
        otherwise = self.special("eos_token", self._end)[0]
        return self._id("pad_token", "<pad>" if otherwise == "</s>" else otherwise)

    @cached_property
    def _end(self) -> str:
        """What ends a text where the files do not say it: CLIP's mark, or T5's."""
        return "<|endoftext|>" if self.engine.token_to_id("<|endoftext|>") is not None else "</s>"

    @cached_property
    def marks(self) -> int:
        """Tokens of a text that are none of its words: its end, and its beginning if it has one."""
        return 1 if self.begin is None else 2

    def _id(self, role: str, otherwise: str) -> int:
        token = self.special(role, otherwise)[0]
        number = self.engine.token_to_id(token)
        if number is None:
            raise InputError(f"{self.where}: its tokenizer has no number for {role} {token!r}")
        return int(number)

    @property
    def size(self) -> int:
        """Numbers that it gives lie below."""
        return int(self.engine.get_vocab_size(with_added_tokens=True))

    # ----------------------------------------------------------------------------------------------------------- its work

    @cached_property
    def engine(self) -> Any:
        """The tokenizer of the `tokenizers` library."""
        import tokenizers as library

        if not {"vocab.json", "merges.txt"} <= self.files.keys():
            if "tokenizer.json" not in self.files:
                return self._of_pieces()
            try:
                found = library.Tokenizer.from_str(self.files["tokenizer.json"].decode())
            except Exception as error:  # the library raises plain Exception
                raise InputError(f"{self.where}: tokenizer.json cannot be read: {error}") from None
            found.no_truncation()
            found.no_padding()
            return found
        vocabulary = self._table("vocab.json")
        lines = self.files["merges.txt"].decode("utf-8", "replace").splitlines()
        pairs = (line.split(" ") for line in lines if not line.startswith("#version"))
        merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
        unknown = self.special("unk_token", "<|endoftext|>")[0]
        try:
            engine = library.Tokenizer(library.models.BPE(
                vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False,
                unk_token=unknown,
            ))  # fmt: skip
        except Exception as error:
            raise InputError(f"{self.where}: vocab.json and merges.txt do not go together: {error}") from None
        normal, before = library.normalizers, library.pre_tokenizers
        engine.normalizer = normal.Sequence(
            [normal.NFC(), normal.Replace(library.Regex(r"\s+"), " "), normal.Lowercase()]
        )
        engine.pre_tokenizer = before.Sequence([
            before.Split(library.Regex(CUTS), behavior="removed", invert=True), before.ByteLevel(add_prefix_space=False),
        ])  # fmt: skip
        ends = [self.special(role, "<|endoftext|>") for role in ("eos_token", "unk_token", "pad_token")]
        tokens = dict([self.special("bos_token", "<|startoftext|>"), *ends])
        engine.add_special_tokens(
            [library.AddedToken(token, special=True, normalized=told) for token, told in tokens.items()]
        )
        return engine

    def _of_pieces(self) -> Any:
        from . import sentencepiece

        try:
            return sentencepiece.engine(self.files[PIECES])
        except Exception as error:  # the library raises plain Exception for a table that it cannot read
            raise InputError(f"{self.where}: {PIECES} cannot be read: {error}") from None

    def __call__(self, text: str) -> Tokens:
        """The tokens of a text, however many."""
        found = self.engine.encode(text, add_special_tokens=False)
        return Tokens(tuple(found.ids), tuple(found.offsets))

    def framed(self, ids: tuple[int, ...] | list[int], length: int) -> list[int]:
        """begin, ids (at most length - marks), end, and the filling."""
        begin = [] if self.begin is None else [self.begin]
        return [*begin, *ids, self.end, *[self.filling] * (length - self.marks - len(ids))]
