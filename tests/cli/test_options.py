"""Words of a command line become values, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hwaga.cli import options
from hwaga.errors import InputError


@pytest.mark.parametrize(("text", "value"), [("64", (64, 64)), ("64x48", (64, 48)), ("64X48", (64, 48)), (None, None)])
def test_a_size_is_height_by_width(text: str | None, value: object) -> None:
    assert options.size(text) == value


@pytest.mark.parametrize("text", ["", "0", "-3", "64x", "64x48x3", "1.5", "big"])
def test_what_is_no_size_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(InputError, match="--size"):
        options.size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("eta=0.5", 0.5), ("eta=1e-3", 1e-3), ("eta=3", 3), ("eta=true", True), ("eta=a=b", "a=b"), ("eta=", None)],
)
def test_a_pair_has_the_value_that_a_recipe_would_read(text: str, value: Any) -> None:
    assert options.pairs("--set", [text]) == {"eta": value}


@pytest.mark.parametrize("texts", [["eta"], ["=3"], ["eta=1", "eta=2"]])
def test_what_is_no_pair_or_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match="--set"):
        options.pairs("--set", texts)


def test_a_number_may_be_given_by_stage() -> None:
    assert options.by_stage("--steps", "20", int) == 20
    assert options.by_stage("--steps", "prior=50,decoder=20", int) == {"prior": 50, "decoder": 20}
    assert options.by_stage("--guidance-scale", "0", float) == 0.0
    with pytest.raises(InputError, match="'many' is not a whole number"):
        options.by_stage("--steps", "many", int)


def test_labels_are_numbers_or_names_and_a_list_where_there_are_several() -> None:
    assert options.labels(None) is None
    assert options.labels(["3"]) == 3
    assert options.labels(["3", "heart"]) == [3, "heart"]


def test_a_lora_may_have_a_scale(tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    odd.write_text("x")
    assert options.loras(["x.safetensors", "y.safetensors:0.5", str(odd)]) == [
        ("x.safetensors", 1.0),
        ("y.safetensors", 0.5),
        (str(odd), 1.0),
    ]
    with pytest.raises(InputError, match="--lora"):
        options.loras(["x:half"])
