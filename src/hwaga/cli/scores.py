"""Scores in words and tables: the same for the terminal, for `hwaga compare` and for the demo."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .report import number

if TYPE_CHECKING:
    from ..evaluation import Scores

READING = (
    "The distance over floor says how far paintings are from real, held-out pictures, in units of how far other real "
    "pictures are from them: 1.0 is as good as real ones."
)


def measured(*arguments: Any, **keywords: Any) -> Scores:
    """`hwaga.evaluate`; what it warns of stands in the notes of the scores, which every reader is shown."""
    from ..running import evaluate

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the features ", UserWarning)
        return evaluate(*arguments, **keywords)


@dataclass(frozen=True)
class Meaning:
    """What is to be said of a score."""

    title: str
    direction: str
    better: str  # "low", "high", or "" where no value is the best
    says: str
    beside: str = ""  # a value that is shown with it
    named: str = ""  # how that is called


MEANINGS = {
    "fid_over_floor": Meaning(
        "distance over floor",
        "lower is better, 1 is real",
        "low",
        "How far the paintings as a whole are from real, held-out pictures, divided by how far other real pictures are "
        "(the floor).",
    ),
    "fid": Meaning("Fréchet distance", "lower is better", "low", "The same, not divided.", "fid_floor", "floor"),
    "kid": Meaning(
        "kernel distance", "lower is better, 0 is real", "low", "A second measure of distance, fair for few pictures."
    ),
    "precision": Meaning(
        "precision", "higher is better", "high", "Share of the paintings that look like some real picture: quality."
    ),
    "recall": Meaning(
        "recall", "higher is better", "high", "Share of the real pictures that look like some painting: variety."
    ),
    "density": Meaning("density", "higher is better", "high", "How many real pictures lie around a painting."),
    "coverage": Meaning(
        "coverage", "higher is better", "high", "Share of the real pictures that have a painting near them."
    ),
    "inception_score": Meaning(
        "Inception score",
        "higher is better",
        "high",
        "Paintings are clearly of some class, and of many classes.",
        "inception_score_real",
        "real pictures",
    ),
    "sharpness": Meaning("sharpness", "1 is real", "", "Fine detail over that of real pictures; below 1 is blurred."),
    "memorisation": Meaning(
        "memorisation",
        "0 is right",
        "",
        "Share of paintings that are suspiciously near to a training picture; 0: it learned and did not copy.",
    ),
    "bits": Meaning(
        "bits a dimension",
        "lower is better",
        "low",
        "The variational bound on held-out pictures: what storing one channel of one pixel costs by this model.",
        "bits_decoder",
        "of it the last step",
    ),
    "codes": Meaning(
        "codes in use",
        "more is better",
        "high",
        "How many codes of its codebook a tokenizer uses for the held-out pictures.",
        "codes_perplexity",
        "perplexity",
    ),
    "retrieval": Meaning(
        "retrieval",
        "higher is better",
        "high",
        "Share of the paintings that are nearer to the words they were asked for than to 49 others'; of words of the "
        "training pictures.",
        "retrieval_real",
        "real pictures",
    ),
    "retrieval_over_real": Meaning(
        "… over real", "1 is real", "high", "The same over the share of the real pictures of these words."
    ),
    "retrieval_combinations": Meaning(
        "retrieval, combined",
        "higher is better",
        "high",
        "The same of combinations (a thing in a skin tone, or a gender) that were never trained on.",
        "retrieval_combinations_real",
        "real pictures",
    ),
    "retrieval_combinations_over_real": Meaning(
        "… over real", "1 is real", "high", "The same over the real pictures'."
    ),
    "clip_score": Meaning(
        "CLIP score",
        "higher is better",
        "high",
        "Likeness of paintings and the words they were asked for, from 0 to 100, to a network that judges.",
        "clip_score_real",
        "real pictures",
    ),
    "clip_score_combinations": Meaning(
        "CLIP score, comb.",
        "higher is better",
        "high",
        "The same of combinations that were never trained on.",
        "clip_score_combinations_real",
        "real pictures",
    ),
    **{
        f"{way}_{k}{end}": Meaning(
            f"{said}, first {k}{told}",
            "higher is better",
            "high",
            f"How often the right one is among the first {k} of all concepts{' that are combinations' if end else ''}.",
        )
        for end, told in (("", ""), ("_combinations", ", comb."))
        for way, said in (("picture_to_text", "words"), ("text_to_picture", "picture"))
        for k in (1, 5, 10)
    },
    "control": Meaning(
        "control followed",
        "higher is better, 1 is all",
        "high",
        "How much of a control map is found again in the painting: 0 as in a painting of another's map, 1 as in the real picture "
        "after the autoencoder.",
        "control_ceiling",
        "the most that can be",
    ),
    "seconds_a_picture": Meaning("seconds a picture", "lower is faster", "", "What painting one takes."),
}


@dataclass(frozen=True)
class Cell:
    value: str
    interval: str = ""
    beside: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    direction: str
    says: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    names: list[str]
    rows: list[Row]


def table(scores: Mapping[str, Scores]) -> Table:
    """A row a score, a column a painter; the best of a row is marked where the intervals leave no doubt."""
    rows = []
    for key, meaning in MEANINGS.items():
        if not any(key in one.values for one in scores.values()):
            continue
        best = _best(key, meaning.better, scores)
        cells = [_cell(key, meaning, one, name == best) for name, one in scores.items()]
        rows.append(Row(meaning.title, meaning.direction, meaning.says, cells))
    return Table(list(scores), rows)


def _cell(key: str, meaning: Meaning, one: Scores, best: bool) -> Cell:
    if key not in one.values:
        return Cell("–")
    ends = one.intervals.get(key)
    beside = one.values.get(meaning.beside)
    return Cell(
        number(one.values[key]),
        f"[{number(ends[0])} to {number(ends[1])}]" if ends else "",
        f"{meaning.named} {number(beside)}" if beside is not None else "",
        best,
    )


def _best(key: str, better: str, scores: Mapping[str, Scores]) -> str | None:
    """Whose value is the best, where all have intervals and the best one's overlaps no other."""
    ends = {name: one.intervals[key] for name, one in scores.items() if key in one.values and key in one.intervals}
    if better not in ("low", "high") or not 2 <= len(ends) == len([1 for one in scores.values() if key in one.values]):
        return None
    spans = {name: (low, high) if better == "low" else (-high, -low) for name, (low, high) in ends.items()}
    first, second = sorted(spans, key=lambda name: sum(spans[name]))[:2]
    return first if spans[first][1] < spans[second][0] else None


def lines(one: Scores) -> list[str]:
    """Scores for a terminal, with what the card says of them."""
    found = []
    for key, meaning in MEANINGS.items():
        if key in one.values:
            cell = _cell(key, meaning, one, False)
            told = " ".join(part for part in (cell.value, cell.interval, cell.beside and f"({cell.beside})") if part)
            found.append(f"{meaning.title:<20} {told:<28} {meaning.direction}")
    card = one.card
    reference, judges = card.get("reference", {}), []
    if "features" in card:
        judges.append(f"the features {card['features'].get('name')}")
    if "clip" in card:
        judges.append(f"the CLIP {card['clip'].get('name')}")
    found.append(
        f"{'measured':<20} {card.get('n')} pictures, seed {card.get('seed')}, against {reference.get('n')} of "
        f"{reference.get('source')} ({reference.get('split')})" + (f", by {' and '.join(judges)}" if judges else "")
    )
    return found + [f"{'note':<20} {sentence}" for sentence in one.notes]


def ratios(scores: Mapping[str, Scores]) -> list[str]:
    """How the first's Fréchet distance stands to each other's, divided inside each resample, in sentences."""
    from ..evaluation import compare

    names = list(scores)
    found = []
    for other in names[1:]:
        if "fid" not in scores[names[0]].values or "fid" not in scores[other].values:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the differing fields of the cards stand in the report
                ratio = compare(scores[names[0]], scores[other])
        except InputError:
            continue  # other features or another reference: no ratio means anything
        told = f"{number(ratio.value)} [{number(ratio.low)} to {number(ratio.high)}]"
        if ratio.high < 1:
            verdict = f"{names[0]} is closer to real pictures"
        elif ratio.low > 1:
            verdict = f"{other} is closer to real pictures"
        else:
            verdict = "no difference is certain"
        found.append(f"Fréchet distance of {names[0]} over that of {other}: {told}; {verdict}.")
    return found


def verdict(scores: Mapping[str, Scores]) -> str:
    """What the scores of the demo say in plain words: first the trained model, then the short training."""
    (first, good), (second, short) = list(scores.items())[:2]
    words = [
        "To judge paintings, a separate small network looks at them and at the held-out pictures, and the distance "
        "between the two crowds is measured. Other real pictures have a distance too: that is the floor."
    ]
    a, b = good.values.get("fid_over_floor"), short.values.get("fid_over_floor")
    if a is not None and b is not None:
        words.append(
            f"The distance of {first} is {number(a)} times the floor, that of {second} {number(b)} times; 1.0 would be "
            "as good as real pictures."
        )
    elif "fid" in good.values and "fid" in short.values:
        words.append(
            f"The distance of {first} is {number(good.values['fid'])}, that of {second} {number(short.values['fid'])}."
        )
    copied = good.values.get("memorisation")
    if copied is not None:
        ends = good.intervals.get("memorisation", (copied, copied))
        if ends[0] <= 0.05:
            words.append(f"Does it copy? Its memorisation is {number(copied)}: hardly more than chance.")
        else:
            words.append(
                f"Does it copy? Its memorisation is {number(copied)}: that share of its paintings is nearer to a "
                "training picture than chance has it."
            )
    return " ".join(words)
