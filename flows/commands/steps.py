"""Single steps of the command line on any checkpoint: the library's Python interface with progress and results."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.checks import preflight
from flows.checks.estimate import compressed
from flows.commands.display import StepProgress
from flows.settings import params
from sparsekd.config import Model, RunConfig
from sparsekd.errors import ConfigError
from sparsekd.evaluation.packaged_tasks import check_tasks
from sparsekd.export.formats import check_types
from sparsekd.export.tools import llama_library, onnx_tools
from sparsekd.pruning.budget import describe_reduction
from sparsekd.runtime import prepare_process
from sparsekd.sources import local_checkpoint, model_config, resolve_text
from tasks.quick import importing


@dataclass(frozen=True)
class Options:
    """What all steps take: a preset, settings over it, a device."""

    preset: str = "default"
    settings: list[str] | None = None
    device: str | None = None

    def config(self, **values: Any) -> RunConfig:
        """The configuration they describe, with `values` ("prune__width" for prune.width) over the preset.

        The process is prepared for it, so this comes before torch is imported.
        """
        options = [f"{key.replace('__', '.')}={value}" for key, value in values.items() if value is not None]
        if self.device is not None:
            options.append(f"runtime.device={self.device}")
        config = params.with_settings(params.load_preset(self.preset), options, "your command line")
        config = params.with_settings(config, self.settings or [], "your -S options")
        prepare_process(config.runtime)
        return config


def prune(model: str, out: Path, budget: dict[str, float | None], texts: list[str] | None, options: Options) -> None:
    """`sparsekd prune`; `budget` are its options for how much is kept, by their keys in `prune`."""
    check_out(out)
    config = options.config(**{f"prune__{key}": value for key, value in budget.items()})
    check_sources(config, [model], texts)
    made_of = config.model_copy(update={"model": Model(source=model)})
    preflight.check_model(made_of, model_config(model))
    made = compressed(made_of, model_config(model))
    removed = describe_reduction(made.reduction)
    print(f"{made.old_width} to {made.new_width} neurons a layer: removes {removed}", file=sys.stderr)
    with working("prune") as progress:
        with importing():
            from sparsekd import api

        result = api.prune(model, out, width=config.prune.width, texts=texts, config=config, progress=progress)
    _report(result, out)


def distill(model: str, teacher: str, out: Path, texts: list[str] | None, options: Options) -> None:
    """`sparsekd distill`."""
    check_out(out)
    config = options.config()
    check_sources(config, [model, teacher], texts)
    with working("distill") as progress:
        with importing():
            from sparsekd import api

        result = api.distill(model, teacher, out, texts=texts, config=config, progress=progress)
    _report(result, out)


def evaluate(model: str, dense: str | None, out: Path | None, texts: list[str] | None, options: Options) -> None:
    """`sparsekd evaluate`."""
    if out is not None:
        check_out(out)
    config = options.config()
    check_sources(config, [model] if dense is None else [model, dense], texts)
    check_tasks(config.evaluate.tasks, config.evaluate.include_path)
    with working("evaluate") as progress:
        with importing():
            from sparsekd import api

        result = api.evaluate(model, out, dense, texts=texts, config=config, progress=progress)
    _report(result, out)


def generate(directory: str, prompt: str, max_new_tokens: int, options: Options) -> None:
    """`sparsekd generate`."""
    config = options.config()
    preflight.check_layout(directory, model_config(directory))
    preflight.check_device(config)
    with working("generate"):
        with importing():
            from sparsekd import api

        answer = api.generate(directory, prompt, max_new_tokens, config=config)
    print(answer)


def export(directory: str, form: str, types: str | None, out: Path) -> None:
    """`sparsekd export`."""
    if form not in ("gguf", "onnx"):
        raise ConfigError(f"--format is {form!r}; it must be gguf or onnx.")
    if form == "onnx" and types not in (None, "f32"):
        raise ConfigError(f"--type is {types}; an ONNX file holds float32. Leave --type out.")
    check_out(out)
    wanted = [name.strip() for name in (types or "f16,q8_0").split(",")]
    values = model_config(directory)
    preflight.check_layout(directory, values)
    if form == "gguf":
        check_types(wanted, values)
        llama_library()
    else:
        onnx_tools()
    Options().config()
    with working("export") as progress:
        with importing():
            from sparsekd.export.run import export_gguf, export_onnx

        checkpoint = local_checkpoint(directory)[0]
        if form == "gguf":
            result = export_gguf(checkpoint, out, wanted, progress=progress)
        else:
            result = export_onnx(checkpoint, out, progress=progress)
    _report(result, out)


@contextlib.contextmanager
def working(name: str) -> Iterator[StepProgress]:
    """Progress for the block; what libraries print goes to stderr, so that stdout holds the result alone."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # theirs would draw over it
    with StepProgress(name) as progress, contextlib.redirect_stdout(sys.stderr):
        yield progress


def check_sources(config: RunConfig, models: list[str], texts: list[str] | None) -> None:
    """What the disk tells about models, texts and device before anything loads."""
    for source in models:
        values = model_config(source)
        preflight.check_layout(source, values)
        lengths = {"calibrate.sequence_length": config.calibrate.sequence_length}
        preflight.check_lengths(source, values, lengths)
    for source in texts or config.texts.sources:
        resolve_text(source, None, config.texts.column)
    preflight.check_device(config)


def check_out(out: Path) -> None:
    """Raise ConfigError unless `out` is new or empty: nothing of anybody's is overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out is {out}, which is there and not empty; name a new directory, or remove it first.")


def _report(result: Any, out: Path | None) -> None:
    """The figures as JSON on stdout, so that scripts can read them; where the files are on stderr."""
    values = result.model_dump(mode="json") if hasattr(result, "model_dump") else result
    print(json.dumps(values, indent=2, ensure_ascii=False, default=str))
    if out is not None:
        print(f"written to {out}", file=sys.stderr)
