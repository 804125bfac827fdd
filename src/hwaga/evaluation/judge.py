"""Trains the small networks that see drawings, each from a recipe of its own: the judge, and the one that systems are
trained through (`kind: plain`, see networks/perceptual.py), which never judges.

    python -m hwaga.evaluation.judge recipes/openmoji/features.yaml --out FOLDER
    python -m hwaga.evaluation.judge recipes/openmoji/perceptual.yaml --out FOLDER

A classifier of OpenMoji's subgroups on the training split alone: cross-entropy with label smoothing, AdamW with warm-up
and a cosine, small shifts, scales, rotations and changes of colour, an average of the weights. A second output, dropped
afterwards, tells how a picture was damaged (`augmentation.py`). It is no system: the one
training loop of `training/` is not used, as nothing here is resumed, and this room may not import that one. The same
recipe gives the same bits on the same kind of processor with the same torch and number of threads.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from .. import files
from ..errors import HwagaError, InputError, WorkError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..networks.features import FeatureNetwork
    from ..networks.perceptual import PlainNetwork
    from .augmentation import Augmentation, Lesson

    Network = FeatureNetwork | PlainNetwork

_SETTLING = 40  # batches that the norms are made anew from


class JudgeTraining(BaseModel, frozen=True, extra="forbid"):
    steps: int = Field(gt=0)
    batch_size: int = Field(128, gt=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup: int = Field(100, ge=0)  # steps
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    ema: float = Field(0.998, ge=0, lt=1)  # decay a step, reached by a warm-up
    seed: int = Field(0, ge=0)
    damage_weight: float = Field(0.5, ge=0)  # of the cross-entropy of the kind of damage
    augmentation: dict[str, Any] = Field(default_factory=dict)  # see augmentation.Augmentation


class JudgeNetwork(BaseModel, frozen=True, extra="forbid"):
    """Sizes of the network (`networks.features.FeaturesConfig`, or `networks.perceptual.PlainConfig` of kind `plain`;
    the number of classes comes from the data)."""

    kind: Literal["residual", "plain"] = "residual"
    channels: tuple[int, ...] = (48, 96, 160)
    blocks: int = 1
    features: int = Field(default=64, ge=1, le=64)


class JudgeRecipe(BaseModel, frozen=True, extra="forbid"):
    """The whole of `features.yaml`."""

    name: str = "openmoji/features"
    data: dict[str, Any]  # section `data` of any recipe: source, size (square), label, ...
    network: JudgeNetwork = JudgeNetwork()
    training: JudgeTraining


def load_recipe(path: str | Path) -> JudgeRecipe:
    """The recipe in a YAML file (read by the safe loader). InputError names the first key that is wrong."""
    import yaml

    try:
        return JudgeRecipe.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; name the recipe of a judging network (a YAML file)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the recipe"
        raise InputError(f"{path}: {where}={first['input']!r}: {first['msg']}") from None


# ------------------------------------------------------------------------------------------------------------ training


def _rate(step: int, how: JudgeTraining) -> float:
    warm = min(1.0, (step + 1) / (how.warmup + 1))
    return how.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / how.steps))


def train_network(
    pixels: np.ndarray,
    labels: np.ndarray,
    classes: int,
    network: JudgeNetwork,
    training: JudgeTraining,
    report: Callable[[int, float], None] | None = None,
) -> Network:
    """The averaged network after `training.steps` steps, in evaluation mode.

    pixels (N, 3, s, s) uint8, labels (N,) in 0 ... classes - 1; `report(step, loss)` is called every 50 steps.
    WorkError when the loss stops being finite. No global random state is touched.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    from ..layers.initialise import build_on
    from ..networks.features import FeaturesConfig, initialise
    from ..networks.perceptual import PlainConfig
    from .augmentation import KINDS, lesson

    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3] or pixels.dtype != np.uint8:
        raise InputError(f"pixels {pixels.dtype}{pixels.shape}: want uint8 square pictures (N, 3, s, s)")
    if len(labels) != len(pixels) or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels: want {len(pixels)} of them in 0 ... {classes - 1}")
    sizes: dict[str, Any] = {**network.model_dump(exclude={"kind"}), "size": pixels.shape[-1], "classes": classes}
    config = PlainConfig(**sizes) if network.kind == "plain" else FeaturesConfig(**sizes)
    how = _augmentation(training)
    generator = torch.Generator().manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    net: Any = initialise(build_on(config), generator)  # type: ignore[arg-type]
    net = net.to(memory_format=torch.channels_last)
    tell = torch.nn.utils.skip_init(torch.nn.Linear, config.features, len(KINDS))  # which damage: only for training
    torch.nn.init.normal_(tell.weight, std=config.features**-0.5, generator=generator)
    torch.nn.init.zeros_(tell.bias)
    average = copy.deepcopy(net)
    values = [*net.parameters(), *tell.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [value for value in values if value.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [value for value in values if value.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
    )
    images = torch.from_numpy(pixels)
    smooth = training.label_smoothing
    targets = F.one_hot(torch.from_numpy(labels.astype(np.int64)), classes).float() * (1 - smooth) + smooth / classes
    order = _stream(len(pixels), training.batch_size, rng)

    def next_lesson() -> Lesson:
        chosen = torch.from_numpy(next(order))
        made = lesson(images[chosen].float() / 127.5 - 1, targets[chosen], how, generator)
        return made._replace(image=made.image.contiguous(memory_format=torch.channels_last))

    for step in range(training.steps):
        now = next_lesson()
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, training)
        net.train()
        said = net(now.image)
        loss = F.cross_entropy(said.logits, now.target)
        loss = loss + training.damage_weight * F.cross_entropy(tell(said.features), now.damage)
        if not math.isfinite(loss.item()):
            raise WorkError(
                f"training of the network that sees: the loss is not finite at step {step}; nothing is kept"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(training.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        if report and (step + 1) % 50 == 0:
            report(step + 1, loss.item())
    _settle_norms(average, (next_lesson().image for _ in range(_SETTLING)))
    return average.eval()


def _augmentation(training: JudgeTraining) -> Augmentation:
    from .augmentation import Augmentation

    try:
        return Augmentation.model_validate(training.augmentation)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"training.augmentation.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _stream(length: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of places without end; every picture once an epoch, running over the borders of epochs."""
    import numpy as np

    rest = np.empty(0, dtype=np.int64)
    while True:
        while len(rest) < batch_size:
            rest = np.concatenate([rest, rng.permutation(length)])
        yield rest[:batch_size]
        rest = rest[batch_size:]


def _settle_norms(network: Network, batches: Iterable[Tensor]) -> None:
    """Means and variances of the averaged network's norms, made anew over pictures as it learned from them."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)


def accuracy(network: Network, pixels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Shares of pictures whose class is the first guess (`top1`) or among the first five (`top5`)."""
    import torch

    if not len(pixels):
        return {}
    with torch.no_grad():
        logits = torch.cat([network(part.float() / 127.5 - 1).logits for part in torch.from_numpy(pixels).split(256)])
    right = logits.topk(min(5, logits.shape[1])).indices == torch.from_numpy(labels)[:, None]
    return {
        "top1": round(right[:, 0].float().mean().item(), 4),
        "top5": round(right.any(1).float().mean().item(), 4),
        "n": len(pixels),
    }


def save_network(network: Network, folder: str | Path, about: dict[str, Any], replace: bool = False) -> None:
    """A folder with config.json, model.safetensors (matrices in float16) and model.json, whose hashes come last."""
    import torch

    from ..networks.perceptual import PlainNetwork, folded

    network, kind = (folded(network), "perceptual") if isinstance(network, PlainNetwork) else (network, "features")
    state = {
        name: value.half() if value.ndim > 1 else value
        for name, value in network.state_dict().items()
        if value.dtype == torch.float32  # the norms' counters of batches are of no use any more
    }
    with files.whole_folder(folder, replace) as part:
        files.write_json(part / "config.json", network.config.model_dump(mode="json"))
        files.write_tensors(part / "model.safetensors", state)
        hashes = {name: files.sha256(part / name) for name in ("config.json", "model.safetensors")}
        files.write_json(part / "model.json", {"format": 1, "kind": kind, **about, "files": hashes})


def train_features(
    data: Any,
    training: JudgeTraining,
    out: str | Path,
    *,
    network: JudgeNetwork | None = None,
    name: str = "openmoji/features",
    replace: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains on the split that `data` (a `hwaga.data.DataConfig`) trains on, measures on the held-out clusters, saves.

    Returns what it writes to `out/model.json`: data, training, held-out accuracy, licence, hashes are there.
    """
    import numpy as np

    from .. import __version__
    from ..data import open_data

    held_out_split = "held-out"
    if not replace and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise InputError(f"{out} exists already; name a new folder or remove it first")
    train = open_data(data)
    if train.labels is None:
        raise InputError(
            f"data.source={data.source!r} has no labels (data.label={data.label!r}); a judge needs classes"
        )
    held_out = open_data(data, held_out_split)
    pixels, labels = train.pixels(np.arange(len(train))), np.asarray(train.labels)
    say(f"{len(train)} pictures of {len(train.classes)} classes; judged on {len(held_out)} held-out ones")
    start = time.monotonic()

    def report(step: int, loss: float) -> None:
        passed = time.monotonic() - start
        left = passed / step * (training.steps - step)
        say(f"step {step} of {training.steps}  loss {loss:.3f}  {step / passed:.1f} steps/s  {left:.0f} s left")

    net = train_network(pixels, labels, len(train.classes), network or JudgeNetwork(), training, report)
    judged = accuracy(net, held_out.pixels(np.arange(len(held_out))), np.asarray(held_out.labels))
    about = {
        "name": name,
        "version": __version__,
        "classes": list(train.classes),
        "data": {
            "config": data.model_dump(mode="json"),
            "split": train.split,
            "n": len(train),
            "fingerprint": train.fingerprint,
        },
        "training": training.model_dump(mode="json"),
        "accuracy": {
            "train": accuracy(net, pixels, labels),
            held_out_split: judged,
        },
        "licence": train.licence,
        "attribution": train.attribution,
    }
    save_network(net, out, about, replace)
    say(f"held-out accuracy: first guess {judged.get('top1')}, among five {judged.get('top5')}; saved to {out}")
    return about


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status (0, 1 or 2, as everywhere in hwaga)."""
    parser = argparse.ArgumentParser(prog="python -m hwaga.evaluation.judge", description="train the judging network")
    parser.add_argument("recipe", help="YAML file, such as recipes/openmoji/features.yaml")
    parser.add_argument("--out", required=True, help="new folder for config.json, model.safetensors, model.json")
    parser.add_argument("--steps", type=int, help="in the place of training.steps")
    parser.add_argument("--threads", type=int, help="threads of torch (the weights depend on their number)")
    parser.add_argument("--replace", action="store_true", help="let OUT take the place of an older folder")
    given = parser.parse_args(arguments)
    try:
        recipe = load_recipe(given.recipe)
        training = recipe.training
        if given.steps is not None:
            if given.steps < 1:
                raise InputError(f"--steps {given.steps}: at least 1")
            training = training.model_copy(update={"steps": given.steps})
        if given.threads:
            import torch

            torch.set_num_threads(given.threads)
        from ..data import DataConfig

        try:
            data = DataConfig.model_validate(recipe.data)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{given.recipe}: data.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        train_features(data, training, given.out, network=recipe.network, name=recipe.name, replace=given.replace)
    except HwagaError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
