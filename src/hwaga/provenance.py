"""A picture knows how it was made: the record that travels in a PNG's text chunks, and the writing of pictures.

Two chunks are written. `hwaga` holds the record as JSON, enough to paint the picture again; `parameters` holds one text
that other programs show ("a cat\\nNegative prompt: ...\\nSteps: 20, Sampler: ddim, CFG scale: 3, Seed: 0, ...").

The record is a plain dict; `record` makes it. Fields that a system does not have are left out:

    format            1
    system, model     the system's name; the source that the model was loaded from
    model_hash        SHA-256 over the weights
    prompt, negative_prompt, label, seed, sampler, sampler_options, steps, guidance_scale, ...
                      the keywords of `System.sample` as they were resolved; prompt and label are this picture's own
    index             which picture of the call this is; a grid has `pictures`, their number, instead
    size              (height, width)
    device, dtype     where and how it was computed
    version           of hwaga
    versions          {"hwaga": ..., "torch": ..., "python": ...}
    call              the keywords of the whole call, which `hwaga sample --from` repeats
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .files import whole_file, whole_folder

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FORMAT = 1
KEY = "hwaga"
GAP = 2  # white pixels between the pictures of a grid

Record = dict[str, Any]


# -------------------------------------------------------------------------------------------------------- the record


def versions() -> dict[str, str]:
    """Versions of what decides the numbers: hwaga, Python and those of torch, numpy, transformers that are loaded."""
    from . import __version__

    found = {"hwaga": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "transformers"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found


def record(
    system: str,
    model: str,
    call: Mapping[str, Any],
    *,
    index: int | None = None,
    size: tuple[int, int] | None = None,
    model_hash: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    **own: Any,
) -> Record:
    """The record of one picture of a call of `System.sample`.

    `call` is what the call's keywords were resolved to (a drawn seed, the default sampler and its steps in their
    places), `own` what differs from picture to picture ("prompt", "label", "steps" of a cut grid, ...). Values that
    JSON cannot hold (tensors, pictures) are written as a note of what they were; such a call cannot be repeated from
    the file alone, and `hwaga sample --from` says so.
    """
    made: Record = {"format": FORMAT, "system": system, "model": model, "model_hash": model_hash}
    whole = {name: plain(value) for name, value in call.items() if value is not None}
    made |= {name: value for name, value in whole.items() if name != "n"}
    made |= {name: plain(value) for name, value in own.items() if value is not None}
    if index is not None:
        made["index"] = index
    if size is not None:
        made["size"] = list(size)
    found = versions()
    made |= {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    return made | {"version": found["hwaga"], "versions": found, "call": whole}


def plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.path.abspath(value)
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    shape = getattr(value, "shape", None) or getattr(value, "size", None)
    return {"not_stored": type(value).__name__, "shape": list(shape) if isinstance(shape, tuple | list) else None}


def not_stored(value: Any) -> bool:
    """True where a value of a record's call was a tensor or a picture, which the file does not hold."""
    if isinstance(value, Mapping):
        return "not_stored" in value or any(not_stored(part) for part in value.values())
    return isinstance(value, list) and any(not_stored(part) for part in value)


def attach(image: Image, made: Record) -> Image:
    """Puts the record into the picture's `info`, from where `save_images` writes it into the file."""
    image.info[KEY] = json.dumps(made, ensure_ascii=False)
    return image


def of(image: Image) -> Record | None:
    """The record that a picture in memory carries, or None."""
    text = image.info.get(KEY)
    if not isinstance(text, str):
        return None
    try:
        made = json.loads(text)
    except json.JSONDecodeError:
        return None
    return made if isinstance(made, dict) else None


def read(path: str | Path) -> Record:
    """The record in a PNG's text chunks; InputError where the file is no picture or has none."""
    from PIL import Image as images
    from PIL import UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a PNG that hwaga saved")
    try:
        with images.open(path) as image:
            image.load()
            made = of(image)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, images.DecompressionBombError) as error:
        raise InputError(
            f"{path} is not a readable picture ({_first_line(error)}); give a PNG that hwaga saved"
        ) from None
    if made is None or not isinstance(made.get("call"), dict):
        raise InputError(f"{path} carries no record of its making; only PNGs saved by hwaga do")
    if not isinstance(made.get("format"), int) or made["format"] > FORMAT:
        raise InputError(f"{path} has a record of format {made.get('format')!r}; this hwaga reads up to {FORMAT}")
    return made


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def parameters(made: Record) -> str:
    """The text that other programs read: prompt, negative prompt, then one line of names and values."""
    prompt, label, size = made.get("prompt"), made.get("label"), made.get("size")
    lines = []
    if isinstance(prompt, str) and prompt:
        lines.append(prompt)
    elif label is not None and not isinstance(label, list):
        lines.append(str(label))
    if isinstance(made.get("negative_prompt"), str) and made["negative_prompt"]:
        lines.append(f"Negative prompt: {made['negative_prompt']}")
    named = {
        "Steps": made.get("steps"),
        "Sampler": made.get("sampler"),
        "CFG scale": made.get("guidance_scale"),
        "Seed": made.get("seed"),
        "Size": f"{size[1]}x{size[0]}" if size else None,
        "Model": made.get("model"),
        "Model hash": (made.get("model_hash") or "")[:10] or None,
        "Denoising strength": made.get("strength"),
        "Picture": made.get("index"),
        "Version": f"hwaga {made.get('version', '')}".strip(),
    }
    pairs = (f"{name}: {_quoted(value)}" for name, value in named.items() if value is not None)
    lines.append(", ".join(pairs))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    """Values with a comma, a colon or a line break are quoted as JSON, as readers of this line expect."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


# ------------------------------------------------------------------------------------------------------ the pictures


def save_images(
    images: Sequence[Image] | Image | Tensor,
    path: str | Path,
    records: Sequence[Record] | None = None,
) -> list[Path]:
    """Writes pictures as PNGs with their provenance and returns the files.

    `images` is a list of PIL pictures, one of them, or a tensor (n, 3, h, w) or (3, h, w) in [0, 1]. `path` is a
    `.png` (several pictures become one grid) or a folder, which then holds n PNGs and nothing else; a folder that
    holds something already is an InputError. `records` take the place of what the pictures carry themselves.
    A file or a folder appears whole or not at all.
    """
    pictures = to_pil(images)
    if not pictures:
        raise InputError("images is empty; give at least one picture")
    if records is not None and len(records) != len(pictures):
        raise InputError(f"records has {len(records)} entries for {len(pictures)} pictures; give one for each")
    carried = list(records) if records is not None else [of(picture) for picture in pictures]
    path = check_target(path)
    if path.suffix.lower() == ".png":
        picture, made = (pictures[0], carried[0]) if len(pictures) == 1 else (grid(pictures), joint(carried))
        with whole_file(path) as part:
            _write(picture, made, part)
        return [path]
    with whole_folder(path) as folder:
        for i, (picture, made) in enumerate(zip(pictures, carried, strict=True)):
            _write(picture, made, folder / f"{i:05d}.png")
    return [path / f"{i:05d}.png" for i in range(len(pictures))]


def check_target(path: str | Path) -> Path:
    """InputError where pictures cannot go to `path`: another suffix than .png, or a folder that holds something."""
    path = Path(path)
    if path.suffix.lower() == ".png":
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file, or a folder without .png in its name")
    elif path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise InputError(f"{path}: pictures are saved as .png (it keeps how they were made), or into a folder")
    elif path.is_file():
        raise InputError(f"{path} is a file; name a .png or a new folder")
    elif path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path} is a folder that holds something already; name a new folder or empty it first")
    above = path.parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise InputError(f"{path} cannot be made: {above} is a file, not a folder")
    return path


def to_pil(images: Sequence[Image] | Image | Tensor) -> list[Image]:
    """A list of PIL pictures of anything that `save_images` takes; tensors are rounded to the nearest of 255 levels."""
    from PIL import Image as pil

    if isinstance(images, pil.Image):
        return [images]
    if hasattr(images, "detach"):  # a tensor; torch itself need not be imported here
        from torch import isfinite

        tensor = images.detach().float().cpu()
        tensor = tensor[None] if tensor.ndim == 3 else tensor
        if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
            raise InputError(f"images has shape {tuple(tensor.shape)}; a tensor of pictures is (n, 3, h, w) in [0, 1]")
        if not bool(isfinite(tensor).all()):
            raise InputError("images holds values that are not finite; pictures are in [0, 1]")
        levels = (tensor.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        return [pil.fromarray(picture) for picture in levels]
    pictures = list(images)
    for picture in pictures:
        if not isinstance(picture, pil.Image):
            raise InputError(f"images holds a {type(picture).__name__}; give PIL pictures or one tensor (n, 3, h, w)")
    return pictures


def grid(pictures: Sequence[Image], columns: int | None = None) -> Image:
    """One picture of all, row by row, on white; `columns` is by default what makes it about square."""
    from PIL import Image as pil

    width, height, n = max(p.width for p in pictures), max(p.height for p in pictures), len(pictures)

    def stretch(columns: int) -> float:
        return abs(math.log(columns * width / (math.ceil(n / columns) * height)))

    columns = columns or min(range(n, 0, -1), key=lambda c: round(stretch(c), 6))
    rows = math.ceil(n / columns)
    sheet = pil.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture.convert("RGB"), ((i % columns) * (width + GAP), (i // columns) * (height + GAP)))
    return sheet


def joint(records: Sequence[Record | None]) -> Record | None:
    """The record of a grid: that of the call, what belongs to one picture alone left out; None for mixed calls."""
    first = records[0]
    if first is None:
        return None
    common = dict(first)
    for made in records:
        if made is None or made.get("call") != first.get("call"):
            return None
        common = {name: value for name, value in common.items() if made.get(name) == value}
    common.pop("index", None)  # of a call of one picture
    return common | {"pictures": len(records)}


def _write(picture: Image, made: Record | None, path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if made is not None:
        # an iTXt chunk is UTF-8: captions of any language stay what they are
        chunks.add_itxt(KEY, json.dumps(made, ensure_ascii=False))
        text = parameters(made)
        try:
            text.encode("latin-1")
            chunks.add_text("parameters", text)
        except UnicodeEncodeError:
            chunks.add_itxt("parameters", text)
    picture.save(path, format="PNG", pnginfo=chunks)


__all__ = [
    "FORMAT",
    "Record",
    "attach",
    "check_target",
    "grid",
    "joint",
    "not_stored",
    "of",
    "parameters",
    "read",
    "record",
    "save_images",
    "to_pil",
    "versions",
]
