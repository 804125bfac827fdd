"""StyleGAN (Karras, Laine and Aila 2019; Karras et al. 2020, 2020 and 2021): a picture is a style for each of its layers.

Noise z is first mapped to w, in which what varies in pictures lies straighter; each layer of the generator takes a style from
w, coarse layers the pose, fine layers the colours. A discriminator learns to tell pictures from paintings, the generator to
deceive it.

    w = f(z), style = A w                               2019, section 2     networks/stylegan.py: Mapping, StyledConv
    AdaIN: y_s (x - mean) / deviation + y_b             2019, eq. 1         networks/stylegan.py: StyledConv
    w'' = s w / || s w ||                               2020, eq. 1 to 3    layers/modulation.py
    softplus(-D(G)) against softplus(-D(x)) + ...       2014, section 3     objectives/adversarial.py
    R1 = gamma / 2 E || grad D(x) ||^2, every 16th      2020, section 3.1   `r1`, objectives/adversarial.py
    (|| J^T y || - a)^2, every 4th                      2020, eq. 4         `path`, objectives/style.py
    two w's in one picture                              2019, section 3.1   `styles`, objectives/style.py
    pictures changed with p, p led by E sign(D(x))      ADA 2020            objectives/ada.py
    psi: w_avg + psi (w - w_avg)                        2019, appendix B    networks/stylegan.py: truncate
    an alias-free generator                             2021                networks/stylegan3.py
    mixing, interpolation, projection, directions                           stylegan_editing.py

The form of 2018 (AdaIN, growing from 8 x 8) is a choice of the same config. `generator.kind: stylegan3` paints public weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, model_validator
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import InputError
from ..formats import stylegan_pickle
from ..interfaces import Batch, Draw, Objective, Stage, Terms
from ..networks.stylegan import DiscriminatorConfig, GeneratorConfig, LayerNoise, shrunk
from ..networks.stylegan3 import AliasFreeConfig
from ..objectives.ada import ALARMS, AdaConfig
from ..objectives.adversarial import discriminator_loss, full, generator_loss, r1_penalty
from ..objectives.style import PathLength, mixed
from . import stylegan_editing as editing
from .base import About, Request, System, number

NoiseMode = Literal["const", "random", "none"]


class GrowingConfig(BaseModel, frozen=True, extra="forbid"):
    """Progressive growing (Karras et al. 2018, section 2): `steady` steps at a size, then `fading` into twice the size."""

    steady: int = Field(ge=0)
    fading: int = Field(ge=1)
    start: int = Field(8, ge=4, description="pixels of a side to begin with")

    def level(self, step: int, last: int) -> float:
        """How many doublings of 4 x 4 there are; a fraction while a block fades in."""
        whole, part = divmod(step, self.steady + self.fading)
        return min(float(last), math.log2(self.start / 4) + whole + max(0, part - self.steady) / self.fading)


class StyleGANConfig(BaseModel, frozen=True, extra="forbid"):
    generator: GeneratorConfig | AliasFreeConfig = Field(GeneratorConfig(), discriminator="kind")
    discriminator: DiscriminatorConfig | None = DiscriminatorConfig()
    labels: bool = Field(False, description="condition on the data's labels")
    mixing: float = Field(0.9, ge=0, le=1, description="share of paintings in training that have two w's")
    r1_weight: float = Field(1.0, ge=0, description="gamma; grows with the number of pixels: 0.0002 r^2 / batch size")
    r1_every: int = Field(16, ge=1)
    path_weight: float = Field(2.0, ge=0, description="0: no path length regularization")
    path_every: int = Field(4, ge=1)
    path_decay: float = Field(0.01, gt=0, le=1)
    path_shrink: int = Field(2, ge=1, description="it looks at this part of the batch")
    betas: tuple[float, float] = (0.0, 0.99)
    ada: AdaConfig | None = None
    growing: GrowingConfig | None = None
    truncation: float = Field(1.0, ge=-10, le=10, description="what a call of `sample` that says nothing does")
    noise_mode: NoiseMode = "const"

    @model_validator(mode="before")
    @classmethod
    def _stylegan2_unless_told(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("generator"), Mapping):
            return {**value, "generator": {"kind": "stylegan2", **value["generator"]}}
        return value

    @model_validator(mode="after")
    def _agrees(self) -> StyleGANConfig:
        g, d = self.generator, self.discriminator
        if self.labels != (g.classes > 0):
            raise ValueError(f"labels={self.labels} with generator.classes={g.classes}")
        if d is not None and (d.resolution, d.classes) != (g.resolution, g.classes):
            raise ValueError(f"generator ({g.resolution} px, {g.classes} classes) and discriminator ({d.resolution} px, "
                             f"{d.classes} classes) do not belong together")  # fmt: skip
        if self.growing is not None and not (getattr(g, "growing", False) and d is not None and d.growing):
            raise ValueError("growing needs generator.growing=true and discriminator.growing=true")
        return self


class StyleGAN(System):
    """Networks: `generator` (mapping and synthesis), `discriminator` (where there is one)."""

    name, title, year = "stylegan", "StyleGAN", 2019
    paper = "A Style-Based Generator Architecture for GANs (arXiv:1812.04948); StyleGAN2 (arXiv:1912.04958)"
    stage_names = ("adversarial",)
    takes = ("label", "image")
    own = {
        "truncation": "psi: 1 paints as trained, less is more typical and less diverse, 0 is the mean picture",
        "truncation_cutoff": "psi acts on the styles of the first so many layers only",
        "noise_mode": "const: the noise that belongs to the weights; random: drawn from the seed; none",
        **editing.OWN,
    }
    formats = ("hwaga",)
    trains_with = ("discriminator",)
    Config = StyleGANConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: StyleGANConfig) -> dict[str, Any]:
        d = config.discriminator
        return {"generator": config.generator} | ({} if d is None else {"discriminator": d})

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        g = {"kind": "stylegan2", **(config.get("generator") or {})}
        if config.get("labels"):
            if not classes:
                raise InputError("model.labels=true, but the data have no labels; set model.labels=false")
            g.setdefault("classes", len(classes))
        if g["kind"] != "stylegan2":
            return {"discriminator": None, **config, "generator": g}
        g.setdefault("channels", channels_for(size[0]))
        d = {"channels": g["channels"], "classes": g.get("classes", 0), **(config.get("discriminator") or {})}
        if config.get("growing"):
            g, d = ({"architecture": "plain", "growing": True, **part} for part in (g, d))
        return {**config, "generator": g, "discriminator": d}

    @classmethod
    def check_data(cls, config: StyleGANConfig, size: tuple[int, int]) -> None:
        r = config.generator.resolution
        if size != (r, r):
            raise InputError(
                f"data.size={size}: this network paints {r} x {r}; model.generator.channels names the channels at 4, 8, "
                "16, ... pixels, up to the size"
            )

    def __init__(self, config: StyleGANConfig, networks: Mapping[str, Any], about: Any) -> None:
        super().__init__(config, networks, about)
        self.augment = None if config.ada is None else config.ada.build()  # state of training, not of the model
        self.path = PathLength(config.path_decay)

    @property
    def generator(self) -> Any:
        return self.networks["generator"]

    # -------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        how = self.config
        if how.discriminator is None or how.generator.kind != "stylegan2":
            raise InputError("this StyleGAN has no discriminator that it could be trained with; it only paints")
        rates = {"betas": how.betas}
        objectives = [
            Objective("generator", ("generator",), self.adversarial, "generator"),
            Objective("discriminator", ("discriminator",), self.telling_apart, "discriminator"),
        ]
        if how.path_weight:
            objectives.append(Objective("path", ("generator",), self.path_length, "generator", every=how.path_every))
        if how.r1_weight:
            objectives.append(Objective("r1", ("discriminator",), self.r1, "discriminator", every=how.r1_every))
        state = {"path": self.path} | ({} if self.augment is None else {"augment": self.augment})
        return [
            Stage(
                name="adversarial",
                networks={**self.networks, **state},
                objectives=objectives,
                averaged=("generator",),
                held_out=self.held_out,
                optimizers={"generator": rates, "discriminator": rates},
                alarms=ALARMS,
                game=True,
                batch_statistics=True,  # the deviation over pictures, and the means of w, of lengths and of signs
            )
        ]

    def adversarial(self, batch: Batch, draw: Draw) -> Terms:
        """The generator's turn: paintings that D takes for real."""
        self._grow(draw.step)
        ws = self.styles(batch, draw, "generator")
        fake = self.generator.synthesis(ws, layer_noise(draw, "generator", len(batch)))
        with torch.no_grad():
            spread, real = (x.std(0).mean() for x in (fake, self._seen(batch.image)))
        logits = self._judged(fake, batch.label, draw, "generator")
        return {"adversarial": generator_loss("non-saturating", logits), "_diversity": spread / real.clamp(min=1e-6)}

    def telling_apart(self, batch: Batch, draw: Draw) -> Terms:
        """The discriminator's turn: pictures from paintings."""
        with torch.no_grad():
            fake = self.generator.synthesis(
                self.styles(batch, draw, "painted"), layer_noise(draw, "painted", len(batch))
            )
        false = self._judged(fake, batch.label, draw, "painted")
        true = self._judged(self._seen(batch.image), batch.label, draw, "real")
        terms = {
            "telling apart": discriminator_loss("non-saturating", true, false),
            "_overfit": true.sign().mean().detach(),  # r_t of ADA: 1 means that D knows every training picture
            "_accuracy": ((true > 0).float().mean() + (false < 0).float().mean()) / 2,
        }
        if self.augment is not None:
            self.augment.follow(true.detach(), draw.step)
            terms["_p"] = self.augment.p.clone()
        return terms

    def r1(self, batch: Batch, draw: Draw) -> Terms:
        """A gradient penalty at real pictures, due now and then; the loop weighs it by its laziness."""
        real = self._seen(batch.image).requires_grad_(True)
        logits = self._judged(real, batch.label, draw, "r1")
        return {"r1": self.config.r1_weight / 2 * r1_penalty(logits, real)}

    def path_length(self, batch: Batch, draw: Draw) -> Terms:
        """A step in w moves the picture equally far, wherever it starts and wherever it goes."""
        few = max(1, len(batch) // self.config.path_shrink)
        ws = self.styles(batch, draw, "path")[:few]
        picture = self.generator.synthesis(ws, layer_noise(draw, "path", len(batch)))
        y = draw.normal("path_direction", (len(batch), *picture.shape[1:]))[:few]
        penalty, lengths = self.path(picture, ws, y)
        return {"path": self.config.path_weight * penalty.mean(), "_length": lengths.detach().mean()}

    def held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """What D says of pictures never trained on: as long as it generalises, what it says of those that it knows."""
        logits = self.networks["discriminator"](self._seen(batch.image), batch.label if self.config.labels else None)
        return {"logit": logits}

    def styles(self, batch: Batch, draw: Draw, name: str) -> Float[Tensor, "n l w"]:
        """A w for every layer; in some pictures two w's meet at a layer drawn anew."""
        g, n, label = self.generator, len(batch), batch.label if self.config.labels else None
        first = g.mapping(draw.normal(f"{name}.z", (n, g.config.z_dim)), label)
        if name == "generator":
            g.mapping.follow(first.detach())
        if not self.config.mixing:
            return first[:, None].expand(-1, g.config.num_ws, -1)
        second = g.mapping(draw.normal(f"{name}.z_mixed", (n, g.config.z_dim)), label)
        cutoff = 1 + draw.integers(f"{name}.cutoff", max(1, g.config.num_ws - 1), (n,))
        mixes = draw.uniform(f"{name}.mixes", (n,)) < self.config.mixing
        return mixed(first, second, torch.where(mixes, cutoff, g.config.num_ws), g.config.num_ws)

    def _judged(self, picture: Tensor, label: Tensor | None, draw: Draw, name: str) -> Float[Tensor, " n"]:
        if self.augment is not None:
            picture = self.augment(picture, draw, name)
        return full(self.networks["discriminator"](picture, label if self.config.labels else None))

    def _grow(self, step: int) -> None:
        if self.config.growing is not None:
            level = self.config.growing.level(step, len(self.config.generator.channels) - 1)
            grown: Any = (self.generator.synthesis, self.networks["discriminator"])
            for network in grown:
                network.level.fill_(level)

    def _seen(self, picture: Tensor) -> Tensor:
        """Real pictures at the size that the networks have grown to."""
        picture = picture.detach()
        if self.config.growing is None:
            return picture
        level = float(self.generator.synthesis.level)
        return shrunk(picture, 4 * 2 ** math.ceil(level), level % 1)

    # -------------------------------------------------------------------------------------------------------- how it paints

    def paint(self, request: Request) -> Tensor:
        given = request.inputs
        if "project" in given:  # has told of its own steps
            return editing.paint(self, request)
        if editing.asked(given):
            return request.one_step(editing.paint(self, request))
        return request.one_step(self.picture(self.truncated(self.w_of(request), given), request))

    def w_of(self, request: Request) -> Float[Tensor, "n l w"]:
        """The w of each picture of a call, the same for every layer, not truncated."""
        g = self.generator
        z = request.source()("noise", (len(request), g.config.z_dim)).to(self.dtype)
        label = None if request.label is None else request.label.to(self.device)
        return g.mapping(z, label)[:, None].expand(-1, g.config.num_ws, -1)

    def truncated(self, ws: Float[Tensor, "n l w"], given: Mapping[str, Any]) -> Float[Tensor, "n l w"]:
        psi = given.get("truncation", self.config.truncation)
        return self.generator.mapping.truncate(ws, float(psi), given.get("truncation_cutoff"))

    def picture(self, ws: Float[Tensor, "n l w"], request: Request) -> Float[Tensor, "n 3 h w"]:
        """Pictures of styles, at the call's size. n may be a multiple of the call's number: the noise is then shared."""
        mode, source = request.inputs.get("noise_mode", self.config.noise_mode), request.source()
        times = len(ws) // len(request)

        def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
            return source(f"layer_noise.{name}", (len(request), *shape[1:])).to(ws.dtype).repeat_interleave(times, 0)

        noise: LayerNoise = drawn if mode == "random" else mode
        painted: Tensor = self.generator.synthesis(ws, noise)
        return painted if painted.shape[-1] == request.size[1] else interpolate(painted, request.size)  # not yet grown

    # ---------------------------------------------------------------------------------------------------- what can be asked

    def factor(self) -> int:
        return self.config.generator.resolution

    def label_count(self) -> int:
        return self.config.generator.classes

    def check(self, request: Request) -> None:
        given, r = request.inputs, self.config.generator.resolution
        if request.size != (r, r):
            raise InputError(f"size={request.size}: this StyleGAN paints {r} x {r} and no other size; leave size out")
        if "truncation" in given:
            number("truncation", given["truncation"], -10, 10)
        layers = self.config.generator.num_ws
        cutoff = given.get("truncation_cutoff", 0)
        if isinstance(cutoff, bool) or not isinstance(cutoff, int) or not 0 <= cutoff <= layers:
            raise InputError(f"truncation_cutoff={cutoff!r}: a number of layers from 0 to {layers} is needed")
        if given.get("noise_mode", "const") not in ("const", "random", "none"):
            raise InputError(f"noise_mode={given['noise_mode']!r}: one of const, random, none is needed")
        editing.check(self, request)

    # --------------------------------------------------------------------------------------------------------- public files

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> StyleGAN:  # fmt: skip
        """A public pickle (StyleGAN2-ADA, StyleGAN3), read by `formats/stylegan_pickle.py`: G_ema and D."""
        configs, networks = stylegan_pickle.networks(path, tensors, dtype, device)
        g = configs["generator"]
        config = cls.checked({
            "generator": g, "discriminator": configs.get("discriminator"), "labels": g.classes > 0,
        })  # fmt: skip
        return cls(config, networks, About(size=(g.resolution, g.resolution)))


def channels_for(size: int) -> list[int]:
    """The published widths at 4, 8, ... `size` pixels: at most 512, and 16384 (from 512 px on 32768) over the side."""
    base = 32768 if size >= 512 else 16384
    return [min(base // 2**i, 512) for i in range(2, max(3, int(math.log2(max(4, size))) + 1))]


def layer_noise(draw: Draw, name: str, whole: int) -> LayerNoise:
    """Noise inputs from the step's draws for a batch of `whole` pictures, of which the first may be asked for alone."""
    return lambda layer, shape: draw.normal(f"{name}.{layer}", (whole, *shape[1:]))[: shape[0]]
