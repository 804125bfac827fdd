"""Poses: skeletons of people, drawn from keypoints as OpenPose draws them (Cao et al. 2019), for public pose ControlNets.

On black, 17 limbs as ellipses at 0.6 of their colour and 18 joints as discs in full colour, red at the head's end of the
body's right side round to violet; fingers as thin lines in the colours of the rainbow with blue joints; faces as white dots.

    people_of   keypoints as they are written: OpenPose (BODY_18, BODY_25), COCO (17), COCO-WholeBody (133), with hands
    drawn       the skeletons

A person's body is 18 points: nose, neck, then right shoulder, elbow, wrist, left ones, right hip, knee, ankle, left ones,
right eye, left eye, right ear, left ear. COCO has no neck: it lies between the shoulders.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from ...errors import InputError
from ...files import read_json
from .arrays import map_of
from .options import Beside, Pixels, Share

Keypoints = Annotated[Any, Beside("a JSON file of keypoints (OpenPose or COCO), or what it holds")]

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14),
    (14, 16), (0, 15), (15, 17),
)  # fmt: skip
COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
"""Of joint i, and, darker, of limb i."""

FINGERS = tuple((0 if j == 0 else 4 * finger + j, 4 * finger + j + 1) for finger in range(5) for j in range(4))
FINGER_COLOURS = tuple(
    tuple(round(255 * part) for part in colorsys.hsv_to_rgb(i / len(FINGERS), 1, 1)) for i in range(len(FINGERS))
)

COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""Where COCO's 17 points have each of the 18; the neck is made."""
BODY_25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)

Points = Float[np.ndarray, "k 2"]
"""x and y in pixels; nan where a point is not seen."""


@dataclass(frozen=True)
class Person:
    """What is known of one person."""

    body: Points  # 18
    hands: tuple[Points, ...] = ()  # 21 each
    face: Points = field(default_factory=lambda: np.empty((0, 2)))


def pose(
    picture: Float[Tensor, "3 h w"], *, keypoints: Keypoints, threshold: Share = 0.0, width: Pixels = 4.0
) -> Float[Tensor, "3 h w"]:  # fmt: skip
    """Skeletons on black, of the picture's size. threshold: points seen with no more confidence are left out; width: half
    the thickness of a limb in pixels (4 at 512 pixels, as public models saw it)."""
    height, across = picture.shape[1:]
    return map_of(drawn(people_of(keypoints, (height, across), threshold), (height, across), width))


# ------------------------------------------------------------------------------------------------------------- drawing


def drawn(people: list[Person], size: tuple[int, int], width: float = 4.0) -> np.ndarray:
    """uint8 (h, w, 3) of skeletons: bodies, then hands, then faces, so that nothing hides a finger."""
    canvas = Image.new("RGB", (size[1], size[0]))
    pen = ImageDraw.Draw(canvas)
    for person in people:
        for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
            if np.isfinite(person.body[[a, b]]).all():
                pen.polygon(
                    _limb(person.body[a], person.body[b], width), fill=tuple(int(0.6 * part) for part in colour)
                )
    for person in people:
        for point, colour in zip(person.body, COLOURS, strict=True):
            _disc(pen, point, width, colour)
    for person in people:
        for hand in person.hands:
            for (a, b), hue in zip(FINGERS, FINGER_COLOURS, strict=True):
                if np.isfinite(hand[[a, b]]).all():
                    ends = [tuple(hand[a].tolist()), tuple(hand[b].tolist())]
                    pen.line(ends, fill=hue, width=max(1, round(width / 2)))
            for point in hand:
                _disc(pen, point, width, (0, 0, 255))
        for point in person.face:
            _disc(pen, point, 0.75 * width, (255, 255, 255))
    return np.asarray(canvas)


def _limb(a: np.ndarray, b: np.ndarray, width: float) -> list[tuple[float, float]]:
    """An ellipse from one joint to the other, as thick as twice `width`."""
    centre, along = (a + b) / 2, (b - a) / 2
    reach = float(np.hypot(*along))
    turn = math.atan2(along[1], along[0])
    cos, sin = math.cos(turn), math.sin(turn)
    angles = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    across, up = reach * np.cos(angles), width * np.sin(angles)
    x, y = centre[0] + across * cos - up * sin, centre[1] + across * sin + up * cos
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _disc(pen: ImageDraw.ImageDraw, point: np.ndarray, radius: float, colour: tuple[int, ...]) -> None:
    if np.isfinite(point).all():
        x, y = point.tolist()
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


# ------------------------------------------------------------------------------------------------------------- reading


def people_of(given: Any, size: tuple[int, int], threshold: float = 0.0) -> list[Person]:
    """The people in keypoints for a picture of (height, width).

    given: a path of a JSON file, or what such a file holds: OpenPose's {"people": [...]}, COCO's {"annotations": [...]} or
    [{"keypoints": [...]}, ...], or plain points, one list a person. Coordinates are pixels of the picture, or of the canvas
    that the file names, or, where none is above 1, shares of its sides. InputError says what is wrong with them.
    """
    name = "keypoints"
    if isinstance(given, str | Path):
        name = f"keypoints={str(given)!r}"
        if not Path(given).is_file():
            raise InputError(f"{name}: there is no such file")
        given = read_json(given)
    given = given.tolist() if isinstance(given, np.ndarray | Tensor) else given
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict) and "people" in given[0]:
        given = given[0]  # as editors of poses write it
    canvas, entries = _entries(given, name)
    people = [_person(entry, name, threshold) for entry in entries]
    seen = [part for person in people for part in (person.body, *person.hands, person.face) if np.isfinite(part).any()]
    if not seen:
        raise InputError(f"{name}: no point of a person is seen in it")
    scale = np.array([1.0, 1.0])
    if canvas is not None:
        scale = np.array([size[1] / canvas[1], size[0] / canvas[0]])
    elif max(float(np.nanmax(part)) for part in seen) <= 1.0:
        scale = np.array([size[1], size[0]], float)
    return [Person(p.body * scale, tuple(hand * scale for hand in p.hands), p.face * scale) for p in people]


def _entries(given: Any, name: str) -> tuple[tuple[float, float] | None, list[dict[str, Any]]]:
    """(height, width) of the canvas, where it is told, and one table a person."""
    canvas = None
    if isinstance(given, dict):
        images = given.get("images") if isinstance(given.get("images"), list) else []
        told = images[0] if images and isinstance(images[0], dict) else given
        sides = told.get("canvas_height", told.get("height")), told.get("canvas_width", told.get("width"))
        if all(isinstance(side, int | float) and side > 0 for side in sides):
            canvas = (float(sides[0]), float(sides[1]))  # type: ignore[arg-type]
        for key in ("people", "annotations"):
            if isinstance(given.get(key), list):
                given = given[key]
                break
        else:
            given = [given]
    if not isinstance(given, list) or not given:
        raise InputError(f"{name}: people, annotations or a list of people is needed")
    if all(isinstance(entry, dict) for entry in given):
        return canvas, given
    if all(isinstance(entry, list) for entry in given):
        return canvas, [{"keypoints": entry} for entry in given]
    raise InputError(f"{name}: each person must be a table (as OpenPose and COCO have it) or a list of points")


def _person(entry: dict[str, Any], name: str, threshold: float) -> Person:
    body = entry.get("pose_keypoints_2d", entry.get("keypoints"))
    points = _points(body or [], name, threshold)
    hands = [
        entry.get(f"hand_{side}_keypoints_2d") or entry.get(f"{side}hand_kpts") or [] for side in ("left", "right")
    ]
    held = [_points(hand, name, threshold) for hand in hands]
    face = _points(entry.get("face_keypoints_2d") or entry.get("face_kpts") or [], name, threshold)
    if len(points) == 133:  # COCO-WholeBody: body, feet, face, left hand, right hand
        points, face, held = points[:17], points[23:91], [points[91:112], points[112:]]
    for hand in held:
        if len(hand) not in (0, 21):
            raise InputError(f"{name}: a hand has {len(hand)} points; 21 are needed")
    return Person(_body(points, name), tuple(hand for hand in held if len(hand)), face)


def _body(points: np.ndarray, name: str) -> np.ndarray:
    """18 points of 18, of COCO's 17 or of OpenPose's 25; all unseen where there are none."""
    if len(points) == 0:
        return np.full((18, 2), np.nan)
    if len(points) == 25:
        return points[list(BODY_25)]
    if len(points) == 17:
        neck = (points[5] + points[6]) / 2  # nan, unless both shoulders are seen
        return np.stack([neck if place is None else points[place] for place in COCO])
    if len(points) != 18:
        raise InputError(f"{name}: a body has {len(points)} points; 17 (COCO), 18, 25 (OpenPose) or 133 are needed")
    return points


def _points(values: Any, name: str, threshold: float) -> np.ndarray:
    """(k, 2), nan where not seen, of flat [x, y, confidence, ...] or of rows [x, y] or [x, y, confidence]."""
    try:
        rows = np.array([[math.nan] * 3 if row is None else row for row in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: points must be numbers: x, y, confidence, or rows of them") from None
    if rows.size == 0:
        return np.empty((0, 2))
    if rows.ndim == 1:
        if rows.size % 3:
            raise InputError(f"{name}: {rows.size} numbers are no points of x, y and confidence")
        rows = rows.reshape(-1, 3)
    if rows.ndim != 2 or rows.shape[1] not in (2, 3):
        raise InputError(f"{name}: points must be rows of x, y or x, y, confidence, not {rows.shape}")
    confidence = rows[:, 2] if rows.shape[1] == 3 else (rows != 0).any(1).astype(float)
    return np.where((confidence > threshold)[:, None], rows[:, :2], np.nan)
