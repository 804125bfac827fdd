"""Adaptive discriminator augmentation (Karras et al. 2020, "Training GANs with Limited Data").

D sees real and painted pictures only after they were changed at random, each change with probability p; all of it is
differentiable, so G learns through it. As long as p < 1 the changes can be undone in distribution: when the changed
painted pictures look like the changed real ones, the pictures themselves do (section 2.2, appendix C). So nothing of the
changes leaks into the paintings; in practice up to p of about 0.8.

p follows what D does: r = E sign(D(real)) tells how far D has learnt the training pictures by heart (section 3); above the
target p grows, below it falls. p and the sums behind r are buffers: the state of training.

    blit      mirror, turns by 90 degrees, shifts by whole pixels                        appendix B, figure 20
    geometry  scale, turn, stretch, shift by parts of pixels, between two orthogonal
              low-pass filters at twice the size (12 taps of the Symlet 6)
    colour    brightness, contrast, luma flip, hue, saturation
    corrupt   noise, a square cut out (not among the paper's default, `bgc`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ..interfaces import Draw
from ..layers.resample import resample

Group = Literal["blit", "geometry", "colour", "corrupt"]

SYMLET = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
# 12 taps (Daubechies 1992, table 6.3), of sum sqrt(2)


class AdaConfig(BaseModel, frozen=True, extra="forbid"):
    groups: tuple[Group, ...] = Field(("blit", "geometry", "colour"), description="the paper's bgc")
    target: float = Field(0.6, gt=0, lt=1, description="what E sign(D(real)) is held at")
    pictures: int = Field(500_000, ge=1, description="seen until p could go from 0 to 1")
    interval: int = Field(4, ge=1, description="steps between two adjustments of p")
    limit: float = Field(1.0, gt=0, le=1, description="p grows no further; above 0.8 changes may leak into pictures")
    start: float = Field(0.0, ge=0, le=1, description="the first p")
    fixed: bool = Field(False, description="p stays at `start`")

    def build(self) -> AdaptiveAugmentation:
        return AdaptiveAugmentation(self)


class AdaptiveAugmentation(nn.Module):
    """Pictures (n, 3, h, w) in [-1, 1] -> changed ones of the same size, all draws from `draw`."""

    p: Tensor
    signs: Tensor

    def __init__(self, config: AdaConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("p", torch.tensor(float(config.start)))
        self.register_buffer("signs", torch.zeros(2))  # sum of sign(D(real)), and of how many

    @torch.no_grad()
    def follow(self, real_logits: Tensor, step: int) -> None:
        """Takes note of what D says of real pictures, and moves p every `interval` steps."""
        signs = real_logits.float().sign()
        self.signs.add_(torch.stack([signs.sum(), torch.ones_like(signs).sum()]))
        if (step + 1) % self.config.interval == 0:
            if not self.config.fixed:
                overfit, seen = self.signs[0] / self.signs[1], self.signs[1]
                moved = self.p + (overfit - self.config.target).sign() * seen / self.config.pictures
                self.p.copy_(moved.clamp(0, self.config.limit))
            self.signs.zero_()

    def forward(self, picture: Float[Tensor, "n c h w"], draw: Draw, name: str) -> Float[Tensor, "n c h w"]:
        with torch.autocast(picture.device.type, enabled=False):  # places of pixels need all their digits
            return self._changed(picture.float(), Chances(self.p, draw, name, len(picture)))

    def _changed(self, picture: Tensor, chance: Chances) -> Tensor:
        if "blit" in self.config.groups:
            picture = blitted(picture, chance)
        if "geometry" in self.config.groups:
            picture = warped(picture, chance)
        if "colour" in self.config.groups:
            picture = coloured(picture, chance)
        if "corrupt" in self.config.groups:
            picture = corrupted(picture, chance)
        return picture


class Chances:
    """The draws of one batch: whether a change happens, and how strong it is."""

    def __init__(self, p: Tensor, draw: Draw, name: str, n: int) -> None:
        self.p, self.draw, self.name, self.n = p, draw, name, n

    def happens(self, what: str, p: Tensor | None = None) -> Tensor:
        """(n,) bool."""
        return self.draw.uniform(f"{self.name}.{what}?", (self.n,)) < (self.p if p is None else p)

    def uniform(self, what: str, *shape: int) -> Tensor:
        return self.draw.uniform(f"{self.name}.{what}", (self.n, *shape))

    def normal(self, what: str, *shape: int) -> Tensor:
        return self.draw.normal(f"{self.name}.{what}", (self.n, *shape))

    def choice(self, what: str, high: int) -> Tensor:
        return self.draw.integers(f"{self.name}.{what}", high, (self.n,))


# --------------------------------------------------------------------------------------------------- whole pixels (blitting)


def blitted(x: Tensor, chance: Chances) -> Tensor:
    """Mirror, quarter turns, shifts by whole pixels up to an eighth of the side: pixels move and keep their values."""
    mirrored = chance.happens("mirror") & (chance.choice("mirror", 2) == 1)
    x = torch.where(wide(mirrored), x.flip(3), x)
    turns = torch.where(chance.happens("turn"), chance.choice("turn", 4), 0)
    if x.shape[2] == x.shape[3]:
        for k in (1, 2, 3):
            x = torch.where(wide(turns == k), x.rot90(k, (2, 3)), x)
    shift = (chance.uniform("shift", 2) * 2 - 1) * 0.125
    shift = torch.where(chance.happens("shift")[:, None], shift, 0)
    rows, columns = ((shift[:, i] * x.shape[2 + i]).round().long() for i in (0, 1))
    return _moved(_moved(x, rows, 2), columns, 3)


def _moved(x: Tensor, by: Tensor, dim: int) -> Tensor:
    """Shifted along a side by whole pixels, mirrored at the edge."""
    size = x.shape[dim]
    at = (torch.arange(size, device=x.device) - by[:, None]).remainder(2 * size)
    at = torch.minimum(at, 2 * size - 1 - at)
    index = at[:, None, :, None] if dim == 2 else at[:, None, None, :]
    return x.gather(dim, index.expand_as(x))


# ------------------------------------------------------------------------------------------------- parts of pixels (geometry)


def warped(x: Tensor, chance: Chances) -> Tensor:
    """Scale, turn, stretch, turn again, shift. Two turns make any rotation before or after the stretch; each has chance
    1 - sqrt(1 - p), so that one of them happens with p."""
    n, _, height, width = x.shape
    once = 1 - (1 - chance.p).clamp(min=0).sqrt()
    octave = 0.2 * math.log(2)
    scaled, turned, stretched = chance.happens("scale"), chance.happens("turn1", once), chance.happens("stretch")
    again, shifted = chance.happens("turn2", once), chance.happens("move")
    one = torch.ones(n, device=x.device)
    scale = torch.where(scaled, (chance.normal("scale") * octave).exp(), one)
    stretch = torch.where(stretched, (chance.normal("stretch") * octave).exp(), one)
    angle1 = torch.where(turned, (chance.uniform("angle1") * 2 - 1) * math.pi, 0 * one)
    angle2 = torch.where(again, (chance.uniform("angle2") * 2 - 1) * math.pi, 0 * one)
    move = torch.where(shifted[:, None], chance.normal("move", 2) * 0.125, 0) * x.new_tensor([width, height])
    # from where (in pixels from the centre) a pixel of the result comes: the inverses, in the order of the changes
    back = _turn(-angle1) * (1 / scale)[:, None, None]
    back = back @ torch.diag_embed(torch.stack([1 / stretch, stretch], 1)) @ _turn(-angle2)
    offset = -(back @ move[:, :, None])[..., 0]
    changed = scaled | turned | stretched | again | shifted
    return torch.where(wide(changed), transformed(x, back, offset), x)


def _turn(angle: Tensor) -> Float[Tensor, "n 2 2"]:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def transformed(x: Float[Tensor, "n c h w"], back: Float[Tensor, "n 2 2"], offset: Float[Tensor, "n 2"]) -> Tensor:
    """The picture at back (x, y) + offset for every pixel (x, y), counted from the centre; mirrored outside.

    Twice as large through the Symlet's low-pass filter, read bilinearly there, and back through the same filter.
    """
    n, _, height, width = x.shape
    k = len(SYMLET)
    low = tuple(tap / math.sqrt(2) for tap in SYMLET)
    reach = min(k // 4 + 1, height - 1, width - 1)
    large = resample(
        F.pad(x, (reach,) * 4, mode="reflect"), low, up=2, before=(k + 1) // 2, after=(k - 2) // 2, gain=4.0
    )
    large = large[:, :, 2 * reach : -2 * reach, 2 * reach : -2 * reach]
    edge = (k - 1) // 2  # what the filter takes on the way back
    down = torch.arange(2 * height + 2 * edge, device=x.device, dtype=x.dtype) - (height + edge - 0.5)
    right = torch.arange(2 * width + 2 * edge, device=x.device, dtype=x.dtype) - (width + edge - 0.5)
    # the filter's centre of mass is not its middle: the larger picture stands by so much aside, in and out alike
    aside = sum(i * tap for i, tap in enumerate(SYMLET)) / sum(SYMLET) - (k - 1) / 2
    places = torch.stack(torch.broadcast_tensors(right[None, :], down[:, None]), dim=-1)
    at = (places - aside) / 2  # in pixels, (h', w', 2)
    where = torch.einsum("nij,hwj->nhwi", back, at) + offset[:, None, None]
    grid = (where + aside / 2) * x.new_tensor([2 / width, 2 / height])
    read: Tensor = _Read.apply(large, grid)
    return resample(read, low[::-1], down=2)


class _Read(torch.autograd.Function):
    """Bilinear reading at a grid, mirrored outside: linear in the picture, so it and its adjoint are each other's
    derivatives, any number of times (the library's own has a first derivative only, and R1 needs two)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = x.shape
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(gradients[0], grid, ctx.size), None


class _Spread(torch.autograd.Function):
    """The adjoint of `_Read`: lays values down where they were read."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        x = gradient.new_zeros(size)
        bilinear, reflection = 0, 2
        return torch.ops.aten.grid_sampler_2d_backward(
            gradient, x, grid, bilinear, reflection, False, [True, False]
        )[0]  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Read.apply(gradients[0], grid), None, None


# -------------------------------------------------------------------------------------------------------------------- colours


def coloured(x: Tensor, chance: Chances) -> Tensor:
    """x -> M x + b in RGB, about the grey axis v: light, contrast, brightness mirrored, hue turned, saturation."""
    n, channels = x.shape[:2]
    one = torch.ones(n, device=x.device)
    light = torch.where(chance.happens("light"), chance.normal("light") * 0.2, 0 * one)
    contrast = torch.where(chance.happens("contrast"), (chance.normal("contrast") * 0.5 * math.log(2)).exp(), one)
    if channels != 3:
        return x * wide(contrast) + wide(contrast * light)
    eye = torch.eye(3, device=x.device)
    grey = torch.full((3, 3), 1 / 3, device=x.device)  # v v^T
    cross = x.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    flip = (chance.happens("luma") & (chance.choice("luma", 2) == 1)).float()
    hue = torch.where(chance.happens("hue"), (chance.uniform("hue") * 2 - 1) * math.pi, 0 * one)
    saturation = torch.where(chance.happens("saturation"), (chance.normal("saturation") * math.log(2)).exp(), one)
    luma = eye - 2 * grey * flip[:, None, None]
    turn = grey + hue.cos()[:, None, None] * (eye - grey) + hue.sin()[:, None, None] * cross
    matrix = (grey + saturation[:, None, None] * (eye - grey)) @ turn @ luma * contrast[:, None, None]
    shift = matrix.sum(2) * light[:, None]  # light comes first, and goes through all the rest
    return torch.einsum("nij,njhw->nihw", matrix, x) + shift[:, :, None, None]


def corrupted(x: Tensor, chance: Chances) -> Tensor:
    """Noise of a deviation |N(0, 0.1^2)|, and a square of half the side cut out (0)."""
    n, _, height, width = x.shape
    deviation = torch.where(chance.happens("noise"), chance.normal("deviation").abs() * 0.1, 0)
    x = x + chance.normal("noise", *x.shape[1:]) * wide(deviation)
    centre = chance.uniform("hole", 2)
    rows = (torch.arange(height, device=x.device) + 0.5) / height
    columns = (torch.arange(width, device=x.device) + 0.5) / width
    inside = ((rows - centre[:, :1]).abs() < 0.25)[:, :, None] & ((columns - centre[:, 1:]).abs() < 0.25)[:, None, :]
    return torch.where((inside & chance.happens("hole")[:, None, None])[:, None], 0, x)


def wide(value: Tensor) -> Tensor:
    return value[:, None, None, None]


# -------------------------------------------------------------------------------------------------------------------- alarms

Rows = Sequence[Mapping[str, float]]
SPAN = 10  # rows that an alarm looks back


def paintings_alike(rows: Rows) -> str | None:
    """Paintings of a batch that differ by less than a tenth of what its pictures do."""
    now = _recent(rows, "generator.diversity")
    if now is None or now >= 0.1:
        return None
    return (
        f"the generator collapses: paintings of a batch differ by {now:.1%} of what pictures do (generator.diversity); a higher "
        "model.r1_weight or a lower training.learning_rate holds against it; best/ keeps the best score"
    )


def discriminator_overfits(rows: Rows) -> str | None:
    """D takes nearly every training picture for real, and changes of them are not used, or used to their limit."""
    now, p = _recent(rows, "discriminator.overfit"), _recent(rows, "discriminator.p")
    if now is None or now < 0.9:
        return None
    if p is None:
        return (
            f"the discriminator knows its pictures by heart (discriminator.overfit {now:.2f}, 1 is all of them): paintings "
            "will get worse; model.ada, as in recipes/openmoji/stylegan.yaml, or more pictures hold against it"
        )
    return (
        f"the discriminator knows its pictures by heart (discriminator.overfit {now:.2f}) in spite of p = {p:.2f}: a faster "
        "model.ada.pictures, a higher model.ada.limit or a smaller discriminator hold against it"
    )


def changes_may_leak(rows: Rows) -> str | None:
    """Changes so frequent that the generator may paint them (ADA, section 2.2: p above 0.8)."""
    p = _recent(rows, "discriminator.p")
    if p is None or p <= 0.85:
        return None
    return (
        f"pictures are changed with p = {p:.2f}: above 0.8 turned or tinted paintings may appear; model.ada.limit=0.8, or more "
        "pictures"
    )


ALARMS = (paintings_alike, discriminator_overfits, changes_may_leak)


def _recent(rows: Rows, name: str) -> float | None:
    """The mean of a value over the last rows; None while there are few."""
    values = [row[name] for row in rows if name in row][-SPAN:]
    return sum(values) / SPAN if len(values) == SPAN else None
