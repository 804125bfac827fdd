"""`hwaga sample --lora` and `hwaga convert` of a model trained as a LoRA."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from hwaga.saving import save


@pytest.fixture()
def model(tmp_path):
    made = tiny.ddpm(labels=False)
    tiny.fill_zeros(made.network)
    return save(made, tmp_path / "model")


@pytest.fixture()
def lora(tmp_path):
    g = torch.Generator().manual_seed(0)
    name = "unet.mid_block.attentions.0.to_q"
    tensors = {
        f"{name}.lora_A.weight": torch.randn(2, 32, generator=g),
        f"{name}.lora_B.weight": torch.randn(32, 2, generator=g),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_a_lora_is_loaded_told_and_remembered_by_the_picture(ask, model, lora, tmp_path):
    base = ["sample", str(model), "--steps", "2", "--seed", "1", "--device", "cpu"]
    for name, more in (("off", [f"{lora}:0"]), ("on", [f"{lora}:0.5"]), ("twice", [f"{lora}:0.25", f"{lora}:0.25"])):
        options = [word for one in more for word in ("--lora", one)]
        done = ask(*base, *options, "--out", str(tmp_path / f"{name}.png"))
        assert done.status == 0 and "LoRA a: 1 weights changed, by" in done.err, done.err
    assert ask(*base, "--out", str(tmp_path / "plain.png")).status == 0
    again = ask("sample", "--from", str(tmp_path / "on.png"), "--device", "cpu", "--out", str(tmp_path / "again.png"))
    assert again.status == 0, again.err
    pixels = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("off", "on", "twice", "plain", "again")}
    from PIL import Image

    same = lambda a, b: Image.open(tmp_path / f"{a}.png").tobytes() == Image.open(tmp_path / f"{b}.png").tobytes()  # noqa: E731
    assert pixels and same("off", "plain") and not same("on", "plain") and same("on", "again")


@pytest.mark.parametrize(
    ("option", "says"),
    [("{lora}:much", "the scale 'much' is not a number"), ("nowhere.safetensors", "there is no such LoRA file")],
)
def test_bad_input_is_one_sentence(ask, model, lora, tmp_path, option, says):
    done = ask("sample", str(model), "--lora", option.format(lora=lora), "--out", str(tmp_path / "x.png"))
    assert done.status == 2 and says in done.err and not (tmp_path / "x.png").exists()


def test_a_lora_of_another_base_is_bad_input_and_names_it(ask, model, tmp_path):
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(2, 768), f"{name}.lora_up.weight": torch.ones(8, 2)},
        tmp_path / "b.safetensors",
    )
    done = ask("sample", str(model), "--lora", str(tmp_path / "b.safetensors"), "--out", str(tmp_path / "x.png"))
    assert done.status == 2 and "none of its 1 changes fits" in done.err and "Stable Diffusion 1" in done.err
    done = ask("sample", str(tmp_path / "b.safetensors"), "--out", str(tmp_path / "x.png"))
    assert done.status == 2 and "is a LoRA, a change of a model" in done.err


def test_a_single_file_of_stable_diffusion_is_written_and_painted_with(ask, tmp_path):
    made = tiny.stable_diffusion()
    folder = save(made, tmp_path / "model")
    assert ask("convert", str(folder), str(tmp_path / "a.safetensors"), "--to", "single").status == 0
    words = tmp_path / "words"
    words.mkdir()
    for name, content in made.networks["text_encoder"].files.items():
        (words / name).write_bytes(content)
    paint = ["--prompt", "a star", "--steps", "2", "--seed", "1", "--device", "cpu", "--guidance-scale", "2"]
    done = ask("sample", str(tmp_path / "a.safetensors"), *paint, "--out", str(tmp_path / "no.png"))
    assert done.status == 2 and "--component tokenizer=FOLDER" in done.err, done.err
    done = ask(
        "sample",
        str(tmp_path / "a.safetensors"),
        *paint,
        "--component",
        f"tokenizer={words}",
        "--out",
        str(tmp_path / "x.png"),
    )
    assert done.status == 0, done.err
    back = ask(
        "convert",
        str(tmp_path / "a.safetensors"),
        str(tmp_path / "back"),
        "--to",
        "diffusers",
        "--component",
        f"tokenizer={words}",
    )
    assert back.status == 0, back.err
    assert ask("convert", str(tmp_path / "back"), str(tmp_path / "b.safetensors"), "--to", "single").status == 0
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
