"""Edit pairs of OpenMoji: (picture, instruction, picture), found by structure, not by looking.

Two drawings of one concept that differ in nothing but skin tone, gender, colour, hour, phase or direction are a pair,
both ways; so are a drawing and its own line art. Pairs lie within one split: variants of a concept are one cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from ..errors import InputError, unknown
from .dataset import Dataset
from .variants import COLOURS, DIRECTIONS, EDITED_COLOURS, Variant, variants

KINDS = ("skin tone", "gender", "colour", "hour", "moon phase", "direction", "to line art", "from line art")


class EditPair(NamedTuple):
    """Turn `source` into `target`, names in the set; `source_lines` (`target_lines`): that name's line art is meant."""

    kind: str
    source: str
    target: str
    english: str
    korean: str
    source_lines: bool = False
    target_lines: bool = False


_TONES = {
    "": ("yellow", "노란색"),
    "light": ("light", "하얀색"),
    "medium-light": ("medium-light", "연한 갈색"),
    "medium": ("medium", "갈색"),
    "medium-dark": ("medium-dark", "진한 갈색"),
    "dark": ("dark", "검은색"),
}
_GENDERS = {
    "woman": ("make it a woman", "여자로 바꿔 주세요"),
    "man": ("make it a man", "남자로 바꿔 주세요"),
    "person": ("make it a person of no stated gender", "성별을 알 수 없는 사람으로 바꿔 주세요"),
    "girl": ("make it a girl", "여자아이로 바꿔 주세요"),
    "boy": ("make it a boy", "남자아이로 바꿔 주세요"),
    "child": ("make it a child of no stated gender", "성별을 알 수 없는 아이로 바꿔 주세요"),
    "woman woman": ("make them two women", "두 여자로 바꿔 주세요"),
    "man man": ("make them two men", "두 남자로 바꿔 주세요"),
    "woman man": ("make them a woman and a man", "여자와 남자로 바꿔 주세요"),
    "person person": ("make them two people of no stated gender", "성별을 알 수 없는 두 사람으로 바꿔 주세요"),
}
_COLOURS = {
    "red": "빨간색", "orange": "주황색", "yellow": "노란색", "green": "초록색", "blue": "파란색",
    "light blue": "하늘색", "purple": "보라색", "brown": "갈색", "black": "검은색", "grey": "회색", "white": "흰색",
    "pink": "분홍색",
}  # fmt: skip
_THINGS = {"heart": "하트", "circle": "동그라미", "square": "네모"}
_PHASES = (
    ("a new moon", "새달"),
    ("a waxing crescent moon", "초승달"),
    ("a first quarter moon", "상현달"),
    ("a waxing gibbous moon", "차오르는 볼록한 달"),
    ("a full moon", "보름달"),
    ("a waning gibbous moon", "기우는 볼록한 달"),
    ("a last quarter moon", "하현달"),
    ("a waning crescent moon", "그믐달"),
)
_WAYS = {
    "up": "위쪽", "down": "아래쪽", "left": "왼쪽", "right": "오른쪽", "up and right": "오른쪽 위",
    "down and right": "오른쪽 아래", "down and left": "왼쪽 아래", "up and left": "왼쪽 위",
}  # fmt: skip
_HOURS = "twelve one two three four five six seven eight nine ten eleven".split()


def _tone(before: Variant, after: Variant) -> tuple[str, str] | None:
    old, new = before.tone.split(), after.tone.split()
    if len(set(old)) > 1 or len(set(new)) > 1:
        return None  # which of two people has which tone is not said by every drawing in the same way
    english, korean = _TONES[new[0] if new else ""]
    of = "both" if max(len(old), len(new)) > 1 else ""
    return (
        f"make the skin tone of both {english}" if of else f"make the skin tone {english}",
        f"두 사람의 피부색을 {korean}으로 바꿔 주세요" if of else f"피부색을 {korean}으로 바꿔 주세요",
    )


def _gender(before: Variant, after: Variant) -> tuple[str, str] | None:
    return _GENDERS.get(after.gender) if before.gender in _GENDERS else None


def _colour(before: Variant, after: Variant) -> tuple[str, str] | None:
    thing = after.concept.removeprefix("colour:")
    if thing not in EDITED_COLOURS or thing not in COLOURS:
        return None
    return f"make the {thing} {after.colour}", f"{_THINGS[thing]}를 {_COLOURS[after.colour]}으로 바꿔 주세요"


def _hour(before: Variant, after: Variant) -> tuple[str, str] | None:
    hour, minute = (int(part) for part in after.hour.split(":"))
    word = _HOURS[hour % 12]
    return (
        f"set the clock to half past {word}" if minute else f"set the clock to {word} o'clock",
        f"시계를 {hour}시 반으로 맞춰 주세요" if minute else f"시계를 {hour}시로 맞춰 주세요",
    )


def _phase(before: Variant, after: Variant) -> tuple[str, str] | None:
    english, korean = _PHASES[int(after.phase)]
    return f"make it {english}", f"{korean}로 바꿔 주세요"


def _direction(before: Variant, after: Variant) -> tuple[str, str] | None:
    verb = "point" if after.concept.removeprefix("direction:") in DIRECTIONS else "face"
    korean = f"{_WAYS[after.direction]}을 {'가리키게' if verb == 'point' else '보게'} 해 주세요"
    return f"make it {verb} {after.direction}", korean.replace("위을", "위를").replace("아래을", "아래를")


_RULES = {
    "tone": ("skin tone", _tone),
    "gender": ("gender", _gender),
    "colour": ("colour", _colour),
    "hour": ("hour", _hour),
    "phase": ("moon phase", _phase),
    "direction": ("direction", _direction),
}


def _structural(names: Sequence[str], read: Sequence[Variant]) -> Iterator[EditPair]:
    """Pairs of names whose variants are equal but for one field."""
    for field, (kind, instruct) in _RULES.items():
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, v in enumerate(read):
            rest = tuple(getattr(v, f.name) for f in fields(v) if f.name != field)
            if v.concept != "family" and (getattr(v, field) or field == "tone"):
                alike.setdefault(rest, []).append(i)
        for group in alike.values():
            for i in group:
                for k in group:
                    words = instruct(read[i], read[k]) if getattr(read[i], field) != getattr(read[k], field) else None
                    if words is not None:
                        yield EditPair(kind, names[i], names[k], *words)


def edit_pairs(dataset: Dataset, kinds: Sequence[str] = KINDS) -> list[EditPair]:
    """All pairs of the kinds asked for among the pictures of an OpenMoji set, in a fixed order.

    InputError for a kind that is not in KINDS, and for a source that has no such pairs.
    """
    if dataset.config.source != "openmoji":
        raise InputError(f"edit pairs of {dataset.config.source!r}: only the source openmoji has them")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    pairs = list(_structural(dataset.names, variants(dataset.names)))
    for name in dataset.names:
        pairs.append(
            EditPair(
                "to line art", name, name, "turn it into line art", "선으로만 그린 그림으로 바꿔 주세요", False, True
            )
        )
        pairs.append(
            EditPair("from line art", name, name, "colour the line art", "선 그림에 색을 칠해 주세요", True, False)
        )
    return [pair for pair in pairs if pair.kind in kinds]


def edit_pixels(dataset: Dataset, pairs: Sequence[EditPair]) -> tuple[np.ndarray, np.ndarray]:
    """(sources, targets) of pairs, each uint8 (n, 3, h, w)."""

    def side(names: list[str], lines: list[bool]) -> np.ndarray:
        at = np.array([dataset.places[name] for name in names], dtype=np.int64)
        pixels = dataset.pixels(at)
        drawn = np.array(lines, dtype=bool)
        if drawn.any():
            pixels[drawn] = dataset.line_art(at[drawn])
        return pixels

    return (
        side([p.source for p in pairs], [p.source_lines for p in pairs]),
        side([p.target for p in pairs], [p.target_lines for p in pairs]),
    )
