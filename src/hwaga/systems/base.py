"""What every system is: networks with a config, and `sample`, which checks what is asked and deals it out in batches.

A system's own file says the rest: its config, its networks, its stages of training, its denoiser, and how it paints.

    About      what a model remembers beside its config
    Request    a checked call of `sample`, or the part of it that is painted in one batch
    System     the base of the eleven
    checks     everything that a user can get wrong in a call is found before anything is painted
"""

from __future__ import annotations

import itertools
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from ..conditioning.prompts import Prompt, listed_prompts
from ..errors import InputError, not_finite, unknown
from ..files import write_json
from ..interfaces import Callback, Noise, Point, Precomputed, Stage, Step
from ..layers.initialise import build_on
from ..processes import KIND
from ..provenance import attach, record
from ..samplers import SAMPLERS
from ..samplers.noise import from_seed, replayed, stream
from ..weights.quantised import is_quantised
from .about import About as About
from .labels import class_number, drawn_labels, listed_labels
from .lora import TakesLora, beside_base
from .pictures import read_picture, read_pictures, size_of, to_inside, to_pil
from .sources import kept

INPUTS = (
    "label", "image", "mask", "strength", "fit_image", "keep_unmasked", "control", "control_scale", "prompt", "negative_prompt",
)  # kept as they were given  # fmt: skip
COMMON = ("n", "size", "seed", "noise", "callback", "output", "progress")  # what every system takes


# ------------------------------------------------------------------------------------------------------------- a call

PIXELS_A_BATCH = 2**18  # pictures are painted in batches of about as many pixels: 256 of 32 x 32, 1 of 512 x 512


@dataclass(frozen=True)
class Defaults:
    """What `None` means for a model. A system that walks no grid of points (a GAN, a VAE) has no sampler and no steps."""

    sampler: str = ""
    steps: Mapping[str, int] = field(default_factory=dict)  # by sampler
    guidance_scale: float = 1.0
    sampler_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by sampler


@dataclass(frozen=True)
class Request:
    """A checked call of `sample`, or the part of it that is painted in one batch."""

    pictures: tuple[int, ...]  # places in the whole call
    total: int
    size: tuple[int, int]  # (height, width)
    steps: int
    sampler: str
    sampler_options: Mapping[str, Any]
    guidance_scale: float
    seed: int
    label: Tensor | None  # (n,) int64
    prompts: tuple[Prompt, ...]  # n, where words are taken
    inputs: Mapping[str, Any]  # prompt, image, mask, ... and the system's own keywords: what was given of them
    recorded: Mapping[str, Tensor]  # draws to replay
    device: torch.device
    callback: Callback | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def source(self) -> Noise:
        """The noise of these pictures, from the start of their streams."""
        fresh = from_seed(self.seed, self.pictures, self.device)
        if not self.recorded:
            return fresh
        return replayed(self.recorded, fresh, self.pictures, self.total, self.device)

    def one_step(self, pictures: Tensor) -> Tensor:
        """The pictures, told to the callback as the one step that a system without steps takes."""
        if self.callback is not None:
            self.callback(Step(0, 1, Point(1.0, 0.0, 1.0, 1.0), Point(0.0, 1.0, 0.0, 0.0), pictures, pictures))
        return pictures

    def parts(self) -> Iterator[Request]:
        """The batches of a call, in order."""
        count = max(1, PIXELS_A_BATCH // (self.size[0] * self.size[1]))
        for start in range(0, self.total, count):
            chosen = self.pictures[start : start + count]
            label = None if self.label is None else self.label[start : start + count]
            yield replace(self, pictures=chosen, label=label, prompts=self.prompts[start : start + count])


# ----------------------------------------------------------------------------------------------------------- a system


class System(TakesLora):
    """Base of the eleven. `networks` maps names to modules; `config` is frozen; `about` is what a model remembers."""

    name: ClassVar[str]
    title: ClassVar[str]
    year: ClassVar[int]
    paper: ClassVar[str]
    stage_names: ClassVar[tuple[str, ...]]
    takes: ClassVar[tuple[str, ...]]  # of the keywords of `sample`, beside those that every system takes
    own: ClassVar[Mapping[str, str]] = {}  # the system's own keywords, each with a line of explanation
    formats: ClassVar[tuple[str, ...]] = ()  # public formats that load and save
    trains_with: ClassVar[tuple[str, ...]] = ()  # networks that training alone needs: a model that paints may lack them
    stands_for: ClassVar[
        Mapping[str, str]
    ] = {}  # components of a recipe that are another model's network of another name
    may_lack: ClassVar[
        tuple[str, ...]
    ] = ()  # networks that a public file may hold nothing of: `components=` gives them
    grows: ClassVar[Mapping[str, str]] = {}  # parts that make another system of this one, which has a method `over`
    paints: ClassVar[bool] = (
        True  # False: a part of painters, trained and measured as they are, that is asked for no pictures
    )
    weighs: ClassVar[bool] = (
        False  # True: the loss of each picture is multiplied by what a batch's extra["weight"] says
    )
    flat: ClassVar[bool] = False  # True: its one network lies in the model's folder itself, as other programs want it
    size_of_image: ClassVar[bool] = False  # True: a call with image= and no size paints at the picture's own
    Config: ClassVar[type[BaseModel]]

    def __init__(self, config: Any, networks: Mapping[str, nn.Module], about: About) -> None:
        self.config = config
        self.networks = dict(networks)
        self.about = about

    # ------------------------------------------------------------------------------------------ what a system's file says

    @classmethod
    def network_configs(cls, config: Any) -> dict[str, Any]:
        """The configs of the networks, by name; each builds its network."""
        raise NotImplementedError

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        """A recipe's `model:` section with what follows from the data (number of classes, size) filled in."""
        return config

    @classmethod
    def taught(cls, config: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """A recipe's `model:` section with what the captions of the training data teach before training: a tokenizer's words."""
        return dict(config)

    @classmethod
    def with_components(cls, config: Mapping[str, Any], components: Mapping[str, nn.Module]) -> dict[str, Any]:
        """A recipe's `model:` section with the configs of trained networks that it is to use, where it has a field of
        their name."""
        told = {name: part.config for name, part in components.items() if name in cls.Config.model_fields}
        rest = beside_base(config, components)
        return {**{name: own.model_dump(mode="json") for name, own in told.items()}, **rest}  # type: ignore[union-attr,operator]

    @classmethod
    def check_component(cls, config: Mapping[str, Any], name: str, other: System) -> None:
        """Raises InputError where another model's network cannot be the component `name` of a recipe's `model:` section."""

    @classmethod
    def check_data(cls, config: Any, size: tuple[int, int]) -> None:
        """Raises InputError where networks of `config` cannot work at (height, width)."""

    def write_beside(self, part: str, folder: Path) -> None:
        """Writes what stands beside the weights of a network in a saved model: its config.json (which tells people; `load`
        goes by model.json)."""
        network = self.networks[part]
        config = network.config.model_dump(mode="json")  # type: ignore[union-attr,operator]
        write_json(folder / "config.json", {"network": type(network).__name__, **config})
        for name, content in getattr(network, "files", {}).items():  # a tokenizer's, say
            (folder / name).write_bytes(content)

    def stages(self) -> list[Stage]:
        """What is trained, in which order, by which objectives."""
        raise NotImplementedError

    def precomputed(self) -> Mapping[str, Precomputed]:
        """What of each picture training wants computed once, by the name that it has in a batch's `extra`."""
        return {}

    def data_extras(self) -> tuple[str, ...]:
        """What training wants of the data's own beside each picture, by its name in a batch's `extra`: `line_art`."""
        return ()

    def defaults(self) -> Defaults:
        """What `None` means for sampler, steps, guidance_scale."""
        return Defaults()

    def samplers(self) -> tuple[str, ...]:
        """The names of the samplers that fit; none where nothing walks a grid."""
        return ()

    def factor(self) -> int:
        """What height and width are multiples of."""
        raise NotImplementedError

    def label_count(self) -> int:
        """Number of classes C; 0 without."""
        return len(self.about.classes)

    def how_many(self, n: int, given: Mapping[str, Any]) -> int:
        """How many pictures a call paints: n, unless something given settles it (one for each source picture)."""
        return n

    def told_of(self, request: Request, i: int) -> dict[str, Any]:
        """What a picture's record says of it alone: its label and its words."""
        label = None if request.label is None else int(request.label[i])
        named = self.about.classes[label] if label is not None and label < len(self.about.classes) else None
        prompt, negative = request.prompts[i] if request.prompts else (None, None)
        return {"label": label, "label_name": named, "prompt": prompt, "negative_prompt": negative}

    @property
    def tells_bits(self) -> bool:
        """Whether `bits` measures a likelihood of pictures."""
        return hasattr(self, "bits")

    def check(self, request: Request) -> None:
        """Raises InputError for what this system cannot do; called before anything is painted."""

    def paint(self, request: Request) -> Float[Tensor, "n 3 h w"]:
        """Pictures in about [-1, 1] of one batch of a call."""
        raise NotImplementedError

    def latents_of(self, x: Float[Tensor, "n 3 h w"]) -> Tensor:
        """What `encode` gives for pictures in [-1, 1]: latents float32 (the posterior's mean, as a diffusion sees it), or
        int64 codes (n, y, x). Systems that have an autoencoder say how."""
        raise InputError(f"{self.title} has no autoencoder, so it encodes and decodes nothing")

    def pictures_of(self, latents: Tensor) -> Float[Tensor, "n 3 h w"]:
        """What `decode` gives, in about [-1, 1]. InputError for latents of a wrong shape or dtype, codes out of range."""
        raise InputError(f"{self.title} has no autoencoder, so it encodes and decodes nothing")

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> Self:
        """The system of a public folder; which classes lead here is said in `loading.PIPELINES`."""
        raise NotImplementedError

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> Self:  # fmt: skip
        """The system of a single public file whose tensors were recognised by `formats/single.py`."""
        raise NotImplementedError

    def to_diffusers(self, folder: Path) -> None:
        """Writes the public layout into an empty folder; InputError where the networks have none."""
        raise NotImplementedError

    def to_file(self, path: Path) -> str | None:
        """Writes the single safetensors file with the original authors' names; InputError where there is no such. Gives the
        text of the YAML that belongs beside it, where the originals have one."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------- making

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """name, title, year, paper, stages, takes, own, formats."""
        return {
            "name": cls.name, "title": cls.title, "year": cls.year, "paper": cls.paper, "stages": list(cls.stage_names),
            "takes": [*COMMON, *cls.takes], "own": dict(cls.own), "formats": list(cls.formats),
        }  # fmt: skip

    @classmethod
    def checked(cls, config: Mapping[str, Any]) -> Any:
        """The validated config; InputError in one sentence that names the key, the value and what is wrong with it."""
        try:
            return cls.Config.model_validate(config)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(("model", *(str(part) for part in first["loc"] if not str(part).startswith(KIND))))
            raise InputError(
                f"{cls.name}: {key}={first['input']!r}: {first['msg'].removeprefix('Value error, ')}"
            ) from None

    @classmethod
    def create(
        cls, config: Mapping[str, Any], *, size: tuple[int, int], classes: Sequence[str] = (),
        label_counts: Sequence[int] = (), seed: int = 0, about: Mapping[str, Any] | None = None,
        components: Mapping[str, nn.Module] | None = None,
    ) -> Self:  # fmt: skip
        """A new system with first weights, drawn from `seed` alone. `components`: trained networks to take as they are."""
        full = cls.checked(cls.complete(cls.with_components(config, components or {}), size, classes))
        cls.check_data(full, size)
        networks = dict(components or {})
        for part, network_config in cls.network_configs(full).items():
            if part not in networks:
                networks[part] = build_on(network_config)
                networks[part].initialise(stream(seed, "weights", part))  # type: ignore[operator]
                networks[part].eval()  # as a loaded one is: training switches it over for its own time
        memory = {"size": size, "classes": tuple(classes), "label_counts": tuple(label_counts), **(about or {})}
        return cls(full, networks, About(**memory))

    def take(self, part: str, network: Any, source: str) -> None:
        """Puts another model's network in the place of this system's `part`; InputError unless their configs agree."""
        if network.config != self.networks[part].config:
            raise InputError(f"components[{part!r}]={source}: its {part} has another config than this model's")
        self.networks[part] = network

    @classmethod
    def over(cls, base: Any, nets: Mapping[str, nn.Module], layouts: Mapping[str, Any], source: str = "") -> Self:
        """The system that `base` becomes with networks that it `grows` by; layouts: what their public files looked like."""
        raise NotImplementedError

    def lends(self, part: str) -> nn.Module | None:
        """The network that another model may take as its `part`; None where there is none of that name."""
        return self.networks.get(part)

    def read_part(self, part: str, place: Path, dtype: torch.dtype, device: torch.device) -> bool:
        """Takes a component that is no model of its own (a tokenizer, a text encoder) from a folder; False where it is none."""
        return False

    def parameters_by_network(self) -> dict[str, int]:
        return {name: sum(p.numel() for p in network.parameters()) for name, network in self.networks.items()}

    @property
    def _parameter(self) -> nn.Parameter:
        return next(next(iter(self.networks.values())).parameters())

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter.dtype

    @property
    def arithmetic(self) -> str:
        """In which type is computed, as `load` names it."""
        rounded = any(is_quantised(network) for network in self.networks.values())
        return "int8" if rounded else str(self.dtype)

    # -------------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(
        self, n: int = 1, prompt: Any = None, negative_prompt: Any = None, label: Any = None, size: Any = None,
        steps: int | None = None, sampler: str | None = None, sampler_options: Mapping[str, Any] | None = None,
        guidance_scale: float | None = None, image: Any = None, mask: Any = None, strength: float | None = None,
        fit_image: bool = True, keep_unmasked: bool = True, control: Any = None, control_scale: Any = None,
        seed: int | None = None, noise: Mapping[str, Tensor] | None = None, callback: Callable[[Step], Any] | None = None,
        output: str = "pil", progress: bool | Callable[[int, int], None] = True, **own: Any,
    ) -> Any:  # fmt: skip
        """Paints pictures.

        n: how many; with a list of labels it is the list's length. label: class number 0 ... C-1 or name, or a list, one a
        picture; None draws it by training frequency. size: (height, width). steps, sampler, sampler_options,
        guidance_scale: None is the model's default. seed: an int; None draws one. noise: {name: tensor} replays draws.
        callback: called with each `Step`; raising `errors.Interrupted` in it ends the call. output: "pil" gives a list of
        PIL images that carry their provenance, "tensor" (n, 3, h, w) float32 in [0, 1]. progress: a bar on a terminal, or
        a function that is called with (steps done, steps in all) of the whole call.

        InputError for whatever this system cannot take or do; WorkError when a step gives a non-finite number.
        """
        given = {
            "prompt": prompt, "negative_prompt": negative_prompt, "label": label, "steps": steps, "sampler": sampler,
            "sampler_options": sampler_options, "guidance_scale": guidance_scale, "image": image, "mask": mask,
            "strength": strength, "control": control, "control_scale": control_scale,
            "fit_image": None if fit_image else False, "keep_unmasked": None if keep_unmasked else False,
        }  # fmt: skip
        self._refuse_foreign(given, own)
        if output not in ("pil", "tensor"):
            raise unknown("output", output, ("pil", "tensor"))
        whole = self._request(n, size, seed, noise, {**given, **own})
        self.check(whole)
        parts, painted = list(whole.parts()), []
        with steps_bar(self.title, len(parts), progress) as advance:
            for part in parts:
                painted.append(self.paint(watched(part, callback, advance, self.dtype)).float().cpu())
        if not all(bool(torch.isfinite(part).all()) for part in painted):
            raise not_finite("in what the decoder gave", self.arithmetic)
        pictures = (torch.cat(painted) / 2 + 0.5).clamp(0, 1)
        if "mask" in whole.inputs and keep_unmasked:
            pictures = kept(pictures, whole.inputs.get("image"), whole.inputs["mask"])
        return pictures if output == "tensor" else self._with_provenance(pictures, whole, {**given, **own})

    @torch.no_grad()
    def encode(self, images: Any) -> Tensor:
        """Latents or codes, on the CPU, of a (n, 3, h, w) tensor in [0, 1] or of a list of pictures (paths, PIL, arrays)."""
        return self.latents_of(to_inside(read_pictures("images", images, self.factor())).to(self.device)).cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Float[Tensor, "n 3 h w"]:
        """Pictures of what `encode` gives: float32 on the CPU, clamped to [0, 1], not rounded."""
        if not isinstance(latents, Tensor):
            raise InputError(f"latents={type(latents).__name__}: a tensor, as encode gives it, is needed")
        return (self.pictures_of(latents.to(self.device)).float().cpu() / 2 + 0.5).clamp(0, 1)

    def blank(self) -> dict[str, Any]:
        """What a call must name even where it asks for nothing in particular (a control map)."""
        return {}

    def preview(self, n: int, seed: int = 0) -> Float[Tensor, "n 3 h w"]:
        """Pictures of a fixed seed, in [0, 1], for grids while training."""
        return self.sample(n=n, seed=seed, output="tensor", progress=False)

    def _refuse_foreign(self, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if value is not None and name not in self.takes:
                raise self._not_taken(name)
        for name in own:
            if name not in self.own:
                raise unknown(f"keyword of {self.title}", name, [*COMMON, *self.takes, *self.own])

    def _not_taken(self, name: str) -> InputError:
        from . import systems

        takers = [s["name"] for s in systems() if name in s["takes"]]
        others = f"; systems that take {name}=: {', '.join(takers)}" if takers else ""
        return InputError(
            f"{name}= given to {self.title}, which takes {', '.join(f'{t}=' for t in self.takes)}{others}"
        )

    def _request(self, n: Any, size: Any, seed: Any, noise: Any, given: Mapping[str, Any]) -> Request:
        default = self.defaults()
        n, labels, scale = self.how_many(whole_number("n", n, 1), given), None, default.guidance_scale
        if given["label"] is not None:
            labels, n = listed_labels(given["label"], n)
        prompts = listed_prompts(given["prompt"], given["negative_prompt"], n) if "prompt" in self.takes else ()
        n = len(prompts) or n
        if given["guidance_scale"] is not None:
            scale = number("guidance_scale", given["guidance_scale"], -1000, 1000)
        walk: dict[str, Any] = {"steps": 0, "sampler": "", "sampler_options": {}}
        if self.samplers():
            sampler = default.sampler if given["sampler"] is None else given["sampler"]
            options = dict(default.sampler_options.get(sampler, {}))
            if given["sampler"] is not None or given["sampler_options"]:
                options |= checked_sampler(sampler, given["sampler_options"] or {}, self.samplers())
            steps = default.steps[sampler] if given["steps"] is None else given["steps"]
            walk = {"steps": whole_number("steps", steps, 1), "sampler": sampler, "sampler_options": options}
        seed = fresh_seed() if seed is None else whole_number("seed", seed, 0)
        lost = [name for name in ("mask", "fit_image", "keep_unmasked") if given.get(name) is not None]
        if lost and given.get("image") is None:
            raise InputError(f"{lost[0]}= given without image=; it says what becomes of the image")
        if size is None and given.get("fit_image") is False:
            size = tuple(read_picture("image", given["image"]).shape[2:])
        if size is None and self.size_of_image and given["image"] is not None:
            size = size_of(given["image"], self.factor())
        size = self.about.size if size is None else checked_size(size, self.factor())
        return Request(
            pictures=tuple(range(n)), total=n, size=size, **walk, guidance_scale=scale, seed=seed,
            label=self._labels(labels, n, seed), prompts=prompts, recorded=dict(noise or {}), device=self.device,
            inputs={k: v for k, v in given.items() if v is not None and (k in self.own or k in INPUTS)},
        )  # fmt: skip

    def _labels(self, labels: list[Any] | None, n: int, seed: int) -> Tensor | None:
        count = self.label_count()
        if count == 0:
            if labels is not None:
                raise InputError(f"label={labels[0]!r}: this model was trained without labels; leave label out")
            return None
        if labels is None:
            return drawn_labels(seed, n, self.about.label_counts or [1] * count)
        return torch.tensor([class_number(value, count, self.about.classes) for value in labels])

    def _with_provenance(self, pictures: Tensor, request: Request, given: Mapping[str, Any]) -> list[Any]:
        about, images = self.about, to_pil(pictures)
        many = len(given["prompt"]) if isinstance(given.get("prompt"), list | tuple) else 1
        settled = {
            "steps": request.steps, "sampler": request.sampler, "sampler_options": dict(request.sampler_options),
            "guidance_scale": request.guidance_scale,
        }  # fmt: skip
        call = {
            **given, "n": request.total // many, "size": request.size, "seed": request.seed,
            "noise": request.recorded or None,
            **{name: value for name, value in settled.items() if name in self.takes},
        }  # fmt: skip
        for i, image in enumerate(images):
            attach(image, record(
                self.name, about.name or "in memory", call, index=i, size=request.size, model_hash=about.sha256,
                device=str(request.device), dtype=self.arithmetic, loras=self.loras or None, **self.told_of(request, i),
                licence=about.data_licence, attribution=about.attribution,
            ))  # fmt: skip
        return images


# ---------------------------------------------------------------------------------------------------- checks of a call


def watched(
    request: Request, user: Callable[[Step], Any] | None, advance: Callable[[int], None], dtype: Any
) -> Request:
    """The request with a callback that moves the bar, calls the user's, and stops at the first non-finite number."""

    def callback(step: Step) -> None:
        if not torch.isfinite(step.x).all():
            where = f"after step {step.index + 1} of {step.total} of the denoiser, sampler {request.sampler}"
            raise not_finite(where, str(dtype))
        advance(step.total)
        if user is not None:
            user(step)

    return replace(request, callback=callback)


def whole_number(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: a whole number of at least {least} is needed")
    return value


def number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InputError(f"{name}={value!r}: a number from {least:g} to {most:g} is needed")
    return float(value)


def checked_size(size: Any, factor: int) -> tuple[int, int]:
    """(height, width), each a positive multiple of `factor`; InputError names the nearest that are."""
    pair = (
        (size, size)
        if isinstance(size, int) and not isinstance(size, bool)
        else tuple(size)
        if isinstance(size, (list, tuple))
        else ()
    )
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in pair):
        raise InputError(f"size={size!r}: one whole number, or (height, width) in pixels, is needed")
    for side, value in zip(("height", "width"), pair, strict=True):
        if not 0 < value <= 65_536 or value % factor:
            low = max(factor, value // factor * factor)
            near = f"{low} and {low + factor}" if value > factor else str(factor)
            raise InputError(f"size={pair}: {side} {value} is not a multiple of {factor}; nearest that work: {near}")
    return pair


def checked_sampler(sampler: str, options: Any, allowed: Sequence[str]) -> dict[str, Any]:
    """The options that a user gave a sampler."""
    if sampler in SAMPLERS and sampler not in allowed:
        why = "divides by the share of the picture, of which the path of this model has none where it begins"
        raise InputError(f"sampler={sampler!r} {why}; samplers that can: {', '.join(allowed)}")
    if sampler not in allowed:
        raise unknown("sampler", sampler, allowed)
    if not isinstance(options, Mapping):
        raise InputError(f"sampler_options={options!r}: a dict such as {{'eta': 0.5}} is needed")
    known = SAMPLERS[sampler].options
    for key, value in options.items():
        if key not in known:
            raise unknown(f"option of sampler {sampler}", key, known)
        known[key](key, value)
    return dict(options)


def fresh_seed() -> int:
    """A seed for a call that names none; it is in the picture's provenance, so that the call can be repeated."""
    return secrets.randbelow(2**31)


def steps_bar(
    title: str, batches: int, shown: bool | Callable[[int, int], None]
) -> AbstractContextManager[Callable[[int], None]]:
    """Gives `advance(steps of a batch)`, to be called once a step."""
    if callable(shown):
        return nullcontext(_counted(shown, batches))
    return _bar(title, batches) if shown and sys.stderr.isatty() else nullcontext(lambda total: None)


def _counted(shown: Callable[[int, int], None], batches: int) -> Callable[[int], None]:
    done = itertools.count(1)
    return lambda total: shown(next(done), total * batches)


@contextmanager
def _bar(title: str, batches: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{title} paints", total=None)
        yield lambda total: bar.update(task, total=total * batches, advance=1)
