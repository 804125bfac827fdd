"""A model that a test makes in a moment, a folder of pictures, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import RECIPE, Answer, Ask, painter
from PIL import Image

from hwaga.cli.main import run
from hwaga.saving import save


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and lose much where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Calls the command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HWAGA_TRACEBACK", raising=False)

    def call(*words: object) -> Answer:
        status = run([str(word) for word in words])
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights."""
    return save(painter(data="digits"), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 small pictures and two broken ones."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(120):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR).save(folder / f"picture{i:03d}.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.png").write_bytes((folder / "picture000.png").read_bytes()[:40])
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that trains in a moment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path
