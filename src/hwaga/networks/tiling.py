"""Encoding and decoding large pictures in parts, so that they fit in memory.

    whole      all at once: the plain forward pass
    exact      strips of rows through one layer after the other. A convolution asks for one row more on each side; a group
               norm's mean and variance are gathered over all strips first; attention, at the lowest resolution, sees the
               whole map. The result is that of `whole`, to rounding. One map of the largest resolution is held
    blended    overlapping tiles, each through the whole network by itself, blended where they overlap: what the public
               program does. Norms and attention see a tile, so colours may differ a little from tile to tile. Memory does not
               grow with the picture
    auto       whole while the largest map is small, exact while two of it are not too large, blended beyond

`network.tiling = Tiling("blended")` chooses. Where gradients are taken it is always whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle, silu

from ..layers.conv import Conv2d

Rows = Callable[[int, int], Tensor]
"""rows(a, b): the rows a ... b - 1 of a map (1, c, h, w)."""

STRIP = 2**24  # bytes of a strip of a map, about
HELD = 2**28  # a residual block's inner map of more bytes is made twice instead of being held
SMALL = 2**27  # a level whose largest map has fewer bytes is run as it is


@dataclass(frozen=True)
class Tiling:
    """How large pictures are worked off, and from which size on."""

    kind: Literal["auto", "whole", "exact", "blended"] = "auto"
    tile: int = 512  # side of a blended tile in pixels
    overlap: float = 0.25  # share of a tile that the next one covers too
    whole: int = 2**28  # auto: bytes of the largest map up to which all is done at once
    exact: int = 2**31  # auto: bytes of the largest map up to which strips are used

    def choose(self, config: Any, pictures: int, height: int, width: int, bytes_each: int = 4) -> str:
        """Which of the three serves pictures of (height, width) pixels; a rule on the shape, never a timing."""
        if self.kind != "auto":
            return self.kind
        size = largest(config, height, width) * bytes_each
        return "whole" if pictures * size <= self.whole else "exact" if size <= self.exact else "blended"


def largest(config: Any, height: int, width: int) -> int:
    """Numbers in the largest feature map of one picture."""
    return max(_numbers(config, i, height, width) for i in range(len(config.channels)))


def _numbers(config: Any, level: int, height: int, width: int) -> int:
    """Numbers in the largest map at a level: what comes up from below still has that level's channels."""
    side = config.patch * 2**level
    below = config.channels[min(level + 1, len(config.channels) - 1)]
    return max(config.channels[level], below) * (height // side) * (width // side)


def encoded(encoder: Any, image: Tensor, how: Tiling) -> Tensor:
    """encoder(image) for (n, 3, h, w), in parts where `how` says so."""
    kind = _kind(encoder, how, *image.shape)
    if kind == "whole":
        return encoder(image)
    with lean(encoder):
        if kind == "exact":
            return torch.cat([_encode_strips(encoder, one) for one in image.split(1)])
        return _blend(encoder, image, how.tile, max(1, how.tile // encoder.config.factor), how.overlap)


def decoded(decoder: Any, z: Tensor, how: Tiling) -> Tensor:
    """decoder(z) for (n, c, y, x), in parts where `how` says so."""
    factor = decoder.config.factor
    kind = _kind(decoder, how, len(z), z.shape[1], z.shape[2] * factor, z.shape[3] * factor)
    if kind == "whole":
        return decoder(z)
    with lean(decoder):
        if kind == "exact":
            return torch.cat([_decode_strips(decoder, one) for one in z.split(1)])
        return _blend(decoder, z, max(1, how.tile // factor), how.tile, how.overlap)


def _kind(network: Any, how: Tiling, n: int, c: int, height: int, width: int) -> str:
    if torch.is_grad_enabled():
        return "whole"
    return how.choose(network.config, n, height, width, network.conv_in.weight.element_size())


@contextmanager
def lean(network: nn.Module) -> Iterator[None]:
    """Inside, convolutions keep no transformed weights: a strip is large enough to pay for making them, and they would
    take four times the weights' memory."""
    layers = [part for part in network.modules() if isinstance(part, Conv2d) and part.cache_transforms]
    for layer in layers:
        layer.forget()
        layer.cache_transforms = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cache_transforms = True


# --------------------------------------------------------------------------------------------------------------- in tiles


def _blend(run: Callable[[Tensor], Tensor], x: Tensor, side: int, side_out: int, overlap: float) -> Tensor:
    """Tiles of `side` x `side` through `run`, which gives `side_out` for it; straight blends over what overlaps."""
    if max(x.shape[2:]) <= side:
        return run(x)
    step, extent = max(1, int(side * (1 - overlap))), int(side_out * overlap)
    kept, factor = side_out - extent, side_out / side
    n, _, height, width = x.shape
    out: Tensor | None = None
    above: list[Tensor] = []
    for i, top in enumerate(range(0, height, step)):
        row: list[Tensor] = []
        for j, left in enumerate(range(0, width, step)):
            tile = run(x[:, :, top : top + side, left : left + side])
            if out is None:
                out = tile.new_empty(n, tile.shape[1], round(height * factor), round(width * factor))
            if i > 0:
                tile = _joined(above[j], tile, extent, 2)
            if j > 0:
                tile = _joined(row[j - 1], tile, extent, 3)
            row.append(tile)
            piece = tile[:, :, :kept, :kept]
            y, z = i * kept, j * kept
            out[:, :, y : y + piece.shape[2], z : z + piece.shape[3]] = piece
        above = row
    assert out is not None
    return out


def _joined(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """`tile` with its first rows (columns) blended with the last of the tile before it."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    share = torch.arange(extent, device=tile.device, dtype=tile.dtype) / extent
    share = share.view(-1, 1) if dim == 2 else share
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    new = tile.narrow(dim, 0, extent)
    rest = tile.narrow(dim, extent, tile.shape[dim] - extent)
    return torch.cat([old * (1 - share) + new * share, rest], dim=dim)


# -------------------------------------------------------------------------------------------------------------- in strips


def _decode_strips(decoder: Any, z: Tensor) -> Tensor:
    """A decoder's forward pass, strip by strip from the first level on whose maps are large."""
    config, factor = decoder.config, decoder.config.factor
    height, width = z.shape[2] * factor, z.shape[3] * factor
    x = decoder.mid_block(decoder.conv_in(_last(z)))  # small enough at any size that strips are used for
    up: Any = None  # the step up is left to the next level: its result would be the largest map of all
    for i, level in zip(reversed(range(len(config.channels))), decoder.up_blocks, strict=True):
        if _numbers(config, i, height, width) * x.element_size() <= SMALL:
            x = level.inner(x if up is None else up(x))
        else:
            source = _Map(x) if up is None else _Raised(x, up)
            del x
            x = _blocks(level, source)
        up = level.upsamplers[0] if level.upsamplers is not None else None
    return _last_layers(decoder, x, pixel_shuffle)


def _encode_strips(encoder: Any, image: Tensor) -> Tensor:
    """An encoder's forward pass, strip by strip as long as the maps are large."""
    config, (height, width) = encoder.config, image.shape[2:]
    x = pixel_unshuffle(image, config.patch) if config.patch > 1 else image
    x = _through(encoder.conv_in, _Map(_last(x)))
    for i, level in enumerate(encoder.down_blocks):
        if _numbers(config, i, height, width) * x.element_size() <= SMALL:
            x = level(x)
            continue
        x = _blocks(level, _Map(x))
        if level.downsamplers is not None:
            x = _lowered(level.downsamplers[0].conv, x)
    x = encoder.mid_block(x)
    return _last_layers(encoder, x, None)


def _last_layers(network: Any, x: Tensor, shuffle: Any) -> Tensor:
    source = _Map(x)
    norm = _gathered(network.conv_norm_out, source)
    out = _through(network.conv_out, _Mapped(source, lambda rows: silu(norm(rows), inplace=True)))
    patch = network.config.patch
    return shuffle(out, patch) if shuffle is not None and patch > 1 else out


class _Map:
    """A map that is held."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.height, self.width = x, x.shape[2], x.shape[3]
        self.widest = x.shape[1]  # channels of the widest map that its rows are made through

    def __call__(self, a: int, b: int) -> Tensor:
        return self.x[:, :, a:b]

    def release(self, row: int) -> None:
        """Says that no row before `row` will be asked for again."""


class _Mapped(_Map):
    """A map whose rows are made from another's, each place by itself."""

    def __init__(self, source: _Map, function: Callable[[Tensor], Tensor]) -> None:
        self.source, self.function = source, function
        self.height, self.width, self.widest = source.height, source.width, source.widest

    def __call__(self, a: int, b: int) -> Tensor:
        return self.function(self.source(a, b))


class _Convolved(_Map):
    """A map that a 3 x 3 convolution makes of another's rows when it is asked for."""

    def __init__(self, conv: nn.Conv2d, source: _Map) -> None:
        self.conv, self.source = conv, source
        self.height, self.width, self.widest = source.height, source.width, max(source.widest, conv.out_channels)

    def __call__(self, a: int, b: int) -> Tensor:
        return _rows(self.conv, self.source, a, b, self.height)


class _Overwritten(_Map):
    """A held map whose rows are overwritten from above: the last of them are kept as they were."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.first, self.kept = 0, x[:, :, :0]  # the kept rows begin at `first`

    def __call__(self, a: int, b: int) -> Tensor:
        after = self.first + self.kept.shape[2]
        if a >= after:
            return self.x[:, :, a:b]
        return torch.cat([self.kept[:, :, a - self.first :], self.x[:, :, after:b]], dim=2)

    def release(self, row: int) -> None:
        """Keeps the rows from `row` to two below it, which are about to be overwritten."""
        row = max(0, row)
        self.kept, self.first = self(row, row + 2).clone(), row


class _Raised(_Map):
    """A map twice as large as the one that is held, made when it is asked for: nearest neighbour, then a convolution. What
    is held is given back piece by piece as it is no longer needed."""

    PIECE = 32

    def __init__(self, x: Tensor, upsampler: Any) -> None:
        self.conv = upsampler.conv
        self.pieces: list[Tensor | None] = [piece.clone() for piece in x.split(self.PIECE, dim=2)]
        self.below = x.shape[2]
        self.height, self.width, self.widest = 2 * x.shape[2], 2 * x.shape[3], self.conv.out_channels

    def __call__(self, a: int, b: int) -> Tensor:
        return _rows(self.conv, self._nearest, a, b, self.height)

    def _nearest(self, a: int, b: int) -> Tensor:
        low, high = a // 2, (b + 1) // 2
        first, last = low // self.PIECE, (high - 1) // self.PIECE
        held = [piece for piece in self.pieces[first : last + 1] if piece is not None]
        rows = torch.cat(held, dim=2)[:, :, low - first * self.PIECE : high - first * self.PIECE]
        return interpolate(rows, scale_factor=2.0, mode="nearest")[:, :, a - 2 * low : b - 2 * low]

    def release(self, row: int) -> None:
        for i in range(max(0, row // 2 - 1) // self.PIECE):
            self.pieces[i] = None


def _blocks(level: Any, source: _Map) -> Tensor:
    """The residual blocks (and attentions) of a level."""
    x: Tensor | None = None
    for j, block in enumerate(level.resnets):
        x = _resnet(block, source)
        if level.attentions is not None:
            x = level.attentions[j](x)
        source = _Map(x)
    assert x is not None
    return x


def _resnet(block: Any, source: _Map) -> Tensor:
    """A residual block. A held map without a shortcut is changed in place.

    Where maps are very large the inner one is not held: it is made twice, for its norm and for what comes of it.
    """
    in_place = block.conv_shortcut is None and type(source) is _Map
    norm = _gathered(block.norm1, source)
    if in_place:
        source = _Overwritten(source.x)
    inner: _Map = _Convolved(block.conv1, _Mapped(source, lambda rows: silu(norm(rows), inplace=True)))
    if block.conv1.out_channels * source.height * source.width * block.conv1.weight.element_size() <= HELD:
        inner = _Map(_whole(inner))
    norm2 = _gathered(block.norm2, inner)
    result = _Convolved(block.conv2, _Mapped(inner, lambda rows: silu(norm2(rows), inplace=True)))
    out: Tensor | None = source.x if in_place else None
    for a, b in _strips(result):
        own = source(a, b)
        part = result(a, b) + (own if block.conv_shortcut is None else block.conv_shortcut(own))
        out = _held(out, part, source)
        source.release(b - 2)  # rows above are not asked for again; in place, the two below are kept as they were
        out[:, :, a:b] = part
    assert out is not None
    return out


def _gathered(norm: nn.GroupNorm, source: _Map) -> Callable[[Tensor], Tensor]:
    """The group norm with mean and variance of the whole map, as a function of rows."""
    count, mean, square = (
        0.0,
        cast(Any, 0.0),
        cast(Any, 0.0),
    )  # of each group, in float64 (Chan, Golub and LeVeque 1983)
    for a, b in _strips(source):
        rows = source(a, b).unflatten(1, (norm.num_groups, -1))
        var, new = torch.var_mean(rows.float(), dim=(2, 3, 4), correction=0)
        var, new, size = var.double(), new.double(), float(rows[0, 0].numel())
        apart, total = new - mean, count + size
        square = square + var * size + apart.square() * (count * size / total)
        mean, count = mean + apart * (size / total), total
    deviation = (square / count + norm.eps).sqrt()
    repeats = norm.num_channels // norm.num_groups
    scale = norm.weight.double() / deviation.repeat_interleave(repeats, dim=1)
    shift = norm.bias.double() - mean.repeat_interleave(repeats, dim=1) * scale
    kind = norm.weight.dtype
    scale, shift = scale.to(kind)[:, :, None, None], shift.to(kind)[:, :, None, None]
    return lambda rows: torch.addcmul(shift, rows, scale)


def _through(conv: nn.Conv2d, source: _Map) -> Tensor:
    """A 3 x 3 convolution of a whole map."""
    return _whole(_Convolved(conv, source))


def _whole(source: _Map) -> Tensor:
    """All rows of a map."""
    out = None
    for a, b in _strips(source):
        part = source(a, b)
        out = _held(out, part, source)
        out[:, :, a:b] = part
    assert out is not None
    return out


def _lowered(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Half the height and width, one row and column of zeros below and to the right (layers/resnet.py: Downsample)."""
    height, step = x.shape[2] // 2, max(1, STRIP // (2 * x[:, :, :1].numel() * x.element_size()))
    parts = []
    for a in range(0, height, step):
        b = min(height, a + step)
        rows = x[:, :, 2 * a : 2 * b + 1]
        parts.append(conv(pad(rows, (0, 1, 0, 2 * (b - a) + 1 - rows.shape[2]))))
    return _last(torch.cat(parts, dim=2))


def _rows(conv: nn.Conv2d, rows: Rows, a: int, b: int, height: int) -> Tensor:
    """The rows a ... b - 1 of a 3 x 3 convolution with padding 1."""
    top, bottom = max(0, a - 1), min(height, b + 1)
    return conv(rows(top, bottom))[:, :, a - top : a - top + b - a]


def _strips(source: _Map) -> Iterator[tuple[int, int]]:
    step = max(4, STRIP // (4 * source.widest * source.width))
    for a in range(0, source.height, step):
        yield a, min(source.height, a + step)


def _held(out: Tensor | None, part: Tensor, source: _Map) -> Tensor:
    """Room for a whole map of which `part` is some rows; its memory is taken as it is written."""
    if out is not None:
        return out
    shape = (part.shape[0], part.shape[1], source.height, source.width)
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
