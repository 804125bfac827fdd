"""One training step, and one sampling call, of every system are understood by reading at most 400 lines in 8 files.

Counted are the lines (no blanks, comments, docstrings) of every function of ours that the call enters; `layers/` and
text encoders are apart, as they are read once for all systems. `pytest -s tests/test_reading_budget.py` prints the
table.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import tiny
import torch

import hwaga
from hwaga.data import Order
from hwaga.interfaces import Batch
from hwaga.training.config import TrainingConfig
from hwaga.training.loop import Trainer

SRC = Path(hwaga.__file__).parent
LINES, FILES = 400, 8
NOT_COUNTED = ("layers", "conditioning")
TEXT_ENCODERS = ("networks/clip_text.py",)

TINY: dict[str, dict[str, Any]] = {
    "vae": {"network": {"channels": [8, 8], "groups": 4, "latent_channels": 4, "latents": 6}},
    "ddpm": {
        "network": {"channels": [8, 8], "attention": [False, True], "blocks": 1, "groups": 4},
        "process": {"timesteps": 10},
    },
    "gan": {
        "generator": {"channels": [16, 16], "blocks": [1, 1]},
        "discriminator": {"channels": [16, 16], "blocks": [1, 1]},
        "r1": 1.0,
        "r2": 1.0,
        "augmentation": ["color", "translation", "cutout"],
    },
    "vqgan": {
        "autoencoder": {
            "channels": [8, 8],
            "attention": [False, True],
            "blocks": 1,
            "groups": 4,
            "latent_channels": 4,
            "quantizer": {"codes": 16, "width": 4, "update": "average", "restart": 0.05},
        },
        "discriminator": {"width": 8, "layers": 1},
        "prior": {"width": 8, "heads": 2, "depth": 1},
    },
    "vqgan-text": {"discriminator": None, "prior": {"width": 8, "heads": 2, "depth": 1}},
    "dit": {"network": {"width": 8, "depth": 1, "heads": 1}, "process": {"timesteps": 10}},
    "stylegan": {
        "generator": {"channels": [8, 8], "z_dim": 4, "w_dim": 4, "mapping": {"layers": 1}},
        "path_every": 1,
        "r1_every": 1,
    },
    "stable-diffusion": {"network": tiny.WORDED, "process": {"timesteps": 10}, "sampling": {"sampler": "ddim"}},
    "controlnet": {
        "network": tiny.WORDED,
        "process": {"timesteps": 10},
        "sampling": {"sampler": "ddim"},
        "control": {"kind": "silhouette"},
        "controlnet": {"hint_channels": [8]},
    },  # fmt: skip
    "stable-diffusion-3": {
        "network": {"width": 8, "depth": 2, "heads": 1},
        "process": {"kind": "gaussian", "timesteps": 10},
        "sampling": {"sampler": "ddim", "guidance_scale": 1.0, "options": {}},
    },  # fmt: skip
}
"""A config of every system, as small as can be."""
PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{
        name: lambda: {"text_encoder": tiny.text_encoder()}
        for name in ("stable-diffusion", "controlnet", "stable-diffusion-3")
    },
    "vqgan-text": lambda: {
        "text_encoder": tiny.text_encoder(),
        "autoencoder": tiny.vqgan().networks["autoencoder"].requires_grad_(False),
    },
}
"""Trained networks that a system takes as components: what reads words, and a tokenizer that learns no more."""


class Pictures:
    """Two pictures, as training asks for them, with what is computed of them once; data is not part of the budget of a system."""

    def __init__(self, system: Any) -> None:
        self.image = torch.zeros(2, 3, 8, 8)
        self.extra = {name: one.compute(self.image) for name, one in system.precomputed().items()}

    def __len__(self) -> int:
        return 2

    def batch(self, indices: Any, epochs: Any = None) -> Batch:
        index = torch.as_tensor(indices)
        extra = {name: values[index] for name, values in self.extra.items()}
        return Batch(image=self.image[index], index=index, caption=["a star"] * len(index), extra=extra)


@contextmanager
def entered() -> Iterator[set[CodeType]]:
    """The code objects of ours that run inside."""
    codes: set[CodeType] = set()
    root = str(SRC)

    def trace(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_filename.startswith(root):
            codes.add(frame.f_code)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield codes
    finally:
        sys.settrace(before)


def lines_to_read(codes: set[CodeType]) -> dict[str, int]:
    """{file: lines} of the functions of these code objects. A function inside another is counted with it, once."""
    found: dict[str, int] = {}
    for name in sorted({code.co_filename for code in codes}):
        file = Path(name)
        room = file.relative_to(SRC).parts[0]
        if room in NOT_COUNTED or file.relative_to(SRC).as_posix() in TEXT_ENCODERS:
            continue
        firsts = {code.co_firstlineno for code in codes if code.co_filename == name and code.co_name != "<module>"}
        lines: set[int] = set()
        text = written(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                if first in firsts:
                    lines |= set(range(first, (node.end_lineno or first) + 1)) - docstrings(node)
        if lines & text:
            found[file.relative_to(SRC).as_posix()] = len(lines & text)
    return found


def written(file: Path) -> set[int]:
    """Numbers of the lines on which something stands that is neither a blank nor a comment."""
    with open(file, "rb") as stream:
        kinds = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
        tokens = [t for t in tokenize.tokenize(stream.readline) if t.type not in kinds and t.type != tokenize.ENDMARKER]
    return {n for token in tokens for n in range(token.start[0], token.end[0] + 1)}


def docstrings(node: ast.AST) -> set[int]:
    """Lines of the docstrings in a function, those of functions inside it too."""
    found: set[int] = set()
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                found |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def training_step(system: Any) -> Callable[[], object]:
    config = TrainingConfig(steps=3, batch_size=2, dtype="float32")
    trainer = Trainer(system.stages()[0], config, Pictures(system), Order(2, 2, seed=0))
    trainer.step()  # what is made once (buffers, averages) is not part of a step
    return trainer.step


def sampling_call(system: Any) -> Callable[[], object]:
    walk: dict[str, Any] = {"steps": 3} if "steps" in system.takes else {}
    if hasattr(system, "maps"):  # paints by a control map
        walk["control"] = torch.zeros(3, 8, 8)

    def call() -> object:
        return system.sample(n=1, **walk, seed=0, output="tensor", progress=False)

    call()
    return call


@pytest.mark.parametrize("what", [training_step, sampling_call], ids=["training step", "sampling call"])
@pytest.mark.parametrize("name", sorted({**hwaga.systems.ROOMS, **hwaga.systems.VARIANTS}))
def test_it_is_understood_within_the_reading_budget(
    name: str, what: Callable[[Any], Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> None:
    parts = PARTS[name]() if name in PARTS else {}
    system = hwaga.systems.find(name).create(TINY[name], size=(8, 8), components=parts)
    call = what(system)
    with entered() as codes:
        call()
    table = lines_to_read(codes)
    total = f"{name}, {what.__name__.replace('_', ' ')}: {sum(table.values())} lines in {len(table)} files"
    report = "\n".join([total, *(f"  {lines:4}  {file}" for file, lines in table.items())])
    with capsys.disabled():
        if sys.stdout.isatty() or sum(table.values()) > LINES or len(table) > FILES:
            print("\n" + report)
    assert sum(table.values()) <= LINES and len(table) <= FILES, report


def test_the_count_leaves_out_blanks_comments_and_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "room" / "a.py"
    file.parent.mkdir()
    file.write_text(
        'def read(x):\n    """A docstring\n    of two lines."""\n\n    # a comment\n'
        "    return [\n        x,\n    ]\n\n\n"
        "def not_entered():\n    return 1\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    names: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    with entered() as codes:
        names["read"](1)
    assert lines_to_read(codes) == {"room/a.py": 4}
