"""What `sparsekd texts add` says of overlap: every benchmark is told as shared, clean, or not looked at."""

from __future__ import annotations

from rich.console import Console

from flows.commands.texts import print_facts
from sparsekd.sources import catalogue
from tasks.corpora import Recorded

FACTS = {
    "files": ["a.jsonl"], "kind": "messages", "documents": 1200, "characters": 70_000_000, "median_characters": 900,
    "short": {"below": 500, "documents": 3}, "copies_left_out": 0, "rows": 1200, "rows_without_text": 0,
    "columns": {}, "used_columns": [], "languages": {"English": 1.0},
}  # fmt: skip


def said(overlap: dict[str, object]) -> dict[str, str]:
    console = Console(force_terminal=False, width=110)
    version = Recorded("talks", "a" * 64, "2026-01-01T00:00:00Z", "b" * 32, 10**8, FACTS | {"overlap": overlap})
    with console.capture() as captured:
        print_facts(version, [], console)
    return dict(line.split(maxsplit=1) for line in captured.get().splitlines())


def test_each_benchmark_is_shared_clean_or_not_looked_at() -> None:
    rows = {task: 1000 for task in catalogue().benchmarks if task not in ("boolq", "copa")}
    clean = ", ".join(task for task in rows if task != "sciq")
    text = said({"words": 13, "rows": rows, "shared": {"sciq": 21}})["overlap"]
    assert text == (
        f"21 of 1,000 rows of sciq, no rows of {clean} share 13 words in a row with it; not looked at: boolq, copa"
    )
    every = dict.fromkeys(catalogue().benchmarks, 5)
    assert "no rows of" not in said({"words": 13, "rows": every, "shared": every})["overlap"]


def test_conversations_plain_text_and_what_a_run_leaves_out_are_told() -> None:
    told = said({"words": 13, "rows": {"sciq": 1}, "shared": {}})
    assert told["documents"].startswith("1,200 conversations, 70,000,000 characters, 100.0 MB")
    assert told["columns"] == "none, plain text; 0 of 1,200 rows have no text"
    assert told["limit"] == "a run uses the first 64,000,000 characters alone"
