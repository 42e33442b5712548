"""`sparsekd push`: options and help texts only, like flows/cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

EXAMPLES = "Examples: sparsekd push me/smollm2-75  |  sparsekd push me/smollm2-75 --public --yes"


def push(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hugging Face hub.")],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="The checkpoint; report and exports lie in or beside it.")
    ] = Path("data/distilled"),
    report: Annotated[bool, typer.Option("--report/--no-report", help="With its page and full model card.")] = True,
    exports: Annotated[bool, typer.Option("--exports/--no-exports", help="With its GGUF files.")] = True,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Of a repository that this makes; one that is there stays so.")
    ] = True,
    revision: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Option("--revision", metavar="BRANCH", help="Made where there is none; by default main."),
    ] = None,
    message: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--message", help="Of the commit; by default what the model is."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send it; without this, only say what would be sent.")] = False,
) -> None:
    """Publish a compressed checkpoint on the Hugging Face hub, in one commit. Says first what that is.

    Every file is checked against its manifest before. Set HF_TOKEN to a token that may write.
    """
    from flows.commands import publishing

    publishing.push(publishing.Request(repo, folder, report, exports, private, revision, message), send=yes)
