"""What is watched beside the loop: held-out losses of the model, and weights that are no numbers any more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import WorkError
from .loop import Pictures, StepDraw, Trainer, on


def held_out(trainer: Trainer, data: Pictures, pictures: int) -> dict[str, float]:
    """Held-out losses of the model, means over the first `pictures` of `data`, with draws that are always the same.

    A picture that has no part in a value (another time bin) is NaN there and left out of its mean.
    """
    if trainer.stage.held_out is None or not len(data):
        return {}
    count, size = min(pictures, len(data)), max(1, trainer.config.batch_size // trainer.config.accumulation)
    found: dict[str, list[Tensor]] = {}
    with trainer.showing():
        for start in range(0, count, size):
            indices = np.arange(start, min(start + size, count))
            draw = StepDraw(
                trainer.config.seed,
                f"{trainer.stage.name}/held-out",
                start,
                whole=len(indices),
                device=trainer.device,
                done=trainer.done,
            )
            with trainer.autocast():
                losses = trainer.stage.held_out(on(data.batch(indices, None), trainer.device), draw)
            for name, value in losses.items():
                found.setdefault(name, []).append(_full(value.detach()).cpu())
    means: dict[str, float] = {}
    for name, values in found.items():
        every = torch.cat(values).double()
        kept = every if name == "loss" else every[~every.isnan()]
        if len(kept):
            means[name] = float(kept.mean())
    return means


def check_weights(trainer: Trainer) -> None:
    """WorkError, naming the layer, if a weight or an average is not finite: called before anything is saved."""
    places: list[tuple[str, Mapping[str, Tensor]]] = [(n, m.state_dict()) for n, m in trainer.stage.networks.items()]
    places += [(f"ema {h:g} of {n}", t) for h, nets in trainer.ema.averages.items() for n, t in nets.items()]
    for place, tensors in places:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not _finite(tensor):
                raise WorkError(
                    f"stage {trainer.stage.name!r}, step {trainer.done}: weight {name!r} of {place} is not finite; "
                    "nothing was saved, the last checkpoint is intact"
                )


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _finite(tensor: Tensor) -> bool:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return bool(torch.isfinite(local).all())
