"""Starting is quick: nothing heavy is imported before it is needed. Judged by what is loaded, not by a clock."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hwaga

HEAVY = ("torch", "transformers", "matplotlib", "numpy", "sklearn", "scipy", "PIL", "pydantic", "jinja2", "diffusers")


def loaded_after(code: str) -> set[str]:
    """Heavy packages that a fresh Python has loaded after the code ran."""
    program = f"import sys\n{code}\nprint('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("LOADED")
    return set(last.split()[1:])


def test_importing_hwaga_brings_in_nothing_heavy() -> None:
    assert loaded_after("import hwaga; hwaga.__version__; hwaga.InputError; hwaga.__all__") == set()


@pytest.mark.parametrize("words", [["--help"], ["systems"], ["sample", "--help"], ["train", "--help"], ["--version"]])
def test_help_and_lists_come_without_torch(words: list[str]) -> None:
    heavy = loaded_after(f"from hwaga.cli.main import run\nassert run({words!r}) == 0")
    assert heavy - {"pydantic"} == set()  # typer itself uses pydantic


def test_the_public_names_are_sorted_and_complete() -> None:
    assert hwaga.__all__ == sorted(hwaga.__all__)
    for name in hwaga.__all__:
        assert getattr(hwaga, name) is not None
    wanted = {"load", "train", "resume", "evaluate", "export", "save_images", "systems", "__version__"}
    assert wanted <= set(hwaga.__all__) <= set(dir(hwaga))
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        hwaga.paint  # noqa: B018


def test_systems_is_a_list_and_a_room() -> None:
    assert [one["name"] for one in hwaga.systems()] == list(hwaga.systems.ROOMS)


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert hwaga.__version__ == project["version"]
