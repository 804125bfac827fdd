"""A picture's record: into the file and back, names that other programs read, and no half file ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from hwaga import provenance
from hwaga.errors import InputError


def picture(shade: int = 100, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, (shade, 10, 200))


def made(index: int = 0, **more: object) -> provenance.Record:
    call = {"n": 3, "seed": 7, "steps": 20, "sampler": "ddim", "sampler_options": {"eta": 0.5}, "guidance_scale": 3.0}
    own = {"index": index, "size": (4, 6), "model_hash": "ab" * 32, "prompt": "빨간 하트, a heart"}
    return provenance.record("ddpm", "openmoji/ddpm", call | more, **own)


def test_a_record_comes_back_from_the_file_as_it_was(tmp_path: Path) -> None:
    image = provenance.attach(picture(), made(index=2))
    assert provenance.save_images([image], tmp_path / "a.png") == [tmp_path / "a.png"]
    assert provenance.read(tmp_path / "a.png") == made(index=2)
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.tobytes() == image.tobytes()


def test_the_json_has_what_a_stranger_looks_for(tmp_path: Path) -> None:
    provenance.save_images([provenance.attach(picture(), made(index=2))], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        record = json.loads(stored.text["hwaga"])
    wanted = {"system": "ddpm", "model": "openmoji/ddpm", "prompt": "빨간 하트, a heart", "seed": 7, "sampler": "ddim"}
    wanted |= {"steps": 20, "index": 2, "guidance_scale": 3.0, "size": [4, 6], "device": "cpu", "dtype": "float32"}
    assert {name: record.get(name) for name in wanted} == wanted
    assert record["version"] == record["versions"]["hwaga"] and record["versions"]["torch"] == torch.__version__


def test_the_parameters_line_has_the_names_that_other_programs_read(tmp_path: Path) -> None:
    record = made(negative_prompt="blurry", strength=0.5)
    provenance.save_images([provenance.attach(picture(), record)], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        first, second, third = stored.text["parameters"].split("\n")
    assert first == "빨간 하트, a heart"
    assert second == "Negative prompt: blurry"
    assert third.startswith("Steps: 20, Sampler: ddim, CFG scale: 3.0, Seed: 7, Size: 6x4, Model: openmoji/ddpm")
    assert "Model hash: ababababab" in third and "Denoising strength: 0.5" in third


def test_a_value_with_a_comma_is_quoted_in_the_parameters_line() -> None:
    record = provenance.record("ddpm", "/pictures/a, b: c", {"seed": 1})
    assert 'Model: "/pictures/a, b: c"' in provenance.parameters(record)


def test_a_folder_holds_the_pictures_and_nothing_else(tmp_path: Path) -> None:
    images = [provenance.attach(picture(shade), made(i)) for i, shade in enumerate((1, 2, 3))]
    files = provenance.save_images(images, tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == files and len(files) == 3
    assert [provenance.read(file)["index"] for file in files] == [0, 1, 2]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_grid_carries_the_record_of_the_call(tmp_path: Path) -> None:
    images = [provenance.attach(picture(shade), made(i)) for i, shade in enumerate((1, 2, 3))]
    provenance.save_images(images, tmp_path / "grid.png")
    record = provenance.read(tmp_path / "grid.png")
    assert record["call"] == made()["call"] and record["pictures"] == 3 and "index" not in record
    with Image.open(tmp_path / "grid.png") as stored:
        assert stored.size == (2 * 6 + provenance.GAP, 2 * 4 + provenance.GAP)
        assert stored.getpixel((0, 0)) == (1, 10, 200) and stored.getpixel((8, 6)) == (255, 255, 255)


def test_a_grid_of_different_calls_carries_no_record(tmp_path: Path) -> None:
    images = [provenance.attach(picture(), made(seed=seed)) for seed in (1, 2)]
    provenance.save_images(images, tmp_path / "grid.png")
    with pytest.raises(InputError, match="no record"):
        provenance.read(tmp_path / "grid.png")


def test_a_tensor_is_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    tensor = torch.full((1, 3, 2, 2), 100.6 / 255)
    provenance.save_images(tensor, tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as stored:
        assert stored.getpixel((0, 0)) == (101, 101, 101)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "empty"),
        (["a.png"], "holds a str"),
        (torch.zeros(2, 5, 4, 4), r"shape \(2, 5, 4, 4\)"),
        (torch.full((1, 3, 2, 2), float("nan")), "not finite"),
    ],
)
def test_what_is_no_picture_is_refused_and_nothing_written(images: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        provenance.save_images(images, tmp_path / "new" / "a.png")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="holds something already"):
        provenance.save_images([picture()], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["a.jpg", "a.WEBP", "file.txt/inner.png"])
def test_a_place_where_no_png_can_be_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("a file")
    with pytest.raises(InputError):
        provenance.save_images([picture()], tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    provenance.save_images([picture(1)], target)
    before = target.read_bytes()

    def half(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(before[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(Exception, match="no space left"):
        provenance.save_images([picture(2)], target)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_what_the_file_cannot_hold_is_noted_as_such() -> None:
    call = provenance.record("ddpm", "m", {"noise": {"noise": torch.zeros(2, 3)}, "image": Path("/a/b.png")})["call"]
    assert provenance.not_stored(call["noise"]) and call["noise"]["noise"]["shape"] == [2, 3]
    assert call["image"] == "/a/b.png" and not provenance.not_stored(call["image"])


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_png_has_no_record(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match="not a readable picture"):
        provenance.read(tmp_path / "x.png")


@pytest.mark.parametrize("text", ["{", "[1]", '{"format": 1}', '{"format": 99, "call": {}}'])
def test_a_record_that_is_none_of_ours_is_refused(text: str, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("hwaga", text)
    picture().save(tmp_path / "x.png", pnginfo=chunks)
    with pytest.raises(InputError, match="record"):
        provenance.read(tmp_path / "x.png")
