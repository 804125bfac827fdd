"""Painting token by token: the sampler of an autoregressive prior.

`next_logits(tokens)` says what may come after tokens (n, l), and a uniform number per place picks one by the inverse of
the cumulative probabilities: the same number, the same token, however many pictures are painted at once.

    temperature    logits / temperature: below 1 bolder, 1 the model's own, 0 the likeliest token alone
    top_k          only the k likeliest (those as likely as the k-th stay); None: all
    top_p          only the fewest that together have probability p (Holtzman et al. 2020, nucleus sampling); 1: all
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..interfaces import Point, Step
from .guidance import pushed

NextLogits = Callable[[Tensor], Tensor]
"""next_logits(tokens (n, l)) -> (n, k): logits of the token at place l; called for l = 0, 1, 2, ... in turn."""


def uniform_of(noise: Tensor) -> Tensor:
    """Uniform in [0, 1], float64, of standard normal noise: the probability that a normal number is less."""
    return 0.5 * torch.erfc(-noise.double() / math.sqrt(2))


def kept(logits: Float[Tensor, "n k"], top_k: int | None, top_p: float) -> Float[Tensor, "n k"]:
    """The logits with -inf in the place of what `top_k` and `top_p` leave out."""
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True, stable=True)
        share = ordered.double().softmax(1)
        beyond = share.cumsum(1) - share >= top_p  # what comes before has enough already
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -math.inf)
    return logits


def pick(logits: Float[Tensor, "n k"], uniform: Float[Tensor, " n"], temperature: float) -> Int[Tensor, " n"]:
    """One token a row: the first whose cumulative probability exceeds the row's uniform number."""
    if temperature == 0:
        return logits.argmax(1)
    share = (logits.double() / temperature).softmax(1)
    sums = share.cumsum(1)
    found = torch.searchsorted(sums, uniform[:, None].to(sums) * sums[:, -1:], right=True)[:, 0]
    last = share.shape[1] - 1 - (share > 0).flip(1).to(torch.uint8).argmax(1)  # where the number is 1 to rounding
    return torch.minimum(found, last)


def sample_tokens(
    next_logits: NextLogits, noise: Float[Tensor, "n l"], *, known: Tensor | None = None, temperature: float = 1.0,
    top_k: int | None = None, top_p: float = 1.0, callback: Callable[[Step], None] | None = None,
) -> Int[Tensor, "n l"]:  # fmt: skip
    """Tokens (n, l), one after the other, from standard normal `noise`, one number a place.

    known: (n, l) int64, -1 where a token is to be drawn; others are taken as they are, and what comes after sees them. The
    callback gets each step's logits as `x` and the tokens so far as `x0`. One call of `next_logits` a place: order 1.
    """
    n, length = noise.shape
    uniform = uniform_of(noise)
    tokens = torch.zeros((n, length), dtype=torch.int64, device=noise.device)
    for place in range(length):
        logits = next_logits(tokens[:, :place]).float()
        left = kept(logits, top_k, top_p) if top_k is not None or top_p < 1 else logits
        drawn = pick(left, uniform[:, place], temperature)
        tokens[:, place] = drawn if known is None else torch.where(known[:, place] < 0, drawn, known[:, place])
        if callback:
            at, to = (Point(1 - k / length, 0.0, 1.0, float(k)) for k in (place, place + 1))
            callback(Step(place, length, at, to, logits, tokens[:, : place + 1]))
    return tokens


def reading(network: Any, prefix: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> NextLogits:
    """`next_logits` of a network that reads rows of a grid of tokens behind a prefix, first row first.

    prefix: (n, p) tokens or (n, p, d) states that every row begins with, or (n, y, x) int64 a grid of conditions, of which it is
    what lies in the window. network(tokens, cache, before) -> logits, before what network.before(prefix) gives;
    network.cache(rows, length) an empty cache. A grid no larger than `window`, which the
    network was trained on, is read through once: one pass of one token a place. Of a larger one the network sees the window
    around a place, as central as the borders let it, and reads it anew where the window moves.
    Source: Esser et al. 2021, section 3.2 (sliding attention window).
    """
    height, width = min(grid[0], window[0]), min(grid[1], window[1])
    whole = prefix.dim() == 2 or prefix.is_floating_point()
    room = height * width + (prefix.shape[1] if whole else height * width)
    state: dict[str, Any] = {"origin": None, "cache": None, "read": 0}

    def next_logits(tokens: Tensor) -> Tensor:
        n, place = tokens.shape
        i, j = divmod(place, grid[1])
        top, left = (_start(i, height, grid[0]), _start(j, width, grid[1]))
        rows = torch.arange(top, i + 1, device=tokens.device)[:, None] * grid[1]
        places = (rows + torch.arange(left, left + width, device=tokens.device)).flatten()
        seen = tokens[:, places[: (i - top) * width + j - left]]
        if state["origin"] != (top, left) or state["read"] != seen.shape[1] - 1:
            state.update(origin=(top, left), cache=network.cache(n, room))
            told = prefix if whole else prefix[:, top : top + height, left : left + width].flatten(1)
            new, before = seen, network.before(told)
        else:
            new, before = seen[:, -1:], None
        state["read"] = seen.shape[1]
        return network(new, state["cache"], before)[:, -1]

    return next_logits


def guided(next_logits: NextLogits, scale: float) -> NextLogits:
    """Classifier-free guidance: l_0 + s (l - l_0). `next_logits` gives 2n rows, first those of l_0, which were told nothing.
    Source: Ho and Salimans 2022, eq. 6, on logits (Gafni et al. 2022, section 3.4)."""

    def both(tokens: Tensor) -> Tensor:
        null, told = next_logits(torch.cat([tokens, tokens])).chunk(2)
        return pushed(null, told, scale, null.shape[1])

    return both


def _start(place: int, window: int, whole: int) -> int:
    """Where a window around a place begins, held inside."""
    return min(max(0, place - window // 2), whole - window)
