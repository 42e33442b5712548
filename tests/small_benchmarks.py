"""Benchmarks in miniature: rows of every packaged task, in the columns of the real ones, as Arrow files."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import datasets

WORDS = ("the", "river", "stone", "light", "small", "old", "house", "tree", "walks", "sees", "under", "near", "bread")


def write_benchmarks(out: Path, rows: int = 12) -> Path:
    """Write `<task>.arrow` with `rows` rows for each packaged task into `out`, and return it."""
    out.mkdir(parents=True, exist_ok=True)
    for task, make in _MAKERS.items():
        draw = random.Random(task)
        table = datasets.Dataset.from_list([make(draw) for _ in range(rows)])
        table.save_to_disk(out / "whole")
        shutil.move(next((out / "whole").glob("*.arrow")), out / f"{task}.arrow")
        shutil.rmtree(out / "whole")
    return out


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def _arc(draw: random.Random) -> dict[str, Any]:
    choices = {"text": [_text(draw, draw.randint(1, 4)) for _ in range(4)], "label": list("ABCD")}
    return {"id": "x", "question": _text(draw, 8), "choices": choices, "answerKey": draw.choice("ABCD")}


def _boolq(draw: random.Random) -> dict[str, Any]:
    return {"question": _text(draw, 6), "answer": draw.random() < 0.5, "passage": _text(draw, 20)}


def _copa(draw: random.Random) -> dict[str, Any]:
    texts = {"premise": f"{_text(draw, 6)}.", "choice1": f"{_text(draw, 4)}.", "choice2": f"{_text(draw, 4)}."}
    return texts | {"question": draw.choice(["cause", "effect"]), "idx": 0, "label": draw.randrange(2)}


def _hellaswag(draw: random.Random) -> dict[str, Any]:
    endings = [f"{_text(draw, 8)}." for _ in range(4)]
    context = {"ctx_a": f"{_text(draw, 8)}.", "ctx_b": _text(draw, 2), "ctx": _text(draw, 10)}
    return context | {"activity_label": _text(draw, 2), "endings": endings, "label": str(draw.randrange(4))}


def _openbookqa(draw: random.Random) -> dict[str, Any]:
    row = _arc(draw)
    return {"id": "x", "question_stem": row["question"], "choices": row["choices"], "answerKey": row["answerKey"]}


def _piqa(draw: random.Random) -> dict[str, Any]:
    return {"goal": _text(draw, 9), "sol1": _text(draw, 7), "sol2": _text(draw, 9), "label": draw.randrange(2)}


def _sciq(draw: random.Random) -> dict[str, Any]:
    answers = ("distractor1", "distractor2", "distractor3", "correct_answer")
    row = {"question": _text(draw, 8), "support": _text(draw, 20)}
    return row | {name: f"{_text(draw, 1)} {number}" for number, name in enumerate(answers)}


def _winogrande(draw: random.Random) -> dict[str, Any]:
    sentence = f"{_text(draw, 6)} _ {_text(draw, 5)}."
    return {"sentence": sentence, "option1": "house", "option2": "garden", "answer": draw.choice("12")}


_MAKERS = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "boolq": _boolq,
    "copa": _copa,
    "hellaswag": _hellaswag,
    "openbookqa": _openbookqa,
    "piqa": _piqa,
    "sciq": _sciq,
    "winogrande": _winogrande,
}
