"""Our own folders and the public ones: what is written is read again bit for bit, and what is wrong is refused in one sentence."""

import json
import pickle
import socket

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import hwaga
from hwaga.errors import InputError, WorkError
from hwaga.formats import unet2d
from hwaga.formats.keys import rename
from hwaga.saving import convert, export, save


def paint(model):
    return model.sample(n=2, seed=1, steps=3, output="tensor", progress=False)


def edit(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


@pytest.fixture
def no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def test_saved_model_paints_the_same_picture(tmp_path, no_network):
    model = tiny.ddpm()
    tiny.fill_zeros(model.network)
    loaded = hwaga.load(save(model, tmp_path / "m"))
    assert torch.equal(paint(model), paint(loaded)) and loaded.config == model.config
    assert loaded.about.classes == tiny.CLASSES and loaded.about.label_counts == (1, 2, 5)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model = tiny.ddpm()
    save(model, tmp_path / "a")
    save(model, tmp_path / "b")
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_half_precision_weights_load_in_single(tmp_path):
    model = tiny.ddpm()
    save(model, tmp_path / "m", dtype=torch.float16)
    loaded = hwaga.load(tmp_path / "m", device="cpu")
    assert loaded.dtype == torch.float32 and torch.isfinite(paint(loaded)).all()


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_public_folder_comes_back_with_its_names_and_bits(tmp_path, flat, old_names, no_network):
    model = tiny.public_ddpm()
    tiny.fill_zeros(model.network)
    public = export(model, tmp_path / "public")
    unet = public / "unet"
    file = unet / "diffusion_pytorch_model.safetensors"
    if old_names:
        save_file(rename(load_file(file), unet2d.OLD_ATTENTION, back=True), file)
    if flat:
        for part in (*unet.iterdir(), *(public / "scheduler").iterdir()):
            part.rename(public / part.name)
        unet.rmdir(), (public / "scheduler").rmdir()
        file = public / file.name
    loaded = hwaga.load(public)
    assert torch.equal(paint(loaded), paint(model))
    again = export(loaded, tmp_path / "again")
    before, after = load_file(file), load_file(again / file.relative_to(public))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    for config in ("config.json", "scheduler_config.json", "model_index.json"):
        (old,), (new,) = public.rglob(config), again.rglob(config)
        assert json.loads(old.read_text()) == json.loads(new.read_text())


def test_half_precision_public_folder_keeps_its_type(tmp_path):
    public = export(tiny.public_ddpm(), tmp_path / "public")
    file = public / "unet" / "diffusion_pytorch_model.safetensors"
    half = {k: v.half() for k, v in load_file(file).items()}
    save_file(half, file)
    again = load_file(convert(public, tmp_path / "again", "diffusers") / "unet" / file.name)
    assert all(torch.equal(half[k], again[k]) for k in half)


def test_converting_there_and_back_is_exact(tmp_path):
    public = export(tiny.public_ddpm(), tmp_path / "public")
    ours = convert(public, tmp_path / "ours", "hwaga")
    back = convert(ours, tmp_path / "back", "diffusers")
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(public / name), load_file(back / name)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_shards_are_read_by_their_index_and_stale_ones_are_not(tmp_path):
    model = tiny.public_ddpm()
    public = export(model, tmp_path / "public")
    whole = public / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({n: tensors[n] for n in part}, whole.parent / file)
    save_file({n: torch.zeros_like(tensors[n]) for n in names}, whole.parent / "stale.safetensors")
    table = {n: file for file, part in halves.items() for n in part}
    (whole.parent / f"{whole.name}.index.json").write_text(json.dumps({"weight_map": table}))
    whole.unlink()
    assert torch.equal(paint(hwaga.load(public)), paint(model))


def test_network_without_public_layout_is_refused_by_export(tmp_path):
    with pytest.raises(InputError, match="network.patch=2: the public layout has no field"):
        export(tiny.ddpm(labels=False), tmp_path / "public")
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_overwritten(tmp_path):
    save(tiny.ddpm(), tmp_path / "m")
    with pytest.raises(InputError, match="exists already"):
        save(tiny.ddpm(1), tmp_path / "m")


def short(folder):
    file = folder / "network" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder):
    (folder / "network" / "model.safetensors").write_bytes(b"")


def other_config(folder):
    edit(folder / "model.json", lambda m: m["config"]["network"].update(channels=[32, 32]))


def vast(folder):
    edit(folder / "model.json", lambda m: m["config"]["network"].update(channels=[8 * 10**6, 8 * 10**6]))


def newer(folder):
    edit(folder / "model.json", lambda m: m.update(format=2))


def unknown_system(folder):
    edit(folder / "model.json", lambda m: m.update(system="dpm"))


def no_card(folder):
    (folder / "model.json").write_text("{")


def renamed_tensor(folder):
    file = folder / "network" / "model.safetensors"
    tensors = load_file(file)
    tensors["conv_inn.weight"] = tensors.pop("conv_in.weight")
    save_file(tensors, file)
    edit(folder / "model.json", lambda m: m["components"]["network"].update(files={}))


def extra_tensor(folder):
    file = folder / "network" / "model.safetensors"
    save_file({**load_file(file), "more": torch.zeros(1)}, file)
    edit(folder / "model.json", lambda m: m["components"]["network"].update(files={}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (short, "damaged"),
        (empty, "damaged"),
        (other_config, "its config has no place"),
        (vast, "its config has no place"),
        (newer, "format 2; this version reads up to 1"),
        (unknown_system, "did you mean 'ddpm'"),
        (no_card, "not readable JSON"),
        (renamed_tensor, "lacks the tensor conv_in.weight"),
        (extra_tensor, "holds the tensor more"),
    ],
)
def test_damaged_model_is_refused_in_one_sentence(tmp_path, damage, words):
    folder = save(tiny.ddpm(), tmp_path / "m")
    damage(folder)
    with pytest.raises(InputError) as error:
        hwaga.load(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


def leads_out(public):
    table = dict.fromkeys(load_file(public / "unet/diffusion_pytorch_model.safetensors"), "../../elsewhere.safetensors")
    (public / "unet/diffusion_pytorch_model.safetensors").unlink()
    (public / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


class Malicious:
    def __reduce__(self):
        return eval, ("open('run', 'w')",)


def code_inside(public):
    (public / "unet/diffusion_pytorch_model.safetensors").unlink()
    (public / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"conv_in.weight": Malicious()}))


def strange_block(public):
    edit(public / "unet/config.json", lambda c: c["down_block_types"].__setitem__(0, "SkipDownBlock2D"))


def foreign_field(public):
    edit(public / "unet/config.json", lambda c: c.update(remote_code="evil.py"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (leads_out, "leads out of the folder"),
        (code_inside, "nothing in it was run"),
        (strange_block, "SkipDownBlock2D"),
        (foreign_field, "remote_code is no field"),
    ],
)
def test_hostile_public_folder_is_refused(tmp_path, damage, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    public = export(tiny.public_ddpm(), tmp_path / "public")
    damage(public)
    with pytest.raises(InputError) as error:
        hwaga.load(public)
    assert words in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [("openmoji/dpm", "openmoji/dpm"), ("./nowhere", "no such file or folder"), ("nowhere", "no such file or folder")],
)
def test_a_source_that_is_not_there_is_refused_without_a_connection(source, words, no_network):
    with pytest.raises(InputError, match=words):
        hwaga.load(source)


def test_a_hub_that_cannot_be_reached_is_a_failure_of_work(no_network):
    with pytest.raises(WorkError, match="hub could not be reached"):
        hwaga.load("someone/something-never-cached")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"device": "cuda:77"}, "cuda:77"),
        ({"dtype": "float8"}, "float8"),
        ({"memory": "lots"}, "lots"),
        ({"memory": "1KB"}, "weights alone"),
    ],
)
def test_options_of_load_that_cannot_be_are_refused(tmp_path, option, words):
    folder = save(tiny.ddpm(), tmp_path / "m")
    with pytest.raises(InputError, match=words):
        hwaga.load(folder, **option)


@pytest.mark.parity
def test_public_program_paints_the_same_picture(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = tiny.public_ddpm()
    tiny.fill_zeros(model.network)
    pipe = diffusers.DDIMPipeline.from_pretrained(export(model, tmp_path / "public"))
    noise = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    pipe.set_progress_bar_config(disable=True)
    x = noise
    pipe.scheduler.set_timesteps(5)
    for t in pipe.scheduler.timesteps:
        with torch.no_grad():
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    ours = model.sample(n=2, sampler="ddim", steps=5, noise={"noise": noise}, output="tensor", progress=False)
    assert (ours - (x / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-4
