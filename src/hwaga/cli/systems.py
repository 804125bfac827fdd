"""`hwaga systems`: what there is."""

from __future__ import annotations

import typer

from .progress import terminal


def systems(
    as_json: bool = typer.Option(False, "--json", help="All that is known of each, as JSON."),
) -> None:
    """List the systems: what each needs, takes and can load. Where there is no terminal: their names, one a line."""
    from ..systems import ROOMS
    from ..systems import systems as described

    if as_json:
        import json

        print(json.dumps(described(), indent=2, ensure_ascii=False, default=str))
    elif not terminal():
        for name in ROOMS:
            print(name)
    else:
        _table(described())


def _table(described: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "title", "year", "stages", "takes", "loads"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for one in described:
        table.add_row(
            one["name"],
            one["title"],
            str(one["year"]),
            ", ".join(one.get("stages", ())),
            ", ".join(one.get("takes", ())),
            ", ".join(one.get("formats", ())),
        )
    Console().print(table)
