"""A model of Stable Diffusion XL's sizes under a budget of memory: what a fresh process takes that loads its folder and paints.

    python -m benchmarks.budget --out bench/xl                  6.5 GB of half-precision weights, written once; then some minutes
    python -m benchmarks.budget --out bench/xl --budget none    without a budget: some 20 GB

Weights are random: what is measured does not look at them. Private memory (RssAnon) is what nobody else can use; pages of the
mapped file are the system's to take back, so the peak of the whole process (VmHWM) may lie above it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from hwaga.conditioning import bpe
from hwaga.conditioning.text_encoders import TextEncoderConfig
from hwaga.layers.initialise import without_memory
from hwaga.networks.autoencoder import AutoencoderKLConfig
from hwaga.networks.clip_text import ClipTextConfig
from hwaga.recipes import load_recipe
from hwaga.systems import find
from hwaga.systems.base import About

TOKENS = {"vocabulary": 49408, "end": bpe.vocabulary(())[bpe.END]}
ENCODERS = {
    "text_encoder": TextEncoderConfig(model=ClipTextConfig(**TOKENS), skip=1, final_norm=False),
    "text_encoder_2": TextEncoderConfig(
        model=ClipTextConfig(width=1280, layers=32, heads=20, hidden=5120, activation="gelu", projection=1280, **TOKENS),
        skip=1, final_norm=False, pooled="projected",
    ),
}  # fmt: skip


def random_halves(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """The network in half precision with weights of about the size that a new one's have, by repeating a block of them."""
    network = network.half().to_empty(device="cpu")
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            value.copy_(torch.arange(value.numel()).view(value.shape))
        elif value.dim() > 1:
            block = torch.randn(min(value.numel(), 2**20), generator=generator).mul_(value[0].numel() ** -0.5).half()
            for part in value.view(-1).split(len(block)):
                part.copy_(block[: len(part)])
        else:
            value.fill_(1.0 if re.search(r"norm\w*\.weight$", name) else 0.0)
    return network.eval()


def written(folder: Path) -> Path:
    """A public folder of the sizes of SD XL's base."""
    kind, recipe, generator = find("stable-diffusion"), load_recipe("paper/stable-diffusion-xl"), torch.Generator()
    parts = {"autoencoder": AutoencoderKLConfig(), **ENCODERS}
    told = {name: part.model_dump() for name, part in parts.items()}
    config = kind.checked(kind.complete({**recipe.model, **told}, (1024, 1024), ()))
    networks = {}
    for name, part in kind.network_configs(config).items():
        with without_memory():
            network = part.build()
        networks[name] = random_halves(network, generator)
        if name in ENCODERS:
            networks[name].files = bpe.files((), 77)
    networks["autoencoder"].scale.fill_(0.13025)  # type: ignore[operator,union-attr]
    folder.mkdir(parents=True)
    kind(config, networks, About(size=(1024, 1024))).to_diffusers(folder)
    return folder


def peaks(command: list[str]) -> tuple[float, float, float]:
    """Seconds, and the peaks of private memory and of the whole process in bytes, of a fresh process."""
    began = time.perf_counter()
    process, private, whole = subprocess.Popen(command, stderr=subprocess.DEVNULL), 0, 0
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = {key: int(value) * 1024 for key, value in re.findall(r"(VmHWM|RssAnon):\s+(\d+)", text)}
        private, whole = max(private, found.get("RssAnon", 0)), max(whole, found.get("VmHWM", 0))
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"failed with status {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - began, private, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench/xl"), help="where the folder is written and kept")
    parser.add_argument("--budget", default="4GB", help="or none")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    folder = given.out / "model"
    if not folder.is_dir():
        written(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    picture = given.out / f"{given.budget}.png"
    picture.unlink(missing_ok=True)
    budget = [] if given.budget == "none" else ["--memory", given.budget]
    call = ["--prompt", "a fox", "--steps", str(given.steps), "--size", str(given.size), "--seed", "1"]
    seconds, private, whole = peaks(
        [sys.executable, "-m", "hwaga", "sample", str(folder), *call, *budget, "--out", str(picture)]
    )
    print(
        f"{size / 1e9:.2f} GB of weights, budget {given.budget}, {given.size} px, {given.steps} guided steps: private memory at "
        f"most {private / 1e9:.2f} GB, the process {whole / 1e9:.2f} GB, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
