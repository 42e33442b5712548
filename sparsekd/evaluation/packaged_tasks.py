"""Which lm-eval tasks there are, which rows of them are scored, and lm-eval's definitions pointed at local rows.

A definition stays lm-eval's own (prompt, choices, metrics, version); only where its rows come from is replaced, so
that it runs offline. lm-eval is not imported to check names.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparsekd.errors import ConfigError, ResourceError

PACKAGED = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "copa": "super_glue/copa/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
}
"""Tasks whose rows we have in a package, and their definition below lm_eval/tasks."""

# The packaged rows of BoolQ come from the original data set, where the label is a boolean named `answer`.
_RENAMED = {"boolq": {"doc_to_target": "{{answer | int}}"}}
_NAME = re.compile(r"""^["']?(?:task|group|tag)["']?:[ \t]*["']?([^\s"'\[\]#]+)""", re.MULTILINE)
_TASK = re.compile(r"""^["']?task["']?:[ \t]*["']?([^\s"'\[\]#]+)""", re.MULTILINE)


def definitions_root() -> Path:
    """lm-eval's own task definitions, found without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ResourceError("lm-eval is not installed; install the project's dependencies again (`make setup`).")
    return Path(spec.origin).resolve().parent / "tasks"  # lm-eval resolves links too: the paths are compared


def check_tasks(tasks: Sequence[str], include_path: str | None = None, packaged: Collection[str] = PACKAGED) -> None:
    """Raise ConfigError for a task that lm-eval does not have (naming the nearest), or an include_path that is none.

    Takes a second where a task is not packaged, and several where a name is wrong.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(
            f"evaluate.include_path is {include_path!r}; it must be a directory with lm-eval task definitions (.yaml)."
        )
    unknown = set(tasks) - set(packaged)
    if unknown:
        unknown -= _names_below(definitions_root())
    if unknown and include_path is not None:
        unknown -= _names_below(Path(include_path))
    if unknown:
        _refuse(sorted(unknown), include_path)


def own_tasks(include_path: str | None) -> set[str]:
    """Single tasks (no groups) defined in include_path: these need no index of lm-eval's own definitions."""
    return _names_below(Path(include_path), _TASK) if include_path is not None else set()


def _names_below(directory: Path, pattern: re.Pattern[str] = _NAME) -> set[str]:
    """Nearly all task, group and tag names, read as text: a full index takes seconds."""
    return {name for file in directory.rglob("*.yaml") for name in pattern.findall(file.read_text(errors="ignore"))}


def _refuse(unknown: Sequence[str], include_path: str | None) -> None:
    known = _indexed(include_path)
    for task in unknown:
        if task not in known:
            # a typing error in a packaged name is likelier than one in the 14,000 others
            near = difflib.get_close_matches(task, PACKAGED, n=1, cutoff=0.7) or difflib.get_close_matches(
                task, known, n=1
            )
            meant = f"did you mean {near[0]}?" if near else f"packaged are {', '.join(PACKAGED)}."
            raise ConfigError(
                f"evaluate.tasks names {task!r}, which lm-eval does not have; {meant} Edit params.yaml, or give "
                "evaluate.include_path a directory that defines it."
            )


@functools.cache
def _indexed(include_path: str | None) -> list[str]:
    """All tasks that lm-eval finds: it takes seconds."""
    from lm_eval.tasks import TaskManager

    return list(TaskManager(include_path=include_path).all_tasks)


def packaged_rows(directory: Path | None, task: str) -> list[Path]:
    """The Arrow files with a packaged task's rows: `<task>.arrow`, or all in the directory `<task>`."""
    if directory is None or task not in PACKAGED:
        return []
    file = directory / f"{task}.arrow"
    return [file] if file.is_file() else sorted((directory / task).glob("*.arrow"))


def write_definition(task: str, rows: Sequence[Path], out: Path) -> Path:
    """Write lm-eval's definition of a packaged task with its rows taken from the files `rows`; return the YAML file.

    Includes are resolved and functions named by module, so the file stands alone and `lm_eval --include_path` takes it.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = load_yaml(definitions_root() / PACKAGED[task], resolve_func=False)
    definition.pop("tag", None)  # a tag of the original would list this task twice
    definition |= _RENAMED.get(task, {})
    definition |= {
        "task": task,
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": [str(file) for file in rows]}},
        "training_split": None,
        "validation_split": "validation",
        "test_split": None,
    }
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{task}.yaml"
    file.write_text(yaml.dump(_name_functions(definition), Dumper=_Dumper, sort_keys=True, allow_unicode=True))
    return file


class _Function(str):
    """A function's dotted name, written with lm-eval's tag `!function`."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def _name_functions(value: Any) -> Any:
    """lm-eval's loader gives functions as "<directory>/<module>.<function>"; turn those into dotted names."""
    if isinstance(value, dict):
        return {key: _name_functions(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_name_functions(item) for item in value]
    root = f"{definitions_root()}/"
    if isinstance(value, str) and value.startswith(root):
        return _Function("lm_eval.tasks." + value.removeprefix(root).replace("/", "."))
    return value


def choose_rows(task: str, total: int, rows: int, seed: int, after: int = 0) -> list[int]:
    """`rows` of `total` row numbers in ascending order, random but the same for every model; all of them for 0.

    The rows with the smallest hashes: independent of any library's generator, and a larger choice holds a smaller one.
    `after` leaves out those that a choice of so many would hold, as validation must those of the test.
    """
    if after == 0 and (rows == 0 or rows >= total):
        return list(range(total))

    def rank(row: int) -> bytes:
        return hashlib.sha256(f"{seed}/{task}/{total}/{row}".encode()).digest()

    return sorted(sorted(range(total), key=rank)[after : after + rows])
