"""Contrastive learning of pictures and words (Radford et al. 2021): which caption belongs to which picture?

Of n pictures and their n captions each picture is to be told from the others by its caption, and each caption by its
picture. Both towers end in a vector of length 1, and a temperature, learned with the rest, says how sharp the answer is.

    logits(i, j) = s <u_i, v_j>,  s = exp(learned), at most 100                  section 2.3 and figure 3
    loss = (cross-entropy over rows + cross-entropy over columns) / 2            (InfoNCE: van den Oord et al. 2018, eq. 4)

A pair (i, j) that means the same (one caption for two pictures) is no wrong answer: it is left out of both sums. In several
processes each works off its own pictures against the captions of all (`Everyone`), and the gradient finds its way back:
the sum over the processes is the gradient of the whole batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

HOTTEST = math.log(100.0)
"""The logarithm of the scale goes no higher: above it training becomes unstable (section 2.5)."""


def contrastive(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "n d"],
    log_scale: Tensor,
    meaning: Int[Tensor, "n k"] | None = None,
    everyone: Everyone | None = None,
) -> Float[Tensor, " n"]:
    """The symmetric loss of each picture and its caption, in nats.

    images, texts: of any length, brought to 1 here. meaning: pairs that agree in any of the k numbers mean the same.
    everyone: None compares within the batch that is given, else with the pictures of all processes.
    """
    images, texts = F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)
    scale, own = log_scale.float().clamp(max=HOTTEST).exp(), torch.arange(len(images), device=images.device)
    all_images, all_texts, all_meaning = images, texts, meaning
    if everyone is not None:
        own = own + everyone.start
        all_images, all_texts = everyone.gather(images), everyone.gather(texts)
        all_meaning = None if meaning is None else everyone.gather(meaning)
    by_image, by_text = scale * images @ all_texts.T, scale * texts @ all_images.T
    if meaning is not None and all_meaning is not None:
        same = same_meaning(meaning, all_meaning, own)
        by_image, by_text = (logits.masked_fill(same, -math.inf) for logits in (by_image, by_text))
    return (F.cross_entropy(by_image, own, reduction="none") + F.cross_entropy(by_text, own, reduction="none")) / 2


def same_meaning(mine: Int[Tensor, "n k"], all_: Int[Tensor, "m k"], own: Int[Tensor, " n"]) -> Bool[Tensor, "n m"]:
    """Pairs that mean the same, but for each picture and its own caption."""
    same = (mine[:, None] == all_[None]).any(2)
    return same.index_put((torch.arange(len(mine), device=mine.device), own), torch.zeros((), dtype=torch.bool))


def ranks(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"], meaning: Int[Tensor, "n k"] | None = None
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """How many wrong captions are nearer to each picture than its own, and how many pictures to each caption; 0 is right.
    Of two that are as near the wrong one comes first, so that vectors that are all alike find nothing."""
    near = F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
    own, places = near.diagonal().clone(), torch.arange(len(near), device=near.device)
    wrong = ~torch.eye(len(near), dtype=torch.bool, device=near.device)
    if meaning is not None:
        wrong &= ~same_meaning(meaning, meaning, places)
    return ((near >= own[:, None]) & wrong).sum(1), ((near >= own[None]) & wrong).sum(0)


# ---------------------------------------------------------------------------------------------------- several processes


class Everyone:
    """The pictures of all processes, in the order of their ranks; each may have another number of them."""

    def __init__(self, count: int, device: torch.device) -> None:
        counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
        counts[dist.get_rank()] = count
        dist.all_reduce(counts)
        self.start, self.total = int(counts[: dist.get_rank()].sum()), int(counts.sum())

    @classmethod
    def of(cls, batch: Tensor) -> Everyone | None:
        """None where a process is alone."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return None
        return cls(len(batch), batch.device)

    def gather(self, mine: Tensor) -> Tensor:
        """(total, ...) of this process's (n, ...); the gradient of every process's loss comes back to it."""
        found: Tensor = _Gather.apply(mine, self.start, self.total)  # type: ignore[no-untyped-call]
        return found


class _Gather(torch.autograd.Function):
    """A sum of parts that do not overlap. Its derivative is the part of the sum of what all processes send back."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, start: int, total: int) -> Tensor:
        ctx.place = (start, start + len(mine))
        whole = mine.new_zeros((total, *mine.shape[1:]))
        whole[start : start + len(mine)] = mine
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        whole = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole[slice(*ctx.place)], None, None
