"""Aspect buckets: which sizes there are, which picture goes where, batches of one size, an order that resumes at any step."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hwaga import running
from hwaga.data import DataConfig, bucketed, open_data
from hwaga.data.buckets import BucketOrder, nearest, sizes
from hwaga.errors import InputError

SHAPES = [(40, 40)] * 5 + [(30, 60)] * 4 + [(64, 40)] * 3 + [(41, 40)]  # (height, width)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SHAPES):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(root / f"{i:02d}.png")
        (root / f"{i:02d}.txt").write_text(f"picture {i}")
    return root


def test_sizes_have_about_the_area_and_sides_that_are_multiples():
    found = sizes(512, 64)
    assert (512, 512) in found and (448, 576) in found and len(set(found)) == len(found)
    for height, width in found:
        assert height % 64 == width % 64 == 0 and height * width <= 512**2
        assert 0.5 * 512**2 < height * width and max(height, width) <= 4 * min(height, width)
    assert {(w, h) for h, w in found} >= {(512, 512), (576, 448)}
    with pytest.raises(InputError, match="data.buckets=64"):
        sizes(32, 64)


def test_a_picture_goes_where_its_aspect_is_nearest():
    among = [(16, 64), (32, 32), (64, 16), (24, 40)]
    shapes = np.array([(100, 100), (10, 41), (300, 70), (60, 100), (90, 100)])
    assert nearest(shapes, among).tolist() == [1, 0, 2, 3, 1]


def test_every_picture_is_there_once_in_its_own_shape(source):
    data = open_data(DataConfig(source=str(source), size=32, held_out=0.0), "all")
    found = bucketed(data, 8)
    assert len(found) == len(data) == len(SHAPES)
    assert sorted(text for part in found.parts for text in part.captions) == sorted(data.captions)
    shapes = {text: part.size for part in found.parts for text in part.captions}
    assert shapes["picture 0"] == shapes["picture 12"] == (32, 32)
    assert shapes["picture 5"][1] > shapes["picture 5"][0] and shapes["picture 9"][0] > shapes["picture 9"][1]
    wide = next(part for part in found.parts if "picture 5" in part.captions)
    batch = found.batch([sum(len(p) for p in found.parts[: found.parts.index(wide)])])
    assert batch.image.shape[2:] == wide.size and batch.caption == [wide.captions[0]]
    with pytest.raises(ValueError, match="sizes in one batch"):
        found.batch(np.arange(len(found)))
    again = bucketed(open_data(DataConfig(source=str(source), size=32, held_out=0.0), "all"), 8)
    assert again.fingerprint == found.fingerprint


def test_an_epoch_has_every_picture_and_batches_of_one_part():
    lengths, size = (5, 4, 3, 1), 2
    order, seen = BucketOrder(lengths, size, 0), []
    starts = np.cumsum([0, *lengths])
    for step in range(8):  # 3 + 2 + 2 + 1 batches
        at, epochs = order.at(step)
        parts = np.searchsorted(starts, at, side="right")
        assert len(set(parts.tolist())) == 1 and set(epochs.tolist()) == {0} and len(at) == size
        seen += at.tolist()
    assert set(seen) == set(range(13)) and len(seen) == 16
    assert order.at(8)[1].tolist() == [1, 1]
    assert [order.at(k)[0].tolist() for k in range(8)] != [order.at(8 + k)[0].tolist() for k in range(8)]
    assert order.at(5)[0].tolist() == BucketOrder(lengths, size, 0).at(5)[0].tolist()
    assert BucketOrder(lengths, size, 1).at(0)[0].tolist() != order.at(0)[0].tolist() or (
        BucketOrder(lengths, size, 1).at(1)[0].tolist() != order.at(1)[0].tolist()
    )


RECIPE = {
    "system": "ddpm",
    "model": {
        "network": {"channels": [8, 8], "attention": [False, True], "blocks": 1, "groups": 4}, "process": {"timesteps": 8},
    },
    "training": {
        "steps": 6, "batch_size": 2, "checkpoint_every": 3, "sample_every": 0, "held_out_pictures": 2, "dtype": "float32",
    },
}  # fmt: skip


def test_a_resumed_run_in_buckets_equals_the_uninterrupted(source, tmp_path):
    full = {**RECIPE, "data": {"source": str(source), "size": 16, "label": "none", "buckets": 4}}
    whole = running.train(full, out=tmp_path / "whole", progress=False)
    part = running.train(full, out=tmp_path / "part", overrides={"training.steps": 3}, progress=False)
    again = running.resume(part.folder, {"training.steps": 6}, progress=False)
    one, two = (load_file(run.folder / "model" / "network" / "model.safetensors") for run in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.source": "digits"}, "all pictures of 'digits' have one shape"),
        ({"data.size": [16, 24]}, "is no square"),
        ({"data.random_crop": True}, "data.random_crop=true: one or the other"),
        ({"system": "vae", "model": {}}, "with VAE, which learns pictures of one size"),
    ],
)
def test_what_has_no_buckets_is_refused(changes, words, source, tmp_path):
    full = {**RECIPE, "data": {"source": str(source), "size": 16, "label": "none", "buckets": 4}}
    with pytest.raises(InputError, match=words):
        running.train(full, out=tmp_path / "run", overrides=changes, progress=False)
    assert not (tmp_path / "run").exists()
