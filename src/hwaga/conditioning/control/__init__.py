"""Control maps: pictures of one thing that a painting is to follow (edges, a pose, depth), made from any picture.

A map is a function picture (3, h, w) in [0, 1] -> map (3, h, w) in [0, 1] (`inpaint` has -1 too), in the colours and ranges
that public ControlNets were trained on; its keywords are its options.

    make("canny", picture, low=50)     the map
    KINDS["canny"].options             what can be set
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...errors import InputError, unknown
from . import depth, edges, pose, regions
from .options import Option, checked, options_of


@dataclass(frozen=True)
class Kind:
    """A kind of control map."""

    make: Callable[..., Tensor]
    line: str  # what it shows, for a list
    public: str = ""  # public models that take it
    grey: bool = False  # its three channels are the same

    @cached_property
    def options(self) -> dict[str, Option]:
        return options_of(self.make)

    def placed(self, given: Mapping[str, Any]) -> bool:
        """Whether something was given that lies on the picture pixel by pixel (a mask, keypoints): the map is then made at
        the picture's own size, else at the size that it is wanted in."""
        beside = (name for name, option in self.options.items() if option.beside is not None and name != "model")
        return any(given.get(name) is not None for name in beside)


KINDS: Mapping[str, Kind] = {
    "canny": Kind(
        edges.canny, "thin white edges on black, as OpenCV finds them", "sd15_canny, sd21_canny, sdxl canny", grey=True
    ),
    "lineart": Kind(
        edges.lineart, "white lines on black, the brighter the darker the stroke", "sd15_lineart", grey=True
    ),
    "scribble": Kind(edges.scribble, "thick white strokes on black", "sd15_scribble", grey=True),
    "softedge": Kind(
        edges.softedge, "soft grey edges on black, by gradients (no network)", "sd15_softedge, sd15_hed", grey=True
    ),
    "mlsd": Kind(edges.mlsd, "straight white lines on black", "sd15_mlsd", grey=True),
    "invert": Kind(edges.invert, "a drawing in black on white, as white on black", "all that take lines", grey=True),
    "silhouette": Kind(
        regions.silhouette, "the object white, the background black", "openmoji/controlnet-silhouette", grey=True
    ),
    "segmentation": Kind(regions.segmentation, "areas in the colours of ADE20K's classes", "sd15_seg"),
    "colours": Kind(regions.colours, "large blocks of the mean colour", "adapters of colour"),
    "tile": Kind(regions.tile, "the picture itself, or what is left of it when small", "sd15_tile"),
    "inpaint": Kind(regions.inpaint, "the picture, -1 where it is painted anew", "sd15_inpaint"),
    "shuffle": Kind(regions.shuffle, "colours and textures without their arrangement", "sd15_shuffle"),
    "pose": Kind(
        pose.pose, "skeletons in OpenPose's colours on black, from keypoints", "sd15_openpose, sd21_openposev2"
    ),
    "depth": Kind(
        depth.depth, "near white, far black, by a depth-estimation model", "sd15_depth, sdxl depth", grey=True
    ),
    "normals": Kind(
        depth.normals, "red faces left, green up, blue the viewer, from depth", "sd15_normalbae, sd_normal"
    ),
}


def find(kind: str) -> Kind:
    """The kind of a name; InputError names those that there are."""
    if kind not in KINDS:
        raise unknown("control kind", kind, KINDS)
    return KINDS[kind]


def make(kind: str, picture: Float[Tensor, "3 h w"], **options: Any) -> Float[Tensor, "3 h w"]:
    """The control map of a picture in [0, 1], on the CPU. InputError for an unknown kind or option, or a value out of range."""
    found = find(kind)
    values = checked(kind, found.options, options)
    if min(picture.shape[1:]) < 3:
        raise InputError(
            f"a picture of {picture.shape[1]} x {picture.shape[2]} pixels has no control map; 3 x 3 is the least"
        )
    return found.make(picture.detach().float().cpu(), **values)
