"""Noising: alpha and sigma at a time, and what follows from them. A process knows no network.

    gaussian   T discrete steps from a table of betas     gaussian.py     DDPM, DiT, Stable Diffusion 1 to XL
    flow       straight paths                             flow.py         SiT, Stable Diffusion 3, Flux, Qwen-Image
    vp         variance preserving, continuous            continuous.py   Song et al. 2021
    sub-vp     less noise than that at every time         continuous.py
    ve         variance exploding                         continuous.py   NCSN, EDM

A config's `kind` says which; `ProcessConfig` is any of them, a Gaussian diffusion where no kind is named.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from .continuous import SubVPConfig, VEConfig, VPConfig
from .flow import FlowConfig
from .gaussian import GaussianConfig

KIND = "kind "
"""What the tags begin with by which pydantic tells configs apart: no part of a key that a user wrote."""


KINDS = ("gaussian", "flow", "vp", "sub-vp", "ve")


def _kind(value: Any) -> str:
    kind = value.get("kind", "gaussian") if isinstance(value, dict) else getattr(value, "kind", "gaussian")
    return KIND + str(kind)


ProcessConfig = Annotated[
    Annotated[GaussianConfig, Tag(KIND + "gaussian")]
    | Annotated[FlowConfig, Tag(KIND + "flow")]
    | Annotated[VPConfig, Tag(KIND + "vp")]
    | Annotated[SubVPConfig, Tag(KIND + "sub-vp")]
    | Annotated[VEConfig, Tag(KIND + "ve")],
    Discriminator(_kind, custom_error_type="kind", custom_error_message=f"kind is one of {', '.join(KINDS)}"),
]
