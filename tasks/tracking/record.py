"""One compression as MLflow will show it, read from the stages' files. Knows nothing of MLflow and loads no torch.

Everything a run shows is here before a server is asked for anything: an outage loses nothing, and a stage that was
cached is shown like one that ran.
"""

from __future__ import annotations

import csv
import getpass
import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsekd.artifacts import Artifact, hash_file
from sparsekd.errors import ArtifactError
from sparsekd.settings import parse_config
from tasks.git import code_state
from tasks.graph import StageSpec, read_graph
from tasks.process import read_params, select
from tasks.state import progress_path, read_json

MODEL = "data/distilled"
EXPORT = "data/export"
HEADLINE = "compression"
"""The group of metrics.json: distilled against dense. It sorts before dense, distilled, pruned and all others."""
EXPERIMENT_TAG = "dvc.experiment"
GATE_TAG = "sparsekd.gate"
EXPORT_TAG = "sparsekd.export."
"""Begins the tags with the sha256 of each file for another runtime."""
SWEEP_TAG, SWEEP_VARIABLE = "sparsekd.sweep.run", "SPARSEKD_SWEEP"
"""Marks a run that is one of many to choose from: what passes its gate is no champion yet."""
CARDS_AND_CURVES = {"README.md", "curve.csv"}
"""Files beside the checkpoint that are no part of the model."""


@dataclass(frozen=True)
class Metric:
    """One number; `step` is the optimiser step of a curve, 0 for a result."""

    key: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class DatasetRecord:
    """One input: `context` says what it was for, `digest` is the start of the content's sha256."""

    name: str
    digest: str
    context: str
    path: str
    profile: dict[str, Any]


@dataclass(frozen=True)
class ModelRecord:
    """The checkpoint that becomes a registry version. `files` maps each of its files to its sha256."""

    name: str
    sha256: str
    description: str
    files: dict[str, str]


@dataclass(frozen=True)
class Record:
    """Everything that one MLflow run shows.

    `key` is equal for equal dvc.lock and parameters; `id` is equal for the same key and the same flow run. Times are
    milliseconds since the epoch. `artifacts` maps a path in MLflow to a file below the root of the project.
    """

    id: str
    key: str
    run_name: str
    started: int
    ended: int
    params: dict[str, str]
    tags: dict[str, str]
    metrics: list[Metric]
    datasets: list[DatasetRecord]
    model: ModelRecord
    artifacts: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        values = json.loads(text)
        values["metrics"] = [Metric(**metric) for metric in values["metrics"]]
        values["datasets"] = [DatasetRecord(**dataset) for dataset in values["datasets"]]
        values["model"] = ModelRecord(**values["model"])
        return cls(**values)


def collect(
    root: Path, flow_run_id: str | None = None, durations: dict[str, float] | None = None, name: str | None = None
) -> Record:
    """Read what the stages under `root` left. `durations` are seconds by stage; `total`, if given, is the wall time.

    `name` is the run's own: that of its DVC experiment and its Prefect flow run.

    Raises ArtifactError when an output is missing, or is not what params.yaml and its inputs would make: the run
    would then show numbers beside parameters that they do not belong to.
    """
    values = read_params(root / "params.yaml")
    outputs = _read_outputs(root, values)
    summary = _read_json(root / "data/report/summary.json")
    durations = durations or {}
    params = _flatten_params(parse_config(values).model_dump(mode="json"))
    lock = root / "dvc.lock"
    lock_hash = hash_file(lock) if lock.is_file() else ""
    identity = [lock_hash, params, outputs["data/report"].manifest.sha256()]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    ended = int(time.time() * 1000)
    model = _model(root, outputs[MODEL], summary)
    tags = _tags(root, summary, key, lock_hash, flow_run_id) | ({EXPERIMENT_TAG: name} if name else {})
    tags |= {f"{EXPORT_TAG}{file}": digest for file, digest in outputs[EXPORT].facts.get("exports", {}).items()}
    return Record(
        id=hashlib.sha256(f"{key} {flow_run_id or ''}".encode()).hexdigest()[:16],
        key=key,
        run_name=name or f"{model.name} {key[:6]}",
        started=ended - int(1000 * durations.get("total", sum(durations.values()))),
        ended=ended,
        params=params,
        tags=tags,
        metrics=[
            *_results(root, summary),
            *_seconds(durations),
            *_speed(root),
            *read_curve(root / MODEL / "curve.csv"),
        ],
        datasets=_datasets(outputs),
        model=model,
        artifacts=_artifacts(root, outputs),
    )


def _read_outputs(root: Path, values: dict[str, Any]) -> dict[str, Artifact]:
    """Every stage's output, checked to belong to params.yaml and to the others. Files are not hashed here."""
    stages = list(read_graph(root).values())
    outputs = {str(stage.out): Artifact.read(root / stage.out, verify=False) for stage in stages}
    for stage in stages:
        _check(stage, outputs, values)
    return outputs


def _check(stage: StageSpec, outputs: dict[str, Artifact], values: dict[str, Any]) -> None:
    manifest = outputs[str(stage.out)].manifest
    wanted = select(values, stage.params)
    changed = [key for key, value in wanted.items() if manifest.config.get(key) != value]
    if changed:
        raise ArtifactError(
            f"{stage.out} was made with another {', '.join(changed)} than params.yaml has now, so it was not logged to "
            "MLflow. Run `sparsekd compress`."
        )
    other = [dep for dep in stage.data_deps if manifest.inputs.get(dep) != outputs[dep].manifest.sha256()]
    if other:
        raise ArtifactError(
            f"{stage.out} was made from another {', '.join(other)} than the one that is there now, so it was not "
            "logged to MLflow. Run `sparsekd compress`."
        )


def _flatten_params(config: dict[str, Any]) -> dict[str, str]:
    """Every setting as text under its name for `-S`: `prune.width`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}


def _results(root: Path, summary: dict[str, Any]) -> Iterator[Metric]:
    """The few numbers that matter, in the group that MLflow's alphabet puts first; then all of summary.json."""
    for key, value in _read_json(root / "data/report/metrics.json").items():
        if _is_number(value):
            yield Metric(metric_name(f"{HEADLINE}/{key}"), value)
    rest = {key: value for key, value in summary.items() if key not in {"schema_version", "model", "variants"}}
    yield from _flatten_metrics({**summary["variants"], **rest})


def _flatten_metrics(values: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[Metric]:
    """Numbers by path: `distilled/perplexity/wiki`, beside it `…/wiki_low` and `…/wiki_high`.

    Two levels of groups and no more: MLflow shows a section of charts for each.
    """
    joint = "_" if "value" in values or depth > 2 else "/"
    for key, value in values.items():
        path = prefix if key == "value" else f"{prefix}{joint}{key}" if prefix else key
        if isinstance(value, dict):
            yield from _flatten_metrics(value, path, depth + 1)
        elif _is_number(value):
            yield Metric(metric_name(path), value)


def _seconds(durations: dict[str, float]) -> list[Metric]:
    return [Metric(metric_name(f"seconds/{stage.replace('@', '/')}"), value) for stage, value in durations.items()]


def _speed(root: Path) -> Iterator[Metric]:
    """Tokens a second of distillation, validation included, where this run computed it: its last progress report."""
    report = read_json(progress_path(root, "distill"))
    if isinstance(report, dict) and _is_number(report.get("tokens_per_second")):
        yield Metric("train/tokens_per_second", report["tokens_per_second"])


def read_curve(path: Path) -> list[Metric]:
    """Every point of the loss curve: `train/loss` and so on, and `validation/kl` at the steps that have it."""
    points: list[Metric] = []
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            step = int(float(row["step"]))
            for column, text in row.items():
                if column == "step" or not text or not math.isfinite(float(text)):
                    continue
                part, _, rest = column.partition("_")
                name = f"validation/{rest}" if part == "validation" and rest else f"train/{column}"
                points.append(Metric(metric_name(name), float(text), step))
    return points


def metric_name(text: str) -> str:
    """`text` with what MLflow refuses in a name replaced by an underscore."""
    return re.sub(r"[^\w\-./ :]", "_", text, flags=re.ASCII)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _datasets(outputs: dict[str, Artifact]) -> list[DatasetRecord]:
    """The corpora, one each, and the packed sequences that they became."""
    texts, calibration = outputs["data/raw/texts"], outputs["data/calibration"]
    records = []
    for name, facts in texts.facts.get("corpora", {}).items():
        file = texts.manifest.files.get(f"{name}.jsonl")
        digest = file.sha256 if file else texts.manifest.sha256()
        context = str(facts.get("role", "calibration"))
        records.append(DatasetRecord(name, digest[:12], context, f"data/raw/texts/{name}.jsonl", dict(facts)))
    digest = calibration.manifest.sha256()[:12]
    records.append(DatasetRecord("calibration", digest, "calibration", "data/calibration", dict(calibration.facts)))
    return records


def _model(root: Path, artifact: Artifact, summary: dict[str, Any]) -> ModelRecord:
    files = {name: entry.sha256 for name, entry in artifact.manifest.files.items() if name not in CARDS_AND_CURVES}
    card = root / "data/report/README.md"
    description = re.sub(r"\A---\n.*?\n---\n", "", card.read_text(), flags=re.DOTALL) if card.is_file() else ""
    return ModelRecord(
        # MLflow takes neither / nor : in a registered model's name, and quotes would end its search strings.
        name=re.sub(r"[^\w .+-]+", "-", str(summary["model"]["name"])),
        sha256=model_sha256(files),
        description=description.strip()[:4900],  # the registry's column holds 5000
        files=files,
    )


def model_sha256(files: dict[str, str]) -> str:
    """The hash that stands for a checkpoint: of the names and sha256 of its files."""
    lines = [f"{name} {digest}" for name, digest in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _artifacts(root: Path, outputs: dict[str, Artifact]) -> dict[str, str]:
    """Path in MLflow → file: the report with its pictures, the curves, and what repeats the run."""
    files = {f"report/{name}": f"data/report/{name}" for name in outputs["data/report"].manifest.files}
    files |= {"curves/loss.csv": f"{MODEL}/curve.csv", "curves/layers.csv": "data/pruned/layers.csv"}
    files |= {
        "export.json": f"{EXPORT}/export.json",
        "params.yaml": "params.yaml",
        "dvc.lock": "dvc.lock",
        "dvc.yaml": "dvc.yaml",
    }
    for path in outputs:
        files[f"manifests/{path.removeprefix('data/').replace('/', '-')}.json"] = f"{path}/manifest.json"
    return {target: source for target, source in files.items() if (root / source).is_file()}


def _tags(root: Path, summary: dict[str, Any], key: str, lock_hash: str, flow_run_id: str | None) -> dict[str, str]:
    source = summary["model"]["source"]
    source = source if isinstance(source, dict) else {"name": source}
    commit, edited = code_state(root)
    tags = {
        "sparsekd.key": key,
        "dvc.lock.sha256": lock_hash,
        "prefect.flow_run_id": flow_run_id,
        "git.commit": commit,
        "git.dirty": str(edited).lower() if commit else None,
        "host": platform.node(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "sparsekd compress",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "mlflow.note.content": summary.get("verdict"),
        SWEEP_TAG: os.environ.get(SWEEP_VARIABLE),
        "evaluation.dtype": summary.get("variants", {}).get("distilled", {}).get("dtype"),
        GATE_TAG: (summary.get("gate") or {}).get("state"),
        **{f"model.source.{name}": value for name, value in source.items()},
        "model.source": source.get("name"),
    }
    return {name: str(value) for name, value in tags.items() if value not in (None, "")}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        raise ArtifactError(
            f"{path} is not there or no JSON; the report stage writes it: `sparsekd compress`."
        ) from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds no JSON object; delete data/report and run `sparsekd compress`.")
    return values
