"""The packed cache: made once, whole, by any number of processes; damage is repaired; old content never served."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hwaga.data import DataConfig, open_data
from hwaga.data.cache import Writer, cache_folder, cached
from hwaga.errors import InputError, WorkError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HWAGA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Packs three pictures and counts how often it is asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> dict:
        self.calls += 1
        with Writer(folder / "pixels.npy", (3, 4, 5)) as writer:
            writer.append(np.full((1, 3, 4, 5), 7, np.uint8))
            writer.append(np.arange(120, dtype=np.uint8).reshape(2, 3, 4, 5))
        return {"names": ["a", "b", "c"]}


def test_an_entry_is_built_once_and_mapped(cache):
    build = Builder()
    first, second = cached("kind", {"k": 1}, build), cached("kind", {"k": 1}, build)
    assert build.calls == 1
    assert isinstance(second.pixels, np.memmap) and second.pixels.shape == (3, 3, 4, 5)
    assert second.pixels[2].max() == 119 and second.facts == {"names": ["a", "b", "c"]}
    assert first.sha256 == second.sha256
    cached("kind", {"k": 2}, build)
    assert build.calls == 2


def test_the_packed_file_is_plain_numpy(cache):
    cached("kind", {}, Builder())
    (file,) = cache.glob("kind-*/pixels.npy")
    assert np.load(file, allow_pickle=False).shape == (3, 3, 4, 5)


def _cut(folder: Path) -> None:
    os.truncate(folder / "pixels.npy", (folder / "pixels.npy").stat().st_size - 1)


def _flip(folder: Path) -> None:
    content = bytearray((folder / "pixels.npy").read_bytes())
    content[200] ^= 1
    (folder / "pixels.npy").write_bytes(content)


def _other_facts(folder: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"a"', '"z"'))


def _no_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def _rubbish(folder: Path) -> None:
    (folder / "index.json").write_bytes(b"\xff\x00{")


def _empty(folder: Path) -> None:
    (folder / "pixels.npy").write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _flip, _other_facts, _no_index, _rubbish, _empty])
def test_a_damaged_entry_is_made_anew(cache, damage):
    build = Builder()
    cached("kind", {}, build)
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    damage(folder)
    entry = cached("kind", {}, build)
    assert build.calls == 2 and entry.facts["names"] == ["a", "b", "c"] and entry.pixels[0].max() == 7
    cached("kind", {}, build)
    assert build.calls == 2


def test_what_a_killed_builder_left_is_ignored_and_removed(cache):
    cached("kind", {}, Builder())
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    rest = folder.with_name(f".{folder.name}.part-killed")
    folder.rename(rest)
    build = Builder()
    cached("kind", {}, build)
    assert build.calls == 1 and folder.is_dir() and not rest.exists()


def test_a_builder_that_fails_leaves_nothing(cache):
    def fails(folder: Path) -> dict:
        (folder / "pixels.npy").write_bytes(b"half")
        raise WorkError("no space")

    with pytest.raises(WorkError):
        cached("kind", {}, fails)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


_TWO = """
import sys
from hwaga.data import DataConfig, open_data
data = open_data(DataConfig(size=32), "all")
print(data.fingerprint)
"""


def test_two_processes_may_build_the_same_set_at_once(cache):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _TWO]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    prints = [process.communicate(timeout=300)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert prints[0] == prints[1] == open_data(DataConfig(size=32), "all").fingerprint
    assert not list(cache.glob("*.part-*")) and not list(cache.glob(".*.part-*"))


def _count_builds(log: str) -> None:
    def build(folder: Path) -> dict:
        with open(log, "a") as file:
            file.write("built\n")
        return Builder()(folder)

    cached("kind", {"many": True}, build)


def test_many_processes_build_an_entry_only_once(cache, tmp_path):
    log = str(tmp_path / "log")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_builds, args=(log,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert Path(log).read_text() == "built\n"


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HWAGA_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HWAGA_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "hwaga"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "hwaga"


def test_a_cache_folder_that_cannot_be_made_is_named_with_the_way_out(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HWAGA_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set HWAGA_CACHE"):
        cached("kind", {}, Builder())


def test_the_index_is_readable_and_says_what_the_entry_is(cache):
    cached("kind", {"size": 32}, Builder())
    (file,) = cache.glob("kind-*/index.json")
    body = json.loads(file.read_text().split("\n", 1)[1])
    assert body["format"] == 1 and body["key"] == {"size": 32}
