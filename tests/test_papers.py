"""What README, ARCHITECTURE and docs say is so: commands exist and run, files that are linked are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from test_architecture import MAY_IMPORT
from tiny import fill_zeros

import hwaga
from hwaga.cli.main import app, run
from hwaga.systems import find

ROOT = Path(__file__).parent.parent
PAPERS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md"), *ROOT.glob("benchmarks/*.md")]
)
NETWORK = {"channels": [8, 8], "attention": [False, True], "blocks": 1, "groups": 4}
RECIPE: dict[str, Any] = {
    "system": "ddpm",
    "model": {
        "labels": True,
        "network": NETWORK,
        "process": {"timesteps": 8},
        "sampling": {"sampler": "ddim", "steps": 2},
    },
    "data": {"source": "openmoji", "size": 8},
    "training": {"steps": 2, "batch_size": 2, "preview": 2, "held_out_pictures": 4, "dtype": "float32"},
}
"""Stands for every shipped recipe while the commands of the README are run."""


def blocks(paper: Path, *languages: str) -> list[str]:
    """The fenced blocks of a paper in these languages ("" is none named)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", paper.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands(paper: Path) -> list[list[str]]:
    """The words after `hwaga` of every command line in a paper's blocks."""
    lines = "\n".join(blocks(paper, "sh", "bash", "")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("hwaga ")]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_of_the_papers_exists_with_its_options(paper: Path) -> None:
    for words in commands(paper):
        command: Any = typer.main.get_command(app)
        context = command.make_context("hwaga", list(words), resilient_parsing=False)
        while (rest := [*context._protected_args, *context.args]) and hasattr(command, "commands"):
            command = command.commands[rest[0]]
            context = command.make_context(rest[0], rest[1:], parent=context)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_of_the_papers_leads_somewhere(paper: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", paper.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (paper.parent / link).exists()]
    assert missing == []


def test_the_names_of_files_in_the_architecture_are_right() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)", text))
    assert len(named) > 15
    places = (ROOT, ROOT / "src" / "hwaga", ROOT / "src" / "hwaga" / "training")
    assert sorted(name for name in named if not any((place / name).is_file() for place in places)) == []
    for room in set(MAY_IMPORT) - {"__main__", "__init__"}:
        assert f"`{room}`" in text, f"ARCHITECTURE.md says nothing of the room {room}"


def test_every_goal_of_make_that_the_papers_name_exists() -> None:
    goals = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for paper in PAPERS:
        for line in "\n".join(blocks(paper, "sh", "bash", "")).splitlines():
            if line.startswith("make "):
                assert line.split()[1] in goals, f"{paper.name}: {line}"


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with tiny things in the places of shipped recipes and weights, and some pictures."""
    monkeypatch.chdir(tmp_path)
    model = find("ddpm").create(RECIPE["model"], size=(8, 8), classes=("face-smiling", "plant"), label_counts=(1, 1))
    fill_zeros(model.networks["network"])
    shipped, recipes = tmp_path / "stand-ins" / "shipped", tmp_path / "stand-ins" / "recipes"
    for file in (ROOT / "recipes").rglob("*.yaml"):
        if "system:" in file.read_text():
            place = recipes / file.relative_to(ROOT / "recipes")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(yaml.safe_dump(RECIPE))
    hwaga.export(model, shipped / "openmoji" / "ddpm", "hwaga")
    monkeypatch.setattr("hwaga.loading.SHIPPED", shipped)
    monkeypatch.setattr("hwaga.recipes.packaged", lambda: recipes)
    monkeypatch.setattr("hwaga.measuring.PICTURES", 12)
    monkeypatch.setattr("hwaga.evaluation.evaluating._resamples", lambda dim: 5)
    rng = np.random.default_rng(0)
    (tmp_path / "my-pictures").mkdir()
    for i in range(120):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "my-pictures" / f"{i}.png")
    return tmp_path


def test_the_commands_of_the_readme_run_in_their_order(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At tiny sizes; `hwaga demo` has a test of its own."""
    torch.set_num_threads(1)
    done = []
    for words in commands(ROOT / "README.md"):
        if words[:1] == ["demo"]:
            continue
        small = ["--n", "12"] if words[0] == "compare" else []
        assert run([*words, *small]) == 0, (words, capsys.readouterr().err)
        done.append(words[0])
    assert {"data", "train", "sample", "evaluate", "compare", "convert"} <= set(done)
    assert (stand_ins / "pictures" / "00003.png").read_bytes() == (stand_ins / "again.png").read_bytes()
    for name in ("grid.png", "my-run/report.html", "scores.json", "report.html", "my-model/model.json"):
        assert (stand_ins / name).is_file()


@pytest.mark.filterwarnings("ignore:the features:UserWarning")
def test_the_python_of_the_readme_runs(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    (text,) = blocks(ROOT / "README.md", "python")
    exec(compile(text, "README.md", "exec"), {})
    assert (stand_ins / "faces.png").is_file() and (stand_ins / "another-run" / "model").is_dir()
    assert "'features'" in capsys.readouterr().out
