"""What `hwaga lab` draws: score fields, paths, samplers, Langevin dynamics. Each figure returns the numbers that it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import unknown
from ..processes.continuous import SubVPConfig, VEConfig, VPConfig
from ..processes.flow import FlowConfig
from ..processes.gaussian import GaussianConfig
from ..processes.process import Level
from ..processes.times import TimesConfig
from ..samplers import SAMPLERS
from ..samplers.noise import from_seed, stream
from .learning import Learned, langevin, sample
from .measuring import Paths, curvature, energy, score_cosine, two_sample
from .points import Mixture

LOW = TimesConfig(kind="logit-normal", mean=-0.8, spread=1.2)  # points have their detail at little noise
PROCESSES: dict[str, Callable[[], Any]] = {
    "vp": lambda: VPConfig(predicts="v", times=LOW),
    "sub-vp": SubVPConfig,
    "gaussian": lambda: GaussianConfig(predicts="v", times=LOW),
    "flow": FlowConfig,
    "ve": lambda: VEConfig(sigma_min=0.01, sigma_max=20.0),
}  # fmt: skip
TIMES = (0.05, 0.12, 0.3)  # of the score fields
LANGEVIN_AT, LANGEVIN_STEPS = 0.12, 400
NEAR_DATA = (
    0.02  # curvature is measured up to there: with a linear schedule sigma rises as a root, infinitely fast at first
)
COLOURS = {"data": "#1f4e79", "learned": "#c0392b", "exact": "#1f4e79", "path": "#7f8c8d"}
VIEW = 1.5
Numbers = dict[str, Any]


def process_config(kind: str, **fields: Any) -> Any:
    """The config of a kind of process, as the laboratory uses it; InputError names the kinds that there are."""
    if kind not in PROCESSES:
        raise unknown("process", kind, PROCESSES)
    return type(PROCESSES[kind]()).model_validate({**PROCESSES[kind]().model_dump(), **fields})


def sampler_names(given: Sequence[str] | None) -> list[str]:
    """The samplers to compare; InputError for one that there is not, or that is for distilled students."""
    can = [name for name, sampler in SAMPLERS.items() if sampler.rule != "student"]
    for name in given or ():
        if name not in can:
            raise unknown("sampler", name, can)
    return list(given or ("ddim", "heun", "dpm-solver++", "unipc"))


@dataclass(frozen=True)
class Lab:
    """A point set with what was learned of it: by a diffusion, and by a rectified flow beside it."""

    data: Mixture
    diffusion: Learned
    flow: Learned
    seed: int = 0

    def generator(self, name: str) -> torch.Generator:
        return stream(self.seed, "laboratory", name)


def draw(lab: Lab, folder: Path, samplers: Sequence[str], evaluations: int) -> Numbers:
    """All figures, as PNG files of `folder`, and their numbers by figure."""
    return {
        "score": score_fields(lab, folder / "score.png"),
        "paths": paths(lab, folder / "paths.png"),
        "samplers": by_samplers(lab, folder / "samplers.png", samplers, evaluations),
        "langevin": langevin_figure(lab, folder / "langevin.png"),
    }


def score_fields(lab: Lab, file: Path) -> Numbers:
    """The exact score as arrows, the learned one over it, at three noise levels; how alike they are."""
    figure, axes = panels(len(TIMES))
    side = torch.linspace(-VIEW, VIEW, 19)
    mesh = torch.cartesian_prod(side, side)
    found = {}
    for axis, t in zip(axes, TIMES, strict=True):
        at = lab.diffusion.process.point(t)
        level = Level(at.alpha, at.sigma)
        found[f"cosine t={t:g}"] = cosine = score_cosine(lab.diffusion, lab.data, t, lab.generator(f"score {t}"))
        _density(axis, lab.data, level)
        inside = lab.data.log_density(mesh.double(), level) > -4  # where points are
        where = mesh[inside]
        pairs = (
            ("exact", lab.data.score(where.double(), level), 0.011),
            ("learned", lab.diffusion.score(where, t), 0.005),
        )
        for name, field, width in pairs:
            shown = field * at.sigma**2  # as long as the way to the mean of x_0, which every level can show
            axis.quiver(
                *where.T, *shown.T, color=COLOURS[name], width=width, angles="xy", scale_units="xy", label=name,
                scale=4.0 if at.sigma > 0.5 else 2.0, alpha=0.9 if name == "learned" else 0.45,
            )  # fmt: skip
        axis.set_title(f"t = {t:g}: cosine {cosine:.4f}")
    axes[0].legend(loc="lower right", fontsize=7)
    written(figure, file)
    return found


def paths(lab: Lab, file: Path) -> Numbers:
    """Where points go from noise to data: by the probability-flow ODE, by ancestral steps, along a rectified flow."""
    walks: Any = (
        ("diffusion, ODE", lab.diffusion, "ddim", 100, {}),
        ("diffusion, ancestral", lab.diffusion, "ddim", 100, {"eta": 1.0}),
        ("rectified flow", lab.flow, "ddim", 100, {}),
    )
    figure, axes = panels(len(walks))
    found = {}
    for axis, (name, learned, sampler, steps, options) in zip(axes, walks, strict=True):
        kept = Paths()
        sample(learned.denoiser(), learned.process, 400, sampler, steps, lab.seed, callback=kept, options=options)
        walked = kept.points  # from after the first step on
        random = bool(options)
        for i in range(4 if random else 60):
            axis.plot(walked[:, i, 0], walked[:, i, 1], color=COLOURS["path"], lw=0.6, alpha=0.7)
        axis.scatter(*walked[0, : 4 if random else 60].T, s=6, color="black", zorder=3, linewidths=0)
        axis.scatter(*walked[-1].T, s=4, color=COLOURS["learned"], zorder=3, linewidths=0)
        axis.set_title(name)
        if not random:
            far = kept.times >= NEAR_DATA
            found[name] = curvature(walked[far], kept.times[far])
            axis.set_title(f"{name}: curvature {found[name]:.2f}")
        axis.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    written(figure, file)
    return found


def by_samplers(lab: Lab, file: Path, names: Sequence[str], evaluations: int, n: int = 1500) -> Numbers:
    """Samples by each sampler with the same number of evaluations: above of the diffusion, below of the flow."""
    truth = lab.data.draw(n, lab.generator("truth"))
    figure, axes = panels(len(names) + 1, 2)
    found: Numbers = {}
    rows = (("diffusion", lab.diffusion), ("flow", lab.flow))
    for row, (kind, learned) in enumerate(rows):
        axes[row][0].scatter(*truth.T, s=1.2, color=COLOURS["data"], linewidths=0)
        axes[row][0].set_title("data" if row == 0 else "")
        axes[row][0].set_ylabel(kind, visible=True)
        for axis, name in zip(axes[row][1:], names, strict=True):
            chosen = SAMPLERS[name]
            if chosen.needs_signal and learned.process.point(1.0).alpha <= 0:
                name, chosen = f"flow-{name}", SAMPLERS.get(f"flow-{name}", chosen)
                if chosen.needs_signal:
                    axis.axis("off")
                    continue
            steps = max(1, evaluations // chosen.evaluations)
            got = sample(learned.denoiser(), learned.process, n, name, steps, lab.seed)
            found[f"{kind}, {name}"] = distance = energy(got, truth)
            axis.scatter(*got.T, s=1.2, color=COLOURS["learned"], linewidths=0)
            axis.set_title(f"{name}: {1000 * distance:.1f}")
    figure.suptitle(f"{evaluations} evaluations; numbers: energy distance to the data x 1000", fontsize=9)
    written(figure, file)
    return found


def langevin_figure(lab: Lab, file: Path, n: int = 1000) -> Numbers:
    """Chains that follow the learned score from far away, beside points of the exact density at that noise level."""
    at = lab.diffusion.process.point(LANGEVIN_AT)
    level = Level(at.alpha, at.sigma)
    figure, axes = panels(4)
    noise = from_seed(lab.seed, range(n))
    start = 1.2 * noise("start", (n, 2)) + 0.8
    kept = Paths()
    end = langevin(lab.diffusion.denoiser(), lab.diffusion.process, LANGEVIN_AT, start, LANGEVIN_STEPS, noise, kept)
    shown = {0: start, 20: kept.points[0], LANGEVIN_STEPS: end}
    truth = noised_points(lab.data, level, n, lab.generator("langevin truth"))
    distance, p = two_sample(end[:500], truth[:500], lab.generator("permutations"))
    shows = [(f"Langevin, step {i}", x, "learned") for i, x in shown.items()] + [
        (f"exact, t = {LANGEVIN_AT}", truth, "data")
    ]
    for axis, (title, x, colour) in zip(axes, shows, strict=True):
        _density(axis, lab.data, level)
        axis.scatter(*x.T, s=2, color=COLOURS[colour], linewidths=0)
        axis.set(title=title, xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
    written(figure, file)
    return {"energy distance": distance, "p": p, "steps": LANGEVIN_STEPS, "t": LANGEVIN_AT}


def noised_points(data: Mixture, level: Level, n: int, generator: torch.Generator) -> Tensor:
    """Points of p_t."""
    x0 = data.draw(n, generator)
    return level.alpha * x0 + level.sigma * torch.randn(x0.shape, generator=generator)


def panels(columns: int, rows: int = 1) -> Any:
    """A figure, and its axes: a list of them, or of rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["axes.titlesize"] = 9
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 3.1 * rows + 0.25), squeeze=False)
    for axis in axes.flat:
        axis.set(xlim=(-VIEW, VIEW), ylim=(-VIEW, VIEW), xticks=[], yticks=[], aspect="equal")
    return figure, axes[0] if rows == 1 else axes


def _density(axis: Any, data: Mixture, level: Level) -> None:
    side = torch.linspace(-2.6, 2.6, 105, dtype=torch.float64)
    x, y = torch.meshgrid(side, side, indexing="xy")
    height = data.log_density(torch.stack([x.flatten(), y.flatten()], 1), level).view_as(x)
    axis.contour(side, side, height, levels=[-4.0, -2.5, -1.5, -0.7, 0.0], colors="#bdc3c7", linewidths=0.6)


def written(figure: Any, file: Path) -> None:
    """Writes and closes a figure, in 64 colours: a third of the bytes."""
    from io import BytesIO

    from matplotlib import pyplot as plt
    from PIL import Image

    figure.tight_layout(pad=1.0)
    held = BytesIO()
    figure.savefig(held, dpi=80)
    plt.close(figure)
    Image.open(held).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, optimize=True)
