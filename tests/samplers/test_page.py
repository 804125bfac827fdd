"""The page of the samplers says what the samplers say of themselves."""

from pathlib import Path

from hwaga.formats.schedulers import SAMPLERS as PUBLIC
from hwaga.processes import KINDS
from hwaga.processes.times import TimesConfig
from hwaga.samplers import CLIP, FLOW, GRID, RESPACING, SAMPLERS

DOCS = Path(__file__).parents[2] / "docs"


def rows(text):
    table = [line.strip().strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells] for cells in table}


def test_the_table_of_the_page_is_the_table_of_the_code():
    found = rows((DOCS / "samplers.md").read_text(encoding="utf-8"))
    for name, sampler in SAMPLERS.items():
        cells = found[name]
        extra = f" (+{sampler.extra_evaluations})" if sampler.extra_evaluations else ""
        assert cells[1:5] == [sampler.title, str(sampler.order), f"{sampler.evaluations}{extra}", sampler.stochastic], (
            name
        )
        assert cells[5] == (", ".join(f"`{option}`" for option in sampler.own) or "–")


def test_every_option_of_a_grid_is_on_the_page():
    text = (DOCS / "samplers.md").read_text(encoding="utf-8")
    for option in (*CLIP, *GRID, *RESPACING, *FLOW):
        assert f"`{option}`" in text, option
    for name in PUBLIC:
        assert name.removesuffix("Scheduler") in text, name


def test_every_process_is_on_its_page():
    text = (DOCS / "processes.md").read_text(encoding="utf-8")
    for kind in (*KINDS, *TimesConfig.model_fields["kind"].annotation.__args__):
        assert f"`{kind}`" in text, kind
