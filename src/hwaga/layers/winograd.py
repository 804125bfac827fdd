"""Minimal filtering of pictures by 3 x 3 kernels: fewer multiplications than the direct sum.

F(m x m, 3 x 3) computes a tile of m x m outputs from (m + 2) x (m + 2) inputs,

    Y = A^T [(G g G^T) * (B^T d B)] A        (Lavin and Gray 2015, arXiv:1509.09308, equation 8)

summed over the input's channels before the last transform (equations 9 to 12 there; the idea: Winograd 1980). It
multiplies (m + 2)^2 times for m^2 outputs, where the direct sum needs 9 m^2: 16 instead of 36 for m = 2, 36 instead of
144 for m = 4.

Everything is a few large operations. A transform is one Kronecker square (of B^T: (m + 2)^2 rows and columns) times
whole tiles that lie as (tile, position, channel); the sum over channels is one batched product over the positions. Work
goes through blocks of some megabytes: intermediate values stay in the processor's cache, and the allocator reuses their
memory (pages of large fresh allocations are cleared by the system each time). All sums have a fixed order: the same
bits on every run.

Pictures are (n, h, w, channels) here, i.e. the memory of `torch.channels_last`; `conv.py` has the module.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = 12 * 2**20  # of one intermediate; 6 to 24 MiB measured alike, more or less is slower

# B^T, G and A^T: Lavin and Gray, sections 4.1 (m = 2) and 4.3 (m = 4); points 0, 1, -1 and 0, 1, -1, 2, -2.
_INPUT = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
}  # fmt: skip
_KERNEL = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
}  # fmt: skip
_OUTPUT = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}  # fmt: skip


class Matrices(NamedTuple):
    """The Kronecker squares of the three transforms; P = (m + 2)^2 positions."""

    input: Tensor  # (P, P)
    kernel: Tensor  # (P, 9)
    output: Tensor  # (m * m, P)


@lru_cache(maxsize=8)
def matrices(m: int, dtype: torch.dtype) -> Matrices:
    """The transforms of F(m x m, 3 x 3) for m = 2 or 4, rounded once from float64."""
    with torch.inference_mode(False):  # a constant made inside inference mode could never be used in training
        small = [torch.tensor(table[m], dtype=torch.float64) for table in (_INPUT, _KERNEL, _OUTPUT)]
        return Matrices(*(torch.kron(one, one).to(dtype).contiguous() for one in small))


def transform_kernel(weight: Tensor, m: int, adjoint: bool = False) -> Tensor:
    """U = G g G^T of every kernel, ready to be multiplied: (P, channels in, channels out), a view of one new tensor.

    `weight` is (out, in, 3, 3). With `adjoint`, the kernel of the transposed convolution (turned by 180 degrees, its
    channels exchanged), which takes the output's gradient to the input's: (P, out, in).
    """
    out, into = weight.shape[:2]
    kernel = matrices(m, weight.dtype).kernel
    if adjoint:
        kernel = kernel.flip(1)  # turning the kernel is reading its nine numbers backwards
    u = torch.mm(kernel, weight.reshape(out * into, 9).t()).view(-1, out, into)
    return u if adjoint else u.transpose(1, 2)


class _Block(NamedTuple):
    first: int  # picture
    pictures: int
    row: int  # of tiles
    rows: int


def _blocks(n: int, rows: int, row_bytes: int) -> Iterator[_Block]:
    """Cuts n pictures of `rows` rows of tiles into blocks of about BLOCK_BYTES: some pictures, or a strip of one."""
    if n == 0 or rows == 0:
        return
    picture = rows * row_bytes
    if picture <= BLOCK_BYTES or n > 1 and picture < 2 * BLOCK_BYTES:
        parts = -(-n // max(1, BLOCK_BYTES // picture))
        size = -(-n // parts)
        for first in range(0, n, size):
            yield _Block(first, min(size, n - first), 0, rows)
        return
    parts = -(-picture // BLOCK_BYTES)
    size = -(-rows // parts)
    for first in range(n):
        for row in range(0, rows, size):
            yield _Block(first, 1, row, min(size, rows - row))


def _input_tiles(x: Tensor, m: int, block: _Block, columns: int) -> Tensor:
    """The overlapping tiles of a block, zeros outside of the picture: (tiles, P, channels)."""
    h, w, c = x.shape[1:]
    top, bottom = block.row * m - 1, (block.row + block.rows) * m + 1
    inside = x[block.first : block.first + block.pictures, max(top, 0) : min(bottom, h)]
    padded = F.pad(inside, (0, 0, 1, columns * m + 1 - w, max(-top, 0), max(bottom - h, 0)))
    s = padded.stride()
    r = m + 2
    tiles = padded.as_strided(
        (block.pictures, block.rows, columns, r, r, c), (s[0], m * s[1], m * s[2], s[1], s[2], s[3])
    )
    return tiles.reshape(-1, r * r, c)


def _output_tiles(y: Tensor, m: int, block: _Block, columns: int) -> Tensor:
    """The tiles of an output-sized picture, which do not overlap: (tiles, m * m, channels)."""
    h, w, k = y.shape[1:]
    bottom = (block.row + block.rows) * m
    inside = y[block.first : block.first + block.pictures, block.row * m : min(bottom, h)]
    if bottom > h or columns * m > w:
        inside = F.pad(inside, (0, 0, 0, columns * m - w, 0, max(bottom - h, 0)))
    tiles = inside.reshape(block.pictures, block.rows, m, columns, m, k)
    return tiles.permute(0, 1, 3, 2, 4, 5).reshape(-1, m * m, k)


def _each(matrix: Tensor, tiles: Tensor) -> Tensor:
    """The matrix times every tile, as one batched product."""
    return torch.bmm(matrix.expand(tiles.shape[0], *matrix.shape), tiles)


def convolve(x: Tensor, u: Tensor, m: int, bias: Tensor | None = None) -> Tensor:
    """Convolves (n, h, w, c) with transformed kernels u (P, c, k), stride 1, padding 1 -> (n, h, w, k) contiguous.

    Not differentiable by itself; any h and w (what m does not divide is padded and cut off again).
    """
    (n, h, w, c), k = x.shape, u.shape[2]
    rows, columns = -(-h // m), -(-w // m)
    mats = matrices(m, x.dtype)
    positions = u.shape[0]
    out = x.new_empty(n, rows * m, columns * m, k)
    for block in _blocks(n, rows, columns * positions * max(c, k) * x.element_size()):
        v = _each(mats.input, _input_tiles(x, m, block, columns))
        products = torch.bmm(v.transpose(0, 1), u)  # (P, tiles, k): the sum over channels
        y = torch.mm(mats.output, products.view(positions, -1))
        y = y.view(m, m, block.pictures, block.rows, columns, k).permute(2, 3, 0, 4, 1, 5)
        place = out[block.first : block.first + block.pictures, block.row * m : (block.row + block.rows) * m]
        place = place.view(block.pictures, block.rows, m, columns, m, k)
        if bias is None:
            place.copy_(y)
        else:
            torch.add(y, bias, out=place)
    return out if out.shape[1:3] == (h, w) else out[:, :h, :w].contiguous()


def kernel_gradient(x: Tensor, gradient: Tensor, m: int) -> Tensor:
    """The gradient of the kernels, from the input (n, h, w, c) and the output's gradient (n, h, w, k) -> (3, 3, k, c).

    The adjoint of `convolve` in its kernel: dU = sum over tiles of (A dY A^T) (B^T d B)^T, then G^T dU G.
    """
    (n, h, w, c), k = x.shape, gradient.shape[3]
    rows, columns = -(-h // m), -(-w // m)
    mats = matrices(m, x.dtype)
    positions = mats.input.shape[0]
    total: Tensor | None = None
    for block in _blocks(n, rows, columns * positions * max(c, k) * x.element_size()):
        v = _each(mats.input, _input_tiles(x, m, block, columns))
        dm = _each(mats.output.t(), _output_tiles(gradient, m, block, columns))
        left, right = dm.permute(1, 2, 0), v.transpose(0, 1)  # (P, k, tiles), (P, tiles, c)
        total = torch.bmm(left, right) if total is None else total.baddbmm_(left, right)
    if total is None:  # a batch of no pictures
        return x.new_zeros(3, 3, k, c)
    return torch.mm(mats.kernel.t(), total.view(positions, -1)).view(3, 3, k, c)
