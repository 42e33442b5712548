"""Every check that can be made before anything heavy loads. Each fault is one sentence and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from flows.checks import machine
from flows.checks.estimate import Estimate, widths
from flows.settings.confined import check_confined
from sparsekd.artifacts import hash_directory
from sparsekd.config import RunConfig
from sparsekd.distillation.processes import Machines, plan_processes
from sparsekd.errors import ConfigError, ModelError, ResourceError, SourceError
from sparsekd.evaluation.packaged_tasks import check_tasks
from sparsekd.export.formats import check_types, gguf_types
from sparsekd.families import family_of, standard_config
from sparsekd.settings import parse_config
from sparsekd.sources import ResolvedModel, model_config, packaged_tasks, resolve_model, resolve_text
from tasks.corpora import own_corpora
from tasks.state import read_json

_PLAIN_TEXT = (".txt", ".jsonl")  # files whose size bounds their tokens from above


def check_repository(root: Path) -> None:
    """Raise ConfigError unless `root` lies in a git working tree with DVC set up, and git is installed."""
    if shutil.which("git") is None:
        raise ConfigError("git is not installed; DVC keeps its records in a git repository. Install git.")
    if machine.git_root(root) is None:
        raise ConfigError(
            f"{root} is no git repository; DVC keeps its records in one. Clone the project instead of copying it, or "
            "run `git init` there."
        )
    if not (root / ".dvc").is_dir():
        raise ConfigError(f"{root} has no .dvc directory; get it back with `git checkout .dvc`, or run `dvc init`.")


def resolve_sources(config: RunConfig, root: Path = Path()) -> tuple[RunConfig, ResolvedModel]:
    """`config` with model and texts pinned to a commit or content hash, so that DVC sees when they change.

    Hub sources that are pinned already need no network, and corpora that `root` records stay at the version they are
    pinned to. Raises SourceError or ConfigError for what cannot be read.
    """
    column, own = config.texts.column, own_corpora(root)
    check_confined(config, own)
    model = resolve_model(config.model.source, config.model.revision)
    revisions = config.texts.revisions or (None,) * len(config.texts.sources)
    texts = [
        resolve_text(source, revision, column, own)
        for source, revision in zip(config.texts.sources, revisions, strict=True)
    ]
    values = config.model_dump()
    values["model"] |= {"source": model.source, "revision": model.revision}
    values["texts"] |= {"sources": [t.source for t in texts], "revisions": [t.revision for t in texts]}
    include = config.evaluate.include_path
    pinned = hash_directory(Path(include)) if include and Path(include).is_dir() else None
    values["evaluate"]["include_revision"] = pinned
    return parse_config(values), model


def dense_config(root: Path, config: RunConfig) -> dict[str, Any]:
    """config.json of the dense model under standard names: from data/raw/model, or else the source."""
    fetched = root / "data" / "raw" / "model"
    manifest: Any = read_json(fetched / "manifest.json")
    if isinstance(manifest, dict) and manifest.get("config", {}).get("model") == config.model.model_dump(mode="json"):
        values: Any = read_json(fetched / "config.json")
        if isinstance(values, dict):
            return standard_config(values)
    return model_config(config.model.source, config.model.revision)


def check_settings(root: Path, config: RunConfig, model: dict[str, Any]) -> None:
    """Raise the first fault that configuration, model and machine show together."""
    check_model(config, model)
    check_exports(config, model)
    include = config.evaluate.include_path
    check_tasks(config.evaluate.tasks, None if include is None else str(root / include), packaged_tasks())
    check_texts(config, root)
    check_device(config)


def check_model(config: RunConfig, model: dict[str, Any]) -> None:
    """The model's layout is known, a width is left, and every sequence fits. Raises ModelError or ConfigError."""
    check_layout(config.model.source, model)
    widths(config, model)
    check_sample(config, model)
    timed = config.benchmark.prefill_tokens + config.benchmark.decode_tokens
    check_lengths(
        config.model.source,
        model,
        {
            "calibrate.sequence_length": config.calibrate.sequence_length,
            "calibrate.chat_tokens": config.calibrate.chat_tokens,
            "report.prompt_tokens": config.report.prompt_tokens,
            "benchmark.prefill_tokens + benchmark.decode_tokens": timed,
        },
    )


def check_exports(config: RunConfig, model: dict[str, Any]) -> None:
    """Raise ExportError where rows of the compressed model will not fit the blocks of a file that is to be written."""
    _, width = widths(config, model)
    check_types(gguf_types(config.export.formats), {**model, family_of(model).width: width, "intermediate_size": width})


def check_sample(config: RunConfig, model: dict[str, Any]) -> None:
    """Raise ConfigError where a sampled teacher cache would leave no token of the vocabulary to draw from."""
    if config.teacher.cache == "sampled" and config.teacher.top_k >= model["vocab_size"]:
        raise ConfigError(
            f"teacher.top_k is {config.teacher.top_k}; {config.model.source} has {model['vocab_size']} tokens, and "
            "some must be left to draw from. Lower it."
        )


def check_layout(source: str, model: dict[str, Any]) -> None:
    """Raise ModelError unless `model` (config.json) has a supported layout and plain weights."""
    family_of(model)
    if quantised := model.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise ModelError(
            f"{source} has quantised weights ({method}); its unquantised checkpoint is needed. Name that one."
        )


def check_lengths(source: str, model: dict[str, Any], lengths: dict[str, int]) -> None:
    """Raise ConfigError for a setting in `lengths` that asks for more tokens than the model takes."""
    most = model.get("max_position_embeddings")
    for place, tokens in lengths.items():
        if most and tokens > most:
            raise ConfigError(f"{place} is {tokens}; {source} takes at most {most} tokens. Lower it.")


def check_texts(config: RunConfig, root: Path = Path()) -> None:
    """Raise SourceError for a text too small for its share of the calibration tokens, whatever the tokenizer."""
    share = config.calibrate.text_sequences * config.calibrate.sequence_length // len(config.texts.sources)
    sizes = {version.revision: version.bytes for versions in own_corpora(root).values() for version in versions}
    revisions = config.texts.revisions or ("",) * len(config.texts.sources)
    for source, revision in zip(config.texts.sources, revisions, strict=True):
        path = Path(source.removeprefix("file:")).expanduser()
        what, size = "a corpus", sizes.get(revision)
        if size is None and path.suffix in _PLAIN_TEXT and path.is_file():
            what, size = "a file", path.stat().st_size
        if size is not None and size < share:
            raise SourceError(
                f"texts.sources names {source!r}, {what} of {size:,} bytes; it cannot hold its share of "
                f"{share:,} calibration tokens. Give more text, lower calibrate.tokens or raise "
                "calibrate.self_generated."
            )


def check_device(config: RunConfig) -> None:
    """Raise ResourceError or ConfigError for a device, or a number of processes, that cannot be had here."""
    fault = machine.cuda_fault() if config.runtime.device == "cuda" else None
    if fault:
        raise ResourceError(
            f"runtime.device is cuda, but {fault}. Set it to cpu or auto (`--device cpu`), or install a CUDA build of "
            "torch (`rm -rf .venv && make setup TORCH_INDEX=URL`)."
        )
    devices = 0 if config.runtime.device == "cpu" else machine.cuda_devices()
    plan_processes(config.distill, devices, Machines.from_environment())


def check_resources(root: Path, config: RunConfig, needed: Estimate) -> None:
    """Raise ResourceError when disk or memory will not do."""
    disk = machine.free_disk(root)
    if needed.disk > disk:
        raise ResourceError(
            f"The outputs need about {gigabytes(needed.disk)} on the disk of {root}; {gigabytes(disk)} are free. Free "
            "some space (`dvc gc --workspace` drops older results), or work in a clone on a larger disk."
        )
    memory = machine.free_memory()
    if config.runtime.device != "cuda" and needed.memory > memory:
        raise ResourceError(
            f"The run needs about {gigabytes(needed.memory)} of memory; {gigabytes(memory)} are free. Close other "
            "programs, or lower distill.batch_size, evaluate.batch_size or calibrate.sequence_length."
        )


def gigabytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB"
