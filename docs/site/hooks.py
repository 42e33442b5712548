"""What mkdocs.yml cannot say: which files are pages, and the pages made from code and from a run's summary.json."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from sparsekd.report import read_summary
from sparsekd.report.details import detail_tables
from sparsekd.report.drawing import Drawing
from sparsekd.report.plots import agreement, perplexity, profile, speed, task_scores
from sparsekd.report.summary import Summary
from sparsekd.report.table import comparison

ROOT = Path(__file__).parents[2]
PAGES = ["*.md", "docs/images"]
LINKED = ["params.yaml", "dvc.yaml", "prefect.yaml", "deploy/docker/Dockerfile"]
LINKED += ["sparsekd/api.py", "sparsekd/families.py", "sparsekd/sources/catalogue.yaml"]
PICTURES: tuple[Callable[[Summary], Drawing | None], ...] = (perplexity, agreement, task_scores, speed, profile)


@event_priority(100)  # before the link check takes down which files there are
def on_files(files: Files, config: MkDocsConfig) -> None:
    """Every Markdown file of the repository is a page; the files that pages lead to come along as they are."""
    listed = _output("git", "ls-files", "--cached", "--others", "--exclude-standard", *PAGES, *LINKED)
    made: dict[str, str | bytes] = {"docs/commands.md": commands()}
    made["docs/results.md"], pictures = results(read_summary(ROOT / "docs/results/default.json"))
    for name in listed.splitlines():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for name, content in (made | pictures).items():
        files.append(File.generated(config, name, content=content))


def commands() -> str:
    """The command line as typer describes it, a section for each command."""
    found = _output(sys.executable, "-m", "typer", "flows.cli.app", "utils", "docs", "--name", "sparsekd")
    return found.replace("# `sparsekd`", "# Commands", 1)


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def results(summary: Summary) -> tuple[str, dict[str, str | bytes]]:
    """The page as Markdown, and the PNG files that it shows."""
    lines = [
        "# Results of the default run",
        f"`make compress` on {summary.model.label}. {summary.verdict}",
        "In brackets: 95 % intervals, standard errors of task scores, or change against dense. All of it is made from "
        "`docs/results/default.json`, the run's own [summary.json](summary.md).",
        *("- " + warning for warning in summary.warnings),
    ]
    for group in comparison(summary):
        title = group.title.replace("the machine below", "the run's machine")
        rows = [f"## {title}\n\n| | dense | pruned | distilled |", "|---|---:|---:|---:|"]
        for row in group.rows:
            label = f"{row.label}, {row.note}" if row.note else row.label
            cells = [f"{cell.text}<br>({cell.note})" if cell.note else cell.text for cell in row.cells]
            rows.append(f"| {' | '.join([label, *cells])} |")
        lines.append("\n".join(rows))
    if quantised := detail_tables(summary).get("quantised"):
        rows = ["| " + " | ".join(row) + " |" for row in quantised.rows]
        head = ["| " + " | ".join(quantised.columns) + " |", "|---|" + "---:|" * (len(quantised.columns) - 1)]
        lines.append("\n".join([f"## Why not just quantise?\n\n{quantised.caption}\n", *head, *rows]))
    pictures: dict[str, str | bytes] = {}
    with TemporaryDirectory() as folder:
        for drawing in filter(None, (draw(summary) for draw in PICTURES)):
            file = drawing.write_png(Path(folder))
            pictures[f"docs/results/{file.name}"] = file.read_bytes()
            lines.append(f"## {drawing.title}\n\n![{drawing.alt}](results/{file.name})")
    return "\n\n".join(lines) + "\n", pictures
