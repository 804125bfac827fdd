"""Whatever is wrong with what a user gives: exit status 2, one sentence that names it, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_tools import RECIPE, Ask, tree
from PIL import Image
from safetensors.torch import load_file, save_file

# words of the command (MODEL and PICTURES stand for a good model and a good folder); what the sentence must hold
TABLE: list[tuple[str, tuple[str, ...]]] = [
    # usage
    ("smaple", ("smaple", "sample")),
    ("sample MODEL --stepz 3", ("--stepz",)),
    ("sample MODEL --strength much", ("--strength",)),
    ("sample MODEL --n 2.5", ("--n",)),
    ("sample", ("MODEL", "--from")),
    ("train", ("RECIPE", "--resume")),
    ("evaluate MODEL", ("--data",)),
    ("compare", ("RUN_OR_MODEL",)),
    ("convert MODEL dest", ("--to",)),
    ("data shw digits", ("shw",)),
    # where the model is
    ("sample nowhere", ("nowhere",)),
    ("sample openmoji/nothing", ("openmoji/nothing",)),
    ("sample PICTURES", ("model.json",)),
    ("sample MODEL --weights best", ("best",)),
    ("sample MODEL --device cuda:99", ("cuda",)),
    ("sample MODEL --dtype float7", ("float7", "float32")),
    ("sample MODEL --memory lots", ("lots", "8GB")),
    ("sample MODEL --memory 1KB", ("1KB",)),
    ("sample MODEL --component brain=MODEL", ("brain", "network")),
    ("sample MODEL --component network", ("--component", "NAME=VALUE")),
    ("sample MODEL --lora nothing.safetensors", ("LoRA",)),
    # what is asked of it
    ("sample MODEL --steps 0", ("steps=0",)),
    ("sample MODEL --steps -5", ("steps=-5",)),
    ("sample MODEL --steps many", ("--steps", "many")),
    ("sample MODEL --steps 9", ("steps=9", "8")),
    ("sample MODEL --n 0", ("n=0",)),
    ("sample MODEL --n -1", ("n=-1",)),
    ("sample MODEL --seed -1", ("seed=-1",)),
    ("sample MODEL --size 0", ("--size",)),
    ("sample MODEL --size -8", ("--size",)),
    ("sample MODEL --size 9x8", ("height 9", "8 and 10")),
    ("sample MODEL --size 8x8x8", ("--size",)),
    ("sample MODEL --sampler dpm", ("sampler='dpm'", "ddim")),
    ("sample MODEL --sampler ddim --sampler-options speed=3", ("speed", "eta")),
    ("sample MODEL --sampler ddim --sampler-options eta", ("--sampler-options", "NAME=VALUE")),
    ("sample MODEL --prompt heart", ("prompt=", "label=")),
    ("sample MODEL --negative-prompt ugly", ("negative_prompt=",)),
    ("sample MODEL --label 3", ("label=3", "without labels")),
    ("sample MODEL --guidance-scale 3", ("guidance_scale=3",)),
    ("sample MODEL --guidance-scale high", ("--guidance-scale", "high")),
    ("sample MODEL --mask PICTURES/picture000.png", ("mask=",)),
    ("sample MODEL --image nowhere.png", ("image=",)),
    ("sample MODEL --control PICTURES/picture000.png", ("control=",)),
    ("sample MODEL --strength 0.5", ("strength=",)),
    ("sample MODEL --set temperature=1", ("temperature",)),
    ("sample MODEL --set steps=3", ("--steps",)),
    ("sample MODEL --set strip=0", ("strip=0",)),
    ("sample MODEL --noise nowhere.safetensors", ("--noise",)),
    ("sample MODEL --noise PICTURES/picture000.png", ("--noise", "safetensors")),
    # where it goes
    ("sample MODEL --out a.jpg", ("a.jpg", ".png")),
    ("sample MODEL --out PICTURES", ("holds something",)),
    ("sample MODEL --out PICTURES/picture000.png/x.png", ("picture000.png",)),
    ("sample MODEL --out .", ("holds something",)),
    # painting again
    ("sample --from nowhere.png", ("nowhere.png",)),
    ("sample --from PICTURES/picture000.png", ("no record",)),
    ("sample --from PICTURES/broken.png", ("broken.png",)),
    # data
    ("data show nowhere", ("nowhere", "openmoji")),
    ("data show PICTURES --split test", ("test", "train")),
    ("data show PICTURES --split combinations", ("combinations",)),
    ("data show PICTURES --size 0", ("--size",)),
    ("data show PICTURES --size 99999", ("data.size", "8192")),
    ("data show PICTURES --set flop=true", ("flop", "flip")),
    ("data show PICTURES --set held_out=0.9", ("held_out",)),
    ("data show PICTURES --set size=8", ("--size",)),
    ("data show PICTURES --out grid.jpg", (".png",)),
    ("data show BROKEN", ("BROKEN",)),
    ("data show EMPTY", ("EMPTY",)),
    # training
    ("train nothing", ("nothing", "openmoji/ddpm")),
    ("train openmoji/dppm", ("openmoji/dppm", "openmoji/ddpm")),
    ("train tiny.yaml --set training.stepz=3", ("training.stepz", "training.steps")),
    ("train tiny.yaml --set training.steps=0", ("training.steps", "0")),
    ("train tiny.yaml --set training.steps=some", ("training.steps", "some")),
    ("train tiny.yaml --set training.learning_rate=-1", ("learning_rate",)),
    ("train tiny.yaml --set system=dppm", ("dppm", "ddpm")),
    ("train tiny.yaml --set model.network.channels=[3]", ("channels",)),
    ("train tiny.yaml --set model.network.chanels=[8]", ("chanels", "channels")),
    ("train tiny.yaml --set data.size=7", ("7",)),
    ("train tiny.yaml --set data.source=nowhere", ("nowhere",)),
    ("train tiny.yaml --set steps", ("--set", "NAME=VALUE")),
    ("train tiny.yaml --data BROKEN", ("BROKEN",)),
    ("train tiny.yaml --data EMPTY", ("EMPTY",)),
    ("train tiny.yaml --resume MODEL", ("--resume", "RECIPE")),
    ("train --resume nowhere", ("nowhere", "no run")),
    ("train --resume MODEL", ("no run",)),
    ("train --resume MODEL --dry-run", ("--dry-run",)),
    ("train MODEL/model.json", ("model.json",)),
    ("train PICTURES/picture000.png", ("picture000.png",)),
    ("train tiny.yaml --set model.network.channels=[1048576,1048576]", ("TiB", "smaller")),
    # measuring
    ("evaluate MODEL --data nowhere", ("nowhere",)),
    ("evaluate MODEL --data digits --metrics fud", ("fud", "fid")),
    ("evaluate MODEL --data digits --metrics ,", ("--metrics",)),
    ("evaluate MODEL --data digits --split tost", ("tost",)),
    ("evaluate MODEL --data digits --n 1", ("--n",)),
    ("evaluate MODEL --data digits --json a.txt", (".json",)),
    ("evaluate MODEL --data digits --features nowhere", ("nowhere",)),
    ("evaluate MODEL --data digits --steps 99", ("steps=99",)),
    ("evaluate PICTURES --data digits --steps 9", ("--steps", "folder of pictures")),
    ("evaluate EMPTY --data digits", ("EMPTY",)),
    ("evaluate nowhere --data digits", ("nowhere",)),
    ("compare MODEL nowhere", ("nowhere",)),
    ("compare EMPTY", ("EMPTY",)),
    ("compare PICTURES", ("--data",)),
    ("compare MODEL --out report.pdf", (".html",)),
    ("compare MODEL --metrics speed", ("speed",)),
    # converting
    ("convert MODEL new --to onnx", ("onnx", "diffusers")),
    ("convert MODEL PICTURES --to diffusers", ("exists",)),
    ("convert nowhere new --to diffusers", ("nowhere",)),
    # demo
    ("demo --out PICTURES", ("no demo",)),
    ("demo --out PICTURES/picture000.png", ("is a file",)),
    ("demo --minutes 0", ("--minutes",)),
    ("demo --model nowhere --recipe tiny.yaml", ("nowhere",)),
    ("demo --recipe nowhere", ("nowhere",)),
]


@pytest.mark.parametrize(("words", "named"), TABLE, ids=[words for words, _ in TABLE])
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(
    words: str, named: tuple[str, ...], ask: Ask, model: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (tmp_path / "BROKEN" / "b.jpg").write_bytes(b"")
    before = tree(tmp_path), tree(model), tree(pictures)
    places = {"MODEL": model, "PICTURES": pictures}
    said = ask(*(_placed(word, places) for word in words.split()))
    assert said.status == 2, (said.status, said.err)
    for part in named:
        assert part in said.sentence, said.sentence
    assert len(said.sentence) < 600
    assert (tree(tmp_path), tree(model), tree(pictures)) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["BROKEN", "EMPTY", "tiny.yaml"]


def _placed(word: str, places: dict[str, Path]) -> str:
    for name, place in places.items():
        for start in (name, f"brain={name}"):
            if word == start or word.startswith(start + "/"):
                return word.replace(name, str(place))
    return word


def test_a_run_is_not_written_into_another_or_over_a_file(ask: Ask, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("system: ddpm\n")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for place, named in (("run", "another run"), ("file", "is a file")):
        said = ask("train", recipe, "--out", place)
        assert said.status == 2 and named in said.sentence
        assert tree(tmp_path) == before


# -------------------------------------------------------------------------------------------- models that are not whole


def test_damaged_and_hostile_models_are_refused(ask: Ask, model: Path, tmp_path: Path) -> None:
    """Each spoils one thing in a copy of a good model; none is executed, and none paints."""
    proof = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return (open, (str(proof), "w"))

    def card(folder: Path, **changed: object) -> None:
        path = folder / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    def cut(folder: Path) -> None:
        file = folder / "network" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    def reshaped(folder: Path) -> None:
        file = folder / "network" / "model.safetensors"
        tensors = load_file(file)
        first = sorted(tensors)[0]
        save_file(tensors | {first: torch.zeros(3)}, file)
        unhashed(folder)

    def missing(folder: Path) -> None:
        file = folder / "network" / "model.safetensors"
        tensors = load_file(file)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, file)
        unhashed(folder)

    def unhashed(folder: Path) -> None:
        parts = json.loads((folder / "model.json").read_text())["components"]
        card(folder, components={name: {} for name in parts})

    def pickled(folder: Path) -> None:
        (folder / "network" / "model.safetensors").unlink()
        torch.save(Hostile(), folder / "network" / "model.safetensors")
        unhashed(folder)

    def huge(folder: Path) -> None:
        config = json.loads((folder / "model.json").read_text())["config"]
        config["network"]["channels"] = [2**20, 2**20]
        config["network"]["groups"] = 4
        card(folder, config=config)

    def outside(folder: Path) -> None:
        card(folder, components={"network": {"source": "../../etc", "sha256": "0"}})

    def newer(folder: Path) -> None:
        card(folder, format=99)

    def nameless(folder: Path) -> None:
        card(folder, system="painter")

    def no_json(folder: Path) -> None:
        (folder / "model.json").write_text("{")

    spoilers = (cut, reshaped, missing, pickled, huge, outside, newer, nameless, no_json)
    for spoil in spoilers:
        place = tmp_path / spoil.__name__
        shutil.copytree(model, place)
        spoil(place)
        said = ask("sample", spoil.__name__, "--out", "a.png")
        assert said.status == 2 and len(said.sentence) > 20, (spoil.__name__, said)
        assert not (tmp_path / "a.png").exists() and not proof.exists()


def test_bad_files_among_good_ones_are_named_and_left_out(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(pictures, folder)
    Image.new("CMYK", (8, 8)).save(folder / "cmyk.jpg")
    Image.new("LA", (8, 8)).save(folder / "grey.png")
    (folder / "text.png").write_text("not a picture")
    before = tree(folder)
    said = ask("data", "show", "mixed", "--size", "8", "--split", "all", "--out", "grid.png")
    assert said.status == 0 and said.out.splitlines()[-1] == "grid: grid.png"
    for name in ("empty.png", "broken.png", "text.png"):
        assert name in said.out
    assert "found 125 = used 122 + left out 3" in said.out
    assert tree(folder) == before and (tmp_path / "grid.png").is_file()
