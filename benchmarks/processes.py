"""Fresh processes: from the shell to one picture, the import alone, and a large folder mapped."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .pairing import Row, compare
from .peers import HIDE_TORCHVISION, save_ddim, unet2d, version

LARGE = {"channels": (352, 704, 928, 1120), "attention": (False, True, True, True)}  # about 2 GB in float32
HWAGA = "import sys; from hwaga.cli.main import main; sys.argv[0] = 'hwaga'; sys.exit(main())"  # as the console script
DIFFUSERS = (
    HIDE_TORCHVISION
    + """
import sys, torch
from diffusers import DDIMPipeline
pipeline = DDIMPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
pipeline(num_inference_steps=10, generator=torch.Generator().manual_seed(0)).images[0].save(sys.argv[2])
"""
)
MEMORY = """
import re
def memory():  # of this process since it began (getrusage's peak also counts the parent that it was forked from)
    text = open("/proc/self/status").read()
    return {k: int(re.search(k + r":\\s+(\\d+)", text)[1]) * 1024 for k in ("VmHWM", "VmRSS", "RssAnon")}
"""
MEASURE = (
    HIDE_TORCHVISION
    + MEMORY
    + """
import json, sys, time
side, folder = sys.argv[1:]
if side == "hwaga":
    import torch, hwaga.loading, hwaga.systems.ddpm
    load = lambda: hwaga.loading.load(folder).networks["network"]
else:
    import torch
    from diffusers import DDIMPipeline, UNet2DModel
    load = lambda: UNet2DModel.from_pretrained(folder + "/unet", low_cpu_mem_usage=True)
before = memory()
start = time.perf_counter()
network = load()
seconds = time.perf_counter() - start
loaded = memory()
total = sum(float(p.sum()) for p in network.parameters())  # every page is read
after = memory()
print(json.dumps({"seconds": seconds, "anonymous": loaded["RssAnon"] - before["RssAnon"],
    "anonymous_all_read": after["RssAnon"] - before["RssAnon"], "peak": after["VmHWM"] - before["VmRSS"], "sum": total}))
"""
)


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments[:2]} failed: {done.stderr[-2000:]}")
    return done.stdout


def rows() -> Iterator[Row]:
    peer = version("diffusers")
    yield _import(peer)
    with tempfile.TemporaryDirectory() as place:
        yield _cold_start(Path(place), peer)
    with tempfile.TemporaryDirectory() as place:
        yield _large_folder(Path(place), peer)


def _import(peer: str) -> Row:
    loaded = json.loads(run("-c", "import hwaga, sys, json; print(json.dumps('torch' in sys.modules))"))
    row = compare(
        "fresh process", "import", peer, lambda: run("-c", "import hwaga"),
        lambda: run("-c", HIDE_TORCHVISION + "from diffusers import DDIMPipeline"), rounds=5, patience=120,
        note="aim: under 0.3 s, interpreter included, without torch" + ("; TORCH WAS IMPORTED" if loaded else ""),
    )  # fmt: skip
    row.other["torch_imported"] = loaded
    return row


def _cold_start(place: Path, peer: str) -> Row:
    folder = place / "tiny"
    save_ddim(folder, unet2d((32, 64), (False, True)))
    options = ["sample", str(folder), "--sampler", "ddim", "--steps", "10", "--seed", "0", "--out"]
    pictures = [place / "ours.png", place / "theirs.png"]

    def ours() -> None:
        pictures[0].unlink(missing_ok=True)
        run("-c", HWAGA, *options, str(pictures[0]))

    return compare(
        "fresh process", "one picture of a tiny folder, 10 steps", peer, ours,
        lambda: run("-c", DIFFUSERS, str(folder), str(pictures[1])), rounds=7, patience=200, aim=0.3,
        note="noise differs, so the pictures do",
    )  # fmt: skip


def _large_folder(place: Path, peer: str) -> Row:
    """The file is written by hand from the shapes, so that making it needs no memory, and read once before."""
    from diffusers import DDIMPipeline, DDIMScheduler

    small = unet2d((32, 32, 32, 32), LARGE["attention"])
    DDIMPipeline(unet=small, scheduler=DDIMScheduler()).save_pretrained(place)
    config = json.loads((place / "unet" / "config.json").read_text())
    config["block_out_channels"] = LARGE["channels"]
    (place / "unet" / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in unet2d(**LARGE).state_dict().items()}
    file = place / "unet" / "diffusion_pytorch_model.safetensors"
    size = _write(file, shapes)
    with open(file, "rb") as opened:
        while opened.read(2**24):
            pass
    found: dict[str, list[dict[str, float]]] = {"hwaga": [], "diffusers": []}

    def one(side: str) -> None:
        found[side].append(json.loads(run("-c", MEASURE, side, str(place))))

    row = compare(
        "fresh process", f"folder of {size / 1e9:.2f} GB, loaded", peer, lambda: one("hwaga"), lambda: one("diffusers"),
        rounds=5, patience=200,
    )  # fmt: skip
    best = {side: min(found[side], key=lambda one: one["seconds"]) for side in found}
    row.ours, row.theirs = (sorted(one["seconds"] for one in found[s])[len(found[s]) // 2] for s in found)
    pairs = sorted(a["seconds"] / b["seconds"] for a, b in zip(found["hwaga"], found["diffusers"], strict=False))
    row.low, row.ratio, row.high = pairs[0], pairs[len(pairs) // 2], pairs[-1]
    ours, theirs = best["hwaga"], best["diffusers"]
    row.difference = abs(ours["sum"] - theirs["sum"]) / abs(theirs["sum"])
    row.other |= {
        "file_bytes": size,
        **{f"{side}_{key}_over_file": best[side][key] / size for side in best for key in best[side] if "s" != key[0]},
    }
    row.note = (
        f"aim: under 0.2 s, peak at most 1.05 x file; after all pages were read, peak {ours['peak'] / size:.3f} x file "
        f"(theirs {theirs['peak'] / size:.3f}), of it not from the file {ours['anonymous_all_read'] / size:.4f}"
    )
    return row


def _write(file: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """A safetensors file of random float32 numbers; returns its size."""
    header, place = {}, 0
    for name, shape in shapes.items():
        end = place + 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, end]}
        place = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    noise = (np.random.default_rng(0).standard_normal(2**22, dtype=np.float32) * 0.02).tobytes()
    with open(file, "wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for start in range(0, place, len(noise)):
            out.write(noise[: min(len(noise), place - start)])
    return file.stat().st_size
