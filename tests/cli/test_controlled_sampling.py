"""ControlNet on the command line: put beside a model, asked with maps or pictures, painted again from the file."""

from __future__ import annotations

import pytest
import tiny
import torch
from PIL import Image

from hwaga.formats import controlnet as public
from hwaga.provenance import read
from hwaga.saving import save
from hwaga.systems import find

HOW = ("--steps", 2, "--sampler", "ddim", "--seed", 3, "--prompt", "a star", "--quiet")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A Stable Diffusion, a ControlNet's folder and a control map."""
    place, base = tmp_path_factory.mktemp("parts"), tiny.stable_diffusion()
    tiny.fill_zeros(base.network)
    config = {"process": {"timesteps": 50}, "controlnet": {"hint_channels": [8, 8]}}
    net = find("controlnet").create(config, size=(16, 16), components=base.networks).networks["controlnet"]
    tiny.fill_zeros(net)
    save(base, place / "sd")
    public.write_folder(place / "canny", net, {})
    pixels = (torch.rand(16, 16, generator=torch.Generator().manual_seed(0)).round() * 255).byte().numpy()
    Image.fromarray(pixels).save(place / "map.png")
    return place


def test_a_controlnet_is_put_beside_a_model_and_the_picture_is_painted_again_from_its_record(ask, parts, tmp_path):
    words = (
        "sample",
        parts / "sd",
        "--component",
        f"controlnet={parts / 'canny'}",
        "--control",
        parts / "map.png",
        *HOW,
    )
    assert ask(*words, "--out", "one.png").status == 0
    assert ask("sample", parts / "sd", *HOW, "--out", "base.png").status == 0
    assert ask(*words, "--control-scale", 0, "--out", "zero.png").status == 0
    pixels = {name: Image.open(tmp_path / f"{name}.png").tobytes() for name in ("one", "base", "zero")}
    assert pixels["zero"] == pixels["base"] != pixels["one"]
    record = read(tmp_path / "one.png")
    assert record["system"] == "controlnet" and record["call"]["control"] == str(parts / "map.png")
    assert ask("sample", "--from", "one.png", "--quiet", "--out", "again.png").status == 0
    assert Image.open(tmp_path / "again.png").tobytes() == pixels["one"]


def test_several_controls_and_pictures_of_which_maps_are_made(ask, parts):
    two = ("--component", f"controlnet={parts / 'canny'}", "--component", f"controlnet_1={parts / 'canny'}")
    maps = (
        "--control",
        parts / "map.png",
        "--control",
        parts / "map.png",
        "--control-scale",
        1,
        "--control-scale",
        0.5,
    )
    kinds = ("--set", "control_kind=canny", "--set", "control_options={low: 50}", "--set", "control_end=[1.0, 0.5]")
    assert ask("sample", parts / "sd", *two, *maps, *kinds, *HOW, "--out", "two.png").status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample SD --control MAP", "control= given to Stable Diffusion"),
        ("sample SD --component controlnet=CANNY", "control= is needed"),
        ("sample SD --component controlnet=CANNY --control MAP --control MAP", "2 maps"),
        (
            "sample SD --component controlnet=CANNY --control MAP --control-scale 1 --control-scale 1",
            "control_scale= has 2",
        ),
        ("sample SD --component controlnet=CANNY --control MAP --set control_start=2", "control_start=2"),
        ("sample SD --component controlnet=CANNY --control MAP --set control_kind=cany", "canny"),
        ("sample SD --component controlnet=CANNY --control nowhere.png", "nowhere.png"),
        ("sample SD --component controlnet=SD --control MAP", "no controlnet"),
        ("sample SD --component controlnets=CANNY --control MAP", "controlnet"),
        ("sample CANNY --control MAP", "a ControlNet alone"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(ask, parts, tmp_path, words, said):
    places = {"SD": parts / "sd", "MAP": parts / "map.png", "CANNY": parts / "canny"}
    given = []
    for word in words.split():
        name, equals, rest = word.rpartition("=")
        given.append(f"{name}{equals}{places.get(rest, rest)}")
    answer = ask(*given)
    assert answer.status == 2 and said in answer.sentence
    assert not any(tmp_path.iterdir())
