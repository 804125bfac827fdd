"""A run in its folder: checkpoints, resume to the bit, what hangs on the loop, and what stops it."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_toys import (
    assert_same_bits,
    denoising_stage,
    final_tensors,
    gan_stage,
    plain_net,
    seeded,
    session,
    trainer,
)

from hwaga.errors import InputError, Interrupted, WorkError
from hwaga.interfaces import Objective, Stage
from hwaga.training import checkpoint as checkpoints
from hwaga.training.metrics import read_rows

STAGES = {"denoising": lambda: [denoising_stage()], "gan": lambda: [gan_stage()]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run without interruption of each toy system."""
    folders = {}
    for name, stages in STAGES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        session(folders[name], stages()).run()
    return folders


def stopped_after(work: object, step: int) -> None:
    """Runs a session until a signal arrives in step `step`."""
    stage = work.stages[0]
    first = stage.objectives[0]

    def loss(batch, draw):
        if draw.key[2] == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return first.loss(batch, draw)

    work.stages = [replace(stage, objectives=[replace(first, loss=loss), *stage.objectives[1:]]), *work.stages[1:]]
    with pytest.raises(Interrupted, match=f"after step {step} of .*hwaga train --resume {work.folder}"):
        work.run()


@pytest.mark.parametrize("name", list(STAGES))
@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_a_run_stopped_at_any_step_ends_with_the_bits_of_an_unbroken_one(
    name: str, step: int, tmp_path: Path, whole: dict[str, Path]
) -> None:
    stopped_after(session(tmp_path, STAGES[name]()), step)
    assert (tmp_path / "checkpoints" / f"step-{step}" / "state.json").is_file()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"
    session(tmp_path, STAGES[name]()).run()
    assert_same_bits(final_tensors(tmp_path), final_tensors(whole[name]))
    timeless = [
        [{k: v for k, v in row.items() if k != "pictures_a_second"} for row in read_rows(folder / "metrics.jsonl")]
        for folder in (tmp_path, whole[name])
    ]
    assert timeless[0] == timeless[1]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_three_resumes_in_a_row_are_still_exact(tmp_path: Path, whole: dict[str, Path]) -> None:
    for step in (2, 5, 9):
        stopped_after(session(tmp_path), step)
    session(tmp_path).run()
    assert_same_bits(final_tensors(tmp_path), final_tensors(whole["denoising"]))


def test_a_run_made_longer_is_the_run_that_was_long_from_the_start(tmp_path: Path, whole: dict[str, Path]) -> None:
    session(tmp_path, steps=6).run()
    session(tmp_path, steps=12).run()
    assert_same_bits(final_tensors(tmp_path), final_tensors(whole["denoising"]))


def test_saving_sampling_and_measuring_at_any_interval_change_no_weight(tmp_path: Path, whole: dict[str, Path]) -> None:
    busy = {"checkpoint_every": 1, "sample_every": 1, "held_out_every": 1, "log_every": 1, "keep_checkpoints": 1}
    idle = {"checkpoint_every": 100, "sample_every": 0, "held_out_every": 0, "log_every": 100}
    for name, habits in (("busy", busy), ("idle", idle)):
        session(tmp_path / name, **habits).run()
        assert_same_bits(final_tensors(tmp_path / name), final_tensors(whole["denoising"]))
    assert len(list((tmp_path / "busy" / "samples").glob("step-*.png"))) == 12
    assert not (tmp_path / "idle" / "samples").exists()


def test_the_model_is_the_average_and_the_checkpoint_has_both(whole: dict[str, Path]) -> None:
    newest = whole["denoising"] / "checkpoints" / "step-12"
    average, raw = (
        load_file(newest / "ema-20000-network.safetensors"),
        load_file(newest / "network-network.safetensors"),
    )
    model = load_file(whole["denoising"] / "model" / "network.safetensors")
    assert_same_bits({k: v for k, v in model.items() if k in average}, average)
    assert not torch.equal(raw["out.weight"], model["out.weight"])


def test_a_checkpoint_holds_safetensors_and_json_alone(whole: dict[str, Path]) -> None:
    for folder in whole.values():
        names = {path.name for path in (folder / "checkpoints" / "step-12").iterdir()}
        assert all(name.endswith((".safetensors", ".json")) for name in names)
    state = json.loads((whole["gan"] / "checkpoints" / "step-12" / "state.json").read_text())
    assert (state["format"], state["step"], state["stage"]) == (1, 12, "gan")
    assert state["data_order"] == {"place": 72, "pictures": 20}
    assert set(state["files"]) == {
        "network-generator.safetensors", "network-discriminator.safetensors", "ema-20000-generator.safetensors",
        "optimizer-generator.safetensors", "optimizer-discriminator.safetensors",
    }  # fmt: skip


def test_the_newest_checkpoints_are_kept_and_older_ones_removed(tmp_path: Path) -> None:
    session(tmp_path, checkpoint_every=2, keep_checkpoints=3).run()
    assert checkpoints.steps(tmp_path / "checkpoints") == [8, 10, 12]


@pytest.mark.parametrize(
    "part",
    ["network-discriminator", "network-generator", "ema-20000-generator", "optimizer-generator",
     "optimizer-discriminator", "state"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_taken(
    part: str, how: str, tmp_path: Path, whole: dict[str, Path]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole["gan"], folder)
    path = folder / "checkpoints" / "step-12" / (f"{part}.json" if part == "state" else f"{part}.safetensors")
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-7])
    said: list[str] = []
    found = checkpoints.latest(folder / "checkpoints", said.append)
    assert found is not None and found.step == 8
    assert len(said) == 1 and "step-12 is damaged" in said[0] and path.name in said[0]
    session(folder, STAGES["gan"]()).run()
    assert_same_bits(final_tensors(folder), final_tensors(whole["gan"]))


def test_a_part_that_a_checkpoint_lacks_is_named_when_it_is_loaded(tmp_path: Path, whole: dict[str, Path]) -> None:
    """Where state.json does not list it either: an older or a foreign writer."""
    for name in ("network-generator", "ema-20000-generator", "optimizer-discriminator"):
        folder = tmp_path / name
        shutil.copytree(whole["gan"] / "checkpoints" / "step-12", folder)
        (folder / f"{name}.safetensors").unlink()
        state = json.loads((folder / "state.json").read_text())
        del state["files"][f"{name}.safetensors"]
        (folder / "state.json").write_text(json.dumps(state))
        with pytest.raises(InputError, match=f"lacks {name}.safetensors"):
            checkpoints.load(checkpoints.read(folder), trainer(gan_stage()), {})


def test_without_a_whole_checkpoint_a_run_starts_at_its_beginning(tmp_path: Path, whole: dict[str, Path]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole["denoising"], folder)
    for path in (folder / "checkpoints").glob("*/state.json"):
        path.write_text("{")
    session(folder).run()
    assert_same_bits(final_tensors(folder), final_tensors(whole["denoising"]))
    assert {path.name for path in (folder / "checkpoints").glob("damaged-*")} == {"damaged-step-8", "damaged-step-12"}


def test_a_checkpoint_of_a_newer_format_is_refused_by_name_and_left_alone(
    tmp_path: Path, whole: dict[str, Path]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole["denoising"], folder)
    path = folder / "checkpoints" / "step-12" / "state.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match="step-12 has format 2, this version reads up to 1"):
        session(folder).run()
    assert path.is_file()


def test_a_checkpoint_of_another_network_is_refused_with_the_tensor(tmp_path: Path, whole: dict[str, Path]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole["denoising"], folder)
    other = denoising_stage(seeded(lambda: plain_net()))
    with pytest.raises(InputError, match="network-network.safetensors (lacks|has) '"):
        session(folder, [other]).run()


@pytest.mark.parametrize("key", ["recipe", "data"])
def test_a_checkpoint_of_another_recipe_or_of_other_data_is_refused(
    key: str, tmp_path: Path, whole: dict[str, Path]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole["denoising"], folder)
    work = session(folder, steps=20)
    work.about = {**work.about, key: "another"}
    with pytest.raises(InputError, match=f"made with another {key}"):
        work.run()


def test_what_an_interrupted_write_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step-4.part-abc"
    left.mkdir(parents=True)
    (left / "network-network.safetensors").write_bytes(b"half")
    session(tmp_path).run()
    assert not left.exists() and checkpoints.steps(tmp_path / "checkpoints") == [8, 12]


def test_a_non_finite_loss_keeps_the_last_good_checkpoint_and_model(tmp_path: Path) -> None:
    stage = denoising_stage()
    first = stage.objectives[0]

    def loss(batch, draw):
        terms = first.loss(batch, draw)
        return {**terms, "broken": terms["error"] * (float("nan") if draw.key[2] == 9 else 0.0)}

    work = session(tmp_path, [replace(stage, objectives=[replace(first, loss=loss)])])
    with pytest.raises(WorkError, match="step 10: the term 'broken' is not finite"):
        work.run()
    assert checkpoints.steps(tmp_path / "checkpoints") == [4, 8]
    good = load_file(tmp_path / "checkpoints" / "step-8" / "ema-20000-network.safetensors")
    model = load_file(tmp_path / "model" / "network.safetensors")
    assert_same_bits({k: v for k, v in model.items() if k in good}, good)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "'broken'" in status["says"]


def test_a_weight_that_became_infinite_is_not_saved(tmp_path: Path) -> None:
    stage = denoising_stage()
    first = stage.objectives[0]

    def loss(batch, draw):
        if draw.key[2] == 7:
            with torch.no_grad():
                stage.networks["network"].norm.running_var[0] = float("inf")
        return first.loss(batch, draw)

    with pytest.raises(WorkError, match="weight 'norm.running_var' of network is not finite"):
        session(tmp_path, [replace(stage, objectives=[replace(first, loss=loss)])]).run()
    assert checkpoints.steps(tmp_path / "checkpoints") == [4]


def test_a_full_disk_is_named_and_the_last_checkpoint_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoints.write_tensors

    def full(path, tensors):
        if "step-8" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, tensors)

    monkeypatch.setattr(checkpoints, "write_tensors", full)
    with pytest.raises(WorkError, match="no space left while writing .*step-8"):
        session(tmp_path).run()
    assert checkpoints.steps(tmp_path / "checkpoints") == [4]
    assert checkpoints.read(tmp_path / "checkpoints" / "step-4").step == 4
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_real_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch, pathlib\nfrom hwaga.files import write_tensors\n"
        "from hwaga.errors import WorkError\nresource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n    write_tensors(pathlib.Path(sys.argv[1]) / 'a.safetensors', {'a': torch.zeros(100_000)})\n"
        "except WorkError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "no space left while writing" in done.stdout and "a.safetensors" in done.stdout, done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000


def two_stages() -> list[Stage]:
    """A first stage, and a second one that learns from the first one's network."""
    first = denoising_stage(seeded(lambda: plain_net(4)), name="tokenizer")
    code, head = first.networks["network"], seeded(lambda: plain_net(4), 5)

    def loss(batch, draw):
        with torch.no_grad():
            given = code(batch.image)
        return {"error": (head(given) - batch.image).square().mean()}

    second = Stage("prior", {"head": head}, [Objective("fit", ("head",), loss)], averaged=("head",))
    return [
        replace(
            first,
            networks={"code": code},
            averaged=("code",),
            objectives=[replace(first.objectives[0], networks=("code",))],
        ),
        second,
    ]


def test_stages_are_trained_in_order_and_a_resume_finds_its_stage(tmp_path: Path) -> None:
    config = {"steps": 5, "prior": {"steps": 7, "batch_size": 4}, "checkpoint_every": 3, "sample_every": 0}
    session(tmp_path / "whole", two_stages(), **config).run()
    state = json.loads((tmp_path / "whole" / "checkpoints" / "step-12" / "state.json").read_text())
    assert (state["stage"], state["stage_step"], state["finished"]) == ("prior", 7, ["code"])
    for name, step in (("in the second", 9), ("in the first", 2), ("between them", 5)):
        work = session(tmp_path / name, two_stages(), **config)
        stage = work.stages[1 if step > 5 else 0]
        first = stage.objectives[0]

        def loss(batch, draw, first=first, at=step - 1 if step <= 5 else step - 6, work=work):
            if draw.key[2] == at:
                work.stop.asked = True
            return first.loss(batch, draw)

        broken = replace(stage, objectives=[replace(first, loss=loss)])
        work.stages = [broken if s.name == stage.name else s for s in work.stages]
        with pytest.raises(Interrupted, match=f"after step {step} of 12"):
            work.run()
        session(tmp_path / name, two_stages(), **config).run()
        assert_same_bits(final_tensors(tmp_path / name), final_tensors(tmp_path / "whole"))
    steps = [row["step"] for row in read_rows(tmp_path / "whole" / "metrics.jsonl") if row["stage"] == "prior"]
    assert steps and min(steps) > 5 and max(steps) == 12


def test_a_later_stage_sees_the_averaged_weights_of_the_one_before(tmp_path: Path) -> None:
    stages = two_stages()
    session(tmp_path, stages, steps=5, prior={"steps": 3}, checkpoint_every=5, sample_every=0, keep_checkpoints=9).run()
    average = load_file(tmp_path / "checkpoints" / "step-5" / "ema-20000-code.safetensors")
    assert_same_bits(load_file(tmp_path / "checkpoints" / "step-8" / "network-code.safetensors"), average)
    assert_same_bits(dict(stages[0].networks["code"].state_dict()), average)


def test_the_best_model_by_held_out_loss_is_kept(tmp_path: Path) -> None:
    losses = {4: 0.5, 8: 0.2, 12: 0.9}
    work = session(tmp_path)
    seen: list[int] = []

    def held_out(batch, draw):
        seen.extend([len(seen) // 2 * 4 + 4])  # two parts of 6 and 3 pictures at each measurement
        return {"loss": torch.full((len(batch),), losses[seen[-1]])}

    work.stages = [replace(work.stages[0], held_out=held_out)]
    work.run()
    rows = {r["step"]: r["held_out.loss"] for r in read_rows(tmp_path / "metrics.jsonl") if "held_out.loss" in r}
    assert rows == pytest.approx({4: 0.5, 8: 0.2, 12: 0.9})
    best = load_file(tmp_path / "best" / "network.safetensors")
    average = load_file(tmp_path / "checkpoints" / "step-8" / "ema-20000-network.safetensors")
    assert_same_bits({k: v for k, v in best.items() if k in average}, average)


def test_the_best_model_by_a_score_is_kept_and_scores_are_rows(tmp_path: Path) -> None:
    values = iter([9.0, 3.0, 5.0])
    work = session(tmp_path, evaluate_every=4)
    work.score = lambda: {"fid": next(values), "kid": 0.1}
    work.run()
    rows = [r for r in read_rows(tmp_path / "metrics.jsonl") if "score.fid" in r]
    assert [(r["step"], r["score.fid"], r["score.kid"]) for r in rows] == [(4, 9.0, 0.1), (8, 3.0, 0.1), (12, 5.0, 0.1)]
    best = load_file(tmp_path / "best" / "network.safetensors")
    average = load_file(tmp_path / "checkpoints" / "step-8" / "ema-20000-network.safetensors")
    assert_same_bits({k: v for k, v in best.items() if k in average}, average)


def test_what_was_missing_after_a_checkpoint_is_done_at_the_resume(tmp_path: Path) -> None:
    """Killed between the checkpoint and what follows it: the grid and the held-out row come with the resume."""
    work = session(tmp_path)
    work.preview = lambda n, seed: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert not (tmp_path / "samples" / "step-4.png").exists()
    session(tmp_path).run()
    assert (tmp_path / "samples" / "step-4.png").is_file()
    held_out = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if "held_out.loss" in row]
    assert held_out == [4, 8, 12]


def test_a_stages_own_alarm_is_a_row_and_is_told(tmp_path: Path) -> None:
    def collapsed(rows):
        return "the generator has collapsed; training.learning_rate" if rows[-1]["step"] >= 6 else None

    said: list[str] = []
    work = session(tmp_path, [denoising_stage(alarms=[collapsed])])
    work.progress.say = said.append  # type: ignore[method-assign]
    work.run()
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "alarm" in row]
    assert [(row["step"], row["alarm"]) for row in rows] == [(6, "collapsed")]
    assert any(line.startswith("alarm: the generator has collapsed") for line in said)


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    session(tmp_path, tensorboard=True).run()
    files = list((tmp_path / "tensorboard").glob("events*"))
    assert files and files[0].stat().st_size > 500


def test_every_picture_is_seen_as_the_order_says(tmp_path: Path) -> None:
    work = session(tmp_path, held_out_every=0)
    work.run()
    seen = [i for batch in work.data.asked for i in batch]
    assert seen == [k % 20 for k in range(72)]
