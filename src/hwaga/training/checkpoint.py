"""Checkpoints: folders `checkpoints/step-N/` that are whole or not there, safetensors and JSON only.

    network-NAME.safetensors      weights and buffers of each network, those of finished stages too
    ema-HALFLIFE-NAME.safetensors each moving average
    optimizer-NAME.safetensors    first and second moments and counts, by parameter
    state.json                    format, step, stage, place in the data, what is logged so far, hashes of the files

There are no random states to store: every draw is a function of the seed and the step (loop.py), which state.json has.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import InputError
from ..files import PART, read_json, sha256, whole_folder, write_json, write_tensors
from .distributed import fill, whole
from .loop import Trainer
from .watching import check_weights

FORMAT = 1
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on the disk."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def stage(self) -> str:
        return str(self.state["stage"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, by name. InputError when it is missing or cannot be read."""
        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}
        except FileNotFoundError:
            raise InputError(f"checkpoint {self.folder} lacks {path.name}") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"checkpoint {self.folder}: {path.name} cannot be read: {error}") from None


def parts(trainer: Trainer, finished: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds, by file name without its ending. Every process must ask where weights are shared out."""
    networks = {**finished, **trainer.stage.networks}
    found: dict[str, dict[str, Tensor]] = {f"network-{n}": m.state_dict() for n, m in networks.items()}
    for half_life, averages in trainer.ema.averages.items():
        found |= {f"ema-{half_life:g}-{name}": tensors for name, tensors in averages.items()}
    found |= {f"optimizer-{name}": o.tensors() for name, o in trainer.optimizers.items()}
    return {file: {key: whole(t) for key, t in tensors.items()} for file, tensors in found.items()}


def save(
    root: Path, step: int, trainer: Trainer, finished: Mapping[str, nn.Module], about: Mapping[str, Any], keep: int
) -> Path | None:
    """Writes `root/step-N` and then removes all but the newest `keep`.

    `finished` are the networks of earlier stages, `about` goes into state.json. WorkError if a weight is not finite, or
    if there is no space: the older checkpoints are then intact. Only the main process writes (the others get None).
    """
    check_weights(trainer)
    found = parts(trainer, finished)
    if not trainer.world.main:
        return None
    folder = root / f"step-{step}"
    with whole_folder(folder, replace=True) as part:
        for name, tensors in found.items():
            write_tensors(part / f"{name}.safetensors", tensors)
        state = {
            "format": FORMAT,
            "step": step,
            "stage": trainer.stage.name,
            "stage_step": trainer.done,
            **about,
            "random": {"seed": trainer.config.seed, "kind": "a function of (seed, stage, step, name)"},
            "schedule": {name: o.rate_at(max(0, trainer.done - 1)) for name, o in trainer.optimizers.items()},
            "sums": {name: list(pair) for name, pair in trainer.sums.items()},
            "finished": sorted(finished),
            "files": {f"{name}.safetensors": sha256(part / f"{name}.safetensors") for name in sorted(found)},
        }
        write_json(part / STATE, state)
    for old in [*steps(root)][: -max(1, keep)]:
        shutil.rmtree(root / f"step-{old}", ignore_errors=True)
    return folder


def steps(root: Path) -> list[int]:
    """The steps of the checkpoints in a folder, oldest first."""
    if not root.is_dir():
        return []
    found = (re.fullmatch(r"step-(\d+)", entry.name) for entry in root.iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in found if match)


def latest(root: Path, say: Callable[[str], None] = print, aside: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint, or None. A damaged one is named (`say`), and the one before is taken.

    With `aside` a damaged one is renamed to damaged-step-N, so that nothing reads or counts it any more. InputError for
    one of a newer format: nothing is done to it.
    """
    for step in reversed(steps(root)):
        folder = root / f"step-{step}"
        try:
            return read(folder)
        except _Damaged as trouble:
            say(f"checkpoint step-{step} is damaged and is left out: {trouble}")
            if aside:
                damaged = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(damaged, ignore_errors=True)
                folder.rename(damaged)
    return None


class _Damaged(InputError):
    """A checkpoint that is not whole."""


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, every file compared with its hash. InputError names the part that is not right."""
    try:
        state = read_json(folder / STATE)
    except InputError as error:
        raise _Damaged(str(error)) from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise _Damaged(f"{STATE} has no format")
    if state["format"] > FORMAT:
        raise InputError(
            f"{folder} has format {state['format']}, this version reads up to {FORMAT}; a newer hwaga wrote it"
        )
    files = state.get("files")
    if not isinstance(files, dict) or not all(isinstance(state.get(key), int) for key in ("step", "stage_step")):
        raise _Damaged(f"{STATE} is not complete")
    for name, hash_ in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise _Damaged(f"{name} is missing")
        if sha256(path) != hash_:
            raise _Damaged(f"{name} is cut short or altered (its hash differs)")
    return Checkpoint(folder, state)


def load(checkpoint: Checkpoint, trainer: Trainer, finished: Mapping[str, nn.Module]) -> None:
    """Puts a checkpoint into a trainer and into the networks of earlier stages.

    InputError names the first thing that is missing, left over or of another shape: then nothing was changed.
    """
    places: list[tuple[str, dict[str, Tensor]]] = []
    for name, network in {**finished, **trainer.stage.networks}.items():
        places.append((f"network-{name}", network.state_dict()))
    for half_life, averages in trainer.ema.averages.items():
        places += [(f"ema-{half_life:g}-{name}", tensors) for name, tensors in averages.items()]
    given = {name: checkpoint.tensors(name) for name, _ in places}
    for name, own in places:
        _same_shapes(checkpoint.folder / f"{name}.safetensors", own, given[name])
    moments = {name: checkpoint.tensors(f"optimizer-{name}") for name in trainer.optimizers}
    for name, optimizer in trainer.optimizers.items():
        _moments_fit(checkpoint.folder / f"optimizer-{name}.safetensors", optimizer.shapes(), moments[name])
    with torch.no_grad():
        for name, own in places:
            for key, tensor in own.items():
                fill(tensor, given[name][key])
    for name, optimizer in trainer.optimizers.items():
        optimizer.load(moments[name])
    trainer.done = int(checkpoint.state["stage_step"])
    sums = checkpoint.state.get("sums", {}) if trainer.world.main else {}
    trainer.sums = {name: (float(total), float(weight)) for name, (total, weight) in sums.items()}


def _same_shapes(path: Path, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for key in sorted(own.keys() | given.keys()):
        if key not in given:
            raise InputError(f"{path} lacks {key!r}")
        if key not in own:
            raise InputError(f"{path} has {key!r}, which this recipe's network has not")
        if own[key].shape != given[key].shape:
            raise InputError(
                f"{path}: {key!r} has shape {tuple(given[key].shape)}, this recipe's network has "
                f"{tuple(own[key].shape)}"
            )


def _moments_fit(path: Path, shapes: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> None:
    for key, tensor in given.items():
        name, _, what = key.rpartition(":")
        if name not in shapes or (what != "step" and tensor.shape != shapes[name]):
            raise InputError(f"{path}: {key!r} of shape {tuple(tensor.shape)} belongs to no parameter of this recipe")


def clear_parts(folder: Path) -> None:
    """Removes what interrupted writes left in a folder (the run is locked: nobody is writing there)."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name.startswith(".") and PART in entry.name:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
