"""summary.json: the numbers of one compression, as pydantic models. Documented here, versioned, stable.

Within a `schema_version` fields are added, never removed, renamed or given another meaning. Shares and accuracies
lie in [0, 1], losses and divergences are nats a token, sizes bytes, speeds tokens a second, intervals 95 % unless a
field says otherwise. `Summary.model_json_schema()` gives the same as JSON schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsekd.errors import ArtifactError

SUMMARY_VERSION: Final = 1
VARIANTS = ("dense", "pruned", "distilled")


class Record(BaseModel):
    """Frozen, no unknown field, no NaN or infinity: the file is valid JSON for every reader."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(Record):
    """A value and the interval around it; the ends are null where the data allow none (such as one document)."""

    value: float
    low: float | None = None
    high: float | None = None

    def excludes(self, point: float) -> bool:
        """Whether the whole interval lies on one side of `point`."""
        return self.low is not None and self.high is not None and (self.low > point or self.high < point)


class Source(Record):
    """Where the dense model came from."""

    name: str = Field(description="Catalogue name, owner/name on the hub, or the last part of a local path.")
    kind: str = Field("local", description="catalogue, hub or local.")
    label: str | None = Field(None, description="What people call it, its quantisation included.")
    revision: str | None = Field(None, description="Commit or content hash.")
    licence: str | None = Field(None, description="Licence of the dense model, inherited by the compressed one.")
    file: str | None = Field(None, description="The file it was converted from, where there was one.")
    bytes: int | None = Field(None, description="Size of that file: not comparable with checkpoints of another dtype.")
    quantization: str | None = Field(None, description="How that file was quantised, such as Q4_1.")
    sha256: str | None = Field(None, description="Hash of that file.")
    base_model: str | None = Field(None, description="The model on the hub that it is, where known.")


class ModelInfo(Record):
    """What was compressed."""

    name: str = Field(description="Name of the compressed model.")
    label: str = Field(description="The dense model as every table calls it, with its quantisation.")
    source: Source


class Reduction(Record):
    """Fraction removed, in [0, 1): the same removal as a share of four different wholes."""

    width: float = Field(description="Of intermediate_size, the neurons of each feed-forward layer.")
    ffn: float = Field(description="Of the feed-forward parameters.")
    non_embedding: float = Field(description="Of all parameters but the embeddings.")
    total: float = Field(description="Of all parameters.")


class Parameters(Record):
    """Numbers of parameters; tied weights count once."""

    total: int
    non_embedding: int
    ffn: int


class Perplexity(Interval):
    """Token perplexity on the test part of a corpus; the interval is over documents."""

    tokens: int | None = Field(None, description="Scored tokens.")
    documents: int | None = Field(None, description="Documents they come from.")
    ratio: Interval | None = Field(None, description="To the dense model's, paired by document: 1 is as good.")
    excess_loss: Interval | None = Field(None, description="Loss minus the dense model's, nats a token, paired.")


class Agreement(Record):
    """Agreement with the dense model on the test part of a corpus."""

    kl: Interval = Field(description="Mean KL(dense || model), nats a token: 0 is the same distribution.")
    top1: Interval = Field(description="Share of positions with the same most likely next token.")


class TaskScore(Record):
    """One lm-eval task."""

    metric: str = Field(description="lm-eval's metric, such as acc or acc_norm.")
    value: float
    stderr: float | None = Field(None, description="Standard error that lm-eval reports.")
    n: int = Field(description="Rows scored, the same for all variants.")
    n_total: int | None = Field(None, description="Rows that the task has.")
    chance: float | None = Field(None, description="What guessing scores; null where that is not known.")
    difference: Interval | None = Field(None, description="Minus the dense model's score, paired by row.")
    flips: float | None = Field(None, description="Share of rows answered rightly by exactly one of it and dense.")
    recovery: float | None = Field(None, description="Score / dense score; null for metrics where lower is better.")
    in_mean: bool = Field(True, description="False where dense is not clearly (2 stderr) above chance.")
    version: float | str | None = Field(None, description="lm-eval's version of the task.")


class TaskMean(Record):
    """Unweighted mean over the tasks that count."""

    tasks: tuple[str, ...]
    value: float
    difference: Interval | None = Field(None, description="Minus the dense model's mean; tasks taken as independent.")
    recovery: float = Field(description="Mean / dense mean of the same tasks.")


class Pair(Record):
    """One figure for reading the prompt (prefill) and one for writing the answer (decode)."""

    prefill: float | None = None
    decode: float | None = None


class SpeedRatio(Record):
    """Speed / dense speed, measured in the same rounds: the median with the *range* of the rounds."""

    prefill: Interval | None = None
    decode: Interval | None = None


class Speed(Record):
    """Measured speed: medians over the rounds, on the machine and settings that the report states."""

    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    rounds: int = Field(0, description="Rounds measured.")
    ratio: SpeedRatio | None = Field(None, description="To dense; low and high are the range over the rounds.")
    predicted: Pair | None = Field(None, description="The ratio expected from shapes alone, beside the measured one.")


class Variant(Record):
    """One of the three models."""

    parameters: Parameters
    bytes: int = Field(description="Of its safetensors, at `checkpoint_dtype`.")
    checkpoint_dtype: str | None = Field(None, description="dtype of the checkpoint's weights.")
    dtype: str | None = Field(None, description="dtype of the evaluation.")
    perplexity: dict[str, Perplexity] = Field(default_factory=dict, description="By corpus.")
    agreement: dict[str, Agreement] = Field(default_factory=dict, description="By corpus.")
    repetition: dict[str, float] = Field(default_factory=dict, description="Share of degenerate repetition, by corpus.")
    tasks: dict[str, TaskScore] = Field(default_factory=dict, description="By lm-eval task.")
    groups: dict[str, TaskScore] = Field(default_factory=dict, description="By lm-eval group of several tasks.")
    task_mean: TaskMean | None = None
    speed: Speed = Speed()


class Variants(Record):
    """The uncompressed model, the pruned one before distillation, and the final one."""

    dense: Variant
    pruned: Variant
    distilled: Variant

    def named(self) -> dict[str, Variant]:
        """The three by name, in the order in which they are shown."""
        return {"dense": self.dense, "pruned": self.pruned, "distilled": self.distilled}


class Quantised(Record):
    """A model as a GGUF file, measured in llama.cpp on the first test tokens of each corpus."""

    model: Literal["dense", "distilled"]
    type: str = Field(description="Of the file: f16, q8_0, q4_0, …")
    bytes: int = Field(description="Of the file.")
    kl: dict[str, Interval] = Field(min_length=1, description="KL(dense || file) in nats a token, by corpus.")
    perplexity: dict[str, Interval] = Field(description="By corpus.")
    tasks: dict[str, TaskScore] = Field(default_factory=dict, description="With the log-likelihoods of llama.cpp.")
    speed: Pair = Field(Pair(), description="Tokens a second in llama.cpp, all files timed in the same rounds.")

    @property
    def mean_kl(self) -> float:
        return sum(found.value for found in self.kl.values()) / len(self.kl)

    def beats(self, other: Quantised) -> bool:
        """Whether it is at most as large and as near to the dense model as the other, and better in one."""
        mine, theirs = (self.bytes, self.mean_kl), (other.bytes, other.mean_kl)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


class Corpus(Record):
    """A text corpus behind the perplexities."""

    role: str | None = Field(None, description="calibration (its other documents were trained on) or held_out.")
    source: str | None = None
    revision: str | None = None
    licence: str | None = None


class OperatorTime(Record):
    """Profiled time of a class of operators."""

    milliseconds: float
    share: float


GateState = Literal["passed", "not passed", "not enough evidence", "no limits"]


class GateCheck(Record):
    """One limit of the gate against what was measured."""

    limit: str = Field(description="Its name in params.yaml: kl, perplexity_ratio, task_margin, …")
    part: str | None = Field(None, description="The corpus or task that it was held against.")
    bound: float = Field(description="The limit itself; a margin is in points.")
    found: Interval | None = Field(None, description="What validation, or the benchmark for speeds, gave.")
    units: int = Field(0, description="Documents, rows or rounds that it comes from.")
    state: GateState
    reason: str = Field(description="The same in a sentence.")


class Gate(Record):
    """Whether the result may become the champion: every limit kept, with its whole interval, on enough evidence."""

    state: GateState = "no limits"
    checks: tuple[GateCheck, ...] = ()

    def sentence(self) -> str:
        """The outcome in a line, with a reason for each limit that was not shown to be kept."""
        if self.state == "no limits":
            return "Gate: no limits are set."
        if self.state == "passed":
            return f"Gate: passed, all {len(self.checks)} checks."
        return " ".join([f"Gate: {self.state}.", *(c.reason for c in self.checks if c.state != "passed")])


class Summary(Record):
    """All of summary.json."""

    schema_version: Literal[1] = SUMMARY_VERSION
    model: ModelInfo
    reduction: Reduction
    verdict: str = Field("", description="The outcome in plain sentences, as the report opens.")
    gate: Gate = Gate()
    variants: Variants
    corpora: dict[str, Corpus] = Field(default_factory=dict)
    quantised: tuple[Quantised, ...] = Field((), description="Both models in llama.cpp, quantised and not.")
    profile: dict[str, dict[str, OperatorTime]] = Field(
        default_factory=dict, description="Of one request, by variant and class: ffn, attention, lm_head, rest."
    )
    profile_phases: dict[str, dict[str, dict[str, OperatorTime]]] = Field(
        default_factory=dict, description="The same for its prefill and its decode: by variant, phase and class."
    )
    warnings: tuple[str, ...] = Field((), description="What a reader must know before quoting a number.")

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def corpus_names(self) -> list[str]:
        """Corpora with a perplexity or an agreement, in the order of the evaluation."""
        names: dict[str, None] = {}
        for variant in self.variants.named().values():
            names |= dict.fromkeys([*variant.perplexity, *variant.agreement])
        return list(names)


def read_summary(path: Path) -> Summary:
    """The summary at `path`. Raises ArtifactError when it is absent or not of this schema version."""
    try:
        return Summary.model_validate_json(path.read_text())
    except OSError:
        raise ArtifactError(f"{path} is not there; run `sparsekd compress`, which writes it.") from None
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is no summary of schema version {SUMMARY_VERSION} ({error.error_count()} fields do not fit); "
            "run `sparsekd compress` again."
        ) from None


def metrics(summary: Summary) -> dict[str, float]:
    """metrics.json: at most ten flat numbers of the distilled model against dense, for `dvc metrics` and tracking.

    Means are over the test corpora; perplexity ratios are of the first two corpora it was calibrated on (the first two
    of any role when roles are unknown). A number that was not measured is left out.
    """
    model = summary.variants.distilled
    calibrated = [name for name in model.perplexity if _role(summary, name) == "calibration"] or list(model.perplexity)
    excess = [p.excess_loss.value for p in model.perplexity.values() if p.excess_loss]
    values: dict[str, float | None] = {
        "total_reduction": summary.reduction.total,
        "ffn_reduction": summary.reduction.ffn,
        "kl": _mean([agreement.kl.value for agreement in model.agreement.values()]),
        "top1_agreement": _mean([agreement.top1.value for agreement in model.agreement.values()]),
        "excess_loss": _mean(excess),
    }
    for name in calibrated[:2]:
        ratio = model.perplexity[name].ratio
        values[f"perplexity_ratio_{name}"] = ratio.value if ratio else None
    values["task_recovery"] = model.task_mean.recovery if model.task_mean else None
    ratios = model.speed.ratio or SpeedRatio()
    values["prefill_speed_ratio"] = ratios.prefill.value if ratios.prefill else None
    values["decode_speed_ratio"] = ratios.decode.value if ratios.decode else None
    return {name: round(value, 6) for name, value in values.items() if value is not None}


def _role(summary: Summary, corpus: str) -> str | None:
    known = summary.corpora.get(corpus)
    return known.role if known else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def interval(estimate: Any) -> Interval:
    """An Interval from anything with value, low and high."""
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)
