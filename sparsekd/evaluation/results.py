"""What an evaluation finds: the contents of evaluation.json."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from sparsekd.evaluation.intervals import Interval


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class Perplexity(Interval):
    """Token perplexity of one corpus's test part, with its interval over documents."""

    tokens: int
    documents: int


class Agreement(_Result):
    """With the dense model: mean KL(dense ‖ model) in nats a token, and the share of tokens they rank first alike."""

    kl: Interval
    top1: Interval


class TaskScore(_Result):
    """One lm-eval task: `value` of its `metric` over `n` of `n_total` rows; `chance` is what guessing scores."""

    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool = True
    n: int
    n_total: int
    chance: float
    version: Any = None


class Evaluation(_Result):
    """All that was measured on one checkpoint, in `dtype`. `bytes` are of its safetensors, in `checkpoint_dtype`."""

    variant: str
    parameters: dict[str, int]
    bytes: int
    checkpoint_dtype: str
    dtype: str
    perplexity: dict[str, Perplexity] = {}
    agreement: dict[str, Agreement] = {}
    repetition: dict[str, float] = {}
    tasks: dict[str, TaskScore] = {}
    groups: dict[str, TaskScore] = {}
    command: str | None = None

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"
