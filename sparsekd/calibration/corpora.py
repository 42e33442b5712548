"""Raw texts from the fetch stage's directory, through `datasets`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
from datasets import Dataset

from sparsekd.calibration.split import Role

datasets.disable_progress_bars()


@dataclass(frozen=True)
class Corpus:
    """Raw documents of one corpus: `text` strings, or lists of chat messages."""

    name: str
    role: Role
    documents: list[str | list[dict[str, Any]]]


def read_corpora(directory: Path, facts: dict[str, Any]) -> list[Corpus]:
    """The corpora that `facts["corpora"]` names, from `<corpus>.jsonl` with a `text` or `messages` a line."""
    return [
        Corpus(name, entry["role"], read_jsonl(directory / f"{name}.jsonl")) for name, entry in facts["corpora"].items()
    ]


def read_jsonl(file: Path) -> list[str | list[dict[str, Any]]]:
    """The `text` (or else `messages`) column of a JSON lines file."""
    with tempfile.TemporaryDirectory() as cache:
        table = Dataset.from_json(str(file), cache_dir=cache, keep_in_memory=True)
        column = "text" if "text" in table.column_names else "messages"
        return cast(list[str | list[dict[str, Any]]], list(table[column]))
