"""Overlap of calibration texts and benchmarks: rows that the model may have been trained on.

Looked for here and not in calibration, so that another task does not make everything stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sparsekd.calibration.packing import Packed

WORDS = 13


def benchmark_overlap(
    calibration: Packed, tokenizer: PreTrainedTokenizerBase, benchmarks: dict[str, list[str]]
) -> dict[str, int]:
    """Rows of each benchmark that share a run of 13 words with a calibration sequence, for those that have any."""
    known: set[tuple[str, ...]] = set()
    for text in tokenizer.batch_decode(calibration.input_ids, skip_special_tokens=True):
        known |= ngrams(text)
    found = {name: sum(not known.isdisjoint(ngrams(row)) for row in rows) for name, rows in benchmarks.items()}
    return {name: rows for name, rows in found.items() if rows}


def ngrams(text: str, n: int = WORDS) -> set[tuple[str, ...]]:
    """All runs of `n` words, lower case, punctuation stripped from the words' ends."""
    words = [word for raw in text.lower().split() if (word := raw.strip(".,;:!?\"'()[]{}*_-“”‘’"))]
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def read_benchmark_rows(directory: Path, facts: dict[str, Any]) -> dict[str, list[str]]:
    """All text of every row of the packaged benchmarks, from stage fetch-benchmarks' directory and facts."""
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
