"""What the report is made from: the stages' artifacts, read and checked. What a run left out is simply empty."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from sparsekd.artifacts import Artifact
from sparsekd.errors import ArtifactError
from sparsekd.report.samples import Scores, read_scores
from sparsekd.report.spread import Tokens
from sparsekd.report.summary import VARIANTS, Interval, Parameters, Quantised, Reduction, Source

Columns = dict[str, NDArray[np.float64]]
T = TypeVar("T")


def _number_or_none(value: Any) -> Any:
    """lm-eval writes "N/A" where it has no standard error."""
    return value if isinstance(value, (int, float)) else None


class Loose(BaseModel):
    """Reads the fields the report needs and lets stages add others; a NaN is a damaged file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class PerplexityFile(Loose):
    value: float
    low: float | None = None
    high: float | None = None
    tokens: int | None = None
    documents: int | None = None


class IntervalFile(Loose):
    value: float
    low: float | None = None
    high: float | None = None

    def interval(self) -> Interval:
        return Interval(value=self.value, low=self.low, high=self.high)


class AgreementFile(Loose):
    kl: IntervalFile
    top1: IntervalFile


class TaskFile(Loose):
    metric: str
    value: float
    stderr: Annotated[float | None, BeforeValidator(_number_or_none)] = None
    n: int
    n_total: int | None = None
    chance: float | None = None
    version: float | str | None = None
    higher_is_better: bool | None = None

    @property
    def climbs(self) -> bool:
        """Whether more is better; lm-eval's losses are known by their names where the file does not say."""
        if self.higher_is_better is not None:
            return self.higher_is_better
        return not any(word in self.metric for word in ("perplexity", "bits_per_byte", "loss"))


class Evaluation(Loose):
    """evaluation.json of one variant."""

    parameters: Parameters
    bytes: int
    checkpoint_dtype: str | None = None
    dtype: str | None = None
    perplexity: dict[str, PerplexityFile] = {}
    agreement: dict[str, AgreementFile] = {}
    repetition: dict[str, Annotated[float | None, BeforeValidator(_number_or_none)]] = {}
    tasks: dict[str, TaskFile] = {}
    groups: dict[str, TaskFile] = {}
    command: str | None = None


class Documents(Loose):
    """Sums over each test document of a corpus."""

    nll: list[float]
    tokens: list[int]


class Compared(Documents):
    """The same of validation documents, with KL(dense || model)."""

    kl: list[float] = []


class PromptFile(Loose):
    prompt: str
    answer: str


class RoundsFile(Loose):
    prefill_tokens_per_second: list[float] = []
    decode_tokens_per_second: list[float] = []
    peak_memory_bytes: int | None = None


class RatioFile(Loose):
    prefill: IntervalFile | None = None
    decode: IntervalFile | None = None


class PredictionFile(Loose):
    prefill: float | None = None
    decode: float | None = None


class OperatorFile(Loose):
    milliseconds: float
    share: float


class Benchmark(Loose):
    """benchmark.json."""

    settings: dict[str, Any] = {}
    host: dict[str, Any] = {}
    models: dict[str, RoundsFile] = {}
    ratio: dict[str, RatioFile] = {}
    predicted: dict[str, PredictionFile] = {}
    profile: dict[str, dict[str, OperatorFile]] = {}
    profile_phases: dict[str, dict[str, dict[str, OperatorFile]]] = {}


@dataclass(frozen=True)
class Validation:
    """What evaluate wrote for the gate: other documents and other rows than those of the test."""

    documents: dict[str, Compared] = field(default_factory=dict)
    tasks: dict[str, TaskFile] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantInputs:
    """What evaluate wrote for one variant."""

    evaluation: Evaluation
    documents: dict[str, Documents] = field(default_factory=dict)
    prompts: list[PromptFile] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    validation: Validation = Validation()
    tokens: Tokens = field(default_factory=Tokens)


@dataclass(frozen=True)
class ReportInputs:
    """Everything the report shows, read once."""

    source: Source
    reduction: Reduction
    variants: dict[str, VariantInputs]
    benchmark: Benchmark
    curve: Columns
    layers: Columns
    corpora: dict[str, dict[str, Any]]
    distillation: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    versions: dict[str, str]
    warnings: list[str]
    quantised: tuple[Quantised, ...] = ()
    weights: dict[str, dict[str, str]] = field(default_factory=dict)
    """sha256 of the checkpoints' files of weights, by variant."""

    @classmethod
    def read(cls, artifacts: Mapping[str, Artifact]) -> ReportInputs:
        """From artifacts named as below data/: raw/model, pruned, distilled, evaluation/dense, …, benchmark.

        raw/texts, calibration, benchmark and export may be absent. Raises ArtifactError for an absent, damaged or
        unreadable part that is needed.
        """
        needed = ["raw/model", "pruned", "distilled", *(f"evaluation/{name}" for name in VARIANTS)]
        for name in needed:
            if name not in artifacts:
                raise ArtifactError(f"The report needs data/{name}, which is not there; run `sparsekd compress`.")
        model, pruned, distilled = (artifacts[name] for name in needed[:3])
        benchmark, exported = artifacts.get("benchmark"), artifacts.get("export")
        return cls(
            source=_source(model),
            reduction=_checked(Reduction, pruned.facts.get("reduction"), pruned.path / "manifest.json"),
            variants={name: _read_variant(artifacts[f"evaluation/{name}"].path) for name in VARIANTS},
            benchmark=_json(Benchmark, benchmark.path / "benchmark.json", {}) if benchmark else Benchmark(),
            curve=read_columns(distilled.path / "curve.csv"),
            layers=read_columns(pruned.path / "layers.csv"),
            corpora=artifacts["raw/texts"].facts.get("corpora", {}) if "raw/texts" in artifacts else {},
            distillation=dict(distilled.facts),
            settings=_settings(artifacts),
            versions=dict(distilled.manifest.versions),
            warnings=_warnings(artifacts),
            quantised=_json(tuple[Quantised, ...], exported.path / "quantised.json", ()) if exported else (),
            weights={name: _weights(found) for name, found in zip(VARIANTS, (model, pruned, distilled), strict=True)},
        )


def read_columns(path: Path) -> Columns:
    """A CSV file's columns as float64 arrays; an empty cell is NaN. No file gives no columns."""
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        names = list(rows[0]) if rows else []
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, OSError) as error:
        raise ArtifactError(f"{path} is no table of numbers ({error}); run the stage that makes it again.") from None


def _weights(checkpoint: Artifact) -> dict[str, str]:
    files = checkpoint.manifest.files.items()
    return {name: entry.sha256 for name, entry in files if name.endswith(".safetensors")}


def _source(model: Artifact) -> Source:
    facts = dict(model.facts.get("source") or {})
    known = {key: facts[key] for key in Source.model_fields if key in facts}
    if known.get("kind") == "local" and "name" in known:
        known["name"] = PurePath(known["name"]).name  # where it lay is nobody else's business
    return _checked(Source, known, model.path / "manifest.json")


def _read_variant(directory: Path) -> VariantInputs:
    evaluation = _json(Evaluation, directory / "evaluation.json")
    documents = _json(dict[str, Documents], directory / "documents.json", {})
    prompts = _json(list[PromptFile], directory / "prompts.json", [])
    scores = _scores(directory, evaluation.tasks)
    tokens = _json(Tokens, directory / "tokens.json", {})
    return VariantInputs(evaluation, documents, prompts, scores, _read_validation(directory / "validation"), tokens)


def _read_validation(directory: Path) -> Validation:
    documents = _json(dict[str, Compared], directory / "documents.json", {})
    tasks = _json(dict[str, TaskFile], directory / "tasks.json", {})
    return Validation(documents, tasks, _scores(directory, tasks))


def _scores(directory: Path, tasks: dict[str, TaskFile]) -> dict[str, Scores]:
    """The answers row by row, of the tasks that have them."""
    files = {task: directory / "lm_eval" / f"samples_{task}.jsonl" for task in tasks}
    return {task: found for task, file in files.items() if (found := read_scores(file, tasks[task].metric))}


def _json(kind: type[T], path: Path, absent: Any = None) -> T:
    """The file checked as `kind`; `absent` stands in for a file that is not there, None makes that an error."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        if absent is None:
            raise ArtifactError(f"{path} is not there; run the stage that makes it: `sparsekd compress`.") from None
        value = absent
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is no readable JSON ({error}); run the stage that makes it again.") from None
    return _checked(kind, value, path)


def _checked(kind: type[T], value: Any, path: Path) -> T:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"]) or kind.__name__.lower()
        raise ArtifactError(
            f"{path}: {place} does not fit ({fault['msg'].lower()}); run the stage that makes it again."
        ) from None


def _settings(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """The parameters that the artifacts were made with, `{section: {key: value}}`, from their own manifests."""
    settings: dict[str, dict[str, Any]] = {}
    for artifact in artifacts.values():
        for dotted, value in artifact.manifest.config.items():
            section, _, key = dotted.partition(".")
            values = value if not key and isinstance(value, dict) else {key: value} if key else {}
            settings.setdefault(section, {}).update({k: v for k, v in values.items() if v is not None})
    return settings


def _warnings(artifacts: Mapping[str, Artifact]) -> list[str]:
    """What the stages warned of, each once and with the stage's name."""
    found = [
        f"{artifact.manifest.stage}: {text}"
        for artifact in artifacts.values()
        for text in artifact.facts.get("warnings") or []
    ]
    return list(dict.fromkeys(found))
