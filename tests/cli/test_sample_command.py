"""`hwaga sample`: what it writes, and that a picture can be painted again from its own file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_tools import Ask, painter
from PIL import Image
from safetensors.torch import save_file

import hwaga
from hwaga import provenance
from hwaga.errors import Interrupted
from hwaga.systems.ddpm import DDPM


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_folder_holds_n_pictures_and_nothing_else(ask: Ask, model: Path, tmp_path: Path) -> None:
    answer = ask("sample", model, "--n", 3, "--seed", 5, "--out", "pictures")
    assert answer.status == 0 and answer.out == "pictures (3 pictures)\n"
    assert [f.name for f in sorted((tmp_path / "pictures").iterdir())] == ["00000.png", "00001.png", "00002.png"]
    records = [provenance.read(f) for f in sorted((tmp_path / "pictures").iterdir())]
    assert [r["index"] for r in records] == [0, 1, 2] and {r["seed"] for r in records} == {5}
    assert [f.name for f in tmp_path.iterdir()] == ["pictures"]


def test_the_pictures_are_those_of_python(ask: Ask, model: Path, tmp_path: Path) -> None:
    ask("sample", model, "--n", 2, "--seed", 5, "--steps", 3, "--sampler", "ddim", "--sampler-options", "eta=0.5",
        "--out", "out")  # fmt: skip
    again = hwaga.load(model, device="cpu", dtype="float32").sample(
        n=2, seed=5, steps=3, sampler="ddim", sampler_options={"eta": 0.5}, progress=False
    )
    assert [pixels(f) for f in sorted((tmp_path / "out").iterdir())] == [image.tobytes() for image in again]


def test_one_picture_and_a_grid_are_a_png(ask: Ask, model: Path, tmp_path: Path) -> None:
    assert ask("sample", model, "--out", "one.png").out == "one.png\n"
    assert ask("sample", model, "-n", 4, "--out", "four.png").status == 0
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "four.png") as four:
        assert one.size == (8, 8) and four.size == (16 + provenance.GAP, 16 + provenance.GAP)


def test_a_picture_is_painted_again_bit_for_bit(ask: Ask, model: Path, tmp_path: Path) -> None:
    """One of several, the grid of all, and one whose seed was drawn by the call."""
    ask("sample", model, "--n", 3, "--sampler", "ddim", "--steps", 4, "--out", "out")
    third = tmp_path / "out" / "00002.png"
    assert ask("sample", "--from", third, "--out", "again.png").status == 0
    assert (tmp_path / "again.png").read_bytes() == third.read_bytes()
    ask("sample", model, "--n", 3, "--out", "grid.png")
    assert ask("sample", "--from", "grid.png", "--out", "grid2.png").status == 0
    assert (tmp_path / "grid2.png").read_bytes() == (tmp_path / "grid.png").read_bytes()


def test_what_is_given_beside_from_takes_the_place_of_the_record(ask: Ask, model: Path, tmp_path: Path) -> None:
    ask("sample", model, "--seed", 1, "--steps", 4, "--out", "a.png")
    assert ask("sample", "--from", "a.png", "--seed", 2, "--out", "b.png").status == 0
    record = provenance.read(tmp_path / "b.png")
    assert record["seed"] == 2 and record["steps"] == 4
    assert pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")


def test_another_model_under_the_old_name_is_told(ask: Ask, tmp_path: Path) -> None:
    hwaga.export(painter(seed=1), tmp_path / "m", "hwaga")
    ask("sample", "m", "--seed", 1, "--out", "a.png")
    (tmp_path / "m").rename(tmp_path / "old")
    hwaga.export(painter(seed=2), tmp_path / "m", "hwaga")
    answer = ask("sample", "--from", "a.png", "--out", "b.png")
    assert answer.status == 0 and "another model hash" in answer.err


def test_recorded_draws_are_replayed(ask: Ask, model: Path, tmp_path: Path) -> None:
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"noise": start}, tmp_path / "draws.safetensors")
    words = ("sample", model, "--n", 2, "--sampler", "ddim", "--noise", "draws.safetensors")
    assert ask(*words, "--seed", 1, "--out", "a").status == 0
    assert ask(*words, "--seed", 2, "--out", "b").status == 0
    assert pixels(tmp_path / "a" / "00001.png") == pixels(tmp_path / "b" / "00001.png")
    refused = ask("sample", "--from", "a/00001.png", "--out", "c.png")
    assert refused.status == 2 and "--noise" in refused.sentence
    assert ask("sample", "--from", "a/00001.png", "--noise", "draws.safetensors", "--out", "c.png").status == 0
    assert pixels(tmp_path / "c.png") == pixels(tmp_path / "a" / "00001.png")


def test_a_systems_own_keyword_is_set(ask: Ask, model: Path, tmp_path: Path) -> None:
    assert ask("sample", model, "--set", "strip=3", "--out", "strip.png").status == 0
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (4 * 8, 2 * 8)


def test_replaced_parts_are_remembered(ask: Ask, model: Path, tmp_path: Path) -> None:
    hwaga.export(painter(seed=9), tmp_path / "other", "hwaga")
    words = ("sample", model, "--seed", 3)
    assert ask(*words, "--component", f"network={tmp_path / 'other'}", "--out", "a.png").status == 0
    assert ask(*words, "--out", "plain.png").status == 0
    assert pixels(tmp_path / "a.png") != pixels(tmp_path / "plain.png")
    assert ask("sample", "--from", "a.png", "--out", "b.png").status == 0
    assert pixels(tmp_path / "b.png") == pixels(tmp_path / "a.png")


def test_an_interrupted_call_ends_with_130_and_writes_nothing(
    ask: Ask, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (Interrupted("stopped after step 3"), KeyboardInterrupt()):

        def stop(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(DDPM, "paint", stop)
        assert ask("sample", model, "--out", "a.png").status == 130
    assert list(tmp_path.iterdir()) == []


def test_non_finite_numbers_end_with_1_and_write_nothing(
    ask: Ask, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = DDPM.compute
    monkeypatch.setattr(DDPM, "compute", lambda *a, **k: compute(*a, **k) * float("nan"))
    answer = ask("sample", model, "--out", "a.png")
    assert answer.status == 1 and "non-finite" in answer.sentence and list(tmp_path.iterdir()) == []


def test_an_unforeseen_error_is_one_sentence_and_a_hint(ask: Ask, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(DDPM, "paint", fail)
    answer = ask("sample", model, "--out", "a.png")
    assert (
        answer.status == 1 and "RuntimeError: two lines" in answer.sentence and "HWAGA_TRACEBACK=1" in answer.sentence
    )
    monkeypatch.setenv("HWAGA_TRACEBACK", "1")
    answer = ask("sample", model, "--out", "a.png")
    assert answer.status == 1 and "Traceback" in answer.err and "in fail" in answer.err


def test_systems_are_whole_names_one_a_line_where_there_is_no_terminal(ask: Ask) -> None:
    answer = ask("systems")
    assert answer.status == 0 and answer.out.splitlines() == list(hwaga.systems.ROOMS)
    described = json.loads(ask("systems", "--json").out)
    assert [one["name"] for one in described] == list(hwaga.systems.ROOMS)


def test_systems_are_a_table_on_a_terminal(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwaga.cli.systems.terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    out = ask("systems").out
    assert "DDPM" in out and "guidance_scale" in out and "diffusers" in out


def test_help_is_there_for_every_command(ask: Ask) -> None:
    commands = ("data show", "train", "sample", "evaluate", "compare", "convert", "demo", "systems")
    for words in ([], ["--help"], ["data"], *([*name.split(), "--help"] for name in commands)):
        answer = ask(*words)
        assert answer.status == 0 and "Usage" in answer.out and answer.err == ""
    assert ask("--version").out == f"hwaga {hwaga.__version__}\n"


def test_every_keyword_of_sample_is_an_option() -> None:
    import inspect

    from hwaga.cli.sample import sample as command
    from hwaga.systems.base import System

    keywords = set(inspect.signature(System.sample).parameters) - {"self", "own", "callback", "output", "progress"}
    assert keywords <= set(inspect.signature(command).parameters)
