"""Evaluation: what was kept (perplexity, agreement with the dense model, tasks) and what was gained (speed).

The names are loaded on first use: the speed benchmark's workers need none of lm-eval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsekd.evaluation.evaluate import evaluate_model
    from sparsekd.evaluation.packaged_tasks import check_tasks
    from sparsekd.evaluation.prompts import answer_prompts
    from sparsekd.evaluation.results import Evaluation
    from sparsekd.evaluation.speed import run_benchmark

__all__ = ["Evaluation", "answer_prompts", "check_tasks", "evaluate_model", "run_benchmark"]

_HOMES = {
    "Evaluation": "results",
    "answer_prompts": "prompts",
    "check_tasks": "packaged_tasks",
    "evaluate_model": "evaluate",
    "run_benchmark": "speed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
