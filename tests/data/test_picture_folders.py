"""Folders of pictures: what is used, what is left out and why, captions, classes, splits."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwaga.data import DataConfig, LeftOut, open_data
from hwaga.data.show import grid, summary, summary_text
from hwaga.errors import InputError


def noise(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """A picture unlike any other: large blocks of random colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST)


def small(folder: Path, **more) -> DataConfig:
    return DataConfig(source=str(folder), size=16, **more)


def a_bomb(path: Path, width: int, height: int) -> None:
    """A PNG whose header claims a size that its few bytes do not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    path.write_bytes(content)


@pytest.fixture
def messy(tmp_path) -> Path:
    """Three good pictures among everything that goes wrong."""
    folder = tmp_path / "messy"
    folder.mkdir()
    for i in range(3):
        noise(i).save(folder / f"good{i}.png")
    noise(4, (200, 200)).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    content = (folder / "good0.png").read_bytes()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    (folder / "notes.md").write_text("# notes")
    a_bomb(folder / "bomb.png", 50_000, 50_000)
    Image.new("1", (50_000, 2)).save(folder / "long.png")
    (tmp_path / "outside.png").write_bytes((folder / "good1.png").read_bytes())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_bad_files_among_good_ones_are_left_out_counted_and_named(messy):
    data = open_data(small(messy), "all")
    assert data.names == ["good0.png", "good1.png", "good2.png"]
    reasons = dict(data.left_out)
    assert set(reasons) == {
        "truncated.jpg", "truncated.png", "zero.png", "text.png", "notes.md", "bomb.png", "long.png", "link.png",
        "dangling.png", "pipe.png",
    }  # fmt: skip
    assert reasons["zero.png"] == "empty file"
    assert reasons["text.png"] == reasons["notes.md"] == "not a picture"
    assert reasons["bomb.png"].startswith("too large") and reasons["long.png"].startswith("too large: 50000 x 2 px")
    assert reasons["truncated.jpg"].startswith("broken") and reasons["truncated.png"].startswith("broken")
    assert reasons["link.png"] == "a link that leads out of the folder"
    assert reasons["pipe.png"] == "not a plain file"
    assert data.found == data.used + len(data.left_out) == 13
    assert isinstance(data.left_out[0], LeftOut)


def test_no_source_file_is_changed(messy):
    def state() -> dict:
        return {
            path.name: (path.lstat().st_mtime_ns, path.lstat().st_size, path.is_file() and path.read_bytes())
            for path in messy.iterdir()
        }

    before = state()
    for flip in (False, True):
        open_data(small(messy, flip=flip), "train").batch([0], np.array([1]))
    assert state() == before


def test_a_folder_without_pictures_or_with_broken_ones_only_is_refused(tmp_path):
    with pytest.raises(InputError, match="no pictures in this folder"):
        open_data(small(tmp_path))
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(InputError, match=r"no pictures among its 1 files \(first: a.txt: not a picture\)"):
        open_data(small(tmp_path))
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of its 2 files can be used"):
        open_data(small(tmp_path))


def test_an_unknown_source_and_a_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="give openmoji, digits, a folder of pictures"):
        open_data(DataConfig(source=str(tmp_path / "nothing")))
    noise(0).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="is a file"):
        open_data(DataConfig(source=str(tmp_path / "a.png")))
    with pytest.raises(InputError, match="has train, held-out, all"):
        open_data(small(tmp_path), "combinations")
    with pytest.raises(InputError, match="did you mean 'held-out'"):
        open_data(small(tmp_path), "heldout")


def test_sub_folders_are_classes(tmp_path):
    for i, name in enumerate(["cat/a.png", "cat/b.png", "dog/big/c.png", "dog/small/d.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(tmp_path / name)
    data = open_data(small(tmp_path), "all")
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 0, 1, 1]
    assert open_data(small(tmp_path, label="subgroup"), "all").classes == ("cat", "dog/big", "dog/small")
    assert open_data(small(tmp_path, label="none"), "all").labels is None
    assert data.batch([2]).label.tolist() == [1] and data.captions is None


def test_captions_from_text_files_and_metadata(tmp_path):
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(["a.png", "b.png", "c.png", "sub/d.png"]):
        noise(i).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeff a red\n  kite\x1b ", encoding="utf-8")
    rows = [{"file_name": "b.png", "text": "파란 연"}, {"file_name": "gone.png", "text": "?"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (tmp_path / "sub" / "metadata.csv").write_text('file_name,caption,label\nd.png,"one, two",7\n')
    data = open_data(small(tmp_path), "all")
    assert dict(zip(data.names, data.captions, strict=True)) == {
        "a.png": "a red kite", "b.png": "파란 연", "c.png": "", "sub/d.png": "one, two",
    }  # fmt: skip
    assert data.facts["without a caption"] == 1
    assert data.left_out == [LeftOut("gone.png", "named in the metadata and not there")]
    assert data.classes == ("7", "unlabelled")
    assert data.batch([1]).caption == ["파란 연"]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "sub/../../x.png", "..\\x.png", "C:\\x.png"])
def test_metadata_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
    with pytest.raises(InputError, match="line 1: .*out of the folder"):
        open_data(small(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("metadata.jsonl", '{"file_name": "a.png"}\n{broken', "line 2: not JSON"),
        ("metadata.jsonl", "[1]", "line 1: not a JSON object"),
        ("metadata.jsonl", '{"text": "x"}', "file_name is missing"),
        ("metadata.jsonl", "[" * 100_000, "line 1"),
        ("metadata.csv", "name,text\na.png,x\n", "no column file_name"),
    ],
)
def test_metadata_that_cannot_be_read_are_named_by_line(tmp_path, file, text, sentence):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=sentence):
        open_data(small(tmp_path))


@pytest.fixture
def forty(tmp_path) -> Path:
    folder = tmp_path / "forty"
    folder.mkdir()
    for i in range(40):
        noise(i).save(folder / f"p{i:02d}.png")
    return folder


def test_the_split_is_by_cluster_and_near_duplicates_are_counted(forty):
    for i in range(0, 40, 4):  # ten pictures come again, smaller and as JPEG, and one to the byte
        noise(i).resize((60, 60), Image.Resampling.BICUBIC).save(forty / f"again{i:02d}.jpg", quality=90)
    (forty / "copy.png").write_bytes((forty / "p01.png").read_bytes())
    train, held, everything = (open_data(small(forty, held_out=0.25), s) for s in ("train", "held-out", "all"))
    assert len(train) + len(held) == len(everything) == 51 and 8 <= len(held) <= 13
    assert not set(train.clusters.tolist()) & set(held.clusters.tolist())
    place = everything.places
    for i in range(0, 40, 4):
        assert everything.clusters[place[f"p{i:02d}.png"]] == everything.clusters[place[f"again{i:02d}.jpg"]]
    assert everything.facts["clusters"] == 40 and everything.facts["copies"] >= 1
    assert everything.splits == {"train": len(train), "held-out": len(held)}
    assert open_data(small(forty, held_out=0.25), "held-out").names == held.names


def test_pictures_of_low_contrast_are_not_all_one_cluster(tmp_path):
    for i in range(30):
        picture = np.asarray(noise(i)).astype(float) * 0.06 + 120
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"{i}.png")
    assert open_data(small(tmp_path), "all").facts["clusters"] == 30


def test_no_share_held_out_means_all_is_trained(forty):
    assert len(open_data(small(forty, held_out=0.0), "train")) == 40
    with pytest.raises(InputError, match="the split 'held-out' is empty, as held_out is 0"):
        open_data(small(forty, held_out=0.0), "held-out")


def test_one_picture_is_enough_to_train(tmp_path):
    noise(0).save(tmp_path / "a.png")
    assert len(open_data(small(tmp_path), "train")) == 1
    with pytest.raises(InputError, match="near-duplicates of each other"):
        open_data(small(tmp_path), "held-out")


def test_a_changed_folder_is_read_again_and_an_unchanged_one_is_not(forty, monkeypatch):
    from hwaga.data import packing

    reads = []
    monkeypatch.setattr(packing, "read", lambda *a, **k: reads.append(a) or ORIGINAL(*a, **k))
    first = open_data(small(forty), "all")
    assert len(reads) == 40
    assert open_data(small(forty), "all").fingerprint == first.fingerprint and len(reads) == 40
    noise(99).save(forty / "p00.png")
    os.utime(forty / "p00.png", ns=(1, 1))
    changed = open_data(small(forty), "all")
    assert len(reads) == 80 and changed.fingerprint != first.fingerprint


def ORIGINAL(*arguments, **keywords):  # noqa: N802
    from hwaga.data.pictures import read

    return read(*arguments, **keywords)


def test_work_is_told_of(forty):
    told = []
    open_data(small(forty, resize="pad"), "all", progress=lambda done, total, what: told.append((done, total, what)))
    assert told[-1] == (40, 40, "reading pictures")


def test_links_and_folders_inside_the_folder_are_used(tmp_path):
    (tmp_path / "real").mkdir()
    noise(0).save(tmp_path / "real" / "a.png")
    noise(1).save(tmp_path / "b.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "linked folder").symlink_to(tmp_path / "real")
    data = open_data(small(tmp_path), "all")
    assert data.names == ["b.png", "linked.png", "real/a.png"]
    assert data.left_out == [LeftOut("linked folder", "a link to a folder")]


def test_file_names_of_any_bytes_are_used(tmp_path):
    noise(0).save(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    noise(1).save(tmp_path / "two\nlines.png")
    (tmp_path / "\x1b.png").write_bytes(b"")
    data = open_data(small(tmp_path), "all")
    assert sorted(map(os.fsencode, data.names)) == [b"two\nlines.png", b"\xff\xfe.png"]
    assert data.left_out == [LeftOut("\x1b.png", "empty file")] and len(data.fingerprint) == 64
    assert grid(data, 2).size[0] > 100
    summary_text(summary(data)).encode("utf-8")
