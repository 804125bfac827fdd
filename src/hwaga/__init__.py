"""hwaga (화가, painter): one library for the whole family of generative image models.

    import hwaga
    model = hwaga.load("openmoji/ddpm")
    images = model.sample(n=4, seed=0)
    hwaga.save_images(images, "pictures.png")

Nothing heavy is imported here: each name is fetched when it is first used, so that `import hwaga` takes milliseconds
and does not bring in torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import systems
    from .errors import HwagaError, InputError, Interrupted, WorkError
    from .loading import load
    from .provenance import save_images
    from .running import evaluate, resume, train
    from .saving import convert, export

__version__ = "0.1.0"

__all__ = [
    "HwagaError",
    "InputError",
    "Interrupted",
    "WorkError",
    "__version__",
    "convert",
    "evaluate",
    "export",
    "load",
    "resume",
    "save_images",
    "systems",
    "train",
]

_HOME = {
    "HwagaError": "errors",
    "InputError": "errors",
    "Interrupted": "errors",
    "WorkError": "errors",
    "convert": "saving",
    "evaluate": "running",
    "export": "saving",
    "load": "loading",
    "resume": "running",
    "save_images": "provenance",
    "train": "running",
}


def __getattr__(name: str) -> Any:
    if name == "systems":  # a room, and itself callable: hwaga.systems() is the list of them
        return importlib.import_module(".systems", __name__)
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'hwaga' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
