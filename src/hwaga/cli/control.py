"""`hwaga control`: the control map of a picture, as a model will see it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from . import options


def control(
    picture: Annotated[
        Path | None, typer.Argument(metavar="PICTURE", help="Any picture; left out: lists the kinds.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="canny, lineart, pose, depth, …")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Bring the picture to this height and width first.")
    ] = None,
    own: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the kind; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Where the map goes.")] = Path("control.png"),
) -> None:
    """Make the control map of a picture: what a ControlNet of that kind is shown."""
    if picture is None and kind is None and not own:
        print(listed())
        return
    if picture is None or kind is None:
        what = "a PICTURE" if picture is None else "--kind"
        raise InputError(f"hwaga control needs {what}; `hwaga control` alone lists the kinds")
    options.new_file("--out", out, ".png")
    wanted = options.size(size)

    from ..provenance import save_images
    from ..systems.controls import map_from

    found = map_from(picture, kind, options.pairs("--set", own), wanted)
    save_images(found.clamp(0, 1), out)  # a PNG has no place for the -1 of a hole: it is black there
    print(out)


def listed() -> str:
    """The kinds, what they show, and their options with what these are if left out."""
    from ..conditioning.control import KINDS

    lines = []
    for name, kind in KINDS.items():
        lines.append(f"{name:13} {kind.line}")
        if kind.options:
            lines.append(f"{'':13} --set {', '.join(option.text for option in kind.options.values())}")
    return "\n".join(lines)
