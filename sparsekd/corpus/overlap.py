"""Overlap of a corpus with benchmarks, by the rule that the evaluation warns by: a run of 13 words in common.

Here the benchmarks are what is kept in memory: they are small, a corpus may be any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparsekd.evaluation.overlap import WORDS, ngrams, read_benchmark_rows

__all__ = ["WORDS", "BenchmarkOverlap"]


class BenchmarkOverlap:
    """Which rows of the benchmarks share a run of words with the documents that were shown to it."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Read the rows of each task from its Arrow file."""
        self.rows: dict[str, int] = {}
        """Rows of each task that were looked at."""
        tasks: list[int] = []
        hashes, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for number, (task, file) in enumerate(files.items()):
            texts = read_benchmark_rows(file.parent, {"benchmarks": {task: {"file": file.name}}})[task]
            self.rows[task] = len(texts)
            for text in texts:
                runs = _hashes(text)
                hashes.append(runs)
                rows.append(np.full(len(runs), len(tasks)))
                tasks.append(number)
        every, of = np.concatenate(hashes), np.concatenate(rows)
        order = np.argsort(every, kind="stable")
        self._hashes, self._row = every[order], of[order]
        self._task = np.array(tasks, dtype=np.int64)
        self._found = np.zeros(len(tasks), dtype=bool)

    def look(self, text: str) -> None:
        """Compare one document."""
        runs = _hashes(text)
        first = np.searchsorted(self._hashes, runs, "left")
        last = np.searchsorted(self._hashes, runs, "right")
        for start, end in zip(first[last > first], last[last > first], strict=True):
            self._found[self._row[start:end]] = True

    def shared(self) -> dict[str, int]:
        """Rows of each task that share a run with a document shown so far, for the tasks that have any."""
        counts = np.bincount(self._task[self._found], minlength=len(self.rows))
        return {task: int(count) for task, count in zip(self.rows, counts, strict=True) if count}


def _hashes(text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A hash of each run of words, int64 [runs]; equal only within one process, which is all that is asked of it."""
    runs = ngrams(text)
    return np.fromiter(map(hash, runs), np.int64, len(runs))
