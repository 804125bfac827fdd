"""A font that has the letters of a caption: Pillow's own, else one of the system's."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FOLDERS = (
    "~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts", "~/Library/Fonts",
    "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
_PREFERRED = (  # parts of file names, the widest coverage first
    "notosanscjk", "notosanskr", "nanumgothic", "applesdgothicneo", "malgun", "sourcehansans", "arialunicode",
    "droidsansfallback", "unifont", "wqy", "gothic", "dejavusans.", "notosans-regular",
)  # fmt: skip


@lru_cache(maxsize=8)
def built_in(size: int) -> Font:
    """Pillow's own font: Latin letters."""
    return ImageFont.load_default(size)


@lru_cache(maxsize=1)
def _system() -> tuple[str, ...]:
    found = []
    for folder in _FOLDERS:
        for parent, _, files in os.walk(Path(folder).expanduser()):
            found += [os.path.join(parent, f) for f in files if f.lower().endswith((".ttf", ".otf", ".ttc"))]

    def rank(path: str) -> tuple[int, int, str]:
        name = os.path.basename(path).lower().replace(" ", "")
        place = next((i for i, part in enumerate(_PREFERRED) if part in name), len(_PREFERRED))
        return place, any(style in name for style in ("bold", "black", "light", "italic", "thin")), path

    return tuple(sorted(found, key=rank))


def has(font: Font, letters: frozenset[str]) -> bool:
    """Whether a font draws all of these letters as something other than its sign for a missing one."""
    missing = {_drawn(font, c) for c in "\U0010fffe\uffff\ue0ff"}
    return all(_drawn(font, c) not in missing for c in letters if not c.isspace())


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@lru_cache(maxsize=64)
def _first_with(letters: frozenset[str], size: int) -> Font | None:
    for path in _system():
        try:
            font = ImageFont.truetype(path, size)
            if has(font, letters):
                return font
        except (OSError, ValueError):
            continue
    return None


def font_for(text: str, size: int, own: str | None = None) -> Font | None:
    """A font of `size` px with all letters of `text`: the file `own`, else Pillow's, else a system font, else None."""
    letters = frozenset(text)
    if own is not None and has(given := ImageFont.truetype(own, size), letters):
        return given
    return built_in(size) if has(built_in(size), letters) else _first_with(letters, size)
