"""What StyleGAN does with styles beside painting them: mixing by layer, interpolation, projection, directions.

    mix           styles of one layer group from another painting                Karras et al. 2019, section 3.1
    interpolate   from one painting to another, in w (straight) or z (great circle)
    project       the w whose painting looks like a given picture                Karras et al. 2020, section 5, appendix D
    direction     a way in w along which paintings change in one respect:
                  k, the k-th that changes the styles most                       Shen and Zhou 2021 (SeFa), eq. 5 to 7
                  A:B, from the mean w of one group to that of another           two classes, or two folders of pictures

Layers are named coarse, middle and fine: of 1024 px the first 4, the next 4 and the last 10 styles, and in like parts of others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, unknown
from ..formats.perceptual import perceptual_network
from ..interfaces import Callback, Noise, Point, Step
from ..objectives.perceptual import Perceptual
from ..objectives.style import spherical
from ..samplers.noise import from_seed, stream
from .base import Request, number, whole_number
from .pictures import to_inside
from .sources import fitted

if TYPE_CHECKING:
    from .stylegan import StyleGAN

OWN = {
    "mix": "a second seed: paints a row of five, the first, then with coarse, middle, fine styles of the second, the second",
    "interpolate": "number of pictures: paints a row from the seed's painting to that of to=",
    "to": "the seed that interpolate= goes to; the next one if left out",
    "space": "w or z: where interpolate= goes; w or w+: one style for a projection, or one a layer",
    "project": "number of steps: paints what comes nearest to image=",
    "direction": "k, the k-th that changes styles most, or A:B, from class (or folder of pictures) A to B",
    "amount": "how far along direction=: standard deviations of w, or shares of the way from A to B",
    "walk": "number of pictures: paints a row from -amount to amount",
    "layers": "coarse, middle, fine or all: the layers that direction= changes",
    "w": "a tensor (w), (n, w) or (n, layers, w) to paint instead of a new one, such as project gave",
}
GROUPS = ("coarse", "middle", "fine")
PROJECTED = 200  # steps for each picture of a folder, where project= names no others
ACTS = ("mix", "interpolate", "project", "direction", "w")


def asked(given: Mapping[str, Any]) -> bool:
    return any(name in given for name in ACTS)


def check(system: StyleGAN, request: Request) -> None:
    """InputError for what does not go together or is out of range."""
    given = request.inputs
    for name, least, most in (("interpolate", 2, 100), ("walk", 2, 100), ("project", 1, 100_000)):
        if name in given and (whole_number(name, given[name], least) > most):
            raise InputError(f"{name}={given[name]!r}: a whole number from {least} to {most} is needed")
    for name in ("mix", "to"):
        if name in given:
            whole_number(name, given[name], 0)
    for name, needs in (("to", "interpolate"), ("amount", "direction"), ("walk", "direction"), ("layers", "direction")):
        if name in given and needs not in given:
            raise InputError(f"{name}= given without {needs}=; it says how {needs}= is done")
    if "space" in given:
        allowed = ("w", "z") if "interpolate" in given else ("w", "w+") if "project" in given else ()
        if given["space"] not in allowed:
            raise InputError(
                f"space={given['space']!r}: interpolate= goes in w or z, project= finds a w or w+; nothing else has a space"
            )
    rows = [name for name in ("mix", "interpolate", "walk") if name in given]
    if len(rows) > 1:
        raise InputError(f"{rows[0]}= given with {rows[1]}=; each paints a row of its own")
    if "image" in given and "project" not in given:
        raise InputError(
            "image= given to StyleGAN without project=; a picture is painted after it has been projected into w"
        )
    if "project" in given and "image" not in given:
        raise InputError("project= given without image=, the picture that is projected")
    if "project" in given and "w" in given:
        raise InputError("w= given with project=; either is where the painting comes from")
    for name in ("mix", "interpolate"):
        if name in given and ("project" in given or "w" in given) and given.get("space") == "z":
            raise InputError(f"space='z': {name}= of a projected picture goes in w, as it has no z")
    if "amount" in given:
        number("amount", given["amount"], -1000, 1000)
    if given.get("layers", "all") not in (*GROUPS, "all"):
        raise unknown("layers", given["layers"], (*GROUPS, "all"))
    if "direction" in given:
        _check_direction(system, given["direction"])
    if "w" in given:
        _given_w(system, request)


def paint(system: StyleGAN, request: Request) -> Float[Tensor, "n 3 h w"]:
    """The pictures of a call; with mix, interpolate or walk a row of pictures each, side by side."""
    given = request.inputs
    ws = _base(system, request)
    psi = {} if "w" in given or "project" in given else given  # what was found is painted as it is
    if "mix" in given:
        other = system.w_of(_of_seed(request, given["mix"]))
        pair = [system.truncated(one, psi) for one in (ws, other)]
        parts = [pair[0], *(exchanged(pair[0], pair[1], group) for group in GROUPS), pair[1]]
    elif "interpolate" in given:
        parts = [system.truncated(one, psi) for one in _between(system, request, ws)]
    else:
        ws = system.truncated(ws, psi)
        if "direction" not in given:
            return system.picture(ws, request)
        along = _selected(direction(system, request), given.get("layers", "all"))
        amount, count = float(given.get("amount", 1.0 if "walk" not in given else 3.0)), given.get("walk")
        amounts = [amount] if count is None else torch.linspace(-amount, amount, count).tolist()
        parts = [ws + one * along for one in amounts]
    row = torch.stack(parts, dim=1)  # (n, pictures of a row, layers, w)
    painted = system.picture(row.flatten(0, 1), request)
    return torch.cat(painted.unflatten(0, row.shape[:2]).unbind(1), dim=3)


def _base(system: StyleGAN, request: Request) -> Float[Tensor, "n l w"]:
    if "w" in request.inputs:
        return _given_w(system, request)
    if "project" in request.inputs:
        picture = to_inside(fitted("image", request.inputs["image"], request.size))
        return project(
            system, picture.expand(len(request), -1, -1, -1), request.inputs["project"], noise=request.source(),
            every_layer=request.inputs.get("space") == "w+", label=request.label, callback=request.callback,
        )  # fmt: skip
    return system.w_of(request)


def _of_seed(request: Request, seed: int) -> Request:
    from dataclasses import replace

    return replace(request, seed=seed, recorded={})


def _given_w(system: StyleGAN, request: Request) -> Float[Tensor, "n l w"]:
    w, config = request.inputs["w"], system.config.generator
    shapes = ((config.w_dim,), (request.total, config.w_dim), (request.total, config.num_ws, config.w_dim))
    one = ((1, config.w_dim), (1, config.num_ws, config.w_dim))
    if not isinstance(w, Tensor) or tuple(w.shape) not in (*shapes, *one) or not w.is_floating_point():
        what = f"{tuple(w.shape)} {w.dtype}" if isinstance(w, Tensor) else type(w).__name__
        raise InputError(
            f"w={what}: a floating tensor of one of the shapes {', '.join(map(str, dict.fromkeys(shapes)))} is needed"
        )
    if not bool(torch.isfinite(w).all()):
        raise InputError("w= holds numbers that are not finite")
    w = w.to(system.device, system.dtype)
    w = w[None] if w.dim() == 1 else w
    w = w[:, None].expand(-1, config.num_ws, -1) if w.dim() == 2 else w
    return w.expand(len(request), -1, -1) if len(w) == 1 else w[list(request.pictures)]


# ------------------------------------------------------------------------------------------------------ layers and ways between


def layers_of(group: str, num_ws: int) -> range:
    """The styles of a group: coarse, middle, fine (or all), by blocks of two styles as 1024 px has 2, 2 and 5 blocks."""
    blocks = num_ws // 2
    part = max(1, round(2 * blocks / 9))
    edges = {"coarse": (0, part), "middle": (part, 2 * part), "fine": (2 * part, blocks), "all": (0, blocks)}
    first, last = (min(edge, blocks) for edge in edges[group])
    return range(2 * first, num_ws if last == blocks else 2 * last)


def _selected(along: Tensor, group: str) -> Tensor:
    """(layers, w) with zeros in the layers that are left alone."""
    mask = torch.zeros(len(along), 1, dtype=along.dtype, device=along.device)
    chosen = layers_of(group, len(along))
    mask[chosen.start : chosen.stop] = 1
    return along * mask


def exchanged(ws: Float[Tensor, "n l w"], other: Float[Tensor, "n l w"], group: str) -> Float[Tensor, "n l w"]:
    """`ws` with the styles of one group of layers taken from `other`."""
    mixed, chosen = ws.clone(), layers_of(group, ws.shape[1])
    mixed[:, chosen.start : chosen.stop] = other[:, chosen.start : chosen.stop]
    return mixed


def _between(system: StyleGAN, request: Request, first: Tensor) -> list[Tensor]:
    given, g = request.inputs, system.generator
    goal = _of_seed(request, given.get("to", request.seed + 1))
    shares = torch.linspace(0, 1, given["interpolate"]).tolist()
    if given.get("space", "w") == "w":
        second = system.w_of(goal)
        return [torch.lerp(first, second, share) for share in shares]
    label = None if request.label is None else request.label.to(system.device)
    a, b = (one.source()("noise", (len(request), g.config.z_dim)).to(system.dtype) for one in (request, goal))
    ways = (spherical(a, b, torch.full((len(a), 1), share, dtype=a.dtype, device=a.device)) for share in shares)
    return [g.mapping(z, label)[:, None].expand(-1, g.config.num_ws, -1) for z in ways]


# ------------------------------------------------------------------------------------------------------------------- directions


def direction(system: StyleGAN, request: Request) -> Float[Tensor, "l w"]:
    """A way in w: its length is one standard deviation of w along it (k), or the whole way from A to B."""
    given = request.inputs["direction"]
    if isinstance(given, int):
        along = factorized(system, layers_of(request.inputs.get("layers", "all"), system.config.generator.num_ws))[
            given
        ]
        deviation = (_many_w(system) @ along).std()
        return (along * deviation).expand(system.config.generator.num_ws, -1)
    first, second = (_mean_w(system, request, name) for name in given.split(":"))
    return second - first


def factorized(system: StyleGAN, layers: range) -> Float[Tensor, "k w"]:
    """Orthonormal directions of w, most telling first: the eigenvectors of A^T A, A all weights that make styles of w. A step
    along the first changes the styles more than any other step of its length (SeFa, eq. 7).

    layers: whose styles count. Signs are such that the largest component is positive.
    """
    names = [
        name
        for name, part in system.generator.synthesis.named_modules()
        if name.endswith("affine") and hasattr(part, "weight")
    ]
    style = dict(system.generator.synthesis.named_modules())
    if system.config.generator.kind == "stylegan3":
        chosen = [name for i, name in enumerate(names) if i in layers and not name.startswith("input")]
    else:
        chosen = [name for name in names if any(name.startswith(f"b{4 * 2 ** (i // 2)}.") for i in layers)]
    weight = torch.cat([style[name].weight.detach().double().cpu() for name in chosen])
    _, vectors = torch.linalg.eigh(weight.T @ weight)
    vectors = vectors.T.flip(0)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).to(system.device, system.dtype)


def _many_w(system: StyleGAN, label: Tensor | None = None, count: int = 1024) -> Float[Tensor, "n w"]:
    """w's of a fixed seed, to measure by: of all classes by turns where none is named."""
    config = system.config.generator
    z = torch.randn((count, config.z_dim), generator=stream(0, "measured")).to(system.device, system.dtype)
    if config.classes and label is None:
        label = torch.arange(count, device=system.device) % config.classes
    w: Tensor = system.generator.mapping(z, label)
    return w


def _mean_w(system: StyleGAN, request: Request, name: str) -> Float[Tensor, "l w"]:
    """The mean w of a class, or of the pictures in a folder, each projected."""
    config = system.config.generator
    if (number_ := _class(system, name)) is not None:
        label = torch.full((1024,), number_, device=system.device)
        return _many_w(system, label).mean(0).expand(config.num_ws, -1)
    steps = request.inputs.get("project", PROJECTED)
    pictures = torch.cat([to_inside(fitted("direction", file, request.size)) for file in _files(name)])
    noise = from_seed(request.seed, range(len(pictures)), system.device)
    return project(system, pictures, steps, noise=noise).mean(0)


def _check_direction(system: StyleGAN, given: Any) -> None:
    width = system.config.generator.w_dim
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 <= given < width:
            raise InputError(f"direction={given}: the directions of this model are numbered from 0 to {width - 1}")
        return
    if not isinstance(given, str) or given.count(":") != 1:
        raise InputError(f"direction={given!r}: a number, or two classes or folders of pictures as A:B, is needed")
    for name in given.split(":"):
        if _class(system, name) is None and not (Path(name).is_dir() and _files(name)):
            classes = f"; classes: {', '.join(system.about.classes[:8])}, ..." if system.about.classes else ""
            raise InputError(
                f"direction={given!r}: {name!r} is neither a class of this model nor a folder of pictures{classes}"
            )


def _class(system: StyleGAN, name: str) -> int | None:
    if not system.label_count():
        return None
    if name in system.about.classes:
        return system.about.classes.index(name)
    return int(name) if name.isdigit() and int(name) < system.label_count() else None


def _files(folder: str) -> list[Path]:
    endings = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
    return sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in endings)


# ------------------------------------------------------------------------------------------------------------------- projection


def project(
    system: StyleGAN, pictures: Float[Tensor, "n 3 h w"], steps: int, *, noise: Noise, every_layer: bool = False,
    label: Tensor | None = None, rate: float = 0.1, callback: Callback | None = None,
) -> Float[Tensor, "n l w"]:  # fmt: skip
    """The w of each picture in [-1, 1] whose painting looks most like it, by Adam from the mean w (of the label's class).

    The distance is perceptual where such a network is there (`openmoji/perceptual`), else of pixels, at full size and halved
    and quartered; noise inputs stay those of the weights. In the first three quarters w is shaken by Gaussian
    noise that dies away, so that it finds the right valley. `every_layer`: a w for each layer (w+), nearer to the picture, but
    further from what the generator paints by itself. Source: Karras et al. 2020, appendix D.
    """
    g, n = system.generator, len(pictures)
    pictures = pictures.to(system.device, system.dtype)
    known = _many_w(system, None if label is None else label[:1].to(system.device).expand(1024))
    deviation = float((known - known.mean(0)).detach().square().sum(1).mean().sqrt())
    distance = _distance(pictures)
    layers = g.config.num_ws if every_layer else 1
    with torch.enable_grad():
        w = known.detach().mean(0).expand(n, layers, -1).clone().requires_grad_(True)
        adam = torch.optim.Adam([w], lr=rate, betas=(0.9, 0.999))
        for k in range(steps):
            t = k / steps
            ramp = min(1.0, (1 - t) / 0.25) if t > 0.75 else 1.0
            adam.param_groups[0]["lr"] = (
                rate * (0.5 - 0.5 * math.cos(ramp * math.pi)) * min(1.0, (k + 1) / (0.05 * steps))
            )
            shake = 0.05 * deviation * max(0.0, 1 - t / 0.75) ** 2
            shaken = w + shake * noise("project_step_noise", tuple(w.shape)).to(w.dtype)
            painted = g.synthesis(shaken.expand(-1, g.config.num_ws, -1), "const")
            loss = distance(painted)
            (gradient,) = torch.autograd.grad(loss.sum(), w)
            w.grad = gradient
            adam.step()
            if callback is not None:
                at, to = Point(1 - t, 1.0, 0.0, 0.0), Point(1 - (k + 1) / steps, 1.0, 0.0, 0.0)
                callback(Step(k, steps, at, to, painted.detach(), painted.detach()))
    return w.detach().expand(-1, g.config.num_ws, -1)


def _distance(pictures: Tensor) -> Any:
    """How far paintings are from `pictures`, (n,)."""
    network = perceptual_network("openmoji/perceptual").to(pictures.device)
    perceptual = Perceptual(network) if pictures.dtype == torch.float32 else None

    def distance(painted: Tensor) -> Tensor:
        total, a, b = torch.zeros(len(painted), device=painted.device), painted, pictures
        for _ in range(3):
            total = total + (a - b).square().mean((1, 2, 3))
            if min(a.shape[2:]) < 8:
                break
            a, b = (torch.nn.functional.avg_pool2d(x, 2) for x in (a, b))
        return total if perceptual is None else total + perceptual(painted, pictures)

    return distance
