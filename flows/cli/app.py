"""The `sparsekd` command: options and help texts only; the work is in the modules that each command imports.

Nothing heavy loads here or before it is needed: `--help` and a run with nothing to do answer in seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from flows.cli import export as cli_export
from flows.cli import preview as cli_preview
from flows.cli import push as cli_push
from flows.cli import report as cli_report
from flows.cli import texts as cli_texts
from flows.cli.options import (
    PRESET_NAMES,
    Device,
    Model,
    ModelOver,
    Preset,
    PresetOver,
    Revision,
    Settings,
    Target,
    Texts,
)
from sparsekd.errors import SparseKDError


class Commands(TyperGroup):
    """Faults that the user can mend are one sentence and exit code 2; Ctrl-C is 130. No traceback for either."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SparseKDError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("\nstopped; the same command goes on from what is finished.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="sparsekd",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a language model smaller and faster, and prove what was kept: structured SVD pruning of the "
    "feed-forward layers, then distillation from the model itself. The result is a stock checkpoint.",
    epilog="Example: sparsekd compress --preset smoke",
)


@app.command(
    epilog="Examples: sparsekd compress --preset smoke  |  sparsekd compress --model Qwen/Qwen3-0.6B -S prune.width=0.6"
)
def compress(
    preset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--preset",
            metavar=PRESET_NAMES,
            help="How thorough to be; written to params.yaml. Without it params.yaml is used as it stands.",
        ),
    ] = None,
    model: ModelOver = None,
    revision: Revision = None,
    texts: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--texts",
            metavar="SRC",
            help="A catalogue name, a corpus of yours (see `texts`), a hub dataset, .jsonl, .parquet or .txt; repeat "
            "for more.",
        ),
    ] = None,
    settings: Settings = None,
    target: Target = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, how long, how much disk and memory; change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Let --preset overwrite hand edits of params.yaml.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="If a run is going on in this checkout, start after it.")
    ] = False,
    isolated: Annotated[
        bool,
        typer.Option("--isolated", help="Work in a workspace of its own: the checkout stays as it is; see `runs`."),
    ] = False,
    at: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--at", metavar="REV", help="Isolated, from this commit, tag or experiment; -S on top of it."),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", help="Of an isolated run; by default made of model, width and time."),
    ] = None,
) -> None:
    """Compress a model end to end: fetch, calibrate, prune, distil, evaluate, benchmark, report.

    Runs what is out of date by params.yaml, and only that. Options given here are written to params.yaml first.
    With --target "kl<=X" the width comes from the price list (`preview`), and the end says whether the result has it:
    exit code 1 where not.

    The result is data/distilled (the model) and data/report/index.html (the proof).
    """
    from flows.commands import job

    job.compress(
        job.Request(
            preset=preset,
            model=model,
            revision=revision,
            texts=tuple(texts or ()),
            settings=tuple(settings or ()),
            device=device,
            dry_run=dry_run,
            yes=yes,
            wait=wait,
            isolated=isolated,
            at=at,
            name=name,
            target=target,
        )
    )


@app.command(
    epilog="Example: sparsekd sweep --preset smoke -S prune.width=0.9,0.75,0.5  |  "
    "sparsekd sweep -S prune.width=0.75,0.5 -S distill.alpha=0.3,0.7 --at-once 1"
)
def sweep(
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "-S", "--set", metavar="stage.key=value,value", help="Values between commas span the grid; repeat for more."
        ),
    ] = None,
    target: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--target", metavar="kl<=X", help="Instead of a grid: find the smallest width that keeps to it."),
    ] = None,
    preset: PresetOver = None,
    model: ModelOver = None,
    texts: Texts = None,
    at: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--at", metavar="REV", help="From this commit, tag or experiment."),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", help="Of the sweep; by default the same for the same settings, so that they go on."),
    ] = None,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Most runs at once.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run; change nothing.")] = False,
) -> None:
    """Compress once for each combination of settings, in isolated runs, and compare quality against cost.

    What the runs share is computed once. The same command again goes on after a stop, and repeats nothing that is done.
    With --target the price list (`preview`) says where to begin, and each run that ends where to go on.
    """
    from flows.commands import sweeping

    request = sweeping.Request(tuple(settings or ()), preset, model, tuple(texts or ()), at, name, at_once, dry_run)
    if target is None:
        sweeping.sweep(request)
    else:
        from flows.prices import targeting
        from flows.sweeps import bisecting

        bisecting.bisect(request, targeting.parse(target))


@app.command(
    epilog="Examples: sparsekd prune --model ./my-model --width 0.75 --out ./pruned  |  "
    "sparsekd prune --model ./my-model --total-reduction 0.2 --out ./pruned"
)
def prune(
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the pruned checkpoint goes.")],
    width: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--width", help="New intermediate_size: a fraction in (0, 1] of the old one, or the integer."),
    ] = None,
    ffn_reduction: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--ffn-reduction", help="Instead: share of the feed-forward parameters to remove."),
    ] = None,
    non_embedding_reduction: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--non-embedding-reduction", help="Instead: share to remove of all but the embeddings."),
    ] = None,
    total_reduction: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--total-reduction", help="Instead: share of all parameters to remove."),
    ] = None,
    parameters: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--parameters", help="Instead: the most parameters that the whole model may have."),
    ] = None,
    texts: Texts = None,
    preset: Preset = "default",
    settings: Settings = None,
    device: Device = None,
) -> None:
    """Prune the feed-forward layers of any checkpoint. No DVC and no repository is needed.

    Writes a stock checkpoint with a smaller intermediate_size. Distil it afterwards: pruning alone costs quality.
    One layer at a time is in memory, except while the model itself writes a share of the calibration text; for a model
    larger than the memory add -S calibrate.self_generated=0.
    """
    from flows.commands import steps

    budget = {
        "width": width,
        "ffn_reduction": ffn_reduction,
        "non_embedding_reduction": non_embedding_reduction,
        "total_reduction": total_reduction,
        "parameters": parameters,
    }
    steps.prune(model, out, budget, texts, steps.Options(preset, settings, device))


@app.command(epilog="Example: sparsekd distill --model ./pruned --teacher ./my-model --out ./distilled")
def distill(
    model: Annotated[str, typer.Option("--model", metavar="SRC", help="The pruned checkpoint: the student.")],
    teacher: Annotated[str, typer.Option("--teacher", metavar="SRC", help="The model it was pruned from.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the distilled checkpoint goes.")],
    texts: Texts = None,
    preset: Preset = "default",
    settings: Settings = None,
    device: Device = None,
) -> None:
    """Distil a pruned checkpoint from the model it came from. No DVC and no repository is needed.

    Trains the feed-forward layers and norms to match the teacher's distribution; writes a stock checkpoint.
    """
    from flows.commands import steps

    steps.distill(model, teacher, out, texts, steps.Options(preset, settings, device))


@app.command(epilog="Example: sparsekd evaluate --model ./distilled --dense ./my-model --out ./evaluation")
def evaluate(
    model: Model,
    dense: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--dense", metavar="SRC", help="The uncompressed model, to measure agreement with it."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="DIR", help="Where evaluation.json and lm-eval's files go."),
    ] = None,
    texts: Texts = None,
    preset: Preset = "default",
    settings: Settings = None,
    device: Device = None,
) -> None:
    """Evaluate any checkpoint: test perplexity, agreement with the dense model, lm-eval tasks.

    No DVC and no repository is needed.
    """
    from flows.commands import steps

    steps.evaluate(model, dense, out, texts, steps.Options(preset, settings, device))


@app.command(epilog='Example: sparsekd generate data/distilled --prompt "Why is the sky blue?"')
def generate(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A checkpoint: directory, owner/name, catalogue name.")
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="What to answer.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to write.")] = 128,
    device: Device = None,
) -> None:
    """Answer a prompt with a checkpoint, greedily, through its chat template where it has one."""
    from flows.commands import steps

    steps.generate(directory, prompt, max_new_tokens, steps.Options(device=device))


@app.command(
    epilog="Examples: sparsekd config --diff  |  sparsekd config --preset quality  |  sparsekd config --schema"
)
def config(
    preset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--preset", metavar=PRESET_NAMES, help="Show this preset instead of params.yaml."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON instead of YAML.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="The JSON schema: every setting, its bounds, what it does.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Only what differs from the preset's own values.")] = False,
) -> None:
    """Show the resolved configuration: params.yaml with every default filled in.

    Outside the project, the defaults.
    """
    from flows.commands import settings

    typer.echo(settings.text(preset, as_json=json, schema=schema, diff=diff))


@app.command(epilog="Examples: sparsekd refresh  |  sparsekd refresh -S gate.kl=0.3")
def refresh(
    settings: Settings = None,
    preset: PresetOver = None,
    at: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--at", metavar="REV", help="From this commit, tag, branch or experiment."),
    ] = None,
) -> None:
    """Run in isolation if model, texts or settings are otherwise than in every run that is kept; else end at once.

    Sources are looked at again: the newest commit on the hub, the files of a path as they are now. What changed against
    the last accepted run is told in numbers.
    """
    from flows.commands import refreshing

    refreshing.refresh(settings or (), preset, at)


@app.command(epilog="Examples: sparsekd runs  |  sparsekd runs --json")
def runs(
    json: Annotated[bool, typer.Option("--json", help="Everything that is known of each run, as JSON.")] = False,
) -> None:
    """List the isolated runs: when, model, width, how it ended, what came of it, and its MLflow run.

    Each that ended well is a DVC experiment: `dvc exp show`, `dvc exp apply NAME`, `dvc params diff` know it too.
    """
    from flows.commands import listing

    listing.show(as_json=json)


@app.command(epilog="Examples: sparsekd restore NAME  |  sparsekd restore NAME --out ./model")
def restore(
    name: Annotated[str, typer.Argument(help="A run: an experiment of `sparsekd runs`.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="DIR", help="Write its checkpoint and report here; leave the checkout alone."),
    ] = None,
) -> None:
    """Bring back the bytes of a run: params.yaml, dvc.lock and data/ as they were, from DVC's cache."""
    from flows.commands import restoring

    restoring.restore(name, out)


@app.command(
    epilog="Examples: sparsekd lineage models:/NAME/1  |  sparsekd lineage RUN --verify  |  sparsekd lineage RUN --json"
)
def lineage(
    model_or_run: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="models:/NAME/VERSION, models:/NAME@ALIAS, NAME (its newest version), a run's name, or its id or the "
            "first 6 digits of that.",
        ),
    ],
    check: Annotated[
        bool, typer.Option("--verify", help="Recompute every hash down the chain and say the first that differs.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The whole chain, and what --verify found, as JSON.")] = False,
) -> None:
    """Say where a model comes from, link by link: registry, MLflow run, experiment, commit, dvc.lock, and its hashes.

    Exit code 1 when --verify finds a link that does not hold or whose bytes are missing.
    """
    from flows.commands import lineage as chain

    if not chain.show(model_or_run, check, as_json=json):
        raise typer.Exit(1)


@app.command(epilog="Examples: sparsekd gc  |  sparsekd gc --drop NAME --yes")
def gc(
    drop: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--drop", metavar="NAME", help="Give up this run too; repeat for more."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, only say what would be freed.")] = False,
) -> None:
    """Free disk: what no experiment, tag, branch, checkout or registered model needs. Says first what that is."""
    from flows.commands import freeing

    freeing.gc(tuple(drop or ()), yes)


app.command(epilog=cli_preview.EXAMPLES)(cli_preview.preview)
app.command(epilog=cli_export.EXAMPLES)(cli_export.export)
app.command(epilog=cli_report.EXAMPLES)(cli_report.report)
app.command(epilog=cli_push.EXAMPLES)(cli_push.push)
app.add_typer(cli_texts.app, name="texts")


@app.command(epilog="Example: sparsekd doctor")
def doctor() -> None:
    """Check this machine and checkout: versions, disk, memory, git, compiler, browser; what is missing.

    Exit code 1 when something is missing without which `sparsekd compress` cannot run.
    """
    from flows.commands import doctor as checks

    if not checks.show():
        raise typer.Exit(1)


@app.command(epilog='Examples: sparsekd serve  |  sparsekd serve --cron "0 3 * * *"')
def serve(
    cron: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--cron", help="Also start a run at these times (cron syntax, local time)."),
    ] = None,
    refresh_cron: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--refresh-cron", help="At these times look for new data, and run only where there is some."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of the Prefect page.")] = 4200,
    mlflow_port: Annotated[int, typer.Option("--mlflow-port", min=1, max=65535, help="Of the MLflow page.")] = 5000,
    retention_days: Annotated[
        float,
        typer.Option("--retention-days", min=0.001, help="Remove flow runs, logs and artifacts older than this."),
    ] = 90,
    sources: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--sources", metavar="DIR", help="Runs read local models and texts in this directory alone."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address that Prefect answers on; another one turns its password on.")
    ] = "127.0.0.1",
) -> None:
    """Open the Prefect and MLflow pages on 127.0.0.1 and offer the flow there as a deployment with a form.

    It serves the flows, not the model. Stop it with Ctrl-C.
    """
    from flows.commands.serve import serve as start

    start(cron, port, mlflow_port, retention_days=retention_days, refresh_cron=refresh_cron, sources=sources, host=host)


def main() -> None:
    """The console script's entry point."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no arrows still gets its lines
    app()
