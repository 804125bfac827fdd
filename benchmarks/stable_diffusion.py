"""Stable Diffusion against diffusers, with the same weights (random, of the published sizes): a step of the U-Net with guidance, of
SD XL's, with a ControlNet; prompts read; a whole call; a LoRA put into the weights; from the shell to a picture of a tiny folder.

Both sides share the tensors, so that two models of 10 GB fit. Keys and values of the text are computed once a call here and at
each step there, as are a ControlNet's map: that is what a step costs on either side.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwaga.formats import controlnet as public_controlnet
from hwaga.formats import text_unet as public

from .pairing import Row, compare, gflop
from .peers import HIDE_TORCHVISION, hide_torchvision, version
from .processes import HWAGA, run

GROUP = "Stable Diffusion"
SD1 = {
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
}  # fmt: skip
XL = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10), "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
UP = {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}
UP_XL = {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
TINY = {
    "block_out_channels": (32, 64), "cross_attention_dim": 32, "attention_head_dim": 4, "sample_size": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DIFFUSERS = (
    HIDE_TORCHVISION
    + """
import sys, torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
pipeline("a red fox", num_inference_steps=10, generator=generator, height=64, width=64).images[0].save(sys.argv[2])
"""
)


def rows() -> Iterator[Row]:
    peer = version("diffusers")
    ours, theirs = _pair(SD1, UP)
    yield _step("UNet step of SD 1.5, 64 x 64 latents, guided", peer, ours, theirs, 0.8)
    yield _controlled("the same with a ControlNet", peer, ours, theirs)
    with tempfile.TemporaryDirectory() as place:
        yield from _pipeline(Path(place), peer, ours, theirs)
    del ours, theirs
    yield _step("UNet step of SD XL, 64 x 64 latents, guided", peer, *_pair(XL, UP_XL), 0.95)
    with tempfile.TemporaryDirectory() as place:
        yield _cold_start(Path(place), peer)


def _unet(down: dict[str, Any], up: dict[str, Any]) -> Any:
    hide_torchvision()
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(**down, **up).eval()


def _shared(network: nn.Module, tensors: dict[str, Tensor]) -> Any:
    """A network that was built without memory, with another's tensors as its own."""
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def _pair(down: dict[str, Any], up: dict[str, Any]) -> tuple[Any, Any]:
    theirs = _unet(down, up)
    config = public.network_config(dict(theirs.config), "diffusers")
    with torch.device("meta"):
        ours = config.build()
    return _shared(ours, dict(public.Projected(theirs.state_dict(), config.linear_projection))), theirs


def _given(theirs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Latents and states of a guided step (batch 2), and what XL is told beside."""
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 64, 64, generator=g), torch.randn(2, 77, theirs.config.cross_attention_dim, generator=g)
    if theirs.config.addition_embed_type is None:
        return x, text, {}
    sizes = torch.tensor([[512.0, 512, 0, 0, 512, 512]] * 2)
    return x, text, {"text_embeds": torch.randn(2, 1280, generator=g), "time_ids": sizes}


@torch.no_grad()
def _step(name: str, peer: str, ours: Any, theirs: Any, aim: float) -> Row:
    x, text, added = _given(theirs)
    told = {"pooled": added["text_embeds"], "ids": added["time_ids"]} if added else {}
    t = torch.tensor(500)
    mine = lambda: ours(x, t.float().expand(2), text, **told)  # noqa: E731
    other = lambda: theirs(x, t, text, added_cond_kwargs=added or None).sample  # noqa: E731
    return compare(
        GROUP, name, peer, mine, other, rounds=5, patience=180, aim=aim, gflop=gflop(other),
        difference=(mine() - other()).abs().max().item(),
    )  # fmt: skip


@torch.no_grad()
def _controlled(name: str, peer: str, ours: Any, theirs: Any) -> Row:
    from diffusers import ControlNetModel

    their_net = ControlNetModel.from_unet(theirs).eval()
    g = torch.Generator().manual_seed(2)
    for layer in (*their_net.controlnet_down_blocks, their_net.controlnet_mid_block):
        layer.weight.normal_(0, 0.01, generator=g)
    config = public_controlnet.network_config(dict(their_net.config), "diffusers")
    with torch.device("meta"):
        net = config.build()
    net = _shared(net, dict(public.Projected(their_net.state_dict(), config.linear_projection)))
    x, text, _ = _given(theirs)
    control = torch.rand(2, 3, 512, 512, generator=g)
    hint, t = net.hint(control), torch.tensor(500)

    def mine() -> Tensor:
        time = t.float().expand(2)
        return ours(x, time, text, residuals=net(x, time, text, hint))

    def other() -> Tensor:
        down, middle = their_net(x, t, text, control, return_dict=False)
        return theirs(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample

    return compare(
        GROUP, name, peer, mine, other, rounds=5, patience=180, aim=0.8, gflop=gflop(other),
        difference=(mine() - other()).abs().max().item(),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- whole models


def _folder(place: Path, unet: Any, width: int, layers: int, channels: tuple[int, ...]) -> Any:
    """A Stable Diffusion 1 folder around a network, and diffusers' pipeline of it; its tokenizer knows letters alone."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (place / "words").mkdir(parents=True)
    (place / "words" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (place / "words" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(place / "words" / "vocab.json"), str(place / "words" / "merges.txt"), model_max_length=77
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=max(1, width // 64),
            vocab_size=max(len(words), 49408 if layers > 2 else 0), bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
        )).eval()  # fmt: skip
        codec = AutoencoderKL(
            block_out_channels=channels, layers_per_block=2, latent_channels=4, norm_num_groups=32,
            down_block_types=["DownEncoderBlock2D"] * len(channels), up_block_types=["UpDecoderBlock2D"] * len(channels),
        ).eval()  # fmt: skip
    pipeline = StableDiffusionPipeline(
        unet=unet, vae=codec, text_encoder=text, tokenizer=tokenizer, safety_checker=None, feature_extractor=None,
        scheduler=DPMSolverMultistepScheduler(**BETAS), requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(place / "model")
    return pipeline


def _pipeline(place: Path, peer: str, ours: Any, theirs: Any) -> Iterator[Row]:
    """A whole model of SD 1.5's sizes; its U-Net is the pair's, so that the folder need not hold it twice."""
    import hwaga

    small = _unet(TINY | {"cross_attention_dim": 768}, {})
    pipeline = _folder(place, small, 768, 12, (128, 256, 512, 512))
    model: Any = hwaga.load(place / "model", device="cpu", dtype="float32")
    pipeline.register_modules(unet=theirs)
    model.networks["network"] = ours
    model.config = model.config.model_copy(update={"network": ours.config})
    prompts = ["a red fox on a green hill", "a drawing of the moon over the sea"]
    with torch.no_grad():
        encoder = model.networks["text_encoder"]
        ids = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        mine, other = lambda: encoder.encode(prompts).states, lambda: pipeline.text_encoder(ids).last_hidden_state
        yield compare(
            GROUP, "two prompts read by CLIP-L", version("transformers"), mine, other, patience=90, gflop=gflop(other),
            difference=(mine() - other()).abs().max().item(), note="ours cuts words into tokens too",
        )  # fmt: skip
    g = torch.Generator().manual_seed(3)
    start = torch.randn(1, 4, 32, 32, generator=g)
    call = {"guidance_scale": 7.5, "negative_prompt": "grey", "prompt": prompts[0]}

    def painted() -> Tensor:
        return model.sample(**call, steps=20, size=256, noise={"noise": start}, output="tensor", progress=False)

    def theirs_painted() -> Tensor:
        found = pipeline(**call, num_inference_steps=20, height=256, width=256, latents=start.clone(), output_type="pt")
        return found.images

    yield compare(
        GROUP, "whole call: 256 x 256, 20 steps of DPM-Solver++", peer, painted, theirs_painted, rounds=3, patience=400, aim=0.8,
        difference=(painted() - theirs_painted()).abs().max().item(),
    )  # fmt: skip
    yield _lora(place, peer, model, pipeline)


def _lora(place: Path, peer: str, model: Any, pipeline: Any) -> Row:
    """Rank 16 on all projections of attention: read from its file and put into the weights, and taken out again."""
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(4)
    tensors = {}
    for name, layer in pipeline.unet.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(16, layer.in_features, generator=g) * 0.01
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 16, generator=g) * 0.01
    save_file(tensors, str(place / "lora.safetensors"))

    def ours() -> None:
        model.load_lora(place / "lora.safetensors")
        model.unload_lora()

    def theirs() -> None:
        pipeline.load_lora_weights(str(place), weight_name="lora.safetensors")
        pipeline.fuse_lora()
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()

    return compare(
        GROUP, "a LoRA of rank 16 into the weights and out", f"{peer} with peft", ours, theirs, rounds=5, patience=180,
        note="out: bit for bit the base again here, to rounding there",
    )  # fmt: skip


def _cold_start(place: Path, peer: str) -> Row:
    _folder(place, _unet(TINY, {}), 32, 2, (32, 32, 64, 64))
    folder = str(place / "model")
    options = ["sample", folder, "--prompt", "a red fox", "--steps", "10", "--size", "64", "--seed", "0", "--out"]
    pictures = [place / "ours.png", place / "theirs.png"]

    def ours() -> None:
        pictures[0].unlink(missing_ok=True)
        run("-c", HWAGA, *options, str(pictures[0]))

    return compare(
        "fresh process", "one picture of a tiny Stable Diffusion folder, 10 steps", peer, ours,
        lambda: run("-c", DIFFUSERS, folder, str(pictures[1])), rounds=7, patience=240, aim=0.45,
        note="noise differs, so the pictures do",
    )  # fmt: skip
