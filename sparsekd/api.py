"""The single steps as functions: any checkpoint in, a stock checkpoint or an evaluation out. No DVC, no repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsekd.artifacts import hash_directory, writing
from sparsekd.calibration.build import Built, build_calibration
from sparsekd.calibration.corpora import read_corpora
from sparsekd.calibration.packing import CalibrationSet
from sparsekd.config import BUDGETS, RunConfig
from sparsekd.decoding import greedy, prompt_ids, stop_tokens
from sparsekd.distillation.card import write_card
from sparsekd.distillation.run import Curriculum, distill_checkpoint
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.evaluation import Evaluation, evaluate_model
from sparsekd.evaluation.offers import WIDTHS, PriceList
from sparsekd.evaluation.price_list import price_list
from sparsekd.families import check_fields
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import count_parameters, load_model, load_tokenizer, reduction
from sparsekd.progress import Progress, silent
from sparsekd.pruning.budget import resolve_width
from sparsekd.pruning.checkpoint import prune_checkpoint
from sparsekd.runtime import resolve_device, use_threads
from sparsekd.sources import NO_CORPORA, Corpora, fetch_benchmarks, fetch_texts, local_checkpoint, model_config

PREVIEW_TOKENS, PREVIEW_HELD_OUT = 16_384, 2_048


def prune(
    model: str | Path,
    out: str | Path,
    *,
    width: float | None = None,
    texts: Sequence[str] | None = None,
    config: RunConfig | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write `model`, pruned to `width` (a fraction or the integer), to `out` and return parameters and reduction.

    Without `width`, what `config.prune` says holds: it may give a reduction or a number of parameters instead.
    `model` and `texts` are sources as `sparsekd compress` takes them. Layers that are done lie in `<out>.work` until
    `out` is whole: call it again after a kill. Raises SparseKDError's subclasses.
    """
    config = _config(config, texts)
    if width is not None:
        values = config.prune.model_dump() | dict.fromkeys(BUDGETS) | {"width": width}
        config = config.model_copy(update={"prune": type(config.prune)(**values)})
    use_threads(config.runtime)
    dense, source = local_checkpoint(str(model))
    data = _calibrate(dense, _without_chat(config), progress).data
    work = Path(out).with_name(Path(out).name + ".work")
    with writing(Path(out), "prune", config.model_dump(mode="json"), {}) as draft:
        draft.facts["source"] = source
        device = resolve_device(config.runtime)
        draft.facts |= prune_checkpoint(
            dense, draft.path, data.calibration, config.prune, device, work / "layers", hash_directory(dense), progress
        )
    shutil.rmtree(work)
    return draft.facts


def distill(
    model: str | Path,
    teacher: str | Path,
    out: str | Path,
    *,
    texts: Sequence[str] | None = None,
    config: RunConfig | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Distil the pruned `model` from `teacher`, the model it was pruned from, into `out`; return what was done.

    Teacher cache and resumable checkpoints lie in `<out>.work` until `out` is whole: call it again after a kill.
    """
    config = _config(config, texts)
    use_threads(config.runtime)
    device = resolve_device(config.runtime)
    student, dense = local_checkpoint(str(model))[0], local_checkpoint(str(teacher))[0]
    work = Path(out).with_name(Path(out).name + ".work")
    built = _calibrate(dense, _without_chat(config), progress)
    trained_on = {name: built.data.validation[name] for name in built.facts["trained_on"]}
    data = CalibrationSet(built.data.calibration, trained_on, {})
    cache = _teacher_cache(dense, data, work / "teacher", config, progress, print)
    identity = f"{hash_directory(student)} {hash_directory(dense)} {config.calibrate} {config.texts}"
    with writing(Path(out), "distill", config.model_dump(mode="json"), {}) as draft:
        curriculum = Curriculum(data.calibration, data.validation, cache, dense)
        draft.facts |= distill_checkpoint(
            student, draft.path, curriculum, config.distill, device, work / "checkpoints", identity, progress
        )
        draft.facts |= _compared(student, dense)
        write_card(draft.path, draft.facts, config.distill)
    shutil.rmtree(work)
    return draft.facts


def evaluate(
    model: str | Path,
    out: str | Path | None = None,
    dense: str | Path | None = None,
    *,
    texts: Sequence[str] | None = None,
    config: RunConfig | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Test perplexity and lm-eval scores of `model` and, with `dense`, its agreement with that model.

    Files go to `out` where it is given.
    """
    config = _config(config, texts)
    use_threads(config.runtime)
    device = resolve_device(config.runtime)
    path = local_checkpoint(str(model))[0]
    reference = local_checkpoint(str(dense))[0] if dense is not None else None
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        least = {"tokens": config.calibrate.sequence_length * len(config.texts.sources), "self_generated": 0}
        held_out = _calibrating(config if reference else _without_chat(config), **least)
        data = _calibrate(reference or path, held_out, progress).data
        cache = None
        if reference:
            tested = CalibrationSet(data.calibration.head(1), {}, data.test)
            cache = _teacher_cache(reference, tested, work / "teacher", config, progress, lambda text: None)
        (work / "benchmarks").mkdir()
        fetch_benchmarks(config.evaluate.tasks, work / "benchmarks", progress)
        found = evaluate_model(
            path,
            config.evaluate,
            Path(out) if out is not None else work / "evaluation",
            test=data.test,
            teacher=cache,
            benchmarks=work / "benchmarks",
            prompts=config.report.prompts,
            prompt_tokens=config.report.prompt_tokens,
            device=device,
            progress=progress,
        )
    return found if out is not None else found.model_copy(update={"command": None})  # its task files are gone


def preview(
    model: str | Path,
    widths: Sequence[float] = WIDTHS,
    *,
    texts: Sequence[str] | None = None,
    config: RunConfig | None = None,
    corpora: Corpora = NO_CORPORA,
    progress: Progress = silent,
) -> PriceList:
    """What `model` would cost and keep at each of `widths` (fractions or integers) before distillation, in minutes.

    At most PREVIEW_TOKENS calibration tokens and PREVIEW_HELD_OUT validation tokens a corpus are looked at. `corpora`
    are those that a checkout keeps under names of their own.
    """
    config = _config(config, texts)
    use_threads(config.runtime)
    device = resolve_device(config.runtime)
    dense, source = local_checkpoint(str(model), config.model.revision if str(model) == config.model.source else None)
    config = _calibrating(
        config,
        tokens=min(config.calibrate.tokens, PREVIEW_TOKENS),
        held_out_tokens=min(config.calibrate.held_out_tokens, PREVIEW_HELD_OUT),
        self_generated=0,
        chat_prompts=0,
    )
    data = _calibrate(dense, config, progress, own=corpora).data
    held_out = CalibrationSet(data.calibration, data.validation, {})
    full = int(check_fields(model_config(str(dense)))["intermediate_size"])
    wanted = sorted({resolve_width(width, full, config.prune.multiple_of) for width in widths}, reverse=True)
    with tempfile.TemporaryDirectory() as folder:
        alone = CalibrationSet(data.calibration.head(1), data.validation, {})
        cache = _teacher_cache(dense, alone, Path(folder) / "teacher", config, progress, lambda text: None)
        return price_list(str(source["name"]), dense, held_out, cache, wanted, config.prune, device, progress)


def generate(model: str | Path, prompt: str, max_new_tokens: int = 128, *, config: RunConfig | None = None) -> str:
    """The model's greedy answer to `prompt`, through its chat template where it has one."""
    runtime = (config or RunConfig()).runtime
    use_threads(runtime)
    path = local_checkpoint(str(model))[0]
    network, tokenizer = load_model(path, device=resolve_device(runtime)), load_tokenizer(path)
    ids = greedy(network, [prompt_ids(tokenizer, prompt)], max_new_tokens, stop_tokens(network, tokenizer))[0]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _config(config: RunConfig | None, texts: Sequence[str] | None) -> RunConfig:
    config = config or RunConfig()
    if texts is None:
        return config
    chosen = type(config.texts)(sources=tuple(map(str, texts)), column=config.texts.column)
    return config.model_copy(update={"texts": chosen})


def _calibrating(config: RunConfig, **changes: float) -> RunConfig:
    return config.model_copy(update={"calibrate": config.calibrate.model_copy(update=changes)})


def _without_chat(config: RunConfig) -> RunConfig:
    return _calibrating(config, chat_prompts=0)


def _calibrate(
    dense: Path,
    config: RunConfig,
    progress: Progress,
    own: Corpora = NO_CORPORA,
) -> Built:
    """The packed sequences that a run of the workflow would make of the same configuration."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        texts = config.texts
        corpora = fetch_texts(texts.sources, texts.revisions, texts.column, raw, progress, own=own)
        built = build_calibration(
            read_corpora(raw, {"corpora": corpora}),
            load_tokenizer(dense),
            config.calibrate,
            partial(load_model, dense),
            resolve_device(config.runtime),
            progress,
        )
    for warning in built.warnings:
        print(f"warning: {warning}")
    return built


def _teacher_cache(
    dense: Path,
    data: CalibrationSet,
    directory: Path,
    config: RunConfig,
    progress: Progress,
    say: Callable[[str], None],
) -> TeacherCache:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = load_model(dense, torch.float32, resolve_device(config.runtime))
    write_teacher_cache(model, data, directory, config.teacher, progress, say)
    return TeacherCache.open(directory)


def _compared(student: Path, dense: Path) -> dict[str, Any]:
    """Width and reduction of the student against the dense model, for its card."""
    small, large = load_model(student), load_model(dense)
    widths = {"dense": feed_forwards(large)[0].width, "pruned": feed_forwards(small)[0].width}
    removed = reduction(count_parameters(large), count_parameters(small), widths["pruned"] / widths["dense"])
    return {"intermediate_size": widths, "reduction": removed}
