"""The 3 x 3 convolutions of Stable Diffusion 1.5's UNet at 512 x 512 pixels (latents 2 x 4 x 64 x 64) against nn.Conv2d."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from hwaga.layers.conv import Conv2d

from .pairing import Row, compare, gflop, timed

AIM = 0.5
# channels in, channels out, side, batch, how many a forward has: stride 1, counted in the public network
SD15 = (
    (320, 320, 64, 2, 7), (640, 320, 64, 2, 2), (960, 320, 64, 2, 1), (640, 640, 64, 2, 1), (320, 640, 32, 2, 1),
    (640, 640, 32, 2, 6), (960, 640, 32, 2, 1), (1280, 640, 32, 2, 1), (1920, 640, 32, 2, 1), (1280, 1280, 32, 2, 1),
    (640, 1280, 16, 2, 1), (1280, 1280, 16, 2, 7), (1920, 1280, 16, 2, 1), (2560, 1280, 16, 2, 2),
    (1280, 1280, 8, 2, 11), (2560, 1280, 8, 2, 3),
)  # fmt: skip
OTHERS = ((512, 512, 64, 1), (256, 256, 256, 1), (128, 128, 512, 1), (128, 128, 32, 16), (256, 256, 16, 16))


@torch.no_grad()
def rows() -> Iterator[Row]:
    found: list[tuple[Row, int]] = []
    for c, k, side, n, times in SD15:
        row = _one("SD-1.5 3x3 convolutions", c, k, side, n)
        found.append((row, times))
        yield row
    ours, theirs = (sum(times * getattr(row, side) for row, times in found) for side in ("ours", "theirs"))
    low, high = (
        sum(times * getattr(row, end) * row.theirs for row, times in found) / theirs for end in ("low", "high")
    )
    work = sum(times * (row.gflop or 0) for row, times in found)
    machine = max(row.other["machine_gflops"] for row, _ in found)
    yield Row(
        "SD-1.5 3x3 convolutions", f"all {sum(times for _, times in found)} of a forward", found[0][0].peer,
        ours / theirs, low, high, ours, theirs, min(row.rounds for row, _ in found),
        sum(row.left_out for row, _ in found), AIM, work, work / ours / machine, work / theirs / machine,
        max(row.difference or 0 for row, _ in found), disturbed=any(row.disturbed for row, _ in found),
    )  # fmt: skip
    for shape in OTHERS:
        yield _one("other 3x3 convolutions", *shape)


def _one(group: str, c: int, k: int, side: int, n: int) -> Row:
    """Against the faster of the library's two memory layouts."""
    theirs = nn.Conv2d(c, k, 3, padding=1)
    ours = Conv2d(c, k, 3, padding=1)
    ours.load_state_dict(theirs.state_dict())
    ours.to(memory_format=torch.channels_last)
    x = torch.randn(n, c, side, side, generator=torch.Generator().manual_seed(0))
    last = x.contiguous(memory_format=torch.channels_last)
    difference = (ours(last) - theirs(x)).abs().max().item()
    work = gflop(lambda: theirs(x))
    plain = min(timed(lambda: theirs(x)) for _ in range(3))
    theirs.to(memory_format=torch.channels_last)
    theirs(last)
    layout, given = "channels_last", last
    if plain < min(timed(lambda: theirs(last)) for _ in range(3)):
        theirs.to(memory_format=torch.contiguous_format)
        layout, given = "contiguous", x
    return compare(
        group, f"{c} -> {k}, {side} x {side}, batch {n}", f"nn.Conv2d ({layout})", lambda: ours(last),
        lambda: theirs(given), least=0.1, patience=20, gflop=work, difference=difference,
    )  # fmt: skip
