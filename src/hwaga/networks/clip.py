"""CLIP: pictures and words in one space (Radford et al. 2021, section 2.4): a transformer reads the patches of a picture (ViT,
Dosovitskiy et al. 2021), another one the tokens of a caption; what belongs together gets vectors that point the same way.

    h_0 = [class token, patches] + position                    vision_model.embeddings
    u = W_i norm(h_L)[class token]                             vision_model, visual_projection
    v = W_t norm(h_L)[end token]                               text_model, text_projection: networks/clip_text.py
    likeness = cos(u, v)

Parameters have the names of transformers' CLIPModel, so that public folders load as they are and ours load there. How it learns
is in systems/clip.py and objectives/contrastive.py.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from ..layers.initialise import normal
from .clip_text import ClipText, ClipTextConfig, Layer

FIRST = 2.6592
"""The logarithm of the likeness' scale at the beginning: that of 1 / 0.07 (section 2.5), as the public configs round it."""


class ClipImageConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and choices; the defaults are those of CLIP ViT-B/32."""

    size: int = Field(224, ge=1, description="height and width of the pictures that it reads")
    patch: int = Field(32, ge=1)
    width: int = Field(768, ge=1)
    layers: int = Field(12, ge=1, le=256)
    heads: int = Field(12, ge=1)
    hidden: int = Field(3072, ge=1)
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    eps: float = Field(1e-5, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> ClipImageConfig:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} do not divide width={self.width}")
        if self.size % self.patch:
            raise ValueError(f"patch={self.patch} does not divide size={self.size}")
        return self


class ClipConfig(BaseModel, frozen=True, extra="forbid"):
    image: ClipImageConfig = ClipImageConfig()
    text: ClipTextConfig = ClipTextConfig(width=512, heads=8, hidden=2048, projection=512)

    @model_validator(mode="after")
    def _projects(self) -> ClipConfig:
        if not self.text.projection:
            raise ValueError("text.projection=0: both halves are brought to one width, which it names")
        return self

    def build(self) -> Clip:
        return Clip(self)


class _Patches(nn.Module):
    def __init__(self, config: ClipImageConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding((config.size // config.patch) ** 2 + 1, config.width)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(image), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class _Layers(nn.Module):
    def __init__(self, config: ClipImageConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, causal=False) for _ in range(config.layers))


class _Vision(nn.Module):
    def __init__(self, config: ClipImageConfig) -> None:
        super().__init__()
        self.embeddings, self.encoder = _Patches(config), _Layers(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=config.eps)  # spelled as in the public files
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, image: Tensor) -> Tensor:
        h = self.pre_layrnorm(self.embeddings(image))
        for layer in self.encoder.layers:
            h = layer(h)
        return self.post_layernorm(h[:, 0])


class Clip(nn.Module):
    """See the top of this file. `words` is the text half, a `ClipText` made of the very same modules."""

    words: ClipText

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        words = ClipText(config.text)
        self.__dict__["words"] = words  # not among the modules: its parameters have their public names below
        self.text_model, self.text_projection = words.text_model, words.text_projection
        self.vision_model = _Vision(config.image)
        self.visual_projection = nn.Linear(config.image.width, config.text.projection, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(FIRST))

    def initialise(self, generator: torch.Generator) -> None:
        """First weights as published (the code of Radford et al. 2021): deviations by width and depth."""
        for half, tower in ((self.text_model, self.config.text), (self.vision_model, self.config.image)):
            wide, deep = tower.width**-0.5, (2 * tower.layers) ** -0.5
            deviations = {
                "q_proj": wide, "k_proj": wide, "v_proj": wide, "out_proj": wide * deep, "fc1": (2 * tower.width) ** -0.5,
                "fc2": wide * deep, "token_embedding": 0.02, "position_embedding": 0.01 if half is self.text_model else wide,
                "class_embedding": wide, "patch_embedding": 0.02,
            }  # fmt: skip
            for name, value in half.named_parameters():
                _begin(value, name.split("."), deviations, generator)
        for project in (self.text_projection, self.visual_projection):
            assert project is not None
            normal(project.in_features**-0.5)(project.weight, generator)
        with torch.no_grad():
            self.logit_scale.fill_(FIRST)

    def image_features(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Vectors of pictures in [-1, 1], of any length; another size than the trained one is resized (bicubic, antialiased)."""
        size = (self.config.image.size, self.config.image.size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        found: Tensor = self.visual_projection(self.vision_model(image))
        return found

    def text_features(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Vectors of captions (start, tokens, end, filling), of any length."""
        end = self.words(ids).end
        return end if self.text_projection is None else self.text_projection(end)


def _begin(value: Tensor, name: list[str], deviations: dict[str, float], generator: torch.Generator) -> None:
    known = [deviation for part, deviation in deviations.items() if part in name]
    with torch.no_grad():
        if name[-1] == "bias":
            value.zero_()
        elif known:
            value.normal_(std=known[0], generator=generator)
        else:  # the gain of a layer norm
            value.fill_(1.0)
