"""lm-eval through its own library: tasks, scores, result files and the plain command that repeats them.

Result files are in lm-eval's own layout, written by its own tracker, less what differs between two equal runs (dates,
durations, host, commit). The rows are given by lm-eval's `samples`, so every variant answers the same ones.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.evaluator
from lm_eval.api.group import Group
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from transformers import PreTrainedTokenizerBase

from sparsekd.config import Evaluate
from sparsekd.errors import ConfigError, SourceError
from sparsekd.evaluation.packaged_tasks import (
    PACKAGED,
    check_tasks,
    choose_rows,
    own_tasks,
    packaged_rows,
    write_definition,
)
from sparsekd.evaluation.results import TaskScore
from sparsekd.evaluation.shared_context import SharedContextLM
from sparsekd.progress import Progress, silent

METRICS = ("acc", "acc_norm", "exact_match")
"""The metric reported is the first of these that the task has, else its own first; results.json holds them all."""
LENGTH_NORMALISED = {"arc_challenge", "hellaswag", "openbookqa"}
"""Of these the field quotes acc_norm (log-likelihood over the answer's length in characters), of the others acc."""
BOOTSTRAP = 1000  # of lm-eval, only for metrics without a closed-form error; its default of 100,000 takes minutes
_VOLATILE = ("date", "git_hash", "total_evaluation_time_seconds")


@dataclass(frozen=True)
class TaskRun:
    """Scores by task and by group of tasks, and the plain command that repeats them."""

    tasks: dict[str, TaskScore]
    groups: dict[str, TaskScore]
    command: str


def run_tasks(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: Evaluate,
    out: Path,
    benchmarks: Path | None = None,
    checkpoint: str = "",
    home: Path | None = None,
    progress: Progress = silent,
    validation: bool = False,
    adapter: Callable[[Any, PreTrainedTokenizerBase, int, Progress], LM] = SharedContextLM,
) -> TaskRun:
    """Score `model` on config.tasks and write lm-eval's files into the directory `out`.

    `benchmarks` holds the rows of packaged tasks; the rows of others come from the hub, or as their definition says.
    `validation` takes config.validation_rows other rows of each task instead; a task that has no others is left out.
    `adapter` makes a model of lm-eval's of `model`, tokenizer, batch size and progress: a checkpoint in Transformers,
    unless another is given. `checkpoint` and `home` are what the printed command names: the model's path, and where
    `out` will stand in the end.
    Raises ConfigError for an unknown task or one that runs code, SourceError where a task's rows are not to be had.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _quiet(), tempfile.TemporaryDirectory() as cache:
        roots, tasks = _load(config, benchmarks, out / "tasks", Path(cache))
        samples = _choose(tasks, config, validation)
        roots = [root for root in roots if all(samples.get(name, [0]) for name in _members(root))]
        if not roots:
            return TaskRun({}, {}, "")
        arguments = f"pretrained={checkpoint or model.name_or_path},dtype={config.dtype},softmax_dtype=float32"
        tracker = EvaluationTracker(output_path=str(out / "results.json"))
        results = _evaluate(
            model=adapter(model, tokenizer, config.batch_size, progress),
            model_args=arguments,
            tasks=roots,
            samples=samples or None,
            num_fewshot=config.num_fewshot,
            apply_chat_template=config.apply_chat_template,
            batch_size=config.batch_size,
            bootstrap_iters=BOOTSTRAP,
            evaluation_tracker=tracker,
            task_manager=TaskManager(include_defaults=False),
        )
        logged = results.pop("samples")
        _write_files(tracker, results, logged, out)
    if samples:
        (out / "samples.json").write_text(json.dumps(samples) + "\n")
    scores = {name: _task_score(name, tasks[name], results) for root in roots for name in _members(root)}
    groups = {
        root.name: _group_score(root, scores, results)
        for root in roots
        if isinstance(root, Group) and root.name in results.get("groups", {})
    }
    return TaskRun(scores, groups, _command(config, arguments, out, home or out))


def _choose(tasks: dict[str, Task], config: Evaluate, validation: bool) -> dict[str, list[int]]:
    """The rows to score by task; a task that is not in it is scored whole."""
    rows, after = (config.validation_rows, config.rows) if validation else (config.rows, 0)
    totals = {name: len(task.eval_docs) for name, task in tasks.items()}
    return {
        name: choose_rows(name, total, rows, config.seed, after)
        for name, total in totals.items()
        if after or 0 < rows < total
    }


def _members(root: Task | Group) -> list[str]:
    """The single tasks of a task or group."""
    return [str(task.task_name) for task in root.get_all_tasks()] if isinstance(root, Group) else [str(root.task_name)]


def _load(
    config: Evaluate, benchmarks: Path | None, definitions: Path, cache: Path
) -> tuple[list[Task | Group], dict[str, Task]]:
    """What config.tasks names, and every single task in it; packaged ones get a definition in `definitions`.

    Their rows are converted into `cache`: in the user's own cache each run from another place would leave a copy.
    """
    packaged = {task: files for task in config.tasks if (files := packaged_rows(benchmarks, task))}
    check_tasks(config.tasks, config.include_path, packaged)
    specs = [
        str(write_definition(task, packaged[task], definitions)) if task in packaged else task for task in config.tasks
    ]
    # the index of lm-eval's own 14,000 tasks takes seconds to build
    others = set(config.tasks) - set(packaged) - own_tasks(config.include_path)
    manager = TaskManager(include_path=config.include_path, include_defaults=bool(others))
    roots: list[Task | Group] = []
    tasks: dict[str, Task] = {}
    for task, spec in zip(config.tasks, specs, strict=True):
        try:
            with (
                _replaced(datasets.config, "HF_DATASETS_CACHE", cache) if task in packaged else contextlib.nullcontext()
            ):
                found = manager.load([spec])
        except (OSError, datasets.exceptions.DatasetsError) as error:
            raise _no_rows(task, error) from None
        group = found.get("groups", {}).get(task)
        roots += [group] if group else found["tasks"].values()
        tasks |= found["tasks"]
    return roots, tasks


def _no_rows(task: str, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())[:200]
    return SourceError(
        f"evaluate.tasks: the rows of {task!r} are not to be had ({reason}). Choose packaged tasks, which run offline "
        f"({', '.join(PACKAGED)}), or run where the hub can be reached (HF_HUB_OFFLINE unset), or give "
        "evaluate.include_path a definition with local rows."
    )


def _evaluate(**arguments: Any) -> dict[str, Any]:
    """lm-eval's simple_evaluate; a refusal of its own (a task that runs code, say) becomes a ConfigError."""
    try:
        results: dict[str, Any] = simple_evaluate(**arguments)
    except ValueError as error:
        raise ConfigError(f"evaluate.tasks: lm-eval refuses: {' '.join(str(error).split())[:300]}") from error
    return results


def _write_files(tracker: EvaluationTracker, results: dict[str, Any], logged: dict[str, Any], out: Path) -> None:
    """results.json and samples_<task>.jsonl by lm-eval's own tracker, under names and with contents that repeat."""
    tracker.save_results_aggregated(results, logged)
    for name, samples in logged.items():
        tracker.save_results_samples(name, samples)
        (out / f"samples_{name}_{tracker.date_id}.jsonl").replace(out / f"samples_{name}.jsonl")
    (out / f"results_{tracker.date_id}.json").unlink()
    kept = {key: value for key, value in results.items() if key not in _VOLATILE}
    kept |= {f"{name}_version": importlib.metadata.version(name) for name in ("lm_eval", "transformers")}
    kept["model_source"] = kept["config"]["model"] = "hf"
    for definition in kept["configs"].values():
        source = Path(str(definition.get("metadata", {}).get("config_source", "")))
        definition["metadata"]["config_source"] = source.name
    text = json.dumps(kept, indent=2, default=_describe, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n")


def _describe(value: Any) -> Any:
    """As lm-eval, but a function by its name: it would write the address in memory."""
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else handle_non_serializable(value)


def _task_score(name: str, task: Task, results: dict[str, Any]) -> TaskScore:
    count = results["n-samples"][name]
    chance = 0.0
    if task.OUTPUT_TYPE == "multiple_choice":
        rows = {instance.doc_id: instance.doc for instance in task.instances}
        chance = sum(1 / len(task.doc_to_choice(row)) for row in rows.values()) / len(rows)
    return _score(name, results, count["effective"], count["original"], chance)


def _group_score(group: Group, scores: dict[str, TaskScore], results: dict[str, Any]) -> TaskScore:
    members = [scores[name] for name in _members(group)]
    chance = sum(member.chance for member in members) / len(members)
    total = sum(member.n_total for member in members)
    return _score(group.name, results, sum(member.n for member in members), total, chance)


def _score(name: str, results: dict[str, Any], n: int, total: int, chance: float) -> TaskScore:
    figures = results["results"][name]
    keys = [key for key, value in figures.items() if "," in key and "_stderr," not in key]
    by_metric = {key.split(",")[0]: key for key in reversed(keys)}  # of several filters the first
    wanted = ("acc_norm", *METRICS) if name in LENGTH_NORMALISED else METRICS
    metric = next((metric for metric in wanted if metric in by_metric), keys[0].split(",")[0])
    key = by_metric[metric]
    error = figures.get(key.replace(",", "_stderr,", 1))
    return TaskScore(
        metric=metric,
        value=float(figures[key]),
        stderr=float(error) if isinstance(error, (int, float)) else None,
        higher_is_better=results["higher_is_better"].get(name, {}).get(metric) is not False,
        n=n,
        n_total=total,
        chance=chance,
        version=results["versions"].get(name),
    )


def _command(config: Evaluate, arguments: str, out: Path, home: Path) -> str:
    """The plain lm_eval command for the same tasks on the same rows, with the files where they will stand."""
    tasks = [
        str(home / "tasks" / f"{task}.yaml") if (out / "tasks" / f"{task}.yaml").is_file() else task
        for task in config.tasks
    ]
    words = ["lm_eval", "--model", "hf", "--model_args", arguments, "--tasks", ",".join(tasks)]
    words += ["--batch_size", str(config.batch_size)]
    if (out / "samples.json").is_file():
        words += ["--samples", str(home / "samples.json")]
    if config.include_path is not None:
        words += ["--include_path", config.include_path]
    if config.num_fewshot is not None:
        words += ["--num_fewshot", str(config.num_fewshot)]
    if config.apply_chat_template:
        words += ["--apply_chat_template"]
    return shlex.join(words)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's log lines and bars, which would drown the stage's own, and without its survey of the host.

    That survey (pip list, git) takes a second, complains outside a repository, and would not be kept.
    """
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with (
            _replaced(lm_eval.api.task, "tqdm", functools.partial(lm_eval.api.task.tqdm, disable=True)),
            _replaced(lm_eval.evaluator, "add_env_info", lambda results: None),
            _replaced(lm_eval.evaluator, "get_git_commit_hash", lambda: None),
        ):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
