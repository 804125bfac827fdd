"""What the tests of the command line share: an answer, a tiny model and its recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tiny import fill_zeros

from hwaga.systems import find

MODEL: dict[str, Any] = {
    "network": {"channels": [8, 8], "attention": [False, True], "blocks": 1, "groups": 4},
    "process": {"timesteps": 8},
}

RECIPE = """\
system: ddpm
model:
  network: {channels: [8, 8], attention: [false, true], blocks: 1, groups: 4}
  process: {timesteps: 8}
data: {source: digits, size: 8}
training: {steps: 4, batch_size: 4, checkpoint_every: 2, log_every: 1, preview: 2, held_out_pictures: 4, dtype: float32}
"""


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What stderr says: one sentence on one line, and no traceback. (On a busy machine it may say that it works.)"""
        lines = [line for line in self.err.strip().splitlines() if not re.search(r": working \(\d+ s\)$", line)]
        assert len(lines) == 1 and lines[0].startswith("hwaga: "), self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("hwaga: ")


Ask = Callable[..., Answer]


def painter(seed: int = 0, **about: object) -> Any:
    """A DDPM of 8 x 8 pictures with random weights, none of them zero: every part of it has an effect."""
    system = find("ddpm").create(MODEL, size=(8, 8), seed=seed, about=about)
    fill_zeros(system.networks["network"], seed)
    return system


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes: what must not change."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
