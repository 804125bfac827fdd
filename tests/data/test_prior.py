"""Prior preservation: as many pictures of before beside the new ones, in turn, each with the weight of its loss."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from hwaga import running
from hwaga.data import DataConfig, Joined, open_data
from hwaga.errors import InputError
from hwaga.objectives.denoising import mean_terms


def folder(root, name, count, caption=None):
    place = root / name
    place.mkdir()
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), (i * 9 + len(name) * 20) % 256, np.uint8)).save(place / f"{i:02d}.png")
        if caption:
            (place / f"{i:02d}.txt").write_text(f"{caption} {i}")
    return place


@pytest.fixture
def joined(tmp_path):
    new, before = folder(tmp_path, "new", 3, "my dog"), folder(tmp_path, "before", 7)
    sets = [open_data(DataConfig(source=str(p), size=8, held_out=0.0), "all") for p in (new, before)]
    return Joined(*sets, "a dog", 0.5)


def test_an_epoch_has_every_new_picture_once_and_as_many_of_before_in_turn(joined):
    assert len(joined) == 6
    seen = []
    for epoch in range(7):
        batch = joined.batch(np.arange(6), np.full(6, epoch))
        assert batch.caption == ["my dog 0", "my dog 1", "my dog 2"] + ["a dog"] * 3
        assert batch.extra["weight"].tolist() == [1, 1, 1, 0.5, 0.5, 0.5]
        assert torch.equal(batch.image[:3], joined.new.batch(np.arange(3)).image)
        seen += [tuple(picture.flatten()[:3].tolist()) for picture in batch.image[3:]]
    kinds = {kind: seen.count(kind) for kind in seen}
    assert len(kinds) == 7 and set(kinds.values()) == {3}  # 7 epochs of 3: each of the 7 three times


def test_pictures_come_in_the_order_that_is_asked_for(joined):
    at, epochs = np.array([4, 0, 5, 2]), np.array([1, 1, 2, 2])
    whole = joined.batch(at, epochs)
    for i in range(4):
        one = joined.batch(at[i : i + 1], epochs[i : i + 1])
        assert torch.equal(one.image[0], whole.image[i]) and one.caption[0] == whole.caption[i]
        assert one.extra["weight"][0] == whole.extra["weight"][i]
    assert whole.index.tolist() == at.tolist()


def test_one_kind_alone_in_a_batch_is_no_trouble(joined):
    assert joined.batch([0, 1]).caption == ["my dog 0", "my dog 1"] and joined.batch([3]).caption == ["a dog"]


def test_weights_multiply_the_loss_of_each_picture():
    found = mean_terms({"denoising": torch.tensor([1.0, 2.0, 3.0])}, torch.tensor([1.0, 0.0, 2.0]))
    assert found["denoising"] == pytest.approx(7 / 3)
    system, batch = tiny.ddpm(), tiny.batch(4)
    object.__setattr__(batch, "extra", {"weight": torch.zeros(4)})
    assert system.loss(batch, tiny.Draw())["denoising"] == 0


def test_a_run_learns_both_and_resumes_to_the_bit(tmp_path):
    new, before = folder(tmp_path, "new", 3), folder(tmp_path, "before", 7)
    recipe = {
        "system": "ddpm",
        "model": {
            "network": {"channels": [8, 8], "attention": [False, True], "blocks": 1, "groups": 4}, "process": {"timesteps": 8},
        },
        "data": {
            "source": str(new), "size": 8, "held_out": 0.0, "label": "none", "prior": {"source": str(before), "weight": 0.5},
        },
        "training": {
            "steps": 4, "batch_size": 4, "checkpoint_every": 2, "sample_every": 0, "held_out_every": 0, "dtype": "float32",
        },
    }  # fmt: skip
    whole = running.train(recipe, out=tmp_path / "whole", progress=False)
    part = running.train(recipe, out=tmp_path / "part", overrides={"training.steps": 2}, progress=False)
    again = running.resume(part.folder, {"training.steps": 4}, progress=False)
    plain = running.train(recipe, out=tmp_path / "plain", overrides={"data.prior": None}, progress=False)
    one, two, other = (run.load().network.state_dict() for run in (whole, again, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    gan = {"system": "vae", "data": recipe["data"], "training": recipe["training"]}
    with pytest.raises(InputError, match="data.prior: VAE has no loss a picture that could be weighted"):
        running.train(gan, out=tmp_path / "vae", progress=False)
