"""Few steps on points: students of the laboratory's flow and diffusion, beside their teachers (hwaga lab --few-steps)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .figures import COLOURS, Lab, Numbers, panels, written
from .learning import Learned, by_consistency, by_mean_flow, learn, sample
from .measuring import energy

EVALUATIONS = (1, 2, 4)
RATE = 1e-3  # students begin near where they end


def students(lab: Lab, config: Any, steps: int, say: Callable[[str, int, int], None]) -> dict[str, Learned]:
    """A mean flow that begins as the lab's flow, and a consistency model that learns from its diffusion."""
    flow, diffusion = lab.flow, lab.diffusion
    return {
        "mean flow": learn(
            lab.data, flow.process.config, steps=steps, loss=by_mean_flow, span=True, start_from=flow.network,
            learning_rate=RATE, seed=lab.seed, say=lambda done, total: say("mean flow", done, total),
        ),
        "consistency": learn(
            lab.data, config, steps=steps, loss=by_consistency(diffusion), start_from=diffusion.network,
            learning_rate=RATE, seed=lab.seed, say=lambda done, total: say("consistency", done, total),
        ),
    }  # fmt: skip


def few_steps(lab: Lab, own: dict[str, Learned], file: Path, n: int = 1500) -> Numbers:
    """Teachers and students with 1, 2 and 4 evaluations; the energy distances to the data."""
    truth = lab.data.draw(n, lab.generator("few truth"))
    rows: Any = (
        ("flow", lab.flow, "flow-euler", {}), ("mean flow", own["mean flow"], "flow-euler", {}),
        ("diffusion, DDIM", lab.diffusion, "ddim", {}),
        ("consistency", own["consistency"], "lcm", {"timestep_scaling": None}),
    )  # fmt: skip
    figure, axes = panels(len(EVALUATIONS), len(rows))
    found = {}
    for line, (name, learned, sampler, options) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name)
        for axis, steps in zip(line, EVALUATIONS, strict=True):
            grid = {"spacing": "trailing"}  # the last step of a grid that ends near the data would be lost
            got = sample(learned.denoiser(), learned.process, n, sampler, steps, lab.seed, options=options, grid=grid)
            found[f"{name}, {steps}"] = distance = energy(got, truth)
            axis.scatter(*got.T, s=1.2, color=COLOURS["learned"], linewidths=0)
            axis.set_title(
                f"{steps} evaluations: {1000 * distance:.1f}" if steps > 1 else f"1 evaluation: {1000 * distance:.1f}"
            )
    written(figure, file)
    return found
