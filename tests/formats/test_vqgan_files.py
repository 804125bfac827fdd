"""VQGAN's public files: VQModel folders against the public class, original checkpoints with their YAML, what is refused."""

import json
import sys
import types

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hwaga
from hwaga.errors import InputError
from hwaga.formats.autoencoder import to_ldm
from hwaga.networks.gpt import GPTConfig
from hwaga.networks.vq import VQModelConfig

SIZES = {"channels": (32, 64), "attention": (False, True), "blocks": 1, "groups": 32, "latent_channels": 8}
DD = {
    "double_z": False, "z_channels": 8, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0,
}  # fmt: skip


def seeded(config, seed=0):
    network = config.build()
    network.initialise(torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network.eval()


def tokenizer(kind="vq"):
    book = {"kind": kind, "codes": 16, "width": 8 if kind == "gumbel" else 6}
    return seeded(VQModelConfig(**SIZES, quantizer=book))


def settings(kind="vq"):
    params = {
        "embed_dim": 8 if kind == "gumbel" else 6,
        "n_embed": 16,
        "ddconfig": DD,
        "lossconfig": {"target": "x.Loss"},
    }
    name = "GumbelVQ" if kind == "gumbel" else "VQModel"
    return {"base_learning_rate": 4.5e-6, "target": f"taming.models.vqgan.{name}", "params": params}


def whole_settings(**change):
    transformer = {"vocab_size": 20, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 16}
    params = {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": transformer},
        "first_stage_config": settings(), "cond_stage_config": "__is_unconditional__", "first_stage_key": "image",
    }  # fmt: skip
    return {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": {**params, **change}}


def write(path, tensors, model, **more):
    save = {"epoch": 3, "global_step": 7, "state_dict": {k: v.clone() for k, v in tensors.items()}, **more}
    torch.save(save, path)
    if model is not None:
        path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": model, "data": {"target": "main.Data"}}))
    return path


def original(network):
    return {**to_ldm(network.state_dict(), 2), "loss.discriminator.main.0.weight": torch.zeros(2)}


def gpt():
    return seeded(GPTConfig(vocabulary=20, length=64, width=16, heads=2, depth=2))


def whole(network, prior):
    masks = {f"transformer.blocks.{i}.attn.mask": torch.ones(1, 1, 64, 64) for i in range(2)}
    first = {f"first_stage_model.{name}": value for name, value in original(network).items()}
    return {**first, **{f"transformer.{name}": value for name, value in prior.state_dict().items()}, **masks}


def pictures(n=2, side=16):
    return torch.rand((n, 3, side, side), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ["vq", "gumbel"])
def test_an_original_tokenizer_is_read_with_its_yaml(kind, tmp_path):
    network = tokenizer(kind)
    model = hwaga.load(write(tmp_path / "last.ckpt", original(network), settings(kind)), device="cpu", dtype="float32")
    image = pictures()
    with torch.no_grad():
        codes = network.codes(image * 2 - 1)
        want = (network.pictures(codes) / 2 + 0.5).clamp(0, 1)
    assert model.about.size == (16, 16) and model.tokenizer.config == network.config or kind == "vq"
    assert torch.equal(model.encode(image), codes) and (model.decode(codes) - want).abs().max() < 1e-5


def test_an_original_transformer_paints_and_is_told_labels_where_its_yaml_says_so(tmp_path):
    network, prior = tokenizer(), gpt()
    plain = hwaga.load(
        write(tmp_path / "a.ckpt", whole(network, prior), whole_settings()), device="cpu", dtype="float32"
    )
    assert plain.label_count() == 0 and plain.sample(n=2, output="tensor", progress=False, seed=0).shape == (
        2,
        3,
        16,
        16,
    )
    tokens = torch.randint(16, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain.networks["prior"](tokens), prior(tokens))
    told = whole_settings(cond_stage_config={"target": "taming.modules.util.Labelator", "params": {"n_classes": 11}})
    labelled = hwaga.load(write(tmp_path / "b.ckpt", whole(network, prior), told), device="cpu", dtype="float32")
    assert labelled.label_count() == 11
    with pytest.raises(InputError, match="label=11"):
        labelled.sample(label=11)
    assert labelled.sample(label=3, output="tensor", progress=False).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("kind", ["picture", "coordinates"])
def test_a_prior_that_is_told_more_than_a_label_paints_windows_too(kind, tmp_path):
    network, second = tokenizer(), seeded(VQModelConfig(**SIZES, in_channels=1, quantizer={"codes": 20, "width": 4}), 7)
    cond = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 16, "down_factor": 2}}
    tensors = whole(network, seeded(GPTConfig(vocabulary=20, length=128, width=16, heads=2, depth=2)))
    if kind == "picture":
        cond = json.loads(json.dumps(settings()))
        cond["params"] |= {"n_embed": 20, "embed_dim": 4, "ddconfig": {**DD, "in_channels": 1, "out_ch": 1}}
        tensors |= {f"cond_stage_model.{name}": value for name, value in to_ldm(second.state_dict(), 2).items()}
    model = whole_settings(cond_stage_config=cond)
    model["params"]["transformer_config"]["params"]["block_size"] = 128
    loaded = hwaga.load(write(tmp_path / "net.ckpt", tensors, model), device="cpu", dtype="float32")
    control = {"control": pictures(1)[0]} if kind == "picture" else {}
    call = {"output": "tensor", "progress": False, "seed": 0, "n": 2}
    painted = loaded.sample(**call, **control)
    wide = {"control": torch.nn.functional.pad(control["control"], (0, 4))} if control else {}
    assert painted.shape == (2, 3, 16, 16) and loaded.sample(**call, **wide, size=(16, 20)).shape == (2, 3, 16, 20)
    if kind == "coordinates":
        assert loaded._coordinates((16, 16))[0, :, 0].tolist() == [
            round(16 * (16 * (2 * i + 0.5) + 0.5) / 256) for i in range(8)
        ]
    else:
        assert not torch.equal(painted, loaded.sample(**call, control=1 - control["control"]))
    with pytest.raises(InputError, match="control="):
        loaded.sample(**call, **({} if control else {"control": pictures(1)[0]}))


def test_a_release_is_a_folder_with_checkpoints_and_configs(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "configs").mkdir()
    write(tmp_path / "checkpoints" / "last.ckpt", original(tokenizer()), None)
    (tmp_path / "configs" / "model.yaml").write_text(yaml.safe_dump({"model": settings()}))
    image = pictures()
    one, two = (
        hwaga.load(place, device="cpu", dtype="float32") for place in (tmp_path, tmp_path / "checkpoints" / "last.ckpt")
    )
    assert torch.equal(one.encode(image), two.encode(image))


def test_safetensors_with_a_yaml_are_read_too(tmp_path):
    network = tokenizer()
    save_file({k: v.contiguous() for k, v in original(network).items()}, tmp_path / "vq.safetensors")
    (tmp_path / "vq.yaml").write_text(yaml.safe_dump({"model": settings()}))
    assert hwaga.load(tmp_path / "vq.safetensors", device="cpu", dtype="float32").encode(pictures()).shape == (2, 8, 8)


def test_a_checkpoint_without_its_yaml_is_refused_with_the_name_of_the_missing_file(tmp_path):
    file = write(tmp_path / "last.ckpt", original(tokenizer()), None)
    with pytest.raises(InputError, match=r"configs/model\.yaml beside it as last\.yaml"):
        hwaga.load(file)
    file = write(tmp_path / "net.ckpt", whole(tokenizer(), gpt()), None)
    with pytest.raises(InputError, match=r"net\.yaml"):
        hwaga.load(file)


@pytest.fixture
def lightning(monkeypatch):
    """The class whose name old checkpoints hold; gone again when they are read."""
    modules = [types.ModuleType(".".join(LIGHTNING[:k])) for k in range(1, 4)]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    modules[-1].ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": modules[-1].__name__})
    return modules[-1].ModelCheckpoint


LIGHTNING = ("pytorch_lightning", "callbacks", "model_checkpoint")


def test_a_checkpoint_that_names_classes_of_its_trainer_is_read_without_them(lightning, tmp_path, monkeypatch):
    file = write(
        tmp_path / "a.ckpt", original(tokenizer()), settings(), callbacks={lightning: {"best": torch.ones(())}}
    )
    for k in range(1, 4):
        monkeypatch.delitem(sys.modules, ".".join(LIGHTNING[:k]))
    assert hwaga.load(file, device="cpu", dtype="float32").encode(pictures()).shape == (2, 8, 8)


def test_a_checkpoint_with_any_other_class_is_refused_and_nothing_of_it_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    file = write(tmp_path / "a.ckpt", original(tokenizer()), settings(), extra=Evil())
    with pytest.raises(InputError, match="holds more than tensors"):
        hwaga.load(file)
    assert not (tmp_path / "ran").exists()


def changed(model, key, value):
    place = model["params"]
    *path, last = key.split(".")
    for name in path:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return model


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ddconfig", None, "ddconfig is missing"),
        ("ddconfig.ch_mult", None, "the key ch_mult"),
        ("n_embed", None, "the key n_embed"),
        ("n_embed", 17, "quantize.embedding.weight has shape (16, 6)"),
        ("ddconfig.ch_mult", [2, 4], "begins with 1"),
        ("ddconfig.attn_resolutions", [], "for which its config has no place"),
        ("ddconfig.tanh_out", True, "tanh_out"),
    ],
)
def test_a_yaml_that_does_not_fit_is_refused(key, value, words, tmp_path):
    model = changed(json.loads(json.dumps(settings())), key, value)
    with pytest.raises(InputError) as error:
        hwaga.load(write(tmp_path / "last.ckpt", original(tokenizer()), model), device="cpu")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cond_stage_config": {"target": "taming.modules.misc.Boxes"}, "cond_stage_key": "boxes"}, "told of 'boxes'"),
        (
            {"cond_stage_config": {"target": "taming.models.vqgan.VQModel"}, "cond_stage_key": "depth"},
            "ddconfig is missing",
        ),
        ({"permuter_config": {"target": "taming.modules.transformer.permuter.ZCurve"}}, "permuter"),
        ({"first_stage_config": None}, "first_stage_config is missing"),
        ({"sos_token": 4}, "sos_token=4"),
        (
            {"transformer_config": {"params": {"vocab_size": 21, "block_size": 64, "n_embd": 16, "n_head": 2}}},
            "another file",
        ),
    ],
)
def test_a_transformer_that_cannot_be_run_is_refused(change, words, tmp_path):
    with pytest.raises(InputError) as error:
        hwaga.load(write(tmp_path / "net.ckpt", whole(tokenizer(), gpt()), whole_settings(**change)), device="cpu")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_yaml_that_is_none_is_refused(tmp_path):
    file = write(tmp_path / "last.ckpt", original(tokenizer()), None)
    file.with_suffix(".yaml").write_text("model: [")
    with pytest.raises(InputError, match="not readable YAML"):
        hwaga.load(file)
    file.with_suffix(".yaml").write_text("data: {}")
    with pytest.raises(InputError, match="section model: is missing"):
        hwaga.load(file)


# ------------------------------------------------------------------------------------------------------------ VQModel


def public(seed=0, **change):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return diffusers.VQModel(**{
            "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4,
            "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], "num_vq_embeddings": 32, "vq_embed_dim": 5,
            **change,
        }).eval()  # fmt: skip


@pytest.mark.parametrize("place", ["", "vqvae", "vqgan"])
def test_a_vqmodel_folder_gives_the_public_pictures_and_is_saved_as_it_was(place, tmp_path):
    theirs = public()
    theirs.save_pretrained(tmp_path / "model" / place)
    model = hwaga.load(tmp_path / "model", device="cpu", dtype="float32")
    image = pictures()
    with torch.no_grad():
        latents = theirs.encode(image * 2 - 1).latents
        want = (theirs.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        codes = theirs.quantize(latents)[2][2].view(2, 8, 8)
    assert torch.equal(model.encode(image), codes) and (model.decode(codes) - want).abs().max() < 1e-5
    hwaga.export(model, tmp_path / "again", format="diffusers")
    before, after = (
        load_file(folder / place / "diffusion_pytorch_model.safetensors")
        for folder in (tmp_path / "model", tmp_path / "again")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert (tmp_path / "again" / place / "config.json").is_file() and not (tmp_path / "again" / "model.json").exists()


def test_what_hwaga_trained_is_read_by_the_public_class(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from hwaga.systems import find

    config = {
        "autoencoder": {**SIZES, "quantizer": {"codes": 16, "width": 6, "update": "average", "restart": 0.05}},
        "prior": {"width": 16, "heads": 2, "depth": 1}, "discriminator": None,
    }  # fmt: skip
    system = find("vqgan").create(config, size=(16, 16), seed=0)
    for part in system.networks.values():
        part.eval()
    with pytest.warns(UserWarning, match="no place for the prior"):
        hwaga.export(system, tmp_path / "public", format="diffusers")
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "public").eval()
    image = pictures()
    with torch.no_grad():
        want = theirs.decode(theirs.encode(image * 2 - 1).latents).sample
    assert (system.decode(system.encode(image)) - (want / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_type": "spatial"}, "norm_type='spatial'"),
        ({"colour": 3}, "colour is no field of VQModel"),
        ({"num_vq_embeddings": 33}, "quantize.embedding.weight has shape (32, 5)"),
        ({"down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"]}, "does not mirror"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, words, tmp_path):
    public().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError) as error:
        hwaga.load(tmp_path, device="cpu")
    assert words in str(error.value)


def test_what_the_public_layout_has_no_field_for_is_not_exported(tmp_path):
    from hwaga.systems import find

    for part, words in (
        ({"patch": 2}, "autoencoder.patch=2"),
        ({"quantizer": {"kind": "fsq", "levels": [5, 3]}}, "kind=fsq"),
    ):
        system = find("vqgan").create({"autoencoder": {**SIZES, **part}, "prior": None}, size=(16, 16))
        with pytest.raises(InputError, match=words):
            hwaga.export(system, tmp_path / "out", format="diffusers")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("told", ["nothing", "labels", "coordinates", "picture"])
def test_an_original_checkpoint_is_written_again_bit_for_bit(told, tmp_path):
    cond = {
        "nothing": "__is_unconditional__",
        "labels": {"target": "taming.modules.util.Labelator", "params": {"n_classes": 11}},
        "coordinates": {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 16, "down_factor": 2}},
        "picture": settings(),
    }[told]
    tensors = whole(tokenizer(), gpt())
    if told == "picture":
        tensors |= {f"cond_stage_model.{name}": value for name, value in to_ldm(tokenizer().state_dict(), 2).items()}
    first = write(tmp_path / "net.ckpt", tensors, whole_settings(cond_stage_config=cond))
    again = tmp_path / "again.safetensors"
    model = hwaga.load(first, device="cpu", dtype="float32")
    hwaga.export(model, again, format="single")
    left = {name for name in tensors if name.endswith(".attn.mask") or ".loss." in name}
    found = load_file(again)
    assert found.keys() == tensors.keys() - left and all(torch.equal(found[n], tensors[n]) for n in found)
    assert yaml.safe_load(again.with_suffix(".yaml").read_text())["model"] == whole_settings(cond_stage_config=cond)

    model.about.layout = {}  # of a model that was never a file the YAML is made
    made = tmp_path / "made.safetensors"
    hwaga.export(model, made, format="single")
    loaded = hwaga.load(made, device="cpu", dtype="float32")
    same = {name: getattr(loaded.config, name) for name in ("prior", "labels", "classes", "coordinates")}
    assert same == {name: getattr(model.config, name) for name in same} and loaded.about.size == model.about.size
    for name, network in model.networks.items():
        assert all(torch.equal(v, loaded.networks[name].state_dict()[k]) for k, v in network.state_dict().items())
    with pytest.raises(InputError, match="exists already"):
        hwaga.export(model, made, format="single")
    made.unlink()
    with pytest.raises(InputError, match="made.yaml exists already"):
        hwaga.export(model, made, format="single")
    assert not made.exists()


def test_what_the_original_yaml_has_no_key_for_is_not_written(tmp_path):
    from hwaga.systems import find

    for part, words in (
        ({"patch": 2}, "patch=2"),
        ({"groups": 16}, "groups=16"),
        ({"channels": (64, 96)}, "multiples"),
    ):
        system = find("vqgan").create({"autoencoder": {**SIZES, **part}, "prior": None}, size=(16, 16))
        with pytest.raises(InputError, match=words):
            hwaga.export(system, tmp_path / "out.safetensors", format="single")
        assert not list(tmp_path.iterdir())
