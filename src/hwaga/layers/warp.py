"""Drawings on white paper moved, turned, and in other colours: the changes that leave what is drawn what it is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def on_white(image: Float[Tensor, "n c h w"], grid: Float[Tensor, "n y x 2"]) -> Float[Tensor, "n c y x"]:
    """Pictures in [-1, 1] at the places of the grid (-1 ... 1 from border to border), between pixels by straight lines;
    outside of them all is white (1)."""
    return 1 + F.grid_sample(image - 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def affine(
    image: Float[Tensor, "n c h w"],
    angle: Float[Tensor, " n"],
    zoom: Float[Tensor, " n"],
    move: Float[Tensor, "2 n"],
    mirror: Float[Tensor, " n"],
) -> Float[Tensor, "n c h w"]:
    """Turned by `angle` (radians), drawn `zoom` times as large, moved (by halves of a side; x, y), mirrored where -1."""
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    theta = torch.stack([cos * mirror, -sin, move[0], sin * mirror, cos, move[1]], dim=1).view(len(image), 2, 3)
    return on_white(image, F.affine_grid(theta, list(image.shape), align_corners=False))


def colour_matrix(saturation: Float[Tensor, " n"], hue: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    """Saturation about grey, hue as a rotation about the grey axis (in circles)."""
    grey = torch.full((3, 3), 1 / 3, device=hue.device)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=hue.device) / math.sqrt(3)
    cos, sin = torch.cos(2 * math.pi * hue)[:, None, None], torch.sin(2 * math.pi * hue)[:, None, None]
    return grey + saturation[:, None, None] * (cos * (torch.eye(3, device=hue.device) - grey) + sin * cross)
