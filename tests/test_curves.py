"""Score against evaluations: what is walked, what is kept, what is compared."""

import warnings

import pytest
import tiny

from hwaga import curves
from hwaga.cli.main import run
from hwaga.errors import InputError
from hwaga.samplers import SAMPLERS
from hwaga.saving import save


@pytest.fixture(scope="module")
def model():
    system = tiny.ddpm(labels=False, process={"timesteps": 50, "schedule": "cosine", "predicts": "v"})
    tiny.fill_zeros(system.network)
    return system


@pytest.mark.parametrize("name", [name for name, one in SAMPLERS.items() if one.rule != "student"])
def test_steps_for_a_budget_cost_no_more_evaluations_than_it(model, name):
    budget = 25 if SAMPLERS[name].evaluations > 4 else 9
    steps = curves.steps_for(name, budget)
    with curves.counted(model) as count:
        model.sample(n=2, sampler=name, steps=steps, output="tensor", progress=False, seed=0)
    assert budget - SAMPLERS[name].evaluations <= count[0] / 2 <= budget


def test_every_sampler_of_a_model_is_walked_and_none_that_its_table_is_too_short_for(model):
    found = curves.walks({"a": model}, None, [4, 8, 200])
    assert {walk.sampler for walk in found} == set(model.samplers()) - {"lcm"}
    assert max(walk.steps for walk in found if walk.sampler == "ddim") == 8
    assert len(found) == len(set((w.sampler, w.steps) for w in found))
    with pytest.raises(InputError, match="ddim"):
        curves.walks({"a": model}, ["ddimm"], [4])
    with pytest.raises(InputError, match="in one go"):
        curves.walks({"v": tiny.vae()}, None, [4])


def test_rows_are_kept_compared_and_not_measured_again(model, tmp_path, monkeypatch, capsys):
    save(model, tmp_path / "model")
    told = [
        "curve", str(tmp_path / "model"), "--data", "digits", "--n", "12", "--samplers", "ddim,heun", "--out",
        str(tmp_path / "out"), "--quiet",
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run([*told, "--evaluations", "2"]) == 0
        assert run([*told, "--evaluations", "2,4"]) == 0
        before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out" / "rows").glob("*.json")}
        monkeypatch.setattr(curves, "measure", None)
        assert run([*told, "--evaluations", "4,2"]) == 0
    assert len(before) == 4
    assert before == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out" / "rows").glob("*.json")}
    rows = curves.kept(tmp_path / "out", None)
    assert [(row.sampler, row.steps, row.evaluations) for row in rows] == [
        ("ddim", 2, 2), ("ddim", 4, 4), ("heun", 1, 1), ("heun", 2, 3),
    ]  # fmt: skip
    assert all(row.scores.card["sampler"] == row.sampler and row.scores.card["n"] == 12 for row in rows)
    table = curves.table(rows, resamples=20)
    best = min(table, key=lambda row: row["score"])
    assert best["over_best_of_all"] == [1, 1, 1] and all(row["over_best_of_model"][0] >= 1 for row in table)
    assert (tmp_path / "out" / "curve.png").stat().st_size > 5000
    assert "| model | sampler |" in (tmp_path / "out" / "curve.md").read_text()


@pytest.mark.parametrize(
    ("told", "words"),
    [(["--evaluations", "4,x"], "whole numbers"), (["--samplers", "ddimm"], "did you mean"), (["--n", "1"], "--n")],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(model, tmp_path, told, words, capsys):
    save(model, tmp_path / "model")
    assert run(["curve", str(tmp_path / "model"), "--data", "digits", "--out", str(tmp_path / "out"), *told]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()
