"""Options that several commands of the command line share."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Model = Annotated[
    str,
    typer.Option("--model", metavar="SRC", help="owner/name on the hub, a directory, or a catalogue name."),
]
ModelOver = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", metavar="SRC", help="owner/name on the hub, a directory, or a catalogue name."),
]
PRESET_NAMES = "smoke|small|default|quality|gpu|gpus"  # params.PRESETS, which takes too long to load for a help text
PresetOver = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--preset", metavar=PRESET_NAMES, help="How thorough to be; else params.yaml."),
]
Preset = Annotated[str, typer.Option("--preset", metavar=PRESET_NAMES, help="How thorough to be.")]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it at run time
    typer.Option("-S", "--set", metavar="stage.key=value", help="Change one setting; repeat for more."),
]
Texts = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--texts",
        metavar="SRC",
        help="A catalogue name, a hub dataset, .jsonl, .parquet or .txt; repeat for more.",
    ),
]
Target = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--target",
        metavar="GOAL",
        help='"kl<=0.1" (to the dense model, nats a token on validation text) or a budget: "total_reduction=0.3".',
    ),
]
Device = Annotated[Optional[str], typer.Option("--device", metavar="auto|cpu|cuda", help="Where to compute.")]  # noqa: UP045
Revision = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--revision", metavar="R", help="Branch, tag or commit of a model on the hub."),
]
