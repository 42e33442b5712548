"""`sparsekd export`: options and help texts only, like flows/cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

EXAMPLES = (
    "Examples: sparsekd export  |  sparsekd export ./my-model --type f16,q8_0,q4_0 --out ./exported  |  "
    "sparsekd export --format onnx"
)


def export(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A checkpoint: directory, owner/name, catalogue name.")
    ] = "data/distilled",
    form: Annotated[
        str, typer.Option("--format", metavar="gguf|onnx", help="Of llama.cpp, or of ONNX Runtime (after `make onnx`).")
    ] = "gguf",
    types: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Option("--type", metavar="T,T…", help="GGUF: f32, f16, bf16, q8_0, q4_0, a file each; else f16,q8_0."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the files and export.json go: a new directory.")
    ] = Path("exported"),
) -> None:
    """Write a checkpoint for another runtime, and compare it there with the checkpoint.

    Each file is loaded in that runtime: its next-token log-probabilities, perplexity and greedy text must be the
    checkpoint's within the bounds of its type, or it is not kept. The figures are in export.json.
    """
    from flows.commands import steps

    steps.export(directory, form, types, out)
