"""The codebook's lookup against vector-quantize-pytorch's (where it is installed), in time and in memory; and what a token of
the transformer costs at the end of a picture, against one at its start.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hwaga.networks.gpt import GPTConfig
from hwaga.networks.vq import nearest

from .pairing import Row, compare, gflop
from .peers import version
from .processes import MEMORY, run

GROUP, CODES, VECTORS, WIDTH = "vq", 8192, 65_536, 64
PLACES = 256  # codes of a picture of 16 x 16
PEAK = (
    MEMORY
    + """
import json, sys, torch
side, codes, vectors, width = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
z, book = torch.randn(vectors, width), torch.randn(codes, width)
if side == "hwaga":
    from hwaga.networks.vq import nearest
    look = lambda: nearest(z, book)
else:
    from vector_quantize_pytorch import VectorQuantize
    module = VectorQuantize(dim=width, codebook_size=codes).eval()
    look = lambda: module(z[None])[1]
before = memory()["VmRSS"]
with torch.no_grad():
    look()
print(json.dumps(memory()["VmHWM"] - before))
"""
)


def rows() -> Iterator[Row]:
    if importlib.util.find_spec("vector_quantize_pytorch") is not None:
        yield _lookup(WIDTH)
        yield _lookup(8)
        yield _memory()
    yield _token()


@torch.no_grad()
def _lookup(width: int) -> Row:
    """The same vectors and codes on both sides; theirs is its module in evaluation mode, ours the function and the vectors."""
    from vector_quantize_pytorch import VectorQuantize  # type: ignore[import-not-found]

    generator = torch.Generator().manual_seed(0)
    z, book = torch.randn(VECTORS, width, generator=generator), torch.randn(CODES, width, generator=generator)
    peer = VectorQuantize(dim=width, codebook_size=CODES).eval()
    peer._codebook.embed.copy_(book[None])

    def ours() -> Tensor:
        return book[nearest(z, book)]

    def theirs() -> Tensor:
        return peer(z[None])[0]

    difference = float((nearest(z, book) != peer(z[None])[1][0]).float().mean())
    return compare(
        GROUP, f"lookup, {CODES:,} codes of {width}, {VECTORS:,} vectors", version("vector-quantize-pytorch"), ours, theirs,
        rounds=3, patience=120, aim=0.7, gflop=gflop(lambda: z @ book.T), difference=difference,
        note="difference: share of vectors with another code (rounding there decides near ties)",
    )  # fmt: skip


def _memory() -> Row:
    """Peak resident memory that one lookup adds in a fresh process with one thread; the ratio is of memory."""
    sizes = (str(CODES), str(VECTORS), str(WIDTH))
    a, b = (float(json.loads(run("-c", PEAK, side, *sizes))) / 1e9 for side in ("hwaga", "peer"))
    return Row(
        GROUP, f"lookup, {CODES:,} codes of {WIDTH}, {VECTORS:,} vectors: peak memory", version("vector-quantize-pytorch"),
        a / b, a / b, a / b, a, b, 1, 0, note="figures are GB that the lookup adds, not seconds; aim: at most 0.5 GB",
    )  # fmt: skip


@torch.no_grad()
def _token() -> Row:
    """One pass of one token with a cache, at the last place of a picture and at its first."""
    network: Any = GPTConfig(vocabulary=1024, length=PLACES, width=512, heads=8, depth=12).build().eval()
    token = torch.zeros((1, 1), dtype=torch.int64)

    def at(place: int) -> Callable[[], Tensor]:
        cache = network.cache(1)
        for part in (*cache.keys, *cache.values):
            part.normal_(generator=torch.Generator().manual_seed(0))

        def once() -> Tensor:
            cache.filled = place
            return network(token, cache)

        return once

    return compare(
        GROUP, f"GPT token with cache, place {PLACES} against place 1", "hwaga (the first place)", at(PLACES - 1), at(0),
        aim=1.5,
    )  # fmt: skip
