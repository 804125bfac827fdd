"""Tar shards and data sets of the hub: the same pictures, captions and classes as a folder; nothing is unpacked."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwaga.data import DataConfig, open_data
from hwaga.errors import InputError


def noise(seed: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((24, 24), Image.Resampling.NEAREST)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    noise(seed).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def small(source: object, **more) -> DataConfig:
    return DataConfig(source=str(source), size=24, held_out=0.0, **more)


@pytest.fixture
def two(tmp_path) -> Path:
    """Two shards of three samples: a caption and a class beside some, an object beside one."""
    tar(tmp_path / "x-000.tar", {
        "a/0.png": png(0), "a/0.txt": b"a red one\n", "a/0.cls": b"red", "a/1.png": png(1), "a/1.cls": b"blue",
    })  # fmt: skip
    tar(tmp_path / "x-001.tar", {
        "b/2.seg.png": png(2), "b/2.json": json.dumps({"text": "two", "label": 7}).encode(), "b/3.txt": b"no picture",
    })  # fmt: skip
    return tmp_path


def test_shards_give_the_pictures_captions_and_classes_of_a_folder(two):
    data = open_data(small(two / "x-{000..001}.tar"), "all")
    assert data.names == ["a/0", "a/1", "b/2"] and data.found == 3 and not data.left_out
    assert data.captions == ["a red one", "", "two"]
    assert [data.classes[i] for i in data.labels] == ["red", "blue", "7"]
    for i in range(3):
        assert (data.pixels([i])[0].transpose(1, 2, 0) == np.asarray(noise(i))).all()


def test_a_star_names_the_same_shards_as_a_range(two):
    assert open_data(small(two / "x-*.tar"), "all").names == open_data(small(two / "x-{000..001}.tar"), "all").names


def test_members_that_are_no_pictures_are_named_and_nothing_leaves_the_archive(tmp_path):
    path = tar(tmp_path / "x.tar", {"0.png": png(0), "1.png": b"no picture", "../../out.png": png(2), "3.png": b""})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("4.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(p.name for p in tmp_path.parent.iterdir())
    data = open_data(small(path), "all")
    assert data.names == ["../../out", "0"] and data.found == data.used + len(data.left_out) == 5
    assert {item.name: item.reason for item in data.left_out} == {
        "1": "not a picture", "3": "empty file", "4.png": "not a plain file",
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: f / "none.tar", "there is no shard"),
        (lambda f: f / "none-{000..002}.tar", "there is no shard"),
        (lambda f: f / "none-{005..002}.tar", "no range"),
        (lambda f: f / "none-*.tar", "no shard has such a name"),
        (lambda f: tar(f / "empty.tar", {}), "no pictures in these shards"),
        (lambda f: tar(f / "gz.tar", {"0.png": png(0)}, "w:gz"), "compressed"),
        (lambda f: (f / "text.tar", (f / "text.tar").write_text("words " * 500))[0], "not a tar file"),
        (lambda f: tar(f / "json.tar", {"0.png": png(0), "0.json": b"{"}), "is not JSON"),
    ],
)
def test_shards_that_cannot_be_used_are_refused_in_one_sentence(tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        open_data(small(make(tmp_path)), "all")


def test_a_shard_cut_short_is_refused(two):
    path = two / "x-000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="damaged"):
        open_data(small(path), "all")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set on the disk in a form of the hub, read without any connection."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    rows = {
        "picture": [
            {"bytes": png(0), "path": None},
            {"bytes": b"no picture", "path": None},
            {"bytes": png(2), "path": None},
        ],
        "caption": ["one", "two", None],
        "label": [1, 0, 1],
    }
    features = datasets.Features({
        "picture": datasets.Image(), "caption": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"]),
    })  # fmt: skip
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_of_the_hub_gives_its_pictures_captions_and_classes(hub):
    data = open_data(small(f"hf:{hub}"), "all")
    assert data.names == ["00000000", "00000002"] and data.found == 3
    assert data.captions == ["one", ""] and [data.classes[i] for i in data.labels] == ["dog", "dog"]
    assert [(item.name, item.reason) for item in data.left_out] == [("00000001", "not a picture")]
    assert (data.pixels([1])[0].transpose(1, 2, 0) == np.asarray(noise(2))).all()


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_without_pictures_says_what_columns_it_has(hub):
    import datasets

    other = hub.parent / "other"
    other.mkdir()
    datasets.Dataset.from_dict({"words": ["a", "b"]}).to_parquet(str(other / "train.parquet"))
    with pytest.raises(InputError, match="no column of pictures; its columns are words"):
        open_data(small(f"hf:{other}"), "all")
