"""`sparsekd preview`: options and help texts only, like flows/cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from flows.cli.options import Device, ModelOver, PresetOver, Settings, Texts

EXAMPLES = "Examples: sparsekd preview  |  sparsekd preview --model Qwen/Qwen3-0.6B --widths 0.75,0.6"


def preview(
    model: ModelOver = None,
    widths: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--widths", metavar="W,W…", help="Fractions of intermediate_size, or integers; else 0.9 to 0.4."),
    ] = None,
    texts: Texts = None,
    preset: PresetOver = None,
    settings: Settings = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="The price list as JSON on stdout.")] = False,
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time
        typer.Option("--out", metavar="DIR", help="Where preview.json and preview.png go."),
    ] = None,
) -> None:
    """What every width would cost and keep, in minutes and before anything is compressed.

    One pass over some calibration text prunes the model to each width in one shot; each is scored on validation text
    without any distillation, which a run does after it. Changes nothing. The model is that of params.yaml, where there
    is one.
    """
    from flows.commands import job, previewing

    request = job.Request(
        preset=preset, model=model, texts=tuple(texts or ()), settings=tuple(settings or ()), device=device
    )
    previewing.preview(request, widths, as_json=as_json, out=out)
