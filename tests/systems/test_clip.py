"""CLIP as a part of the systems: how it learns, that transformers loads its folder, what it lends, what it refuses."""

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import hwaga
from hwaga import running
from hwaga.errors import InputError
from hwaga.saving import convert, save
from hwaga.systems import find, systems

RUN = {
    "system": "clip",
    "model": {
        "network": {
            "image": {"patch": 4, "width": 16, "layers": 1, "heads": 2},
            "text": {"width": 16, "layers": 1, "heads": 2, "positions": 32, "projection": 8},
        },
        "words": 30,
    },
    "data": {"source": "digits", "size": 8, "label": "none", "language": ["en", "ko"]},
    "training": {
        "steps": 4, "batch_size": 8, "checkpoint_every": 2, "dtype": "float32", "held_out_pictures": 16, "best": "missed",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny.clip()


def vectors(model, batch):
    with torch.no_grad():
        return model.clip.image_features(batch.image), model.clip.text_features(model.tokens(batch.caption))


# ------------------------------------------------------------------------------------------------------- how it learns


def test_overfits_one_batch_until_every_caption_finds_its_picture():
    model, batch = tiny.clip(), tiny.captioned()
    optimizer, losses = torch.optim.AdamW(model.clip.parameters(), 2e-3), []
    for _ in range(60):
        terms = model.loss(batch, tiny.Draw())
        terms["contrast"].backward()
        losses.append(terms["contrast"].item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.05 * losses[0]
    assert model.held_out(batch, tiny.Draw())["missed"].sum() == 0


def test_gradient_of_the_loss_reaches_every_parameter():
    model = tiny.clip(views={"share": 1.0})
    model.loss(tiny.captioned(), tiny.Draw())["contrast"].backward()
    assert [n for n, p in model.clip.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_relatives_are_wrong_answers_or_spared(model):
    batch = tiny.captioned()
    object.__setattr__(batch, "cluster", torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    wrong = model.loss(batch, tiny.Draw())["contrast"]
    spared = tiny.clip(relatives="spared").loss(batch, tiny.Draw())["contrast"]
    assert spared < wrong  # one wrong answer fewer each
    object.__setattr__(batch, "caption", [*batch.caption[:7], batch.caption[0].upper()])
    meaning = model.meaning(batch)
    assert meaning[7] == meaning[0] and len(meaning.unique()) == 7  # the same words are never wrong


def test_a_picture_without_captions_is_refused(model):
    with pytest.raises(InputError, match="learns from captions, and the data have none"):
        model.loss(tiny.batch(), tiny.Draw())
    with pytest.raises(InputError, match="learns from captions, and the data have none"):
        find("clip").taught({}, [])


def test_a_resumed_run_equals_the_uninterrupted_and_leaves_no_samples(tmp_path):
    whole = running.train(RUN, out=tmp_path / "whole", progress=False)
    part = running.train(RUN, out=tmp_path / "part", overrides={"training.steps": 2}, progress=False)
    again = running.resume(part.folder, {"training.steps": 4}, progress=False)
    weights = [load_file(run.folder / "model" / "model.safetensors") for run in (whole, again)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out.missed" in row for row in rows) and not (whole.folder / "samples").exists()
    scores = hwaga.evaluate(whole.folder, "digits", metrics=("retrieval",))
    assert {"picture_to_text_1", "text_to_picture_10"} <= scores.values.keys() and scores.card["system"] == "clip"
    with pytest.raises(InputError, match="paints nothing; it can be measured by retrieval"):
        hwaga.evaluate(whole.folder, "digits", metrics=("fid",))


def test_accumulation_is_refused_as_the_loss_compares_the_batch(tmp_path):
    with pytest.raises(InputError, match="loss over the whole batch"):
        running.train(RUN, out=tmp_path / "run", overrides={"training.accumulation": 2}, progress=False)


# ------------------------------------------------------------------------------------------------------------- folders


def test_transformers_loads_its_folder_and_says_the_same(model, tmp_path):
    from transformers import CLIPModel, CLIPTokenizer

    save(model, tmp_path / "clip")
    theirs, words = (c.from_pretrained(tmp_path / "clip") for c in (CLIPModel, CLIPTokenizer))
    theirs, batch = theirs.eval(), tiny.captioned()
    tokens = words(list(batch.caption), padding=True, return_tensors="pt")
    with torch.no_grad():
        said = theirs(input_ids=tokens["input_ids"], pixel_values=batch.image)
    images, texts = (torch.nn.functional.normalize(x, dim=1) for x in vectors(model, batch))
    assert torch.equal(tokens["input_ids"], model.tokens(batch.caption))
    assert (said.image_embeds - images).abs().max() < 1e-5 and (said.text_embeds - texts).abs().max() < 1e-5
    assert abs(theirs.logit_scale.item() - model.clip.logit_scale.item()) < 1e-6


def test_saved_loaded_and_exported_it_has_the_same_bits(model, tmp_path):
    save(model, tmp_path / "own")
    again = hwaga.load(tmp_path / "own")
    assert again.config == model.config
    for name, value in model.clip.state_dict().items():
        assert torch.equal(again.clip.state_dict()[name], value), name
    hwaga.export(again, tmp_path / "public")
    assert {f.name for f in (tmp_path / "own").iterdir()} - {f.name for f in (tmp_path / "public").iterdir()} == {
        "model.json"
    }
    one, two = (load_file(tmp_path / where / "model.safetensors") for where in ("own", "public"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_half_precision_keeps_the_likeness(model, tmp_path):
    save(model, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "half", "hwaga", "float16")
    half, batch = hwaga.load(tmp_path / "half"), tiny.captioned()
    for one, two in zip(vectors(model, batch), vectors(half, batch), strict=True):
        assert (torch.nn.functional.cosine_similarity(one, two) > 0.999).all()


def test_two_batch_sizes_say_the_same(model):
    batch = tiny.captioned()
    images, texts = vectors(model, batch)
    alone = [model.clip.text_features(model.tokens([caption])) for caption in batch.caption]
    assert (torch.cat(alone) - texts).abs().max() < 1e-5  # whatever the longest caption beside it
    assert (model.clip.image_features(batch.image[3:4]) - images[3:4]).abs().max() < 1e-5


# ---------------------------------------------------------------------------------------------------------- what it lends


def test_its_text_half_is_a_text_encoder_of_painters(model):
    encoder = model.lends("text_encoder")
    ids = [encoder.tokenizer.framed(encoder.tokens(text).ids, 16) for text in tiny.CAPTIONS]
    with torch.no_grad():
        said, read = encoder.encode(list(tiny.CAPTIONS)), model.clip.words(torch.tensor(ids))
    assert said.states.shape == (8, 16, 32) and torch.equal(said.states, read.states) and said.pooled is None
    assert encoder.tokenizer.files == model.tokenizer.files and model.lends("autoencoder") is None


def test_one_that_judges_tells_no_painter():
    with pytest.raises(InputError, match="judges what is painted, so no painter may be told by it"):
        tiny.clip(judge=True).lends("text_encoder")


def test_it_is_no_system_of_its_own_and_paints_nothing(model):
    assert "clip" not in [one["name"] for one in systems()]
    with pytest.raises(InputError, match="CLIP paints nothing"):
        model.sample(n=1)


def test_long_captions_are_cut_before_the_end(model):
    tokens = model.tokens(["red " * 50, "red"])
    assert tokens.shape == (2, 16) and tokens[0, -1] == model.tokenizer.end
    assert np.array_equal(tokens[1, 2:], [model.tokenizer.end] * 14)


def test_the_shipped_one_finds_words_in_both_languages_and_is_a_component():
    from hwaga.data import DataConfig, open_data
    from hwaga.evaluation.clip import of_system
    from hwaga.evaluation.retrieval import Asked, recalls
    from hwaga.loading import SHIPPED

    model, folder = hwaga.load("openmoji/clip"), SHIPPED / "openmoji" / "clip"
    assert model.about.data_licence == "CC BY-SA 4.0" and (folder / "LICENSE.txt").is_file()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4 * 2**20
    for language in ("en", "ko"):
        data = open_data(DataConfig(size=32, language=language), "combinations")
        found = recalls(of_system(model), Asked("", list(data.captions), data.clusters, data.pixels(range(len(data)))))
        assert found.values["text_to_picture_1"] > 0.8 and found.values["picture_to_text_5"] > 0.95
    encoder = model.lends("text_encoder")
    assert encoder.encode(["red heart", "빨간 하트"]).states.shape == (2, 32, 128)
