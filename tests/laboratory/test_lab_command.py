"""`hwaga lab`: pictures and numbers in a folder, bad input in one sentence."""

import json

import pytest

from hwaga.cli.main import run


def test_it_draws_every_figure_and_writes_the_numbers(tmp_path, capsys):
    told = ["--points", "moons", "--process", "ve", "--set", "sigma_max=10", "--sampler", "ddim,unipc", "--steps", "3"]
    assert run(["lab", "--out", str(tmp_path / "lab"), "--quiet", "--few-steps", *told]) == 0
    found = json.loads((tmp_path / "lab" / "lab.json").read_text())
    assert found["points"] == "moons" and found["process"]["sigma_max"] == 10
    assert set(found["samplers"]) == {f"{kind}, {name}" for kind in ("diffusion", "flow") for name in ("ddim", "unipc")}
    assert set(found["few steps"]) >= {"mean flow, 1", "consistency, 4"} and len(found["score"]) == 3
    for name in ("score", "paths", "samplers", "langevin", "few-steps"):
        assert 2000 < (tmp_path / "lab" / f"{name}.png").stat().st_size < 200_000
    assert "few-steps.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["--points", "moon"], "did you mean 'moons'"),
        (["--process", "vpp"], "did you mean 'vp'"),
        (["--process", "flow"], "beside the diffusion"),
        (["--set", "beta_max=low"], "beta_max='low'"),
        (["--set", "beta=1"], "beta"),
        (["--sampler", "lcm"], "lcm"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, capsys, told, words):
    assert run(["lab", "--out", str(tmp_path / "lab"), *told]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "lab").exists()
