"""What a run ends with: the table dense / pruned / distilled, the prompts side by side, and where things are."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sparsekd.report import formatting as f
from sparsekd.report.summary import VARIANTS, Summary, read_summary
from sparsekd.report.table import Cell, Row, comparison
from tasks.state import read_json


def show_results(root: Path, console: Console, kept_as: str | None = None) -> None:
    """Print everything that the end of a run shows. Raises ArtifactError where data/report holds no summary.

    `kept_as` names the experiment of a run whose workspace is about to go.
    """
    summary = read_summary(root / "data" / "report" / "summary.json")
    console.print()
    console.print(result_table(summary, console.width))
    for line in notes(summary):
        console.print(line, markup=False, soft_wrap=not console.is_terminal)
    show_prompts(root, console)
    if kept_as is None:
        show_places(root, console)
    else:
        show_experiment(kept_as, console)


def result_table(summary: Summary, width: int) -> Group:
    """Parameters, size, perplexities, agreement, task scores with errors and speed of the three models.

    One table below each heading, with the same columns in all, as wide as the widest figure asks for or `width` allows.
    """
    groups = comparison(summary)
    rows = [row for group in groups for row in group.rows]
    figures = [max([len(name), *(len(_cell(row.cells[i])) for row in rows)]) for i, name in enumerate(VARIANTS)]
    labels = max(min(max(len(_label(row)) for row in rows), width - sum(figures) - 6), 16)

    def columns(rows: Iterable[tuple[str, ...]]) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=labels)
        for length in figures:
            table.add_column(width=length, justify="right")
        for row in rows:
            table.add_row(*row)
        return table

    parts: list[Table | Text] = [Text(summary.model.label, "bold"), columns([("", *VARIANTS)])]
    for group in groups:
        parts += [Text(group.title, "bold"), columns((_label(row), *map(_cell, row.cells)) for row in group.rows)]
    return Group(*parts)


def _label(row: Row) -> str:
    return f"  {row.label}" + (f", {row.note}" if row.note else "")


def _cell(cell: Cell) -> str:
    if not cell.note:
        return cell.text
    return f"{cell.text} {cell.note}" if cell.note.startswith("±") else f"{cell.text} ({cell.note})"


def notes(summary: Summary) -> list[str]:
    """The lines below the table: the four reductions, what brackets mean, the verdict, what to beware of."""
    removed = summary.reduction
    brackets = "In brackets: the change to dense, or a 95 % interval over documents."
    shares = (
        f"Removed: {f.percent(removed.width)} of the width, {f.percent(removed.ffn)} of the FFN, "
        f"{f.percent(removed.non_embedding)} of the non-embedding and {f.percent(removed.total)} of all parameters."
    )
    gate = [summary.gate.sentence()] if summary.gate.checks else []
    told = [*filter(None, [summary.verdict]), *gate, *(f"warning: {text}" for text in summary.warnings)]
    return ["", shares, brackets, *told]


def show_prompts(root: Path, console: Console) -> None:
    """The fixed prompts, answered by all three."""
    answers = {name: _answers(root, name) for name in VARIANTS}
    for prompt in answers["dense"]:
        _print(console, f"\n» {prompt}")
        for name in VARIANTS:
            answer = " ".join(answers[name].get(prompt, f.NOTHING).split())
            lines = textwrap.wrap(answer, max(console.width - 12, 40)) or [""]
            _print(console, f"  {name:<10}" + ("\n" + 12 * " ").join(lines))


def show_places(root: Path, console: Console) -> None:
    """Where the checkpoint and the report are, and how to look further."""
    checkpoint = root / "data" / "distilled"
    _print(console, "")
    _print(console, f"checkpoint   {checkpoint}")
    _print(console, f"report       {root / 'data' / 'report' / 'index.html'}")
    _print(console, f'try it       sparsekd generate "{checkpoint}" --prompt "Why is the sky blue?"')
    for line in elsewhere(root):
        _print(console, line)
    _print(console, "look closer  `sparsekd serve` (or `make ui`) opens the Prefect and MLflow pages on 127.0.0.1")


def elsewhere(root: Path) -> list[str]:
    """Lines to copy, a runtime each: the checkpoint as it is, and the GGUF files that were checked."""
    checkpoint = str(root / "data" / "distilled")
    program = f"from transformers import pipeline as p; print(p('text-generation', {checkpoint!r})('The sky is'))"
    files = sorted((root / "data" / "export").glob("*.gguf"))
    lines = [("llama.cpp", ["llama-cli", "-m", str(file), "-p", "Why is the sky blue?"]) for file in files]
    lines += [
        ("vLLM", ["vllm", "serve", checkpoint]),
        ("Transformers", ["python", "-c", program]),
        ("lm-eval", ["lm_eval", "--model", "hf", "--model_args", f"pretrained={checkpoint}", "--tasks", "arc_easy"]),
    ]
    return [f"{name:<12} {shlex.join(command)}" for name, command in lines]


def show_experiment(name: str, console: Console) -> None:
    """How to get at what an isolated run made."""
    _print(console, "")
    _print(console, f"experiment   {name}; the checkout is as it was")
    _print(console, f"bring back   sparsekd restore {name}          (into the checkout's data/)")
    _print(console, f"             sparsekd restore {name} --out DIR (checkpoint and report alone)")
    _print(console, "look closer  sparsekd runs; `sparsekd serve` opens the Prefect and MLflow pages on 127.0.0.1")


def _answers(root: Path, variant: str) -> dict[str, str]:
    values: Any = read_json(root / "data" / "evaluation" / variant / "prompts.json")
    return {item["prompt"]: item["answer"] for item in values} if isinstance(values, list) else {}


def _print(console: Console, text: str) -> None:
    """A line as it is: prompts and answers may hold square brackets, which are no markup."""
    console.print(text, markup=False, soft_wrap=True)
