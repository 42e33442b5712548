"""Raw texts and benchmark rows from the fetch stage's directories, through `datasets`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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


def read_benchmark_rows(directory: Path, facts: dict[str, Any]) -> dict[str, list[str]]:
    """All text of every row of the packaged benchmarks, to look for overlap with the calibration texts."""
    return {
        task: [
            " ".join(_strings(row)) for row in cast(Iterator[Any], Dataset.from_file(str(directory / entry["file"])))
        ]
        for task, entry in facts["benchmarks"].items()
    }


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
