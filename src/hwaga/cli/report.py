"""What reports are made of: pictures as data URIs, curves of a run, a template filled in. A report is one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files

if TYPE_CHECKING:
    from PIL.Image import Image


def picture(image: Image) -> str:
    """A picture as a data URI. Only pixels go in: no text chunk, no path."""
    buffer = io.BytesIO()
    clean = image.convert("RGB")
    clean.info.clear()
    clean.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def number(value: Any) -> str:
    """A score as a reader wants it: three significant digits."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value != value:
        return "not a number"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3g}" if abs(value) >= 0.01 or value == 0 else f"{value:.4f}"
    return text.replace("-", "−")


def minutes(seconds: float) -> str:
    """ "45 s", "2 min 10 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def curves(runs: Mapping[str, Path]) -> list[tuple[str, Any]]:
    """(title, SVG) of what the metrics.jsonl of each run holds: losses, held-out loss, scores; one line a run."""
    from markupsafe import Markup

    from ..training.metrics import read_rows
    from ..training.report import Curve, svg

    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, folder in runs.items():
        for row in read_rows(folder / "metrics.jsonl"):
            step = row.get("step")
            for key, value in row.items():
                if _shown(key) and isinstance(step, int) and isinstance(value, int | float):
                    series.setdefault(key, {}).setdefault(name, []).append((step, value))
    found = []
    for key in sorted(series, key=_rank):
        lines = [Curve(name, points) for name, points in series[key].items() if len(points) > 1]
        if lines:
            found.append((_title(key), Markup(svg(lines))))  # names in it are escaped there
    return found


def _shown(key: str) -> bool:
    return key.endswith(".loss") or key.startswith("score.")


def _rank(key: str) -> tuple[int, str]:
    return (1 if key.startswith("held_out.") else 2 if key.startswith("score.") else 0, key)


def _title(key: str) -> str:
    if key == "held_out.loss":
        return "loss on held-out pictures"
    if key.startswith("score."):
        return f"score while training: {key.removeprefix('score.')}"
    return f"training loss ({key.removesuffix('.loss')})"


def differing(cards: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """The fields in which protocol cards differ: (field, {name: value}). Scores with different cards do not compare."""
    from ..evaluation import cards_differ

    flat = {name: dict(_flat(card)) for name, card in cards.items()}
    first = next(iter(cards.values()), {})
    fields = dict.fromkeys(field for card in cards.values() for field in cards_differ(first, card))
    return [(field, {name: str(card.get(field, "–")) for name, card in flat.items()}) for field in fields]


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, part in value.items():
        rows += _flat(part, f"{before}{name}.") if isinstance(part, Mapping) else [(f"{before}{name}", part)]
    return rows


def card_rows(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A protocol card as rows of a table."""
    return [(field.replace("_", " "), number(part)) for field, part in _flat(card) if part not in (None, "", [], {})]


def render(template: str, path: Path, **values: Any) -> None:
    """Fills in a template of this package, everything escaped, and writes it whole."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from .. import __version__

    pages = Environment(
        loader=PackageLoader("hwaga.cli", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pages.filters |= {"number": number, "minutes": minutes}
    files.write_text(path, pages.get_template(template).render(version=__version__, **values))
