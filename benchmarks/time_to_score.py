"""What hwaga's DDPM reaches in 10 minutes, and the peers in 30: same pictures, same judge, same number of painted pictures.

    python -m benchmarks.time_to_score --out bench/time

    python -m benchmarks.time_to_score --out bench/time --pace        first, on an idle machine: seconds a step of each, minutes
    python -m benchmarks.time_to_score --out bench/time --threads 1   then, on a busy one: hours, one contestant after the other

A contestant's pace is measured first, on an idle machine: the median of its steps (no imports, no data preparation). It then
trains for as many steps as its minutes hold at that pace, however long they take beside other work, paints n pictures by
DDIM in the same number of steps from its averaged weights, and is judged against the held-out pictures (Frechet distance over
that of as many real training pictures). Each row is written as it is done, and is not measured again; paces, trained weights and
painted pictures are kept in --out, so that a stopped run goes on from there.

hwaga: recipe openmoji/ddpm-quick, as it is, in float32. denoising-diffusion-pytorch: its Unet (dim 64, its defaults) and one of
hwaga's size, GaussianDiffusion and the settings of its Trainer. diffusers: UNet2DModel as google/ddpm-cifar10-32 has it and one of
hwaga's size, in the loop of its unconditional example (which has no default network of this picture size).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the peers, before anything imports tqdm

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwaga.data import Dataset, Order, open_data
from hwaga.evaluation import evaluate
from hwaga.recipes import load_recipe

from .pairing import Disturbance
from .peers import CIFAR, NARROW, declare_torchvision_operators, hide_torchvision, unet2d, version, walked

RECIPE = "openmoji/ddpm-quick"
CHUNK = 50  # pictures painted at once, and kept


@dataclass
class Contestant:
    """`step()` trains once; `network()` is what to keep of it; `paint(network folder, n, seed)` gives (n, 3, h, w) in [0, 1]."""

    name: str
    peer: str
    minutes: float
    parameters: int
    batch: int
    step: Callable[[], None]
    save: Callable[[Path], None]
    load: Callable[[Path], Callable[[int, int], Tensor]]


# ------------------------------------------------------------------------------------------------------------ contestants


def ours(train: Dataset, given: argparse.Namespace) -> Contestant:
    import hwaga
    from hwaga.saving import save
    from hwaga.systems import find
    from hwaga.training import Trainer

    recipe = load_recipe(RECIPE, {"training.dtype": "float32", "training.seed": given.seed})
    counts = np.bincount(train.labels, minlength=len(train.classes)).tolist() if train.labels is not None else []
    system = find(recipe.system).create(
        recipe.model, size=train.size, classes=train.classes, label_counts=counts, seed=given.seed
    )
    config = recipe.training
    trainer = Trainer(system.stages()[0], config, train, Order(len(train), config.batch_size, given.seed))

    def load(folder: Path) -> Callable[[int, int], Tensor]:
        model = hwaga.load(folder)
        return lambda n, seed: model.sample(
            n=n, steps=given.steps, sampler="ddim", seed=seed, output="tensor", progress=False
        )

    return Contestant(
        f"hwaga, recipe {RECIPE}", f"hwaga {hwaga.__version__}", given.minutes,
        sum(system.parameters_by_network().values()), config.batch_size, trainer.step,
        lambda folder: save(system, folder, trainer.ema.weights(), replace=True), load,
    )  # fmt: skip


def _batches(train: Dataset, batch: int, seed: int, flip: bool) -> Iterator[Tensor]:
    """Shuffled epochs of pictures (batch, 3, h, w) in [0, 1], in memory."""
    pictures = torch.from_numpy(train.pixels(np.arange(len(train)))).float() / 255
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(pictures))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = pictures[order[start : start + batch]]
            if flip:
                turned = torch.from_numpy(generator.random(batch) < 0.5)
                chosen = torch.where(turned[:, None, None, None], chosen.flip(3), chosen)
            yield chosen


def _kept(network: nn.Module) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Writing a network's weights into a folder, and reading them back."""
    from safetensors.torch import load_model, save_model

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(network, str(folder / "weights.part"))
        os.replace(folder / "weights.part", folder / "weights.safetensors")

    return save, lambda folder: load_model(network, str(folder / "weights.safetensors")) and None


def lucidrains(train: Dataset, given: argparse.Namespace, multiples: tuple[int, ...], name: str) -> Contestant:
    """denoising-diffusion-pytorch: network, process and the numbers of its Trainer (version 2.3.4)."""
    declare_torchvision_operators()
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    torch.manual_seed(given.seed)
    network = Unet(dim=64, dim_mults=multiples)
    diffusion = GaussianDiffusion(network, image_size=train.size, timesteps=1000, sampling_timesteps=given.steps)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    batches = _batches(train, 16, given.seed, flip=True)

    def step() -> None:
        diffusion.train()
        loss = diffusion(next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    save, read = _kept(average.ema_model)

    def load(folder: Path) -> Callable[[int, int], Tensor]:
        read(folder)
        average.ema_model.eval()

        def paint(n: int, seed: int) -> Tensor:
            torch.manual_seed(seed)
            return average.ema_model.sample(batch_size=n).clamp(0, 1)

        return paint

    size = sum(p.numel() for p in network.parameters())
    peer = version("denoising-diffusion-pytorch")
    return Contestant(f"denoising-diffusion-pytorch, {name}", peer, given.peer_minutes, size, 16, step, save, load)


def diffusers(train: Dataset, given: argparse.Namespace, sizes: dict[str, Any], name: str) -> Contestant:
    """The numbers of diffusers' unconditional example: AdamW 1e-4 (0.95, 0.999), decay 1e-6, 500 steps of warm-up, its EMA."""
    hide_torchvision()
    from diffusers import DDIMScheduler, DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = unet2d(**sizes, seed=given.seed)
    noising = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / 500))
    average = EMAModel(
        network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, model_config=network.config
    )
    batches = _batches(train, 64, given.seed, flip=False)
    generator = torch.Generator().manual_seed(given.seed)

    def step() -> None:
        clean = next(batches) * 2 - 1
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(0, 1000, (len(clean),), generator=generator)
        loss = F.mse_loss(network(noising.add_noise(clean, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        warm.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    write, read = _kept(network)

    def save(folder: Path) -> None:
        average.copy_to(network.parameters())
        write(folder)

    def load(folder: Path) -> Callable[[int, int], Tensor]:
        read(folder)
        network.eval()
        scheduler = DDIMScheduler(num_train_timesteps=1000)

        @torch.no_grad()
        def paint(n: int, seed: int) -> Tensor:
            x = torch.randn(n, 3, *train.size, generator=torch.Generator().manual_seed(seed))
            return walked(network, scheduler, x, given.steps)

        return paint

    size = sum(p.numel() for p in network.parameters())
    peer = version("diffusers")
    return Contestant(f"diffusers UNet2DModel, {name}", peer, given.peer_minutes, size, 64, step, save, load)


CONTESTANTS: dict[str, Callable[[Dataset, argparse.Namespace], Contestant]] = {
    "hwaga": ours,
    "ddp-default": lambda data, given: lucidrains(data, given, (1, 2, 4, 8), "its default network"),
    "ddp-small": lambda data, given: lucidrains(data, given, (1, 2, 2), "a network of hwaga's size"),
    "diffusers-cifar": lambda data, given: diffusers(data, given, CIFAR, "the CIFAR-10 network"),
    "diffusers-small": lambda data, given: diffusers(data, given, NARROW, "a network of hwaga's size"),
}

# ----------------------------------------------------------------------------------------------------------- the contest


def contest(key: str, train: Dataset, held_out: Dataset, given: argparse.Namespace) -> dict[str, Any]:
    who = CONTESTANTS[key](train, given)
    folder = given.out / f"{key}-{who.minutes:g}min-seed{given.seed}"
    told, paced = folder / "training.json", given.out / "paces" / f"{key}.json"
    if not paced.is_file():
        raise SystemExit(f"no pace of {key} in {given.out}; measure it first, on an idle machine: --pace {key}")
    if not told.is_file():
        pace = json.loads(paced.read_text())
        steps = max(1, round(who.minutes * 60 / pace["seconds_a_step"]))
        print(f"{who.name} ({who.parameters / 1e6:.1f} M): {steps} steps, {who.minutes:g} minutes' worth", flush=True)
        training(who, steps)
        who.save(folder / "model")
        told.write_text(json.dumps({"steps": steps, "pictures_seen": steps * who.batch, "pace": pace}))
    paint = who.load(folder / "model")
    places = folder / f"painted-{given.steps}steps"
    places.mkdir(exist_ok=True)
    painted, seconds = [], 0.0
    for start in range(0, given.n, CHUNK):
        file = places / f"{start:05}.npy"
        if not file.is_file():
            begun = time.perf_counter()
            pictures = paint(CHUNK, given.seed * 100_000 + start)
            seconds += time.perf_counter() - begun
            print(f"  painted {start + CHUNK} of {given.n}", flush=True)
            with open(places / "part", "wb") as out:
                np.save(out, (pictures * 255).round().to(torch.uint8).numpy(), allow_pickle=False)
            os.replace(places / "part", file)
        painted.append(np.load(file, allow_pickle=False))
    scores = evaluate(np.concatenate(painted)[: given.n], held_out, training=train, seed=given.seed)
    return {
        "key": key, "name": who.name, "peer": who.peer, "parameters": who.parameters, "minutes": who.minutes,
        "batch": who.batch, **json.loads(told.read_text()), "n": given.n, "sampling_steps": given.steps,
        "seed": given.seed, "scores": {k: float(f"{v:.6g}") for k, v in scores.values.items()},
        "intervals": {k: [float(f"{x:.6g}") for x in v] for k, v in scores.intervals.items()},
        "features": str(scores.card.get("features")),
    }  # fmt: skip


def pace(who: Contestant, seconds: float = 40) -> dict[str, Any]:
    """The median time of a step, of as many as `seconds` hold (five at least); what others took of the machine is told beside."""
    who.step()  # the first one's setting up is not counted on either side
    watch, times = Disturbance(), list[float]()
    while sum(times) < seconds or len(times) < 5:
        begun = time.perf_counter()
        who.step()
        times.append(time.perf_counter() - begun)
    return {
        "seconds_a_step": float(f"{statistics.median(times):.6g}"), "steps_timed": len(times),
        "threads": torch.get_num_threads(), "others_took_cores": round(watch.share(), 3),
    }  # fmt: skip


def training(who: Contestant, steps: int) -> None:
    told = time.perf_counter()
    for k in range(steps):
        who.step()
        if time.perf_counter() - told >= 60:
            told = time.perf_counter()
            print(f"  {k + 1} of {steps} steps", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("contestants", nargs="*", metavar="CONTESTANT", help=", ".join(CONTESTANTS))
    parser.add_argument("--out", type=Path, default=Path("bench/time"), help="where weights and pictures are kept")
    parser.add_argument(
        "--rows", type=Path, default=Path(__file__).with_suffix(".json"), help="where rows are appended"
    )
    parser.add_argument("--pace", action="store_true", help="measure the pace of each, and train nothing")
    parser.add_argument("--minutes", type=float, default=10, help="hwaga's")
    parser.add_argument("--peer-minutes", type=float, default=30)
    parser.add_argument("--n", type=int, default=500, help="pictures that are judged")
    parser.add_argument("--steps", type=int, default=50, help="of DDIM, for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    for key in given.contestants:
        if key not in CONTESTANTS:
            parser.error(f"unknown contestant {key!r}; choose from {', '.join(CONTESTANTS)}")
    torch.set_num_threads(given.threads)
    data = load_recipe(RECIPE).data
    train, held_out = open_data(data, "train"), open_data(data, "held-out")
    rows = json.loads(given.rows.read_text()) if given.rows.is_file() else []
    for key in given.contestants or CONTESTANTS if given.pace else ():
        found = pace(CONTESTANTS[key](train, given))
        (given.out / "paces").mkdir(parents=True, exist_ok=True)
        (given.out / "paces" / f"{key}.json").write_text(json.dumps(found) + "\n")
        print(key, found, flush=True)
    if given.pace:
        return
    for key in given.contestants or CONTESTANTS:
        minutes = given.minutes if key == "hwaga" else given.peer_minutes
        asked = {"key": key, "minutes": minutes, "n": given.n, "sampling_steps": given.steps, "seed": given.seed}
        if any(all(row[k] == v for k, v in asked.items()) for row in rows):
            continue
        rows.append(contest(key, train, held_out, given))
        given.rows.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        over = row["scores"].get("fid_over_floor", float("nan"))
        print(
            f"{row['name']} ({row['parameters'] / 1e6:.1f} M): {row['minutes']:g} min, {row['pictures_seen']:,} pictures seen, "
            f"FD {row['scores']['fid']:.4g} = {over:.2f} x floor at n = {row['n']}, seed {row['seed']}"
            + ("; DISTURBED" if row["pace"]["others_took_cores"] > 0.1 else "")
        )


if __name__ == "__main__":
    main()
