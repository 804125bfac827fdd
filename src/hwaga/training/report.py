"""`report.html` of a run: what it is, how the losses went, what it paints. One file that opens anywhere.

Everything that comes from outside (names, captions, licences, paths) is escaped by the template engine; pictures are
embedded, curves are drawn as SVG.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..files import write_text
from .metrics import Row, read_rows

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")


@dataclass(frozen=True)
class Curve:
    """A named line through points (step, value)."""

    name: str
    points: Sequence[tuple[float, float]]


def write_report(folder: Path, title: str, facts: Mapping[str, Any], recipe: str, notes: Sequence[str] = ()) -> None:
    """Writes `folder/report.html` from the run's metrics and sample grids.

    `facts`: rows of the table at its head; `recipe`: the resolved YAML; `notes`: sentences such as the data's licence.
    """
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    rows = read_rows(folder / "metrics.jsonl")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    stages = list(dict.fromkeys(row["stage"] for row in rows if isinstance(row.get("stage"), str)))
    page = environment.get_template("report.html.j2").render(
        title=title,
        facts=list(facts.items()),
        recipe=recipe,
        notes=notes,
        stages=[
            {
                "name": stage,
                "charts": [{"title": t, "svg": Markup(svg(curves, mark))} for t, curves, mark in charts(rows, stage)],
                "numbers": _numbers(rows, stage),
            }
            for stage in stages
        ],
        alarms=[row for row in rows if "alarm" in row],
        grids=[{"step": step, "data": _embedded(path)} for step, path in _grids(folder / "samples")],
    )
    write_text(folder / "report.html", page)


def charts(rows: Sequence[Row], stage: str) -> list[tuple[str, list[Curve], float | None]]:
    """Title, curves and marked step of each chart of a stage: losses beside the held-out one, its bins, norms,
    scores.
    """
    own = [row for row in rows if row.get("stage") == stage]
    names = sorted({k for row in own for k, v in row.items() if isinstance(v, (int, float)) and k != "step"})

    def curve(name: str) -> Curve:
        return Curve(name, [(row["step"], row[name]) for row in own if isinstance(row.get(name), (int, float))])

    bins = [n for n in names if n.startswith("held_out.") and n != "held_out.loss"]
    scores = [n for n in names if n.startswith("score.")]
    trained = [n for n in names if n.endswith(".loss")]
    losses = [curve(n) for n in trained]
    held = next((c.points for c in losses if c.name == "held_out.loss"), None)
    mark = min(held, key=lambda point: point[1])[0] if held else None
    found = [("Loss", losses, mark), ("Held-out loss by time", [curve(n) for n in bins], mark)]
    found += [(n.removeprefix("score."), [curve(n)], None) for n in scores]
    found += [("Norm of the gradient", [curve(n) for n in names if n.endswith(".gradient")], None)]
    return [(title, curves, at) for title, curves, at in found if curves]


def svg(curves: Sequence[Curve], mark: float | None = None, width: int = 640, height: int = 260) -> str:
    """A chart of some curves, the value axis logarithmic where all values are positive and span more than a factor 10.

    `mark` draws an upright line at a step (where the held-out loss is lowest). All text in it is escaped.
    """
    drawn = [Curve(c.name, _thinned([p for p in c.points if math.isfinite(p[1])])) for c in curves]
    every = [p for c in drawn for p in c.points]
    if not every:
        return ""
    low, high = min(v for _, v in every), max(v for _, v in every)
    log = low > 0 and high > 10 * low
    scale = math.log10 if log else float
    bottom, top = scale(low), scale(high)
    top = top if top > bottom else bottom + (abs(bottom) or 1.0)
    last = max(s for s, _ in every)
    left, right, up, down = 64, 12, 10, 24
    wide, tall = width - left - right, height - up - down

    def place(step: float, value: float) -> str:
        y = up + tall * (1 - (scale(value) - bottom) / (top - bottom))
        return f"{left + wide * step / (last or 1):.1f},{y:.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for i in range(5):
        y, at = up + tall * i / 4, top - (top - bottom) * i / 4
        text = f"{10**at if log else at:.3g}"
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}" class="rule"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        under = f'<text x="{left + wide * i / 4:.1f}" y="{height - 6}" text-anchor="middle">'
        parts.append(f"{under}{last * i / 4:.0f}</text>")
    if mark is not None:
        x = left + wide * mark / (last or 1)
        parts.append(f'<line x1="{x:.1f}" y1="{up}" x2="{x:.1f}" y2="{up + tall}" class="mark"/>')
    for i, curve in enumerate(drawn):
        line = " ".join(place(step, value) for step, value in curve.points)
        colour = _COLOURS[i % len(_COLOURS)]
        if len(curve.points) == 1:
            right_of, below = line.split(",")
            parts.append(f'<circle cx="{right_of}" cy="{below}" r="3" fill="{colour}"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    names = "".join(
        f'<span><i style="background:{_COLOURS[i % len(_COLOURS)]}"></i>{escape(c.name)}</span>'
        for i, c in enumerate(drawn)
    )
    return "".join(parts) + f'</svg><p class="legend">{names}</p>'


def _thinned(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most `most` points: the means of equal runs of them."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(run[-1][0], sum(v for _, v in run) / len(run)) for run in runs]


def _numbers(rows: Sequence[Row], stage: str) -> list[tuple[str, str, str]]:
    """Name, newest value and step of everything measured in a stage."""
    newest: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.get("stage") == stage and "alarm" not in row:
            for key, value in row.items():
                if key not in ("step", "stage"):
                    shown = f"{value:.5g}" if isinstance(value, (int, float)) else "not finite"
                    newest[key] = (shown, str(row.get("step")))
    return [(name, *pair) for name, pair in sorted(newest.items())]


def _grids(folder: Path, most: int = 6) -> list[tuple[int, Path]]:
    """The newest grid first, and a few of the earlier ones, evenly spread."""
    found = []
    for path in folder.glob("step-*.png"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal():
            found.append((int(number), path))
    found.sort(reverse=True)
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
