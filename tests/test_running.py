"""Runs of the real system on real pictures (handwritten digits), small enough for seconds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hwaga import running
from hwaga.errors import InputError, Interrupted, WorkError
from hwaga.recipes import load_recipe
from hwaga.training.metrics import read_rows

RECIPE: dict[str, Any] = {
    "system": "ddpm",
    "data": {"source": "digits", "size": 8, "label": "none"},
    "model": {
        "network": {"channels": [8, 16], "attention": [False, True], "groups": 4, "blocks": 1, "dropout": 0.1},
        "process": {"timesteps": 20},
    },
    "training": {
        "steps": 12, "batch_size": 8, "checkpoint_every": 5, "log_every": 3, "held_out_pictures": 16, "preview": 4,
        "threads": 1,
    },
}  # fmt: skip


def train(out: Path, **overrides: Any) -> running.Run:
    return running.train(RECIPE, out=out, overrides=overrides, progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "network" / "model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> running.Run:
    return train(tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_leaves_what_it_promises(run: running.Run) -> None:
    there = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert there == {
        "recipe.yaml",
        "model",
        "checkpoints",
        "samples",
        "metrics.jsonl",
        "report.html",
        "best",
        "status.json",
    }
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"step-10", "step-12"}
    with Image.open(run.folder / "samples" / "step-12.png") as picture:
        assert picture.mode == "RGB" and json.loads(picture.text["hwaga-grid"])["step"] == 12
    assert run.recipe.training.steps == 12
    rows = read_rows(run.folder / "metrics.jsonl")
    assert {row["step"] for row in rows} == {3, 5, 6, 9, 10, 12}
    assert all(any(k.startswith("held_out.loss t ") for k in row) for row in rows if "held_out.loss" in row)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "1797 pictures found" in page and "data:image/png;base64," in page and "CC BY" in page


def test_the_trained_model_loads_and_paints_and_is_the_average(run: running.Run) -> None:
    model = run.load()
    assert model.sample(n=2, seed=0, output="tensor", progress=False).shape == (2, 3, 8, 8)
    average = load_file(run.folder / "checkpoints" / "step-12" / "ema-20000-network.safetensors")
    assert all(torch.equal(weights(run.folder)[name], value) for name, value in average.items())
    assert model.about.data == "digits" and model.about.data_licence
    assert run.load(best=True).about.data == "digits"


def test_an_interrupted_run_resumes_to_the_same_bits(run: running.Run, tmp_path: Path) -> None:
    from hwaga.systems.ddpm import DDPM

    plain, calls = DDPM.loss, []

    def loss(self: Any, batch: Any, draw: Any) -> Any:
        calls.append(draw.key[2])
        if len(calls) == 7 + 2:  # two more go through the prediction of memory
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, batch, draw)

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DDPM, "loss", loss)
        with pytest.raises(Interrupted, match=f"hwaga train --resume {folder}$"):
            train(folder)
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    running.resume(folder, progress=False)
    assert all(torch.equal(weights(run.folder)[name], value) for name, value in weights(folder).items())
    assert (folder / "model" / "model.json").read_bytes() == (run.folder / "model" / "model.json").read_bytes()


def test_the_global_generator_is_untouched(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(tmp_path / "run", **{"training.steps": 2})
    assert torch.equal(before, torch.get_rng_state())


def test_a_finished_run_returns_at_once_and_can_be_made_longer(tmp_path: Path) -> None:
    short = train(tmp_path / "run", **{"training.steps": 5})
    before = {path: path.stat().st_mtime_ns for path in short.folder.rglob("*") if path.is_file()}
    assert running.resume(short.folder, progress=False).folder == short.folder
    assert {path: path.stat().st_mtime_ns for path in short.folder.rglob("*") if path.is_file()} == before
    running.resume(short.folder, {"training.steps": "12"}, progress=False)
    assert running.Run(short.folder).recipe.training.steps == 12
    whole = train(tmp_path / "whole")
    assert all(torch.equal(weights(whole.folder)[name], value) for name, value in weights(short.folder).items())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.batch_size": 4}, "training.batch_size: 8 in the run, 4 asked for"),
        ({"model.network.blocks": 2}, "model.network.blocks: 1 in the run, 2 asked for"),
        ({"data.size": 16}, "data.size: 8 in the run, 16 asked for"),
        ({"training.steps": 3}, "3 asked for, but .* has done 12"),
        ({"training.stepps": 3}, "training.stepps is unknown"),
    ],
)
def test_a_resume_with_another_recipe_is_refused_with_the_difference(
    run: running.Run, overrides: dict[str, Any], words: str
) -> None:
    before = (run.folder / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match=words):
        running.resume(run.folder, overrides, progress=False)
    assert (run.folder / "recipe.yaml").read_bytes() == before


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run: it has no recipe.yaml"):
        running.resume(tmp_path, progress=False)


def test_a_run_without_a_checkpoint_starts_at_its_beginning(run: running.Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run.recipe.save(folder / "recipe.yaml")
    running.resume(folder, progress=False)
    assert all(torch.equal(weights(run.folder)[name], value) for name, value in weights(folder).items())


def test_a_folder_with_another_run_is_refused_and_one_without_is_used(run: running.Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds another run"):
        train(run.folder)
    (tmp_path / "notes.txt").write_text("mine")
    train(tmp_path, **{"training.steps": 1})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    file = tmp_path / "notes.txt"
    with pytest.raises(InputError, match="is a file; name a folder"):
        train(file)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.source": "/nowhere"}, "nowhere"),
        ({"training.batch_size": 1_000_000}, r"needs .* to train, .* are free .*training.batch_size=\d+ .*would fit"),
        ({"model.network.channels": [400_000, 400_000]}, "a smaller model would fit"),
        ({"model.network.channels": [10, 16]}, "channels"),
        ({"data.size": 9}, "data.size"),
        ({"training.device": "cuda:99"}, "training.device='cuda:99'"),
        ({"training.start_from": "/nowhere/model"}, "nowhere"),
        ({"components.network": "/nowhere/model"}, "nowhere"),
        ({"training.accumulation": 9}, "training.accumulation=9 is more than training.batch_size=8"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    overrides: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwaga.preparing.available_memory", lambda device: 8 * 2**30)  # wherever the test runs
    with pytest.raises(InputError, match=words):
        train(tmp_path / "run", **overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_tells_what_training_would_take_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = running.plan(RECIPE)
    text = plan.text()
    system = load_recipe(RECIPE)
    assert plan.fits and plan.stages[0].steps == system.training.steps and plan.stages[0].seconds
    for words in ("1797 pictures found", "network: ", "12 steps of 8 pictures", "activations", "runs/ddpm/recipe.yaml"):
        assert words in text
    assert list(tmp_path.iterdir()) == []
    huge = running.plan(RECIPE, overrides={"model.network.channels": [400_000, 400_000]})
    assert not huge.fits and "does not fit" in huge.text() and huge.stages[0].largest_batch == 0


def test_fine_tuning_keeps_what_fits_and_says_what_is_new(
    run: running.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {**RECIPE, "model": {**RECIPE["model"], "labels": True}, "data": {"source": "digits", "size": 8}}
    tuned = running.train(
        changed, out=tmp_path / "run", quiet=True,
        overrides={"training.start_from": str(run.folder), "training.steps": 1, "training.learning_rate": 1e-9},
    )  # fmt: skip
    assert "new: class_embedding.weight" in capsys.readouterr().err
    old, new = weights(run.folder), weights(tuned.folder)
    assert set(new) - set(old) == {"class_embedding.weight"}
    assert all(torch.allclose(new[name], value, atol=1e-6) for name, value in old.items())


def test_two_seeds_differ_and_one_seed_does_not(tmp_path: Path) -> None:
    ends = [weights(train(tmp_path / name, **{"training.seed": seed, "training.steps": 2}).folder)
            for name, seed in (("a", 0), ("b", 0), ("c", 1))]  # fmt: skip
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    assert not all(torch.equal(ends[0][name], value) for name, value in ends[2].items())


@pytest.mark.filterwarnings("ignore:the features:UserWarning")
def test_scores_during_training_are_rows_and_choose_the_best(tmp_path: Path) -> None:
    done = train(tmp_path / "run", **{"training.evaluate_every": 5, "evaluation.n": 12, "evaluation.metrics": ["kid"]})
    rows = [row for row in read_rows(done.folder / "metrics.jsonl") if any(k.startswith("score.kid") for k in row)]
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert (done.folder / "best" / "model.json").is_file()


@pytest.mark.filterwarnings("ignore:the features:UserWarning")
def test_a_model_a_folder_and_a_tensor_of_the_same_pictures_have_the_same_scores(
    run: running.Run, tmp_path: Path
) -> None:
    model = run.load()
    images = model.sample(n=12, seed=3, output="tensor", progress=False)
    for i, image in enumerate(model.sample(n=12, seed=3, progress=False)):
        image.save(tmp_path / f"{i:02}.png")
    values = [
        running.evaluate(samples, "digits", n=12, seed=3, metrics=("kid",)).values["kid"]
        for samples in (model, str(run.folder), images, tmp_path)
    ]
    assert values[1:3] == pytest.approx([values[0]] * 2, rel=1e-4) and values[3] == pytest.approx(values[0], rel=0.02)
    with pytest.raises(InputError, match="n=1"):
        running.evaluate(model, "digits", n=1)
    with pytest.raises(InputError, match="no picture|no such"):
        running.evaluate(tmp_path / "none", "digits")


def test_a_full_disk_while_the_model_is_saved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch
    from safetensors import SafetensorError

    real = safetensors.torch.save_file

    def full(tensors: Any, path: Any, **more: Any) -> None:
        if "model.safetensors" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(WorkError, match="no space left while writing .*model"):
        train(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-5"]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    monkeypatch.undo()
    running.resume(tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "model" / "model.json").is_file()
