"""What an emoji's code points say of it: the thing itself, and its skin tone, gender, hair, direction, colour, hour.

Two emoji with one `concept` are variants of one thing. The rules are Unicode's (UTS 51: sequences joined by ZWJ, skin
tone modifiers, gender signs, hair components, direction); the tables name what Unicode encoded before it had the rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .emoji_names import TONES

ZWJ, SIGNS, RIGHT = "200D", {"2640": "woman", "2642": "man"}, "27A1"
ADULTS = {"1F468": "man", "1F469": "woman", "1F9D1": "person"}
CHILDREN = {"1F466": "boy", "1F467": "girl", "1F9D2": "child"}
HAIR = {"1F9B0": "red", "1F9B1": "curly", "1F9B2": "bald", "1F9B3": "white"}

# One code point for what would now be a sequence: code -> (parts of the concept, gender, hair)
_WHOLE: dict[str, tuple[tuple[str, ...], str, str]] = {
    "1F471": (("P",), "person", "blond"),
    "1F9D4": (("P",), "person", "beard"),
    "1F474": (("older",), "man", ""),
    "1F475": (("older",), "woman", ""),
    "1F9D3": (("older",), "person", ""),
    "1F934": (("crown",), "man", ""),
    "1F478": (("crown",), "woman", ""),
    "1FAC5": (("crown",), "person", ""),
    "1F385": (("P", "1F384"), "man", ""),
    "1F936": (("P", "1F384"), "woman", ""),
    "1F930": (("pregnant",), "woman", ""),
    "1FAC3": (("pregnant",), "man", ""),
    "1FAC4": (("pregnant",), "person", ""),
    "1F57A": (("dancing",), "man", ""),
    "1F483": (("dancing",), "woman", ""),
    "1F46B": (("P", "1F91D", "P"), "woman man", ""),
    "1F46C": (("P", "1F91D", "P"), "man man", ""),
    "1F46D": (("P", "1F91D", "P"), "woman woman", ""),
    "1F48F": (("P", "2764", "1F48B", "P"), "person person", ""),
    "1F491": (("P", "2764", "P"), "person person", ""),
    "1F93C": (("P", "1FAEF", "P"), "person person", ""),
    "1F46F": (("P", "1F430", "P"), "person person", ""),
    "1F46A": (("family",), "", ""),
}

COLOURS: dict[str, dict[str, str]] = {
    "heart": {
        "2764": "red", "1F9E1": "orange", "1F49B": "yellow", "1F49A": "green", "1F499": "blue", "1FA75": "light blue",
        "1F49C": "purple", "1F90E": "brown", "1F5A4": "black", "1FA76": "grey", "1F90D": "white", "1FA77": "pink",
    },
    "circle": {
        "1F534": "red", "1F7E0": "orange", "1F7E1": "yellow", "1F7E2": "green", "1F535": "blue", "1F7E3": "purple",
        "1F7E4": "brown", "26AB": "black", "26AA": "white",
    },
    "square": {
        "1F7E5": "red", "1F7E7": "orange", "1F7E8": "yellow", "1F7E9": "green", "1F7E6": "blue", "1F7EA": "purple",
        "1F7EB": "brown", "2B1B": "black", "2B1C": "white",
    },
    "closed book": {"1F4D5": "red", "1F4D7": "green", "1F4D8": "blue", "1F4D9": "orange"},
    "large diamond": {"1F536": "orange", "1F537": "blue"},
    "small diamond": {"1F538": "orange", "1F539": "blue"},
}  # fmt: skip
EDITED_COLOURS = ("heart", "circle", "square")

DIRECTIONS: dict[str, dict[str, str]] = {
    "arrow": {
        "2B06": "up", "2197": "up and right", "27A1": "right", "2198": "down and right", "2B07": "down",
        "2199": "down and left", "2B05": "left", "2196": "up and left",
    },
    "backhand": {"1F446": "up", "1F449": "right", "1F447": "down", "1F448": "left"},
    "hand sideways": {"1FAF1": "right", "1FAF2": "left"},
    "pushing hand": {"1FAF8": "right", "1FAF7": "left"},
    "fist sideways": {"1F91C": "right", "1F91B": "left"},
    "magnifying glass": {"1F50E": "right", "1F50D": "left"},
    "double triangle": {"23E9": "right", "23EA": "left", "23EB": "up", "23EC": "down"},
    "triangle button": {"25B6": "right", "25C0": "left", "1F53C": "up", "1F53D": "down"},
    "track": {"23ED": "right", "23EE": "left"},
    "curved arrow": {"21AA": "right", "21A9": "left"},
}  # fmt: skip

# (hour, half past): U+1F550 is one o'clock, U+1F55C half past one
HOURS = {f"{0x1F550 + h:X}": (h + 1, False) for h in range(12)} | {f"{0x1F55C + h:X}": (h + 1, True) for h in range(12)}
PHASES = {f"{0x1F311 + p:X}": p for p in range(8)}  # 0 new moon ... 4 full moon ... 7

_BY_CODE: dict[str, tuple[str, str, str]] = (
    {code: (f"colour:{thing}", "colour", colour) for thing, row in COLOURS.items() for code, colour in row.items()}
    | {code: (f"direction:{thing}", "direction", way) for thing, row in DIRECTIONS.items() for code, way in row.items()}
    | {code: ("clock", "hour", f"{hour}:{30 if half else 0:02d}") for code, (hour, half) in HOURS.items()}
    | {code: ("moon", "phase", str(phase)) for code, phase in PHASES.items()}
)


@dataclass(frozen=True)
class Variant:
    """`concept` says what is shown; the rest how. Empty where it does not apply (tone: the yellow of no tone)."""

    concept: str
    tone: str = ""  # "light", ..., two with a space between for two people
    gender: str = ""  # "woman", "man", "person", "girl", "boy", "child", "woman man", ...
    hair: str = ""
    direction: str = ""
    colour: str = ""
    hour: str = ""  # "3:00", "12:30"
    phase: str = ""  # "0" ... "7"


def variants(codes: Iterable[str]) -> list[Variant]:
    """Reads file names that belong together. Where a thing comes as woman and man, the one that says neither is the
    person; where it comes facing right, the one that says nothing faces left."""
    read = [variant(code) for code in codes]
    gendered = {v.concept for v in read if v.gender in ("woman", "man")}
    turned = {v.concept for v in read if v.direction == "right"}
    for i, v in enumerate(read):
        if not v.gender and v.concept in gendered:
            v = replace(v, gender="person")
        if not v.direction and v.concept in turned:
            v = replace(v, direction="left")
        read[i] = v
    return read


def variant(code: str) -> Variant:
    """Reads a file name of code points, such as "1F469-1F3FD-200D-1F33E" (woman farmer, medium skin tone)."""
    points = [p for p in code.split("-") if p != "FE0F"]
    if len(points) == 1 and (int(points[0], 16) in TONES or points[0] in HAIR):
        return Variant("tone swatch" if points[0] not in HAIR else f"hair:{points[0]}")
    tones = [TONES[int(p, 16)] for p in points if int(p, 16) in TONES]
    parts = _parts([p for p in points if int(p, 16) not in TONES])
    direction = hair = sign = ""
    rest: list[str] = []
    for place, part in enumerate(parts):
        if place and part == RIGHT:
            direction = "right"
        elif place and part in HAIR:
            hair = HAIR[part]
        elif place and part in SIGNS:
            sign = SIGNS[part]
        else:
            rest.append(part)
    if rest == ["1FAF1", "1FAF2"]:  # a handshake in two tones
        rest = ["1F91D"]
    if len(rest) == 1 and rest[0] in _BY_CODE and not sign:
        concept, field, value = _BY_CODE[rest[0]]
        return Variant(concept, **{"tone": _tone(tones, 1), field: value})
    if len(rest) == 1 and rest[0] in _WHOLE:
        shape, gender, own_hair = _WHOLE[rest[0]]
        if sign:
            gender = " ".join([sign] * len(gender.split()))
        return Variant(" ".join(shape), _tone(tones, len(gender.split())), gender, hair or own_hair, direction)
    people = [ADULTS.get(p) or CHILDREN.get(p) for p in rest]
    who = [p for p in people if p]
    if len(rest) > 1 and (all(people) or any(p in CHILDREN for p in rest)):
        return Variant("family", _tone(tones, len(who)), " ".join(who))
    shape = tuple("C" if p in CHILDREN else "P" if p in ADULTS else p for p in rest)
    gender = sign or " ".join(who)
    return Variant(" ".join(shape), _tone(tones, max(1, len(who))), gender, hair, direction)


def _parts(points: list[str]) -> list[str]:
    """Splits at the joiners; what stands together without one (a flag, a keycap) stays together."""
    joined, part = [], []
    for p in [*points, ZWJ]:
        if p != ZWJ:
            part.append(p)
        elif part:
            joined.append("+".join(part))
            part = []
    return joined


def _tone(tones: list[str], people: int) -> str:
    """One tone for two people is both's tone, as a couple with one modifier is drawn."""
    if len(tones) == 1 and people > 1:
        return " ".join(tones * people)
    if len(tones) > 1 and len(set(tones)) == 1 and people == 1:
        return tones[0]
    return " ".join(tones)
