"""Benchmarks: the rows of the packaged lm-eval tasks, which are evaluated offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsekd.progress import Progress, silent
from sparsekd.sources.catalogue import catalogue
from sparsekd.sources.download import cached_file, pinned_file
from sparsekd.sources.storage import clone_or_copy, disk_errors, require_space


def packaged_tasks() -> tuple[str, ...]:
    """lm-eval's names of the tasks whose rows come out of a pinned package."""
    return tuple(catalogue().benchmarks)


def benchmarks_at_hand(*directories: Path) -> dict[str, Path]:
    """The file of each packaged task that is on this machine, verified: in the user's cache or in a directory."""
    entries = catalogue().benchmarks
    found = {task: cached_file(entry.file, *directories) for task, entry in entries.items()}
    return {task: path for task, path in found.items() if path is not None}


def fetch_benchmarks(
    tasks: Sequence[str],
    out: Path,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Copy the verified `<task>.arrow` of each packaged task to `out` and return their facts.

    A task that is not packaged is passed over with a line: lm-eval takes its rows from the hub, or from where
    evaluate.include_path says. Raises SourceError for a download that fails or is damaged.
    """
    facts: dict[str, dict[str, Any]] = {}
    for task in tasks:
        entry = catalogue().benchmarks.get(task)
        if entry is None:
            say(f"{task}: not packaged; evaluate takes its rows from the hub, or as evaluate.include_path says.")
            continue
        source = pinned_file(entry.file, progress)
        require_space(out, entry.file.bytes, f"The benchmark {task}")
        with disk_errors(out):
            clone_or_copy(source, out / entry.file.name)
        say(f"{task}: {entry.rows:,} rows.")
        facts[task] = {
            "file": entry.file.name,
            "rows": entry.rows,
            "sha256": entry.file.sha256,
            "licence": entry.licence,
        }
    return facts
