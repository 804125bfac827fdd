"""`hwaga train`, `evaluate`, `compare`, `convert`, `demo` on tiny things, and that nothing in their reports is code."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cli_tools import Ask, painter, tree
from PIL import Image

import hwaga
from hwaga.cli import report
from hwaga.cli.compare import distinct
from hwaga.evaluation import Scores

HOSTILE = "<script>alert(1)</script>&amp;'\""


class Page(HTMLParser):
    """Tags, text and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def alone(page: Page) -> bool:
    """True where a page needs nothing from elsewhere and runs nothing."""
    return "script" not in page.tags and "link" not in page.tags and all(a.startswith("data:") for a in page.addresses)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals from 20 resamples: here only their place in the reports is looked at."""
    monkeypatch.setattr("hwaga.evaluation.evaluating._resamples", lambda dim: 20)


@pytest.fixture
def run(ask: Ask, recipe: Path, tmp_path: Path) -> Path:
    said = ask("train", recipe, "--out", "run", "--quiet")
    assert said.status == 0, said.err
    assert said.out.splitlines()[0].startswith("run/model")
    return tmp_path / "run"


def test_a_run_is_trained_planned_and_gone_on_with(ask: Ask, recipe: Path, run: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    plan = ask("train", recipe, "--out", "planned", "--dry-run")
    assert plan.status == 0 and "parameters" in plan.out and "4 steps" in plan.out and "planned/recipe.yaml" in plan.out
    assert tree(tmp_path) == before
    assert ask("train", "--resume", "run").status == 0  # finished: nothing to do
    longer = ask("train", "--resume", "run", "--set", "training.steps=6")
    assert longer.status == 0 and (run / "checkpoints" / "step-6").is_dir()
    assert ask("sample", "run", "--n", 2, "--out", "painted").status == 0
    refused = ask("train", recipe, "--out", "run")
    assert refused.status == 2 and "another run" in refused.sentence


def test_values_of_a_recipe_and_its_data_are_changed(ask: Ask, recipe: Path, pictures: Path, tmp_path: Path) -> None:
    said = ask("train", recipe, "--data", pictures, "--set", "training.steps=2", "--set", "training.learning_rate=1e-4",
               "--out", "own", "--quiet")  # fmt: skip
    assert said.status == 0, said.err
    kept = hwaga.recipes.load_recipe(tmp_path / "own" / "recipe.yaml")
    assert (kept.training.steps, kept.training.learning_rate) == (2, 1e-4)
    assert kept.data.source == str(pictures)
    assert "122 pictures found, 2 left out" in said.err


def test_scores_and_card_are_printed_and_written(ask: Ask, model: Path, pictures: Path, tmp_path: Path) -> None:
    said = ask("evaluate", model, "--data", pictures, "--n", 12, "--seed", 3, "--sampler", "ddim", "--steps", 2,
               "--metrics", "fid,kid,prdc,sharpness,memorisation", "--json", "s.json")  # fmt: skip
    assert said.status == 0, said.err
    for name in ("Fréchet distance", "distance over floor", "kernel distance", "recall", "sharpness", "memorisation"):
        assert name in said.out
    assert re.search(rf"12 pictures, seed 3, against \d+ of {re.escape(str(pictures))} \(held-out\)", said.out)
    scores = Scores.read(tmp_path / "s.json")
    assert scores.card["sampler"] == "ddim" and scores.card["steps"] == 2 and scores.card["n"] == 12
    assert f"{report.number(scores.values['fid'])} [" in said.out


def test_a_folder_of_pictures_is_measured_by_all_of_them(ask: Ask, model: Path, pictures: Path, tmp_path: Path) -> None:
    ask("sample", model, "--n", 9, "--seed", 1, "--out", "painted")
    said = ask("evaluate", "painted", "--data", pictures, "--metrics", "fid", "--json", "a.json")
    assert said.status == 0 and "9 pictures" in said.out
    ask("evaluate", model, "--data", pictures, "--metrics", "fid", "--n", 9, "--seed", 1, "--json", "b.json")
    a, b = (json.loads((tmp_path / name).read_text())["values"]["fid"] for name in ("a.json", "b.json"))
    assert a == pytest.approx(b, rel=1e-3)  # the folder's pictures were rounded to 8 bits


def test_compare_shows_scores_pictures_curves_and_cards_in_one_file(
    ask: Ask, run: Path, model: Path, pictures: Path, tmp_path: Path
) -> None:
    ask("sample", model, "--n", 12, "--out", "painted")
    said = ask("compare", "run", model, "painted", "--data", pictures, "--n", 12, "--pictures", 3)
    assert said.status == 0 and said.out == "report.html\n", said.err
    page = Page(tmp_path / "report.html")
    assert alone(page) and page.tags.count("img") == 9 and page.tags.count("svg") >= 1
    for words in ("run", "tiny", "painted", "distance over floor", "Protocol", "training loss (denoising)", "digits"):
        assert words in page.text
    assert "do not compare" not in page.text
    first, second = (a for a in page.addresses[:2])
    assert first != second
    assert [f for f in tmp_path.iterdir() if f.suffix == ".html"] == [tmp_path / "report.html"]


def test_compare_warns_and_names_the_fields_in_which_cards_differ(
    ask: Ask, model: Path, pictures: Path, tmp_path: Path
) -> None:
    ask("sample", model, "--n", 7, "--out", "painted")
    said = ask("compare", model, "painted", "--data", pictures, "--n", 12, "--metrics", "fid")
    assert said.status == 0, said.err
    text = Page(tmp_path / "report.html").text
    assert "do not compare" in text and re.search(r"cards differ in\s+n", text)


def test_compare_finds_a_folder_of_too_few_pictures_before_a_model_paints(
    ask: Ask, model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("sample", model, "--n", 3, "--out", "few")

    def painted(*given: object, **more: object) -> None:
        raise AssertionError("painted before what was wrong was found")

    monkeypatch.setattr("hwaga.systems.base.System.sample", painted)
    said = ask("compare", model, "few", "--data", pictures, "--n", 12)
    assert said.status == 2 and "3 pictures" in said.sentence
    assert not (tmp_path / "report.html").exists()


def test_compare_without_scores_needs_no_data(ask: Ask, pictures: Path, model: Path, tmp_path: Path) -> None:
    assert ask("compare", pictures, model, "--no-scores", "--out", "report.html").status == 0
    page = Page(tmp_path / "report.html")
    assert "Protocol" not in page.text and page.tags.count("img") == 16


def test_names_and_captions_are_escaped(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "_")
    folder.mkdir()
    for i, name in enumerate(sorted(pictures.glob("picture*.png"))[:2]):
        shutil.copy(name, folder / f"{i}{HOSTILE.replace('/', '_')}.png")
    assert ask("compare", folder, "--no-scores", "--out", "report.html").status == 0
    page = Page(tmp_path / "report.html")
    assert alone(page) and HOSTILE.replace("/", "_") in page.text
    hostile = {"uri": "data:,", "caption": HOSTILE}
    system = painter()
    values = {"steps": HOSTILE, "name": HOSTILE, "title": system.title, "parameters": "1", "seconds": "1 s"}
    trained = dict.fromkeys(
        ("minutes", "steps", "batch", "time", "share", "folder", "recipe", "unlabelled", "more", "thousand"), HOSTILE
    )
    fields = ("count", "words", "height", "width", "held_out", "attribution", "licence_words")
    data = dict.fromkeys(fields, HOSTILE)
    report.render(
        "demo.html.j2", tmp_path / "demo.html", data=data | {"pictures": [hostile]}, shipped=values | {"pictures": [hostile]},
        trained=trained | {"pictures": [hostile]}, charts=[], verdict=HOSTILE, table={"names": [HOSTILE], "rows": []},
        card=[(HOSTILE, HOSTILE)], notes=[HOSTILE], n=HOSTILE, total=HOSTILE, machine=HOSTILE,
    )  # fmt: skip
    page = Page(tmp_path / "demo.html")
    assert alone(page) and page.text.count("<script>") >= 20


def test_a_hostile_name_in_metrics_is_escaped_in_the_curves(tmp_path: Path) -> None:
    rows = [{"step": i, "stage": "x", f"{HOSTILE}.loss": 1 / i} for i in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts = report.curves({HOSTILE: tmp_path})
    report.render(
        "compare.html.j2", tmp_path / "c.html", entries=[], lead="", warnings=[], differences=[], fact_columns=[],
                  table={"rows": [], "names": []}, reading="", ratios=[], picture_words="", columns=1, charts=charts,
                  cards=[], closing="")  # fmt: skip
    page = Page(tmp_path / "c.html")
    assert len(charts) == 1 and alone(page)


def test_like_paths_get_names_that_differ() -> None:
    assert distinct(["runs/a/model", "runs/b/model", "x"]) == ["a/model", "b/model", "x"]
    assert distinct(["a", "a"]) == ["a", "a (2)"]


def test_a_model_is_converted_there_and_back(ask: Ask, model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert ask("convert", model, "public", "--to", "diffusers").out == "public\n"
    assert ask("convert", "public", "back", "--to", "hwaga").status == 0
    there = load_file(model / "network" / "model.safetensors")
    back = load_file(tmp_path / "back" / "network" / "model.safetensors")
    assert there.keys() == back.keys() and all(there[name].equal(back[name]) for name in there)


def test_the_demo_ends_in_a_report_and_replaces_only_its_own_folder(
    ask: Ask, model: Path, recipe: Path, pictures: Path, tmp_path: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("digits", str(pictures)))
    words = ("demo", "--recipe", recipe, "--model", model, "--minutes", 0.01, "--n", 10, "--out", "shown", "--quiet")
    said = ask(*words)
    assert said.status == 0, said.err
    assert said.out.splitlines()[-1] == "open this in a browser: shown/report.html"
    page = Page(tmp_path / "shown" / "report.html")
    assert alone(page) and page.tags.count("img") == 72 and page.tags.count("svg") >= 1
    for words_of_it in ("What it studies", "What the trained model paints", "How good are they?", "hwaga sample"):
        assert words_of_it in page.text
    (tmp_path / "shown" / "old.txt").write_text("of the old demo")
    assert ask(*words).status == 0
    assert not (tmp_path / "shown" / "old.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert ask(*words[:-3], "--out", "other").status == 2
    assert tree(tmp_path / "other") == {"mine.txt": b"mine"}


def test_a_picture_in_a_report_carries_no_text(model: Path) -> None:
    import base64
    import io

    image = hwaga.load(model, device="cpu").sample(seed=0, progress=False)[0]
    assert "hwaga" in image.info
    data = base64.b64decode(report.picture(image).split(",")[1])
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.info == {} and stored.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (3, "3"),
        (1234567, "1,234,567"),
        (0.0, "0"),
        (1.2345, "1.23"),
        (0.00123, "0.0012"),
        (-0.5, "−0.5"),
        ("a", "a"),
    ],
)
def test_numbers_read_well(value: object, text: str) -> None:
    assert report.number(value) == text
