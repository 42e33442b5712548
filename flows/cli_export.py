"""`sparsekd export`: options and help texts only, like flows/cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = "Examples: sparsekd export  |  sparsekd export ./my-model --type f16,q8_0,q4_0 --out ./exported"


def export(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A checkpoint: directory, owner/name, catalogue name.")
    ] = "data/distilled",
    form: Annotated[str, typer.Option("--format", metavar="gguf", help="Of llama.cpp.")] = "gguf",
    types: Annotated[
        str, typer.Option("--type", metavar="T,T…", help="Of f32, f16, bf16, q8_0, q4_0: one file each.")
    ] = "f16,q8_0",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the files and export.json go: a new directory.")
    ] = Path("exported"),
) -> None:
    """Write a checkpoint for another runtime, and compare it there with the checkpoint.

    Each file is loaded in llama.cpp: its tokens, next-token log-probabilities, perplexity and greedy text must be the
    checkpoint's within the bounds of its type, or it is not kept. The figures are in export.json.
    """
    from flows import steps

    steps.export(directory, form, types, out)
