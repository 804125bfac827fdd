"""Features: the shipped judge, the public Inception layout, vision folders of transformers, bad files."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch

from hwaga.errors import InputError
from hwaga.evaluation import load_features
from hwaga.evaluation.encoders import SHIPPED
from hwaga.layers.initialise import build_on
from hwaga.networks.inception import Inception, InceptionConfig


def pictures(n, side=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


# ---------------------------------------------------------------------------------------------------- shipped features


def test_the_shipped_features_are_small_and_their_card_names_the_file():
    features = load_features(None)
    card = json.loads((SHIPPED / "model.json").read_text())
    assert (SHIPPED / "model.safetensors").stat().st_size <= 2 * 2**20
    assert features.sha256 == card["files"]["model.safetensors"]
    assert features.dim <= 64 and features.name == "openmoji/features" and features.source == "openmoji"
    assert card["data"]["split"] == "train" and "CC BY-SA 4.0" in card["licence"]
    assert card["accuracy"]["held-out"]["top1"] > 0.3 and card["accuracy"]["held-out"]["top5"] > 0.6


def test_bytes_and_fractions_of_a_picture_have_the_same_features():
    features = load_features(None)
    whole = pictures(5)
    found = features(whole)
    assert found.shape == (5, features.dim) and found.dtype == torch.float32
    torch.testing.assert_close(found, features(whole.float() / 255))
    torch.testing.assert_close(found, features(whole.numpy()))


def test_a_picture_has_the_same_features_alone_and_in_a_crowd():
    features = load_features(None)
    many = pictures(300)
    torch.testing.assert_close(features(many)[280:281], features(many[280:281]), rtol=1e-4, atol=1e-4)


def test_pictures_of_any_size_are_taken():
    features = load_features(None)
    flat = torch.full((1, 3, 64, 48), 0.5)
    torch.testing.assert_close(features(flat), features(torch.full((1, 3, 32, 32), 0.5)), rtol=1e-4, atol=1e-4)
    assert features(pictures(2, 50)).shape == (2, features.dim)


def test_logits_have_a_row_a_picture_and_a_column_a_class():
    features = load_features(None)
    classes = json.loads((SHIPPED / "model.json").read_text())["classes"]
    assert features.logits(pictures(3)).shape == (3, len(classes))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((2, 3, 8, 8), 2.0), r"values from 2 to 2: want \[0, 1\]"),
        (torch.full((2, 3, 8, 8), -1.0), r"want \[0, 1\]"),
        (torch.full((2, 3, 8, 8), torch.nan), r"want \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8), r"want \(n, 3, h, w\)"),
        (torch.zeros(0, 3, 8, 8), "at least one"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "want uint8"),
        ("pictures", "want a tensor or an array"),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(images, words):
    with pytest.raises(InputError, match=words):
        load_features(None)(images)


def test_a_changed_weight_file_is_refused(tmp_path):
    for file in SHIPPED.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="is not the file that model.json names"):
        load_features(tmp_path)


def test_what_is_neither_folder_nor_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder or file"):
        load_features(tmp_path / "nothing")
    with pytest.raises(InputError, match="no config.json"):
        load_features(tmp_path)


# ----------------------------------------------------------------------------------------------------------- Inception


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in the public names, of a size at which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in build_on(InceptionConfig(), "meta").state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue  # the public file has none
        if name.endswith(("running_var", "bn.weight")):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.ndim == 1:
            state[name] = 0.1 * torch.randn(value.shape, generator=generator)
        else:
            fan = value[0].numel()
            state[name] = torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-test.pth"
    torch.save(state, path)
    return path


def test_the_public_layout_has_its_published_names_and_numbers():
    state = build_on(InceptionConfig(), "meta").state_dict()
    weights = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    convolutions = [name for name in weights if name.endswith("conv.weight")]
    assert len(convolutions) == 94 and len(weights) == 94 * 5 + 2
    parameters = sum(v.numel() for name, v in weights.items() if "running" not in name)
    assert parameters == 21_785_568 + 2048 * 1008 + 1008  # body as published, and 1,008 outputs
    assert weights["Mixed_6c.branch7x7dbl_3.conv.weight"].shape == (160, 160, 1, 7)
    assert weights["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert weights["fc.weight"].shape == (1008, 2048)


def test_an_inception_file_gives_features_and_logits(inception_file):
    features = load_features(inception_file)
    images = pictures(2, 40)
    found, logits = features.judge(images)
    assert features.dim == 2048 and found.shape == (2, 2048) and logits.shape == (2, 1008)
    assert torch.isfinite(found).all() and (found[0] - found[1]).abs().max() > 1e-3
    again = load_features(inception_file)
    assert torch.equal(again(images), found) and again.sha256 == features.sha256
    head = torch.load(inception_file, weights_only=True)["fc.weight"]
    torch.testing.assert_close(logits, found @ head.T, rtol=1e-4, atol=1e-4)  # no bias, as published


def test_folding_the_norms_changes_nothing_but_rounding(inception_file):
    network = build_on(InceptionConfig())
    assert isinstance(network, Inception)
    network.load_state_dict(torch.load(inception_file, weights_only=True), strict=False)
    images = pictures(1, 64).float() / 255
    with torch.no_grad():
        expected = network.eval()(images * 2 - 1).features
    torch.testing.assert_close(load_features(inception_file)(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parity
def test_inception_features_equal_pytorch_fids(inception_file):
    """Needs pytorch-fid, and the Python half of torchvision (of which nothing compiled is used)."""
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        try:
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            pass  # a whole torchvision has them
    peer = pytest.importorskip("pytorch_fid.inception")
    state = torch.load(inception_file, weights_only=True)
    old, peer.load_state_dict_from_url = peer.load_state_dict_from_url, lambda *_, **__: state
    try:
        network = peer.InceptionV3([3], resize_input=True, normalize_input=True).eval()
    finally:
        peer.load_state_dict_from_url = old
    images = pictures(2, 48).float() / 255
    with torch.no_grad():
        expected = network(images)[0].flatten(1)
    found = load_features(inception_file)(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_an_inception_file_must_fit_to_the_last_tensor(inception_file, tmp_path, change):
    state = torch.load(inception_file, weights_only=True)
    name = "Mixed_6b.branch1x1.conv.weight"
    if change == "missing":
        del state[name]
    elif change == "extra":
        state["Mixed_9z.conv.weight"] = torch.zeros(1)
    else:
        state[name] = state[name][:1]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="Mixed_9z" if change == "extra" else name):
        load_features(tmp_path / "odd.pth")


class _Evil:
    def __reduce__(self):
        return (sys.exit, (99,))


def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"fc.weight": _Evil()}))
    with pytest.raises(InputError, match="nothing in it was executed"):
        load_features(tmp_path / "evil.pth")


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x10\0\0\0\0\0\0\0{broken json....."])
def test_a_file_that_is_no_weights_is_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match="x.pth"):
        load_features(tmp_path / "x.pth")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not Inception-v3 in the public FID layout.*layer.weight"):
        load_features(tmp_path / "other.pth")


# ------------------------------------------------------------------------------------------------------ vision folders

PREPARATION = {
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
}


def models():
    import transformers as t

    text = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return {
        "dinov2": (lambda: t.Dinov2Model(t.Dinov2Config(**SMALL)), 32),
        "clip": (lambda: t.CLIPModel(t.CLIPConfig(vision_config=SMALL, text_config=text, projection_dim=16)), 16),
        "clip-vision": (lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**SMALL)), 32),
        "vit": (lambda: t.ViTModel(t.ViTConfig(**SMALL), add_pooling_layer=False), 32),
    }


@pytest.fixture
def vision_folder(tmp_path):
    def make(kind):
        from transformers.utils import logging

        logging.disable_progress_bar()
        state = torch.random.get_rng_state()
        try:
            torch.manual_seed(0)
            model = models()[kind][0]().eval()
        finally:
            torch.random.set_rng_state(state)
        folder = tmp_path / kind
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPARATION))
        return folder, model

    return make


@pytest.mark.parametrize("kind", ["dinov2", "clip", "clip-vision", "vit"])
def test_vision_folders_give_their_pooled_output(vision_folder, kind):
    folder, model = vision_folder(kind)
    features = load_features(folder)
    assert features.dim == models()[kind][1] and not features.has_logits and features.source is None
    images = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    prepared = torch.nn.functional.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    prepared = prepared[..., 2:30, 2:30] - torch.tensor(PREPARATION["image_mean"]).view(3, 1, 1)
    prepared = prepared / torch.tensor(PREPARATION["image_std"]).view(3, 1, 1)
    with torch.no_grad():
        if kind == "clip":
            expected = model.visual_projection(model.vision_model(pixel_values=prepared).pooler_output)
        elif kind == "vit":  # without a trained pooler: the mean of the last states
            expected = model(pixel_values=prepared).last_hidden_state.mean(1)
        else:
            expected = model(pixel_values=prepared).pooler_output
    torch.testing.assert_close(features(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="have no classes"):
        features.logits(images)


def test_the_name_of_a_folders_features_changes_with_its_weights(vision_folder):
    folder, model = vision_folder("dinov2")
    first = load_features(folder)
    with torch.no_grad():
        model.layernorm.weight += 1
    model.save_pretrained(folder)
    assert load_features(folder).sha256 != first.sha256


def test_preparation_agrees_with_pillows_resizing(vision_folder):
    """What the processors of transformers do (resizing by Pillow, in 8 bits), to a level or two of 255."""
    from PIL import Image

    from hwaga.evaluation.vision import read_preparation

    folder, _ = vision_folder("dinov2")
    picture = np.random.default_rng(0).integers(70, 186, (60, 90, 3), dtype=np.uint8)  # no overshoot to be clipped
    expected = Image.fromarray(picture).resize((48, 32), Image.Resampling.BICUBIC).crop((10, 2, 38, 30))
    found = read_preparation(folder / "preprocessor_config.json")(
        torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    )[0]
    mean, std = (torch.tensor(PREPARATION[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    found = (found * std + mean) * 255
    assert (found - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs().max() < 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": {"longest_edge": 3}}, "want shortest_edge, or height and width"),
        ({"size": {"height": 10**9, "width": 3}}, "a side of 1000000000 pixels"),
        ({"rescale_factor": 1.0}, "only 1/255"),
        ({"image_std": [0, 1, 1]}, "std above 0"),
    ],
)
def test_preparations_that_cannot_be_are_refused(tmp_path, changes, words):
    from hwaga.evaluation.vision import read_preparation

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPARATION, **changes}))
    with pytest.raises(InputError, match=words):
        read_preparation(tmp_path / "preprocessor_config.json")


def test_a_folder_without_preparation_weights_or_with_missing_tensors_is_refused(vision_folder):
    from safetensors.torch import load_file, save_file

    folder, _ = vision_folder("dinov2")
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.0.norm1.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="tensors of Dinov2Model are missing"):
        load_features(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        load_features(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="preprocessor_config.json is missing"):
        load_features(folder)
