"""`sparsekd texts` and `sparsekd texts add`: options and help texts only, like flows/cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(invoke_without_command=True, epilog="Examples: sparsekd texts  |  sparsekd texts --json")


@app.callback()
def show(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Everything that is known of each version, as JSON.")] = False,
) -> None:
    """List your corpora: their versions, newest first, what is in them, and the runs that used each.

    `sparsekd texts add` makes a version of a corpus out of files. Every version is tracked by DVC and never changes.
    """
    if context.invoked_subcommand is None:
        from flows.commands import texts as listing

        listing.show(as_json=json)


@app.command(epilog="Example: sparsekd texts add talks ./talks.jsonl ./more-talks")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the corpus: a new one, or one that gets a version.")],
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="Files .jsonl, .parquet or .txt, or folders of them.")
    ],
    column: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Option("--column", metavar="COL", help="The column that holds the text; by default text, then messages."),
    ] = None,
) -> None:
    """Make the documents of files a version of a corpus: hashed, tracked by DVC, recorded in git's index.

    Says what is in it: columns, documents, copies (left out), short ones, languages, overlap with the benchmarks.
    Use it with `sparsekd compress --texts NAME`; `NAME@VERSION` is an older version. The same documents again are no
    new version.
    """
    from flows.commands import adding

    adding.add(name, paths, column)
